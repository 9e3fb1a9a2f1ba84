"""Memory on a CPU: large pages for the step's buffers, giving back what is free, and whether a batch fits."""

import bisect
import contextlib
import ctypes
import gc
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from lab.base import console
from lab.base.errors import Exit, UserError

TUNABLE = "glibc.malloc.hugetlb"  # glibc 2.35 and newer; 1: ask the kernel for huge pages with madvise
CGROUPS = Path("/sys/fs/cgroup")
# Of a weight: itself and its accumulator, the warm-up's copies of both, its gradient, with the decay too; with XLA and
# the fast forms of the layers also the filters' transforms. Measured in widths 16 to 192: 18 and 66.
PARAMETER_BYTES = {"plain": 24, "fast": 66}
UPDATE_BYTES = 24  # an epoch and a rate in float64, the rate in float32


def restart_with_huge_pages() -> None:
    """Runs this same command again in this process, with glibc's allocator told to ask for huge pages.

    TensorFlow takes its CPU buffers from malloc, which maps the large ones again at every step, and the kernel
    zeroes gigabytes 4 KiB at a time. With pages of 2 MiB that all but disappears. The allocator reads its
    setting only as a process starts, hence the restart; call this before slow imports. Nothing happens in a
    notebook or at a prompt, whose session would end, elsewhere than under glibc, or where the setting is made already.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    at_prompt = console.in_kernel() or hasattr(sys, "ps1")  # Python's and IPython's have a ps1
    if platform.libc_ver()[0] != "glibc" or TUNABLE in tunables or at_prompt:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def give_back() -> None:
    """Frees what nothing refers to but itself, as Keras' networks, and returns to the system what the allocator holds
    and does not use, under glibc: after compiling, hundreds of MiB."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def proc_gib(path: str, key: str) -> float | None:
    """A size in Linux' /proc, in GiB: proc_gib("/proc/meminfo", "MemAvailable:"); None where there is none."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(key):
                return int(line.split()[1]) / 2**20  # from kB
    return None


def available_gib() -> float | None:
    """Memory that this process may still take, in GiB: the system's, within the limit of its container.

    None elsewhere than on Linux.
    """
    available = proc_gib("/proc/meminfo", "MemAvailable:")
    if available is None:
        return None
    resident = proc_gib("/proc/self/status", "VmRSS:") or 0.0
    return min([available, *(limit - resident for limit in _limits_gib())])


def _limits_gib() -> list[float]:
    """The limits of this process's control groups, version 2 or 1; a container sees its own as the root."""
    files = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                root, name = (CGROUPS, "memory.max")
                if controllers:
                    root, name = CGROUPS / "memory", "memory.limit_in_bytes"
                files += [root / path.lstrip("/") / name, root / name]
    limits = []
    for limit in files:
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int(limit.read_text()) / 2**30)
    return limits


def check_updates(updates: int) -> None:
    """Raises UserError if the rates of so many updates, which are computed beforehand, do not fit in memory."""
    available, needed = available_gib(), updates * UPDATE_BYTES / 2**30
    if available is not None and needed > available:
        raise UserError(
            f"the rates of {updates:,} updates take about {needed:.1f} GiB, {available:.1f} are available; "
            "lower --epochs, or take a larger --batch-size",
            exit_code=Exit.EXHAUSTED,
        )


def check_weights(width: int, parameters: Callable[[int], float], operations: str) -> None:
    """Raises UserError if a network's weights and what their training takes do not fit in memory, and names a width.

    Args:
        width: filters of the first convolution.
        parameters: how many numbers a network of a width trains.
        operations: plain or fast, the forms of its layers.
    """

    def needed(width: int) -> float:
        return PARAMETER_BYTES[operations] * parameters(width) / 2**30

    available = available_gib()
    if available is None or needed(width) <= available:
        return
    fits = max(1, bisect.bisect_right(range(1, width), 0.8 * available, key=needed))
    raise UserError(
        f"--width {width} makes {parameters(width) / 1e6:,.0f} million parameters, which take about "
        f"{needed(width):.1f} GiB to train, {available:.1f} are available; try --width {fits}",
        exit_code=Exit.EXHAUSTED,
    )


def check_batch(batch_size: int, image_bytes: int, unit: int, weight_bytes: int = 0) -> str:
    """What to say of a batch that may not fit in memory; "" if it does, or if the system does not say.

    A step needs about the outputs of all layers once: measured, 0.5 to 1.1 times (DavidNet's and the speedrun's).

    Args:
        batch_size: images.
        image_bytes: of the outputs of all layers for one image.
        unit: which the batch is to be a multiple of.
        weight_bytes: of all weights together.

    Raises:
        UserError: if not even half of that is available; it names a batch that fits.
    """
    available, needed = available_gib(), batch_size * image_bytes / 2**30
    if available is None:
        return ""
    available = max(0.0, available - 4 * weight_bytes / 2**30)  # the gradients, the warm-up's copies: still to come
    if needed <= available:
        return ""
    fits = max(unit, int(0.8 * available / needed * batch_size) // unit * unit)
    about = f"--batch-size {batch_size} takes about {needed:.1f} GiB, {available:.1f} are available"
    if needed <= 2 * available:
        return f"{about}; if it does not fit, try --batch-size {fits}"
    raise UserError(f"{about}; try --batch-size {fits}", exit_code=Exit.EXHAUSTED)
