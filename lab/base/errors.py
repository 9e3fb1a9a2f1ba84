"""The one exception whose message a user sees without a traceback, exit codes, and command lines that show both."""

import argparse
import contextlib
import difflib
import functools
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

P = ParamSpec("P")
DEBUG = "DAVIDNET_DEBUG"  # environment variable; 1 shows tracebacks, and what TensorFlow says as it starts
# How those that take memory say that there is none: Python, NumPy, the system, TensorFlow, XLA, C++.
_EXHAUSTED = ("out of memory", "resource_exhausted", "cannot allocate", "unable to allocate", "bad_alloc", "oom when")


class Exit(IntEnum):
    """What a program exits with. A run that is stopped by a signal exits with 128 and the signal's number."""

    DONE = 0
    NO = 1  # a check's answer: stale figures, a program that the TPU compiler refuses
    USAGE = 2  # a mistake in the flags, the data or the folder
    NOT_FINITE = 3  # a loss or gradient, on any replica
    LOST_WORKER = 4
    CANNOT_WRITE = 5  # the disk is full, or the folder read-only or gone
    EXHAUSTED = 6  # the batch does not fit in memory
    UNFORESEEN = 7  # an error of the program's own
    INTERRUPTED = 130  # Ctrl-C, as the shell's own
    UNREAD = 141  # who read the output has ended; as SIGPIPE


class UserError(Exception):
    """A user's mistake, or a fault that the user can remedy.

    Args:
        message: one line that says the value, the limit and the remedy. Line breaks (a file name may
            hold one) become spaces, other control characters are written as \\x1b.
        exit_code: what the process should exit with.
    """

    def __init__(self, message: str, *, exit_code: int = Exit.USAGE) -> None:
        super().__init__(printable(" ".join(message.splitlines())))
        self.exit_code: int = exit_code

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it, in place of a traceback."""
        return [str(self)]


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose mistakes are UserErrors of one line instead of a usage text and SystemExit.

    It takes flags in full only, so that a new flag cannot change what a script's --batch means.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"\S{200,}", lambda word: f"{word[0][:60]}...{word[0][-20:]}", message)
        raise UserError(f"{message}; {self.prog} -h lists the flags")

    def parse_args(  # type: ignore[override]  # argparse's has overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse's, but an unknown flag's error suggests the known one that was probably meant."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = re.findall(r"--[\w-]+", self.format_usage())
            name = unknown[0].partition("=")[0][:200]
            if hint := nearest(name, flags):
                raise UserError(f"unknown argument {name}; {hint}")
            self.error(f"unknown argument {unknown[0]}")
        return known


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean ...?' with the known name, or flag, that was probably meant, or '' if none is like it.

    An abbreviation goes before a likeness of letters: --batch is --batch-size, lr is learning_rate, decay is
    weight_decay, and --learning-rat is --learning-rate.
    """
    wanted, plain = _plain(name), {_plain(other): other for other in known}
    words = {other: other.split("-") for other in plain}
    if len(wanted) < 2:
        return ""
    like = (
        [other for other in plain if other.startswith(wanted)]
        or [other for other in plain if wanted == "".join(word[0] for word in words[other] if word)]
        or difflib.get_close_matches(wanted, plain, n=1)
        or [other for other in plain if len(wanted) > 2 and any(w.startswith(wanted) for w in words[other])]
    )
    return f"did you mean {plain[like[0]]}?" if like else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").strip("-")


def printable(text: str) -> str:
    """The text with what a terminal might obey, or cannot show, as Python writes it: \\x1b, \\udcff."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def brief(error: Exception) -> str:
    """The error in a few words."""
    text = getattr(error, "message", "") or getattr(error, "strerror", "") or str(error) or type(error).__name__
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(text))  # which of tf.data's nodes it was
    text = printable(" ".join(text.split()))
    return text if len(text) <= 200 else f"{text[:80]}...{text[-117:]}"  # TensorFlow says the cause last


def exhausted(error: BaseException) -> bool:
    """Whether it says that memory was exhausted."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _EXHAUSTED)


def debugging() -> bool:
    """Whether the user asked to see tracebacks and TensorFlow's own lines."""
    return os.environ.get(DEBUG, "") not in ("", "0")


@contextlib.contextmanager
def reported_in(folder: Path | None) -> Iterator[None]:
    """The traceback of an error that nobody foresaw within it is written in this folder, a run's; None: elsewhere."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        error.run_folder = folder  # type: ignore[attr-defined]  # Python 3.10 has no add_note
        raise


def unforeseen(error: Exception) -> str:
    """Writes the whole traceback to a file, in the run's folder if it has one; returns the line that names it."""
    lines, kind = traceback.format_exc(), type(error).__name__
    if debugging():
        print(lines, file=sys.stderr, end="")
    for folder in (getattr(error, "run_folder", None), None):  # None: the system's, for temporary files
        try:
            with tempfile.NamedTemporaryFile(
                "w", dir=folder, prefix="traceback-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
            ) as file:
                file.write(lines)
            return f"unforeseen {kind}: {brief(error)}; its traceback is in {file.name}, {DEBUG}=1 shows it at once"
        except OSError:  # the disk is full, or the folder gone
            continue
    return f"{lines}unforeseen {kind}: {brief(error)}"


def exits_with_one_line(main: Callable[P, int]) -> Callable[P, int]:
    """Makes every error in a program's `main`, and Ctrl-C, a line on stderr and an exit code."""

    @functools.wraps(main)
    def guarded(*arguments: P.args, **options: P.kwargs) -> int:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a terminal without σ, a file's odd name
        try:
            code = main(*arguments, **options)
            sys.stdout.flush()
            return code
        except UserError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return Exit.INTERRUPTED
        except BrokenPipeError:  # nobody reads any more: python -m lab report | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return Exit.UNREAD
        except Exception as error:
            if exhausted(error) and not debugging():
                print(f"out of memory: {brief(error)}; end other programs, or take less at once", file=sys.stderr)
                return Exit.EXHAUSTED
            print(unforeseen(error), file=sys.stderr)
            return Exit.UNFORESEEN

    return guarded
