"""Train the base model on text."""

from flows.stage import main

if __name__ == "__main__":
    main("pretrain")
