"""The moving average against NumPy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lab.ladder.averaging import WeightAverage


@pytest.mark.parametrize("jit", [False, True])
def test_it_moves_every_fifth_step_and_swaps(jit):
    generator = np.random.default_rng(0)
    values = generator.standard_normal((12, 3)).astype(np.float32)
    variable = tf.Variable(values[0])
    average = WeightAverage([variable], keeps=0.9, every=5)
    update = tf.function(average.update, jit_compile=jit)
    expected = values[0].astype(np.float64)
    for step in range(1, 12):
        variable.assign(values[step])
        update(tf.constant(step, tf.int64))
        if step in (5, 10):
            expected = 0.9**5 * expected + (1 - 0.9**5) * values[step]
    average.swap()
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)
    np.testing.assert_array_equal(average.averages[0].numpy(), values[11])
    average.swap()
    with pytest.raises(KeyError), average.swapped():
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)
        raise KeyError
    np.testing.assert_array_equal(variable.numpy(), values[11])


TWO = """
import numpy as np, tensorflow as tf
from lab.ladder.averaging import WeightAverage
from lab.ladder.optimizers import Nesterov
from lab.machine import devices
from train_eager import LossScale
strategy = devices.choose("cpu", logical_devices=2).strategy
with strategy.scope():
    weight = tf.keras.Variable(np.ones(1, np.float32))
    average = WeightAverage([weight], keeps=0.5, every=2)
    optimizer = LossScale(Nesterov(0.1, 0.0, average=average), initial_scale=64.0)
    optimizer.build([weight])
@tf.function
def step(sick):
    number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
    gradient = tf.where(sick == number, np.float32(np.inf), optimizer.scale_loss(0.5))
    optimizer.apply([gradient[None]], [weight])
for sick in (-1, 1, -1, 0, -1, -1):
    tf.function(lambda: strategy.run(step, (tf.constant(sick),)))()
for variable in (weight, average.averages[0], optimizer.dynamic_scale):
    print(*[np.squeeze(value.numpy()) for value in strategy.experimental_local_results(variable.value)])
"""


@pytest.mark.long
def test_two_replicas_skip_what_overflows_on_either_and_keep_one_average():
    """Steps 2 and 4 of 6 overflow, on the second replica and on the first; the others' gradients sum to 1."""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", TWO], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    values = np.array([line.split() for line in done.stdout.splitlines()], float)
    after_two = 0.25 * 1.0 + 0.75 * 0.8
    expected = [0.6, 0.25 * after_two + 0.75 * 0.6, 16.0]
    np.testing.assert_allclose(values, np.stack([expected, expected], 1), rtol=1e-6)
