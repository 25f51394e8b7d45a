"""Fine-tune the base model on demonstrations."""

from flows.stage import main

if __name__ == "__main__":
    main("sft")
