"""Train the tokenizer and tokenise everything once."""

from flows.stage import main

if __name__ == "__main__":
    main("tokenizer")
