"""The processor, as Linux describes it."""

import contextlib

# What decides which kernels TensorFlow's operations run.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def said(name: str) -> str | None:
    """What /proc/cpuinfo says of the first processor under that name; None if nothing, or elsewhere than on Linux."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None


def flags() -> list[str] | None:
    """Which of FLAGS it has; None where the system does not say."""
    known = said("flags")
    return None if known is None else [name for name in FLAGS if name in known.split()]


def multiplies_bfloat16() -> bool:
    """Whether it does so by itself; else oneDNN and PyTorch emulate it, slowly, or refuse."""
    return bool({"avx512_bf16", "amx_bf16"} & set(flags() or ()))
