"""Test-time augmentation: the accuracy with logits averaged over several views of each image."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from train_eager import Training, count_correct


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


@functools.lru_cache(maxsize=1)  # so that a series of seeds, which shares a training, compiles once
def _steps(training: Training, views: str) -> Any:
    @tf.function(jit_compile=training.jit)
    def step(images: tf.Tensor, labels: tf.Tensor) -> None:
        logits = view_logits(training.network, images, views)
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
