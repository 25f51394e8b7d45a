"""Train a scalar head on the ranked answers."""

from flows.stage import main

if __name__ == "__main__":
    main("reward_model")
