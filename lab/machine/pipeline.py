"""Ways to bring augmented batches to the training step; all give the same batches for the same seed.

A pipeline has three parts, so that the training loop reads the same for either:

    source = pipeline.open(epoch, done)                on the host, once an epoch; `done`: steps already made
    inputs = pipeline.take(source, step)               in the loop over steps, outside the compiled step
    images, labels = pipeline.decode(*inputs, shard)   inside the compiled step, on each replica
"""

from functools import partial
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lab.base.errors import UserError
from lab.images.imagefile import ImageFile, Images
from lab.images.load import ImageSet
from lab.machine.augment import WHOLE, Augmentation, Shard, alternate, epoch_order, own_part, step_seeds
from lab.options import Settings

Batch = tuple[tf.Tensor, tf.Tensor]  # images float32 (B, 32, 32, 3), labels int32 (B,)


class Pipeline(Protocol):
    """What the training loop needs of a pipeline."""

    seed: int  # of what `open` begins

    def host_images(self) -> Images: ...

    def open(self, epoch: int, done: int = 0) -> Any: ...

    def take(self, source: Any, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]: ...

    def decode(self, first: tf.Tensor, second: tf.Tensor, shard: Shard = WHOLE) -> Batch: ...


class _Batches:
    """The training set, kept as uint8 on the current device (or in its file), and how a batch of it is made.

    Args:
        images: uint8 (N, H, W, 3); for a FilePipeline an ImageFile.
        labels: int32 (N,).
        augmentation: uint8 batch and seed -> float32 batch.
        batch_size: global, at most N.
        seed: of the order and the augmentation.
        alternating: mirror each image in every second epoch.
        jit: compile what makes a batch outside the training step. Multiplications and additions are then
            fused as they are in a compiled step, and the batches are the same to the last bit.
        resident: keep images and labels in variables, of which every replica's device has its own. For a TPU,
            whatever else a step uses is an input, to be brought there for every step.

    Raises:
        UserError: if the augmentation's pad is not below the images' sides.
    """

    def __init__(
        self,
        images: Images,
        labels: NDArray[np.int32],
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        *,
        alternating: bool = False,
        jit: bool = False,
        resident: bool = False,
    ) -> None:
        limit = min(images.shape[1:3]) - 1
        if not 0 <= augmentation.pad <= limit:
            raise UserError(f"pad {augmentation.pad} is out of range; give 0 to {limit}")
        keep = partial(tf.Variable, trainable=False) if resident else tf.constant
        self.count, self._shape = images.shape[0], images.shape[1:]
        self._images: Any = images
        make: Any = self._augment  # of pixels that were read from a file
        if not isinstance(images, ImageFile):
            # An image is a row: a TPU would bring a data set of four dimensions into another order, at every step.
            self._images = keep(images.reshape(len(images), -1))
            make = self._make
        self._labels = keep(labels)
        self.augmentation, self.batch_size, self.seed = augmentation, batch_size, seed
        self.alternating = alternating
        self._batch = tf.function(make, jit_compile=jit)  # made once, not to be traced again every epoch

    def host_images(self) -> Images:
        """The images as an array to be read only; on a CPU it is the tensor's own memory, not a copy."""
        return np.asarray(memoryview(tf.convert_to_tensor(self._images))).reshape(-1, *self._shape)

    def _plan(self, epoch: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The epoch's image numbers, int32 (steps, batch), -1 - i for a mirrored i; and seeds, int32 (steps, 2)."""
        order = epoch_order(self.seed, epoch, self.count, self.batch_size)
        if self.alternating:
            order = alternate(order, self.seed, epoch)
        return tf.constant(order), tf.constant(step_seeds(self.seed, epoch, len(order)))

    def _make(self, rows: tf.Tensor, seed: tf.Tensor, shard: Shard = WHOLE) -> Batch:
        """The shard's part of the batch of the images numbered `rows` (B,), with the step's seed (2,)."""
        rows = own_part(rows, shard)
        pixels = tf.gather(tf.convert_to_tensor(self._images), self._numbers(rows))
        return self._augment(tf.reshape(pixels, [-1, *self._shape]), rows, seed, shard)

    def _augment(self, pixels: tf.Tensor, rows: tf.Tensor, seed: tf.Tensor, shard: Shard = WHOLE) -> Batch:
        """The same, with the images' pixels at hand: uint8 (B, H, W, 3)."""
        mirrored = rows < 0 if self.alternating else None
        images = self.augmentation(pixels, seed, shard, mirrored)
        return images, tf.gather(tf.convert_to_tensor(self._labels), self._numbers(rows))

    def _numbers(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.where(rows < 0, -1 - rows, rows) if self.alternating else rows


class DevicePipeline(_Batches):
    """Gather and augmentation are part of the compiled step; the data set lives on the device."""

    def open(self, epoch: int, done: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
        return self._plan(epoch)

    def take(self, source: tuple[tf.Tensor, tf.Tensor], step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        order, seeds = source
        return order[step], seeds[step]

    def decode(self, first: tf.Tensor, second: tf.Tensor, shard: Shard = WHOLE) -> Batch:
        return self._make(first, second, shard)


class HostPipeline(_Batches):
    """tf.data makes the batches on the host while the step before them runs."""

    def open(self, epoch: int, done: int = 0) -> Any:
        steps = tf.data.Dataset.from_tensor_slices(self._plan(epoch)).skip(done)
        batches = steps.map(self._batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return iter(batches.prefetch(2))

    def take(self, source: Any, step: tf.Tensor) -> Batch:
        return next(source)

    def decode(self, first: tf.Tensor, second: tf.Tensor, shard: Shard = WHOLE) -> Batch:
        return own_part(first, shard), own_part(second, shard)


class FilePipeline(HostPipeline):
    """The host's pipeline for images in a file: of these, a few batches are in memory at a time."""

    _images: ImageFile

    def host_images(self) -> ImageFile:
        return self._images

    def open(self, epoch: int, done: int = 0) -> Any:
        steps = tf.data.Dataset.from_tensor_slices(self._plan(epoch)).skip(done)
        # XLA does not compile a call into Python, so reading is a map of its own.
        read = steps.map(self._read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        batches = read.map(self._batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return iter(batches.prefetch(2))

    def _read(self, rows: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        pixels = tf.numpy_function(self._images.__getitem__, [self._numbers(rows)], tf.uint8, stateful=False)
        return tf.ensure_shape(pixels, [self.batch_size, *self._shape]), rows, seed


def make_pipeline(
    options: Settings,
    images: ImageSet,
    mean: NDArray[Any],
    std: NDArray[Any],
    *,
    jit: bool,
    products: bool = False,
    resident: bool = False,
) -> Pipeline:
    """The pipeline that the hyperparameters ask for, over the training images: auto is the device, measured faster
    on a CPU too, but the host for images in a file.

    Args:
        mean, std: (3,) each, of the training set, on the 0-1 scale.
        jit: see _Batches.
        products: see Augmentation; resident: see _Batches. Both only for batches made on the device.

    Raises:
        UserError: where the device is asked for and the images are in a file.
    """
    kind: type[HostPipeline] | type[DevicePipeline]
    kind = HostPipeline if options.pipeline == "host" else DevicePipeline
    if isinstance(images.train_images, ImageFile):
        if options.pipeline == "device":
            raise UserError("--pipeline device needs all images on the device; leave it out, or --scratch")
        kind = FilePipeline
    on_device = kind is DevicePipeline
    return kind(
        images.train_images,
        images.train_labels,
        Augmentation(
            options.pad, options.flip == "random", options.cutout, mean, std, products and on_device
        ),
        options.batch_size,
        options.seed,
        alternating=options.flip == "alternating",
        jit=jit,
        resident=resident and on_device,
    )
