"""Sample answers from the SFT model and rank them."""

from flows.stage import main

if __name__ == "__main__":
    main("preferences")
