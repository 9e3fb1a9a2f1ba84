"""A batch four times as large at four times the rate trains as well an epoch; far larger batches stop doing so.

Trained with batches of several sizes, the rate in proportion and all else equal, the losses by epoch should coincide as
long as forgetting limits the training (see post2_forgetting.py). They part where the steps become so long that
curvature limits them: there the larger batch is behind.

Source: D. C. Page, "How to train your ResNet", post 2. Losses that differ as much between 128 and 512 as beyond would
refute it.

Small form: 5 minutes on two cores; 8,192 images, width 16, 6 epochs at each of seven sizes.
"""

from collections.abc import Mapping
from typing import Any

from lab.images.imageset import ImageSet
from lab.posts import training as tools
from lab.posts.frame import Finding, Record

SMALL: Mapping[str, Any] = {
    "limit_train": 8_192,
    "holdout": 2_000,
    "width": 16,
    "epochs": 6,
    "rate_at_512": 0.4,  # the peak rate of a batch of 512, DavidNet's
    "batch_sizes": [64, 128, 256, 512, 1024, 2048, 4096],
}
ORIGINAL = {**SMALL, "limit_train": 0, "holdout": 5_000, "width": 64, "epochs": 24}
CLOSE, APART = 0.05, 0.1  # relative differences of the training loss


def measure(sizes: tools.Sizes, images: ImageSet, seed: int) -> dict[str, Any]:
    """For each size of the batch, by epoch: `train_loss` an image as it trains, `held_out_loss` at the epoch's end."""
    curves = []
    for batch_size in sizes["batch_sizes"]:
        rate = sizes["rate_at_512"] * batch_size / 512
        training = tools.make(sizes, images, seed, batch_size=batch_size, learning_rate=rate)
        rows = [moment.row for moment in training.run() if moment.row]
        curve = {"train_loss": [row["train_loss"] for row in rows], "held_out_loss": [row["test_loss"] for row in rows]}
        curves.append({"batch_size": batch_size, **curve})
    return {"curves": curves}


def judge(record: Record) -> list[Finding]:
    losses = {curve["batch_size"]: curve["train_loss"][-1] for curve in record["curves"]}
    behind = {size: loss / losses[128] - 1 for size, loss in losses.items()}
    largest, close, apart = max(behind), f"within {CLOSE:.0%}", f"more than {APART:.0%} higher"
    parted = [size for size in behind if all(behind[other] > APART for other in behind if other >= size)]
    first = min(parted, default=0)
    what = "last epoch's training loss at batch"
    return [
        Finding(f"{what} 512 beside 128", close, f"{behind[512]:+.1%}", abs(behind[512]) < CLOSE),
        Finding(f"{what} {largest} beside 128", apart, f"{behind[largest]:+.1%}", behind[largest] > APART),
        Finding(f"from which batch on it is {apart}", "above 512", str(first or "none"), first > 512),
    ]


def draw(record: Record, figure: Any) -> None:
    from matplotlib import colormaps

    curves = record["curves"]
    loss, last = figure.subplots(1, 2)
    for index, curve in enumerate(curves):
        colour = colormaps["viridis"](0.95 * index / len(curves))
        epochs = range(1, len(curve["train_loss"]) + 1)
        loss.plot(epochs, curve["train_loss"], "o-", ms=3, color=colour, label=f"batch {curve['batch_size']}")
    loss.set(xlabel="epoch", ylabel="training loss an image")
    loss.legend(fontsize=8)
    sizes = [curve["batch_size"] for curve in curves]
    for key, style, label in (("train_loss", "o-", "training"), ("held_out_loss", "s--", "held out")):
        last.plot(sizes, [curve[key][-1] for curve in curves], style, ms=4, label=label)
    flat = next(curve["train_loss"][-1] for curve in curves if curve["batch_size"] == 128)
    last.axhline(flat, color="black", lw=1, ls=":", label="forgetting alone: as at 128")
    last.set_xscale("log", base=2)
    last.set(xlabel="images a batch, the rate in proportion", ylabel="loss an image, last epoch", yscale="log")
    last.set_xticks(sizes, map(str, sizes), fontsize=7)
    last.legend(fontsize=8)
    for axes in (loss, last):
        axes.grid(alpha=0.25)
