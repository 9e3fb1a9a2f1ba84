"""Schedules written as text, multiplied, printed and drawn.

python -m lab schedule                  # prints DavidNet's curve as text
python -m lab schedule --plot lr.png    # draws it (needs matplotlib)
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.options import run_length
from schedule import PiecewiseLinear, triangle

HIGHEST = 1e6  # a rate, or an epoch


class Knots(PiecewiseLinear):
    """The core's schedule, checked, that can be multiplied and written as text.

    Args:
        knots: pairs (epoch, rate), at least one: epochs rising from 0 or later, rates from 0, all finite.

    Raises:
        ValueError: on knots that are not such pairs.
    """

    def __init__(self, knots: Sequence[tuple[float, float]]) -> None:
        super().__init__(knots)
        if not self.knots:
            raise ValueError("a schedule of 0 knots has no rate; give at least one pair (epoch, rate)")
        for epoch, rate in self.knots:
            if not (np.isfinite([epoch, rate]).all() and min(epoch, rate) >= 0):
                raise ValueError(f"schedule knot ({epoch:g}, {rate:g}) is not finite and from 0; correct it")
        for (before, _), (after, _) in pairwise(self.knots):
            if after <= before:
                raise ValueError(f"schedule knots at epochs {before:g} and {after:g} do not rise; sort them")

    def times(self, rate: float) -> "Knots":
        """The schedule with all its rates multiplied."""
        return Knots([(x, rate * y) for x, y in self.knots])

    def until(self, epoch: float) -> "Knots":
        """The same up to this epoch, then 0."""
        return Knots([*(knot for knot in self.knots if knot[0] < epoch), (epoch, self(epoch)), (epoch + 1e-6, 0.0)])

    @property
    def peak(self) -> float:
        """The highest rate."""
        return max(rate for _, rate in self.knots)

    def __str__(self) -> str:
        """The knots as `parse` reads them: 0,0 5,0.4 24,0."""
        return " ".join(f"{epoch:.10g},{rate:.10g}" for epoch, rate in self.knots)


def parse(text: str) -> Knots:
    """The schedule of knots written as epoch,rate pairs with spaces between: 0,0 5,0.4 24,0.

    Raises UserError if they are not such pairs.
    """
    try:
        pairs = [tuple(float(number) for number in pair.split(",")) for pair in text.split()]
        knots = Knots([(epoch, rate) for epoch, rate in pairs])
        if max(*knots.knots[-1], knots.peak) > HIGHEST:  # float32 would not hold their products
            raise ValueError(f"an epoch or a rate is above {HIGHEST:g}")
        return knots
    except ValueError as error:
        raise UserError(f"--knots {text!r} is not pairs like '0,0 5,0.4 24,0' ({error}); correct it") from None


def of(recipe: Mapping[str, Any]) -> Knots:
    """The learning rate over the epochs of a recipe's hyperparameters: its knots, or DavidNet's triangle."""
    if recipe["knots"]:
        return parse(recipe["knots"])
    epochs = run_length(recipe["epochs"], recipe["last_epoch"])
    return Knots(triangle(epochs, recipe["warmup_epochs"], recipe["learning_rate"]).knots)


def as_text(schedule: Knots, rows: int = 25, columns: int = 50) -> str:
    """The curve as `rows` lines: epoch, rate, a bar as long as the rate is high."""
    epochs = np.linspace(0.0, schedule.knots[-1][0], rows)
    rates = schedule(epochs)
    bars = np.rint(columns * rates / max(rates.max(), 1e-30)).astype(int)
    return "\n".join(
        f"{epoch:7.2f}  {rate:8.5f}  {'#' * bar}" for epoch, rate, bar in zip(epochs, rates, bars, strict=True)
    )


def plot(schedule: Knots, path: str) -> None:
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


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    parser = Parser(description="Print or draw a piecewise-linear learning rate.")
    parser.add_argument("--knots", default="0,0 5,0.4 24,0", help="epoch,rate pairs (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="draw the curve into this image file")
    options = parser.parse_args(arguments)
    schedule = parse(options.knots)
    print(as_text(schedule))
    if options.plot:
        plot(schedule, options.plot)
        print(f"wrote {options.plot}")
    return 0
