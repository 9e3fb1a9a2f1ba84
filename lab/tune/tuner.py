"""The trainings of a descent: each point's seeds in one process, every finished run on disk, a table as it goes.

A tuning's folder has tune.json: what is tuned, and the finished runs, each with how it differs from the start.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import tensorflow as tf

import train_eager
from lab import assemble, start
from lab.assemble import LabTraining, Options
from lab.base import console
from lab.base.errors import Exit, UserError
from lab.base.files import encode, write_whole
from lab.command import kept_settings
from lab.drive import warm_up, within_memory
from lab.images import load
from lab.images.imageset import ImageSet
from lab.ladder import adjust
from lab.machine import devices, memory
from lab.options import IDENTITY, OF_A_RECIPE, flag
from lab.runs import claim, record
from lab.runs.claim import Claim
from lab.runs.interrupt import Interrupt
from lab.tune.descent import DIGITS, FROM_ONE, PAGES, Point, Scores, Visit, descend, gain, values

TUNE = "tune.json"
DEFAULTS = {"holdout": 5000, "runs": 3}
# Of the flags of a training, those that say what one run leaves and how it goes on.
OTHERS = ("resume", "checkpoint_dir", "checkpoint_every", "keep", "profile", "tensorboard", "tta")


def command(names: Sequence[str], finer: int, by: str, arguments: list[str]) -> None:
    """The tool, with what is left of its command line: flags of a training. Raises UserError."""
    parser = start.flags(train_eager.Config, train_eager.add_flags)
    tune(vars(parser.parse_args(arguments)), names, finer=finer, by=by)


def tune(
    changes: Mapping[str, Any], names: Sequence[str] = PAGES, *, finer: int = 0, by: str = "accuracy"
) -> dict[str, Any]:
    """Tunes, prints the trace and the flags to go on with; goes on with what --out holds.

    Args:
        changes: hyperparameters at the start that differ from the recipe's, by name, as of lab.command.train; holdout
            and runs, the seeds a point, have DEFAULTS.
        names: what is tuned, see descent.values.
        finer: see descent.descend.
        by: of the held-out images, after the last epoch: accuracy or loss.

    Returns:
        The trace: see Tuner.record.

    Raises:
        UserError: for what cannot be tuned or trained, an --out that holds something else, if a signal came, or if all
            runs diverged.
    """
    with opened(changes, names, by=by) as tuner:
        tuner.show(descend(tuner.measure, len(names), finer))
        return tuner.record()


@contextlib.contextmanager
def opened(
    changes: Mapping[str, Any], names: Sequence[str], *, by: str = "accuracy", images: ImageSet | None = None
) -> Iterator["Tuner"]:
    """A tuning's folder, which is this process's until the end, and what measures in it: arguments as tune's.

    `images`: with a held-out part; None: those of the hyperparameters.
    """
    options = checked(changes := {**DEFAULTS, **changes}, names)
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    folder = os.path.expanduser(options.out) or f"runs/tune-{options.recipe}"
    about = claim.read(folder)
    own = Claim(about["name"] if about.get("tuning") else claim.new_name(), {"tuning": True})
    with kept_settings(), Interrupt() as interrupt, own, within_memory(options):
        own.take("--out", folder)
        yield Tuner(changes, names, by, Path(folder), interrupt, images)


def checked(changes: Mapping[str, Any], names: Sequence[str]) -> Options:
    """The hyperparameters at the start. Raises UserError for what cannot be tuned, or would look at the test set."""
    options = assemble.configure(changes)
    for name in OTHERS:
        if name in changes:
            raise UserError(f"{flag(name)} is for a single run, not for tuning; leave it out")
    if not options.holdout:
        raise UserError("--holdout 0 would tune on the test set; give the number of training images that judge: 5000")
    if devices.several_workers():
        raise UserError("tuning is for one process; unset TF_CONFIG")
    if len(set(names)) < len(names):
        raise UserError(f"--tune {','.join(names)} names one twice; leave it out")
    for name in names:
        assemble.check_names([name])
        value = getattr(options, name)
        if name not in OF_A_RECIPE or isinstance(value, str | bool):
            raise UserError(f"--tune {name}: it is no number of a recipe, which can be doubled; leave it out")
        if not value and name not in FROM_ONE:
            raise UserError(f"--tune {name}: 0 cannot be doubled; give {flag(name)} a value above 0, or leave it out")
    if "knots" in changes and set(PAGES) & set(names):
        raise UserError("--knots say the rate of every epoch, so that it cannot be tuned; leave --knots out")
    return options


class Tuner:
    """Measures points by training, each run once.

    Args:
        changes, names, by, images: see opened.
        folder: of tune.json; this process's.
        interrupt: notes signals.
    """

    def __init__(
        self,
        changes: Mapping[str, Any],
        names: Sequence[str],
        by: str,
        folder: Path,
        interrupt: Interrupt,
        images: ImageSet | None,
    ) -> None:
        self.changes, self.names, self.by = dict(changes), tuple(names), by
        self.folder, self.interrupt = folder, interrupt
        self.start = assemble.configure(changes)
        self.seeds = range(self.start.seed, self.start.seed + self.start.runs)
        self.placement = assemble.place(self.start)  # before the data: TFRecords start TensorFlow
        self.images = images or load.of(self.start)  # the first seed's serve all, so that the same images judge
        self.training: LabTraining | None = None
        known, self.runs = self._found()
        if self.start.precision == "auto":  # once for all runs; what is the fastest may be another where they go on
            resolved, _ = assemble.resolved(self.start, self.placement)
            here = train_eager.choose_precision(resolved.precision, self.placement.kind.upper())
            self.changes["precision"] = known.get("precision", here)
            self.start = assemble.configure(self.changes)
        self.about = {name: getattr(self.start, name) for name in (*IDENTITY, "precision")}
        self.about["images"] = self.images.sha256
        if known:
            self._check_same({"precision": self.start.precision} | known)  # an older one says none
        self.trace: list[dict[str, Any]] = []
        self.refused: dict[Point, str] = {}

    def _found(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What tune.json says of the start, and its runs; nothing if it is not there."""
        path = self.folder / TUNE
        if not path.exists():
            return {}, []
        found = record.read_result(path)
        return found["start"], list(found["runs"])

    def _check_same(self, known: Mapping[str, Any]) -> None:
        """Raises UserError if tune.json is another tuning's."""
        for name, value in self.about.items():
            if (other := known.get(name)) != value:
                raise UserError(
                    f"--out {self.folder} holds a tuning that starts from {name} {other}, not {value}; choose another "
                    "folder"
                )

    def values(self, point: Point) -> dict[str, float]:
        """The hyperparameters at a point. Only Nesterov's have Page's coordinates."""
        known = {name: getattr(self.start, name) for name in {*self.names, *PAGES}}
        real = {item.name for item in fields(self.start) if item.type is float}
        known |= {name: float(known[name]) for name in known.keys() & real}  # a rate given as 1 is not a whole number
        return values(known, self.names, point, follows=self.start.optimizer == "nesterov")

    def _changed(self, point: Point) -> dict[str, float]:
        """Those in which it is not the start."""
        return {name: value for name, value in self.values(point).items() if value != getattr(self.start, name)}

    def measure(self, point: Point) -> Scores:
        """The accuracy, or minus the loss, of each seed's run; None if one diverged, or the point is not possible.

        Raises UserError if the start is not possible, or a signal came.
        """
        changed, scores = self._changed(point), []
        for seed in self.seeds:
            known = [run for run in self.runs if run["seed"] == seed and run["changed"] == changed]
            if not known:
                try:
                    options = assemble.configure({**self.changes, **changed, "seed": seed})
                    known = [{"changed": changed, "seed": seed} | self._run(options)]
                except UserError as error:
                    if not changed or error.exit_code not in (Exit.USAGE, Exit.EXHAUSTED):
                        raise
                    self.refused[point] = str(error)
                    return None
                self.runs += known
                self._write()
            if known[0]["accuracy"] is None:
                return None
            scores.append(known[0]["accuracy"] if self.by == "accuracy" else -known[0]["loss"])
        return scores

    def _run(self, options: Options) -> dict[str, Any]:
        """Trains; the last epoch's loss and accuracy on the held-out images, None if it diverged, and the seconds."""
        began, row = time.perf_counter(), dict[str, float]()
        training = self._ready(replace(options, runs=1, tta="none"))
        try:
            for moment in training.run():
                if self.interrupt.signal:
                    name = self.interrupt.signal.name
                    raise UserError(
                        f"stopped by {name}; the same command goes on after {len(self.runs)} finished runs",
                        exit_code=self.interrupt.exit_code,
                    )
                row = moment.row or row
        except FloatingPointError:
            row = {}
        found = {
            "accuracy": row.get("test_accuracy"),
            "loss": row.get("test_loss"),
            "train_loss": row.get("train_loss"),
        }
        return {**found, "seconds": time.perf_counter() - began}

    def _ready(self, options: Options) -> LabTraining:
        """The training at its start: the last one again if its compiled step serves, or a new one."""
        fixed = [name for name in OF_A_RECIPE if name not in (*adjust.NAMES, "tta")]
        old = self.training
        if old is not None and all(getattr(old.config, name) == getattr(options, name) for name in fixed):
            assemble.restart(old, options)
            if adjust.adjust(old, options):
                return old
        old = self.training = None  # gives up its memory before there is another
        memory.give_back()
        self.training = assemble.make(options, self.placement, self.images, optimizer=adjust.make)
        warm_up(self.training)
        return self.training

    def _write(self) -> None:
        write_whole(self.folder / TUNE, encode({"start": self.about, "runs": self.runs}))

    # ---- what it says --------------------------------------------------------------------------------------

    def show(self, visits: Iterable[Visit]) -> None:
        """Prints a line for each point as it is measured, and at the end the flags of the best.

        Raises UserError if all diverged.
        """
        heads = [f"{name:>14}" for name in self.values((0.0,) * len(self.names))]
        console.say(f"{self.images.source}; {len(self.seeds)} seeds a point, judged by {self.by}\n")
        console.say("  ".join([*heads, f"{self.by:>8}", f"{'gain':>18}", "runs", "seconds"]))
        best: Visit | None = None
        for visit in visits:
            self._say(visit, best)
            best = visit if visit.better else best
        assert best is not None
        if best.scores is None:
            raise UserError("the runs of every point diverged; give a lower --learning-rate", exit_code=Exit.NOT_FINITE)
        runs, seconds = (sum(entry[name] for entry in self.trace) for name in ("runs", "seconds"))
        count, score = len({tuple(entry["point"]) for entry in self.trace}), abs(mean(best.scores))
        console.say(f"\nbest of {count} points, {runs} runs, {seconds:.0f} s: {self.by} {score:.4f}")
        flags = " ".join(f"{flag(name)} {value:.{DIGITS}g}" for name, value in self.values(best.point).items())
        console.say(f"go on with {flags}")

    def _say(self, visit: Visit, best: Visit | None) -> None:
        """Prints the line of a point, which joins the trace. What it cost is told at the first visit."""
        at, changed = self.values(visit.point), self._changed(visit.point)
        seen = any(entry["values"] == at for entry in self.trace)
        spent = [
            run["seconds"] for run in self.runs if run["changed"] == changed and run["seed"] in self.seeds and not seen
        ]
        self.trace.append(
            {"point": visit.point, "values": at, "scores": visit.scores, "better": visit.better}
            | {"runs": len(spent), "seconds": sum(spent)}
        )
        verdict = "start" if best is None else "better" if visit.better else "worse"
        if visit.scores is None:
            verdict = self.refused.get(visit.point, "diverged")
        score = "-" if visit.scores is None else f"{abs(mean(visit.scores)):.4f}"
        change = ""
        if best is not None and visit.scores is not None and best.scores is not None:
            change = "{:+.4f} ± {:.4f}".format(*gain(visit.scores, best.scores))
        cells = [*(f"{value:14.6g}" for value in at.values()), f"{score:>8}", f"{change:>18}", f"{len(spent):4d}"]
        console.say("  ".join([*cells, f"{sum(spent):7.1f}", verdict]))

    def record(self) -> dict[str, Any]:
        """What was tuned from where, on what, and the trace: a visit a line, with what its runs cost."""
        return {
            "recipe": self.start.recipe,
            "start": self.about,
            "tuned": list(self.names),
            "by": self.by,
            "seeds": list(self.seeds),
            "source": self.images.source,
            "doubt": self.images.doubt,
            "trace": self.trace,
            "best": next(entry["values"] for entry in reversed(self.trace) if entry["better"]),
            "versions": record.versions(),
            "hardware": record.hardware(devices.accelerators(self.placement.kind)),
        }
