"""Augmentation and batches: the same pixels for the same (seed, epoch, step), wherever they are computed.

The functions work on whole batches, eagerly, inside tf.data and inside a compiled step alike. Random numbers
are TensorFlow's stateless Philox, keyed and without state, so any batch can be made again at any time.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Seed = Any  # int32 tensor (2,) or a pair of ints


class Shard(NamedTuple):
    """Which part of the global batch these images are: part `number`, from 0, of `parts` equal ones.

    Random numbers are drawn for the whole batch and each replica takes its own, so that n replicas see
    together what one would. `number` may be a tensor.
    """

    number: Any = 0
    parts: int = 1


WHOLE = Shard()


def own_part(batch: tf.Tensor, shard: Shard) -> tf.Tensor:
    """The shard's part of a global batch (B, ...): (B / parts, ...). `parts` divides B."""
    size = batch.shape[0] // shard.parts
    return batch if shard.parts == 1 else batch[shard.number * size : (shard.number + 1) * size]


def _draw(seed: Seed, stream: int, images: tf.Tensor, shard: Shard, choices: int) -> tf.Tensor:
    """One integer an image, uniform in 0 .. choices - 1; int32 (N,). Streams of one seed are independent."""
    key = tf.cast(tf.convert_to_tensor(seed), tf.int32) + tf.constant([0, stream], tf.int32)
    count = images.shape[0] or tf.shape(images)[0]
    # Raw bits: floats drawn by the same Philox differ between TensorFlow's kernel and XLA's.
    bits = tf.random.stateless_uniform([count * shard.parts], key, None, None, tf.uint32, alg="philox")
    bits = bits[shard.number * count : (shard.number + 1) * count]
    return tf.cast(bits % tf.cast(choices, tf.uint32), tf.int32)  # even to 1 in 10^6 for 625 choices


class Window(NamedTuple):
    """Where in its image each pixel of a batch comes from: `rows` int32 (N, H), `columns` int32 (N, W).

    Crop and flip only choose pixels, so they work on these few numbers, and the pixels move once.
    """

    rows: tf.Tensor
    columns: tf.Tensor


def random_crop(images: tf.Tensor, pad: int, seed: Seed, shard: Shard = WHOLE) -> Window:
    """A window of each image's own size, every offset from -pad to pad equally likely, both ways.

    Beyond its border an image goes on as its mirror image, the border pixels not repeated; so the images need
    no padding.

    Args:
        images: (N, H, W, C), any dtype; H and W known when traced, above `pad`.
        pad: pixels, from 0.
    """

    def choose(stream: int, side: int) -> tf.Tensor:
        first = _draw(seed, stream, images, shard, 2 * pad + 1)[:, None] - pad
        inside = tf.abs(first + tf.range(side))  # mirrored at 0
        return (side - 1) - tf.abs((side - 1) - inside)  # and at the other border

    return Window(choose(1, images.shape[1]), choose(2, images.shape[2]))


def flip(window: Window, mirrored: tf.Tensor) -> Window:
    """Mirrors the images for which `mirrored`, bool (N,), holds, left to right."""
    return window._replace(columns=tf.where(mirrored[:, None], window.columns[:, ::-1], window.columns))


def random_flip(window: Window, seed: Seed, shard: Shard = WHOLE) -> Window:
    """Mirrors each image left to right with probability 1/2."""
    return flip(window, _draw(seed, 3, window.columns, shard, 2) == 1)


def take(images: tf.Tensor, window: Window) -> tf.Tensor:
    """The window's pixels: (N, H', W', C) -> (N, H, W, C), any dtype."""
    count, height, width, channels = images.shape
    lines = tf.range(count or tf.shape(images)[0])[:, None] * height + window.rows  # (N, H)
    pixels = lines[:, :, None] * width + window.columns[:, None, :]  # (N, H, W)
    return tf.gather(tf.reshape(images, [-1, channels]), pixels)


def take_by_products(images: tf.Tensor, window: Window) -> tf.Tensor:
    """The same as products with matrices of zeros and ones: uint8 (N, H, W, C) -> bfloat16, the same shape.

    Each value is a sum of one pixel and zeros, and bfloat16 has every whole number up to 256, so it is exact.
    A TPU, which gathers pixel by pixel, has its fast unit for it.
    """
    height, width, channels = images.shape[1:]
    # A line is the values of all channels of its pixels, one after another.
    values = window.columns[:, :, None] * channels + tf.range(channels)  # (N, W, C)
    rows = tf.one_hot(window.rows, height, dtype=tf.bfloat16)  # (N, H, H)
    columns = tf.one_hot(tf.reshape(values, [-1, width * channels]), width * channels, dtype=tf.bfloat16)
    lines = tf.cast(tf.reshape(images, [-1, height, width * channels]), tf.bfloat16)
    chosen = tf.matmul(tf.matmul(rows, lines), columns, transpose_b=True)  # (N, H, W * C)
    return tf.reshape(chosen, [-1, height, width, channels])


def random_cutout(images: tf.Tensor, size: int, seed: Seed, shard: Shard = WHOLE) -> tf.Tensor:
    """Zeros in a size x size square wholly inside each image, every position equally likely: (N, H, W, C)."""
    height, width, channels = images.shape[1:]
    tops = _draw(seed, 4, images, shard, height - size + 1)[:, None]
    lefts = _draw(seed, 5, images, shard, width - size + 1)[:, None]
    # All values of a line at once: TensorFlow is slow to spread a mask over three channels.
    rows, columns = tf.range(height), tf.repeat(tf.range(width), channels)
    in_rows = tf.logical_and(rows >= tops, rows < tops + size)  # (N, H)
    in_columns = tf.logical_and(columns >= lefts, columns < lefts + size)  # (N, W * C)
    hole = tf.logical_and(in_rows[:, :, None], in_columns[:, None, :])
    lines = tf.reshape(images, [-1, height, width * channels])
    return tf.reshape(tf.where(hole, tf.zeros_like(lines), lines), [-1, height, width, channels])


def standardise(images: tf.Tensor, mean: NDArray[Any], std: NDArray[Any]) -> tf.Tensor:
    """Pixels (N, H, W, 3), 0-255, to float32: each channel less its mean, over its deviation, on the 0-1 scale."""
    # Constants of an image's shape, for the reason given in random_cutout.
    scale, offset = (
        np.broadcast_to(value.astype(np.float32), images.shape[1:])
        for value in (1.0 / (255.0 * std), -mean / std)
    )
    return tf.cast(images, tf.float32) * scale + offset


@dataclass(frozen=True, eq=False)
class Augmentation:
    """What happens to a training batch: crop, flip, standardise, cutout, in this order.

    Args:
        pad: pixels by which the crop may leave the image on each side; see random_crop.
        flip: whether to mirror a random half.
        cutout: side of the hole, in pixels; 0 for none.
        mean, std: (3,) each, of the training set, on the 0-1 scale.
        products: choose pixels by take_by_products, with the same result.

    Cropping and flipping move bytes, so they come first, while a pixel is one byte and not four.
    """

    pad: int
    flip: bool
    cutout: int
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    products: bool = False

    def __call__(
        self, images: tf.Tensor, seed: Seed, shard: Shard = WHOLE, mirrored: tf.Tensor | None = None
    ) -> tf.Tensor:
        """uint8 (N, H, W, 3) -> float32, the same shape. `mirrored`, bool (N,): mirror these besides."""
        window = random_crop(images, self.pad, seed, shard)
        if self.flip:
            window = random_flip(window, seed, shard)
        if mirrored is not None:
            window = flip(window, mirrored)
        pixels = take_by_products(images, window) if self.products else take(images, window)
        images = standardise(pixels, self.mean, self.std)
        return random_cutout(images, self.cutout, seed, shard) if self.cutout else images


def epoch_order(seed: int, epoch: int, images: int, batch_size: int) -> NDArray[np.int32]:
    """The images of each step of an epoch: int32 (steps, batch_size), from 0 to images - 1.

    A shuffle that depends on (seed, epoch) alone; the images of a last partial batch are left out.
    """
    steps = images // batch_size
    order = np.random.default_rng([seed, epoch]).permutation(images).astype(np.int32)
    return order[: steps * batch_size].reshape(steps, batch_size)


def alternate(order: NDArray[np.int32], seed: int, epoch: int) -> NDArray[np.int32]:
    """Marks the images to be mirrored in this epoch: image i becomes -1 - i.

    A random half of them, by the seed, is mirrored in the odd epochs and the rest in the even ones, so that any two
    epochs that follow one another show every image both ways (K. Jordan, arXiv 2404.00498, section 3.6).

    Args:
        order: image numbers, from 0.
        seed: which half.
        epoch: from 1.
    """
    coins = np.random.default_rng([seed, 0]).integers(0, 2, order.max(initial=0) + 1)
    return np.where((coins[order] + epoch) % 2 == 1, -1 - order, order).astype(np.int32)


def step_seeds(seed: int, epoch: int, steps: int) -> NDArray[np.int32]:
    """The key of each step's augmentation: int32 (steps, 2), from (seed, epoch, step) alone."""
    keys = np.random.SeedSequence([seed, epoch, 1]).generate_state(2 * steps, np.uint32)
    return keys.reshape(steps, 2).view(np.int32)
