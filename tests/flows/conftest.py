"""What the tests of runs know of the one undisturbed run that they share (`tests/conftest.py`)."""

from tests.conftest import FinishedRun

__all__ = ["FinishedRun"]
