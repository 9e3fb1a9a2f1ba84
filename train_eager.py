"""Trains DavidNet on CIFAR-10 with a GradientTape loop: 24 epochs to about 94 %.

    python train_eager.py                          # the recipe below
    python train_eager.py --epochs 10 --seed 3     # every constant below is a flag as well
    python train_eager.py -h

    >>> from train_eager import train
    >>> result = train(epochs=10, data="synthetic")

The recipe is D. C. Page's cifar10-fast (dawn.py, 2019), the numbers below are from there unless they say
otherwise. README.md tells what is timed and what a run leaves behind.
"""

import contextlib
import hashlib
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lab.machine import memory

if __name__ == "__main__":
    memory.restart_with_huge_pages()  # before the slow imports
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter; errors still show

import numpy as np
import tensorflow as tf

from lab import options as settings
from lab import schedules as schedule
from lab import series
from lab.base import console
from lab.base.errors import UserError
from lab.images import load as data
from lab.ladder import describe, recipes
from lab.ladder import networks as model
from lab.ladder import optimizers as optimizer
from lab.ladder.averaging import WeightAverage
from lab.ladder.evaluation import Counters, Evaluator, count_correct, cross_entropy_sum
from lab.ladder.finite import BadSteps, LossScale, finite_on_all
from lab.ladder.layers import average_statistics
from lab.machine import devices, preflight
from lab.machine.augment import Shard
from lab.machine.pipeline import make_pipeline
from lab.runs import record, resume, summaries
from lab.runs.checkpoint import Checkpoints, Saved
from lab.runs.interrupt import Interrupt

# fmt: off
# ---- Hyperparameters: edit here, or give the flag of the same name (--batch-size 256). ---------------------
# or another name of lab/ladder/recipes.py, whose changes then apply to what follows
RECIPE = "davidnet"  #@param {type:"string"}
# passes over the training set
EPOCHS = 24  #@param {type:"integer"}
# images a step, over all replicas
BATCH_SIZE = 512  #@param {type:"integer"}
# peak, for the gradient of the mean loss
LEARNING_RATE = 0.4  #@param {type:"number"}
# epochs up to the peak; from there the rate falls to 0 at the end
WARMUP_EPOCHS = 5.0  #@param {type:"number"}
# Nesterov's, rate outside the accumulator
MOMENTUM = 0.9  #@param {type:"number"}
# times the weights, added to the gradient of the mean loss
WEIGHT_DECAY = 5e-4  #@param {type:"number"}
# share of the target spread over the classes
LABEL_SMOOTHING = 0.0  #@param {type:"number"}
# share of outputs, before batch norm; 0.05 in the eager tutorial
DROPOUT = 0.0  #@param {type:"number"}
# pixels of reflection, before the random 32x32 crop
PAD = 4  #@param {type:"integer"}
# mirror a random half of the images, or each one in every second epoch
FLIP = "random"  #@param ["none", "random", "alternating"]
# side of the square of zeros, pixels
CUTOUT = 8  #@param {type:"integer"}
# filters of the first convolution
WIDTH = 64  #@param {type:"integer"}
# of weights, order and augmentation
SEED = 0  #@param {type:"integer"}
# ---- What other recipes turn on. ---------------------------------------------------------------------------
# of lab/ladder/networks.py
NETWORK = "davidnet"  #@param ["davidnet", "plain", "extra", "dawn", "speednet"] {allow-input: true}
# epoch,rate pairs like "0,0 5,0.4 24,0"; empty: the warm-up, then straight down
KNOTS = ""  #@param {type:"string"}
# of the filters; muon takes nesterov for the rest
OPTIMIZER = "nesterov"  #@param ["nesterov", "lars", "muon"]
# learning rate inside Nesterov's accumulator (post 8, Keras) instead of outside
RATE_INSIDE = False  #@param {type:"boolean"}
# times the rate of biases and shifts; divides their decay
BIAS_FACTOR = 1.0  #@param {type:"number"}
# muon: momentum of the filters
FILTER_MOMENTUM = 0.6  #@param {type:"number"}
# muon: peak rate of biases and shifts, for the summed loss
BIAS_RATE = 0.053  #@param {type:"number"}
# muon: peak rate of the last layer, for the summed loss
HEAD_RATE = 0.67  #@param {type:"number"}
# muon: epochs after which the whitening's bias is frozen
WHITEN_BIAS_EPOCHS = 3.0  #@param {type:"number"}
# between the layers
ACTIVATION = "relu"  #@param ["relu", "celu", "gelu"]
# where a CELU levels off: at minus this
CELU_ALPHA = 1.0  #@param {type:"number"}
# pool before batch norm and activation, not after them
POOL_FIRST = False  #@param {type:"boolean"}
# parts of the batch with batch statistics of their own; 0: one
GHOST_GROUPS = 0  #@param {type:"integer"}
# batch norm's scales stay at 1
FROZEN_SCALES = False  #@param {type:"boolean"}
# whitening filters as first convolution
WHITEN = False  #@param {type:"boolean"}
# times the last layer's outputs
LOGIT_SCALE = 0.125  #@param {type:"number"}
# steps between updates of the weights' moving average; 0: none
EMA_EVERY = 0  #@param {type:"integer"}
# share of that average that a step keeps
EMA_KEEPS = 0.99  #@param {type:"number"}
# views of a test image at the end, whose logits are averaged
TTA = "none"  #@param ["none", "flip", "six"]
# ---- Where and how: for the speed; the result stays the same to rounding, or to each replica's batch norm. -
# auto: TPU, else GPU, else CPU
DEVICE = "auto"  #@param ["auto", "cpu", "gpu", "tpu"]
# name or address; empty: this machine's own
TPU = ""  #@param {type:"string"}
# auto: float32 on a CPU, bfloat16 on TPUs and GPUs since Ampere, float16 on older ones
PRECISION = "auto"  #@param ["auto", "float32", "bfloat16", "float16"]
# who makes the batches; auto: the device, measured faster on a CPU too
PIPELINE = "auto"  #@param ["auto", "host", "device"]
# fast: the forms of lab/machine/kernels.py, made for XLA on a CPU; auto: fast there, else plain
OPERATIONS = "auto"  #@param ["auto", "plain", "fast"]
# batch statistics over all replicas, not each one's own
SYNC_BN = False  #@param {type:"boolean"}
# split the CPU into so many, to try replicas; 0: do not
LOGICAL_DEVICES = 0  #@param {type:"integer"}
# compile the step with XLA
JIT = True  #@param {type:"boolean"}
# operation by operation, for debugging
EAGER = False  #@param {type:"boolean"}
# the same numbers on every run on this device; a CPU gives them anyway
DETERMINISTIC = False  #@param {type:"boolean"}
# ---- Data and results. -------------------------------------------------------------------------------------
# folder, .tar.gz, .npz, TFRecords (gs:// too) or 'synthetic'; empty: find or download
DATA = ""  #@param {type:"string"}
# folder on a local disk to train from, for TFRecords that do not fit in memory; empty: memory
SCRATCH = ""  #@param {type:"string"}
# training images to validate on in place of the test set
HOLDOUT = 0  #@param {type:"integer"}
# images, balanced; 0: all
LIMIT_TRAIN = 0  #@param {type:"integer"}
# images, balanced; 0: all
LIMIT_TEST = 0  #@param {type:"integer"}
# epochs of the unchanged schedule; 0: to its end
STOP_AFTER = 0  #@param {type:"integer"}
# seeds to train one after another, from SEED up, and their statistics
RUNS = 1  #@param {type:"integer"}
# folder for the results; empty: runs/<recipe>-<seed>-<time>
OUT = ""  #@param {type:"string"}
# folder of a run to go on with; auto: the newest of this recipe and seed, if there is one
RESUME = ""  #@param {type:"string"}
# epochs between checkpoints; 0: none
CHECKPOINT_EVERY = 1  #@param {type:"integer"}
# checkpoints to keep
KEEP = 2  #@param {type:"integer"}
# where they go, gs:// too; empty: the results' folder
CHECKPOINT_DIR = ""  #@param {type:"string"}
# folder for a profile of ten steps; empty: none
PROFILE = ""  #@param {type:"string"}
# rows and, at the end, pictures for TensorBoard, in the results' folder
TENSORBOARD = False  #@param {type:"boolean"}
# ------------------------------------------------------------------------------------------------------------
# fmt: on

EVALUATION_BATCH = 1000  # images a step; divides CIFAR-10's 10,000
PROFILED_STEPS = 10
NOT_FINITE = 3  # exit code
PLACES = ("data", "scratch", "out", "resume", "checkpoint_dir", "profile")  # here; not for the record
INTERRUPTED = 130  # exit code after Ctrl-C, as the shell's own


def constants() -> settings.Settings:
    """The hyperparameters as they stand above, read anew at each call so that edits in a notebook count."""
    return settings.Settings(**{name: globals()[name.upper()] for name in settings.NAMES})


def train(**changes: Any) -> dict[str, Any]:
    """Trains and returns what result.json holds; of several runs, {"runs": the results, by seed}.

    Args:
        changes: hyperparameters that differ from the constants above, by their names in lower case
            (`epochs=10`). `settings.Settings` lists them with units and limits.

    Raises:
        UserError: on a wrong hyperparameter, missing or damaged data, a missing device or an output folder
            that cannot be written. Its message is one line.
    """
    options = settings.change(recipes.resolve(changes.get("recipe", RECIPE), constants()), changes)
    saved, begun = None, series.find(options.resume, options)
    if begun:
        options = series.settings_of(begun, changes, constants())
    elif options.resume and options.runs == 1:
        folder, saved, damaged = resume.find(options.resume, options)
        for line in damaged:
            console.say(f"note: {line}")
        if saved is not None:
            options = resume.settings_of(folder, saved, changes, constants())
    elif options.resume not in ("", "auto"):  # of several runs
        raise UserError(f"--resume {options.resume} holds no series; leave out --runs, or start a series")
    if options.runs > 1 and devices.several_workers():
        raise UserError(f"--runs {options.runs} is for one process; unset TF_CONFIG, or leave the flag out")
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.keras.utils.disable_interactive_logging()
    run: Run | None = None

    def train_one(own: settings.Settings, saved: Saved | None) -> dict[str, Any]:
        nonlocal run
        random.seed(own.seed)
        np.random.seed(own.seed)
        tf.random.set_seed(own.seed)
        if run is None or run.draws_images():
            run = Run(own, interrupt, saved)
        else:
            run.restart(own, saved)
        return run.train()

    with eagerly(options.eager), devices.workers_in_sight(), Interrupt() as interrupt:
        if options.runs > 1 or begun:
            return {"runs": series.train(options, train_one, constants(), resumed=bool(begun))}
        return train_one(options, saved)


@contextlib.contextmanager
def eagerly(eager: bool) -> Iterator[None]:
    """Within it, tf.functions run operation by operation if `eager`."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(eager)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


class Run:
    """One training, from the hyperparameters to the result.

    Its parts are made in the order in which they are needed: device, data, folder, network, step, evaluation.
    """

    def __init__(
        self, options: settings.Settings, interrupt: Interrupt | None = None, saved: Saved | None = None
    ) -> None:
        """Args: the hyperparameters; what notes signals; the checkpoint to go on from, None for a new run."""
        self.compiled = False
        self.options, self.interrupt, self.saved = options, interrupt or Interrupt(), saved
        default = Path("runs") / f"{options.recipe}-{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        # Before the data: reading TFRecords starts TensorFlow, after which devices cannot be set up any more.
        self.placement = devices.choose(
            options.device, tpu=options.tpu, logical_devices=options.logical_devices
        )
        images = data.load(
            options.data or None,
            seed=options.seed,
            limit_train=options.limit_train,
            limit_test=options.limit_test,
            holdout=options.holdout,
            scratch=options.scratch or None,
        )
        self.images, self.data_sha256 = images, images.sha256()
        if saved is not None:
            resume.check_data(saved, self.data_sha256)
        self.steps_per_epoch = len(images.train_labels) // options.batch_size
        if self.steps_per_epoch == 0:
            count = len(images.train_labels)
            raise UserError(
                f"--batch-size {options.batch_size} is above the {count} training images; lower it"
            )
        self.schedule = (
            schedule.parse(options.knots)
            if options.knots
            else schedule.triangle(options.epochs, options.warmup_epochs, options.learning_rate)
        )
        devices.check_batch(options.batch_size, self.placement.replicas)
        devices.check_groups(options.ghost_groups, self.placement.replicas)
        self.precision = devices.choose_precision(options.precision, self.placement.kind)
        self.folder: Path | None = None  # of several workers, the first one writes
        if self.placement.worker == 0:
            self.folder = record.make_folder(options.out, default, resumed=saved is not None)
        self.mean, self.std = mean, std = data.mean_std(images.train_images)
        # XLA compiles a step for one device. The sum over replicas is part of ours and does not compile: seen
        # on CPUs, reported for GPUs (tensorflow issues 45940, 48502). A TPU's strategy compiles by itself.
        alone = self.placement.replicas == 1 and self.placement.kind != "tpu"
        self.jit = options.jit and not options.eager and alone
        with self.placement.strategy.scope(), dtype_policy(self.precision):
            self.model, self.optimizer, self.average = self._make_state()
            self.counters, self.bad_steps = Counters(), BadSteps()
            on_tpu = self.placement.kind == "tpu"
            products = on_tpu or options.operations == "plain"
            self.pipeline = make_pipeline(
                options, images, mean, std, jit=self.jit, products=products, resident=on_tpu
            )
            if self.placement.kind == "cpu":  # one copy is enough
                self.images = replace(images, train_images=self.pipeline.host_images())
            self.train_step, self.train_steps = self._make_train_step()
            self.evaluate = Evaluator(
                self.placement.strategy,
                self.model,
                images.test_images,
                images.test_labels,
                mean,
                std,
                EVALUATION_BATCH,
                views=options.tta,
                jit=self.jit,
            )
            self.checkpoints = self._make_checkpoints()

        with tf.device("CPU:0"):
            self.layers = describe.trace(recipes.network(options, len(images.classes)))

    # ---- the parts -----------------------------------------------------------------------------------------

    def _make_state(self) -> tuple[tf.keras.Model, Any, WeightAverage | None]:
        """All that training changes, as it is at the start: the network, the optimizer, the average."""
        options, images = self.options, self.images
        network = self._make_model()
        start = time.perf_counter()
        sample = images.train_images[: model.whitening_images(network)]
        model.fit_whitening(network, data.standardise(sample, self.mean, self.std))
        self.whitening_seconds = time.perf_counter() - start
        weights = network.trainable_variables
        plans = optimizer.plans(options, weights, self.schedule)
        # Of the summed loss, and once over all replicas, whose gradients the optimiser adds up.
        self.decays = [plan.decay * options.batch_size / self.placement.replicas for plan in plans]
        update = optimizer.make(options, plans, self.steps_per_epoch)
        if self.precision == "float16":
            update = LossScale(update)
        update.build(weights)
        average = None
        if options.ema_every:
            average = WeightAverage(model.averaged_variables(network), options.ema_keeps, options.ema_every)
        return network, update, average

    def _make_model(self) -> tf.keras.Model:
        options = self.options
        fast = self.placement.kind == "cpu" and self.jit
        fast = fast if options.operations == "auto" else options.operations == "fast"
        return model.make(
            options.network,
            len(self.images.classes),
            model.style_of(options, fast=fast),
            width=options.width,
            logit_scale=options.logit_scale,
            whiten=options.whiten,
        )

    def _make_checkpoints(self) -> Checkpoints:
        parts = {"model": self.model, "optimizer": self.optimizer}
        if self.average is not None:
            parts["average"] = self.average
        folder = self.options.checkpoint_dir or str(self.folder)
        checkpoints = Checkpoints(folder, self.options.keep, parts, self._variables())
        if self.folder and self.options.checkpoint_every:
            checkpoints.check_folder()
        return checkpoints

    def _variables(self) -> list[Any]:
        return _variables(self.model, self.optimizer, self.average)

    def _make_train_step(self) -> tuple[Any, Any]:
        network, optimizer, pipeline = self.model, self.optimizer, self.pipeline
        counters, bad_steps, average = self.counters, self.bad_steps, self.average
        strategy, weights, decays = self.placement.strategy, self.model.trainable_variables, self.decays
        replicas = strategy.num_replicas_in_sync
        smoothing = self.options.label_smoothing

        @tf.function(jit_compile=self.jit)
        def train_step(first: tf.Tensor, second: tf.Tensor) -> None:
            shard = Shard(tf.distribute.get_replica_context().replica_id_in_sync_group, replicas)
            images, labels = pipeline.decode(first, second, shard)  # (b, 32, 32, 3), (b,)
            with tf.GradientTape() as tape:
                logits = network(images, training=True)  # (b, classes)
                loss_sum = cross_entropy_sum(logits, labels, smoothing)
                scaled_loss = optimizer.scale_loss(loss_sum)  # in float16; else it is the same
            gradients = tape.gradient(scaled_loss, weights)
            bad_steps.add(finite_on_all(gradients))
            # A new list: `g += decay * w` in a loop would rebind a name, and the decay would never happen.
            gradients = [
                g + optimizer.scale_loss(decay) * tf.convert_to_tensor(w)
                for g, w, decay in zip(gradients, weights, decays, strict=True)
            ]
            optimizer.apply(gradients, weights)
            if average is not None:
                average.update(optimizer.iterations)
            counters.add(loss_sum, count_correct(logits, labels))

        @tf.function
        def train_steps(source: Any, first: tf.Tensor, count: tf.Tensor) -> None:
            for step in tf.range(first, first + count):
                strategy.run(train_step, pipeline.take(source, step))

        return train_step, train_steps

    @tf.function
    def average_statistics(self) -> None:
        """The running statistics become their mean over the replicas."""
        self.placement.strategy.run(average_statistics, (self.model,))

    def draws_images(self) -> bool:
        """Whether the seed decides which images there are, so that a run of another one is to be made anew."""
        options = self.options
        return self.images.synthetic or bool(options.holdout or options.limit_train or options.limit_test)

    def restart(self, options: settings.Settings, saved: Saved | None = None) -> None:
        """Makes it the run of another seed, in another folder; what is compiled stays.

        Args: as of __init__; the hyperparameters differ in seed and folders only.
        """
        self.options, self.saved = options, saved
        if saved is not None:
            resume.check_data(saved, self.data_sha256)
        if self.folder:
            self.folder = record.make_folder(options.out, self.folder, resumed=saved is not None)
        with self.placement.strategy.scope(), dtype_policy(self.precision):
            fresh = _variables(*self._make_state())
        for variable, value in zip(self._variables(), fresh, strict=True):
            variable.assign(tf.convert_to_tensor(value))
        self.pipeline.seed = options.seed
        self.checkpoints = self._make_checkpoints()

    # ---- the run -------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Warms up, trains epoch by epoch, writes the result after each, and returns it."""
        options = self.options
        console.header(self._header())
        if self.images.doubt:
            console.say(f"note: {self.images.doubt}: another order, other images, or damage")
        for finding in preflight.findings(preflight.gather(), self.placement.kind, jit=self.jit):
            console.say(f"note: {finding}")
        if options.jit and self.placement.replicas > 1 and self.placement.kind != "tpu":
            console.say("note: no XLA, which compiles the step for a single replica only")
        if options.scratch:
            console.say(
                f"note: the training images are in --scratch {options.scratch}; the host makes the batches"
            )
        written = summaries.Summaries(self.folder) if options.tensorboard and self.folder else None
        self.compile_seconds = 0.0
        if not self.compiled:
            with self._within_memory():
                self.compile_seconds, self.compiled = self._warm_up(), True
            console.say(f"compiled in {self.compile_seconds:.1f} s; the clocks start now")
        console.say(f"\n{console.heading()}")
        self.rows: list[dict[str, Any]] = []
        self.tta_accuracy: float | None = None
        self.evaluation_seconds = 0.0
        self.train_seconds, self.epoch_seconds, self.started = 0.0, 0.0, time.perf_counter()
        first, step = self._restore() if self.saved is not None else (1, 0)
        last = options.stop_after or options.epochs
        for epoch in range(first, last + 1):
            self.rows.append(self._epoch(epoch, last, step))
            console.say(console.row(self.rows[-1]))
            if written:
                written.epoch(self.rows[-1])
            step = 0
            if self.folder:
                record.write_result(self.folder, self._result(finished=False))
            due = options.checkpoint_every and (epoch % options.checkpoint_every == 0 or epoch == last)
            if due or (self.interrupt.signal and self.placement.workers == 1):
                self._save(epoch + 1, 0)
            self._stop_if_asked(epoch, self.steps_per_epoch)
        result = self._result(finished=True)
        if self.folder:
            with self._averaged():
                record.write_weights(self.folder, model.evaluated_arrays(self.model))
            record.write_result(self.folder, result)
        ending = "" if last == options.epochs else f" after {last} of the schedule's {options.epochs} epochs"
        views = f", {result['test_accuracy_tta']:.4f} over {options.tta} views" if self.tta_accuracy else ""
        console.say(f"\n{self._set_name()} accuracy {result['test_accuracy']:.4f}{views}{ending}")
        if self.placement.workers > 1:
            console.say(f"weights sha256 {self._weights_sha256()}")  # to be seen to be every worker's
        if self.folder:
            console.say(f"wrote {self.folder / 'result.json'}, dawnbench.tsv and weights.npz")
        if written and self.folder:
            for line in written.pictures(self.folder, last, options.data):
                console.say(line)
        return result

    def _epoch(self, epoch: int, last: int, done: int) -> dict[str, Any]:
        """One epoch, from its step `done` on, and its evaluation.

        Nothing is fetched from the device between its steps.
        """
        options, images_a_step = self.options, self.options.batch_size
        a_call = 1 if self.placement.kind == "cpu" else 10  # steps; on an accelerator a call costs more
        if not done:
            self.counters.reset()
            self.bad_steps.reset()
        start = time.perf_counter() - self.epoch_seconds
        source = self.pipeline.open(epoch, done)
        bar = console.EpochBar(epoch, last, self.steps_per_epoch * images_a_step)
        with contextlib.closing(bar):
            bar.advance(done * images_a_step)
            for first in range(done, self.steps_per_epoch, a_call):
                count = min(a_call, self.steps_per_epoch - first)
                self._call(source, first, count, profile=epoch == 1 and bool(options.profile))
                bar.advance(count * images_a_step)
                if self.interrupt.signal and first + count < self.steps_per_epoch:
                    self.epoch_seconds = time.perf_counter() - start
                    if self.placement.workers == 1:  # the others do not know that this one stops
                        self._save(epoch, first + count)
                    self._stop_if_asked(epoch, first + count)
                if epoch == 1 and first == 3 and self.placement.kind == "cpu":
                    self._say_how_long((time.perf_counter() - start) / (first + 1), last)
        loss_sum, correct = self.counters.fetch()  # waits for the device, so the clock is right
        seconds = time.perf_counter() - start
        self.epoch_seconds, self.train_seconds = 0.0, self.train_seconds + seconds
        if self.placement.replicas > 1:
            self.average_statistics()
        with self._averaged():
            start = time.perf_counter()
            test_loss, test_accuracy = self.evaluate()
            if epoch == last and options.tta != "none":
                start = time.perf_counter()
                self.tta_accuracy = self.evaluate.views()
            self.evaluation_seconds = time.perf_counter() - start
        seen = self.steps_per_epoch * images_a_step
        values = {
            "epoch": epoch,
            "learning_rate": float(self.schedule(epoch)),
            "train_loss": loss_sum / seen,
            "train_accuracy": correct / seen,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "train_seconds": seconds,
            "total_seconds": time.perf_counter() - self.started,
        }
        self._check_finite(values)
        return values

    # ---- stopping and going on -----------------------------------------------------------------------------

    def _save(self, epoch: int, step: int) -> None:
        """Writes a checkpoint from which `step` steps of `epoch` have been made."""
        if self.placement.replicas > 1:
            self.average_statistics()
        loss_sum, correct = self.counters.fetch()
        if self.folder is None:
            return
        about = {
            "epoch": epoch,
            "step_of_epoch": step,
            "loss_sum": loss_sum if step else 0.0,
            "correct": correct if step else 0,
            "rows": self.rows,
            "tta_accuracy": self.tta_accuracy,
            "train_seconds": self.train_seconds,
            "epoch_seconds": self.epoch_seconds,
            "total_seconds": time.perf_counter() - self.started,
            "evaluation_seconds": self.evaluation_seconds,
            "hyperparameters": asdict(self.options),
            "data_sha256": self.data_sha256,
        }
        self.checkpoints.save((epoch - 1) * self.steps_per_epoch + step, about)

    def _restore(self) -> tuple[int, int]:
        """Goes back to the checkpoint; returns the epoch and how many of its steps have been made."""
        assert self.saved is not None
        self.checkpoints.restore(self.saved)
        about = self.saved.about
        self.counters.restore(about["loss_sum"], about["correct"])
        self.rows, self.tta_accuracy = about["rows"], about["tta_accuracy"]
        self.train_seconds, self.epoch_seconds = about["train_seconds"], about["epoch_seconds"]
        self.started = time.perf_counter() - about["total_seconds"]
        self.evaluation_seconds = about.get("evaluation_seconds", 0.0)
        for row in self.rows:
            console.say(console.row(row))
        return about["epoch"], about["step_of_epoch"]

    def _stop_if_asked(self, epoch: int, step: int) -> None:
        """Ends the run if a signal came."""
        if self.interrupt.signal is None:
            return
        where = f"{self.interrupt.signal.name} in epoch {epoch} after step {step} of {self.steps_per_epoch}"
        folder = self.options.checkpoint_dir or self.folder or "the first worker's folder"
        raise UserError(
            f"stopped by {where}; go on with --resume {folder}", exit_code=self.interrupt.exit_code
        )

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within it, the network has its averaged weights, if the recipe has them."""
        if self.average is not None:
            self.average.swap()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap()

    def _check_finite(self, values: dict[str, Any]) -> None:
        """Ends the run if an epoch's losses or gradients are not finite; float16 may skip some steps."""
        epoch, steps = values["epoch"], self.steps_per_epoch
        bad, first = self.bad_steps.fetch()
        finite = bool(np.isfinite([values["train_loss"], values["test_loss"]]).all())
        if finite and bad and self.precision == "float16":
            overflow = f"float16 overflowed in {bad} of {steps} steps of epoch {epoch}"
            if bad == steps:
                raise UserError(f"{overflow}; try --precision float32", exit_code=NOT_FINITE)
            console.say(f"note: {overflow}; they were skipped")
        elif bad or not finite:
            step = first or steps
            what = "gradient" if bad else "loss"
            raise UserError(
                f"the {what} is not finite in epoch {epoch}, step {step} of {steps}, at learning rate "
                f"{float(self.schedule(epoch - 1 + step / steps)):.4g}; try a lower --learning-rate or a "
                "longer --warmup-epochs",
                exit_code=NOT_FINITE,
            )

    def _call(self, source: Any, first: int, count: int, *, profile: bool) -> None:
        if profile and first == 0:
            tf.profiler.experimental.start(self.options.profile)
        self.train_steps(source, tf.constant(first), tf.constant(count))
        end = min(PROFILED_STEPS, self.steps_per_epoch)
        if profile and first < end <= first + count:
            self.counters.fetch()  # so that the steps are over
            tf.profiler.experimental.stop()
            console.say(f"wrote a profile of {end} steps to {self.options.profile}")

    def _warm_up(self) -> float:
        """Compiles by training one step and evaluating one batch, then undoes the step. Returns the seconds."""
        start = time.perf_counter()
        variables = self._variables()
        before = [tf.identity(tf.convert_to_tensor(variable)) for variable in variables]
        self.train_steps(self.pipeline.open(0), tf.constant(0), tf.constant(1))
        self.evaluate.warm_up()
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        self.counters.reset()
        self.bad_steps.reset()
        memory.give_back()
        return time.perf_counter() - start

    @contextlib.contextmanager
    def _within_memory(self) -> Iterator[None]:
        """Ends a batch that does not fit with one that does, or is likely to."""
        options, placement = self.options, self.placement
        unit = math.lcm(placement.replicas, options.ghost_groups or 1)
        if placement.kind == "cpu":
            number_bytes = 4 if self.precision == "float32" else 2
            note = memory.check_batch(options.batch_size, number_bytes * describe.outputs(self.layers), unit)
            if note:
                console.say(f"note: {note}")
        try:
            yield
        except tf.errors.OpError as error:
            said = error.message.lower()  # XLA's may come as another kind of error
            if "out of memory" not in said and "resource_exhausted" not in said:
                raise
            smaller = max(unit, options.batch_size // 2 // unit * unit)
            raise UserError(
                f"--batch-size {options.batch_size} does not fit in the memory of the {placement.kind}; try "
                f"--batch-size {smaller}",
                exit_code=memory.EXHAUSTED,
            ) from None

    def _weights_sha256(self) -> str:
        digest = hashlib.sha256()
        for weight in self.model.trainable_variables:
            digest.update(weight.numpy().tobytes())
        return digest.hexdigest()

    # ---- what it says --------------------------------------------------------------------------------------

    def _set_name(self) -> str:
        kind = "validation" if self.options.holdout else "test"
        return f"synthetic {kind}" if self.images.synthetic else kind

    def _header(self) -> dict[str, str]:
        images, options = self.images, self.options
        count = self.placement.replicas
        return {
            "recipe": f"{options.recipe}, {options.epochs} epochs, batch {options.batch_size}, seed {options.seed}",
            "data": f"{images.source}: {len(images.train_labels):,} training images, "
            f"{len(images.test_labels):,} {self._set_name()} images",
            "network": f"{model.NETWORKS[options.network].about}, {model.parameters(self.model):,} parameters",
            "beside davidnet": self._differences(),
            "device": f"{self.placement.kind} ({self.placement.reason}), {count} replica{'s' * (count > 1)}, "
            f"{self.precision}, {'XLA' if self.jit or self.placement.kind == 'tpu' else 'no XLA'}",
            "versions": ", ".join(f"{name} {version}" for name, version in record.versions().items()),
            "timed": "train s: training alone; total s: evaluation too; neither loading nor compiling",
            "results": str(self.folder or "worker 0 writes them"),
        }

    def _differences(self) -> str:
        """What differs from the recipe davidnet in the network and its training."""
        found = recipes.differences(constants(), self.options)
        return ", ".join(f"{name} {value}" for name, (_, value) in found.items()) or "nothing differs"

    def _say_how_long(self, step_seconds: float, last: int) -> None:
        total = step_seconds * self.steps_per_epoch * last
        if total > 600:
            console.say(
                f"this run will train for about {total / 3600:.1f} hours on this CPU; shorter: --epochs 10, "
                f"--stop-after 3, or --epochs 1 --limit-train 2048 --limit-test 512"
            )

    def _result(self, *, finished: bool) -> dict[str, Any]:
        images, rows = self.images, self.rows
        accelerators = [
            device.name for device in tf.config.list_physical_devices() if device.device_type != "CPU"
        ]
        seen = len(rows) * self.steps_per_epoch * self.options.batch_size
        return {
            "recipe": self.options.recipe,
            "seed": self.options.seed,
            "finished": finished,
            "hyperparameters": {k: v for k, v in asdict(self.options).items() if k not in PLACES},
            "data": {
                "source": images.source,
                "sha256": self.data_sha256,
                "synthetic": images.synthetic,
                "doubt": images.doubt,
                "train_images": len(images.train_labels),
                "test_images": len(images.test_labels),
                # What a prediction needs besides the weights; mean and deviation on the 0-1 scale.
                "classes": list(images.classes),
                "mean": self.mean.tolist(),
                "std": self.std.tolist(),
            },
            "versions": record.versions(),
            "hardware": record.hardware(accelerators),
            "precision": self.precision,
            "replicas": self.placement.replicas,
            "epochs": rows,
            "test_accuracy": rows[-1]["test_accuracy"],
            "test_accuracy_tta": self.tta_accuracy,
            "train_seconds": self.train_seconds,
            "total_seconds": rows[-1]["total_seconds"],
            "compile_seconds": self.compile_seconds,
            "peak_memory_gib": record.peak_memory_gib(),
            "airbench_seconds": self.whitening_seconds + self.train_seconds + self.evaluation_seconds,
            "images_per_second": seen / self.train_seconds,
            "forward_gflop_per_image": 2 * describe.multiply_adds(self.layers) / 1e9,
        }


def _variables(network: tf.keras.Model, update: Any, average: WeightAverage | None) -> list[Any]:
    """All that training changes."""
    return [*network.variables, *update.variables, *(average.averages if average is not None else ())]


@contextlib.contextmanager
def dtype_policy(precision: str) -> Iterator[None]:
    """Within it, Keras layers compute in `precision` and keep their variables in float32."""
    before = tf.keras.config.dtype_policy()
    tf.keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        tf.keras.config.set_dtype_policy(before)


def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    try:
        summary = (__doc__ or "").partition("\n")[0]
        train(**settings.parse(constants(), sys.argv[1:] if arguments is None else arguments, summary))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint, if there was one", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    if console.in_kernel():  # pasted into a notebook's cell, where sys.argv is the kernel's
        train()
    else:
        sys.exit(main())
