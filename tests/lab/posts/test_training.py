"""lab/posts/training.py: sizes reach a training; batches are those trained on; a probe's loss and gradient."""

import numpy as np
import pytest
import tensorflow as tf

import data
from lab.images import load
from lab.posts import training as tools

SIZES = {"width": 4, "batch_size": 16, "epochs": 2, "limit_train": 48, "holdout": 8, "of_its_own": [1, 2]}


@pytest.fixture(scope="module")
def images(small_data):
    return tools.read_images(SIZES, small_data, seed=3)


@pytest.fixture
def training(images):
    return tools.make(SIZES, images, 3, cutout=0)


def test_sizes_and_changes_reach_the_training(training, images, small_data):
    options = training.config
    assert (options.width, options.batch_size, options.seed, options.cutout) == (4, 16, 3, 0)
    assert training.precision == "float32" and not training.jit
    assert (len(images.train_labels), len(images.test_labels), training.steps_per_epoch) == (48, 8, 3)
    by_hand = load.load(small_data, seed=3, limit_train=48, holdout=8)
    np.testing.assert_array_equal(images.train_images, by_hand.train_images)


def test_batches_are_those_of_the_updates_across_epochs(images):
    """By the plan's numbers; neither cropped nor mirrored here."""
    training = tools.make(SIZES, images, 3, pad=0, flip="none", cutout=0)
    numbers = [number for epoch in (1, 2) for number in data.plan(training.config, epoch, 48)[..., 0]][1:5]
    mean, std = images.train_images.mean((0, 1, 2)), images.train_images.std((0, 1, 2))
    again = list(tools.batches(training, 1, 4))
    assert len(again) == 4
    for number, (pixels, labels) in zip(numbers, again, strict=True):
        np.testing.assert_array_equal(labels, images.train_labels[number])
        np.testing.assert_allclose(pixels, (images.train_images[number] - mean) / std, atol=1e-4)


def test_a_probes_loss_is_the_sum_of_its_images_and_nothing_changes(training):
    probe, ((pixels, labels),) = tools.Probe(training), tools.batches(training, 0, 1)
    before = [tf.convert_to_tensor(variable).numpy() for variable in training.variables]
    loss = float(probe.loss(pixels, labels))
    for one, variable in zip(before, training.variables, strict=True):
        np.testing.assert_array_equal(one, tf.convert_to_tensor(variable))
    logits = training.network(pixels, training=True).numpy().astype(float)
    of_label = logits[np.arange(16), labels] - np.log(np.exp(logits).sum(1))
    np.testing.assert_allclose(loss, -of_label.sum(), rtol=1e-5)
