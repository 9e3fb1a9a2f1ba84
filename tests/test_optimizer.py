"""Nesterov momentum against hand-worked steps and NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from optimizer import Nesterov


def test_two_steps_by_hand():
    weight = tf.Variable([1.0])
    optimizer = Nesterov(0.1, momentum=0.9)
    optimizer.apply([tf.constant([2.0])], [weight])
    # a = 0.9 * 0 + 2 = 2;  w = 1 - 0.1 (2 + 0.9 * 2) = 0.62
    np.testing.assert_allclose(weight.numpy(), [0.62], rtol=1e-6)
    optimizer.apply([tf.constant([-1.0])], [weight])
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
    optimizer = Nesterov(Doubling(), momentum=0.9)
    optimizer.build([weight])
    apply = tf.function(lambda gradient: optimizer.apply([gradient], [weight]), jit_compile=jit)
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
        optimizer = Nesterov(0.1)
        optimizer.build([weight])
        state = tf.train.Checkpoint(weight=weight, optimizer=optimizer)
        if checkpoint:
            state.read(checkpoint).assert_consumed()
        for _ in range(steps):
            optimizer.apply([2.0 * weight], [weight])
        return weight.numpy(), state

    _, state = trained(2)
    path = state.write(str(tmp_path / "state"))
    np.testing.assert_array_equal(trained(3, path)[0], trained(5)[0])
