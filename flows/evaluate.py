"""Measure all models side by side on held-out data."""

from flows.stage import main

if __name__ == "__main__":
    main("evaluate")
