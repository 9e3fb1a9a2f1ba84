"""Training, as python train_eager.py starts it: a new run or a resumed one, of one seed or several."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from lab import assemble, series
from lab.assemble import LabTraining, Options
from lab.base import console
from lab.base.errors import Exit, UserError, reported_in
from lab.drive import Drive, within_memory
from lab.images import load
from lab.ladder import recipes
from lab.machine import devices
from lab.options import IDENTITY, OF_A_RECIPE, flag
from lab.runs import record, resume
from lab.runs.checkpoint import Saved
from lab.runs.interrupt import Interrupt


def train(**changes: Any) -> dict[str, Any]:
    """Trains and returns what result.json holds; of several runs, {"runs": the results, by seed}.

    Args:
        changes: hyperparameters that differ from the recipe, by name: `epochs=10`, `recipe="speedrun"`. Those at the
            top of train_eager.py and in lab/options.py, which tell units and limits.

    Raises:
        UserError: on a wrong hyperparameter, missing or damaged data, a missing device or an output folder
            that cannot be written. Its message is one line.
    """
    assemble.check_names(changes)
    # A run that is named has its own recipe, which says what goes with the flags.
    named = changes.get("resume", "") not in ("", "auto")
    options = assemble.configure({k: v for k, v in changes.items() if k in ("resume", "runs")} if named else changes)
    saved, begun = None, series.find(options)
    if begun:
        options = resumed_options(begun, series.hyperparameters(Path(begun)), changes, series.KEPT)
    elif options.resume and options.runs == 1:
        folder, saved, damaged = resume.find(options.resume, options.recipe, options.seed)
        for line in damaged:
            console.say(f"note: {line}")
        if saved is not None:
            options = resumed_options(folder, saved.about["hyperparameters"], changes)
    elif options.resume not in ("", "auto"):  # of several runs
        raise UserError(f"--resume {options.resume} holds no series; leave out --runs, or start a series")
    if options.runs > 1 and devices.several_workers():
        raise UserError(f"--runs {options.runs} is for one process; unset TF_CONFIG, or leave the flag out")
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.keras.utils.disable_interactive_logging()
    with kept_settings(), devices.reports_lost_workers(), Interrupt() as interrupt:
        runs = Runs(interrupt)
        try:
            if options.runs > 1 or begun:
                return {"runs": series.train(options, runs.train, resumed=bool(begun))}
            return runs.train(options, saved)
        except KeyboardInterrupt:
            message = "interrupted; --resume goes on from the last checkpoint, if there was one"
            raise UserError(message, exit_code=Exit.INTERRUPTED) from None


class Runs:
    """Trains one seed after another; what is compiled serves them all."""

    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt
        self.training: LabTraining | None = None

    def train(self, options: Options, saved: Saved | None) -> dict[str, Any]:
        """One run, new or from a checkpoint; returns its result."""
        with within_memory(options):
            return self._train(options, saved)

    def _train(self, options: Options, saved: Saved | None) -> dict[str, Any]:
        compiled = self.training is not None and not draws_images(options)
        if self.training is None or not compiled:
            placement = assemble.place(options)  # before the data: TFRecords start TensorFlow
            self.interrupt.listen()
            images = load.of(options)
            if saved is not None:
                resume.check_data(saved, images.sha256())
            self.training = assemble.make(options, placement, images)
        else:
            assemble.restart(self.training, options)
            if saved is not None:
                resume.check_data(saved, self.training.images.sha256())
        default = Path("runs") / f"{options.recipe}-{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = None
        if self.training.placement.worker == 0:  # of several workers, the first one writes
            folder = record.make_folder(options.out, default, resumed=saved is not None)
        try:
            with reported_in(folder):
                return Drive(self.training, folder, self.interrupt, saved).run(compiled=compiled)
        except FloatingPointError as error:
            raise UserError(f"{error} or lengthen --warmup-epochs", exit_code=Exit.NOT_FINITE) from None


def draws_images(options: Options) -> bool:
    """Whether the seed decides which images there are, so that a run of another one is to be made again."""
    return options.data == "synthetic" or bool(options.holdout or options.limit_train or options.limit_test)


def resumed_options(
    folder: str, known: Mapping[str, Any], changes: Mapping[str, Any], kept: tuple[str, ...] = ()
) -> Options:
    """The hyperparameters to go on with: the run's, and of `changes` what says where and how.

    Args:
        folder: where the run is now; it may have been moved.
        known: what it was made with, by name.
        changes: given by the user, by name.
        kept: of what a new command otherwise says again, that which stays.

    Raises:
        UserError: if it would become another training, naming the first such difference, or if an older version
            of these scripts made it.
    """
    if set(known) != set(assemble.NAMES):
        raise UserError(f"--resume {folder}: another version of these scripts made it; start a new run")
    again = {
        "stop_after": assemble.Options.stop_after,
        "out": "" if "://" in folder else folder,
        "checkpoint_dir": folder if known["checkpoint_dir"] else "",
        "resume": "",
        "profile": "",
    }
    before = {**known, **{name: value for name, value in again.items() if name not in kept}}
    for name, value in assemble.edited().items():
        if name not in changes and value != known[name]:
            console.say(
                f"note: {name.upper()} {value} at the top of train_eager.py is not this run's; it has {known[name]}"
            )
    given = {name: value for name, value in changes.items() if name != "resume"}
    of_recipe = {name: before[name] for name in OF_A_RECIPE}
    changed = recipes.change(before["recipe"], of_recipe, {k: v for k, v in given.items() if k in OF_A_RECIPE})
    after = assemble.checked({**before, **given, **changed})
    for name in IDENTITY:
        if before[name] != getattr(after, name):
            raise UserError(
                f"--resume: the run was made with {flag(name)} {before[name]!r}, not {getattr(after, name)!r}; leave "
                "that flag out, or start a new run"
            )
    return after


@contextlib.contextmanager
def kept_settings() -> Iterator[None]:
    """Afterwards, Keras' precision and TensorFlow's eager mode are what they were."""
    policy, eagerly = tf.keras.config.dtype_policy(), tf.config.functions_run_eagerly()
    try:
        yield
    finally:
        tf.keras.config.set_dtype_policy(policy)
        tf.config.run_functions_eagerly(eagerly)
