"""Two ways to bring augmented batches to the training step; both give the same batches for the same seed.

A pipeline has three parts, so that the training loop reads the same for either:

    source = pipeline.open(epoch)                      on the host, once an epoch
    inputs = pipeline.take(source, step)               in the loop over steps, outside the compiled step
    images, labels = pipeline.decode(*inputs, shard)   inside the compiled step, on each replica
"""

from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from augment import WHOLE, Augmentation, Shard, alternate, epoch_order, own_part, step_seeds

Batch = tuple[tf.Tensor, tf.Tensor]  # images float32 (B, 32, 32, 3), labels int32 (B,)


class Pipeline(Protocol):
    """What the training loop needs of a pipeline."""

    def open(self, epoch: int) -> Any: ...

    def take(self, source: Any, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]: ...

    def decode(self, first: tf.Tensor, second: tf.Tensor, shard: Shard = WHOLE) -> Batch: ...


class _Batches:
    """The training set, kept as uint8 on the current device, and how a batch of it is made.

    Args:
        images: uint8 (N, H, W, 3), padded.
        labels: int32 (N,).
        augmentation: padded uint8 batch and seed -> float32 batch.
        batch_size: global, at most N.
        seed: of the order and the augmentation.
        alternating: mirror each image in every second epoch.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        *,
        alternating: bool = False,
    ) -> None:
        self.images, self.labels = tf.constant(images), tf.constant(labels)
        self.augmentation, self.batch_size, self.seed = augmentation, batch_size, seed
        self.alternating = alternating

    def _plan(self, epoch: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The epoch's image numbers, int32 (steps, batch), -1 - i for a mirrored i; and seeds, int32 (steps, 2)."""
        order = epoch_order(self.seed, epoch, len(self.labels), self.batch_size)
        if self.alternating:
            order = alternate(order, self.seed, epoch)
        return tf.constant(order), tf.constant(step_seeds(self.seed, epoch, len(order)))

    def _make(self, rows: tf.Tensor, seed: tf.Tensor, shard: Shard = WHOLE) -> Batch:
        """The shard's part of the batch of the images numbered `rows` (B,), with the step's seed (2,)."""
        rows = own_part(rows, shard)
        mirrored, rows = rows < 0, tf.where(rows < 0, -1 - rows, rows)
        images = tf.gather(self.images, rows)
        if self.alternating:
            images = tf.where(mirrored[:, None, None, None], tf.reverse(images, [2]), images)
        return self.augmentation(images, seed, shard), tf.gather(self.labels, rows)


class DevicePipeline(_Batches):
    """Gather and augmentation are part of the compiled step; the data set lives on the device."""

    def open(self, epoch: int) -> tuple[tf.Tensor, tf.Tensor]:
        return self._plan(epoch)

    def take(self, source: tuple[tf.Tensor, tf.Tensor], step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        order, seeds = source
        return order[step], seeds[step]

    def decode(self, first: tf.Tensor, second: tf.Tensor, shard: Shard = WHOLE) -> Batch:
        return self._make(first, second, shard)


class HostPipeline(_Batches):
    """tf.data makes the batches on the host while the step before them runs."""

    def open(self, epoch: int) -> Any:
        steps = tf.data.Dataset.from_tensor_slices(self._plan(epoch))
        batches = steps.map(self._make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return iter(batches.prefetch(2))

    def take(self, source: Any, step: tf.Tensor) -> Batch:
        return next(source)

    def decode(self, first: tf.Tensor, second: tf.Tensor, shard: Shard = WHOLE) -> Batch:
        return own_part(first, shard), own_part(second, shard)
