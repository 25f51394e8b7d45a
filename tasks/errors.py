"""The exceptions that mean something outside the place that raises them."""


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where, the value, what is allowed, what to do.

    The command line prints the message without a traceback and leaves with `exit_code`:
    2 for usage and configuration, 1 for a run that failed.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(Exception):
    """The work was asked to stop, and did where it can go on later."""
