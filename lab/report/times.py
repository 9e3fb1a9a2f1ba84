"""How fast a run was: seconds by two rules, images and operations a second, and what the chip could have done."""

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lab.runs.results import Run, reaches

PASSES = 3  # of a training step: forward, and the gradients by the outputs and by the weights

# Peaks of a chip in TFLOP/s, from NVIDIA's data sheets, without the factor 2 of structured sparsity: of products of
# 16-bit numbers that are summed in 32 bits, and of float32, which TensorFlow computes as TF32 since Ampere.
# A name is looked for from top to bottom. A TPU does not tell TensorFlow its version, so none is here.
PEAKS: tuple[tuple[str, float, float], ...] = (
    (r"\bH[12]00 NVL\b", 835.5, 417.5),
    (r"\bH100 PCIe\b", 756.5, 378.0),
    (r"\bH[12]00\b", 989.5, 494.5),  # SXM
    (r"\bA100\b", 312.0, 156.0),
    (r"\bL4\b", 121.0, 60.0),
    (r"\bT4\b", 65.0, 8.1),
    (r"\bV100-PCIE\b", 112.0, 14.0),
    (r"\bV100\b", 125.0, 15.7),  # SXM2
)


@dataclass(frozen=True)
class Speed:
    """A run's times, in seconds, and rates.

    Args:
        to_target: DAWNBench's rule: training alone, up to the end of the first epoch whose plain test accuracy
            reaches the target; None if none does.
        airbench: whitening, training and the evaluation with test-time augmentation; None if not recorded.
        tflops: 10^12 operations a second, two a multiply-add, of direct convolutions and the head; None if the
            network's count was not recorded.
        peak_tflops: what the chips could do; None if not known.
        share: of that peak.
        seconds_at_peak: that the same training would take at the peak.
    """

    train: float
    total: float
    compiling: float
    to_target: float | None
    airbench: float | None
    images_per_second: float
    tflops: float | None
    peak_tflops: float | None
    share: float | None
    seconds_at_peak: float | None


def of(run: Run, target: float, peak_tflops: float | None = None) -> Speed:
    """The times and rates of a run.

    Args:
        target: the accuracy of DAWNBench's rule, a share of 1.
        peak_tflops: of all chips of the run together; None: looked up by their name.
    """
    tflops = share = seconds_at_peak = None
    if run.forward_gflop_per_image is not None:
        tflops = PASSES * run.forward_gflop_per_image * run.images_per_second / 1e3
    peak = peak_of(run) if peak_tflops is None else peak_tflops
    if tflops is not None and peak is not None:
        share = tflops / peak
        seconds_at_peak = share * run.train_seconds
    return Speed(
        train=run.train_seconds,
        total=run.total_seconds,
        compiling=run.compile_seconds,
        to_target=seconds_to(run, target),
        airbench=run.airbench_seconds,
        images_per_second=run.images_per_second,
        tflops=tflops,
        peak_tflops=peak,
        share=share,
        seconds_at_peak=seconds_at_peak,
    )


def seconds_to(run: Run, target: float) -> float | None:
    """Seconds of training until the first epoch with that plain test accuracy; None if none has it."""
    sums = itertools.accumulate(epoch.train_seconds for epoch in run.epochs)
    reached = (sum_ for sum_, epoch in zip(sums, run.epochs, strict=True) if reaches(epoch.test_accuracy, target))
    return next(reached, None)


def medians(runs: Sequence[Run], target: float) -> dict[str, float | None]:
    """The median seconds of some runs, by what they are of.

    DAWNBench's is None where half of the runs do not get there, airbench's where a run has not recorded it.
    """
    reached = statistics.median(math.inf if (at := seconds_to(run, target)) is None else at for run in runs)
    airbench = [run.airbench_seconds for run in runs if run.airbench_seconds is not None]
    compiled = [run.compile_seconds for run in runs if run.compile_seconds]  # a series compiles once
    return {
        "train": statistics.median(run.train_seconds for run in runs),
        "total": statistics.median(run.total_seconds for run in runs),
        "compile": statistics.median(compiled or [0.0]),
        "DAWNBench": None if math.isinf(reached) else reached,
        "airbench": statistics.median(airbench) if len(airbench) == len(runs) else None,
    }


def peak_of(run: Run) -> float | None:
    """The peak of a run's chips together, in TFLOP/s at its precision; None if one of them is not in the table."""
    peaks = {_peak(name, run.precision) for name in run.accelerators}
    if len(peaks) != 1 or (peak := peaks.pop()) is None:
        return None
    return peak * run.replicas


def _peak(name: str, precision: str) -> float | None:
    for pattern, half, single in PEAKS:
        if re.search(pattern, name):
            return single if precision == "float32" else half
    return None
