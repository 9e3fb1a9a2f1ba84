"""Checkpoints, written so that a run goes on exactly where it stopped.

A checkpoint is two files in the run's folder `checkpoints` (any path that tf.io.gfile knows): `step-N.npz`, the values
of all variables that training changes, and `step-N.json`, written last and in one piece, with the sums of the other and
of itself, and what the run needs besides: epoch, step, rows, hyperparameters.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from lab.base.errors import Exit, UserError, brief
from lab.base.files import decode, encode
from lab.base.storage import FILE_ERRORS, sum_of, write_whole

FOLDER = "checkpoints"
NAME = "step"


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint: where its files begin, and what its manifest says of the run."""

    prefix: str
    about: dict[str, Any]


class Checkpoints:
    """Writes and restores the checkpoints of one run.

    Args:
        folder: the run's; the files go to `checkpoints` in it.
        keep: how many there are at most, from 1; older ones are deleted.
        variables: all that training changes, in a fixed order.
    """

    def __init__(self, folder: str, keep: int, variables: Sequence[Any]) -> None:
        self.folder, self.keep, self.variables = f"{folder}/{FOLDER}", keep, list(variables)

    def check_folder(self) -> None:
        """Raises UserError if nothing can be written there, so that a run does not train first and find out."""
        probe = f"{self.folder}/.probe"
        try:
            tf.io.gfile.makedirs(self.folder)
            with tf.io.gfile.GFile(probe, "w") as file:
                file.write("written")
            tf.io.gfile.remove(probe)
        except FILE_ERRORS as error:
            raise UserError(
                f"cannot write the checkpoints to {self.folder}: {brief(error)}; give another --checkpoint-dir, "
                "or --checkpoint-every 0 for none"
            ) from None

    def save(self, step: int, about: dict[str, Any]) -> None:
        """Writes a checkpoint, then deletes those beyond `keep`.

        Args:
            step: updates made so far.
            about: goes into the manifest; JSON.

        Raises:
            UserError: if it cannot be written. Earlier checkpoints stay.
        """
        prefix, buffer = f"{self.folder}/{NAME}-{step}", io.BytesIO()
        np.savez(buffer, *(np.asarray(tf.convert_to_tensor(variable)) for variable in self.variables))
        try:
            tf.io.gfile.makedirs(self.folder)
            _delete(prefix)  # left by a run that was killed here
            write_whole(f"{prefix}.npz", buffer.getvalue())
            manifest = {"step": step, "sha256_npz": sum_of(f"{prefix}.npz"), "about": about}
            write_whole(f"{prefix}.json", encode(manifest))
            for old in _prefixes(self.folder)[self.keep :]:
                _delete(old)
        except FILE_ERRORS as error:
            with contextlib.suppress(*FILE_ERRORS):
                _delete(prefix)  # what was written of it, to make room
            raise UserError(
                f"cannot write the checkpoint {prefix}: {brief(error)}; free the disk or the folder, then "
                "--resume goes on from the one before",
                exit_code=Exit.CANNOT_WRITE,
            ) from None

    def restore(self, saved: Saved) -> None:
        """Gives all variables their values in the checkpoint.

        Raises UserError if it does not hold every one of them with its shape.
        """
        with tf.io.gfile.GFile(f"{saved.prefix}.npz", "rb") as file:
            arrays = dict(np.load(io.BytesIO(file.read()), allow_pickle=False))
        shapes = [tuple(variable.shape) for variable in self.variables]
        held = [arrays[f"arr_{number}"].shape for number in range(len(arrays))]
        if held != shapes:
            raise UserError(
                f"the checkpoint {saved.prefix} is of another network or optimizer, or of another version of these "
                "scripts; resume with what it was made with, or start a new run"
            )
        for number, variable in enumerate(self.variables):
            variable.assign(arrays[f"arr_{number}"])


def newest(folder: str) -> tuple[Saved | None, list[str]]:
    """The newest complete checkpoint of a run, and a line for each newer one that is damaged.

    Args:
        folder: the run's.
    """
    damaged: list[str] = []
    for prefix in _prefixes(f"{folder}/{FOLDER}"):
        try:
            with tf.io.gfile.GFile(f"{prefix}.json", "rb") as file:
                manifest = decode(file.read().decode())
            if prefix != f"{folder}/{FOLDER}/{NAME}-{manifest['step']}":
                raise ValueError("its manifest is another's")
            if sum_of(f"{prefix}.npz") != manifest["sha256_npz"]:
                raise ValueError("its .npz is not what was written")
            return Saved(prefix, manifest["about"] | {"step": manifest["step"]}), damaged
        except (ValueError, KeyError, TypeError, AttributeError, *FILE_ERRORS) as error:
            damaged.append(f"the checkpoint {prefix} is damaged ({brief(error)}) and left out")
    return None, damaged


def _prefixes(folder: str) -> list[str]:
    """Of the checkpoints that have a manifest, the newest first."""
    if not tf.io.gfile.isdir(folder):
        return []
    steps = []
    for name in tf.io.gfile.listdir(folder):
        kind, _, number = name.removesuffix(".json").partition("-")
        if name.endswith(".json") and kind == NAME and number.isdecimal():
            steps.append(int(number))
    return [f"{folder}/{NAME}-{step}" for step in sorted(steps, reverse=True)]


def _delete(prefix: str) -> None:
    """The manifest first: without it the rest does not count. Files of a killed run go too."""
    folder, _, name = prefix.rpartition("/")
    left = [file for file in tf.io.gfile.listdir(folder) if file.lstrip(".").startswith(f"{name}.")]
    for file in sorted(left, key=lambda file: not file.endswith(".json")):
        tf.io.gfile.remove(f"{folder}/{file}")
