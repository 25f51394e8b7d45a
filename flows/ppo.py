"""Optimise the SFT model against the reward model by PPO."""

from flows.stage import main

if __name__ == "__main__":
    main("ppo")
