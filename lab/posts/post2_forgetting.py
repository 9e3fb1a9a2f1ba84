"""At high rates a training is limited by forgetting: what a batch taught is gone some tens of steps later.

Trained at a constant rate, once for each of several, DavidNet's loss is measured at the end, with the final weights, on
each of the last batches, augmented as they were when they were trained on. Against the number of steps since then it
should be lowest for the latest, rise, and level off; the higher the rate, the sooner. Where it levels off is known from
batches that are still to come, whose images are as familiar. All rates see the same batches.

If it is so, the rate cannot be raised at a constant batch without wasting what was learned; a larger batch with a
larger rate wastes no more, as long as curvature is no limit.

Source: D. C. Page, "How to train your ResNet", post 2. Flat curves, or memories as long at every rate, would refute it.

Small form: 5 minutes on two cores; 25,600 images, width 16, 3 epochs at each of four rates.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.images.imageset import ImageSet
from lab.posts import training as tools
from lab.posts.frame import Finding, Record
from lab.report.figures import COLOURS

SMALL: Mapping[str, Any] = {
    "limit_train": 25_600,
    "limit_test": 500,  # of which nothing is used
    "batch_size": 128,
    "width": 16,
    "epochs": 3,
    "rates": [0.05, 0.1, 0.2, 0.4],
    "batches": 200,  # the latest of so many steps; no more than an epoch has, or images come twice
}
ORIGINAL = {**SMALL, "limit_train": 0, "limit_test": 0, "width": 64, "epochs": 10}
MEMORIES = np.geomspace(2, 400, 160)  # steps, from which the best fit is taken
BIN = 10  # batches, whose mean is drawn


def measure(sizes: tools.Sizes, images: ImageSet, seed: int) -> dict[str, Any]:
    """For each rate, an image: `losses` on the last batches, the latest first; `to_come` on those not yet seen."""
    curves, last = [], sizes["batches"]
    for rate in sizes["rates"]:
        training = tools.make(sizes, images, seed, knots=f"0,{rate} {sizes['epochs']},{rate}")
        for _ in training.run():
            pass
        probe, done = tools.Probe(training), sizes["epochs"] * training.steps_per_epoch
        found = [
            float(probe.loss(*batch)) / training.config.batch_size
            for batch in tools.batches(training, done - last, last + last // 4)
        ]
        curves.append({"rate": rate, "losses": found[:last][::-1], "to_come": found[last:]})
    return {"curves": curves}


def fit(losses: NDArray[np.float64]) -> tuple[float, float, float]:
    """Level, depth and memory in steps of the best fit of level - depth exp(-steps / memory), by least squares.

    `losses` (n,) are by the number of steps since, 0, 1, ...; the memory is one of MEMORIES.
    """
    steps, best = np.arange(len(losses)), (np.inf, 0.0, 0.0, 0.0)
    for memory in MEMORIES:
        design = np.stack([np.ones(len(steps)), -np.exp(-steps / memory)], 1)
        (level, depth), *_ = np.linalg.lstsq(design, losses, rcond=None)
        error = float(np.sum((losses - design @ (level, depth)) ** 2))
        best = min(best, (error, float(level), float(depth), float(memory)))
    return best[1:]


def judge(record: Record) -> list[Finding]:
    curves = record["curves"]
    fits = [fit(np.array(curve["losses"])) for curve in curves]
    found = []
    for curve in curves:
        latest, to_come = np.array(curve["losses"][: 2 * BIN]), np.array(curve["to_come"])
        gap = to_come.mean() - latest.mean()
        error = np.hypot(latest.std(ddof=1) / len(latest) ** 0.5, to_come.std(ddof=1) / len(to_come) ** 0.5)
        what = f"rate {curve['rate']:g}: loss on batches to come less that on the latest {2 * BIN}"
        holds = bool(gap > 0) if abs(gap) > 2 * error else None
        found.append(Finding(what, "above 0", f"{gap:.3f} ± {error:.3f}", holds))
    memories = [memory for _, _, memory in fits]
    falls = all(one > other for one, other in pairwise(memories))
    rates = ", ".join(f"{curve['rate']:g}" for curve in curves)
    shown = ", ".join(f"{memory:.0f}" for memory in memories)
    found.append(Finding(f"memory in steps at the rates {rates}", "shorter at each higher rate", shown, falls))
    return found


def draw(record: Record, figure: Any) -> None:
    axes = figure.add_subplot()
    for curve, colour in zip(record["curves"], COLOURS, strict=False):
        losses = np.array(curve["losses"])
        level, depth, memory = fit(losses)
        steps = np.arange(len(losses))
        means = losses[: len(losses) // BIN * BIN].reshape(-1, BIN).mean(1)
        axes.plot(np.arange(len(means)) * BIN + (BIN - 1) / 2, means, "o", ms=4, color=colour)
        label = f"rate {curve['rate']:g}: {level:.2f} - {depth:.2f} exp(-steps / {memory:.0f})"
        axes.plot(steps, level - depth * np.exp(-steps / memory), color=colour, label=label)
        axes.axhline(np.mean(curve["to_come"]), ls=":", lw=1, color=colour)
    axes.set(xlabel="steps since the batch was trained on", ylabel="loss an image, final weights")
    axes.set_title(f"Forgetting (points: means of {BIN} batches; dotted: batches still to come)", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
