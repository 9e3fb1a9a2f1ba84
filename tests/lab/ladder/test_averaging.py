"""The moving averages against NumPy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lab.ladder.averaging import Lookahead, WeightAverage


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


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("every", "keeps", "power", "start"), [(5, 0.95**5, 3.0, 0), (4, 0.7, 0.0, 3), (1, 0.5, 1.0, 10), (3, 0.0, 0.0, 12)]
)
def test_lookahead_is_the_loop_that_its_formula_says(jit, every, keeps, power, start):
    """airbench96's shape and Fulcrum's, in a run of 12 steps, whose last is not due."""
    generator, steps = np.random.default_rng(0), 12
    moves = generator.standard_normal((steps, 2, 3))
    weight, statistic = tf.keras.Variable(np.ones(3, np.float32)), tf.Variable(np.full(3, 2.0, np.float32))
    lookahead = Lookahead([weight, statistic], steps, every=every, keeps=keeps, power=power, start=start)
    update = tf.function(lookahead.update, jit_compile=jit)
    values = np.array([[1.0] * 3, [2.0] * 3])
    average = values.copy()
    for step in range(1, steps + 1):
        weight.assign_add(moves[step - 1, 0])
        statistic.assign_add(moves[step - 1, 1])
        update(tf.constant(step, tf.int64))
        values = values + moves[step - 1]
        if step == start:
            average = values.copy()
        if step > start and (step - start) % every == 0:
            share = keeps * (step / 12) ** power
            average = share * average + (1 - share) * values
            values = average.copy()
        if step == 12:
            values = average.copy()
        np.testing.assert_allclose([weight.numpy(), statistic.numpy()], values, rtol=1e-5, atol=1e-6)


TWO = """
import sys, numpy as np, tensorflow as tf
from lab.ladder.averaging import Lookahead, WeightAverage
from lab.ladder.optimizers import Nesterov
from lab.machine import devices
from train_eager import LossScale
strategy = devices.choose("cpu", logical_devices=2).strategy
with strategy.scope():
    weight = tf.keras.Variable(np.ones(1, np.float32))
    statistic = tf.keras.Variable(np.zeros(1, np.float32), trainable=False, aggregation="mean")
    followed = [weight, statistic]
    average = Lookahead(followed, 5, every=2, keeps=0.5)
    if sys.argv[1] == "average":
        average = WeightAverage(followed, 0.5, 2)
    optimizer = LossScale(Nesterov(0.1, 0.0, average=average), initial_scale=64.0)
    optimizer.build([weight])
@tf.function
def step(sick):
    number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
    statistic.assign(statistic + tf.cast(1 + number, tf.float32))
    gradient = tf.where(sick == number, np.float32(np.inf), optimizer.scale_loss(0.5))
    optimizer.apply([gradient[None]], [weight])
for sick in (-1, 1, -1, 0, -1, -1):
    tf.function(lambda: strategy.run(step, (tf.constant(sick),)))()
for variable in (weight, statistic, *average.averages, optimizer.dynamic_scale):
    print(*[np.squeeze(value.numpy()) for value in strategy.experimental_local_results(variable.value)])
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["average", "lookahead"])
def test_two_replicas_skip_what_overflows_on_either_and_keep_one_average(kind):
    """Steps 2 and 4 of 6 overflow, on the second replica and on the first; the others' gradients sum to 1. The
    statistic grows by 1 on the one replica and by 2 on the other, in each of the 6 steps."""
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", TWO, kind]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    values = np.array([line.split() for line in done.stdout.splitlines()], float)
    # The average moves after the second and the fourth sound step, of which the third and the sixth are.
    if kind == "average":
        expected = [0.6, 9.0, 0.25 * (0.25 * 1.0 + 0.75 * 0.8) + 0.75 * 0.6, 0.25 * (0.75 * 4.5) + 0.75 * 9.0]
    else:  # 1, 0.9, 0.8 -> 0.9, 0.8, 0.7 -> 0.8; and 0, 1.5, 3, 4.5 -> 2.25, 3.75, 5.25, 6.75 -> 4.5
        expected = [0.8, 4.5, 0.8, 4.5]
    np.testing.assert_allclose(values, np.stack([[*expected, 16.0]] * 2, 1), rtol=1e-6)
