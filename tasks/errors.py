"""The one exception that a user's mistake ends in."""


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where, the value, what is allowed, what to do.

    The command line prints the message without a traceback and leaves with `exit_code`:
    2 for usage and configuration, 1 for a run that failed.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
