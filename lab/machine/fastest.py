"""The ways in which a CPU can compute the step, and which one is the fastest here.

    XLA, float32         with the forms of lab/machine/kernels.py, Winograd's convolutions among them
    no XLA, bfloat16     TensorFlow's own kernels, oneDNN's, on a processor that multiplies in bfloat16
    no XLA, float32      the same kernels, where there is no XLA

XLA's CPU compiler emulates bfloat16, so that a fourth way would be the slowest.
"""

import functools
import math
import time
from typing import NamedTuple

import tensorflow as tf

from lab.machine import kernels, processor

# What the step by XLA takes of its time by oneDNN in float32 (records/bench-cpu.json: 122.0 and 98.1 images/s). Not
# timed when a run starts: compiling one convolution takes longer than all of `timed`.
XLA_SHARE = 0.8
SHAPES = ((16, 128), (4, 512))  # side and channels of DavidNet's two residual branches
BATCH, ROUNDS = 8, 10


class Way(NamedTuple):
    """A way to compute the step: its precision, whether XLA is any good at that, and why it was chosen."""

    precision: str
    xla: bool
    why: str


def choose(precision: str, *, jit: bool, timing: bool = True) -> Way:
    """How this CPU is to compute.

    Args:
        precision: what was asked for; auto: the fastest.
        jit: whether XLA could be used.
        timing: whether auto may be timed, and is not just float32.
    """
    why = ""
    if precision == "auto":
        precision, why = fastest(jit=jit) if timing else ("float32", "")
    return Way(precision, precision != "bfloat16", why)


def fastest(*, jit: bool) -> tuple[str, str]:
    """The precision in which this CPU is fastest, and why; `jit`: whether XLA could be used for float32."""
    if not processor.multiplies_bfloat16():
        return "float32", "no bfloat16 instructions"
    seconds = timed()
    single = seconds["float32"] * (XLA_SHARE if jit else 1.0)
    timings = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in seconds.items())
    return "bfloat16" if seconds["bfloat16"] < single else "float32", f"timed convolutions: {timings}"


@functools.cache
def timed() -> dict[str, float]:
    """Seconds for convolutions of SHAPES without XLA, forward and backward, by precision: each the best of ROUNDS.

    They are processor time, of all threads: beside other work the clock on the wall may favour either.
    """
    steps = {name: [_convolution(*shape, name) for shape in SHAPES] for name in ("bfloat16", "float32")}
    best = {name: [math.inf] * len(SHAPES) for name in steps}
    for _ in range(1 + ROUNDS):  # by turns, so that both meet the same caches; the first one traces, and is slow
        for name, own in steps.items():
            best[name] = [min(seconds, _seconds(step)) for seconds, step in zip(best[name], own, strict=True)]
    return {name: sum(seconds) for name, seconds in best.items()}


def _convolution(side: int, channels: int, precision: str) -> tf.types.experimental.PolymorphicFunction:
    dtype = tf.as_dtype(precision)
    images, filters = tf.ones([BATCH, side, side, channels], dtype), tf.ones([3, 3, channels, channels], dtype)

    @tf.function(autograph=False)
    def step() -> list[tf.Tensor]:
        # fast: the form for oneDNN; in float32 it is Winograd's, for XLA alone.
        with tf.GradientTape() as tape:
            tape.watch([images, filters])
            outputs = kernels.conv3x3(images, filters, fast=dtype == tf.bfloat16)
        gradients: list[tf.Tensor] = tape.gradient(outputs, [images, filters], output_gradients=outputs)
        return gradients

    return step


def _seconds(step: tf.types.experimental.PolymorphicFunction) -> float:
    start = time.process_time()
    for gradient in step():
        gradient[0, 0, 0, 0].numpy()  # waits
    return time.process_time() - start
