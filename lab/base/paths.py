"""Whether a path that a user gave can be one, asked before anything is read, made or trained. No TensorFlow here."""

import errno
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lab.base.errors import UserError

REMOTE = ("gs", "file", "ram")  # what TensorFlow's file systems are called, without packages of others
NAME_BYTES = 255  # of a file or folder, on nearly every file system
SPARE = "/" + 100 * "x"  # no less than what is written in a folder: checkpoints/step-N.npz, a profile's files


def check(flag: str, path: str, *, schemes: Sequence[str] = REMOTE, folder: bool = False) -> str:
    """The path, with ~ expanded, if a file system could hold it; whether it is there is the reader's to say.

    Args:
        flag: the option's name, for the message: --data.
        path: what was given; "" passes.
        schemes: of the addresses that are taken, gs for gs://bucket/folder; () for local paths alone.
        folder: it is to be written as a folder, and so may not be a file.

    Raises:
        UserError: for a path with bytes that are no UTF-8, with a NUL, of a scheme that is not taken, of a user who
            is not there, too long, that leads through a file or a circle of links, that may not be looked at, or that
            is a FIFO, a socket or a device.
    """
    shown = path if len(path) <= 100 else f"{path[:60]}...{path[-37:]}"
    if "\0" in path or any("\ud800" <= letter <= "\udfff" for letter in path):
        raise UserError(f"{flag} {shown!a} is not UTF-8; rename it, or give another path")
    scheme, separator, rest = path.partition("://")
    if separator:
        if scheme not in schemes or not rest.strip("/"):
            taken = ["a local path", *(f"{name}://..." for name in schemes[:1])]
            raise UserError(f"{flag} {shown} cannot be reached; give {' or '.join(taken)}")
        return path
    local = os.path.expanduser(path)
    if local.startswith("~") and not os.path.exists(local):
        raise UserError(f"{flag} {shown}: there is no such user; write ./{shown} for a name that begins with ~")
    try:
        if any(len(os.fsencode(part)) > NAME_BYTES for part in local.split("/")):  # in folders that are to be made
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        kind = _kind(local)
        if folder:
            _kind(local + SPARE if kind == 0 or stat.S_ISDIR(kind) else local)
    except OSError as error:
        raise UserError(f"{flag} {shown}: {error.strerror}; give another path") from None
    if any(is_one(kind) for is_one in (stat.S_ISFIFO, stat.S_ISSOCK, stat.S_ISCHR, stat.S_ISBLK)):
        other = "a folder" if folder else "a file or folder"
        raise UserError(f"{flag} {shown} is a FIFO, a socket or a device; give {other}")
    if folder and stat.S_ISREG(kind):
        raise UserError(f"{flag} {shown} is a file; give a folder")
    return local


def _kind(path: str) -> int:
    """Its st_mode; 0 for "" or if nothing is there. Raises OSError for what the system cannot look at."""
    try:
        return os.stat(path).st_mode if path else 0
    except FileNotFoundError:
        return 0


def check_writable(flag: str, path: str) -> None:
    """Makes the folder, and raises UserError if that cannot be done or nothing can be written in it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"cannot write {flag} {path}: {error.strerror}; give another folder") from None
