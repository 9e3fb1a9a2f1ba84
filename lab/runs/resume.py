"""Which run to go on with, and whether what was asked for is still that run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import options as settings
from lab.base.errors import UserError
from lab.options import Settings
from lab.runs import checkpoint, record
from lab.runs.checkpoint import Saved


def find(resume: str, options: Settings) -> tuple[str, Saved | None, list[str]]:
    """The folder of the run to go on with, its newest whole checkpoint, and lines about damaged ones.

    Args:
        resume: a run's folder, or auto: the newest under runs/ that has this recipe and seed, is not finished and
            has a checkpoint; ("", None, []) if there is none.
        options: hyperparameters of this run.

    Raises:
        UserError: if the folder has no whole checkpoint.
    """
    if resume != "auto":
        saved, damaged = checkpoint.newest(resume)
        if saved is None:
            why = f": {damaged[0]}" if damaged else ""
            raise UserError(
                f"--resume {resume} has no whole checkpoint{why}; give a run's folder, or start anew"
            )
        return resume, saved, damaged
    folders = Path("runs").glob(f"{options.recipe}-{options.seed}-*")
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
        saved, damaged = checkpoint.newest(str(folder))
        if saved is not None and not finished(folder):
            return str(folder), saved, damaged
    return "", None, []


def finished(folder: Path) -> bool:
    """Whether the run in that folder has ended and left its weights."""
    try:
        return (
            bool(record.read_result(folder / "result.json")["finished"]) and (folder / "weights.npz").exists()
        )
    except UserError:  # there is none, or it is damaged: the checkpoint counts
        return False


def settings_of(folder: str, saved: Saved, changes: Mapping[str, Any], constants: Settings) -> Settings:
    """The hyperparameters to go on with: the checkpoint's, and of `changes` what says where and how.

    Args:
        folder: where the run is now; it may have been moved.
        saved: the checkpoint.
        changes: hyperparameters given by the user, by name.
        constants: of this version of train_eager.py, for what the checkpoint does not know.

    Raises:
        UserError: if the changes would make it another training; the first such difference is named.
    """
    known = {name: value for name, value in saved.about["hyperparameters"].items() if name in settings.NAMES}
    places = {
        "stop_after": constants.stop_after,  # where to stop is said anew
        "out": "" if "://" in folder else folder,
        "checkpoint_dir": folder if known.get("checkpoint_dir") else "",
        "resume": "",
        "profile": "",
    }
    before = replace(constants, **known | places)
    given = {name: value for name, value in changes.items() if name != "resume"}
    after = settings.change(before, given)
    for name in settings.IDENTITY:
        if getattr(before, name) != getattr(after, name):
            raise UserError(
                f"--resume: the run was made with {settings.flag(name)} {getattr(before, name)!r}, not "
                f"{getattr(after, name)!r}; leave that flag out, or start a run of its own"
            )
    return after


def check_data(saved: Saved, sha256: str) -> None:
    """Raises UserError if the images are not those that the checkpoint was trained on."""
    if saved.about["data_sha256"] != sha256:
        raise UserError(
            f"--resume: the images are not those of the run (sha256 {sha256[:12]}..., it had "
            f"{saved.about['data_sha256'][:12]}...); give the same --data, or start a run of its own"
        )
