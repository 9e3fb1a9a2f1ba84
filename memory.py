"""Keeping freed memory, so that a CPU's step does not fault the same pages in again and again."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to serve large blocks from its own heap and to keep what is freed.

    TensorFlow takes its CPU buffers from malloc, which by default maps every large one anew: at each step the
    kernel then zeroes some gigabytes, page by page. Returns whether it was done; elsewhere than under glibc
    nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_ARENA_MAX, 1)])
