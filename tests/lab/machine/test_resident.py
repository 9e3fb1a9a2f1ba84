"""Batches made on the device are the core's, and NumPy's."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import data
from lab.machine import resident
from lab.machine.resident import HostBatches, ResidentBatches, grouped, reflected, take, take_by_products

COUNT, BATCH = 40, 8
STEADY = {"brightness": 0.0, "contrast": 0.0, "across_epochs": False, "sides": ""}


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(3)
    pixels = generator.integers(0, 256, (COUNT, 32, 32, 3)).astype(np.uint8)
    labels = generator.integers(0, 10, COUNT).astype(np.int32)
    return data.Images(pixels, labels, pixels[:7], labels[:7], tuple("abcdefghij"))


def config(**changes):
    return SimpleNamespace(
        **{"batch_size": BATCH, "pad": 4, "flip": "random", "cutout": 8, "seed": 5, "draws": "each"} | STEADY | changes
    )


def one_device():
    return tf.distribute.OneDeviceStrategy("/cpu:0")


def by_numpy(images, row, pad, cutout, mirror):
    """One image by hand, float64: pad, crop, mirror, standardise, cut out."""
    number, top, left, _, cut_top, cut_left = row
    pixels = images.train_images / 255.0
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    padded = np.pad(pixels[number], ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    window = padded[top : top + 32, left : left + 32]
    result = ((window[:, ::-1] if mirror else window) - mean) / std
    result[cut_top : cut_top + cutout, cut_left : cut_left + cutout] = 0.0
    return result


@pytest.mark.parametrize("changes", [{}, {"flip": "none", "pad": 0, "cutout": 0}, {"flip": "alternating", "pad": 7}])
@pytest.mark.parametrize("products", [False, True])
def test_a_batch_is_what_numpy_makes_of_the_plan(images, changes, products):
    settings = config(**changes)
    batches = ResidentBatches(settings, images, one_device(), products=products)
    for rows, (sent,) in zip(batches.rows(2), batches.open(2), strict=True):
        np.testing.assert_array_equal(sent, rows)
        made, labels = batches.decode(sent)
        np.testing.assert_array_equal(labels, images.train_labels[rows[:, 0]])
        for image, row in zip(made.numpy(), rows, strict=True):
            expected = by_numpy(images, row, settings.pad, settings.cutout, row[3])
            np.testing.assert_allclose(image, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [HostBatches, ResidentBatches])
@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_a_column_that_somebody_adds_to_the_plan_comes_to_make(images, kind, jitter, monkeypatch):
    """As docs/changing.md has it: an edited data.plan and data.Batches.make, here with a factor for each image."""
    planned, made = resident.plan, data.Batches.make
    seven = ((0, 0), (0, 0), (0, 1))
    monkeypatch.setattr(resident, "plan", lambda *what: np.pad(planned(*what), seven, constant_values=7))

    def make(batches, rows):
        pixels, labels = made(batches, rows[:, :6])
        return pixels, labels * rows[:, 6]

    plain = kind(config(), images, one_device())
    _, labels = plain.make(tf.constant(plain.rows(2)[0][:, :6]))
    monkeypatch.setattr(data.Batches, "make", make)
    batches = kind(config(brightness=jitter), images, one_device())
    _, changed = batches.make(tf.constant(batches.rows(2)[0]))
    np.testing.assert_array_equal(changed, 7 * labels.numpy())


@pytest.mark.parametrize("kind", [HostBatches, ResidentBatches])
def test_jitter_is_numpys_of_the_draws(images, kind):
    """(image + b u) (1 + c v) of the image as it is without, u and v uniform in +-1 for each image of an epoch."""
    plain, settings = config(), config(brightness=0.3, contrast=0.2)
    still, jittered = (kind(each, images, one_device()) for each in (plain, settings))
    draws = np.random.default_rng([5, 2, 2]).uniform(-1, 1, (COUNT // BATCH, BATCH, 2)).astype(np.float32)
    rows = jittered.rows(2)
    assert rows.shape == (COUNT // BATCH, BATCH, 8)
    np.testing.assert_array_equal(rows[..., :6], still.rows(2))
    np.testing.assert_array_equal(np.ascontiguousarray(rows[..., 6:]).view(np.float32), draws)
    for row, other, (u, v) in zip(rows, still.rows(2), draws.transpose(0, 2, 1), strict=True):
        made, labels = tf.function(jittered.make, jit_compile=True)(tf.constant(row))
        before, same = still.make(tf.constant(other))
        np.testing.assert_array_equal(labels, same)
        shape = (BATCH, 1, 1, 1)
        expected = (before.numpy() + 0.3 * u.reshape(shape)) * (1 + 0.2 * v.reshape(shape))
        np.testing.assert_allclose(made, expected, atol=2e-6)


def test_jitter_is_drawn_anew_in_every_epoch_and_for_every_seed(images):
    count = 20_000
    labels = np.zeros(count, np.int32)
    many = data.Images(np.zeros((count, 32, 32, 3), np.uint8), labels, images.test_images, labels[:7], ("a",))

    def draws(epoch, **changes):
        batches = object.__new__(HostBatches)  # without its gigabyte
        batches.config, batches.images = config(batch_size=count, brightness=1.0, **changes), many
        return np.ascontiguousarray(batches.rows(epoch)[0, :, 6:]).view(np.float32)

    first = draws(1)
    assert np.abs(first).max() <= 1 and abs(first.mean()) < 0.02 and first.std() == pytest.approx(3**-0.5, rel=0.02)
    for other in (draws(2), draws(1, seed=6), first[:, ::-1]):
        assert abs(np.corrcoef(first[:, 0], other[:, 0])[0, 1]) < 0.03


def test_grouped_draws_are_equal_groups_each_of_one_draw():
    """Post 8's: each of the 81 crops and of 200 of the 625 squares as often as any other, exactly half mirrored."""
    count = 50_000
    settings = config(draws="grouped", batch_size=500)
    drawn = grouped(settings, 3, count)
    assert drawn.shape == (count, 5) and drawn.dtype == np.int32
    for left, options, groups in ((0, 81, 81), (3, 625, 200)):
        side = int(options**0.5)
        pairs = drawn[:, left : left + 2]
        assert pairs.min() >= 0 and pairs.max() < side
        _, counts = np.unique(pairs[:, 0] * side + pairs[:, 1], return_counts=True)
        assert len(counts) == groups and set(counts) <= {count // groups, -(-count // groups)}
    assert drawn[:, 2].sum() == count // 2
    # Each with a shuffle of its own: mirrored and not within one crop's group, and neighbours in no order.
    for column in (0, 1, 3, 4):
        assert abs(np.corrcoef(drawn[:, 2], drawn[:, column])[0, 1]) < 0.03
        assert abs(np.corrcoef(drawn[1:, column], drawn[:-1, column])[0, 1]) < 0.03
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 3])[0, 1]) < 0.03
    np.testing.assert_array_equal(drawn, grouped(settings, 3, count))
    assert (drawn != grouped(settings, 4, count)).any() and (drawn != grouped(config(seed=6), 3, count)).any()
    assert grouped(config(flip="none"), 1, 40)[:, 2].sum() == 0


def test_the_plan_has_each_images_grouped_draws_and_the_same_order(images):
    plain, settings = config(), config(draws="grouped")
    rows = HostBatches(settings, images, one_device()).rows(2)
    np.testing.assert_array_equal(rows[..., 0], data.plan(plain, 2, COUNT)[..., 0])
    drawn = grouped(settings, 2, COUNT)
    for number, *rest in rows.reshape(-1, 6):
        assert list(drawn[number]) == rest
    alternating = HostBatches(config(draws="grouped", flip="alternating"), images, one_device())
    first, second = (alternating.rows(epoch).reshape(-1, 6) for epoch in (1, 2))
    flips = [dict(zip(rows[:, 0], rows[:, 3], strict=True)) for rows in (first, second)]
    assert all(flips[0][number] != flips[1][number] for number in range(COUNT))


@pytest.mark.parametrize("flip", ["random", "alternating"])
def test_host_and_device_make_the_same_batches(images, flip):
    host = HostBatches(config(flip=flip), images, one_device())
    device = ResidentBatches(config(flip=flip), images, one_device())
    compiled = tf.function(device.decode, jit_compile=True)
    steps = 0
    for (pixels, labels), (rows,) in zip(host.open(3, 1), device.open(3, 1), strict=True):
        other_pixels, other_labels = compiled(rows)
        np.testing.assert_allclose(other_pixels, pixels, atol=3e-7)
        np.testing.assert_array_equal(other_labels, labels)
        steps += 1
    assert steps == COUNT // BATCH - 1


def test_alternating_flips_show_every_image_both_ways_in_two_epochs(images):
    batches = HostBatches(config(flip="alternating", batch_size=COUNT), images, one_device())
    mirrored = np.empty([5, COUNT], int)
    for epoch in range(1, 5):
        rows = batches.rows(epoch)[0]
        mirrored[epoch, rows[:, 0]] = rows[:, 3]
    assert (mirrored[1] + mirrored[2] == 1).all() and (mirrored[1] == mirrored[3]).all()
    assert 8 < mirrored[1].sum() < 32  # a half: of 40 coins, 4 deviations either way


@pytest.mark.parametrize("draws", ["each", "grouped"])
def test_epochs_that_leave_no_image_over_are_one_stream_of_whole_passes(images, draws):
    """Batches of 12 of 40 images: an epoch has 3 of them, and of 10 epochs' 360 images 9 passes are made."""
    batches = HostBatches(
        config(batch_size=12, across_epochs=True, flip="alternating", draws=draws), images, one_device()
    )
    epochs = [batches.rows(epoch) for epoch in range(1, 11)]
    assert {rows.shape for rows in epochs} == {(3, 12, 6)} and epochs[0].dtype == np.int32
    passes = np.concatenate(epochs).reshape(9, COUNT, 6)
    for rows in passes:
        np.testing.assert_array_equal(np.sort(rows[:, 0]), np.arange(COUNT))
    orders = {tuple(rows[:, 0]) for rows in passes}
    crops = {tuple(rows[np.argsort(rows[:, 0]), 1]) for rows in passes}
    assert len(orders) == len(crops) == 9
    mirrored = np.stack([rows[np.argsort(rows[:, 0]), 3] for rows in passes])
    assert (mirrored[:-1] + mirrored[1:] == 1).all()  # every image in every second pass
    fresh = HostBatches(batches.config, images, one_device())  # from seed and epoch alone
    np.testing.assert_array_equal(fresh.rows(7), epochs[6])
    sent = [labels.numpy() for _, labels in fresh.open(7, 1)]
    np.testing.assert_array_equal(sent, images.train_labels[epochs[6][1:, :, 0]])
    assert batches.rows(0).shape == (3, 12, 6)  # which the warm-up takes a batch of


def test_reflection_by_index_is_numpys_padding():
    padded = np.pad(np.arange(32), 9, mode="reflect")
    np.testing.assert_array_equal(reflected(tf.range(-9, 41), 32), padded)


def test_products_with_matrices_choose_the_same_pixels():
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (3, 8, 6, 3)).astype(np.uint8)
    rows, columns = generator.integers(0, 8, (3, 8)), generator.integers(0, 6, (3, 6))
    expected = np.stack([image[r][:, c] for image, r, c in zip(images, rows, columns, strict=True)])
    rows, columns = tf.constant(rows, tf.int32), tf.constant(columns, tf.int32)
    np.testing.assert_array_equal(take(tf.constant(images), rows, columns), expected)
    np.testing.assert_array_equal(tf.cast(take_by_products(tf.constant(images), rows, columns), tf.int32), expected)
