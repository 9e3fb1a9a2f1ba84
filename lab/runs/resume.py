"""Finds the run to resume, and what is left to do of it."""

import contextlib
from pathlib import Path
from typing import Any

from lab.base import console
from lab.base.errors import UserError
from lab.base.storage import is_remote
from lab.runs import checkpoint, claim, progress, record, results
from lab.runs.checkpoint import Saved


def find(folder: str) -> tuple[Saved | None, dict[str, Any] | None]:
    """The newest complete checkpoint of the run in a folder, and its result if it has ended. Notes what is damaged.

    Raises:
        UserError: if it has neither.
    """
    result = ended(folder)
    saved, damaged = checkpoint.newest(folder)
    for line in damaged:
        console.say(f"note: {line}")
    if saved is None and result is None:
        why = f": {damaged[0]}" if damaged else ""
        raise UserError(f"--resume {folder} has no complete checkpoint{why}; give a run's folder, or start a new run")
    return saved, result


def find_newest(recipe: str, seed: int) -> str:
    """The newest run under runs/ of this recipe and seed that is not finished, has a checkpoint and that no process
    is writing to; "" if there is none. Notes what is damaged."""
    for folder in by_age(Path("runs").glob(f"{recipe}-{seed}-*")):
        if ended(folder) or claim.is_written(folder):
            continue
        saved, damaged = checkpoint.newest(str(folder))
        for line in damaged:
            console.say(f"note: {line}")
        if saved is not None:
            try:
                progress.read(saved)
                made = saved.about["hyperparameters"]
                if (made["recipe"], made["seed"]) == (recipe, seed):  # a folder may be named otherwise
                    return str(folder)
            except UserError as error:
                console.say(f"note: {error}")
    return ""


def by_age(paths: Any) -> list[Path]:
    """Those that are there, the newest first: a link may lead nowhere, and a folder vanish meanwhile."""
    times: list[tuple[float, Path]] = []
    for path in paths:
        with contextlib.suppress(OSError):
            times.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(times, reverse=True)]


def ended(folder: str | Path) -> dict[str, Any] | None:
    """The result of the run in that folder if it has ended and left its weights; None if not, or it is damaged."""
    path = Path(folder) / "result.json"
    if is_remote(folder) or not path.is_file():
        return None
    try:
        if results.read(path).finished and path.with_name("weights.npz").is_file():
            return record.read_result(path)
    except UserError as error:  # the checkpoint counts
        console.say(f"note: {error}")
    return None


def check_last(folder: str, epochs: int, step: int, last: int, *, stays: bool = False) -> None:
    """Raises UserError if a run that has made `epochs` epochs and `step` steps of the next is to end before that.

    `stays`: whether an earlier --stop-after counts where the flag is left out.
    """
    if epochs > last or (epochs == last and step > 0):
        begun = f" and {step} steps of the next" if step else ""
        raise UserError(
            f"--stop-after {last}: the run in {folder} has made {epochs} epochs{begun}; give at least "
            f"{epochs + (step > 0)}{'' if stays else ', or leave the flag out'}"
        )


def newest_of(source: str, other: str) -> Saved:
    """The newest complete checkpoint in the folder of a run, or in the other one unless that is "".

    Raises UserError if they have gone since the run was found.
    """
    folders = [folder for folder in (source, other) if folder]
    found = [saved for saved, _ in map(checkpoint.newest, folders) if saved is not None]
    if not found:
        raise UserError(f"--resume {source} has no complete checkpoint any more; start a new run")
    return max(found, key=lambda saved: int(saved.about["step"]))


def check_data(saved: Saved, sha256: str) -> None:
    """Raises UserError if the images are not those that the checkpoint was trained on."""
    if saved.about["data_sha256"] != sha256:
        raise UserError(
            f"--resume: the images are not those of the run (sha256 {sha256[:12]}..., it had "
            f"{saved.about['data_sha256'][:12]}...); give the same --data, or start a new run"
        )
