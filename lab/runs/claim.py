"""Folders that belong to one run, and to one process at a time.

Whatever a run writes to (--out, the default under runs/, --checkpoint-dir, a series' folder) is claimed first, by one
rule: the folder is new or empty, or it is this very run's, or it is refused and nothing in it is touched. `run.json`,
written before anything else, says whose it is. On a local file system it is locked as well (flock): the system takes
that lock back when the process ends, however it ends. A service such as gs:// has no locks: there each process leaves
a marker `writing-...json` with host, process and time, and then looks whether it is alone.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow as tf

from lab.base import storage
from lab.base.errors import Exit, UserError, brief, exhausted
from lab.base.files import decode, encode, lock
from lab.base.storage import FILE_ERRORS, is_remote, with_timeout, write_whole
from lab.runs.results import SERIES

NAME = "run.json"
PART = f"{NAME}.part"  # while it is being written
MARKER = "writing-"
OPENED = os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # Windows has the latter
LARGEST = 2**20  # bytes of a run.json; it has a few thousand
OWN = (NAME, "checkpoints")  # what may lie there before a run has left anything
_markers: set[str] = set()  # of this process


def new_name() -> str:
    """A name for a run that no other has."""
    return secrets.token_hex(16)


def read(folder: str | Path) -> dict[str, Any]:
    """What run.json says; {} if there is none, or it is damaged or something else."""
    with contextlib.suppress(ValueError, *FILE_ERRORS):
        about = decode(storage.read(f"{folder}/{NAME}", LARGEST).decode())
        if isinstance(about.get("name"), str) and about["name"]:
            return about
    return {}


def is_written(folder: str | Path) -> bool:
    """Whether a live process is writing to this local folder."""
    try:
        descriptor = os.open(f"{folder}/{NAME}", OPENED)
    except OSError:
        return False
    try:
        return not lock(descriptor, shared=True)  # several may ask at once
    finally:
        os.close(descriptor)


@dataclass
class Claim:
    """The folders that this process may write to, until `release`.

    Args:
        name: the run's, from `new_name`, or of the run.json of a run that goes on.
        about: goes into run.json: recipe, seed, hyperparameters; JSON.
    """

    name: str
    about: dict[str, Any] = field(default_factory=dict)
    _held: list["_Local | _Remote"] = field(default_factory=list)

    def take_new(self, parent: Path, name: str) -> str:
        """Makes and claims a folder of that name, or of the first of name-2, name-3, ... that is free: its path."""
        made = make_default(parent, name)
        held = _Local("--out", str(made[0]), self.name, again=False)
        held.made += made
        self._held.append(held)
        held.write({"name": self.name, **self.about})
        return held.path

    def take(self, flag: str, folder: str, *, again: bool = False) -> None:
        """Claims a folder; one that it holds already stays.

        Args:
            flag: which option named it, for the message.
            folder: a local path, or one that tf.io.gfile knows. It is made if it is not there.
            again: it may hold a run without a run.json, of an older version: the run that goes on.

        Raises:
            UserError: if it holds something else, another process writes to it, or it cannot be written. It is left
                as it was.
        """
        if any(same(folder, held.path) for held in self._held):
            return
        held = (_Remote if is_remote(folder) else _Local)(flag, folder, self.name, again)
        self._held.append(held)
        held.write({"name": self.name, **self.about})

    def check(self, flag: str, folder: str, *, again: bool = False) -> None:
        """Raises what `take` would for what the folder holds, and makes nothing."""
        if not is_remote(folder) and os.path.isdir(folder):
            _Folder(flag, folder, self.name, again).refuse_others(sorted(os.listdir(folder)))

    def say(self, **about: Any) -> None:
        """Adds to what run.json says."""
        self.about |= about
        for held in self._held:
            held.write({"name": self.name, **self.about})

    def release(self, *, undo: bool = True) -> None:
        """Gives the folders up; with `undo`, those in which the run has left nothing are as they were before."""
        while self._held:
            held = self._held.pop()
            with contextlib.suppress(*FILE_ERRORS):
                if undo:
                    held.undo()
            with contextlib.suppress(*FILE_ERRORS):
                held.release()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # An error that nobody foresaw leaves its traceback in the run's folder: see errors.reported_in.
        foreseen = error is None or isinstance(error, UserError) or not isinstance(error, Exception) or exhausted(error)
        self.release(undo=foreseen)


def make_default(parent: Path, name: str) -> list[Path]:
    """A new folder of that name, or of the first of name-2, name-3, ... that is free; then its parent if that is new.

    Raises UserError if it cannot be made.
    """
    number, made = 1, [] if parent.is_dir() else [parent]
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()  # fails when it exists, so that of two processes one gets it
            return [folder, *made]
        except FileExistsError:
            if not parent.is_dir():
                raise UserError(f"{parent} is not a folder; move it away, or give --out") from None
            number += 1
        except OSError as error:
            raise UserError(f"cannot write the folder {folder}: {error.strerror}; try another --out") from None


class _Folder:
    """One folder that is claimed. `name` is the run's."""

    def __init__(self, flag: str, path: str, name: str, again: bool) -> None:
        self.flag, self.path, self.name, self.again = flag, path, name, again

    def refuse_others(self, names: list[str]) -> None:
        """Raises UserError if what lies there (names) is another's."""
        names = [name for name in names if not name.startswith(".") and name != "lost+found"]
        there = [name for name in names if name not in (NAME, PART) and not name.startswith(MARKER)]
        owner = read(self.path).get("name")
        if owner == self.name or (self.again and owner is None) or not (there or owner):
            return
        if SERIES in there:
            what = "a series"
        else:
            what = "a run" if owner or {"result.json", "checkpoints"} & set(there) else _shown(there[0])
        goes_on = what.startswith("a ") and not is_remote(self.path)
        remedy = f"--resume {self.path} goes on with it, or choose" if goes_on else "choose"
        raise UserError(f"{self.flag} {self.path} holds {what}; {remedy} another folder")


class _Local(_Folder):
    def __init__(self, flag: str, path: str, name: str, again: bool) -> None:
        super().__init__(flag, path, name, again)
        folder = Path(path)
        self.made: list[Path] = []  # which undoing removes, in this order
        try:
            if folder.is_dir():
                self.refuse_others(sorted(os.listdir(folder)))
            for part in (*reversed(folder.parents), folder):
                with contextlib.suppress(FileExistsError):
                    part.mkdir()
                    self.made.insert(0, part)
            self.descriptor = self._open(folder / NAME)
        except OSError as error:
            self._unmake()
            raise UserError(f"cannot write the folder {path}: {error.strerror}; try another {flag}") from None
        try:
            self.refuse_others(sorted(os.listdir(folder)))  # again: another may have come, and gone
        except BaseException:
            os.close(self.descriptor)
            raise

    def _open(self, path: Path) -> int:
        """Of run.json, locked."""
        tries = 5
        while True:
            # A link would lead elsewhere, and a FIFO would wait.
            descriptor = os.open(path, OPENED | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            if not lock(descriptor):
                os.close(descriptor)
                if tries := tries - 1:  # somebody may only have asked
                    time.sleep(0.05)
                    continue
                raise UserError(
                    f"{self.flag} {self.path}: another process is writing to it; wait for its end, or choose another "
                    "folder"
                )
            try:
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
            except FileNotFoundError:
                pass
            os.close(descriptor)  # who held it has removed it meanwhile

    def write(self, about: dict[str, Any]) -> None:
        # In place: a new file would not be locked.
        content = encode(about).encode()
        try:
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            os.write(self.descriptor, content)
            os.ftruncate(self.descriptor, len(content))
            os.fsync(self.descriptor)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}/{NAME}: {error.strerror}; free the disk, or try another {self.flag}",
                exit_code=Exit.CANNOT_WRITE,
            ) from None

    def release(self) -> None:
        os.close(self.descriptor)

    def undo(self) -> None:
        folder = Path(self.path)
        with contextlib.suppress(OSError):
            if set(os.listdir(folder)) - set(OWN):
                return
            with contextlib.suppress(FileNotFoundError):
                (folder / "checkpoints").rmdir()  # fails if there is one
            (folder / NAME).unlink(missing_ok=True)
        self._unmake()

    def _unmake(self) -> None:
        """Removes the folders that it made, if nothing lies in them. A run.json that it could not open is another's."""
        with contextlib.suppress(OSError):
            for part in self.made:
                part.rmdir()


class _Remote(_Folder):
    def __init__(self, flag: str, path: str, name: str, again: bool) -> None:
        super().__init__(flag, path, name, again)
        self.marker = f"{path}/{MARKER}{secrets.token_hex(8)}.json"
        try:
            self.refuse_others(with_timeout(path, _listed))
            tf.io.gfile.makedirs(path)
            mine = {"host": socket.gethostname(), "process": os.getpid(), "time": time.strftime("%Y-%m-%d %H:%M:%S %z")}
            _markers.add(self.marker)  # before it is there, or another thread would take it for a dead process's
            try:
                write_whole(self.marker, json.dumps(mine))
                # Of two that come at once at least one sees the other: each has written before it looks.
                self._refuse_writers()
                self.refuse_others(_listed(path))
            except BaseException:
                self._remove_marker()
                raise
        except FILE_ERRORS as error:
            raise UserError(f"cannot write {flag} {path}: {brief(error)}; give another folder") from None

    def _refuse_writers(self) -> None:
        for name in _listed(self.path):
            other = f"{self.path}/{name}"
            if not name.startswith(MARKER) or not name.endswith(".json") or other == self.marker:
                continue
            about: dict[str, Any] = {}
            with contextlib.suppress(ValueError, *FILE_ERRORS), tf.io.gfile.GFile(other, "rb") as file:
                about = json.loads(file.read(LARGEST))
            about = about if isinstance(about, dict) else {}
            if _ended(other, about):
                with contextlib.suppress(*FILE_ERRORS):  # somebody else may have removed it
                    tf.io.gfile.remove(other)
                continue
            who = ", ".join(f"{key} {_shown(str(about.get(key)))}" for key in ("host", "process", "time"))
            raise UserError(
                f"{self.flag} {self.path}: another process is writing to it ({who}); if that has ended, remove "
                f"{other}, else choose another folder"
            )

    def write(self, about: dict[str, Any]) -> None:
        try:
            write_whole(f"{self.path}/{NAME}", encode(about))
        except FILE_ERRORS as error:
            raise UserError(
                f"cannot write {self.path}/{NAME}: {brief(error)}; try another {self.flag}",
                exit_code=Exit.CANNOT_WRITE,
            ) from None

    def undo(self) -> None:
        left = set(_listed(self.path)) - {*OWN, self.marker.rpartition("/")[2]}
        if not left and not _listed(f"{self.path}/checkpoints"):
            with contextlib.suppress(*FILE_ERRORS):
                tf.io.gfile.remove(f"{self.path}/{NAME}")

    def release(self) -> None:
        self._remove_marker()

    def _remove_marker(self) -> None:
        _markers.discard(self.marker)
        with contextlib.suppress(*FILE_ERRORS):  # it could not be written, or is gone
            tf.io.gfile.remove(self.marker)


def _ended(marker: str, about: dict[str, Any]) -> bool:
    """Whether the process of a marker was one of this machine and has ended. Another machine's may be alive."""
    process = about.get("process")
    if about.get("host") != socket.gethostname() or type(process) is not int or not 0 < process < 2**31:
        return False
    if process == os.getpid():  # in a container, the number of every first process
        return marker not in _markers
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _listed(path: str) -> list[str]:
    """Names in a folder of a storage service, sorted; a folder that is not there has none."""
    return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(path)) if tf.io.gfile.isdir(path) else []


def same(one: str, other: str) -> bool:
    """Whether two paths name the same folder."""
    if is_remote(one) or is_remote(other):
        return one.rstrip("/") == other.rstrip("/")
    return os.path.realpath(one) == os.path.realpath(other)


def _shown(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
