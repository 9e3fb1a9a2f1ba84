"""The for-loop around the core's: header, warm-up, rows, record, checkpoints, signals, result."""

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from lab import assemble
from lab.assemble import LabTraining, Options
from lab.base import console
from lab.base.errors import Exit, UserError, exhausted
from lab.ladder import describe, networks, recipes, schedules, views
from lab.machine import devices, memory, preflight, sides
from lab.options import OF_A_RECIPE, run_length
from lab.report.predictions import VIEWS
from lab.runs import record
from lab.runs.checkpoint import Checkpoints, Saved
from lab.runs.interrupt import Interrupt
from lab.runs.progress import Progress, read
from lab.runs.tensorboard import Board
from train_eager import Moment

PROFILED_STEPS = 10
PLACES = ("data", "out", "resume", "checkpoint_dir", "profile")  # here; not for the record


class Drive:
    """One run: a training, its folder and its progress.

    Args:
        training: its weights at their start.
        folder: of the results; None for workers but the first.
        interrupt: notes signals.
        saved: the checkpoint to go on from, or None.
    """

    def __init__(
        self, training: LabTraining, folder: Path | None, interrupt: Interrupt, saved: Saved | None = None
    ) -> None:
        self.training, self.folder, self.interrupt, self.saved = training, folder, interrupt, saved
        self.options: Options = training.config
        self.data_sha256, self.code = training.images.sha256, record.code()
        self.progress, self.compile_seconds = Progress(), 0.0
        where = os.path.expanduser(self.options.checkpoint_dir) or str(folder)
        self.checkpoints = Checkpoints(where, self.options.keep, assemble.variables(training))
        if folder and self.options.checkpoint_every:
            self.checkpoints.check_folder()

    # ---- the run -------------------------------------------------------------------------------------------

    def run(self, *, compiled: bool) -> dict[str, Any]:
        """Trains to the end, writes the result after each epoch, and returns it.

        Args:
            compiled: whether an earlier run has compiled the step.
        """
        options, training = self.options, self.training
        say_header(self)
        if self.saved is not None:
            self.checkpoints.restore(self.saved)
        if not compiled:
            check_memory(self)
            self.compile_seconds = warm_up(training)
            console.say(f"compiled in {self.compile_seconds:.1f} s; the clocks start now")
        self.board = Board(self.folder) if options.tensorboard and self.folder else None
        console.say(f"\n{console.heading()}")
        if self.saved is not None:
            self._go_on(self.saved)
        progress = self.progress
        last = options.stop_after or options.epochs
        self.started = time.perf_counter() - progress.total_seconds
        self.epoch_started = time.perf_counter() - progress.epoch_seconds
        with (
            console.EpochBar([training.steps_by(epoch) * options.batch_size for epoch in range(last + 1)]) as bar,
            profiled(self) as stop,
        ):
            if progress.epoch <= last:
                bar.show(progress.epoch, progress.step_of_epoch * options.batch_size)
            for moment in training.run(progress.epoch, progress.step_of_epoch):
                bar.show(moment.epoch, moment.step * options.batch_size)
                progress.epoch, progress.step_of_epoch = moment.epoch, moment.step
                stop(moment)
                if moment.row is not None:
                    self._epoch_ended(moment.row)
                    if progress.epoch <= last:
                        bar.show(progress.epoch, 0)
                    self.epoch_started = time.perf_counter()  # as the core's, which goes on now
                elif moment.step < training.steps_per_epoch:
                    self._stop_if_asked()
                if moment.epoch == 1 and moment.step == 4 and moment.row is None:
                    self._say_how_long(last)
        return self._finish(last)

    def _epoch_ended(self, row: dict[str, Any]) -> None:
        """Completes the row of an epoch, prints and records it, and saves what is due."""
        options, progress, training = self.options, self.progress, self.training
        # The core's clock began where this process took the epoch up.
        row["train_seconds"] += progress.epoch_seconds
        end = min(row["epoch"], run_length(options.epochs, options.last_epoch))
        row["learning_rate"] = float(schedules.of(vars(options))(end))
        self._check_skipped(row["epoch"])
        progress.train_seconds += row["train_seconds"]
        progress.evaluation_seconds = training.evaluation_seconds
        last = options.stop_after or options.epochs
        progress.tta_accuracy = None  # an earlier end's, if the run has gone on
        if row["epoch"] == last:
            self._evaluate_views()
        row["total_seconds"] = time.perf_counter() - self.started
        progress.rows.append({name: row[name] for name, _, _ in console.COLUMNS})
        progress.epoch, progress.step_of_epoch = row["epoch"] + 1, 0
        progress.loss_sum = progress.correct = progress.epoch_seconds = 0.0
        progress.parts = []
        console.say(console.row(progress.rows[-1]))
        if self.board:
            self.board.write(progress.rows[-1])
        if self.folder:
            record.write_result(self.folder, self.result(finished=False))
        due = options.checkpoint_every and (row["epoch"] % options.checkpoint_every == 0 or row["epoch"] == last)
        if due or (self.interrupt.signal and training.placement.workers == 1):
            self._save()
        self._stop_if_asked(save=False)

    def _evaluate_views(self) -> None:
        """The accuracy with the recipe's views of each test image, and its seconds, if it has any."""
        if self.options.tta == "none":
            return
        start = time.perf_counter()
        with self.training.averaged():
            self.progress.tta_accuracy = views.accuracy(self.training, self.options.tta)
        self.progress.evaluation_seconds = time.perf_counter() - start

    def _finish(self, last: int) -> dict[str, Any]:
        """Writes the weights and the result; returns it."""
        options, training, progress = self.options, self.training, self.progress
        if progress.tta_accuracy is None:  # a run that ends where it stopped
            self._evaluate_views()
        result = self.result(finished=True)
        if self.folder:
            with training.averaged():
                arrays = networks.evaluated_arrays(training.network)
                result["weights_sha256"] = record.write_weights(self.folder, arrays)
            record.write_result(self.folder, result)
        ending = "" if last == options.epochs else f" after {last} of the schedule's {options.epochs} epochs"
        seen = ""
        if progress.tta_accuracy is not None:
            cost = f"evaluation: {progress.evaluation_seconds:.1f} s"
            if training.evaluation_seconds:  # 0 if this process has trained nothing
                cost += f", with one view {training.evaluation_seconds:.1f} s"
            seen = f", {progress.tta_accuracy:.4f} with {VIEWS[options.tta]} ({cost})"
        console.say(f"\n{set_name(self)} accuracy {result['test_accuracy']:.4f}{seen}{ending}")
        if training.placement.workers > 1:  # every worker prints it, so that they can be compared
            console.say(f"weights sha256 {weights_sha256(training)}")
        if self.folder:
            console.say(f"wrote {self.folder / 'result.json'}, dawnbench.tsv and weights.npz")
        return result

    # ---- stopping and going on -----------------------------------------------------------------------------

    def _save(self) -> None:
        """Writes a checkpoint of where the run is."""
        progress = self.progress
        progress.total_seconds = time.perf_counter() - self.started
        if self.folder is None:
            return
        about = asdict(progress) | {"hyperparameters": asdict(self.options), "data_sha256": self.data_sha256}
        steps = self.training.steps_by(progress.epoch - 1) + progress.step_of_epoch
        self.checkpoints.save(steps, about)

    def _go_on(self, saved: Saved) -> None:
        """Takes up a checkpoint's progress and prints its rows."""
        self.progress = progress = read(saved)
        parts = self.training.strategy.experimental_local_results(self.training.sums)
        if len(progress.parts) == len(parts):
            for part, values in zip(parts, progress.parts, strict=True):
                part.assign(tf.constant(values))
        else:  # another number of replicas
            self.training.sums.assign(tf.constant([progress.loss_sum, progress.correct]))
        for row in self.progress.rows:
            console.say(console.row(row))

    def _stop_if_asked(self, *, save: bool = True) -> None:
        """Ends the run if a signal came, with a checkpoint first if `save`."""
        signal, progress, training = self.interrupt.signal, self.progress, self.training
        if signal is None:
            return
        if save and training.placement.workers == 1:  # several: the others do not know that this one stops
            parts = training.strategy.experimental_local_results(training.sums)
            progress.parts = [part.numpy().tolist() for part in parts]
            progress.loss_sum, progress.correct = training.fetch()  # waits for the device
            progress.epoch_seconds = time.perf_counter() - self.epoch_started
            if not math.isfinite(progress.loss_sum):
                raise FloatingPointError(f"the loss is not finite in epoch {progress.epoch}; lower --learning-rate")
            self._save()
        epoch, step = progress.epoch, progress.step_of_epoch
        if step == 0:
            epoch, step = epoch - 1, training.steps_per_epoch
        folder = self.options.checkpoint_dir or self.folder or "the first worker's folder"
        raise UserError(
            f"stopped by {signal.name} in epoch {epoch} after step {step} of {training.steps_per_epoch}; go on with "
            f"--resume {folder}",
            exit_code=self.interrupt.exit_code,
        )

    def _check_skipped(self, epoch: int) -> None:
        """Says how many steps float16 has skipped; ends the run if it skipped them all."""
        training, steps = self.training, self.training.steps_per_epoch
        if training.precision != "float16":
            return
        updates = int(tf.convert_to_tensor(training.optimizer.inner_optimizer.iterations))
        skipped = steps - (updates - self.progress.updates)
        self.progress.updates = updates
        if skipped == steps:
            raise UserError(
                f"float16 overflowed in all {steps} steps of epoch {epoch}; try --precision float32",
                exit_code=Exit.NOT_FINITE,
            )
        if skipped:
            console.say(f"note: float16 overflowed in {skipped} of {steps} steps of epoch {epoch}; they were skipped")

    def _say_how_long(self, last: int) -> None:
        training = self.training
        step_seconds = (time.perf_counter() - self.epoch_started) / 4
        # Small images come first: what all epochs take, from what the first one does.
        growth = training.multiply_adds(last) / training.multiply_adds(1)
        total = step_seconds * training.steps_by(last) * growth
        if training.kind == "CPU" and total > 600:
            console.say(
                f"this run will train for about {total / 3600:.1f} hours on this CPU; shorter: --epochs 10, "
                f"--stop-after 3, or --epochs 1 --limit-train 2048 --limit-test 512"
            )

    # ---- what it leaves ------------------------------------------------------------------------------------

    def result(self, *, finished: bool) -> dict[str, Any]:
        """What result.json holds."""
        training, options, progress, images = self.training, self.options, self.progress, self.training.images
        rows, batches = progress.rows, training.batches
        return {
            "recipe": options.recipe,
            "seed": options.seed,
            "finished": finished,
            "hyperparameters": {k: v for k, v in asdict(options).items() if k not in PLACES},
            "data": {
                "source": images.source,
                "sha256": self.data_sha256,
                "synthetic": images.synthetic,
                "doubt": images.doubt,
                "train_images": len(images.train_labels),
                "test_images": len(images.test_labels),
                # What a prediction needs besides the weights; mean and deviation on the 0-1 scale.
                "classes": list(images.classes),
                "mean": batches.mean.tolist(),
                "std": batches.std.tolist(),
            },
            "code": self.code,
            "random_stream": record.RANDOM_STREAM,
            "versions": record.versions(),
            "hardware": record.hardware(devices.accelerators(training.placement.kind)),
            "precision": training.precision,
            "replicas": training.replicas,
            "epochs": rows,
            "test_accuracy": rows[-1]["test_accuracy"],
            "test_accuracy_tta": progress.tta_accuracy,
            "train_seconds": progress.train_seconds,
            "total_seconds": rows[-1]["total_seconds"],
            "compile_seconds": self.compile_seconds,
            "peak_memory_gib": record.peak_memory_gib(),
            "airbench_seconds": training.network.whitening_seconds
            + progress.train_seconds
            + progress.evaluation_seconds,
            "images_per_second": training.steps_by(len(rows)) * options.batch_size / progress.train_seconds,
            "forward_gflop_per_image": 2 * training.trained_share * training.multiply_adds(len(rows)) / 1e9,
        }


# ---- before the clocks start -------------------------------------------------------------------------------


def warm_up(training: LabTraining) -> float:
    """Compiles by training a step of each side and evaluating one batch, then undoes them. Returns the seconds."""
    start, variables = time.perf_counter(), assemble.variables(training)
    before = [tf.identity(tf.convert_to_tensor(variable)) for variable in variables]
    # What was seen for DavidNet and the speedrun, on two cores; for GPUs and TPUs it is a guess.
    usual = "20 s to 2 minutes, longer on a busy machine" if training.jit or training.kind == "TPU" else "some seconds"
    with console.waiting(f"preparing the step, which takes {usual}"):
        for stage in sides.parse(training.config.sides):  # a compiled step for each
            training.train_steps(training.batches.open(stage.start + 1), tf.constant(1))
        training.test_steps(iter(training.test_batches), tf.constant(1))
        if training.config.tta != "none":
            views.warm_up(training, training.config.tta)
        training.fetch()
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    memory.give_back()
    return time.perf_counter() - start


def check_memory(drive: Drive) -> None:
    """Says that the batch may not fit in memory, or raises UserError if it cannot: see memory.check_batch."""
    options, training = drive.options, drive.training
    if training.kind == "CPU":
        number_bytes = 4 if training.precision == "float32" else 2
        unit = math.lcm(training.replicas, options.ghost_groups or 1)
        # Each worker has its part of the batch, in its own memory.
        image_bytes = number_bytes * describe.outputs(training.layers[sides.FULL]) // training.placement.workers
        weight_bytes = 4 * networks.parameters(training.network)
        note = memory.check_batch(options.batch_size, image_bytes, unit, weight_bytes)
        if note:
            console.say(f"note: {note}")


@contextlib.contextmanager
def within_memory(options: Options) -> Iterator[None]:
    """Turns running out of memory, wherever in a run, into advice: a batch size that may fit."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # TensorFlow's, XLA's, NumPy's and Python's own are of different kinds
        if not exhausted(error):
            raise
        unit = math.lcm(options.logical_devices or 1, options.ghost_groups or 1)
        smaller = max(unit, options.batch_size // 2 // unit * unit)
        less = f"--batch-size {smaller}" if smaller < options.batch_size else f"--width {max(1, options.width // 2)}"
        raise UserError(
            f"--batch-size {options.batch_size} with --width {options.width} does not fit in memory; try {less}",
            exit_code=Exit.EXHAUSTED,
        ) from error


@contextlib.contextmanager
def profiled(drive: Drive) -> Iterator[Any]:
    """Within it, TensorFlow's profiler records the first steps; yields a function to call at each moment."""
    folder, training = os.path.expanduser(drive.options.profile), drive.training
    first = drive.progress.step_of_epoch
    end, running = min(first + PROFILED_STEPS, training.steps_of(drive.progress.epoch)), bool(folder)
    if running:
        tf.profiler.experimental.start(folder)

    def stop(moment: Moment) -> None:
        nonlocal running
        if running and moment.step >= end:
            tf.convert_to_tensor(training.sums).numpy()  # so that the steps are over
            running = False
            tf.profiler.experimental.stop()
            console.say(f"wrote a profile of {moment.step - first} steps to {folder}")

    try:
        yield stop
    finally:
        if running:
            tf.profiler.experimental.stop(save=False)


# ---- what it says ------------------------------------------------------------------------------------------


def say_header(drive: Drive) -> None:
    """What is trained on what, and what may be wrong."""
    training, options, images = drive.training, drive.options, drive.training.images
    placement, count, epochs = training.placement, training.replicas, run_length(options.epochs, options.last_epoch)
    compiles = training.jit or training.kind == "TPU"
    console.header(
        {
            "recipe": f"{options.recipe}, {epochs:g} epoch{'s' * (epochs > 1)}, batch {options.batch_size}, "
            f"seed {options.seed}",
            "data": f"{images.source}: {len(images.train_labels):,} training images, "
            f"{len(images.test_labels):,} {set_name(drive)} images",
            "network": f"{networks.NETWORKS[options.network].about}, "
            f"{networks.parameters(training.network):,} parameters",
            "changes to davidnet": differences(options) or "none",
            "device": f"{placement.kind} ({placement.reason}), {count} replica{'s' * (count > 1)}, "
            f"{training.precision}, {'XLA' if compiles else 'no XLA'}{training.why and f' ({training.why})'}",
            "versions": ", ".join(f"{name} {version}" for name, version in record.versions().items()),
            "timed": "train s: training alone; total s: evaluation too; neither loading nor compiling",
            "results": str(drive.folder or "worker 0 writes them"),
        }
    )
    if images.doubt:
        console.say(f"note: {images.doubt}: another order, other images, or damage")
    for finding in preflight.findings(preflight.gather(), placement.kind, jit=training.jit):
        console.say(f"note: {finding}")
    if options.jit and count > 1 and training.kind != "TPU":
        console.say("note: no XLA, which compiles the step for a single replica only")


def differences(options: Options) -> str:
    """What differs from the published davidnet in the network and its training."""
    published = recipes.values(recipes.ROOT)
    mine = {name: getattr(options, name) for name in OF_A_RECIPE}
    changed = recipes.differences(published, mine)
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, (_, value) in changed.items()
    )


def set_name(drive: Drive) -> str:
    """What the images are called that are tested on."""
    kind = "validation" if drive.options.holdout else "test"
    return f"synthetic {kind}" if drive.training.images.synthetic else kind


def weights_sha256(training: LabTraining) -> str:
    """Of the trained weights, in their order."""
    digest = hashlib.sha256()
    for weight in training.weights:
        digest.update(np.asarray(weight).tobytes())
    return digest.hexdigest()
