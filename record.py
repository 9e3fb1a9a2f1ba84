"""What a run leaves behind: result.json and dawnbench.tsv, each written whole or not at all."""

import contextlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import UserError


def write_whole(path: Path, text: str) -> None:
    """Writes a file under a temporary name, to the disk, and renames it: readers see all of it or none.

    Raises UserError if the folder cannot be written.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise UserError(f"cannot write {path}: {error.strerror}; try another --out") from None


def make_folder(out: str, default: Path) -> Path:
    """The run's folder, made now so that a run does not train for hours and then find it cannot write.

    Raises UserError if it cannot be made or written, or holds a result already.
    """
    folder = Path(out).expanduser() if out else default
    if (folder / "result.json").exists():
        raise UserError(f"--out {folder} holds a result.json already; choose another folder or move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write the folder {folder}: {error.strerror}; try another --out") from None
    return folder


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Writes result.json, and dawnbench.tsv: epoch, hours of training, accuracy in percent."""
    write_whole(folder / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_whole(folder / "dawnbench.tsv", dawnbench_table(result["epochs"]))


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


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
