"""Test-time augmentation: the accuracy with logits averaged over several views of each image."""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from train_eager import Training, count_correct

UNSURE = 4  # one image in so many gets more views


def view_logits(
    network: Callable[..., tf.Tensor], images: tf.Tensor, views: str, counted: tf.Tensor | None = None
) -> tf.Tensor:
    """The logits of images, averaged over several views of each (test-time augmentation).

    Args:
        network: called as network(images, training=False); returns logits (N, classes).
        images: (N, H, W, C) float32, standardised.
        views: none: the image itself. flip: it and its mirror image. six: those two count half; the other half
            is the mean over two translations by a pixel, up and left, down and right, of the image reflected at
            its border, each with its mirror image (cifar10-airbench). unsure: the plain mean of these six for the
            quarter of the N images whose most probable class is least probable, rounded up, and the image itself for
            the rest (hiverge/cifar10-speedrun, where the quarter is of the whole test set).
        counted: (N,) bool; for unsure, the images that are not there to fill up the batch. None: all.

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
    if views == "unsure":
        logits = plain(images)
        unsure = least_sure(logits, counted)
        return tf.tensor_scatter_nd_update(logits, unsure[:, None], _six_alike(plain, images, logits, unsure))
    first, second = _moved(images)
    return 0.5 * mirrored(images) + 0.25 * (mirrored(first) + mirrored(second))


def least_sure(logits: tf.Tensor, counted: tf.Tensor | None = None) -> tf.Tensor:
    """The quarter of the images, rounded up, whose largest softmax probability is least: their indices, int32 (k,).

    Args:
        logits: (N, classes) float32.
        counted: (N,) bool; those that are not come last. None: all are.
    """
    size = logits.shape[0] or tf.shape(logits)[0]  # XLA needs to know it when it compiles
    sureness = tf.reduce_max(tf.nn.log_softmax(logits), -1)
    if counted is not None:
        sureness = tf.where(counted, sureness, 1.0)  # above any logarithm of a probability
    return tf.math.top_k(-sureness, -(-size // UNSURE)).indices


def _moved(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The images a pixel down and right, and up and left, reflected at the border."""
    height, width = images.shape[1:3]
    wider = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
    return wider[:, :height, :width], wider[:, 2:, 2:]


def _six_alike(
    plain: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor, logits: tf.Tensor, chosen: tf.Tensor
) -> tf.Tensor:
    """The plain mean of the logits of the six views of the chosen images (k,): (k, classes). Theirs as they are, which
    `logits` (N, classes) has, are not computed again."""
    few = tf.gather(images, chosen)
    moved = _moved(few)
    others = tf.concat([*moved, *(tf.reverse(view, [2]) for view in (few, *moved))], 0)
    sums = tf.reduce_sum(tf.reshape(plain(others), [5, -1, logits.shape[1]]), 0)
    return (tf.gather(logits, chosen) + sums) / 6.0


def _steps(training: Training, views: str) -> Any:
    """Compiled once for a training, which keeps it: a series of seeds shares both."""
    kept = vars(training).setdefault("view_steps", {})
    if views not in kept:
        kept[views] = _new_steps(training, views)
    return kept[views]


def _new_steps(training: Training, views: str) -> Any:
    @tf.function(jit_compile=training.jit)
    def step(images: tf.Tensor, labels: tf.Tensor) -> None:
        logits = view_logits(training.network, images, views, labels >= 0)
        training.sums.assign_add([0.0, count_correct(logits, labels)])

    @tf.function
    def steps(batches: Iterator[Any], count: tf.Tensor) -> None:
        for _ in tf.range(count):
            training.strategy.run(step, next(batches))

    return steps


def warm_up(training: Training, views: str) -> None:
    """Compiles `accuracy` by one batch, whose hits are left in training.sums."""
    _steps(training, views)(iter(training.test_batches), tf.constant(1))


def accuracy(training: Training, views: str) -> float:
    """Accuracy on the test set, 0 to 1, with the logits averaged over the views; see view_logits."""
    training.fetch()  # back to zero
    _steps(training, views)(iter(training.test_batches), tf.constant(training.steps_per_test))
    return training.fetch()[1] / len(training.images.test_labels)
