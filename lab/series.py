"""Several seeds of one training in one process, and what they say together.

    python train_eager.py --recipe speedrun --runs 5          # seeds 0 to 4, the step compiled once
    python train_eager.py --resume runs/speedrun-0x5-...      # resumes where it stopped; --runs 10 adds to it

A series is a folder with series.json, which says what is trained, and a folder for each seed, seed-0 and so on, which
is a run's like any other: python -m lab report, predict and --resume take it too.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from lab.assemble import Options
from lab.base import console
from lab.base.errors import UserError
from lab.base.files import encode, write_whole
from lab.report import evidence, tables
from lab.runs import checkpoint, claim, progress, record, resume
from lab.runs.claim import Claim
from lab.runs.results import SERIES, Fields

KEPT = ("stop_after", "checkpoint_dir")  # what a run's --resume asks for again, a series keeps


def find(options: Options) -> str:
    """The folder of the series that options.resume names, or "" if it names a run instead.

    "auto" is the newest series under runs/ of this recipe and first seed that is not finished.
    """
    if options.resume != "auto":
        named = os.path.expanduser(options.resume)
        return named if named and (Path(named) / SERIES).exists() else ""
    if options.runs == 1:
        return ""
    paths = Path("runs").glob(f"{options.recipe}-{options.seed}x*/{SERIES}")
    for folder in resume.by_age(path.parent for path in paths):
        try:
            values = hyperparameters(folder)
        except UserError as error:
            console.say(f"note: {error}")
            continue
        if claim.is_written(folder):
            continue
        seeds = range(values["seed"], values["seed"] + values["runs"])
        if not all(resume.ended(folder / f"seed-{seed}") for seed in seeds):
            return str(folder)
    return ""


def hyperparameters(folder: Path) -> dict[str, Any]:
    """Those of a series that has begun. Raises UserError if series.json is damaged, or is none."""
    if not (folder / SERIES).is_file():  # a FIFO would wait
        raise UserError(f"{folder / SERIES} is no file; restore it, or give the folder of a series")
    values = Fields(folder / SERIES, record.read_result(folder / SERIES)).inside("hyperparameters")
    values.whole("seed"), values.whole("runs", 1, 100_000)
    values.scalars()
    return values.values


def train(
    options: Options,
    run: Callable[[Options, str, str], dict[str, Any]],
    *,
    resumed: bool,
) -> list[dict[str, Any]]:
    """Trains the seeds that are not finished and returns all results, by seed.

    Args:
        options: with the first seed; `runs` says how many.
        run: trains one seed from its own hyperparameters, the folder of its checkpoints, "" if it has none, and its
            name in run.json, and returns its result.
        resumed: the folder is that of a series that has begun.

    Raises:
        UserError: as a run does; what is finished stays, and the series can be resumed.
    """
    out = str(Path(options.out).expanduser()) if options.out else ""
    old = claim.read(out) if resumed else {}
    about = {"recipe": options.recipe, "seed": options.seed, "runs": options.runs}
    with Claim(old.get("name") or claim.new_name(), about) as own:
        if out:
            own.take("--out", out, again=resumed)
        else:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            out = own.take_new(Path("runs"), f"{options.recipe}-{options.seed}x{options.runs}-{stamp}")
        folder = Path(out)
        # What all seeds have left is seen first: what is refused changes nothing.
        begun = [_begun(_own(options, folder, options.seed + number)) for number in range(options.runs)]
        if options.precision == "auto":  # what is the fastest may be another here and now
            options = replace(options, precision=next((one.precision for one in begun if one.precision), "auto"))
        if not resumed or hyperparameters(folder) != asdict(options):
            write_whole(folder / SERIES, encode({"hyperparameters": asdict(options)}))
        results = []
        for number, left in enumerate(begun):
            console.say(
                f"{'' if number == 0 else chr(10)}seed {options.seed + number}, run {number + 1} of {options.runs}"
            )
            if left.result is not None:
                console.say(f"finished before: {_accuracy(left.result)}")
                results.append(left.result)
                continue
            seed = _own(options, folder, options.seed + number)
            try:
                results.append(run(seed, left.source, f"{own.name}-seed-{seed.seed}"))
            except UserError as error:
                if not resumed and not any(folder.glob("seed-*")):  # nothing has begun, so nothing stays
                    (folder / SERIES).unlink(missing_ok=True)
                    raise
                raise UserError(f"{error}; of the whole series: --resume {folder}", exit_code=error.exit_code) from None
        console.say(f"\n{_table(folder)}")
    return results


class Begun(NamedTuple):
    """What a seed has left: its result, if it has made its epochs; the folder of the checkpoint from which it goes on,
    or ""; the precision that it has computed in, "" if it has not begun."""

    result: dict[str, Any] | None = None
    source: str = ""
    precision: str = ""


def _begun(own: Options) -> Begun:
    """What a seed has left. An unfinished row without a checkpoint is nothing.

    Raises UserError if its checkpoints are damaged, or it has gone on beyond the series' last epoch.
    """
    last = own.stop_after or own.epochs
    result = resume.ended(own.out)
    if result is not None:
        done = len(result["epochs"])
        resume.check_last(own.out, done, 0, last, stays=True)
        if done == last:
            return Begun(result, precision=_precision(result))
    folder = own.checkpoint_dir or own.out
    saved, damaged = checkpoint.newest(folder)
    for line in damaged:
        console.say(f"note: {line}")
    if saved is None and (damaged or result is not None):
        raise UserError(f"{own.out} has no complete checkpoint; move it away, and its seed starts again")
    if saved is None:
        return Begun()
    so_far = progress.read(saved)
    resume.check_last(folder, so_far.epoch - 1, so_far.step_of_epoch, last, stays=True)
    return Begun(source=folder, precision=_precision(saved.about))


def _precision(about: Mapping[str, Any]) -> str:
    """On a CPU that of the computation; on accelerators what was asked for."""
    value = about["hyperparameters"].get("precision")  # another version's may have none
    return value if value in ("float32", "bfloat16", "float16") else ""


def _own(options: Options, folder: Path, seed: int) -> Options:
    """The hyperparameters of one run of the series."""
    return replace(
        options,
        seed=seed,
        runs=1,
        resume="",
        out=str(folder / f"seed-{seed}"),
        checkpoint_dir=options.checkpoint_dir and f"{os.path.expanduser(options.checkpoint_dir)}/seed-{seed}",
        profile=options.profile if seed == options.seed else "",
    )


def _accuracy(result: Mapping[str, Any]) -> str:
    tta = result["test_accuracy_tta"]
    return f"accuracy {result['test_accuracy']:.4f}" + ("" if tta is None else f", {tta:.4f} with more views")


def _table(folder: Path) -> str:
    """The report of the series, or why there are none: statistics need SciPy."""
    try:
        return tables.as_text(evidence.make([folder]))
    except UserError as error:
        return f"no statistics: {error}; then: python -m lab report {folder}"
