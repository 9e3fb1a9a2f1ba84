"""The moving average against NumPy."""

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
