"""Finds the run to resume."""

from pathlib import Path

from lab.base.errors import UserError
from lab.runs import checkpoint, record
from lab.runs.checkpoint import Saved


def find(folder: str, recipe: str, seed: int) -> tuple[str, Saved | None, list[str]]:
    """The folder of the run to resume, its newest complete checkpoint, and lines about damaged ones.

    Args:
        folder: a run's, or auto: the newest under runs/ that has this recipe and seed, is not finished and has a
            checkpoint; ("", None, []) if there is none.

    Raises:
        UserError: if the folder has no complete checkpoint.
    """
    if folder != "auto":
        saved, damaged = checkpoint.newest(folder)
        if saved is None:
            why = f": {damaged[0]}" if damaged else ""
            raise UserError(
                f"--resume {folder} has no complete checkpoint{why}; give a run's folder, or start a new run"
            )
        return folder, saved, damaged
    runs = Path("runs").glob(f"{recipe}-{seed}-*")
    for run in sorted(runs, key=lambda run: run.stat().st_mtime, reverse=True):
        saved, damaged = checkpoint.newest(str(run))
        if saved is not None and not finished(run):
            return str(run), saved, damaged
    return "", None, []


def finished(folder: Path) -> bool:
    """Whether the run in that folder has ended and left its weights."""
    try:
        ended = record.read_result(folder / "result.json")["finished"]
        return bool(ended) and (folder / "weights.npz").exists()
    except UserError:  # there is none, or it is damaged: the checkpoint counts
        return False


def check_data(saved: Saved, sha256: str) -> None:
    """Raises UserError if the images are not those that the checkpoint was trained on."""
    if saved.about["data_sha256"] != sha256:
        raise UserError(
            f"--resume: the images are not those of the run (sha256 {sha256[:12]}..., it had "
            f"{saved.about['data_sha256'][:12]}...); give the same --data, or start a new run"
        )
