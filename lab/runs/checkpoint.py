"""Checkpoints that count only when they are whole, so that a run goes on exactly where it stopped.

A checkpoint is three files in the run's folder `checkpoints` (any path that tf.io.gfile knows): TensorFlow's
`step-N.index` and `step-N.data-...`, and a manifest `step-N.json`, written last and in one piece, with the sums of
the other two, of the variables' values and of itself, and what the run needs besides: epoch, step, rows,
hyperparameters.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import tensorflow as tf

from lab.base.errors import UserError, brief
from lab.base.storage import FILE_ERRORS, write_whole
from lab.runs.record import CANNOT_WRITE

FOLDER = "checkpoints"
NAME = "step"


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint: where its files begin, and what its manifest says of the run."""

    prefix: str
    about: dict[str, Any]


class Checkpoints:
    """Writes and restores the checkpoints of one run.

    Args:
        folder: the run's; the files go to `checkpoints` in it.
        keep: how many there are at most, from 1; older ones are deleted.
        parts: what to save, by name: the model, the optimizer, the moving average.
        variables: all variables of the parts, in a fixed order, to be compared one by one on restoring.
    """

    def __init__(self, folder: str, keep: int, parts: dict[str, Any], variables: Sequence[Any]) -> None:
        self.folder, self.keep, self.variables = f"{folder}/{FOLDER}", keep, list(variables)
        self.state = tf.train.Checkpoint(**parts)

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
        prefix = f"{self.folder}/{NAME}-{step}"
        try:
            tf.io.gfile.makedirs(self.folder)
            _delete(prefix)  # left by a run that was killed here
            self.state.write(prefix)
            files = {PurePosixPath(path).name: _sha256(path) for path in _files(prefix)}
            manifest = {"step": step, "files": files, "variables": self._sha256(), "about": about}
            text = json.dumps(manifest)
            write_whole(f"{prefix}.json", f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
            for old in _prefixes(self.folder)[self.keep :]:
                _delete(old)
        except FILE_ERRORS as error:
            with contextlib.suppress(*FILE_ERRORS):
                _delete(prefix)  # what was written of it, to make room
            raise UserError(
                f"cannot write the checkpoint {prefix}: {brief(error)}; free the disk or the folder, then "
                "--resume goes on from the one before",
                exit_code=CANNOT_WRITE,
            ) from None

    def restore(self, saved: Saved) -> None:
        """Gives all variables their values in the checkpoint.

        Raises UserError if it does not hold every one of them with its shape, or they are not what was saved.
        """
        try:
            self.state.read(saved.prefix).assert_existing_objects_matched()
        except (AssertionError, ValueError, *FILE_ERRORS) as error:
            raise UserError(
                f"the checkpoint {saved.prefix} is of another network or optimizer ({brief(error)}); resume "
                "with the hyperparameters that it was made with"
            ) from None
        if self._sha256() != saved.about["variables"]:
            raise UserError(
                f"the checkpoint {saved.prefix} does not hold every variable of this network; it was written "
                "by another version of these scripts, so start anew"
            )

    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for variable in self.variables:
            value = np.asarray(tf.convert_to_tensor(variable))
            digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        return digest.hexdigest()


def newest(folder: str) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint of a run, and a line for each newer one that is damaged.

    Args:
        folder: the run's.
    """
    damaged: list[str] = []
    for prefix in _prefixes(f"{folder}/{FOLDER}"):
        reason = ""
        try:
            with tf.io.gfile.GFile(f"{prefix}.json", "rb") as file:
                known, _, text = file.read().decode().partition("\n")
            if known != hashlib.sha256(text.removesuffix("\n").encode()).hexdigest():
                raise ValueError("its manifest is not what was written")
            manifest = json.loads(text)
            names, about = manifest["files"], manifest["about"]
            if prefix != f"{folder}/{FOLDER}/{NAME}-{manifest['step']}" or not names:
                reason = "its manifest is another's"
            for name, known in names.items():
                if PurePosixPath(name).name != name or _sha256(f"{folder}/{FOLDER}/{name}") != known:
                    reason = f"{name} is not what was written"
            if not reason:
                return Saved(
                    prefix, about | {"variables": manifest["variables"], "step": manifest["step"]}
                ), damaged
        except (ValueError, KeyError, TypeError, AttributeError, *FILE_ERRORS) as error:
            reason = brief(error)
        damaged.append(f"the checkpoint {prefix} is damaged ({reason}) and left out")
    return None, damaged


def _prefixes(folder: str) -> list[str]:
    """Of the checkpoints that have a manifest, the newest first."""
    if not tf.io.gfile.isdir(folder):
        return []
    steps = []
    for name in tf.io.gfile.listdir(folder):
        kind, _, number = name.removesuffix(".json").partition("-")
        if name.endswith(".json") and kind == NAME and number.isdigit():
            steps.append(int(number))
    return [f"{folder}/{NAME}-{step}" for step in sorted(steps, reverse=True)]


def _files(prefix: str) -> list[str]:
    """Of a checkpoint, those that a killed run left half-written included."""
    folder, _, name = prefix.rpartition("/")
    return [
        f"{folder}/{file}"
        for file in tf.io.gfile.listdir(folder)
        if file.startswith((f"{name}.", f"{name}_"))
    ]


def _delete(prefix: str) -> None:
    """The manifest first: without it the rest does not count."""
    for path in sorted(_files(prefix), key=lambda path: not path.endswith(".json")):
        (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
