"""Local files: written complete or not at all, locked, their checksums, and JSON that carries its own.

Nothing here needs TensorFlow. `lab/base/storage.py` does the same on any path that TensorFlow reaches, gs:// too.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from lab.base.errors import Exit, UserError

try:
    import fcntl
except ImportError:  # Windows: there nothing is locked
    fcntl = None  # type: ignore[assignment]

CHECKSUM = "sha256"  # the last key of what encode makes


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes a file such that readers see all of it or what was there before.

    Raises UserError, with an exit code of its own, if it cannot be written.
    """
    try:
        replace(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free the disk or the folder, or try another --out",
            exit_code=Exit.CANNOT_WRITE,
        ) from None


def replace(path: str | Path, content: str | bytes) -> None:
    """Writes a file under a temporary name, to the disk, and renames it. Raises OSError."""
    path, temporary = Path(path), None
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or the new name could survive a power cut and the content not
        with contextlib.suppress(OSError):  # some mounts, as WSL's of Windows' disks, have no modes
            os.chmod(temporary, 0o644)  # a temporary file is its owner's alone
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C too
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Locks an open file, or folder; False if another process has it. A file system without locks has nothing to say.

    The system takes the lock back when the file is closed or the process ends.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def sum_of(path: str | Path, algorithm: str = "sha256") -> str:
    """The checksum of a file, in hexadecimal; `algorithm` is one of hashlib's. Raises OSError."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def encode(content: dict[str, Any]) -> str:
    """An object as JSON, with a last key for the sha256 of the rest, by which decode tells damage.

    Raises ValueError for a number that is not finite.
    """
    return _text(content | {CHECKSUM: _sha256(content)})


def decode(text: str) -> dict[str, Any]:
    """What encode was given. Raises ValueError, with what is wrong, if it is something else, damaged or edited."""
    try:
        content = json.loads(text)
        same = content.pop(CHECKSUM) == _sha256(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it cannot be parsed, or has no checksum ({type(error).__name__})") from None
    if not same:
        raise ValueError("its checksum differs, so it is not what was written")
    return content


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(_text(content).encode()).hexdigest()
