"""The loss against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from evaluation import count_correct, cross_entropy_sum


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_summed_smoothed_and_blind_to_filling(smoothing):
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((8, 10)) * 3
    labels = np.array([3, 1, 4, 1, 5, 9, -1, -1])
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = 0.0
    for row, label in zip(log_probabilities[:6], labels[:6], strict=True):
        expected -= (1 - smoothing) * row[label] + smoothing * row.mean()
    value = cross_entropy_sum(tf.constant(logits, tf.float32), tf.constant(labels), smoothing)
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_hits_are_counted_and_filling_never_hits():
    logits = tf.constant([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert int(count_correct(logits, tf.constant([1, 2, -1]))) == 1
