"""What `python -m lab bench` measures: our step, what it is compared against, and the machine's ceilings; on the CPU.

Every candidate is a function of a `Task` that builds it and returns (run, units): `run(count)` does the work
`count` times and returns when it is over; `units` says how much one of them is (images, GFLOP, GB). They stand in
one module for each framework, imported in the candidate's own process only (see PROCESSES): no rival has another's
thread pools, nor the allocator's setting of lab/machine/memory.py unless PROCESSES gives it.

The training rivals get one ready float32 batch, so their input costs nothing; ours make each batch. They have
neither dropout nor other extras that DavidNet has not. In bfloat16 they compute as their users would: TensorFlow's
under Keras' policy mixed_bfloat16, PyTorch's under autocast.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lab.base.errors import UserError
from lab.machine import memory, processor

Run = Callable[[int], None]
Built = tuple[Run, float]

RATE, MOMENTUM, WEIGHT_DECAY = 0.001, 0.9, 5e-4  # low: the steps are timed, not the learning
_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
# GNU's OpenMP threads spin for a while after each operation; idle, they must not take a core from others.
_PYTORCH = {"OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "-1"}
_HUGE_PAGES = {"GLIBC_TUNABLES": f"{memory.TUNABLE}=1"}  # as train_eager.py restarts with
PROCESSES: dict[str, dict[str, str]] = {  # the environment of each
    "numpy": {},
    "ours": _TENSORFLOW | _HUGE_PAGES,
    "ours-float32": _TENSORFLOW | _HUGE_PAGES,
    "tensorflow": _TENSORFLOW,
    "pytorch": _PYTORCH,
    "pytorch-hugepages": _PYTORCH | _HUGE_PAGES,  # so that the allocator's setting is told from the framework
}


@dataclass(frozen=True)
class Task:
    """How large the work is: the recipe, images a step, filters of the first convolution, the .npz with the images; and
    the precision that a run takes by default."""

    network: str
    batch_size: int
    width: int
    data: Path
    precision: str = "float32"


@dataclass(frozen=True)
class Candidate:
    """One thing to measure.

    Args:
        section: the table that it is in.
        process: one of PROCESSES.
        build: module of lab.bench and function in it, "ours.evaluation"; see the module's docstring.
        about: one line for the table's reader.
        unit: of what `build` counts.
        beside: the candidate whose rate is divided by this one's, '' for none.
        precision: that its products are computed in; DEFAULT: the task's.
        usual: measured unless --only says otherwise.
        options: of `build`.
    """

    section: str
    process: str
    build: str
    about: str
    unit: str = "images"
    beside: str = ""
    precision: str = "float32"
    usual: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A recipe's network to train: its usual size, GFLOP of a training step per image at a width, who trains it."""

    batch_size: int
    width: int
    gflop: Callable[[int], float]
    candidates: Mapping[str, Candidate]


def load(candidate: Candidate) -> Callable[[Task], Built]:
    """The function that builds it. Imports the framework."""
    module, _, function = candidate.build.partition(".")
    build = getattr(importlib.import_module(f"lab.bench.{module}"), function)
    return functools.partial(build, **candidate.options)


def missing(candidate: Candidate) -> str:
    """Why the candidate cannot be measured here, '' if it can."""
    if candidate.process.startswith("pytorch") and importlib.util.find_spec("torch") is None:
        return "torch is not installed (pip install torch)"
    if candidate.precision == "bfloat16" and not processor.multiplies_bfloat16():
        return "this processor has no bfloat16 instructions"
    return ""


# ---- what they work on -------------------------------------------------------------------------------------


def make_images(path: Path, train: int, test: int) -> None:
    """Writes an .npz of noise with ten classes: the speed does not depend on what the images show."""
    images = np.random.default_rng(0).integers(0, 256, (train + test, 32, 32, 3), np.uint8)
    labels = np.arange(train + test) % 10
    np.savez(path, x_train=images[:train], y_train=labels[:train], x_test=images[train:], y_test=labels[train:])


def ready_batch(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """float32 (B, 32, 32, 3) of unit deviation, int32 (B,)."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((task.batch_size, 32, 32, 3), np.float32)
    return images, generator.integers(0, 10, task.batch_size, np.int32)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def davidnet_gflop(width: int) -> float:
    """GFLOP an image of a training step: forward and two gradients, two for a multiply-add; 2.28 at width 64.

    It counts direct convolutions. Batch norm, pools and the update are left out, as is usual.
    """
    c = width
    convolutions = (  # (side, inputs, outputs)
        [(32, 3, c), (32, c, 2 * c)]
        + 2 * [(16, 2 * c, 2 * c)]
        + [(16, 2 * c, 4 * c), (8, 4 * c, 8 * c)]
        + 2 * [(4, 8 * c, 8 * c)]
    )
    return _gflop([*((9 * side**2, inputs, outputs) for side, inputs, outputs in convolutions), (1, 8 * c, 10)])


def speedrun_gflop(width: int) -> float:
    """The same of the speedrun's network, its whitening included; 0.71 at width 64."""
    c, whitened = width, 24
    sides, filters = (31, 15, 15, 7, 7, 3), (whitened, c, c, 4 * c, 4 * c, 4 * c, 4 * c)
    sizes = [(9 * side**2, *pair) for side, pair in zip(sides, pairwise(filters), strict=True)]
    return _gflop([(31**2, 12, whitened), *sizes, (1, 4 * c, 10)])


def _gflop(products: list[tuple[int, int, int]]) -> float:
    return 6 * sum(times * inputs * outputs for times, inputs, outputs in products) / 1e9


# ---- the tables --------------------------------------------------------------------------------------------

# In the order in which they take turns.
COMMON = {
    "sgemm-numpy": Candidate("ceilings", "numpy", "with_numpy.sgemm", "2048 x 2048 matrices, NumPy", unit="GFLOP"),
    "sgemm-tensorflow": Candidate(
        "ceilings", "tensorflow", "with_tensorflow.sgemm", "the same, tf.matmul", unit="GFLOP"
    ),
    "sgemm-xla": Candidate(
        *("ceilings", "tensorflow", "with_tensorflow.sgemm", "the same, XLA"),
        unit="GFLOP",
        options={"jit_compile": True},
    ),
    "sgemm-pytorch": Candidate("ceilings", "pytorch", "with_pytorch.sgemm", "the same, PyTorch", unit="GFLOP"),
    "bgemm-tensorflow": Candidate(
        *("ceilings", "tensorflow", "with_tensorflow.sgemm", "the same in bfloat16, tf.matmul"),
        unit="GFLOP",
        precision="bfloat16",
        options={"half": True},
    ),
    "bgemm-pytorch": Candidate(
        *("ceilings", "pytorch", "with_pytorch.sgemm", "the same in bfloat16, PyTorch"),
        unit="GFLOP",
        precision="bfloat16",
        options={"half": True},
    ),
    "copy": Candidate("ceilings", "numpy", "with_numpy.copy", "256 MiB, all threads", unit="GB"),
    "pipeline": Candidate("input", "ours", "ours.host_batches", "ours on the host, whole batches"),
    "augmentation": Candidate("input", "ours", "ours.device_batches", "ours in the step, compiled alone"),
    "map-parallel": Candidate(
        *("input", "tensorflow", "with_tensorflow.map_parallel"),
        "per-image map, as the tutorials, in parallel (AUTOTUNE)",
        beside="pipeline",
    ),
}
OURS = "ours-device"  # beside which the others stand, and which is measured in the scaling table
WAYS = (OURS, "ours-xla", "ours-graph")  # to compute on a CPU
DEFAULT = "default"  # a candidate's precision that a run takes by default


def _ours(process: str, about: str, beside: str = OURS, **options: Any) -> Candidate:
    precision = options.get("precision", DEFAULT)
    return Candidate("steps", process, "ours.steps", about, "images", beside, precision, options=options)


def _rival(
    process: str, build: str, about: str, *, half: bool = False, usual: bool = True, **options: Any
) -> Candidate:
    """A training step in float32, or in bfloat16 if `half`."""
    precision = "bfloat16" if half else "float32"
    return Candidate("steps", process, build, about, "images", OURS, precision, usual, options | {"half": half})


_OUR_STEPS = {
    OURS: _ours("ours", "a run's default", beside=""),
    "ours-xla": _ours("ours-float32", "XLA and Winograd", precision="float32"),
    "ours-graph": _ours("ours-float32", "no XLA, oneDNN's kernels", precision="float32", jit=False),
}
_FASTER = "that, with our allocator's setting"
DAVIDNET = _OUR_STEPS | {
    "ours-host": _ours("ours", "the default, batches by tf.data", pipeline="host"),
    "tutorial": _rival("tensorflow", "with_tensorflow.tutorial", "the eager tutorial's loop"),
    "tutorial-bf16": _rival("tensorflow", "with_tensorflow.tutorial", "that", half=True),
    "tutorial-function": _rival(
        *("tensorflow", "with_tensorflow.tutorial", "the tutorial under tf.function"), compiled=True
    ),
    "tutorial-function-bf16": _rival("tensorflow", "with_tensorflow.tutorial", "that", half=True, compiled=True),
    "keras-fit": _rival("tensorflow", "with_tensorflow.fit", "Keras' fit, no XLA (its default on a CPU)"),
    "keras-fit-bf16": _rival("tensorflow", "with_tensorflow.fit", "that", half=True),
    "keras-fit-xla": _rival(
        *("tensorflow", "with_tensorflow.fit", "fit, jit_compile=True"), usual=False, jit_compile=True
    ),
    "pytorch": _rival("pytorch", "with_pytorch.steps", "PyTorch eager, channels_last"),
    "pytorch-hugepages": _rival("pytorch-hugepages", "with_pytorch.steps", _FASTER),
    "pytorch-compile": _rival("pytorch-hugepages", "with_pytorch.steps", "that, torch.compile", compiled=True),
    "pytorch-bf16": _rival("pytorch", "with_pytorch.steps", "PyTorch eager, autocast", half=True),
    "pytorch-hugepages-bf16": _rival("pytorch-hugepages", "with_pytorch.steps", _FASTER, half=True),
    "pytorch-compile-bf16": _rival(
        *("pytorch-hugepages", "with_pytorch.steps", "that, torch.compile"), half=True, compiled=True
    ),
    "evaluation": Candidate("evaluation", "ours", "ours.evaluation", "loss and accuracy of a set"),
}
SPEEDRUN = _OUR_STEPS | {
    "pytorch-hugepages": _rival("pytorch-hugepages", "with_pytorch.speedrun", "PyTorch eager, our allocator's setting"),
    "pytorch-hugepages-bf16": _rival("pytorch-hugepages", "with_pytorch.speedrun", "that, autocast", half=True),
    "pytorch-compile-bf16": _rival(
        *("pytorch-hugepages", "with_pytorch.speedrun", "that, torch.compile"), half=True, compiled=True
    ),
    "newton-schulz": Candidate("update", "ours", "ours.newton_schulz", "filter by filter", unit="update"),
}
NETWORKS = {
    "davidnet": Network(512, 64, davidnet_gflop, DAVIDNET),
    "speedrun": Network(2000, 64, speedrun_gflop, SPEEDRUN),
}


def candidates(network: str, precision: str = DEFAULT) -> dict[str, Candidate]:
    """All candidates for a network, by name, in the order in which they take turns; `precision` is a run's default.

    Raises: UserError for a network that is not there.
    """
    if network not in NETWORKS:
        raise UserError(f"--network {network!r} is not known; choose from {', '.join(NETWORKS)}")

    def named(step: Candidate) -> Candidate:
        own = precision if step.precision == DEFAULT else step.precision
        return replace(step, precision=own, about=f"{step.about}, {own}")

    table = COMMON | dict(NETWORKS[network].candidates)
    return {name: named(one) if one.section == "steps" else one for name, one in table.items()}
