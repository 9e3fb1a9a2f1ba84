"""Loss and accuracy over a whole set, the last partial batch included, in one call to the device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lab.machine.augment import Shard, own_part, standardise


def cross_entropy_sum(logits: tf.Tensor, labels: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Softmax cross-entropy, summed over the batch: float32 scalar.

    Args:
        logits: (N, classes) float32.
        labels: (N,) integers; -1 counts for nothing.
        smoothing: share of the target spread evenly over the classes (PyTorch's label smoothing).
    """
    classes = logits.shape[-1]
    counted = tf.cast(labels >= 0, tf.float32)[:, None]
    targets = (1.0 - smoothing) * tf.one_hot(labels, classes) + smoothing / classes * counted
    return -tf.reduce_sum(targets * tf.nn.log_softmax(logits))


def count_correct(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """How many images have their largest logit at their label: int32 scalar."""
    hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.cast(labels, tf.int32))
    return tf.reduce_sum(tf.cast(hits, tf.int32))


def view_logits(network: Callable[..., tf.Tensor], images: tf.Tensor, views: str) -> tf.Tensor:
    """The logits of images, averaged over several views of each (test-time augmentation).

    Args:
        network: called as network(images, training=False); returns logits (N, classes).
        images: (N, H, W, C) float32, standardised.
        views: none: the image itself. flip: it and its mirror image. six: those two count half; the other half
            is the mean over two translations by a pixel, up and left, down and right, of the image reflected at
            its border, each with its mirror image (cifar10-airbench).

    Returns:
        (N, classes) float32.
    """

    def plain(images: tf.Tensor) -> tf.Tensor:
        return network(images, training=False)

    def mirrored(images: tf.Tensor) -> tf.Tensor:
        return 0.5 * plain(images) + 0.5 * plain(tf.reverse(images, [2]))

    if views == "none":
        return plain(images)
    if views == "flip":
        return mirrored(images)
    height, width = images.shape[1:3]
    wider = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
    moved = mirrored(wider[:, :height, :width]) + mirrored(wider[:, 2:, 2:])
    return 0.5 * mirrored(images) + 0.25 * moved


class Counters:
    """Sums of loss and hits, added up on the devices and fetched once. Make it in the strategy's scope."""

    def __init__(self) -> None:
        # Each replica adds to its own; reading them outside the replicas gives the sum.
        how = {
            "trainable": False,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.SUM,
        }
        self.loss_sum = tf.Variable(0.0, **how)
        self.correct = tf.Variable(0, **how)

    def add(self, loss_sum: tf.Tensor, correct: tf.Tensor) -> None:
        """Adds a batch's: float32 and int32 scalars. For the replicas."""
        self.loss_sum.assign_add(loss_sum)
        self.correct.assign_add(correct)

    def reset(self) -> None:
        """Back to zero."""
        self.loss_sum.assign(0.0)
        self.correct.assign(0)

    def restore(self, loss_sum: float, correct: int) -> None:
        """As they were when fetched."""
        self.reset()
        self.loss_sum.assign(loss_sum)
        self.correct.assign(correct)

    def fetch(self) -> tuple[float, int]:
        """Waits for the devices and returns loss sum and hits over all replicas."""
        return float(tf.convert_to_tensor(self.loss_sum)), int(tf.convert_to_tensor(self.correct))


class Evaluator:
    """Mean loss and accuracy over a set.

    Args:
        strategy: the batches are split over its replicas.
        model: called as model(images float32 (B, H, W, 3), training=False), returns logits (B, classes).
        images: uint8 (N, H, W, 3). They live on the device, filled up to whole batches.
        labels: int32 (N,).
        mean, std: (3,) each, of the training set, on the 0-1 scale.
        batch_size: images a step over all replicas; rounded up to a multiple of their number.
        views: of each image for `views`; see view_logits.
        jit: compile the step with XLA.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: Callable[..., tf.Tensor],
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        mean: NDArray[Any],
        std: NDArray[Any],
        batch_size: int,
        *,
        views: str = "none",
        jit: bool,
    ) -> None:
        self.count, replicas = len(labels), strategy.num_replicas_in_sync
        size = -(-min(batch_size, self.count) // replicas) * replicas
        filler = -self.count % size
        padded = np.pad(images, [(0, filler), (0, 0), (0, 0), (0, 0)])
        batches = tf.constant(padded.reshape(-1, size, *images.shape[1:]))
        targets = tf.constant(np.pad(labels, (0, filler), constant_values=-1).reshape(-1, size))
        self.counters = counters = Counters()

        def make(views: str) -> tuple[Any, Any]:
            @tf.function(jit_compile=jit)
            def step(batch: tf.Tensor, labels: tf.Tensor) -> None:
                shard = Shard(tf.distribute.get_replica_context().replica_id_in_sync_group, replicas)
                batch, labels = own_part(batch, shard), own_part(labels, shard)
                logits = view_logits(model, standardise(batch, mean, std), views)
                counters.add(cross_entropy_sum(logits, labels), count_correct(logits, labels))

            @tf.function
            def steps(count: tf.Tensor) -> None:
                for index in tf.range(count):
                    strategy.run(step, (batches[index], targets[index]))

            return step, steps

        self.batches = len(targets)
        plain = make("none")
        (self.step, self.steps), (_, self.views_steps) = plain, plain if views == "none" else make(views)

    def warm_up(self) -> None:
        """Compiles both evaluations, by one batch each."""
        for steps in (self.steps, self.views_steps):
            steps(tf.constant(1))
        self.counters.reset()

    def _count(self, steps: Callable[[tf.Tensor], None]) -> tuple[float, float]:
        self.counters.reset()
        steps(tf.constant(self.batches))
        loss_sum, correct = self.counters.fetch()
        return loss_sum / self.count, correct / self.count

    def __call__(self) -> tuple[float, float]:
        """Mean loss and accuracy, 0 to 1, of the model as it is now; all steps in one call to the device."""
        return self._count(self.steps)

    def views(self) -> float:
        """Accuracy, 0 to 1, with the logits averaged over the views."""
        return self._count(self.views_steps)[1]
