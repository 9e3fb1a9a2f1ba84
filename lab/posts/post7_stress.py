"""Batch norm makes high learning rates stable: without it a network breaks down at a rate some hundred times lower.

The eight layers of lab/posts/eight_layers.py are trained while the rate doubles every two epochs, from 0.005 to 29,
with batch norm (its scales 1 and shifts 0 throughout) and without. A training has broken down in the first epoch whose
loss is not finite or whose training accuracy is below half of the best before.

Source: D. C. Page, "How to train your ResNet", post 7 (cifar10-fast, batch_norm_post.ipynb: V100, half precision, n = 1
each). It is refuted if the network with batch norm breaks down too, or only at rates less than ten times higher.

Small form: width 16, 8,192 images in batches of 128, all 25 epochs of the rate; four minutes on two cores.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from lab.images.imageset import ImageSet
from lab.posts.eight_layers import make_training
from lab.posts.frame import Finding
from lab.report.figures import COLOURS, GREY

ORIGINAL = {"width": 64, "batch_size": 512, "epochs": 25}
SMALL = {"width": 16, "batch_size": 128, "epochs": 25, "limit_train": 8192, "limit_test": 100}  # no use for a test
NETWORKS = {"with": "batch norm", "without": "no batch norm"}
# Page's training accuracy by epoch; the last without batch norm is of the epoch in which the loss became not a number.
PAGE: dict[str, tuple[float, ...]] = {
    "with": (0.213, 0.321, 0.390, 0.455, 0.528, 0.594, 0.649, 0.701, 0.746, 0.782, 0.809, 0.825, 0.840, 0.846, 0.853,
             0.853, 0.852, 0.852, 0.838, 0.817, 0.791, 0.731, 0.664, 0.602, 0.559),
    "without": (0.201, 0.328, 0.397, 0.438, 0.488, 0.533, 0.585, 0.622, 0.659, 0.500, 0.659, 0.519),
}  # fmt: skip
PAGES_BREAK = 12  # the epoch
APART = 10  # times, that the two rates are at least
NEAR = 4  # epochs, that the best one is at most from Page's


def rate(epoch: float) -> float:
    """The learning rate after so many epochs, for the mean loss."""
    return float(0.005 * 2 ** (epoch / 2))


def measure(sizes: Mapping[str, Any], images: ImageSet, seed: int) -> dict[str, Any]:
    """Training loss and accuracy by epoch, as far as the loss is finite, with batch norm and without."""
    knots = " ".join(f"{epoch},{rate(epoch):.8g}" for epoch in range(sizes["epochs"] + 1))
    measured = {}
    for name in NETWORKS:
        training, rows = make_training(sizes, images, seed, norm=name == "with", knots=knots), []
        with suppress(FloatingPointError):  # that is what is looked for; the rows before it count
            for moment in training.run():
                rows += [moment.row] if moment.row else []
        measured[name] = {key: [row[key] for row in rows] for key in ("train_loss", "train_accuracy")}
    return {"rates": [rate(epoch) for epoch in range(1, sizes["epochs"] + 1)], "networks": measured}


def breakdown(accuracies: Sequence[float], epochs: int) -> int | None:
    """The epoch, from 1, in which a training of so many epochs broke down, see above; None if it did not.

    `accuracies` are those of the epochs whose loss was finite.
    """
    best = 0.0
    for epoch, accuracy in enumerate(accuracies, 1):
        if accuracy < best / 2:
            return epoch
        best = max(best, accuracy)
    return len(accuracies) + 1 if len(accuracies) < epochs else None


def judge(record: Mapping[str, Any]) -> list[Finding]:
    """Where each breaks down, how far apart that is, and when the one with batch norm is at its best."""
    rates, text, reached = record["rates"], {}, {}
    for name, rows in record["networks"].items():
        epoch = breakdown(rows["train_accuracy"], len(rates))
        text[name] = f"in epoch {epoch} (rate {rates[epoch - 1]:.2g})" if epoch else "does not"
        reached[name] = rates[(epoch or len(rates) + 1) - 2]  # the last epoch before
    breaks = f"it does (Page: in epoch {PAGES_BREAK}, rate {rate(PAGES_BREAK):.2g})"
    apart, pages = reached["with"] / reached["without"], rate(25) / rate(PAGES_BREAK - 1)
    accuracies = record["networks"]["with"]["train_accuracy"]
    best = accuracies.index(max(accuracies)) + 1
    pages_best = PAGE["with"].index(max(PAGE["with"])) + 1
    there = f"{pages_best} ± {NEAR} (Page: rate {rate(pages_best):.2g}; {max(PAGE['with']):.3f})"
    here = f"{best} (rate {rate(best):.2g}; {max(accuracies):.3f})"
    return [
        Finding("no batch norm: breaks down", breaks, text["without"], text["without"] != "does not"),
        Finding(
            "batch norm: breaks down", f"does not, to rate {rate(25):.2g}", text["with"], text["with"] == "does not"
        ),
        Finding(
            "ratio of the highest rates before that",
            f"{APART} or more (Page: {pages:.0f})",
            f"{apart:.0f}",
            apart >= APART,
        ),
        Finding("batch norm: epoch of the best training accuracy", there, here, abs(best - pages_best) <= NEAR),
    ]


def draw(record: Mapping[str, Any], figure: Any) -> None:
    """Training accuracy over the rate at each epoch's end, ours and Page's."""
    axes = figure.subplots()
    for (name, label), colour in zip(NETWORKS.items(), COLOURS, strict=False):
        accuracies, rates = record["networks"][name]["train_accuracy"], record["rates"]
        axes.plot(rates[: len(accuracies)], accuracies, "o-", color=colour, label=f"{label}, here")
        pages = [rate(epoch) for epoch in range(1, len(PAGE[name]) + 1)]
        axes.plot(pages, PAGE[name], "--", color=colour, alpha=0.6, label=f"{label}, Page")
        for count, lost, height in ((len(accuracies), len(rates), 0.05), (PAGES_BREAK - 1, 0, 0.0)):
            if name == "without" and count < lost:
                axes.axvline(rates[count], color=colour, linewidth=1, ymax=0.2 + height)
    axes.axhline(0.1, color=GREY, linewidth=1, linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="learning rate at the epoch's end (doubles every two epochs)", ylim=(0, 1))
    axes.set_ylabel("training accuracy (0 to 1)")
    axes.legend(fontsize="small")
