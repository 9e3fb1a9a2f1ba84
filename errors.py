"""The one exception whose message a user sees without a traceback."""


class UserError(Exception):
    """A user's mistake, or a fault that the user can remedy.

    Args:
        message: one line that says the value, the limit and the remedy. Line breaks (a file name may
            hold one) become spaces.
        exit_code: what the process should exit with.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(" ".join(message.splitlines()))
        self.exit_code: int = exit_code
