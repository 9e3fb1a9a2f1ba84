"""Memory on a CPU: large pages for the step's buffers, and giving back what is free."""

import contextlib
import ctypes
import os
import platform
import sys

TUNABLE = "glibc.malloc.hugetlb"  # glibc 2.35 and newer; 1: ask the kernel for huge pages with madvise


def restart_with_huge_pages() -> None:
    """Runs this same command again in this process, with glibc's allocator told to ask for huge pages.

    TensorFlow takes its CPU buffers from malloc, which maps the large ones anew at every step, and the kernel
    zeroes gigabytes 4 KiB at a time. With pages of 2 MiB that all but disappears. The allocator reads its
    setting only as a process starts, hence the restart; call this before slow imports. Nothing happens in a
    notebook, elsewhere than under glibc, or where the setting is made already.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or TUNABLE in tunables or "ipykernel" in sys.modules:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def give_back() -> None:
    """Returns to the system what the allocator holds and does not use: after compiling, hundreds of MiB.

    Nothing happens elsewhere than under glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
