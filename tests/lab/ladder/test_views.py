"""The loss against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from lab.ladder.evaluation import count_correct, cross_entropy_sum, view_logits


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


def linear(images, training):
    """Logits that depend on where a pixel is, so that no two views give the same."""
    assert not training
    weights = tf.constant(np.random.default_rng(5).standard_normal((6 * 6 * 3, 4)), tf.float32)
    return tf.matmul(tf.reshape(images, [-1, 6 * 6 * 3]), weights)


def test_six_views_are_weighted_as_in_airbench():
    images = np.random.default_rng(6).standard_normal((3, 6, 6, 3)).astype(np.float32)
    wider = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], "reflect")
    logits = 0.0
    for view, weight in ((images, 0.5), (wider[:, :6, :6], 0.25), (wider[:, 2:, 2:], 0.25)):
        for turned in (view, view[:, :, ::-1]):
            logits = logits + weight / 2 * linear(tf.constant(turned), False).numpy().astype(np.float64)
    np.testing.assert_allclose(view_logits(linear, tf.constant(images), "six"), logits, rtol=1e-4, atol=1e-4)


def test_flip_is_the_mean_of_an_image_and_its_mirror_image_and_none_is_the_image():
    images = np.random.default_rng(7).standard_normal((3, 6, 6, 3)).astype(np.float32)
    plain, turned = (linear(tf.constant(view), False).numpy() for view in (images, images[:, :, ::-1]))
    np.testing.assert_allclose(
        view_logits(linear, tf.constant(images), "flip"), (plain + turned) / 2, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(view_logits(linear, tf.constant(images), "none"), plain)
