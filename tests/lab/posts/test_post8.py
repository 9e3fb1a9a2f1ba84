"""The arithmetic of post 8's experiment."""

import numpy as np
import pytest

from lab.posts import post8_scales


def test_what_decay_alone_leaves():
    # By hand, at momentum 0.5 and rate x decay 0.2: the accumulator 0.2, the move 0.2 + 0.1; then 0.1 + 0.14 = 0.24.
    left = post8_scales.decayed(np.array([0.4, 0.4]), 0.5, 0.5)
    np.testing.assert_allclose(left, [1, 0.7, 0.7 - (0.14 + 0.5 * 0.24)])
    # A slow one is exp(-sum of rates x decay / (1 - momentum)).
    rates = np.full(4000, 0.4)
    assert post8_scales.decayed(rates, 5e-5, 0.9)[-1] == pytest.approx(np.exp(-0.8), rel=5e-3)


@pytest.mark.parametrize(
    ("end", "quartiles", "holds"),
    [
        (0.25, [0.23, 0.25, 0.27], [True, True, True]),
        (0.9, [0.3, 0.9, 1.2], [False, False, False]),
    ],
)
def test_verdict_on_scales(end, quartiles, holds):
    layer = {"mean": [1.0, 0.6, end], "quartiles": [[1, 1, 1], [0.5, 0.6, 0.7], quartiles]}
    record = {"layers": {"prep": layer}, "decay": [1.0, 0.3, 0.07]}
    found = post8_scales.judge(record)
    assert [finding.holds for finding in found] == holds
    assert "0.070" in found[0].measured


def test_quarters_of_eighteen_epochs_end_with_the_last():
    means = np.linspace(1.0, 0.1, 19)  # 0.05 less in each
    layer = {"mean": means.tolist(), "quartiles": [[1, 1, 1]] * 19}
    found = post8_scales.judge({"layers": {"prep": layer}, "decay": [1.0] * 19})
    assert found[2].measured == "1.000, 0.800, 0.550, 0.300, 0.100"  # after 0, 4, 9, 14 and 18; 4.5 rounds to even
