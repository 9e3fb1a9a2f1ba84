"""Several seeds of one training in one process, and what they say together.

    python train_eager.py --recipe speedrun --runs 5          # seeds 0 to 4, the step compiled once
    python train_eager.py --resume runs/speedrun-0x5-...      # resumes where it stopped; --runs 10 adds to it

A series is a folder with series.json, which says what is trained, and a folder for each seed, seed-0 and so on, which
is a run's like any other: python -m lab report, predict and --resume take it too.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lab.assemble import Options
from lab.base import console
from lab.base.errors import UserError
from lab.base.files import encode, write_whole
from lab.report import evidence, tables
from lab.runs import checkpoint, record, resume
from lab.runs.checkpoint import Saved

NAME = "series.json"
KEPT = ("stop_after", "checkpoint_dir")  # what a run's --resume asks for again, a series keeps


def find(options: Options) -> str:
    """The folder of the series that options.resume names, or "" if it names a run instead.

    "auto" is the newest series under runs/ of this recipe and first seed that is not finished.
    """
    if options.resume != "auto":
        return options.resume if options.resume and (Path(options.resume) / NAME).exists() else ""
    if options.runs == 1:
        return ""
    folders = [path.parent for path in Path("runs").glob(f"{options.recipe}-{options.seed}x*/{NAME}")]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        values = hyperparameters(folder)
        seeds = range(values["seed"], values["seed"] + values["runs"])
        if not all(resume.finished(folder / f"seed-{seed}") for seed in seeds):
            return str(folder)
    return ""


def hyperparameters(folder: Path) -> dict[str, Any]:
    """Those of a series that has begun. Raises UserError if series.json is damaged."""
    values: dict[str, Any] = record.read_result(folder / NAME)["hyperparameters"]
    return values


def train(
    options: Options,
    run: Callable[[Options, Saved | None], dict[str, Any]],
    *,
    resumed: bool,
) -> list[dict[str, Any]]:
    """Trains the seeds that are not finished and returns all results, by seed.

    Args:
        options: with the first seed; `runs` says how many.
        run: trains one seed from its own hyperparameters and perhaps a checkpoint, and returns its result.
        resumed: the folder is that of a series that has begun.

    Raises:
        UserError: as a run does; what is finished stays, and the series can be resumed.
    """
    default = Path("runs") / f"{options.recipe}-{options.seed}x{options.runs}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not resumed and options.out:
        there = Path(options.out).expanduser()
        if (there / NAME).exists():
            raise UserError(f"--out {options.out} holds a series; --resume {options.out} goes on with it")
        if runs := sorted(there.glob("seed-*")):
            raise UserError(f"--out {options.out} holds {runs[0].name}; choose another folder")
    folder = record.make_folder(options.out, default, resumed=resumed)
    write_whole(folder / NAME, encode({"hyperparameters": asdict(options)}))
    results = []
    for number in range(options.runs):
        seed = options.seed + number
        own = _own(options, folder, seed)
        console.say(f"{'' if number == 0 else chr(10)}seed {seed}, run {number + 1} of {options.runs}")
        if resume.finished(Path(own.out)):
            result = record.read_result(Path(own.out))
            console.say(f"finished before: {_accuracy(result)}")
        else:
            saved = _saved(own)
            try:
                result = run(own, saved)
            except UserError as error:
                if not any(folder.glob("seed-*")):  # nothing has begun, so nothing stays
                    (folder / NAME).unlink()
                    with contextlib.suppress(OSError):
                        folder.rmdir()
                    raise
                raise UserError(f"{error}; of the whole series: --resume {folder}", exit_code=error.exit_code) from None
        results.append(result)
    console.say(f"\n{_table(folder)}")
    return results


def _own(options: Options, folder: Path, seed: int) -> Options:
    """The hyperparameters of one run of the series."""
    return replace(
        options,
        seed=seed,
        runs=1,
        resume="",
        out=str(folder / f"seed-{seed}"),
        checkpoint_dir=options.checkpoint_dir and f"{options.checkpoint_dir.rstrip('/')}/seed-{seed}",
        profile=options.profile if seed == options.seed else "",
    )


def _saved(own: Options) -> Saved | None:
    """The checkpoint from which a run goes on. Without one, what it has left is an unfinished row, and goes."""
    saved, damaged = checkpoint.newest(own.checkpoint_dir or own.out)
    for line in damaged:
        console.say(f"note: {line}")
    if saved is None:
        if damaged:
            raise UserError(f"{own.out} has no complete checkpoint; move it away, and its seed starts again")
        for name in ("result.json", "dawnbench.tsv"):
            (Path(own.out) / name).unlink(missing_ok=True)
    return saved


def _accuracy(result: Mapping[str, Any]) -> str:
    tta = result["test_accuracy_tta"]
    return f"accuracy {result['test_accuracy']:.4f}" + ("" if tta is None else f", {tta:.4f} with more views")


def _table(folder: Path) -> str:
    """The report of the series, or why there are none: statistics need SciPy."""
    try:
        return tables.as_text(evidence.make([folder]))
    except UserError as error:
        return f"no statistics: {error}; then: python -m lab report {folder}"
