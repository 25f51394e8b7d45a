"""Optimise the SFT model on the ranked answers directly."""

from flows.stage import main

if __name__ == "__main__":
    main("dpo")
