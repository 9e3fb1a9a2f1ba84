"""The learning rate as a piecewise-linear function of the epoch.

    python schedule.py                  # prints DavidNet's curve as text
    python schedule.py --plot lr.png    # draws it (needs matplotlib)

Nothing here needs TensorFlow, yet a compiled step evaluates the same formula: see `PiecewiseLinear`.
"""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lab.base.errors import Parser, UserError, ends_in_a_line

Knots = Sequence[tuple[float, float]]


class PiecewiseLinear:
    """A learning rate that runs straight from knot to knot and stays constant outside them.

    Args:
        knots: pairs (epoch, rate): epochs finite, from 0 and rising; rates finite, from 0. At least one.

    Raises:
        UserError: on knots that are not such pairs.
    """

    def __init__(self, knots: Knots) -> None:
        points = [(float(epoch), float(rate)) for epoch, rate in knots]
        if not points:
            raise UserError("a schedule of 0 knots has no rate; give at least one pair (epoch, rate)")
        for epoch, rate in points:
            if not (math.isfinite(epoch) and math.isfinite(rate) and epoch >= 0 and rate >= 0):
                raise UserError(f"schedule knot ({epoch:g}, {rate:g}) is not finite and from 0; correct it")
        for (before, _), (after, _) in itertools.pairwise(points):
            if after <= before:
                raise UserError(
                    f"schedule knots at epochs {before:g} and {after:g} do not rise; sort and separate them"
                )
        self.knots: tuple[tuple[float, float], ...] = tuple(points)

    def __call__(self, epoch: Any, clip: Callable[..., Any] = np.clip) -> Any:
        """The rate at a fractional epoch.

        Args:
            epoch: scalar or array, in epochs since the start of training. A float32 tensor will do with
                `clip=tf.clip_by_value`.
            clip: what bounds a value: clip(value, low, high).

        Returns:
            The rate, of the shape of `epoch`.
        """
        rate = self.knots[0][1] + 0.0 * epoch
        for (x0, y0), (x1, y1) in itertools.pairwise(self.knots):
            rate = rate + (y1 - y0) * clip((epoch - x0) / (x1 - x0), 0.0, 1.0)
        return rate

    def times(self, rate: float, epochs: float = 1.0) -> "PiecewiseLinear":
        """The schedule with all its rates multiplied, and its epochs stretched."""
        return PiecewiseLinear([(epochs * x, rate * y) for x, y in self.knots])

    @property
    def peak(self) -> float:
        """The highest rate."""
        return max(rate for _, rate in self.knots)

    def __str__(self) -> str:
        """The knots as `parse` reads them: 0,0 5,0.4 24,0."""
        return " ".join(f"{epoch:.10g},{rate:.10g}" for epoch, rate in self.knots)


def triangle(epochs: float, warmup_epochs: float, peak: float) -> PiecewiseLinear:
    """Up from 0 to `peak` over the warm-up, then down to 0 at the end: DavidNet's schedule."""
    start = [(0.0, 0.0)] if warmup_epochs > 0 else []
    return PiecewiseLinear([*start, (warmup_epochs, peak), (epochs, 0.0)])


def parse(text: str) -> PiecewiseLinear:
    """The schedule of knots written as epoch,rate pairs with spaces between: 0,0 5,0.4 24,0.

    Raises UserError if they are not such pairs.
    """
    try:
        pairs = [tuple(float(number) for number in pair.split(",")) for pair in text.split()]
        knots = [(epoch, rate) for epoch, rate in pairs]
    except ValueError:
        raise UserError(f"--knots {text!r} is not pairs like '0,0 5,0.4 24,0'; correct it") from None
    return PiecewiseLinear(knots)


def as_text(schedule: PiecewiseLinear, rows: int = 25, columns: int = 50) -> str:
    """The curve as `rows` lines: epoch, rate, a bar as long as the rate is high."""
    epochs = np.linspace(0.0, schedule.knots[-1][0], rows)
    rates = schedule(epochs)
    bars = np.rint(columns * rates / max(rates.max(), 1e-30)).astype(int)
    return "\n".join(
        f"{epoch:7.2f}  {rate:8.5f}  {'#' * bar}"
        for epoch, rate, bar in zip(epochs, rates, bars, strict=True)
    )


def plot(schedule: PiecewiseLinear, path: str) -> None:
    """Draws the curve into an image file; the suffix of `path` chooses the format."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot needs matplotlib; try: pip install matplotlib") from None
    epochs = np.linspace(0.0, schedule.knots[-1][0], 500)
    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).add_subplot()
    axes.plot(epochs, schedule(epochs))
    axes.set(xlabel="epoch", ylabel="learning rate", title="Learning rate", ylim=(0, None))
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the plot {path}: {error}; try another path, e.g. lr.png") from None


@ends_in_a_line
def main() -> int:
    parser = Parser(description="Print or draw a piecewise-linear learning rate.", allow_abbrev=False)
    parser.add_argument("--knots", default="0,0 5,0.4 24,0", help="epoch,rate pairs (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="draw the curve into this image file")
    arguments = parser.parse_args()
    schedule = parse(arguments.knots)
    print(as_text(schedule))
    if arguments.plot:
        plot(schedule, arguments.plot)
        print(f"wrote {arguments.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
