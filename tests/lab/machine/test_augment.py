"""Crops, flips and cutouts against plain NumPy, and the same batches from both pipelines."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from lab.base.errors import UserError
from lab.images import load as data
from lab.machine import augment, pipeline

MEAN, STD = np.array([0.49, 0.48, 0.45]), np.array([0.25, 0.24, 0.26])


def coordinates(count: int, side: int) -> np.ndarray:
    """Images (count, side, side, 3) whose pixels hold (image, row, column)."""
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(side), np.arange(side), indexing="ij"), axis=-1)
    return grid.astype(np.int32)


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def crop(images, pad, seed):
    images = tf.constant(images)
    return augment.take(images, augment.random_crop(images, pad, seed)).numpy()


def reflected(places, side):
    """NumPy's own reflection: `places` may leave 0 .. side - 1 on both sides."""
    pad = side - 1
    return np.pad(np.arange(side), pad, mode="reflect")[places + pad]


def test_crops_are_windows_of_their_mirrored_image_and_reach_all_81_offsets_uniformly():
    count = 16_200
    images = coordinates(count, 16)
    crops = crop(images, 4, [1, 2])
    np.testing.assert_array_equal(crops[..., 0], images[..., 0])  # each stays with its image
    # Pixels 4 to 11 are inside at every offset.
    tops, lefts = crops[:, 4, 4, 1] - 4, crops[:, 4, 4, 2] - 4
    places = np.arange(16)
    rows, columns = (reflected(first[:, None] + places, 16) for first in (tops, lefts))
    np.testing.assert_array_equal(crops[..., 1], np.broadcast_to(rows[:, :, None], (count, 16, 16)))
    np.testing.assert_array_equal(crops[..., 2], np.broadcast_to(columns[:, None, :], (count, 16, 16)))
    counts = np.zeros((9, 9))
    np.add.at(counts, (tops + 4, lefts + 4), 1)
    assert counts.min() > 0
    assert chi_square(counts) < 130  # 80 degrees of freedom: exceeded by chance 3 times in 10,000


@pytest.mark.parametrize("pad", [0, 1, 5])
def test_a_crop_is_a_window_of_the_padded_image(pad):
    images = np.random.default_rng(pad).integers(0, 256, (40, 6, 9, 3), np.uint8)  # pad 5 is the largest
    padded = data.reflect_pad(images, pad)
    for image, cropped in zip(padded, crop(images, pad, [3, pad]), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, (6, 9), axis=(0, 1))
        assert (windows.transpose(0, 1, 3, 4, 2) == cropped).all(axis=(2, 3, 4)).any()


@pytest.mark.parametrize("jit", [False, True])
def test_products_choose_the_very_pixels_of_a_gather(jit):
    generator = np.random.default_rng(9)
    images = np.resize(np.arange(256, dtype=np.uint8), (30, 7, 10, 3))  # every value
    rows = generator.integers(0, 7, (30, 7)).astype(np.int32)
    columns = generator.integers(0, 10, (30, 10)).astype(np.int32)
    expected = np.stack(
        [image[r][:, c] for image, r, c in zip(images, rows, columns, strict=True)]
    )  # NumPy's own indexing

    @tf.function(jit_compile=jit)
    def both(images, rows, columns):
        window = augment.Window(rows, columns)
        return augment.take(images, window), augment.take_by_products(images, window)

    gathered, multiplied = both(tf.constant(images), rows, columns)
    np.testing.assert_array_equal(gathered, expected)
    assert multiplied.dtype == tf.bfloat16
    np.testing.assert_array_equal(tf.cast(multiplied, tf.int32), expected)


def test_half_of_the_images_are_mirrored_and_the_others_untouched():
    images = coordinates(4000, 6)
    window = augment.random_flip(augment.random_crop(tf.constant(images), 0, [5, 6]), [5, 6])
    flipped = augment.take(tf.constant(images), window).numpy()
    same = (flipped == images).all(axis=(1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 0.03  # 3.8 standard deviations


def test_cutout_is_one_whole_square_and_reaches_all_625_places_uniformly():
    count = 40_000
    holes = augment.random_cutout(tf.ones([count, 32, 32, 1]), 8, [7, 8]).numpy()[..., 0] == 0
    rows, columns = holes.any(axis=2), holes.any(axis=1)
    tops, lefts = rows.argmax(axis=1), columns.argmax(axis=1)
    places = np.arange(32)
    inside_rows = (places >= tops[:, None]) & (places < tops[:, None] + 8)
    inside_columns = (places >= lefts[:, None]) & (places < lefts[:, None] + 8)
    np.testing.assert_array_equal(holes, inside_rows[:, :, None] & inside_columns[:, None, :])
    counts = np.zeros((25, 25))
    np.add.at(counts, (tops, lefts), 1)
    assert counts.min() > 0
    assert chi_square(counts) < 750  # 624 degrees of freedom, 3.6 standard deviations


def draw(seed, stream):
    return augment._draw(seed, stream, tf.zeros([10_000, 1]), augment.WHOLE, 9).numpy()


def test_draws_of_one_seed_are_independent_and_repeat():
    first, second = (draw([9, 9], stream) for stream in (1, 2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.04
    np.testing.assert_array_equal(first, draw([9, 9], 1))
    assert (first != draw([9, 10], 1)).mean() > 0.8
    assert set(first) == set(range(9))


def test_standardise_against_numpy():
    images = np.arange(256 * 3).reshape(1, 16, 16, 3).astype(np.uint8)
    expected = (images / 255.0 - MEAN) / STD
    np.testing.assert_allclose(augment.standardise(tf.constant(images), MEAN, STD), expected, atol=1e-6)


@pytest.mark.parametrize("jit", [True, False])
def test_a_batch_against_numpy_on_padded_images(jit):
    """Crop, flip, standardise and cutout with the same draws, image by image."""
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    seed, whole = tf.constant([10, 11]), augment.WHOLE
    choices = (9, 9, 2, 25, 25)
    draws = [augment._draw(seed, 1 + k, images, whole, n).numpy() for k, n in enumerate(choices)]
    expected = np.empty(images.shape)
    for n, (top, left, flipped, hole_top, hole_left) in enumerate(zip(*draws, strict=True)):
        image = data.reflect_pad(images, 4)[n, top : top + 32, left : left + 32]
        image = ((image[:, ::-1] if flipped else image) / 255.0 - MEAN) / STD
        image[hole_top : hole_top + 8, hole_left : hole_left + 8] = 0
        expected[n] = image
    pipe = augment.Augmentation(4, True, 8, MEAN, STD)
    made = tf.function(pipe, jit_compile=jit)(tf.constant(images), seed)
    np.testing.assert_allclose(made, expected, atol=1e-6)


@pytest.mark.parametrize("jit", [True, False])
def test_the_same_pixels_eagerly_in_tf_data_and_compiled(jit):
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8))
    pipe = augment.Augmentation(4, True, 8, MEAN, STD)
    eager = pipe(images, tf.constant([10, 11])).numpy()
    graph = tf.function(pipe, jit_compile=jit)(images, tf.constant([10, 11])).numpy()
    mapped = next(iter(tf.data.Dataset.from_tensors(images).map(lambda x: pipe(x, tf.constant([10, 11])))))
    np.testing.assert_allclose(graph, eager, atol=2e-7)  # XLA fuses a multiplication and an addition
    np.testing.assert_array_equal(mapped.numpy(), eager)


@pytest.mark.parametrize("count", [2, 4])
def test_shards_are_together_the_whole_batch(count):
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8))
    pipe = augment.Augmentation(4, True, 8, MEAN, STD)
    whole = pipe(images, [10, 11]).numpy()
    shards = [augment.Shard(tf.constant(index), count) for index in range(count)]
    parts = [pipe(augment.own_part(images, shard), [10, 11], shard).numpy() for shard in shards]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_an_epochs_order_visits_every_image_once_and_depends_on_seed_and_epoch_alone():
    order = augment.epoch_order(1, 2, 100, 10)
    assert order.shape == (10, 10) and order.dtype == np.int32
    assert sorted(order.ravel()) == list(range(100))
    np.testing.assert_array_equal(order, augment.epoch_order(1, 2, 100, 10))
    assert (order != augment.epoch_order(1, 3, 100, 10)).any()
    assert (order != augment.epoch_order(2, 2, 100, 10)).any()
    assert augment.epoch_order(0, 1, 50_000, 512).shape == (97, 512)  # the last partial batch is dropped
    seeds = np.concatenate([augment.step_seeds(1, epoch, 97) for epoch in range(20)])
    assert len(np.unique(seeds, axis=0)) == len(seeds)


def test_both_pipelines_give_the_same_batches_and_keep_labels_with_images():
    count = 60
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[:] = 4 * np.arange(count)[:, None, None, None]  # an image's value tells which it is
    labels = np.arange(count, dtype=np.int32)
    pipe = augment.Augmentation(4, True, 0, np.zeros(3), np.ones(3))
    made = [cls(images, labels, pipe, 16, 5) for cls in (pipeline.HostPipeline, pipeline.DevicePipeline)]
    for epoch in (1, 2):
        sources = [pipe.open(epoch) for pipe in made]
        for step in range(3):
            batches = [
                pipe.decode(*pipe.take(source, tf.constant(step)))
                for pipe, source in zip(made, sources, strict=True)
            ]
            for images_, labels_ in batches:
                np.testing.assert_allclose(
                    images_.numpy() * 255,
                    np.broadcast_to(4 * labels_.numpy()[:, None, None, None], images_.shape),
                    rtol=1e-5,
                )
            np.testing.assert_array_equal(batches[0][0], batches[1][0])
            np.testing.assert_array_equal(batches[0][1], batches[1][1])


def test_alternating_flips_show_each_image_both_ways_in_any_two_epochs():
    order = augment.epoch_order(3, 1, 1000, 100)
    first, second, third = (augment.alternate(order, 3, epoch) < 0 for epoch in (1, 2, 3))
    np.testing.assert_array_equal(first, ~second)
    np.testing.assert_array_equal(first, third)
    assert 0.45 < first.mean() < 0.55
    assert (augment.alternate(order, 4, 1) < 0).tolist() != first.tolist()
    # The image decides, not its place in the order.
    other = augment.epoch_order(3, 5, 1000, 100)
    turned = {int(image): bool(flag) for image, flag in zip(order.ravel(), first.ravel(), strict=True)}
    again = augment.alternate(other, 3, 5) < 0
    assert all(turned[int(image)] == flag for image, flag in zip(other.ravel(), again.ravel(), strict=True))


@pytest.mark.parametrize("kind", [pipeline.HostPipeline, pipeline.DevicePipeline])
def test_a_pipeline_mirrors_the_images_whose_turn_it_is(kind):
    images = np.random.default_rng(8).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    plain = augment.Augmentation(0, False, 0, np.zeros(3), np.full(3, 1 / 255))
    source = kind(images, np.arange(12, dtype=np.int32), plain, 6, 3, alternating=True)
    for epoch in (1, 2):
        flags = augment.alternate(np.arange(12, dtype=np.int32), 3, epoch) < 0
        opened = source.open(epoch)
        for step in range(2):
            batch, labels = source.decode(*source.take(opened, tf.constant(step)))
            for image, label in zip(batch.numpy(), labels.numpy(), strict=True):
                expected = images[label][:, ::-1] if flags[label] else images[label]
                np.testing.assert_allclose(image, expected, rtol=1e-5)


@pytest.mark.parametrize("products", [False, True])
def test_a_compiled_host_makes_the_batches_of_a_compiled_step_to_the_last_bit(products):
    images = np.random.default_rng(1).integers(0, 256, (100, 32, 32, 3), np.uint8)
    augmentation = augment.Augmentation(4, True, 8, MEAN, STD)
    labels = np.arange(100, dtype=np.int32)
    host = pipeline.HostPipeline(images, labels, augmentation, 32, 5, jit=True)
    augmentation = replace(augmentation, products=products)
    device = pipeline.DevicePipeline(images, labels, augmentation, 32, 5, jit=True)
    decode = tf.function(device.decode, jit_compile=True)
    on_host, on_device = host.open(1), device.open(1)
    for step in range(3):
        made = host.decode(*host.take(on_host, tf.constant(step)))
        expected = decode(*device.take(on_device, tf.constant(step)))
        np.testing.assert_array_equal(made[0], expected[0])
        np.testing.assert_array_equal(made[1], expected[1])


def test_a_resident_set_is_no_input_of_the_step_and_gives_the_same_batches():
    images = np.random.default_rng(2).integers(0, 256, (40, 32, 32, 3), np.uint8)
    arguments = (images, np.arange(40, dtype=np.int32), augment.Augmentation(4, True, 0, MEAN, STD), 8, 5)
    batches, captured = [], []
    for resident in (False, True):
        device = pipeline.DevicePipeline(*arguments, resident=resident)
        rows = device.take(device.open(1), tf.constant(0))
        function = tf.function(device.decode, jit_compile=True).get_concrete_function(*rows)
        batches.append(function(*rows))
        captured.append([tensor.dtype for tensor in function.captured_inputs])
        np.testing.assert_array_equal(device.host_images(), images)
    assert sorted(captured[0], key=str) == [tf.int32, tf.uint8]
    assert captured[1] == [tf.resource, tf.resource]
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("pad", [-1, 6])
def test_a_pad_beyond_the_image_is_refused(pad):
    images, labels = np.zeros((2, 6, 8, 3), np.uint8), np.zeros(2, np.int32)
    augmentation = augment.Augmentation(pad, True, 0, MEAN, STD)
    with pytest.raises(UserError, match=f"pad {pad} is out of range; give 0 to 5"):
        pipeline.DevicePipeline(images, labels, augmentation, 2, 0)


def test_the_host_traces_its_batch_once_and_keeps_one_copy_of_the_images():
    images = np.random.default_rng(2).integers(0, 256, (40, 32, 32, 3), np.uint8)
    augmentation = augment.Augmentation(4, True, 8, MEAN, STD)
    host = pipeline.HostPipeline(images, np.zeros(40, np.int32), augmentation, 20, 5)
    for epoch in (1, 2, 3):
        assert len(list(host.open(epoch))) == 2
    assert host._batch.experimental_get_tracing_count() == 1
    first, second = host.host_images(), host.host_images()
    np.testing.assert_array_equal(first, images)
    assert first.ctypes.data == second.ctypes.data  # the tensor's memory on a CPU
    assert not first.flags.writeable
