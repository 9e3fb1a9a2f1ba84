"""The core's batches made on the device, inside the compiled step; mirrored in every second epoch or smaller if asked.

The data set lives on the device as bytes; of each batch only its rows of the plan are sent, six numbers an image.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from data import Batches, Images, each_replica, plan
from lab.machine import sides

MOST_GROUPS = 200  # of an epoch's images, for one draw each (D. C. Page, post 8)


class HostBatches(Batches):
    """The core's batches, with `flip` alternating, `draws` grouped, jitter of brightness and contrast, epochs that
    leave no image over, and `sides` too.

    A random half of the images, by the seed, is mirrored in the odd epochs and the rest in the even ones, so that any
    two epochs that follow one another show every image both ways (K. Jordan, arXiv 2404.00498, section 3.6).

    In an epoch of smaller images a batch brings the matrix with which `decode` makes them so. Its shape tells the
    step's tf.function of which side the batch is, so that there is one compiled step for each side.
    """

    select: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]] | None = None  # see lab/ladder/proxy.py

    def open(self, epoch: int, done: int = 0) -> Iterator[Any]:
        matrix = self.matrix(epoch)
        return iter(each_replica(self.strategy, self.rows(epoch)[done:], lambda rows: (*self.sent(rows), *matrix)))

    def matrix(self, epoch: int) -> tuple[NDArray[np.float32], ...]:
        """That of an epoch of smaller images, (side, 32); none in one of full size."""
        side = sides.of_epoch(self.config.sides, epoch)
        return () if side == sides.FULL else (sides.bilinear(side),)

    def sent(self, rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What is brought to the device for a batch of these rows of the plan, but for the matrix."""
        return self.make(rows)

    def decode(  # type: ignore[override]  # see open
        self, images: tf.Tensor, labels: tf.Tensor, *matrix: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """In the compiled step: the part of the batch that `select` takes, if there is one; with a matrix made smaller,
        (b, side, side, 3).
        """
        if self.select:
            images, labels = self.select(images, labels)
        for lines in matrix:
            images = tf.einsum("nhwc,sh,tw->nstc", images, lines, lines)
        return images, labels

    def rows(self, epoch: int) -> NDArray[np.int32]:
        """The epoch's plan: int32 (steps, batch_size, 6), or 8 with jitter, whose two last are float32s' bits.

        With `across_epochs` the passes over the images follow one another without a gap, and an epoch is what its
        batches hold, also if that begins in one pass and ends in the next.
        """
        count, size = len(self.images.train_labels), self.config.batch_size
        if not self.config.across_epochs:
            return self.one_pass(self.config, epoch)
        steps = count // size
        before, past = divmod((epoch - 1) * steps * size, count)
        each = SimpleNamespace(**vars(self.config) | {"batch_size": 1})  # no image of a pass is left out
        rows = np.concatenate([self.one_pass(each, before + 1), self.one_pass(each, before + 2)])
        return rows[past : past + steps * size].reshape(steps, size, -1)

    def one_pass(self, config: Any, epoch: int) -> NDArray[np.int32]:
        """data.plan with the draws and flips that `config` asks for."""
        count = len(self.images.train_labels)
        rows = plan(config, epoch, count)
        if config.draws == "grouped":
            rows[..., 1:] = grouped(config, epoch, count)[rows[..., 0]]
        if config.flip == "alternating":
            coins = np.random.default_rng([config.seed, 0]).integers(0, 2, count)
            rows[..., 3] = (coins[rows[..., 0]] + epoch) % 2
        if config.brightness or config.contrast:
            generator = np.random.default_rng([config.seed, epoch, 2])
            draws = generator.uniform(-1.0, 1.0, (*rows.shape[:2], 2)).astype(np.float32)
            rows = np.concatenate([rows, draws.view(np.int32)], -1)
        return rows

    def make(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        jitter = bool(self.config.brightness or self.config.contrast)
        planned = rows.shape[1] - 2 * jitter
        images, labels = super().make(rows[:, :planned])
        if not jitter:
            return images, labels
        draws = tf.bitcast(rows[:, planned:], tf.float32)  # (b, 2)
        return jittered(images, draws, self.config.brightness, self.config.contrast), labels


def jittered(images: tf.Tensor, draws: tf.Tensor, brightness: float, contrast: float) -> tf.Tensor:
    """(image + brightness u) (1 + contrast v) of standardised images (B, H, W, C), (u, v) = draws (B, 2), each +-1
    at most (hiverge/cifar10-speedrun)."""
    added, factor = brightness * draws[:, 0], 1.0 + contrast * draws[:, 1]
    return (images + added[:, None, None, None]) * factor[:, None, None, None]


def grouped(config: Any, epoch: int, count: int, side: int = 32) -> NDArray[np.int32]:
    """The last five columns of data.plan, for each of `count` images, drawn as in post 8: int32 (count, 5).

    For the crop, the flip and the cutout each by itself, the images are shuffled into equal groups, one for each thing
    that may be drawn, or for MOST_GROUPS of them. So exactly half are mirrored, and an epoch knows 200 places of the
    square that is cut out.
    """
    generator = np.random.default_rng([config.seed, epoch, 1])

    def draw(choices: int) -> NDArray[np.int64]:
        drawn = generator.permutation(choices)[:MOST_GROUPS]
        return generator.permutation(drawn[np.arange(count) % len(drawn)])

    offsets, places = 2 * config.pad + 1, side - config.cutout + 1
    top, left = np.divmod(draw(offsets**2), offsets)
    mirrored = draw(2) * (config.flip == "random")
    cut_top, cut_left = np.divmod(draw(places**2), places)
    return np.stack([top, left, mirrored, cut_top, cut_left], 1).astype(np.int32)


class ResidentBatches(HostBatches):
    """The same batches to rounding, made by `decode` from the data set on the device.

    Args:
        config, images, strategy: see data.Batches.
        products: choose pixels by take_by_products, for a TPU.
    """

    def __init__(
        self, config: Any, images: Images, strategy: tf.distribute.Strategy, *, products: bool = False
    ) -> None:
        self.products = products
        super().__init__(config, images, strategy)

    def prepare(self) -> None:
        """Brings images and labels to the device: unpadded, an image as a row of bytes.

        A TPU would bring a data set of four dimensions into another order at every step; and there whatever a step uses
        besides variables is an input, to be brought there for every step. Of several GPUs each needs its own copy.
        """
        pixels = self.images.train_images.reshape(len(self.images.train_images), -1)
        if isinstance(self.strategy, (tf.distribute.TPUStrategy, tf.distribute.MirroredStrategy)):
            self.pixels = tf.Variable(pixels, trainable=False)
            self.labels = tf.Variable(self.images.train_labels, trainable=False)
        else:
            self.pixels, self.labels = tf.constant(pixels), tf.constant(self.images.train_labels)

    def sent(self, rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (rows,)

    def decode(  # type: ignore[override]  # see sent
        self, rows: tf.Tensor, *matrix: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return super().decode(*self.make(rows), *matrix)  # the core's, with `cropped` from below

    def cropped(self, number: tf.Tensor, top: tf.Tensor, left: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
        height, width, channels = self.images.train_images.shape[1:]
        pixels = tf.gather(tf.convert_to_tensor(self.pixels), number)
        pixels = tf.reshape(pixels, [-1, height, width, channels])
        lines = reflected(top[:, None] - self.config.pad + tf.range(height), height)  # (b, H)
        columns = reflected(left[:, None] - self.config.pad + tf.range(width), width)  # (b, W)
        columns = tf.where(mirrored[:, None] > 0, columns[:, ::-1], columns)
        pixels = (take_by_products if self.products else take)(pixels, lines, columns)
        # Constants of an image's shape, since TensorFlow is slow to spread three values over the channels.
        scale, offset = (
            np.broadcast_to(value.astype(np.float32), [height, width, channels])
            for value in (1 / (255 * self.std), self.mean / self.std)
        )
        return tf.cast(pixels, tf.float32) * scale - offset


def reflected(index: tf.Tensor, side: int) -> tf.Tensor:
    """Where a pixel of a reflect-padded image comes from: -1 is 1, and `side` is side - 2."""
    return (side - 1) - tf.abs((side - 1) - tf.abs(index))


def take(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """The pixels of these rows (N, H') and columns (N, W') of images (N, H, W, C): (N, H', W', C), any dtype."""
    height, width, channels = images.shape[1:]
    lines = tf.range(tf.shape(images)[0])[:, None] * height + rows  # (N, H')
    return tf.gather(tf.reshape(images, [-1, channels]), lines[:, :, None] * width + columns[:, None, :])


def take_by_products(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """The same as products with matrices of zeros and ones: uint8 (N, H, W, C) -> bfloat16, the same shape.

    Each value is a sum of one pixel and zeros, and bfloat16 has every whole number up to 256, so it is exact.
    A TPU, which gathers pixel by pixel, has its fast unit for it.
    """
    height, width, channels = images.shape[1:]
    # A line is the values of all channels of its pixels, one after another.
    values = columns[:, :, None] * channels + tf.range(channels)  # (N, W, C)
    row_of = tf.one_hot(rows, height, dtype=tf.bfloat16)  # (N, H, H)
    column_of = tf.one_hot(tf.reshape(values, [-1, width * channels]), width * channels, dtype=tf.bfloat16)
    lines = tf.cast(tf.reshape(images, [-1, height, width * channels]), tf.bfloat16)
    chosen = tf.matmul(tf.matmul(row_of, lines), column_of, transpose_b=True)  # (N, H, W * C)
    return tf.reshape(chosen, [-1, height, width, channels])
