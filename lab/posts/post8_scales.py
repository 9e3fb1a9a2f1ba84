"""Batch norm's scales learn little: whatever the channel, they drift down together under the weight decay, to near 1/4.

The recipe `tricks-ghost` is trained in its full number of steps; after each epoch the scales of every layer are
recorded. If they drift, they fall from 1 as decay alone would have it until something balances it, and those of a layer
stay close together. Then they may as well be frozen: post 8 does so in the next recipe, and makes up for their 1/4 by
CELU's alpha, 0.3 for 0.075, and the logits' factor.

Source: D. C. Page, "How to train your ResNet", post 8.

It would be refuted by scales that stay at 1, or that part within a layer by as much as their size.

Small form: 3 minutes on two cores; 6,400 images, width 16, batches of 64 in two ghosts of 32: 1,800 steps of the same
rates and decay as Page's 1,746.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.images.imageset import ImageSet
from lab.ladder import networks, schedules
from lab.posts import training as tools
from lab.posts.frame import Finding, Record
from lab.report.figures import COLOURS, GREY
from model import BatchNorm

SMALL: Mapping[str, Any] = {
    "recipe": "tricks-ghost",
    "limit_train": 6_400,
    "holdout": 1_000,  # in place of the test set
    "batch_size": 64,
    "ghost_groups": 2,
    "width": 16,
}
ORIGINAL: Mapping[str, Any] = {"recipe": "tricks-ghost", "holdout": 5_000}
SETTLED = 0.25
FACTOR = 1.5  # the verdict's: how near
QUARTILES = (25, 50, 75)


def measure(sizes: tools.Sizes, images: ImageSet, seed: int) -> dict[str, Any]:
    """`layers`, by name: `mean` and `quartiles` of the scales, at the start and after each epoch; and beside them
    `decay`, what that alone would leave.
    """
    training = tools.make(sizes, images, seed)
    norms = {name: layer for name, layer in networks.leaves(training.network) if isinstance(layer, BatchNorm)}
    layers: dict[str, dict[str, list[Any]]] = {name: {"mean": [], "quartiles": []} for name in norms}

    def note() -> None:
        for name, layer in norms.items():
            scales = np.asarray(layer.scale)
            layers[name]["mean"].append(float(scales.mean()))
            layers[name]["quartiles"].append(np.percentile(scales, QUARTILES).tolist())

    note()
    accuracies = []
    for moment in training.run():
        if moment.row is not None:
            note()
            accuracies.append(moment.row["test_accuracy"])
    config, count = training.config, training.steps_per_epoch
    rates = schedules.of(vars(config))(np.arange(1, config.epochs * count + 1) / count)
    left = decayed(rates, config.weight_decay, config.momentum)[::count]
    return {"layers": layers, "decay": left.tolist(), "held_out_accuracies": accuracies}


def decayed(rates: NDArray[np.float64], decay: float, momentum: float) -> NDArray[np.float64]:
    """What weight decay alone leaves of a weight of 1 after 0, 1, 2, ... updates at these rates (T,): (T + 1,).

    The rate stands inside the accumulator, as in post 8.
    """
    weight, accumulator, left = 1.0, 0.0, [1.0]
    for rate in rates:
        step = rate * decay * weight
        accumulator = momentum * accumulator + step
        weight -= step + momentum * accumulator
        left.append(weight)
    return np.array(left)


def judge(record: Record) -> list[Finding]:
    means = np.array([layer["mean"] for layer in record["layers"].values()])  # (layers, epochs + 1)
    quartiles = np.array([layer["quartiles"] for layer in record["layers"].values()])  # (layers, epochs + 1, 3)
    end, alone = means[:, -1], record["decay"][-1]
    quarters = np.rint(np.linspace(0, means.shape[1] - 1, 5)).astype(int)
    spread = (quartiles[:, -1, 2] - quartiles[:, -1, 0]) / quartiles[:, -1, 1]
    near = bool(np.abs(np.log(end.mean() / SETTLED)) <= np.log(FACTOR))
    return [
        Finding(
            "mean scale at the end, over all layers",
            f"near {SETTLED:g}, within a factor of {FACTOR:g}",
            f"{end.mean():.3f}; by layer {end.min():.3f} to {end.max():.3f}; by decay alone {alone:.3f}",
            near,
        ),
        Finding(
            "distance between a layer's quartiles over its median, at the end",
            "well below 1: below 0.5",
            f"{spread.min():.2f} to {spread.max():.2f}, mean {spread.mean():.2f}",
            bool(spread.max() < 0.5),
        ),
        Finding(
            "mean scale at the start and after each quarter of the epochs",
            "falls below half",
            ", ".join(f"{value:.3f}" for value in means.mean(0)[quarters]),
            bool(means.mean(0)[-1] < 0.5 * means.mean(0)[0]),
        ),
    ]


def draw(record: Record, figure: Any) -> None:
    axes = figure.add_subplot()
    epochs = range(len(record["decay"]))
    for (name, layer), colour in zip(record["layers"].items(), (*COLOURS, GREY, "#7f3c8d"), strict=False):
        low, _, high = np.array(layer["quartiles"]).T
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
        axes.plot(epochs, layer["mean"], "o-", ms=3, lw=1, color=colour, label=name)
    axes.plot(epochs, record["decay"], "k:", lw=1.5, label="decay alone")
    axes.axhline(SETTLED, color="black", ls="--", lw=1.5, label="1/4")
    axes.set(xlabel="epoch", ylabel="batch norm's scales: mean of a layer, and its quartiles", yscale="log")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8, ncols=2)
