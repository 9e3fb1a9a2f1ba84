"""This project's step, input, evaluation and update as candidates of the bench."""

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from data import plan
from lab import assemble
from lab.bench.rivals import Built, Task
from lab.ladder.optimizers import orthogonalise


@functools.cache
def training(task: Task, *, pipeline: str = "device", precision: str = "", jit: bool = True) -> assemble.LabTraining:
    """A training that is ready to go, with the batches by `pipeline`, host or device; in the task's precision unless
    another is given."""
    changes = {
        "recipe": task.network,
        "data": str(task.data),
        "batch_size": task.batch_size,
        "width": task.width,
        "pipeline": pipeline,
        "device": "cpu",
        "precision": precision or task.precision,
        "jit": jit,
    }
    return assemble.make(assemble.configure(changes))


def steps(task: Task, **options: Any) -> Built:
    """The step as a training runs it, a call each; nothing is fetched before the last. `options` as in training."""
    ours = training(task, **options)
    done, source = 0, None

    def run(count: int) -> None:
        nonlocal done, source
        for _ in range(count):
            epoch, step = divmod(done, ours.steps_per_epoch)
            if step == 0:
                source = ours.batches.open(epoch + 1)
            ours.train_steps(source, tf.constant(1))
            done += 1
        ours.fetch()  # waits

    return run, ours.config.batch_size


def evaluation(task: Task) -> Built:
    ours = training(task)

    def evaluate(count: int) -> None:
        for _ in range(count):
            ours.evaluate()  # waits

    return evaluate, len(ours.images.test_labels)


def host_batches(task: Task) -> Built:
    """An epoch of the host's batches, from opening it to the last one."""
    ours = training(task, pipeline="host")
    epoch = 0

    def epochs(count: int) -> None:
        nonlocal epoch
        for _ in range(count):
            epoch += 1
            for images, _labels in ours.batches.open(epoch):
                images[0, 0, 0, 0].numpy()

    return epochs, ours.steps_per_epoch * task.batch_size


def device_batches(task: Task) -> Built:
    """The device path's gather, crop, flip and cutout, compiled by themselves."""
    ours = training(task)
    rows = tf.constant(plan(ours.config, 1, len(ours.images.train_labels)))  # an epoch: one batch alone is too short
    make = tf.function(ours.batches.make, jit_compile=True)

    def epochs(count: int) -> None:
        for _ in range(count):
            for batch in rows:
                make(batch)[0][0, 0, 0, 0].numpy()

    return epochs, ours.steps_per_epoch * task.batch_size


UPDATES = 20  # of newton_schulz, in one turn


def newton_schulz(task: Task) -> Built:
    """Muon's orthogonalisation of all filters of the speedrun, one after another."""
    c, generator = task.width, np.random.default_rng(0)
    shapes = [(c, 9 * 24), (c, 9 * c), (4 * c, 9 * c), *[(4 * c, 36 * c)] * 3]
    matrices = [tf.constant(generator.standard_normal(shape), tf.float32) for shape in shapes]

    @tf.function(jit_compile=True)
    def update() -> list[tf.Tensor]:
        return [orthogonalise(matrix) for matrix in matrices]

    def updates(count: int) -> None:
        for _ in range(UPDATES * count):
            update()[0][0, 0].numpy()

    return updates, UPDATES
