"""What the posts' experiments share: trainings in an experiment's sizes, their batches, and gradients between steps.

for moment in training.run():          # the core's loop; on a CPU it yields after each step
    turned = training.weights[0] ...   # between two yields weights may be read, and a Probe asked
"""

import functools
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import tensorflow as tf

from lab import assemble
from lab.assemble import LabTraining, Options
from lab.base.errors import UserError
from lab.images import load
from lab.images.imageset import ImageSet
from lab.machine import memory
from lab.machine.devices import Placement
from train_eager import Training, cross_entropy_sum

# Small differences are measured, and many short trainings are made: not in 16 bits, and not compiled for minutes.
OF_ALL: Mapping[str, Any] = {"precision": "float32", "jit": False}
Sizes = Mapping[str, Any]


def options(sizes: Sizes, seed: int, **changes: Any) -> Options:
    """The hyperparameters among an experiment's sizes, OF_ALL and `changes`, which go first. Raises UserError."""
    given = {name: value for name, value in sizes.items() if name in assemble.NAMES}
    return assemble.configure({**OF_ALL, **given, "seed": seed, **changes})


def read_images(sizes: Sizes, data: str, seed: int) -> ImageSet:
    """The images of an experiment: its sizes may have limit_train, limit_test and holdout. Raises UserError."""
    return load.of(options(sizes, seed, data=data))


@functools.cache
def placement() -> Placement:
    """This machine's accelerator or CPU. Raises UserError for several, whose parts of a batch a Probe does not join."""
    tf.config.experimental.enable_tensor_float_32_execution(False)  # else a GPU multiplies with 10 bits of 23
    found = assemble.place(assemble.configure({}))
    if found.replicas > 1:
        raise UserError(f"{found.replicas} devices; the experiments run on one: CUDA_VISIBLE_DEVICES=0")
    return found


def make(sizes: Sizes, images: ImageSet, seed: int, **changes: Any) -> LabTraining:
    """A training with its weights at their start.

    Args:
        sizes: of the experiment; those that are hyperparameters count.
        images: as given to `measure`; its test images are the held-out part, if the sizes have a `holdout`.
        seed: of weights, order and augmentation.
        changes: more hyperparameters, which go before the sizes'. A constant rate is knots="0,0.1 99,0.1".

    Raises:
        UserError: as assemble.configure and assemble.make.
    """
    memory.give_back()  # of the trainings before it
    return assemble.make(options(sizes, seed, **changes), placement(), images)


def batches(training: Training, first: int, count: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """The batches of `count` updates from update number `first` on, 0 being a training's first: as it sees them.

    Yields standardised, augmented images (B, 32, 32, 3) float32 and labels (B,) int32, in the order of the updates.
    """
    while count:
        epoch, step = divmod(first, training.steps_per_epoch)
        for batch in islice(training.batches.open(epoch + 1, step), count):
            yield training.batches.decode(*batch)
            first, count = first + 1, count - 1


class Probe:
    """The loss of any batch at a training's present weights. Nothing of the training changes.

    All is as in its step: the loss summed over the batch, batch norm by the batch's own statistics, label smoothing;
    but no weight decay.
    """

    def __init__(self, training: LabTraining) -> None:
        self.training = training
        self.running = training.network.non_trainable_variables  # batch norm's averages, which a pass moves

    @tf.function
    def loss(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """The loss of images (B, 32, 32, 3) and labels (B,), summed over the batch: float32 scalar."""
        kept = [tf.identity(tf.convert_to_tensor(variable)) for variable in self.running]
        logits = self.training.network(images, training=True)
        for variable, value in zip(self.running, kept, strict=True):
            variable.assign(value)
        return cross_entropy_sum(logits, labels, self.training.config.label_smoothing)
