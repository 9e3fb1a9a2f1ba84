"""What a run leaves behind: result.json, dawnbench.tsv and weights.npz, each written whole or not at all.

A result says which numbers were drawn in `random_stream`: "numpy-plan", for each epoch from its seed and number, in
NumPy. Records without it were made with the older stream, TensorFlow's Philox within the step: other draws of the
same distributions, so their statistics compare, but not run with run by seed.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.base import paths
from lab.base.errors import UserError
from lab.base.files import decode, encode, sum_of, write_whole
from lab.machine import memory, processor

RANDOM_STREAM = "numpy-plan"  # of new results
ROOT = Path(__file__).resolve().parents[2]
CORE = ("train_eager.py", "model.py", "data.py", "schedule.py")
LARGEST = 64 * 2**20  # bytes of a JSON file that is read; a result of 1,000 epochs has 0.3 MB
GIT_SECONDS = 10.0  # which it has to answer


def write_weights(folder: Path, weights: Mapping[str, NDArray[Any]]) -> str:
    """Writes weights.npz: arrays by name, the same bytes for the same arrays. Returns the file's sha256."""
    buffer, arrays = io.BytesIO(), dict[str, Any](weights)
    np.savez(buffer, **arrays)  # its allow_pickle is new in NumPy 2.3; an older one would save it as an array
    write_whole(folder / "weights.npz", buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Writes result.json, and dawnbench.tsv: epoch, hours of training, accuracy in percent."""
    write_whole(folder / "result.json", encode(result))
    write_whole(folder / "dawnbench.tsv", dawnbench_table(result["epochs"]))


def read_result(path: Path) -> dict[str, Any]:
    """What write_result was given, from the file or the folder that it is in.

    Raises UserError if it is missing, damaged, edited or something else.
    """
    try:
        path = path / "result.json" if path.is_dir() else path
        paths.check("result", str(path), schemes=())  # a FIFO would be waited for
        return decode(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its rights") from None
    except ValueError as error:
        raise UserError(f"{path} is no result of a run, or damaged or edited: {error}; restore it") from None


def is_result(path: Path) -> bool:
    """Whether a file is the result of a run, whole or damaged, and not a record of something else, or too large."""
    try:
        paths.check("result", str(path), schemes=())
        if path.stat().st_size > LARGEST:
            return False
        content = json.loads(path.read_bytes())
    except (UserError, OSError, ValueError, RecursionError):
        return True  # so that reading says what is wrong with it
    # Either name may be damaged.
    return isinstance(content, dict) and bool({"test_accuracy", "train_seconds"} & set(content))


def dawnbench_table(rows: Sequence[dict[str, Any]]) -> str:
    """DAWNBench's TSV of an epoch a line. `rows` are the epochs of result.json, each one's own seconds."""
    lines, seconds = ["epoch\thours\ttop1Accuracy"], 0.0
    for row in rows:
        seconds += row["train_seconds"]
        lines.append(f"{row['epoch']}\t{seconds / 3600:.8f}\t{100 * row['test_accuracy']:.2f}")
    return "\n".join(lines) + "\n"


@functools.cache
def code(root: Path = ROOT) -> dict[str, Any]:
    """Which code this is, read once: the first call, early in a run, says what the run was started with.

    Returns:
        commit: git's hash, and `changed`, whether the sources differ from it; both None where `root` is not the top
            of a git repository with a commit, or git is missing.
        sha256: of the sources, the core's four and lab/'s by name. By command:
            sha256sum train_eager.py model.py data.py schedule.py $(find lab -name '*.py' | LC_ALL=C sort) | sha256sum
    """
    names = [*CORE, *sorted(path.relative_to(root).as_posix() for path in (root / "lab").rglob("*.py"))]
    sums = "".join(f"{sum_of(root / name)}  {name}\n" for name in names if (root / name).is_file())
    commit = changed = None
    about = _git(root, "rev-parse", "--show-toplevel", "HEAD")
    if about is not None:
        top, commit = about.splitlines()
        if Path(top).resolve() == root.resolve():  # and not a folder that another repository ignores
            status = _git(root, "status", "--porcelain", "--", *CORE, "lab/*.py")
            changed = None if status is None else bool(status)
        else:
            commit = None
    return {"commit": commit, "changed": changed, "sha256": hashlib.sha256(sums.encode()).hexdigest()}


def _git(root: Path, *command: str) -> str | None:
    """What git says, or None if it does not, or not in time."""
    call = ["git", "--no-optional-locks", "-C", str(root), *command]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide the numbers."""
    installed = {"python": platform.python_version()}
    for package in ("tensorflow", "keras", "numpy", "tensorflow-tpu", "libtpu", "nvidia-cudnn-cu12"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed


def hardware(accelerators: Sequence[str] = ()) -> dict[str, Any]:
    """The machine: processor, which of processor.FLAGS it has (None where the system does not say), cores this
    process may use, memory in GiB, and the accelerators given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gib = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "processor": processor.said("model name") or platform.processor() or platform.machine(),
        "processor_flags": processor.flags(),
        "cores": cores,
        "memory_gib": gib,
        "accelerators": list(accelerators),
        "system": platform.system(),
    }


def peak_memory_gib() -> float | None:
    """The most memory this process has held at once, in GiB; None where the system does not say."""
    # Not getrusage's, which a process inherits from the one that started it.
    peak = memory.proc_gib("/proc/self/status", "VmHWM:")
    return None if peak is None else round(peak, 2)
