"""Cyclic coordinate descent over hyperparameters, by doubling and halving. NumPy only.

D. C. Page, "How to train your ResNet" 5: with rate l, momentum r and decay a the result hardly moves as long as
l a / (1 - r) stays, so tune in the coordinates (l a / (1 - r), r, a), one after another, each until it gets worse.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

PAGES = ("learning_rate", "momentum", "weight_decay")
# Just below 1, so what is doubled is the distance from it.
FROM_ONE = ("momentum", "filter_momentum", "ema_keeps", "lookahead_keeps")
DIGITS = 12  # of a value, so that 1 - 2 (1 - 0.9) is 0.8

Point = tuple[float, ...]  # exponents of 2, one for each coordinate
Scores = Sequence[float] | None  # of a point, by seed, the higher the better; None: diverged, or not possible


class Visit(NamedTuple):
    """A point that the descent has looked at, and whether it is better than all before it."""

    point: Point
    scores: Scores
    better: bool


def values(start: Mapping[str, float], names: Sequence[str], point: Point, *, follows: bool = True) -> dict[str, float]:
    """The hyperparameters at a point, by name: each of the start times 2 ** exponent.

    Of the momentum it is 1 - momentum that is multiplied; a whole number is rounded.

    Args:
        start: at least `names`; and learning_rate, if momentum or weight_decay is one of them and it follows.
        names: the coordinates.
        point: an exponent for each.
        follows: Page's coordinates: the learning rate moves along with momentum and decay such that
            learning_rate * weight_decay / (1 - momentum) changes by learning_rate's own exponent alone.
    """
    exponents = dict(zip(names, point, strict=True))
    if follows and exponents.keys() & {"momentum", "weight_decay"}:
        along = exponents.get("momentum", 0.0) - exponents.get("weight_decay", 0.0)
        exponents["learning_rate"] = exponents.get("learning_rate", 0.0) + along
    return {name: _times(name, start[name], exponent) for name, exponent in exponents.items()}


def _times(name: str, value: float, exponent: float) -> float:
    if exponent == 0:
        return value
    moved = 1 - (1 - value) * 2**exponent if name in FROM_ONE else value * 2**exponent
    return round(moved) if isinstance(value, int) else float(f"{moved:.{DIGITS}g}")


def gain(new: Sequence[float], old: Sequence[float]) -> tuple[float, float]:
    """How much higher a point's scores are than another's: mean over the seeds, and that mean's standard error.

    The difference is taken seed by seed, so that what a seed does to both cancels. With one seed the error is 0.
    """
    gains = np.subtract(new, old)
    error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return float(gains.mean()), float(error)


def is_better(new: Scores, old: Scores) -> bool:
    """Whether a point counts as better than another: if its gain is above the gain's standard error.

    So what cannot be told apart counts as worse, and a descent does not wander where nothing changes.
    """
    if new is None or old is None:
        return new is not None
    mean, error = gain(new, old)
    return mean > error


def descend(measure: Callable[[Point], Scores], size: int, finer: int = 0) -> Iterator[Visit]:
    """From the point of zeros, one coordinate after another: doubled until it gets worse, or else halved.

    It ends when no coordinate can be improved. The last visit that is better is the best point.

    Args:
        measure: a point's scores; asked again for points that come again.
        size: how many coordinates, from 1.
        finer: how often to go on with the square root of the factor: 1: 2, then 1.414; 2: 1.189 too.
    """
    best: Point = (0.0,) * size
    scores = measure(best)
    yield Visit(best, scores, True)
    for step in (2.0**-k for k in range(finer + 1)):
        axis, settled = 0, 0
        while settled < size:
            moved = False
            for towards in (step, -step):
                while True:
                    point = (*best[:axis], best[axis] + towards, *best[axis + 1 :])
                    new = measure(point)
                    better = is_better(new, scores)
                    yield Visit(point, new, better)
                    if not better:
                        break
                    best, scores, moved = point, new, True
                if moved:
                    break
            axis, settled = (axis + 1) % size, 1 if moved else settled + 1
