"""Smaller training images: NumPy makes the same ones, and each side has one compiled step."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import data
from lab import assemble, drive
from lab.base.errors import UserError
from lab.ladder import describe, networks
from lab.machine import sides
from lab.machine.resident import HostBatches, ResidentBatches

TEXT = "24x3 28x2 32"


def resized(images, side):
    """Bilinear interpolation of images (N, H, W, C), pixel by pixel, at the centres of side x side equal parts."""
    count, height, width, channels = images.shape
    made = np.zeros([count, side, side, channels])
    for row in range(side):
        for column in range(side):
            y, x = (row + 0.5) * height / side - 0.5, (column + 0.5) * width / side - 0.5
            top, left = int(np.floor(y)), int(np.floor(x))
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = images[:, top, left] * (1 - (x - left)) + images[:, top, right] * (x - left)
            lower = images[:, below, left] * (1 - (x - left)) + images[:, below, right] * (x - left)
            made[:, row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return made


# ---- the text ----------------------------------------------------------------------------------------------


def test_each_epoch_has_the_side_of_its_entry_and_the_last_goes_on():
    assert [sides.of_epoch(TEXT, epoch) for epoch in range(1, 9)] == [24, 24, 24, 28, 28, 32, 32, 32]
    assert [sides.of_epoch("", epoch) for epoch in (1, 100)] == [32, 32]


@pytest.mark.parametrize("old, new, text", [(6, 12, "24x6 28x4 32"), (6, 2, "24x1 32"), (6, 1, "32"), (6, 6, TEXT)])
def test_with_other_epochs_each_side_keeps_its_share(old, new, text):
    assert sides.stretched(TEXT, old, new) == text
    assert sides.stretched("", old, new) == ""
    assert sides.of_epoch(text, new) == 32  # the end is at full size, however short


@pytest.mark.parametrize(
    "text", ["24x3", "x", "24 32x2", "24x0 32", "0x1 32", "40", "24x3,32", "-8", "24x1.5 32", "٢٤"]
)
def test_a_text_that_is_no_list_of_sides_is_refused_in_a_line(text):
    with pytest.raises(UserError, match=r"^--sides ") as error:
        sides.parse(text)
    assert repr(text) in str(error.value) and "\n" not in str(error.value)


def test_sides_that_the_run_does_not_come_to_are_refused():
    with pytest.raises(UserError, match=r"its last side after 5 epochs, and --epochs is 5; give more epochs, or fewer"):
        assemble.configure({"sides": TEXT, "epochs": 5})
    assert assemble.configure({"sides": TEXT, "epochs": 6}).sides == TEXT


# ---- the images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 20, 24, 28, 31, 32])
def test_images_are_interpolated_as_numpy_and_tensorflow_do(side):
    images = np.random.default_rng(side).standard_normal((2, 32, 32, 3))
    matrix = sides.bilinear(side).astype(np.float64)
    made = np.einsum("nhwc,sh,tw->nstc", images, matrix, matrix)
    np.testing.assert_allclose(made, resized(images, side), atol=1e-5)
    np.testing.assert_allclose(made, tf.image.resize(images, [side, side], "bilinear", antialias=False), atol=1e-5)


@pytest.mark.parametrize("kind", [HostBatches, ResidentBatches])
def test_a_batch_is_the_cropped_flipped_and_cut_out_one_made_smaller(kind):
    generator = np.random.default_rng(3)
    pixels, labels = generator.integers(0, 256, (16, 32, 32, 3), np.uint8), np.arange(16, dtype=np.int32) % 10
    images = data.Images(pixels, labels, pixels[:2], labels[:2], tuple("abcdefghij"))
    draws = {"batch_size": 8, "pad": 4, "flip": "random", "cutout": 8, "seed": 5, "draws": "each"}
    draws |= {"across_epochs": False, "brightness": 0.1, "contrast": 0.1}  # of the pixels at full size

    def made(text, epoch):
        batches = kind(SimpleNamespace(**draws, sides=text), images, tf.distribute.OneDeviceStrategy("/cpu:0"))
        decode = tf.function(batches.decode)
        return [decode(*batch) for batch in batches.open(epoch)]

    for epoch, side in ((3, 24), (4, 28), (6, 32)):
        for (small, marks), (full, same) in zip(made(TEXT, epoch), made("", epoch), strict=True):
            np.testing.assert_array_equal(marks, same)
            assert small.shape == (8, side, side, 3) and small.dtype == tf.float32
            np.testing.assert_allclose(small, resized(full.numpy(), side), atol=1e-5)


# ---- the training ------------------------------------------------------------------------------------------


def test_each_side_is_compiled_once_before_the_clock_and_trained_on_in_its_epochs(small_data):
    """At a rate of 0 the weights stay, so an epoch's loss can be made again from images that NumPy made smaller."""
    plain = {"learning_rate": 0.0, "weight_decay": 0.0, "pad": 0, "cutout": 0, "flip": "none", "device": "cpu"}
    options = {"data": small_data, "network": "conv3", "width": 4, "batch_size": 16, "epochs": 2, "jit": False, **plain}
    options = assemble.configure({**options, "sides": "16x1 32"})
    training = assemble.make(options)
    drive.warm_up(training)
    traces = (training.train_steps, training.train_step)
    assert [step.experimental_get_tracing_count() for step in traces] == [2, 2]
    rows = [moment.row for moment in training.run() if moment.row]
    assert [step.experimental_get_tracing_count() for step in traces] == [2, 2]
    assert training.test_step.experimental_get_tracing_count() == 1
    mean, std = data.mean_std(training.images.train_images)
    images = data.standardise(training.images.train_images, mean, std)
    for row, side in zip(rows, (16, 32), strict=True):
        losses = []
        for batch in data.plan(options, row["epoch"], 80)[..., 0]:
            logits = training.network(resized(images[batch], side).astype(np.float32), training=True).numpy()
            exponents = np.exp(logits - logits.max(1, keepdims=True))
            right = exponents[np.arange(16), training.images.train_labels[batch]]
            losses.extend(-np.log(right / exponents.sum(1)))
        assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert abs(rows[0]["train_loss"] - rows[1]["train_loss"]) > 1e-3  # the sides are told apart


def test_the_work_of_a_run_is_that_of_its_epochs_sides(small_data):
    """The speedrun's multiply-adds by hand: its convolutions are of 1, 1/2, 1/2, 1/4, 1/4 and 1/8 of side - 1."""
    options = {"recipe": "speedrun", "data": small_data, "batch_size": 16, "device": "cpu", "jit": False}
    training = assemble.make(assemble.configure({**options, "sides": "24x3 28x3 32"}))

    def by_hand(side):
        one, two, four, eight = ((side - 1) // size for size in (1, 2, 4, 8))
        pairs = ((one, 24, 64), (two, 64, 64), (two, 64, 256), (four, 256, 256), (four, 256, 256), (eight, 256, 256))
        return 12 * 24 * one**2 + sum(9 * side**2 * c * k for side, c, k in pairs) + 256 * 4  # classes

    assert training.multiply_adds(3) == by_hand(24)
    assert training.multiply_adds(8) == pytest.approx((3 * by_hand(24) + 3 * by_hand(28) + 2 * by_hand(32)) / 8)
    assert training.multiply_adds(3) / by_hand(32) == pytest.approx(0.52, abs=0.01)


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize("fast", [False, True])
def test_every_network_takes_images_of_24_and_28_pixels(name, fast):
    network = networks.make(assemble.configure({"network": name, "width": 4}), 10, fast=fast)
    for side in (24, 28):
        assert network(tf.zeros([2, side, side, 3]), training=True).shape == (2, 10)


@pytest.mark.parametrize("name, least", [("davidnet", 8), ("speednet", 9)])
def test_a_side_of_which_the_pools_leave_nothing_is_refused_with_one_that_they_do(name, least):
    network = networks.make(assemble.configure({"network": name, "width": 4}), 10, fast=False)
    assert set(describe.of_sides(network, f"{least}x1 32")) == {least, 32}
    for small in (least - 1, 1):
        with pytest.raises(UserError, match=f"nothing of {small} pixels; give {least} or more"):
            describe.of_sides(network, f"{small}x1 32")
