"""Under batch norm, steps and decay balance: the filters come to turn by one angle a step, wherever they started.

Batch norm makes the network blind to the length of the filters before it, so their gradient is orthogonal to them. Each
step then lengthens the filters and the decay shortens them, until both balance; from then on, at a constant rate, they
turn by sqrt(2 rate decay / (1 + momentum)) a step. DavidNet is trained twice, from its usual start and from one with
filters four times as long; at regular steps the norms, gradients and angles of each bank of filters are recorded.

Source: D. C. Page, "How to train your ResNet", post 6. The angle is heavy-ball momentum's; that of Nesterov's form,
which trains here, is 16 % larger at momentum 0.9: steps.nesterov_angle.

It would be refuted by gradients with a part along the filters; two starts whose norms stay apart; another angle.

Small form: a minute on two cores; 6,400 images, width 8, 7 epochs of batches of 64 from each start, with four times
DavidNet's decay and half its rate, so that the balance comes twice as soon.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lab.images.imageset import ImageSet
from lab.posts import steps
from lab.posts import training as tools
from lab.posts.frame import Finding, Record
from lab.report.figures import COLOURS, GREY

# The distance of a norm's fourth power from the balance falls as exp(-4 rate decay steps / (1 - momentum)): here, from
# four times the length, below a hundredth in 700 steps.
SMALL: Mapping[str, Any] = {
    "limit_train": 6_400,
    "limit_test": 500,  # of which nothing is used
    "batch_size": 64,
    "width": 8,
    "epochs": 7,
    "rate": 0.2,  # constant
    "weight_decay": 2e-3,
    "every": 25,
}
ORIGINAL = {
    **SMALL,
    **{"limit_train": 0, "limit_test": 0, "batch_size": 512, "width": 64, "epochs": 24},
    **{"rate": 0.4, "weight_decay": 5e-4, "every": 97},
}
STARTS = (1, 4)  # times the usual length of the filters
LAST = 1 / 3  # of the run, which counts as in balance
LEAST_COSINE, MET, NEAR = 1e-3, 0.1, 0.2  # limits of the verdict
KINDS = {
    "norm": "|w|",
    "gradient": "|g| of the summed loss",
    "cosine": "largest |cos(g, w)|",
    "angle": "radians a step",
}


def measure(sizes: tools.Sizes, images: ImageSet, seed: int) -> dict[str, Any]:
    """`starts`, by the factor: see follow; and the rate, decay and momentum of the update of the mean loss."""
    starts = {}
    for factor in STARTS:
        training = tools.make(sizes, images, seed, knots=f"0,{sizes['rate']}")
        banks = steps.filter_banks(training)
        for index in banks.values():
            training.weights[index].assign(factor * tf.convert_to_tensor(training.weights[index]))
        starts[str(factor)] = follow(steps.steps(training, banks), sizes["every"])
    config = training.config
    return {"starts": starts, "rate": sizes["rate"], "decay": config.weight_decay, "momentum": config.momentum}


def follow(trained: Iterable[steps.Step], every: int) -> dict[str, dict[str, list[float]]]:
    """By bank, a number for each `every` steps of each of KINDS: the norm after them, the largest cosine among them,
    and the root mean square of the gradient's norm and of the angle.
    """
    rows: dict[str, dict[str, list[float]]] = {}
    seen: dict[str, list[tuple[float, float, float]]] = {}
    for step in trained:
        for name, w in step.weights.items():
            g, moved = step.gradients[name], step.moved[name]
            seen.setdefault(name, []).append((steps.norm(g), steps.cosine(g, w), steps.angle(w, moved)))
            if len(seen[name]) == every:
                gradients, cosines, angles = np.array(seen.pop(name)).T
                new = (steps.norm(moved), steps.rms(gradients), np.abs(cosines).max(), steps.rms(angles))
                row = rows.setdefault(name, {kind: [] for kind in KINDS})
                for kind, value in zip(KINDS, new, strict=True):
                    row[kind].append(float(f"{value:.5g}"))
    return rows


def series(record: Record, start: int, kind: str) -> NDArray[np.float64]:
    """One of KINDS of all banks: (banks, rows)."""
    return np.array([bank[kind] for bank in record["starts"][str(start)].values()])


def judge(record: Record) -> list[Finding]:
    cosine = max(float(series(record, start, "cosine").max()) for start in STARTS)
    first, second = (series(record, start, "norm") for start in STARTS)
    ratios = second / first
    met = bool(np.abs(np.log(ratios[:, -1])).max() < np.log(1 + MET))
    heavy, nesterov = theory(record)
    angles = np.concatenate([series(record, start, "angle") for start in STARTS])
    angles = np.array([steps.rms(row[-max(1, round(LAST * len(row))) :]) for row in angles])
    off = np.abs(angles / heavy - 1).max()
    return [
        Finding("largest |cos(g, w)| of any bank and step", "0.001 or less", f"{cosine:.1e}", cosine <= LEAST_COSINE),
        Finding(
            f"filters' norms, those that started {STARTS[1]} times as long over the others",
            "1 at the end",
            f"{ratios[:, 0].min():.2f} to {ratios[:, 0].max():.2f} after {record['sizes']['every']} steps, "
            f"{ratios[:, -1].min():.3f} to {ratios[:, -1].max():.3f} at the end",
            met,
        ),
        Finding(
            "radians a step in the last third, by bank and start",
            f"{heavy:.4f} within {NEAR:.0%}; by Nesterov's form {nesterov:.4f}",
            f"{angles.min():.4f} to {angles.max():.4f}, mean {angles.mean():.4f}",
            bool(off <= NEAR),
        ),
    ]


def theory(record: Record) -> tuple[float, float]:
    """The angle a step in balance, radians: with heavy-ball momentum and in Nesterov's form."""
    values = record["rate"], record["decay"], record["momentum"]
    return steps.equilibrium_angle(*values), steps.nesterov_angle(*values)


def draw(record: Record, figure: Any) -> None:
    figure.set_size_inches(9, 6.5)
    for axes, (kind, label) in zip(figure.subplots(2, 2).flat, KINDS.items(), strict=True):
        for start, colour in zip(STARTS, COLOURS, strict=False):
            values = series(record, start, kind)
            values = values.max(0, keepdims=True) if kind == "cosine" else values
            at = record["sizes"]["every"] * np.arange(1, values.shape[1] + 1)
            lines = axes.plot(at[1::2], values[:, 1::2].T, color=colour, lw=1, alpha=0.8)
            lines[0].set_label(f"filters {start} x their usual length")
        axes.set(xlabel="steps", ylabel=label, yscale="log")
        axes.grid(alpha=0.25)
        if kind == "angle":
            for value, line, name in zip(theory(record), ("--", ":"), ("heavy ball", "Nesterov"), strict=True):
                axes.axhline(value, color="black", ls=line, lw=1.5, label=f"theory, {name}: {value:.4f}")
            axes.legend(fontsize=8)
        elif kind == "cosine":
            axes.axhline(LEAST_COSINE, color=GREY, ls="--", lw=1.5)
    figure.suptitle("Filters before batch norm, a line for each bank; constant rate", fontsize=10)
