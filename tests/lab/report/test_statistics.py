"""Statistics against hand-worked cases, textbook formulas and simulation."""

import math
import sys

import numpy as np
import pytest

from lab.base.errors import UserError
from lab.report import statistics

stats = pytest.importorskip("scipy.stats", reason="statistics need SciPy")


def test_three_runs_by_hand():
    """Mean 0.942, deviation 0.001, so t = 0.002 / (0.001 / sqrt 3) = 3.4641 with two degrees of freedom.

    There, Student's distribution is 1/2 + t / (2 sqrt(2 + t^2)), and its 97.5 % point is 4.30265.
    """
    found = statistics.summarise([0.941, 0.942, 0.943], 0.94)
    assert (found.n, found.reached) == (3, 3)
    assert found.mean == pytest.approx(0.942) and found.deviation == pytest.approx(0.001)
    assert found.p == pytest.approx(0.5 - 3.4641016 / (2 * math.sqrt(14)), rel=1e-5)
    margin = 4.3026527 * 0.001 / math.sqrt(3)
    assert found.interval == pytest.approx((0.942 - margin, 0.942 + margin))


def test_a_mean_below_the_target_has_a_p_above_a_half():
    assert statistics.summarise([0.93, 0.94, 0.941], 0.94).p > 0.5
    assert statistics.summarise([0.93, 0.94, 0.95], 0.94).p == pytest.approx(0.5)


def test_too_little_to_tell_is_none():
    one = statistics.summarise([0.94], 0.94)
    assert (one.n, one.deviation, one.interval, one.p, one.reached) == (1, None, None, None, 1)
    same = statistics.summarise([0.941] * 3, 0.94)
    assert (same.deviation, same.interval, same.p) == (0.0, None, None)
    alike = statistics.compare([0.94] * 2, [0.941] * 3, 0.001)
    assert (alike.interval, alike.p, alike.runs_needed) == (None, None, None)


def test_welch_by_its_formula():
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.94, 0.0015, 12), generator.normal(0.941, 0.003, 7)
    found = statistics.compare(list(first), list(second), 0.001)
    errors = first.var(ddof=1) / 12, second.var(ddof=1) / 7
    error = math.sqrt(sum(errors))
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 11 + errors[1] ** 2 / 6)
    difference = second.mean() - first.mean()
    assert found.difference == pytest.approx(difference)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(difference) / error, freedom))
    margin = stats.t.isf(0.025, freedom) * error
    assert found.interval == pytest.approx((difference - margin, difference + margin))


@pytest.mark.parametrize("deviations", [(0.0014, 0.0014), (0.001, 0.003)])
def test_the_runs_needed_see_the_difference_in_four_of_five_simulations(deviations):
    n = statistics.runs_needed(0.001, *deviations)
    generator = np.random.default_rng(1)
    first = generator.normal(0.94, deviations[0], (20_000, n))
    second = generator.normal(0.941, deviations[1], (20_000, n))
    seen = (stats.ttest_ind(first, second, axis=1, equal_var=False).pvalue < 0.05).mean()
    assert seen == pytest.approx(0.8, abs=0.02)  # simulation's own error is 0.003; one run more or less is 0.01
    assert statistics.power(n, 0.001, *deviations) >= 0.8
    assert statistics.power(n - 1, 0.001, *deviations) < 0.8


def test_the_runs_needed_are_the_textbooks():
    """2 (z_0.975 + z_0.8)^2 (deviation / difference)^2 by the normal distribution, and one or two more by t."""
    for deviation in (0.0014, 0.0015, 0.01):
        normal = 2 * (1.959964 + 0.841621) ** 2 * (deviation / 0.001) ** 2
        assert 0 < statistics.runs_needed(0.001, deviation, deviation) - normal < 2
    assert statistics.runs_needed(0.001, 0.0014, 0.0014) == 32
    assert statistics.runs_needed(0.5, 0.001, 0.001) == 2
    assert statistics.runs_needed(1e-7, 0.001, 0.001) is None


def test_without_scipy_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert statistics.summarise([0.94], 0.94).n == 1
    with pytest.raises(UserError, match="pip install scipy"):
        statistics.summarise([0.94, 0.95], 0.94)
