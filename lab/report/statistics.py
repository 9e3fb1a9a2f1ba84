"""What SciPy says of the accuracies of several runs, and of two sets of them.

Accuracies are shares of 1 throughout. SciPy is imported where it is used, so that the rest works without it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.base.errors import UserError
from lab.runs.results import reaches

LEVEL = 0.05  # of a two-sided test; intervals hold 1 - LEVEL
POWER = 0.8  # chance of seeing a difference that is there
CLAIM = 200  # runs of distinct seeds that airbench's rule asks for
MOST_RUNS = 10**7  # beyond which nobody asks how many
NO_SPREAD = 1e-12  # a standard deviation that is rounding


@dataclass(frozen=True)
class Summary:
    """Of the accuracies of n runs. None where n, or their spread, is too small to tell.

    Args:
        deviation: the standard deviation of one run, of n - 1 degrees of freedom.
        interval: which holds the true mean in 95 % of such samples (Student's t).
        reached: how many have at least the target.
        p: one-sided, of a mean at least this high if the true one were the target (Student's t).
    """

    n: int
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    reached: int
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """Of two sets' accuracies, B less A, by Welch's t test, which lets their spreads differ.

    Args:
        interval: of the difference, 95 %.
        p: two-sided; None if neither set spreads.
        runs_needed: in each set, to see the difference asked about; None if neither set spreads.
    """

    difference: float
    interval: tuple[float, float] | None
    p: float | None
    runs_needed: int | None


def summarise(values: Sequence[float], target: float) -> Summary:
    """n, mean, spread, interval and test of accuracies.

    Args:
        values: at least one.
        target: which the mean is tested against.

    Raises:
        UserError: if SciPy is not installed and there are two values or more.
    """
    deviation = statistics.stdev(values) if len(values) > 1 else None
    interval = p = None
    if deviation is not None and deviation > NO_SPREAD:
        stats = _scipy_stats()
        low, high = stats.ttest_1samp(values, target).confidence_interval(1 - LEVEL)
        interval = (float(low), float(high))
        p = float(stats.ttest_1samp(values, target, alternative="greater").pvalue)
    reached = sum(reaches(value, target) for value in values)
    return Summary(len(values), statistics.fmean(values), deviation, interval, reached, p)


def compare(first: Sequence[float], second: Sequence[float], difference: float) -> Comparison:
    """Two sets of accuracies, of two or more each.

    Args:
        difference: of the means that one would want to see.

    Raises:
        UserError: if SciPy is not installed.
    """
    means = statistics.fmean(second) - statistics.fmean(first)
    deviations = (statistics.stdev(first), statistics.stdev(second))
    if max(deviations) <= NO_SPREAD:
        return Comparison(means, None, None, None)
    result = _scipy_stats().ttest_ind(second, first, equal_var=False)
    low, high = result.confidence_interval(1 - LEVEL)
    needed = runs_needed(difference, *deviations)
    return Comparison(means, (float(low), float(high)), float(result.pvalue), needed)


def power(n: int, difference: float, first: float, second: float) -> float:
    """The chance that Welch's two-sided test of n runs each sees a difference of the means, by noncentral t.

    Args:
        n: at least 2.
        difference: of the true means.
        first, second: the true standard deviations.
    """
    stats = _scipy_stats()
    variances = (first**2, second**2)
    freedom = (n - 1) * sum(variances) ** 2 / sum(variance**2 for variance in variances)
    noncentrality = difference / math.sqrt(sum(variances) / n)
    limit = stats.t.isf(LEVEL / 2, freedom)
    return float(stats.nct.sf(limit, freedom, noncentrality) + stats.nct.cdf(-limit, freedom, noncentrality))


def runs_needed(difference: float, first: float, second: float) -> int | None:
    """The smallest n with `power` of at least 0.8; None if that is above ten million.

    Raises UserError if SciPy is not installed.
    """
    enough = 2
    while power(enough, difference, first, second) < POWER:  # it rises with n
        enough *= 2
        if enough > MOST_RUNS:
            return None
    few = enough // 2  # too few, or 1
    while enough - few > 1:
        middle = (few + enough) // 2
        if power(middle, difference, first, second) < POWER:
            few = middle
        else:
            enough = middle
    return enough


def _scipy_stats() -> Any:
    try:
        import scipy.stats
    except ImportError:
        raise UserError("the statistics of several runs need SciPy; try: pip install scipy") from None
    return scipy.stats
