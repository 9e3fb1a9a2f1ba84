"""Gradients of different steps are nearly orthogonal: n times the batch at n times the rate steps only sqrt(n) as far.

The sum of n orthogonal gradients is sqrt(n) times as long as one, not n times. So the filters of a training with four
times the batch and the rate turn twice as far a step, not four times, and, making a quarter of the steps, wander as far
an epoch. DavidNet is trained at N and 4 N, at constant rates from the same start. At N, the gradients of all filters in
32 steps that follow one another are kept at several times: their cosines, by how many steps they are apart, and how
long their sums are.

Source: D. C. Page, "How to train your ResNet", post 6. The angle in balance: steps.nesterov_angle.

It would be refuted by cosines that stay far from 0 some steps apart; by sums of 4 gradients, or angles at 4 N, that are
far from twice as large.

Small form: 2 minutes on two cores; 6,400 images, width 8, 10 epochs at batch 64, rate 0.1, and at 256, rate 0.4.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.images.imageset import ImageSet
from lab.posts import steps
from lab.posts import training as tools
from lab.posts.frame import Finding, Record
from lab.report.figures import COLOURS

SMALL: Mapping[str, Any] = {
    "limit_train": 6_400,
    "limit_test": 500,  # of which nothing is used
    "batch_size": 64,
    "width": 8,
    "epochs": 10,
    "rate": 0.1,  # constant, at N
    "weight_decay": 2e-3,
    "windows": (1, 2, 4, 7, 10),  # epochs whose last KEPT steps are kept
}
ORIGINAL = {
    **SMALL,
    **{"limit_train": 0, "limit_test": 0, "batch_size": 128, "width": 64, "epochs": 24},
    **{"weight_decay": 5e-4, "windows": (1, 2, 4, 8, 16, 24)},
}
TIMES = 4  # the larger batch
KEPT = 32  # steps
SUMS = (1, 2, 4, 8, 16, 32)
APART, NEAR_0, NEAR = 4, 0.1, 0.2  # steps beyond which cosines are to be near 0; limits of the verdict


def measure(sizes: tools.Sizes, images: ImageSet, seed: int) -> dict[str, Any]:
    """`angles`, radians a step, by epoch, for N and TIMES N; and of each window its epoch, `cosines` and `sums`."""
    angles: dict[str, list[float]] = {}
    windows = []
    for factor in (1, TIMES):
        batch, rate = factor * sizes["batch_size"], factor * sizes["rate"]
        training = tools.make(sizes, images, seed, batch_size=batch, knots=f"0,{rate}")
        in_epoch: list[float] = []
        kept: list[NDArray[np.float32]] = []
        for step in steps.steps(training, steps.filter_banks(training)):
            in_epoch.append(steps.rms([steps.angle(w, step.moved[name]) for name, w in step.weights.items()]))
            kept = [*kept[-KEPT + 1 :], np.concatenate([g.ravel() for g in step.gradients.values()])]
            epoch, rest = divmod(step.number, training.steps_per_epoch)
            if rest == 0:
                angles.setdefault(str(factor), []).append(steps.rms(in_epoch))
                in_epoch.clear()
                if factor == 1 and epoch in sizes["windows"]:
                    windows.append({"epoch": epoch, "cosines": cosines(np.array(kept)), "sums": sums(np.array(kept))})
    config = training.config
    return {"angles": angles, "windows": windows, "decay": config.weight_decay, "momentum": config.momentum}


def cosines(gradients: NDArray[Any]) -> list[float]:
    """The mean cosine between gradients 1, 2, ..., T - 1 steps apart; `gradients` is (T, P)."""
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    products = unit @ unit.T
    return [float(np.diagonal(products, apart).mean()) for apart in range(1, len(products))]


def sums(gradients: NDArray[Any]) -> list[float]:
    """The length of the sum of n gradients that follow one another, over that of one, for n in SUMS.

    Both as root mean squares, over all such sums among the T of `gradients` (T, P).
    """
    products = gradients.astype(np.float64) @ gradients.T.astype(np.float64)

    def square(n: int) -> float:
        return float(np.mean([products[k : k + n, k : k + n].sum() for k in range(len(products) - n + 1)]))

    return [(square(n) / square(1)) ** 0.5 for n in SUMS]


def judge(record: Record) -> list[Finding]:
    far = np.array([np.mean(window["cosines"][APART - 1 :]) for window in record["windows"]])
    fours = np.array([window["sums"][SUMS.index(TIMES)] for window in record["windows"]])
    one, many = (np.array(record["angles"][str(factor)]) for factor in (1, TIMES))
    ratios, root = many / one, TIMES**0.5
    last = ratios[-max(1, len(ratios) // 3) :].mean()
    return [
        Finding(
            f"mean cosine of gradients {APART} to {KEPT - 1} steps apart, by epoch",
            f"within {NEAR_0:g} of 0",
            ", ".join(f"{value:.3f}" for value in far),
            bool(np.abs(far).max() <= NEAR_0),
        ),
        Finding(
            f"length of the sum of {TIMES} gradients over that of one, by epoch",
            f"{root:g} within {NEAR:.0%}, not {TIMES}",
            ", ".join(f"{value:.2f}" for value in fours),
            bool(np.abs(fours / root - 1).max() <= NEAR),
        ),
        Finding(
            f"angle a step at {TIMES} times the batch and the rate over that at N, in the last third of the epochs",
            f"{root:g} within {NEAR:.0%}, not {TIMES}",
            f"{last:.2f}; in single epochs {ratios.min():.2f} to {ratios.max():.2f}",
            bool(abs(last / root - 1) <= NEAR),
        ),
    ]


def draw(record: Record, figure: Any) -> None:
    figure.set_size_inches(11, 4)
    by_lag, by_count, by_epoch = figure.subplots(1, 3)
    for window, colour in zip(record["windows"], COLOURS, strict=False):
        style = {"color": colour, "marker": "o", "ms": 3, "lw": 1, "label": f"end of epoch {window['epoch']}"}
        by_lag.plot(range(1, len(window["cosines"]) + 1), window["cosines"], **style)
        by_count.plot(SUMS, window["sums"], **style)
    by_lag.axhline(0, color="black", ls="--", lw=1.5)
    by_lag.set(xlabel="steps apart", ylabel="mean cosine of two gradients")
    by_count.plot(SUMS, np.sqrt(SUMS), "k--", lw=1.5, label="orthogonal: sqrt(n)")
    by_count.plot(SUMS, SUMS, "k:", lw=1.5, label="parallel: n")
    by_count.set(xlabel="gradients summed, n", ylabel="length of the sum over that of one", xscale="log", yscale="log")
    sizes = record["sizes"]
    for factor, colour in zip((1, TIMES), COLOURS, strict=False):
        values, rate = record["angles"][str(factor)], factor * sizes["rate"]
        label = f"batch {factor * sizes['batch_size']}, rate {rate:g}"
        by_epoch.plot(range(1, len(values) + 1), values, "o-", ms=3, color=colour, label=label)
        balance = steps.nesterov_angle(rate, record["decay"], record["momentum"])
        by_epoch.axhline(balance, color=colour, ls="--", lw=1.5, label=f"in balance: {balance:.4f}")
    by_epoch.set(xlabel="epoch", ylabel="radians a step", yscale="log")
    for axes in (by_lag, by_count, by_epoch):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
