"""The steps that a TPU would run, lowered to StableHLO by TensorFlow on this machine's CPU.

A step is augmentation, forward, backward, weight decay, update, batch norm's statistics and the sums of loss and
hits: everything but the sum over replicas.
"""

import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter; read at its import

import numpy as np
import tensorflow as tf

from lab import assemble
from lab.images.imageset import ImageSet

TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000  # CIFAR-10's


def lower(
    recipe: str, steps: Sequence[str], precision: str, batch_size: int | None = None
) -> Iterator[tuple[str, int, str]]:
    """Lowers some of a recipe's steps, "train" and "evaluation"; yields each one's name, images and text.

    Where small images are trained on first, each side has a training step: "train, 24 pixels". Equal programs have
    equal texts. Only the images' shapes enter them, so the images are noise.

    Args:
        batch_size: of the training step; None takes the recipe's own.

    Raises: UserError for an unknown recipe.
    """
    tf.keras.backend.clear_session()  # counts the layers' names from 1 again: equal programs, equal texts
    training = as_on_a_tpu(recipe, precision, batch_size)
    stages = [stage for stage, _ in training.stages(training.config.epochs)]
    for name in steps:
        if name == "evaluation":
            batch = next(iter(training.test_batches))
            yield name, int(batch[0].shape[0]), _stablehlo(training.strategy, training.test_step, batch)
            continue
        for stage in stages:
            batch = next(training.batches.open(stage.start + 1))
            of_side = f"{name}, {stage.side} pixels" if len(stages) > 1 else name
            yield of_side, int(batch[0].shape[0]), _stablehlo(training.strategy, training.train_step, batch)


def as_on_a_tpu(recipe: str, precision: str, batch_size: int | None = None) -> assemble.LabTraining:
    """A training that computes on the CPU, since stock TensorFlow has no TPU kernels, with all else as on a TPU.

    That is: batches made within the step, crops as products of matrices, and layers in their plain forms.
    """
    changes = {"recipe": recipe, "device": "cpu", "precision": precision, "pipeline": "device"}
    options = assemble.configure(changes | ({"batch_size": batch_size} if batch_size else {}))
    placement = replace(assemble.place(options), kind="tpu")
    return assemble.make(options, placement, _noise())


@functools.cache
def _noise() -> ImageSet:
    generator = np.random.default_rng(0)
    counts = (TRAIN_IMAGES, TEST_IMAGES)
    train, test = (generator.integers(0, 256, (count, 32, 32, 3), np.uint8) for count in counts)
    train_labels, test_labels = (np.arange(count, dtype=np.int32) % 10 for count in counts)
    names = tuple(str(label) for label in range(10))
    return ImageSet(train, train_labels, test, test_labels, names, source="noise", synthetic=True)


def _stablehlo(strategy: tf.distribute.Strategy, step: Any, batch: Any) -> str:
    @tf.function(jit_compile=True, autograph=False)
    def replicated(*batch: tf.Tensor) -> None:
        strategy.run(step, batch)

    ir = replicated.experimental_get_compiler_ir(*batch)
    text = str(ir(stage="stablehlo", platform_name="CPU"))
    text = re.sub(r"^module @\S+", "module @step", text, flags=re.MULTILINE)  # its name counts functions
    return re.sub(r'loc\("[^"]*":\d+:\d+\)', "loc(unknown)", text)  # a line of a file on this machine
