"""The optimizers against hand-worked steps and NumPy."""

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

import train_eager
from lab import schedules as schedule
from lab.ladder import optimizers as optimizer
from lab.ladder import recipes
from lab.ladder.optimizers import EpochRate, Lars, Muon, Nesterov, orthogonalise
from lab.schedules import PiecewiseLinear


def test_two_steps_by_hand():
    weight = tf.Variable([1.0])
    nesterov = Nesterov(0.1, momentum=0.9)
    nesterov.apply([tf.constant([2.0])], [weight])
    # a = 0.9 * 0 + 2 = 2;  w = 1 - 0.1 (2 + 0.9 * 2) = 0.62
    np.testing.assert_allclose(weight.numpy(), [0.62], rtol=1e-6)
    nesterov.apply([tf.constant([-1.0])], [weight])
    # a = 0.9 * 2 - 1 = 0.8;  w = 0.62 - 0.1 (-1 + 0.9 * 0.8) = 0.648
    np.testing.assert_allclose(weight.numpy(), [0.648], rtol=1e-6)


class Doubling(tf.keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.01 * 2.0 ** tf.cast(step, tf.float32)


@pytest.mark.parametrize("jit", [False, True])
def test_the_rate_stays_outside_the_accumulator_while_it_rises(jit):
    generator = np.random.default_rng(0)
    start, gradients = generator.standard_normal((3, 2)), generator.standard_normal((6, 3, 2))
    weight = tf.Variable(start.astype(np.float32))
    nesterov = Nesterov(Doubling(), momentum=0.9)
    nesterov.build([weight])
    apply = tf.function(lambda gradient: nesterov.apply([gradient], [weight]), jit_compile=jit)
    outside, velocity = start.copy(), np.zeros((3, 2))
    inside, keras_velocity = start.copy(), np.zeros((3, 2))
    for step, gradient in enumerate(gradients):
        apply(tf.constant(gradient, tf.float32))
        rate = 0.01 * 2.0**step
        velocity = 0.9 * velocity + gradient
        outside = outside - rate * (gradient + 0.9 * velocity)
        keras_velocity = 0.9 * keras_velocity - rate * gradient
        inside = inside + 0.9 * keras_velocity - rate * gradient
    np.testing.assert_allclose(weight.numpy(), outside, rtol=1e-5)
    assert np.abs(outside - inside).max() > 0.05  # the two forms do differ here


def test_its_state_is_checkpointed(tmp_path):
    def trained(steps, checkpoint=None):
        weight = tf.Variable([1.0, -2.0])
        nesterov = Nesterov(0.1)
        nesterov.build([weight])
        state = tf.train.Checkpoint(weight=weight, optimizer=nesterov)
        if checkpoint:
            state.read(checkpoint).assert_consumed()
        for _ in range(steps):
            nesterov.apply([2.0 * weight], [weight])
        return weight.numpy(), state

    _, state = trained(2)
    path = state.write(str(tmp_path / "state"))
    np.testing.assert_array_equal(trained(3, path)[0], trained(5)[0])


def test_the_rate_inside_the_accumulator_is_keras_own_form():
    generator = np.random.default_rng(1)
    gradients = generator.standard_normal((5, 4)).astype(np.float32)
    ours, theirs = tf.Variable(tf.ones(4)), tf.Variable(tf.ones(4))
    mine = Nesterov(Doubling(), momentum=0.9, rate_inside=True)
    keras = tf.keras.optimizers.SGD(Doubling(), momentum=0.9, nesterov=True)
    for gradient in gradients:
        mine.apply([tf.constant(gradient)], [ours])
        keras.apply([tf.constant(gradient)], [theirs])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5)


def test_each_variable_may_have_a_rate_of_its_own():
    first, second = tf.Variable([1.0]), tf.Variable([1.0])
    rates = [
        EpochRate(PiecewiseLinear([(0, 0.0), (1, 1.0)]), 4, 2.0),
        EpochRate(PiecewiseLinear([(0, 3.0)]), 4, 1.0),
    ]
    nesterov = Nesterov(rates[0], momentum=0.0, rates=rates)
    nesterov.apply([tf.constant([1.0]), tf.constant([1.0])], [first, second])
    # The first update reads the schedule at 1/4 epoch: 0.25, over 2.
    np.testing.assert_allclose([first.numpy()[0], second.numpy()[0]], [1 - 0.125, 1 - 3.0])


def test_lars_scales_each_filters_rate():
    generator = np.random.default_rng(2)
    start = generator.standard_normal((3, 3, 2, 5))
    gradients = generator.standard_normal((3, 3, 3, 2, 5))
    variable, flat = tf.Variable(start.astype(np.float32)), tf.Variable([2.0])
    lars = Lars(0.1, 0.9, rate_inside=True, decays=[0.5, 0.5])
    weights, velocity, other, other_velocity = start.copy(), 0.0, 2.0, 0.0
    for gradient in gradients:
        raw, slope = tf.constant(gradient, tf.float32), 1.0
        lars.apply([raw + 0.5 * variable, slope + 0.5 * flat], [variable, flat])
        norms = [np.sqrt(np.square(values).sum((0, 1, 2))) for values in (weights, gradient)]
        rate = 0.1 * norms[0] / (norms[1] + 1e-2)
        move = -rate * (gradient + 0.5 * weights)
        velocity = 0.9 * velocity + move
        weights = weights + move + 0.9 * velocity
        move = -0.1 * (slope + 0.5 * other)
        other_velocity = 0.9 * other_velocity + move
        other = other + move + 0.9 * other_velocity
    np.testing.assert_allclose(variable.numpy(), weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(flat.numpy(), [other], rtol=1e-5)


def newton_schulz(matrix, steps=3):
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5)])
@pytest.mark.parametrize("jit", [False, True])
def test_newton_schulz_is_numpys_in_float64_and_evens_the_singular_values(shape, jit):
    generator = np.random.default_rng(3)
    count = min(shape)
    left, right = (np.linalg.qr(generator.standard_normal((side, count)))[0] for side in shape)
    matrix = left * np.linspace(0.4, 1.0, count) @ right.T  # well conditioned
    run = tf.function(orthogonalise, jit_compile=jit)
    result = run(tf.constant(matrix, tf.float32)).numpy()
    np.testing.assert_allclose(result, newton_schulz(matrix), atol=2e-5)
    found = np.linalg.svd(result.astype(np.float64), compute_uv=False)
    assert found.min() > 0.65 and found.max() < 1.25
    # The singular vectors stay.
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    core = u.T @ result @ v.T
    np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-4)


def test_muon_renormalises_the_filters_and_moves_them_along_the_orthogonalised_momentum():
    generator = np.random.default_rng(4)
    start = generator.standard_normal((3, 3, 4, 6))
    gradients = generator.standard_normal((3, *start.shape))
    filters, shift = tf.Variable(start.astype(np.float32)), tf.Variable([1.0])
    muon = Muon(0.24, 0.85, filter_momentum=0.6)
    weights, velocity, other, other_velocity = start.copy(), 0.0, 1.0, 0.0
    for gradient in gradients:
        muon.apply([tf.constant(gradient, tf.float32), tf.constant([0.5])], [filters, shift])
        velocity = 0.6 * velocity + gradient
        direction = (gradient + 0.6 * velocity).transpose(3, 2, 0, 1).reshape(6, -1)  # PyTorch's order
        update = newton_schulz(direction).reshape(6, 4, 3, 3).transpose(2, 3, 1, 0)
        weights = weights * np.sqrt(6) / np.linalg.norm(weights) - 0.24 * update
        other_velocity = 0.85 * other_velocity + 0.5
        other -= 0.24 * (0.5 + 0.85 * other_velocity)
    np.testing.assert_allclose(filters.numpy(), weights, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(shift.numpy(), [other], rtol=1e-5)


class Named(NamedTuple):
    """What plans need of a variable."""

    path: str
    shape: tuple


def test_the_speedruns_rates_at_every_step_are_the_originals():
    variables = [
        Named("net/whiten/bias", (24,)), Named("net/group1/conv/kernel", (3, 3, 24, 64)),
        Named("net/group1/norm/shift", (64,)), Named("net/head/kernel", (256, 10)),
    ]  # fmt: skip
    options = recipes.resolve("speedrun", train_eager.constants())
    plans = optimizer.plans(options, variables, schedule.parse(options.knots))
    made = optimizer.make(options, plans, 25)
    found = np.array([[float(rate(step)) for step in range(200)] for rate in made.rates])
    steps = np.arange(200)
    expected = [
        0.053 * np.maximum(0, 1 - steps / 75), 0.24 * (1 - steps / 200),
        0.053 * (1 - steps / 200), 0.67 * (1 - steps / 200),
    ]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    # In units of the summed loss the decay is 2e-6 * 2000 over the rate, and the filters have none.
    decays = [plan.decay * options.batch_size for plan in plans]
    np.testing.assert_allclose(decays, [0.004 / 0.053, 0, 0.004 / 0.053, 0.004 / 0.67])


def test_post_8_moves_the_shifts_64_times_as_fast():
    variables = [Named("net/norm/shift", (8,)), Named("net/conv/kernel", (3, 3, 3, 8))]
    options = recipes.resolve("tricks-frozen", train_eager.constants())
    plans = optimizer.plans(options, variables, schedule.triangle(17, 3.4, 0.6))
    rates = [float(rate(10)) for rate in optimizer.make(options, plans, 97).rates]
    plain = np.interp(11 / 97, [0, 3.4, 17], [0, 0.6, 0]) / 512
    np.testing.assert_allclose(rates, [64 * plain, plain], rtol=1e-5)
    assert [plan.decay for plan in plans] == [5e-4 / 64, 5e-4]
