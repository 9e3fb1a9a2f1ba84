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


def six_views(images):
    """The logits of the image itself, its two translations, and the three mirrored: float64 (6, N, classes)."""
    wider = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], "reflect")
    straight = [images, wider[:, :6, :6], wider[:, 2:, 2:]]
    six = [*straight, *(view[:, :, ::-1] for view in straight)]
    return np.stack([linear(tf.constant(view), False).numpy() for view in six]).astype(np.float64)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("filled", "unsure"), [(0, 3), (4, 3)])
def test_the_quarter_whose_largest_probability_is_least_gets_the_plain_mean_of_six_views(jit, filled, unsure):
    images = 0.1 * np.random.default_rng(9).standard_normal((10, 6, 6, 3)).astype(np.float32)
    images[3] = images[7] = 0.0  # every class alike: the least sure of all
    each = six_views(images)
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


def made_training(images, labels):
    """A training of `linear` whose test set, in batches of 3, is filled up with two of its images."""
    filled = np.concatenate([images, images[:2]]), np.append(labels, [-1, -1]).astype(np.int32)
    sums = tf.Variable([0.0, 5.0])  # left over from a warm-up

    def fetch():
        values = sums.numpy()
        sums.assign([0.0, 0.0])
        return values

    return Training(
        network=linear, jit=False, strategy=tf.distribute.get_strategy(), sums=sums, fetch=fetch, steps_per_test=3,
        test_batches=tf.data.Dataset.from_tensor_slices(filled).batch(3), images=SimpleNamespace(test_labels=labels),
    )  # fmt: skip


def test_the_accuracy_counts_each_test_image_once_and_no_filling():
    generator = np.random.default_rng(8)
    images = generator.standard_normal((7, 6, 6, 3)).astype(np.float32)
    logits = [linear(tf.constant(view), False).numpy() for view in (images, images[:, :, ::-1])]
    labels = (logits[0].argmax(1) + np.repeat([0, 1], [5, 2])) % 4
    hits = {"none": logits[0].argmax(1) == labels, "flip": sum(logits).argmax(1) == labels}
    training = made_training(images, labels)
    for kind, expected in hits.items():
        views.warm_up(training, kind)
        np.testing.assert_allclose(views.accuracy(training, kind), expected.mean())
    assert hits["none"].mean() != hits["flip"].mean()  # they tell the views apart


def test_of_each_test_batch_the_least_sure_image_that_is_there_gets_more_views():
    """By labels that only so are all hit: the six views' class for one image a batch, the plain one for the rest."""
    images = 0.1 * np.random.default_rng(12).standard_normal((7, 6, 6, 3)).astype(np.float32)
    images[:2] *= 0.1  # the least sure of all, which fill up the last batch too
    plain, *others = six_views(images)
    six = plain + sum(others)
    labels = plain.argmax(1)
    for start in (0, 3, 6):
        unsure = start + shares(plain[start : start + 3]).max(1).argmin()
        labels[unsure] = six[unsure].argmax()
    assert (labels != plain.argmax(1)).sum() >= 2 and labels[6] != plain[6].argmax()
    assert views.accuracy(made_training(images, labels), "unsure") == 1.0
