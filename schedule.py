"""The learning rate: straight lines from knot to knot over the epochs. NumPy only."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np


class PiecewiseLinear:
    """A rate that runs straight from knot to knot and stays constant before the first and after the last.

    >>> PiecewiseLinear([(0, 0.0), (5, 0.4), (24, 0.0)])(2.5)
    0.2

    `knots` are pairs (epoch, rate), at least one: epochs rising from 0 or later, rates from 0, all finite. Raises
    ValueError on others.
    """

    def __init__(self, knots: Sequence[tuple[float, float]]) -> None:
        self.knots = tuple((float(epoch), float(rate)) for epoch, rate in knots)
        if not self.knots:
            raise ValueError("a schedule of 0 knots has no rate; give at least one pair (epoch, rate)")
        for epoch, rate in self.knots:
            if not (np.isfinite([epoch, rate]).all() and min(epoch, rate) >= 0):
                raise ValueError(f"schedule knot ({epoch:g}, {rate:g}) is not finite and from 0; correct it")
        for (before, _), (after, _) in pairwise(self.knots):
            if after <= before:
                raise ValueError(f"schedule knots at epochs {before:g} and {after:g} do not rise; sort them")

    def __call__(self, epoch: Any) -> Any:
        """The rate at a fractional epoch, a number or an array: float64."""
        epochs, rates = zip(*self.knots, strict=True)
        return np.interp(epoch, epochs, rates)


def triangle(epochs: float, warmup: float, peak: float) -> PiecewiseLinear:
    """Up from 0 to `peak` over the first `warmup` epochs, then down to 0 at the end: DavidNet's schedule.

    The rise is for the start, where gradients are large and batch norm's statistics still wander (D. C. Page, "How
    to train your ResNet", post 1). With a warm-up of 0 the rate starts at its peak.
    """
    start = [(0.0, 0.0)] if warmup > 0 else []
    return PiecewiseLinear([*start, (warmup, peak), (epochs, 0.0)])
