"""With batch norm and weight decay, plain SGD moves the filters much as LARS does, which measures steps in their norm.

Decay brings the filters' norms to where each turns by the same angle a step (post6 norms). LARS multiplies each
filter's rate by |w| / |g|, so that it turns by an angle of the rate's alone. So at a filters' rate that turns them as
far, LARS should train as SGD does: sqrt(2 rate decay (1 - momentum)) for the mean loss. DavidNet is trained with both,
the rest of its weights as usual, from several seeds. After a warm-up the rate is constant: SGD's angle goes with its
root and LARS' with the rate itself, so that on a schedule that falls they are matched at its peak alone.

Source: D. C. Page, "How to train your ResNet", post 6, which gives no run; the recipe `lars`.

It would be refuted by learning curves that differ by more than those of the seeds do.

Small form: 2 to 7 minutes on two cores; 3,200 images, width 8, 10 epochs of batches of 64, three seeds of each; with
four times DavidNet's decay and half its rate, so that so few steps come nearer to the balance.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab import assemble
from lab.assemble import Options
from lab.images.imageset import ImageSet
from lab.posts import steps
from lab.posts import training as tools
from lab.posts.frame import Finding, Record
from lab.report.figures import COLOURS

SMALL: Mapping[str, Any] = {
    "limit_train": 3_200,
    "holdout": 1_000,  # of the training set, in place of the test set
    "batch_size": 64,
    "width": 8,
    "epochs": 10,
    "rate": 0.2,  # after a fifth of the run
    "weight_decay": 2e-3,
    "seeds": 3,
}
ORIGINAL: Mapping[str, Any] = {"holdout": 5_000, "seeds": 5, "rate": 0.4}  # and DavidNet's own
OPTIMIZERS = {"nesterov": "SGD", "lars": "LARS"}
KINDS = {"train_loss": "training loss", "test_accuracy": "accuracy on images held out", "angle": "radians a step"}
NOISE = 2.8  # standard errors: Student's 97.5 % for two means of three
NEAR = 1.5  # times, that the angles may differ


def measure(sizes: tools.Sizes, images: ImageSet, seed: int) -> dict[str, Any]:
    """By optimizer, each of KINDS: a list for each seed, by epoch; angle: root mean square over steps and banks."""
    runs: dict[str, dict[str, list[list[float]]]] = {}
    for optimizer in OPTIMIZERS:
        curves: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
        training = None
        for number in range(seed, seed + sizes["seeds"]):
            usual = tools.options(sizes, number)
            changes: dict[str, Any] = {"knots": f"0,0 {usual.epochs / 5:g},{sizes['rate']:g}"}
            if optimizer == "lars":
                changes |= {"optimizer": "lars", "filter_rate": matched_rate(sizes["rate"], usual)}
            if training is None:
                training = tools.make(sizes, images, number, **changes)
            else:  # what is compiled serves all seeds
                assemble.restart(training, tools.options(sizes, number, **changes))
            rows: list[dict[str, float]] = []
            angles = [
                steps.rms([steps.angle(w, step.moved[name]) for name, w in step.weights.items()])
                for step in steps.steps(training, steps.filter_banks(training), rows)
            ]
            by_epoch = np.reshape(angles, (len(rows), -1))
            for row, of_epoch in zip(rows, by_epoch, strict=True):
                row["angle"] = steps.rms(of_epoch)
            for kind, curve in curves.items():
                curve.append([float(f"{row[kind]:.5g}") for row in rows])
        runs[optimizer] = curves
    return {"runs": runs}


def matched_rate(rate: float, options: Options) -> float:
    """LARS' rate for the filters, for the mean loss as --filter-rate is: as far a step as SGD's in balance at `rate`.

    512 sqrt(2 0.4 5e-4 (1 - 0.9)) for DavidNet: the recipe's 3.24.
    """
    squared = 2 * rate * options.weight_decay * (1 - options.momentum)
    return float(options.batch_size * squared**0.5)


def difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By epoch, the mean over seeds of `other` (seeds, epochs) less that of `one`, and its standard error."""
    errors = [runs.var(0, ddof=1) / len(runs) for runs in (one, other)]
    return other.mean(0) - one.mean(0), np.sqrt(sum(errors))


def judge(record: Record) -> list[Finding]:
    found = []
    for kind in ("train_loss", "test_accuracy"):
        one, other = (np.array(record["runs"][optimizer][kind]) for optimizer in OPTIMIZERS)
        gaps, errors = difference(one, other)
        outside = int(np.sum(np.abs(gaps) > NOISE * errors))
        found.append(
            Finding(
                f"{KINDS[kind]}, LARS less SGD, after the last epoch",
                f"0 within {NOISE:g} standard errors",
                f"{gaps[-1]:+.4f} ± {errors[-1]:.4f} of {one.mean(0)[-1]:.4f}; "
                f"farther off in {outside} of {len(gaps)} epochs",
                bool(abs(gaps[-1]) <= NOISE * errors[-1]),
            )
        )
    one, other = (np.array(record["runs"][optimizer]["angle"]).mean(0) for optimizer in OPTIMIZERS)
    ratios = other / one
    found.append(
        Finding(
            "filters' angle a step, LARS over SGD, by epoch",
            f"1 within a factor of {NEAR:g}, in the later half",
            ", ".join(f"{ratio:.2f}" for ratio in ratios),
            bool(np.abs(np.log(ratios[len(ratios) // 2 :])).max() < np.log(NEAR)),
        )
    )
    return found


def draw(record: Record, figure: Any) -> None:
    figure.set_size_inches(11, 4)
    for axes, (kind, label) in zip(figure.subplots(1, 3), KINDS.items(), strict=True):
        for (optimizer, name), colour in zip(OPTIMIZERS.items(), COLOURS, strict=False):
            runs = np.array(record["runs"][optimizer][kind])
            epochs = range(1, runs.shape[1] + 1)
            axes.plot(epochs, runs.T, color=colour, lw=0.7, alpha=0.6)
            axes.plot(epochs, runs.mean(0), "o-", ms=3, color=colour, label=f"{name}, mean of {len(runs)}")
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
