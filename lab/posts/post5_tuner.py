"""Cyclic coordinate descent in (rate * decay / (1 - momentum), momentum, decay) finds its way back to a good recipe.

The tuner, python -m lab tune, starts where each of the three coordinates is off by a factor of 4, and doubles or halves
them, one after another, until it gets worse. DavidNet's values have a rate for this batch: in proportion to it, along
another direction that the post calls flat. A training as short as the small form may have its best elsewhere: so the
end is compared with DavidNet's own values too, and with a coarse grid around them, of the same seeds.

Source: D. C. Page, "How to train your ResNet", post 5. An end that is worse than DavidNet's values, or than the best of
the grid, would refute it.

Small form: 8 minutes on two cores; 2,048 images, width 8, 5 epochs, 3 seeds a point. Stopped, the same command of the
same code goes on.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from lab import assemble
from lab.images.imageset import ImageSet
from lab.posts import training as tools
from lab.posts.frame import Finding, Record
from lab.runs import record as records
from lab.tune.descent import PAGES, descend, gain, values
from lab.tune.tuner import opened

SMALL: Mapping[str, Any] = {
    "limit_train": 2_048,
    "holdout": 1_000,
    "width": 8,
    "epochs": 5,
    "batch_size": 64,
    "learning_rate": 0.05,  # DavidNet's 0.4, at 512 images a batch
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "runs": 3,  # seeds a point
    "by": "loss",  # of the held-out images
    "start": [-2, 2, 2],  # exponents of 2 from DavidNet's: of the product, of 1 - momentum, of decay
    "grid": [[-2, 0, 2], [0, 2], [0, 2, 4]],  # exponents of each coordinate
}
ORIGINAL = {
    **SMALL,
    "limit_train": 0,
    "holdout": 5_000,
    "width": 64,
    "epochs": 24,
    "batch_size": 512,
    "learning_rate": 0.4,
    "by": "accuracy",
    "grid": [[-1, 0, 1], [0], [-1, 0, 1]],
}
NAMES = ("rate * decay / (1 - momentum)", "1 - momentum", "decay")


def measure(sizes: tools.Sizes, images: ImageSet, seed: int) -> dict[str, Any]:
    """The tuner's `trace`, and the `grid`, DavidNet's values first; the runs are kept in runs/, so that it can go on.

    Of each point: `point`, exponents of 2 from DavidNet's; `values`; `scores`, by seed, the held-out accuracy or minus
    the loss, None if one diverged. Of the trace also whether it was better, its runs and their seconds. And the
    `seconds` of all runs.
    """
    tools.placement()  # refuses several devices, as for every experiment
    given = {name: value for name, value in sizes.items() if name in assemble.NAMES}
    changes = {**tools.OF_ALL, **given, **values(given, PAGES, sizes["start"])}
    code = records.code()["sha256"][:8]  # the record names one
    place = {"seed": seed, "out": f"runs/post5-tuner-width{sizes['width']}-seed{seed}-{code}"}
    with opened({**changes, **place}, PAGES, by=sizes["by"], images=images) as tuner:
        tuner.show(descend(tuner.measure, len(PAGES)))
        trace = [{**visit, "point": np.add(visit["point"], sizes["start"]).tolist()} for visit in tuner.trace]
        grid = []
        for point in [(0, 0, 0), *product(*sizes["grid"])]:
            here = tuple(np.subtract(point, sizes["start"], dtype=float).tolist())
            grid.append({"point": list(point), "values": tuner.values(here), "scores": tuner.measure(here)})
        seconds = sum(run["seconds"] for run in tuner.runs)
    return {"trace": trace, "grid": grid, "seconds": seconds}


def ends(record: Record) -> list[Mapping[str, Any]]:
    """The points of the trace's start and end, of DavidNet's values, and of the grid's best."""
    better = [visit for visit in record["trace"] if visit["better"]]
    finite = [entry for entry in record["grid"] if entry["scores"]]
    return [better[0], better[-1], record["grid"][0], max(finite, key=lambda entry: sum(entry["scores"]))]


def judge(record: Record) -> list[Finding]:
    start, end, davidnets, best = ends(record)
    found = []
    for name, begun, exponent in zip(NAMES, start["point"], end["point"], strict=True):
        off = f"{2.0**exponent:.3g} times, from {2.0**begun:.3g} times"
        found.append(Finding(f"{name} at the end, beside DavidNet's", "0.5 to 2 times", off, abs(exponent) <= 1))
    by = record["sizes"]["by"]
    for name, other in (("the start", start), ("DavidNet's values", davidnets), ("the grid's best", best)):
        mean, error = gain(end["scores"], other["scores"])
        expected, holds = ("above 0", mean > 2 * error) if other is start else ("not below 0", mean > -2 * error)
        what = f"held-out {by}, how much better at the end than with {name}"
        found.append(Finding(what, f"{expected} by its error", f"{mean:+.3f} ± {error:.3f}", holds))
    return found


def draw(record: Record, figure: Any) -> None:
    figure.set_size_inches(8, 6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    trace, (_, _, davidnets, best) = record["trace"], ends(record)
    numbers = np.arange(1, len(trace) + 1)
    points = np.array([visit["point"] for visit in trace], float)
    better = np.array([visit["better"] for visit in trace])
    latest = np.maximum.accumulate(np.where(better, np.arange(len(trace)), 0))  # the best so far
    for column, (name, colour) in enumerate(zip(NAMES, ("#0072B2", "#009E73", "#D55E00"), strict=True)):
        upper.step(numbers, 2 ** points[latest, column], where="post", color=colour, label=name)
        upper.plot(numbers, 2 ** points[:, column], ".", color=colour, alpha=0.4)
    upper.axhspan(0.5, 2, color="0.9", zorder=0, label="within a factor of 2 of DavidNet's")
    upper.set_yscale("log", base=2)
    upper.set(ylabel="times DavidNet's value")
    upper.legend(fontsize=8)
    scores = np.array([np.nan if visit["scores"] is None else abs(np.mean(visit["scores"])) for visit in trace])
    lower.plot(numbers, scores, ".", color="0.5", label="a point, mean of the seeds")
    lower.step(numbers, scores[latest], where="post", color="black", label="the best so far")
    for entry, name, colour in ((davidnets, "DavidNet's values", "#0072B2"), (best, "the grid's best", "#D55E00")):
        lower.axhline(abs(np.mean(entry["scores"])), color=colour, ls="--", label=name)
    lower.set(xlabel="points measured, in the tuner's order", ylabel=f"held-out {record['sizes']['by']}")
    lower.xaxis.get_major_locator().set_params(integer=True)
    lower.legend(fontsize=8)
