"""From hyperparameters to a training: the core's, with the ingredients that the recipe and the machine ask for."""

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import tensorflow as tf

import data
import train_eager
from lab.base import paths, storage
from lab.base.errors import UserError, nearest
from lab.images import load
from lab.images.load import ImageSet
from lab.ladder import describe, networks, optimizers, recipes, schedules
from lab.ladder.averaging import WeightAverage
from lab.ladder.proxy import Proxy
from lab.machine import devices, fastest, memory, sides
from lab.machine.devices import Placement
from lab.machine.resident import HostBatches, ResidentBatches
from lab.options import (
    OF_A_RECIPE,
    OF_DAVIDNET,
    Ladder,
    Machine,
    Runs,
    Selection,
    flag,
    run_length,
    run_steps,
)
from train_eager import Config, Moment, Training


@dataclass(frozen=True)
class Options(Ladder, Selection, Machine, Runs, Config):
    """All hyperparameters: DavidNet's and those of lab/options.py."""


SMALL = 128  # a width whose weights fit anywhere, so that nothing needs to be estimated before they are made
NAMES = tuple(item.name for item in fields(Options))
# Hyperparameters that are paths: the addresses that each takes, and whether it is written as a folder.
PATHS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("data", paths.REMOTE, False),
    ("resume", paths.REMOTE, False),
    ("out", (), True),
    ("checkpoint_dir", paths.REMOTE, True),
    ("profile", paths.REMOTE, True),
)


def edited() -> dict[str, Any]:
    """The constants at the top of train_eager.py that somebody has changed: they count like flags."""
    try:
        published, written = recipes.values(recipes.ROOT), Config()
    except ValueError as error:
        raise UserError(f"at the top of train_eager.py, {error}") from None
    changed = {name: getattr(written, name) for name in OF_DAVIDNET if getattr(written, name) != published[name]}
    share = published["warmup_epochs"] / published["epochs"]
    if math.isclose(written.warmup_epochs, share * written.epochs):  # it follows EPOCHS
        changed.pop("warmup_epochs", None)
    return changed


def configure(changes: Mapping[str, Any]) -> Options:
    """The hyperparameters of a recipe, with edited constants and then `changes`, by name, in its place.

    Raises:
        UserError: for an unknown name, a value of a wrong type or out of range, or values that do not go together.
    """
    check_names(changes)
    name = changes.get("recipe", recipes.ROOT)
    values = recipes.values(name)
    of_recipe = {name: value for name, value in changes.items() if name in OF_A_RECIPE}
    others = {name: value for name, value in changes.items() if name not in OF_A_RECIPE}
    given = edited() | of_recipe
    # Each value by itself, before `change` computes with it.
    checked({**values, **given, **others, "warmup_epochs": 0.0, "knots": "", "sides": ""})
    if "warmup_epochs" in given and "warmup_epochs" not in of_recipe and "epochs" in of_recipe:
        given["warmup_epochs"] *= of_recipe["epochs"] / Config().epochs  # an edited one keeps its share of the epochs
    return checked(recipes.change(name, values, given) | others)


def check_names(changes: Iterable[str]) -> None:
    """Raises UserError for a name that no hyperparameter has."""
    for name in changes:
        if name not in NAMES:
            raise UserError(f"unknown hyperparameter {name}; {nearest(name, NAMES) or ', '.join(NAMES)}")


def checked(values: Mapping[str, Any]) -> Options:
    """These hyperparameters, if each is in range and they go together; else raises UserError."""
    try:
        options = Options(**values)
    except ValueError as error:
        name, _, why = str(error).partition(" ")
        raise UserError(f"{flag(name)} {why}") from None
    for name, schemes, folder in PATHS:
        paths.check(flag(name), getattr(options, name), schemes=schemes, folder=folder)
    if options.knots:
        schedules.parse(options.knots)
    sides.check(options.sides, options.epochs)
    networks.parse_blocks(options.blocks)
    epochs = run_length(options.epochs, options.last_epoch)
    if options.warmup_epochs >= epochs:
        raise UserError(f"--warmup-epochs {options.warmup_epochs:g} is not below the run's {epochs:g}; lower it")
    groups = options.ghost_groups
    if groups and options.batch_size % groups:
        near = max(1, round(options.batch_size / groups)) * groups
        raise UserError(f"--batch-size {options.batch_size} is not divisible by --ghost-groups {groups}; try {near}")
    # An object store's "a//b" is not "a/b".
    places = {name: getattr(options, name) for name in ("resume", "checkpoint_dir")}
    return replace(options, **{name: place.rstrip("/") or place for name, place in places.items()})


class LabTraining(Training):
    """The core's training, evaluated on the moving average of its weights if the recipe has one; it may end within an
    epoch."""

    config: Options
    images: Any  # an ImageSet
    batches: HostBatches
    placement: Placement
    layers: dict[int, list[describe.Row]]  # by the side of the images
    average: WeightAverage | None = None
    proxy: Proxy | None = None
    evaluation_seconds = 0.0
    why = ""  # the precision is what it is

    def steps_by(self, epoch: int) -> int:
        """How many steps have been made by the end of that epoch; of the last one there is only a share."""
        whole = len(self.images.train_labels) // self.config.batch_size
        return min(epoch * whole, run_steps(run_length(self.config.epochs, self.config.last_epoch), whole))

    def steps_of(self, epoch: int) -> int:
        """The steps of that epoch."""
        return self.steps_by(epoch) - self.steps_by(epoch - 1)

    def run(self, first: int = 1, step: int = 0) -> Iterator[Moment]:
        whole = self.steps_per_epoch
        self.steps_per_epoch = self.steps_of(first)  # the core's loop reads it anew in each epoch
        try:
            for moment in super().run(first, step):
                if moment.row and self.proxy:  # the core divides by all images of an epoch
                    for name in ("train_loss", "train_accuracy"):
                        moment.row[name] /= self.trained_share
                yield moment
                if moment.row:
                    self.steps_per_epoch = self.steps_of(moment.epoch + 1)
        finally:
            self.steps_per_epoch = whole

    @property
    def trained_share(self) -> float:
        """Of the images of a batch, those that the network learns from: all, or what --hardest chooses."""
        return self.proxy.count / self.config.batch_size if self.proxy else 1.0

    def multiply_adds(self, epochs: int) -> float:
        """Of a forward pass for one training image, the mean over the images of the first `epochs` epochs."""
        stages = self.stages(epochs)
        work = sum(steps * describe.multiply_adds(self.layers[stage.side]) for stage, steps in stages)
        return work / sum(steps for _, steps in stages)

    def stages(self, epochs: int) -> list[tuple[sides.Stage, int]]:
        """The sides of the training images in the first `epochs` epochs, each with the number of its steps."""
        stages = sides.parse(self.config.sides)
        ends = [*(stage.start for stage in stages[1:]), epochs]
        return [
            (stage, max(0, self.steps_by(min(end, epochs)) - self.steps_by(stage.start)))
            for stage, end in zip(stages, ends, strict=True)
        ]

    def averaged(self) -> AbstractContextManager[None]:
        """Within it, the network has its averaged weights, if the recipe has them."""
        return self.average.swapped() if self.average else nullcontext()

    def evaluate(self) -> tuple[float, float]:
        start = time.perf_counter()
        with self.averaged():
            result = super().evaluate()
        self.evaluation_seconds = time.perf_counter() - start
        return result


def place(options: Options) -> Placement:
    """The devices to train on. Call it before anything else uses TensorFlow. Raises UserError."""
    return devices.choose(options.device, tpu=options.tpu, logical_devices=options.logical_devices)


def make(
    options: Options, placement: Placement | None = None, images: ImageSet | None = None, *, optimizer: Any = None
) -> LabTraining:
    """The training of these hyperparameters, its weights at their start.

    Args:
        placement: see place.
        images: see load.of.
        optimizer: what makes it, in place of optimizers.make: adjust.make.

    Raises:
        UserError: for missing data or devices, a batch that does not divide, a --profile that cannot be written, or
            a network that is not what Keras says it is, see describe.trace, or cannot take one of the --sides.
    """
    placement = placement or place(options)  # before the data: TFRecords start TensorFlow
    images = images or load.of(options)
    devices.check_batch(options.batch_size, placement.replicas)
    devices.check_groups(options.ghost_groups, placement.replicas)
    if options.hardest and placement.replicas > 1:
        raise UserError(
            f"--hardest chooses from a whole batch, of which {placement.replicas} replicas have parts; take 1"
        )
    if options.profile:
        check_profile(options.profile)
    options, why = resolved(options, placement)
    memory.check_updates(options.epochs * (len(images.train_labels) // options.batch_size))
    if placement.kind == "cpu" and options.width > SMALL:
        by_width = networks.parameters_by_width(options, len(images.classes))
        winograd = options.precision == "float32" and is_fast(options, placement)
        memory.check_weights(options.width, by_width, "fast" if winograd else "plain")
    try:
        training = LabTraining(
            options,
            strategy=placement.strategy,
            images=images,  # type: ignore[arg-type]  # it has what Images has, and more
            network=partial(make_network, fast=is_fast(options, placement)),
            optimizer=optimizer or optimizers.make,
            batches=make_batches(options, placement),
            xla_on_cpu=True,
        )
    except data.UserError as error:
        raise UserError(str(error)) from None
    training.placement, training.average = placement, optimizers.average_of(training.optimizer)
    if options.hardest:
        training.proxy = training.batches.select = make_proxy(training, options)
    with tf.device("CPU:0"):
        training.layers = describe.of_sides(training.network, options.sides)
    training.why = why
    return training


def resolved(options: Options, placement: Placement) -> tuple[Options, str]:
    """The hyperparameters with the precision that a CPU is to compute in, and whether by XLA; and why.

    With --precision auto that is the fastest way here. A run that goes on keeps its own, which its checkpoint holds.
    Several workers, whose processors may differ, and --eager stay in float32. Of accelerators the core decides.
    """
    if placement.kind != "cpu":
        return options, ""
    alone = placement.workers == 1 and not options.eager
    way = fastest.choose(options.precision, jit=options.jit and placement.replicas == 1, timing=alone)
    return replace(options, precision=way.precision, jit=options.jit and way.xla), way.why


def check_profile(folder: str) -> None:
    """Makes the profile's folder. Raises UserError if that cannot be written, before the steps that it is to show."""
    if storage.is_remote(folder):
        storage.with_timeout(folder, tf.io.gfile.makedirs)
    else:
        paths.check_writable("--profile", os.path.expanduser(folder))


def is_fast(options: Options, placement: Placement) -> bool:
    """Whether the layers take the forms of lab/machine/kernels.py, made for a CPU; `options` are resolved."""
    alone = placement.kind == "cpu" and placement.replicas == 1
    if options.operations == "auto":
        return alone and (options.jit or options.precision == "bfloat16") and not options.eager
    return options.operations == "fast"


def make_network(options: Options, images: ImageSet, *, fast: bool) -> tf.keras.Model:
    """The network with its weights at their start, whitening filters fitted to the training images."""
    return fitted(networks.make(options, len(images.classes), fast=fast), images)


def make_proxy(training: LabTraining, options: Options) -> Proxy:
    """The small network that chooses a part of each batch, at its start."""
    with training.strategy.scope():
        network = networks.proxy(options, len(training.images.classes), fast=is_fast(options, training.placement))
        scale = getattr(training.optimizer, "initial_scale", 0.0)  # the core's, in float16
        return Proxy(options, fitted(network, training.images), training.steps_per_epoch, loss_scale=scale)


def fitted(network: tf.keras.Model, images: ImageSet) -> tf.keras.Model:
    """The network, its whitening filters, if any, fitted to the training images."""
    start = time.perf_counter()
    count = networks.whitening_images(network)
    if count:
        mean, std = data.mean_std(images.train_images)
        networks.fit_whitening(network, data.standardise(images.train_images[:count], mean, std))
    network.whitening_seconds = time.perf_counter() - start
    return network


def make_batches(options: Options, placement: Placement) -> Any:
    """What makes the batches: on the device, or with --pipeline host by tf.data."""
    if options.pipeline == "host":
        return HostBatches
    return partial(ResidentBatches, products=placement.kind == "tpu")


def restart(training: LabTraining, options: Options) -> None:
    """Makes it the training of another seed; what is compiled stays."""
    with training.strategy.scope():
        options, _ = resolved(options, training.placement)
        fresh = make_network(options, training.images, fast=is_fast(options, training.placement))
        update, _ = optimizers.make(options, fresh, training.steps_per_epoch)
        if training.precision == "float16":
            update = train_eager.LossScale(update, initial_scale=training.optimizer.initial_scale)
        update.build(fresh.trainable_variables)
    proxy = make_proxy(training, options).variables if options.hardest else ()
    for variable, value in zip(variables(training), (*fresh.variables, *update.variables, *proxy), strict=True):
        variable.assign(tf.convert_to_tensor(value))
    training.network.whitening_seconds = fresh.whitening_seconds
    training.config = training.batches.config = options


def variables(training: LabTraining) -> list[Any]:
    """All that training changes, in a fixed order."""
    proxy = training.proxy.variables if training.proxy else ()
    return [*training.network.variables, *training.optimizer.variables, *proxy]
