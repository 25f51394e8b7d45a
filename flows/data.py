"""Read the sources, filter, de-duplicate, split."""

from flows.stage import main

if __name__ == "__main__":
    main("data")
