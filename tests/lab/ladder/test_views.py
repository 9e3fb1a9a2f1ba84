"""Views of an image: their logits against NumPy, and the accuracy that they give."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from lab.ladder import views
from lab.ladder.views import view_logits


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


def shares(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("filled", "unsure"), [(0, 3), (4, 3)])
def test_the_quarter_whose_largest_probability_is_least_gets_the_plain_mean_of_six_views(jit, filled, unsure):
    images = 0.1 * np.random.default_rng(9).standard_normal((10, 6, 6, 3)).astype(np.float32)
    images[3] = images[7] = 0.0  # every class alike: the least sure of all
    wider = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], "reflect")
    views_ = [images, wider[:, :6, :6], wider[:, 2:, 2:]]
    views_ += [view[:, :, ::-1] for view in views_]
    each = np.stack([linear(tf.constant(view), False).numpy() for view in views_]).astype(np.float64)
    counted = np.arange(10) >= filled  # image 3 fills up the batch in the second case
    order = np.argsort(np.where(counted, shares(each[0]).max(1), 2.0))
    expected = each[0].copy()
    expected[order[:unsure]] = each.mean(0)[order[:unsure]]
    run = tf.function(lambda images, counted: view_logits(linear, images, "unsure", counted), jit_compile=jit)
    found = run(tf.constant(images), tf.constant(counted)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert 7 in order[:unsure] and (3 in order[:unsure]) == (filled == 0)


@pytest.mark.parametrize(("count", "seen"), [(8, 8 + 2 * 5), (10, 10 + 3 * 5), (1, 1 + 5)])
def test_views_of_the_unsure_cost_five_views_of_a_quarter(count, seen):
    batches = []

    def counting(images, training):
        batches.append(len(images))
        return linear(images, training)

    images = np.random.default_rng(10).standard_normal((count, 6, 6, 3)).astype(np.float32)
    found = view_logits(counting, tf.constant(images), "unsure")
    assert sum(batches) == seen and found.shape == (count, 4)
    free = tf.function(  # the number of images is known only when it runs, as in an export
        lambda images: view_logits(linear, images, "unsure"), input_signature=[tf.TensorSpec([None, 6, 6, 3])]
    )
    np.testing.assert_allclose(free(images), found, rtol=1e-4, atol=1e-5)


class Training(SimpleNamespace):
    """What of a training the views use; told from another by identity."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def test_the_accuracy_counts_each_test_image_once_and_no_filling():
    generator = np.random.default_rng(8)
    images = generator.standard_normal((7, 6, 6, 3)).astype(np.float32)
    logits = [linear(tf.constant(view), False).numpy() for view in (images, images[:, :, ::-1])]
    labels = (logits[0].argmax(1) + np.repeat([0, 1], [5, 2])) % 4
    filled = np.concatenate([images, images[:2]]), np.append(labels, [-1, -1]).astype(np.int32)
    hits = {"none": logits[0].argmax(1) == labels, "flip": sum(logits).argmax(1) == labels}
    sums = tf.Variable([0.0, 5.0])  # left over from a warm-up

    def fetch():
        values = sums.numpy()
        sums.assign([0.0, 0.0])
        return values

    training = Training(
        network=linear, jit=False, strategy=tf.distribute.get_strategy(), sums=sums, fetch=fetch, steps_per_test=3,
        test_batches=tf.data.Dataset.from_tensor_slices(filled).batch(3), images=SimpleNamespace(test_labels=labels),
    )  # fmt: skip
    for kind, expected in hits.items():
        views.warm_up(training, kind)
        np.testing.assert_allclose(views.accuracy(training, kind), expected.mean())
    assert hits["none"].mean() != hits["flip"].mean()  # they tell the views apart
