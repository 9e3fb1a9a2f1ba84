"""The one exception whose message a user sees without a traceback, and command lines that raise and show it."""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

P = ParamSpec("P")


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


def ends_in_a_line(main: Callable[P, int]) -> Callable[P, int]:
    """Makes a UserError in a program's `main` its line on stderr and its exit code."""

    @functools.wraps(main)
    def guarded(*arguments: P.args, **options: P.kwargs) -> int:
        try:
            return main(*arguments, **options)
        except UserError as error:
            print(error, file=sys.stderr)
            return error.exit_code

    return guarded
