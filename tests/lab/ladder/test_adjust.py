"""A compiled training that is given other rates, momentum and decay, beside one that is made with them."""

import numpy as np
import pytest

from lab import assemble
from lab.ladder import adjust

CASES = {
    "plain": ({}, {"learning_rate": 0.1, "momentum": 0.7, "weight_decay": 0.02, "warmup_epochs": 0.25}),
    "knots": (
        {"recipe": "tricks-ema", "epochs": 4, "ghost_groups": 4, "learning_rate": 0.1, "stop_after": 1},
        {"learning_rate": 0.2, "momentum": 0.7, "weight_decay": 0.02},
    ),
    "lars": (
        {"optimizer": "lars"},
        {"filter_rate": 0.5, "learning_rate": 0.1, "momentum": 0.7, "weight_decay": 0.02},
    ),
    "muon": (
        {"recipe": "speedrun", "epochs": 1},
        {"learning_rate": 0.1, "filter_momentum": 0.8, "momentum": 0.7, "weight_decay": 1e-4}
        | {"head_rate": 0.3, "bias_rate": 0.1},
    ),
}  # fmt: skip


def trained(training):
    rows = [moment.row for moment in training.run() if moment.row]
    return rows[-1]["test_loss"], [weight.numpy().copy() for weight in training.weights]


@pytest.mark.parametrize("name", CASES)
def test_an_adjusted_training_is_the_one_made_with_the_new_values(name, small_data):
    recipe, changes = CASES[name]
    common = {"data": small_data, "device": "cpu", "width": 4, "batch_size": 16, "jit": False, "epochs": 1, **recipe}
    before, after = assemble.configure(common), assemble.configure({**common, **changes, "seed": 1})
    training = assemble.make(before, optimizer=adjust.make)
    first, _ = trained(training)
    assemble.restart(training, after)
    assert adjust.adjust(training, after)
    loss, weights = trained(training)
    assert training.train_steps.experimental_get_tracing_count() == 1
    expected, others = trained(assemble.make(after))
    assert loss == pytest.approx(expected, rel=1e-5) and abs(loss - first) > 1e-4
    for weight, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(weight, other, rtol=1e-4, atol=1e-6)


def test_another_number_of_updates_is_refused(small_data):
    common = {"data": small_data, "device": "cpu", "width": 4, "batch_size": 16, "jit": False}
    training = assemble.make(assemble.configure({**common, "epochs": 1}), optimizer=adjust.make)
    assert not adjust.adjust(training, assemble.configure({**common, "epochs": 2, "momentum": 0.5}))
    assert float(training.optimizer.momentum) == pytest.approx(0.9)
