"""Along some directions of the hyperparameters nothing changes: rate / batch, rate / (1 - momentum), rate * decay.

Short trainings on grids of (rate, batch), (rate, momentum) and (rate, decay), whose neighbours differ by a factor, the
same in both directions. A step along the direction that the theory calls flat changes both and keeps the ratio or the
product; a step across it changes both the other way. Along, the held-out loss should hardly move; across, it should.

The reasons: a batch n times as large has an nth of the steps; momentum repeats each step 1 / (1 - momentum) times; and
a weight before batch norm grows by its steps and shrinks by its decay until a step turns it by an angle that depends on
rate * decay alone. So decay is larger here than DavidNet's: the balance must be found within these few steps.

Source: D. C. Page, "How to train your ResNet", post 5. Losses that move as much along as across would refute it.

Small form: 7 minutes on two cores; 4,096 images, width 8, 4 epochs at each of 48 points.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.images.imageset import ImageSet
from lab.posts import training as tools
from lab.posts.frame import Finding, Record

SMALL: Mapping[str, Any] = {
    "limit_train": 4_096,
    "holdout": 1_000,
    "width": 8,
    "epochs": 4,
    "rates": [0.05, 0.1, 0.2, 0.4],  # the peaks
    "batch_sizes": [32, 64, 128, 256],
    "one_less_momentum": [0.05, 0.1, 0.2, 0.4],
    "rates_by_decay": [0.025, 0.1, 0.4, 1.6],
    "weight_decays": [0.032, 0.008, 0.002, 0.0005],
    "batch_size": 64,  # where it is not varied
    "weight_decay": 5e-4,
}
ORIGINAL = {
    **SMALL,
    "limit_train": 0,
    "holdout": 5_000,
    "width": 64,
    "epochs": 24,
    "rates": [0.1, 0.2, 0.4, 0.8],
    "batch_sizes": [128, 256, 512, 1024],
    "batch_size": 512,
    "rates_by_decay": [0.1, 0.2, 0.4, 0.8],
    "weight_decays": [2e-3, 1e-3, 5e-4, 2.5e-4],
}
# What is kept along a plane's diagonal, the two axes' sizes, and the second axis' name.
PLANES = (
    ("rate / batch", "rates", "batch_sizes", "images a batch"),
    ("rate / (1 - momentum)", "rates", "one_less_momentum", "1 - momentum"),
    ("rate * decay", "rates_by_decay", "weight_decays", "weight decay"),
)
HARDLY = 0.5  # of the movement across


def measure(sizes: tools.Sizes, images: ImageSet, seed: int) -> dict[str, Any]:
    """For each plane, `losses` by rate and by the other value: held out, an image, at the end; None if not finite."""
    planes = []
    for kept, rates, others, _ in PLANES:
        losses = [
            [loss_at(sizes, images, seed, rate, others, value) for value in sizes[others]] for rate in sizes[rates]
        ]
        planes.append({"kept": kept, "losses": losses})
    return {"planes": planes}


def loss_at(sizes: tools.Sizes, images: ImageSet, seed: int, rate: float, name: str, value: float) -> float | None:
    """The held-out loss of a training with that peak rate and that value on the axis `name` of a plane."""
    given = {"batch_sizes": "batch_size", "one_less_momentum": "momentum", "weight_decays": "weight_decay"}[name]
    changes = {given: 1 - value if given == "momentum" else value}
    training = tools.make(sizes, images, seed, learning_rate=rate, **changes)
    try:
        rows = [moment.row for moment in training.run() if moment.row]
    except FloatingPointError:
        return None
    return float(rows[-1]["test_loss"])


def movements(losses: NDArray[np.float64]) -> tuple[float, float]:
    """The mean change of the loss by a step along the flat direction, and by one across it.

    `losses` (n, m): a step along raises both indices by one, a step across raises one and lowers the other. A NaN is
    left out.
    """
    along, across = np.abs(losses[1:, 1:] - losses[:-1, :-1]), np.abs(losses[1:, :-1] - losses[:-1, 1:])
    return float(np.nanmean(along)), float(np.nanmean(across))


def judge(record: Record) -> list[Finding]:
    found = []
    for plane in record["planes"]:
        along, across = movements(np.array(plane["losses"], float))
        what = f"change of the loss by a step that keeps {plane['kept']}, beside one that does not"
        found.append(
            Finding(what, f"less than {HARDLY:g} of it", f"{along:.3f} beside {across:.3f}", along < HARDLY * across)
        )
    return found


def draw(record: Record, figure: Any) -> None:
    figure.set_size_inches(11, 3.6)
    sizes = record["sizes"]
    panels = figure.subplots(1, len(PLANES))
    for axes, plane, (kept, rates, others, name) in zip(panels, record["planes"], PLANES, strict=True):
        losses = np.array(plane["losses"], float)
        picture = axes.imshow(losses, cmap="viridis_r", origin="lower")
        for row, column in product(*map(range, losses.shape)):
            loss = losses[row, column]
            shade = "black" if loss < (np.nanmin(losses) + np.nanmax(losses)) / 2 else "white"
            axes.text(column, row, f"{loss:.2f}", ha="center", va="center", fontsize=8, color=shade)
        axes.axline((0, 0), slope=1, color="#D55E00", ls="--", label=f"{kept} constant")
        axes.set_xticks(range(losses.shape[1]), map("{:g}".format, sizes[others]))
        axes.set_yticks(range(losses.shape[0]), map("{:g}".format, sizes[rates]))
        axes.set(xlabel=name, ylabel="peak rate")
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
        figure.colorbar(picture, ax=axes, shrink=0.7, label="held-out loss an image")
