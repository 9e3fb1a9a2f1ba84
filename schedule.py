"""The learning rate: straight lines from knot to knot over the epochs. NumPy only."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class PiecewiseLinear:
    """A rate that runs straight between `knots`, pairs (epoch, rate) of rising epochs, and is constant around them.

    >>> float(PiecewiseLinear([(0, 0.0), (5, 0.4), (24, 0.0)])(2.5))
    0.2
    """

    def __init__(self, knots: Sequence[tuple[float, float]]) -> None:
        self.knots = tuple((float(epoch), float(rate)) for epoch, rate in knots)

    def __call__(self, epoch: Any) -> Any:
        """The rate at a fractional epoch, a number or an array: float64."""
        epochs, rates = zip(*self.knots, strict=True)
        return np.interp(epoch, epochs, rates)


def triangle(epochs: float, warmup: float, peak: float) -> PiecewiseLinear:
    """Up from 0 to `peak` over the first `warmup` epochs, then down to 0 at the end: DavidNet's schedule.

    The rise is for the start, where a full rate would throw the random weights about. With a warm-up of 0 the rate
    starts at its peak.
    """
    start = [(0.0, 0.0)] if warmup > 0 else []
    return PiecewiseLinear([*start, (warmup, peak), (epochs, 0.0)])
