"""Write the report of the run."""

from flows.stage import main

if __name__ == "__main__":
    main("report")
