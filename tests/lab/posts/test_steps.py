"""A training seen step by step: gradients read from accumulators, angles, and the balance of a scale-invariant toy."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from lab.base.errors import UserError
from lab.posts import steps
from train_eager import Moment


class Toy:
    """A training whose gradients are known: Nesterov's update written out in NumPy."""

    kind = "CPU"

    def __init__(self, gradients, rate=0.1, momentum=0.9, decay=0.5):
        self.config = SimpleNamespace(momentum=momentum)
        self.weights = [np.float32([3.0, 4.0]), np.float32([1.0, -1.0])]
        self.optimizer = SimpleNamespace(accumulators=[np.zeros(2, np.float32), np.zeros(2, np.float32)])
        self.decays, self.rate, self.gradients = [decay, decay], rate, gradients

    def run(self):
        for number, gradient in enumerate(self.gradients, 1):
            for k, w in enumerate(self.weights):
                decayed = gradient + self.decays[k] * w
                self.optimizer.accumulators[k] = self.config.momentum * self.optimizer.accumulators[k] + decayed
                moved = decayed + self.config.momentum * self.optimizer.accumulators[k]
                self.weights[k] = (w - self.rate * moved).astype(np.float32)
            yield Moment(1, number)
        yield Moment(1, len(self.gradients), {"epoch": 1})


def test_a_steps_gradient_is_read_from_the_accumulators():
    given = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    rows = []
    seen = list(steps.steps(Toy(given), {"second": 1}, rows))
    assert [step.number for step in seen] == [1, 2, 3, 4, 5] and rows == [{"epoch": 1}]
    np.testing.assert_allclose([step.gradients["second"] for step in seen], given, atol=1e-6)
    np.testing.assert_array_equal(seen[0].weights["second"], [1.0, -1.0])
    # By hand: g + 0.5 w, and 1.9 times that in the first step.
    np.testing.assert_allclose(seen[0].moved["second"], [1, -1] - 0.19 * (given[0] + [0.5, -0.5]), rtol=1e-5)
    for before, after in pairwise(seen):
        assert before.moved["second"] is after.weights["second"]


def test_an_accelerators_steps_are_refused():
    training = Toy([])
    training.kind = "GPU"
    with pytest.raises(UserError, match="hide the accelerators"):
        next(steps.steps(training, {}))


def test_lengths_and_angles():
    one, other = np.float32([[3.0], [4.0]]), np.float32([[-4.0], [3.0]])
    assert steps.norm(one) == 5 and steps.cosine(one, other) == 0 and steps.cosine(one, -2 * one) == pytest.approx(-1)
    assert steps.angle(one, other) == pytest.approx(np.pi / 2) and steps.angle(one, 7 * one) == pytest.approx(0)
    assert steps.angle(one, -one) == pytest.approx(np.pi)
    small = 1e-5  # whose cosine is 1 in float32
    turned = np.float64([[np.cos(small), -np.sin(small)], [np.sin(small), np.cos(small)]]) @ one
    assert steps.angle(one, turned) == pytest.approx(small, rel=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_balance_of_a_scale_invariant_toy(momentum, nesterov):
    """Weights of one length, whose gradient is orthogonal to them, random and inverse to their length."""
    rate, decay, count = 0.02, 0.1, 4000
    generator = np.random.default_rng(1)
    w, a, angles = generator.standard_normal(count) / 10, np.zeros(count), []  # |w| near 6, where it settles
    for step in range(700):
        random = generator.standard_normal(count)
        g = (random - w * (w @ random) / (w @ w)) / np.sqrt(w @ w) + decay * w
        a = momentum * a + g
        moved = w - rate * (g + momentum * a if nesterov else a)
        if step >= 400:
            angles.append(np.arccos(w @ moved / np.sqrt((w @ w) * (moved @ moved))))
        w = moved
    theory = steps.nesterov_angle if nesterov else steps.equilibrium_angle
    assert np.mean(angles) == pytest.approx(theory(rate, decay, momentum), rel=0.04)
