"""What a run leaves behind: result.json and dawnbench.tsv, each written whole or not at all."""

import contextlib
import importlib.metadata
import io
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.base.errors import Exit, UserError
from lab.base.files import decode, encode, write_whole
from lab.machine import memory

CANNOT_WRITE = Exit.CANNOT_WRITE


def make_folder(out: str, default: Path, *, resumed: bool = False) -> Path:
    """The run's folder, made now so that a run does not train for hours and then find it cannot write.

    Raises UserError if it cannot be made or written, or holds the result of another run than a resumed one, or
    the checkpoints of one that did not come to an end.
    """
    folder = Path(out).expanduser() if out else default
    if not resumed and any((folder / "checkpoints").glob("*")):
        raise UserError(
            f"--out {folder} holds a run; --resume {folder} goes on with it, or choose another folder"
        )
    if not resumed and (folder / "result.json").exists():
        raise UserError(f"--out {folder} holds a result.json already; choose another folder or move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write the folder {folder}: {error.strerror}; try another --out") from None
    return folder


def write_weights(folder: Path, weights: Mapping[str, NDArray[Any]]) -> None:
    """Writes weights.npz: arrays by name, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **weights)
    write_whole(folder / "weights.npz", buffer.getvalue())


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
        return decode(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its rights") from None
    except ValueError as error:
        raise UserError(f"{path} is no result of a run, or damaged or edited: {error}; restore it") from None


def is_result(path: Path) -> bool:
    """Whether a file is the result of a run, whole or damaged, and not a record of something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
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


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in ("tensorflow", "keras", "numpy", "tensorflow-tpu", "libtpu", "nvidia-cudnn-cu12"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def hardware(accelerators: Sequence[str] = ()) -> dict[str, Any]:
    """The machine: processor, cores this process may use, memory in GiB, and the accelerators given."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "processor": _processor(),
        "cores": count,
        "memory_gib": memory,
        "accelerators": list(accelerators),
        "system": platform.system(),
    }


def peak_memory_gib() -> float | None:
    """The most memory this process has held at once, in GiB; None where the system does not say."""
    # Not getrusage's, which a process inherits from the one that started it.
    peak = memory.proc_gib("/proc/self/status", "VmHWM:")
    return None if peak is None else round(peak, 2)


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
