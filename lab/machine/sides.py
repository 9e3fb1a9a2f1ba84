"""The side of the training images by epoch: small at first, when a step need not see much and then costs less.

As Fulcrum's E1 (fulcrumresearch/cifar-10-speedrun, 2026): whole images are made smaller, not windows of them. Only
training sees them so; evaluation is at full size. NumPy only.
"""

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.base.errors import UserError

FULL = 32  # pixels


class Stage(NamedTuple):
    """From the end of epoch `start` on, training images are side x side pixels."""

    side: int
    start: int


def parse(text: str) -> list[Stage]:
    """The stages of a text like '24x3 28x3 32': each a side and for how many epochs, the last one to the end.

    "" is full size all along. Raises UserError if it is not such a text, or a side is not from 1 to 32.
    """
    *first, last = text.split() or [str(FULL)]
    lengths = [re.fullmatch(r"([0-9]{1,5})x([0-9]{1,6})", entry) for entry in first]
    if not all(lengths) or not re.fullmatch("[0-9]{1,5}", last):
        raise UserError(f"--sides {text!r} is not a side x epochs, then the last side, like '24x3 28x3 32'; correct it")
    stages, start = [], 0
    for side, epochs in [*(map(int, length.groups()) for length in lengths if length), (int(last), 1)]:
        if not 1 <= side <= FULL or epochs < 1:
            raise UserError(f"--sides {text!r}: {side} pixels for {epochs} epochs; give 1 to {FULL}, 1 epoch or more")
        stages.append(Stage(side, start))
        start += epochs
    return stages


def check(text: str, epochs: int) -> None:
    """Raises UserError as `parse` does, or if a training of so many epochs does not come to the last side."""
    last = parse(text)[-1]
    if last.start >= epochs:
        raise UserError(
            f"--sides {text!r} comes to its last side after {last.start} epochs, and --epochs is {epochs:g}; give "
            f"more epochs, or fewer before that side"
        )


def of_epoch(text: str, epoch: int) -> int:
    """The side of the images in an epoch, which count from 1."""
    return [stage.side for stage in parse(text) if stage.start < max(epoch, 1)][-1]


def stretched(text: str, old: int, new: int) -> str:
    """The sides of `old` epochs for `new` ones: each keeps its share, in whole epochs; one without any is left out."""
    stages = parse(text)
    starts = [stage.start * new // old for stage in stages]
    entries = [
        f"{stage.side}x{after - before}"
        for stage, before, after in zip(stages, starts, starts[1:], strict=False)
        if after > before
    ]
    return " ".join([*entries, str(stages[-1].side)]) if text else ""


def bilinear(side: int) -> NDArray[np.float32]:
    """The matrix (side, 32) that samples a line of 32 pixels at `side` places, between the two nearest ones.

    The places are the centres of `side` equal parts (corners not aligned), and nothing is blurred before, as in
    torch.nn.functional.interpolate(mode="bilinear") and tf.image.resize.
    """
    places = (np.arange(side) + 0.5) * (FULL / side) - 0.5
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(FULL))).astype(np.float32)
