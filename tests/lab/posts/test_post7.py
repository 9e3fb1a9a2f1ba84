import numpy as np
import pytest
import tensorflow as tf

from lab.images import load
from lab.posts import post7_constant, post7_hessian, post7_stress
from lab.report import figures
from train_eager import cross_entropy_sum

TINY = {"width": 2, "batch_size": 16, "epochs": 2, "device": "cpu"}


@pytest.fixture
def images(small_data):
    return load.load(small_data, seed=0)


def drawn(experiment, record):
    figure = figures.new_figure(8, 4)
    experiment.draw(record, figure)
    return figure


# ---- constant functions ------------------------------------------------------------------------------------


def test_the_share_of_variance_between_channels():
    assert post7_constant.share_between(np.array([[1.0, 3.0], [1.0, 3.0]])) == 1.0
    assert post7_constant.share_between(np.array([[1.0, 3.0], [3.0, 1.0]])) == 0.0
    # Means 1 and 3, each with variance 4: between them 1 of 1 + 4.
    values = np.array([[-1.0, 1.0], [3.0, 5.0]])
    assert post7_constant.share_between(values) == pytest.approx(1 / 5)
    assert post7_constant.share_between(values.reshape(2, 1, 1, 2)) == pytest.approx(1 / 5)


def test_the_limit_is_the_correlation_that_a_relu_makes():
    """By drawing pairs of correlated normal values; a share of 1 / pi after the first ReLU is known."""
    shares = post7_constant.limit(4, shifted=False)
    assert shares[:2] == pytest.approx([0.0, 1 / np.pi])
    first, other = np.random.default_rng(0).normal(size=(2, 1_000_000))
    second = shares[1] * first + np.sqrt(1 - shares[1] ** 2) * other
    assert shares[2] == pytest.approx(2 * np.mean(np.maximum(first, 0) * np.maximum(second, 0)), abs=5e-3)
    assert post7_constant.limit(50, shifted=False)[-1] > 0.95
    assert post7_constant.limit(50, shifted=True) == pytest.approx(np.zeros(50), abs=1e-12)


def test_wide_linear_layers_are_near_the_limit():
    shares = post7_constant.linear_layers(3, 700, 200, seed=0)
    assert shares["relu"] == pytest.approx(post7_constant.limit(3, shifted=False), abs=0.04)
    assert shares["shifted"] == pytest.approx(np.zeros(3), abs=0.04)


def test_constant_measures_every_layer(images):
    record = post7_constant.measure({"layers": 3, "channels": 8, "inputs": 6, "width": 2}, images, 0)
    assert {name: len(shares) for name, shares in record["eight"].items()} == dict.fromkeys(record["eight"], 8)
    assert max(record["eight"]["batch norm"][:-1]) < 1e-6
    assert {len(shares) for shares in record["linear"].values()} == {3}
    assert [found.holds for found in post7_constant.judge(record)].count(None) == 0
    drawn(post7_constant, record | {"sizes": {"channels": 8}})


# ---- the stress test ---------------------------------------------------------------------------------------


def test_the_rate_doubles_every_two_epochs():
    assert [post7_stress.rate(epoch) for epoch in (0, 2, 12)] == pytest.approx([0.005, 0.01, 0.32])
    assert post7_stress.rate(25) == pytest.approx(28.96, abs=0.01)


def test_the_epoch_of_the_breakdown():
    assert post7_stress.breakdown([0.2, 0.5, 0.3, 0.6], 4) is None
    assert post7_stress.breakdown([0.2, 0.5, 0.24, 0.6], 4) == 3
    assert post7_stress.breakdown([0.2, 0.5], 4) == 3  # the third's loss was not finite


def test_the_verdict_on_pages_own_figures_is_the_claim():
    rows = {"with": post7_stress.PAGE["with"], "without": post7_stress.PAGE["without"][:-1]}
    networks = {name: {"train_accuracy": list(values)} for name, values in rows.items()}
    record = {"rates": [post7_stress.rate(epoch) for epoch in range(1, 26)], "networks": networks}
    found = post7_stress.judge(record)
    assert [finding.holds for finding in found] == [True] * 4
    assert "in epoch 12 (rate 0.32)" in found[0].measured
    assert len(drawn(post7_stress, record).axes[0].lines) == 6


def test_stress_trains_both_until_the_loss_is_not_finite(images, monkeypatch):
    monkeypatch.setattr(post7_stress, "rate", lambda epoch: 0.01 * 1e8 ** max(0, epoch - 1))
    record = post7_stress.measure(TINY, images, 0)
    assert len(record["networks"]["without"]["train_loss"]) == 1
    assert len(record["networks"]["with"]["train_loss"]) == 2


# ---- the Hessian -------------------------------------------------------------------------------------------


def test_the_loss_is_cross_entropy_and_half_the_divergence_from_uniform():
    logits, labels = np.random.default_rng(0).normal(size=(4, 10)), np.array([1, 2, 3, 9])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    by_hand = -log_p[range(4), labels].sum() - 0.5 * log_p.mean(1).sum()
    smoothed = cross_entropy_sum(
        tf.constant(logits, tf.float32), tf.constant(labels, tf.int32), post7_hessian.SMOOTHING
    )
    assert post7_hessian.FACTOR * float(smoothed) == pytest.approx(by_hand, rel=1e-5)


def test_hessian_measures_three_states(images):
    sizes = {**TINY, "epochs": 5, "stop_after": 1, "part": 8, "parts": 2, "eigenpairs": 10}
    record = post7_hessian.measure(sizes, images, 0)
    assert sorted(record["states"]) == sorted(post7_hessian.STATES)
    for state in record["states"].values():
        assert len(state["eigenvalues"]) == len(state["share_in_span"]) == 10
        assert 0 <= min(state["share_in_span"]) <= max(state["share_in_span"]) <= 1 + 1e-6
        assert np.shape(state["answers"]) == (len(post7_hessian.STEPS), 4)
        # A step of nothing at random changes no answer: the shares of the classes add up to 1.
        assert sum(state["answers_random"][0]) == pytest.approx(1.0)
    assert record["states"]["frozen"]["weights_norm"] == record["states"]["batch norm"]["weights_norm"]
    assert len(post7_hessian.judge(record)) == 8
    drawn(post7_hessian, record)
