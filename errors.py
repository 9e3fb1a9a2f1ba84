"""The one exception whose message a user sees without a traceback, and a command line that raises it."""

import argparse
from typing import NoReturn


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


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose mistakes are UserErrors of one line instead of a usage text and SystemExit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} -h lists the flags")
