"""The core's schedule against np.interp and hand-worked values."""

import numpy as np
import pytest

from schedule import PiecewiseLinear, triangle


@pytest.mark.parametrize(
    "knots",
    [
        [(0, 0), (5, 0.4), (24, 0)],
        [(0, 0), (15, 0.1), (30, 0.005), (35, 0)],
        [(2, 0.3)],
        [(0.5, 1.0), (0.75, 0.0)],
    ],
)
def test_the_curve_is_numpys_interpolation(knots):
    epochs = np.linspace(-1, 40, 1000)
    expected = np.interp(epochs, *zip(*knots, strict=True))
    np.testing.assert_allclose(PiecewiseLinear(knots)(epochs), expected, atol=1e-12)


def test_the_rate_by_hand():
    rate = PiecewiseLinear([(1, 0.2), (3, 0.6), (4, 0.1)])
    by_hand = {0: 0.2, 1: 0.2, 1.5: 0.3, 2: 0.4, 3: 0.6, 3.25: 0.475, 4: 0.1, 100: 0.1}
    assert {epoch: pytest.approx(rate(epoch)) for epoch in by_hand} == by_hand
    assert rate(np.array([1.5, 3.25])) == pytest.approx([0.3, 0.475])
    assert np.ndim(rate(2)) == 0 and np.asarray(rate(np.zeros(3, np.float32))).dtype == np.float64
    assert rate.knots == ((1.0, 0.2), (3.0, 0.6), (4.0, 0.1))


def test_davidnets_triangle_rises_to_its_peak_and_falls_to_nothing():
    rate = triangle(24, 5, 0.4)
    assert [rate(epoch) for epoch in (0, 2.5, 5, 14.5, 24)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])
    assert triangle(10, 0, 0.4)(0) == pytest.approx(0.4)  # no warm-up: it starts at its peak
    assert triangle(10, 0, 0.4)(5) == pytest.approx(0.2)
