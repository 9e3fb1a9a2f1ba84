"""The arithmetic of post 6's experiments, against hand-worked cases and NumPy's own functions."""

from types import SimpleNamespace

import numpy as np
import pytest

from lab.ladder import recipes
from lab.posts import post6_lars, post6_norms, post6_orthogonal
from lab.posts.steps import Step


def test_norms_by_bank_and_interval():
    def step(number, angle, gradient):
        turned = 2 * np.array([np.cos(angle), np.sin(angle)])
        return Step(number, {"bank": np.array([1.0, 0.0])}, {"bank": turned}, {"bank": np.array(gradient)})

    made = [step(1, 0.3, [0.0, 3.0]), step(2, 0.4, [-0.5, 0.0]), step(3, 0.1, [0.0, 1.0])]
    rows = post6_norms.follow(made, 2)
    # Root mean squares of 0.3 and 0.4, and of 3 and 0.5; the third step is of an interval that does not end.
    expected = {"norm": [2.0], "gradient": [np.sqrt(9.25 / 2)], "cosine": [1.0], "angle": [np.sqrt(0.125)]}
    assert set(rows) == {"bank"} and set(rows["bank"]) == set(expected)
    for kind, values in expected.items():
        np.testing.assert_allclose(rows["bank"][kind], values, rtol=1e-4)


@pytest.mark.parametrize(
    ("cosine", "norm", "angle", "holds"),
    [
        (2e-4, 1.02, 0.0150, [True, True, True]),
        (2e-3, 0.80, 0.0150, [False, False, True]),
        (2e-4, 1.02, 0.0185, [True, True, False]),  # the theory's is sqrt(2 x 0.4 x 5e-4 / 1.9) = 0.01451
    ],
)
def test_verdict_on_norms(cosine, norm, angle, holds):
    def bank(last):
        return {"norm": [9.0, 9.0, last], "gradient": [1.0] * 3, "cosine": [1e-5, cosine, 0.0], "angle": [9, 9, angle]}

    starts = {"1": {"a": bank(1.0)}, "4": {"a": bank(norm)}}
    record = {"starts": starts, "rate": 0.4, "decay": 5e-4, "momentum": 0.9, "sizes": {"every": 50}}
    found = post6_norms.judge(record)
    assert [finding.holds for finding in found] == holds
    assert "0.0145" in found[2].expected


def test_cosines_by_steps_apart():
    gradients = np.random.default_rng(0).standard_normal((6, 50))
    gradients += 0.5 * gradients[[0]]  # related ones
    gradients -= gradients.mean(1, keepdims=True)  # so that correlations are cosines
    correlations = np.corrcoef(gradients)
    expected = [np.mean([correlations[k, k + apart] for k in range(6 - apart)]) for apart in range(1, 6)]
    np.testing.assert_allclose(post6_orthogonal.cosines(gradients), expected, atol=1e-12)


def test_sums_of_orthogonal_and_of_equal_gradients():
    counts = np.array(post6_orthogonal.SUMS)
    np.testing.assert_allclose(post6_orthogonal.sums(7 * np.eye(32)), np.sqrt(counts))
    np.testing.assert_allclose(post6_orthogonal.sums(np.ones((32, 3))), counts)
    against = np.array([[1.0], [-1.0]] * 16)
    assert post6_orthogonal.sums(against)[1] == pytest.approx(0)


def test_lars_rate_is_the_recipes():
    values = recipes.values("lars")
    rate = post6_lars.matched_rate(0.4, SimpleNamespace(**values))
    assert rate == pytest.approx(3.238, abs=5e-4)  # 512 sqrt(4e-5)
    assert values["filter_rate"] == pytest.approx(rate, abs=0.005)


def test_difference_of_means_and_its_error():
    one, other = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[4.0, 5.0], [4.0, 7.0]])
    gaps, errors = post6_lars.difference(one, other)
    np.testing.assert_allclose(gaps, [2, 1])  # by epoch: 4 - 2, 6 - 5
    np.testing.assert_allclose(errors, [1, 1])  # variances 2 and 0, 0 and 2, of two runs each


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_at_the_matched_rate_lars_turns_a_vector_as_far_as_sgd_does_in_balance(momentum):
    """A toy: random gradients orthogonal to one vector, shorter the longer it is, as of filters before a batch norm."""
    rate, decay, generator = 0.1, 5e-3, np.random.default_rng(0)
    options = SimpleNamespace(weight_decay=decay, momentum=momentum, batch_size=1)
    matched = post6_lars.matched_rate(rate, options)

    def angle(lars):
        w, sums, turned = generator.standard_normal(400), np.zeros(400), []
        for _ in range(6000):
            g = generator.standard_normal(400)
            g = (g - (g @ w) / (w @ w) * w) / np.linalg.norm(w)
            g = matched * np.linalg.norm(w) / np.linalg.norm(g) * g if lars else rate * (g + decay * w)
            sums = momentum * sums + g
            before, w = w, w - g - momentum * sums
            turned.append(np.arccos(before @ w / np.linalg.norm(before) / np.linalg.norm(w)))
        return np.sqrt(np.mean(np.square(turned[4000:])))

    assert angle(lars=True) / angle(lars=False) == pytest.approx(1, abs=0.05)
