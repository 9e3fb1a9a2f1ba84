"""Training, as python train_eager.py starts it: a new run or a resumed one, of one seed or several."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tensorflow as tf

from lab import assemble, series
from lab.assemble import LabTraining, Options
from lab.base import console
from lab.base.errors import Exit, UserError, reported_in
from lab.drive import PLACES, Drive, within_memory
from lab.images import load
from lab.ladder import recipes
from lab.machine import devices, memory
from lab.options import IDENTITY, OF_A_RECIPE, flag
from lab.runs import claim, progress, resume
from lab.runs.claim import Claim
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
    source, begun = "", series.find(options)
    if begun:
        out = os.path.expanduser(changes.get("out") or begun)
        if Path(out).resolve() != Path(begun).resolve():
            raise UserError(f"--out {out}: the series in {begun} goes on in its own folder; leave --out away")
        options = resumed_options(begun, series.hyperparameters(Path(begun)), changes, series.KEPT)
        console.say(f"the series in {begun} goes on")
    elif options.resume and options.runs == 1:
        source = options.resume
        if source == "auto" and not (source := resume.find_newest(options.recipe, options.seed)):
            console.say(f"no unfinished run of {options.recipe} with seed {options.seed} under runs: a new one starts")
        if source:
            source = os.path.expanduser(source)
            options, result = go_on(source, changes)
            if result is not None:
                return result
    elif options.resume:  # of several runs
        if options.resume != "auto":
            raise UserError(f"--resume {options.resume} holds no series; leave out --runs, or start a series")
        console.say(f"no unfinished series of {options.recipe} from seed {options.seed} under runs: a new one starts")
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
            return runs.train(options, source)
        except KeyboardInterrupt:
            message = "interrupted; --resume goes on from the last checkpoint, if there was one"
            raise UserError(message, exit_code=Exit.INTERRUPTED) from None


def go_on(folder: str, changes: Mapping[str, Any]) -> tuple[Options, dict[str, Any] | None]:
    """The hyperparameters of a run that goes on, and its result if nothing is left to do; says which it is.

    Raises UserError as resumed_options does, or if it is to end before what it has done.
    """
    saved, result = resume.find(folder)
    if result is not None:
        known = dict.fromkeys(PLACES, "") | result["hyperparameters"]
        options = resumed_options(folder, known, changes)
        last, done = options.stop_after or options.epochs, len(result["epochs"])
        resume.check_last(folder, done, 0, last)
        if done == last:
            console.say(f"the run in {folder} has made its {done} epochs: nothing is left to do, nothing is written")
            console.say(f"accuracy {result['test_accuracy']:.4f}")
            return options, result
        if saved is None:
            raise UserError(f"--resume {folder} has no checkpoint to go on from; start a new run")
    assert saved is not None  # see resume.find
    options = resumed_options(folder, saved.about["hyperparameters"], changes)
    so_far = progress.read(saved)
    epochs, step = so_far.epoch - 1, so_far.step_of_epoch
    resume.check_last(folder, epochs, step, options.stop_after or options.epochs)
    console.say(f"the run in {folder} goes on after epoch {epochs}" + (f" and {step} steps" if step else ""))
    return options, None


class Runs:
    """Trains one seed after another; what is compiled serves them all."""

    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt
        self.training: LabTraining | None = None

    def train(self, options: Options, source: str, name: str = "") -> dict[str, Any]:
        """One run; returns its result.

        Args:
            source: the folder of the checkpoint that it goes on from, "" for a new run.
            name: that its folders have in run.json; "": a new run's, or the one in `source`.
        """
        with within_memory(options):
            return self._train(options, source, name)

    def _train(self, options: Options, source: str, name: str) -> dict[str, Any]:
        if draws_images(options):
            self.training = None  # gives up its memory before there is another
            memory.give_back()
        before = self.training
        # Before the data: TFRecords start TensorFlow.
        placement = before.placement if before else assemble.place(options)
        self.interrupt.listen()
        with contextlib.ExitStack() as held:
            folder, own = None, None
            if placement.worker == 0:  # of several workers, the first one writes
                folder, own = claimed(options, source, name, held)
            saved = resume.newest_of(source, os.path.expanduser(options.checkpoint_dir)) if source else None
            images = before.images if before else load.of(options)
            if saved is not None:
                resume.check_data(saved, images.sha256)
            if own is not None:
                own.say(data_sha256=images.sha256)
            if before:
                assemble.restart(before, options)
            else:
                self.training = assemble.make(options, placement, images)
            assert self.training is not None
            try:
                with reported_in(folder):
                    return Drive(self.training, folder, self.interrupt, saved).run(compiled=bool(before))
            except FloatingPointError as error:
                raise UserError(f"{error} or lengthen --warmup-epochs", exit_code=Exit.NOT_FINITE) from None


def claimed(options: Options, source: str, name: str, held: contextlib.ExitStack) -> tuple[Path, Claim]:
    """The run's folder, which it and the checkpoints' folder belong to until `held` ends, and the claim.

    Raises UserError if one of them is another run's, another process writes to it, or it cannot be written.
    """
    out, checkpoints = os.path.expanduser(options.out), os.path.expanduser(options.checkpoint_dir)
    stays = bool(source) and any(place and claim.same(source, place) for place in (out, checkpoints))
    old = claim.read(source) if stays else {}
    in_series, name = bool(name), name or old.get("name") or claim.new_name()
    kept = {"recipe": options.recipe, "seed": options.seed, "hyperparameters": asdict(options)}
    own = held.enter_context(Claim(name, {key: value for key, value in old.items() if key != "name"} | kept))
    if checkpoints and not (out and claim.same(checkpoints, out)):  # before the other is made
        own.check("--checkpoint-dir", checkpoints, again=stays and claim.same(checkpoints, source))
    if out:  # a seed's folder in a series is the series' own
        own.take("--out", out, again=in_series or (stays and claim.same(out, source)))
    else:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        out = own.take_new(Path("runs"), f"{options.recipe}-{options.seed}-{stamp}")
    if checkpoints:
        own.take("--checkpoint-dir", checkpoints, again=stays and claim.same(checkpoints, source))
    return Path(out), own


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
