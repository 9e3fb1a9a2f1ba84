"""Checkpoints, written so that a run goes on exactly where it stopped.

A checkpoint is two files in the run's folder `checkpoints` (any path that tf.io.gfile knows): `step-N.npz`, the values
of all variables that training changes, and `step-N.json`, written last and in one piece, with the sums of the other and
of itself, and what the run needs besides: epoch, step, rows, hyperparameters.
"""

import contextlib
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lab.base.errors import Exit, UserError, brief
from lab.base.files import decode, encode
from lab.base.storage import FILE_ERRORS, read, with_timeout, write_whole
from lab.images.formats import BROKEN_NPZ

FOLDER = "checkpoints"
NAME = "step"
STEP = "0|[1-9][0-9]{0,17}"  # its number
LARGEST = 64 * 2**20  # bytes of a manifest; one of 1,000 epochs has 0.3 MB


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint: where its files begin, and what its manifest says of the run."""

    prefix: str
    about: dict[str, Any]


class Checkpoints:
    """Writes and restores the checkpoints of one run.

    Args:
        folder: the run's; the files go to `checkpoints` in it.
        keep: how many whole ones there are at most, from 1; older ones are deleted. One that is damaged counts for
            nothing, and stays.
        variables: all that training changes, in a fixed order.
    """

    def __init__(self, folder: str, keep: int, variables: Sequence[Any]) -> None:
        self.folder, self.keep, self.variables = f"{folder}/{FOLDER}", keep, list(variables)
        self.whole: set[str] = set()  # prefixes of those that were found so, or written

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
            _delete(prefix)
            _tidy(self.folder)
            write_whole(f"{prefix}.npz", buffer.getvalue())
            manifest = {"step": step, "sha256_npz": hashlib.sha256(buffer.getvalue()).hexdigest(), "about": about}
            write_whole(f"{prefix}.json", encode(manifest))
            self.whole.add(prefix)
            for old in [one for one in _prefixes(self.folder, _files(self.folder)) if self._is_whole(one)][self.keep :]:
                _delete(old)
        except FILE_ERRORS as error:
            with contextlib.suppress(*FILE_ERRORS):
                _delete(prefix)  # what was written of it, to make room
            raise UserError(
                f"cannot write the checkpoint {prefix}: {brief(error)}; free the disk or the folder, then "
                "--resume goes on from the one before",
                exit_code=Exit.CANNOT_WRITE,
            ) from None

    def _is_whole(self, prefix: str) -> bool:
        if prefix not in self.whole:
            try:
                _read(prefix)
            except DAMAGED:
                return False
            self.whole.add(prefix)
        return True

    def restore(self, saved: Saved) -> None:
        """Gives all variables their values in the checkpoint.

        Raises UserError if it does not hold every one of them with its shape, or is gone.
        """
        try:
            arrays = _arrays(read(f"{saved.prefix}.npz"))
        except DAMAGED as error:
            raise UserError(f"cannot read the checkpoint {saved.prefix}: {brief(error)}; resume again") from None
        shapes = [(variable.shape, tf.as_dtype(variable.dtype)) for variable in self.variables]
        held = [(array.shape, tf.as_dtype(array.dtype)) for array in arrays]
        if held != shapes:
            raise UserError(
                f"the checkpoint {saved.prefix} is of another network, optimizer or --precision, or of another version "
                "of these scripts; resume with what it was made with, or start a new run"
            )
        for array, variable in zip(arrays, self.variables, strict=True):
            variable.assign(array)


DAMAGED = (ValueError, KeyError, TypeError, AttributeError, UserError, *BROKEN_NPZ, *FILE_ERRORS)


def newest(folder: str) -> tuple[Saved | None, list[str]]:
    """The newest complete checkpoint of the run in a folder, and a line for each newer one that is damaged.

    Raises UserError if the folder may not be read, or a storage service does not answer.
    """
    damaged: list[str] = []
    place = f"{folder}/{FOLDER}"
    for prefix in _prefixes(place, with_timeout(place, _files)):
        try:
            return _read(prefix), damaged
        except DAMAGED as error:
            damaged.append(f"the checkpoint {prefix} is damaged ({brief(error)}) and left out")
    return None, damaged


def _read(prefix: str) -> Saved:
    """A checkpoint, if it is what was written, by its sums; else raises one of DAMAGED."""
    manifest = decode(read(f"{prefix}.json", LARGEST).decode())
    if type(manifest["step"]) is not int or not prefix.endswith(f"/{NAME}-{manifest['step']}"):
        raise ValueError("its manifest is another's")
    if hashlib.sha256(read(f"{prefix}.npz")).hexdigest() != manifest["sha256_npz"]:
        raise ValueError("its .npz is not what was written")
    return Saved(prefix, manifest["about"] | {"step": manifest["step"]})


def _arrays(content: bytes) -> list[NDArray[Any]]:
    """The variables' values in an .npz, in their order. Raises one of DAMAGED; nothing is unpickled."""
    with np.load(io.BytesIO(content)) as archive:
        if sorted(archive.files) != sorted(f"arr_{number}" for number in range(len(archive.files))):
            raise ValueError("its .npz holds other names")
        arrays = [archive[f"arr_{number}"] for number in range(len(archive.files))]
    if any(array.dtype.kind not in "biuf" for array in arrays):
        raise ValueError("its .npz holds no numbers")
    return arrays


def _files(folder: str) -> list[str]:
    """The names in a folder; none if it is not there. Raises one of FILE_ERRORS if that cannot be known."""
    if not tf.io.gfile.exists(folder):  # listdir would take a service that does not answer for no folder
        return []
    try:
        return list(tf.io.gfile.listdir(folder))
    except tf.errors.NotFoundError:  # it is a file
        return []


def _prefixes(folder: str, files: Sequence[str]) -> list[str]:
    """Of the checkpoints that have a manifest, the newest first. Other names are nobody's business."""
    names = [re.fullmatch(rf"{NAME}-({STEP})\.json/?", name) for name in files]
    return [f"{folder}/{NAME}-{step}" for step in sorted((int(name[1]) for name in names if name), reverse=True)]


def _tidy(folder: str) -> None:
    """Deletes what a run left that was killed as it wrote a checkpoint: its files without a manifest."""
    files = _files(folder)
    whole = {prefix.rpartition("/")[2] for prefix in _prefixes(folder, files)}
    for file in files:
        name = re.match(rf"\.?({NAME}-(?:{STEP}))\.(npz|json)(\.|$)", file)
        if name and name[1] not in whole:
            with contextlib.suppress(*FILE_ERRORS):  # what cannot go does no harm
                tf.io.gfile.remove(f"{folder}/{file}")


def _delete(prefix: str) -> None:
    """The manifest first: without it the rest does not count. Files of a killed run go too."""
    folder, _, name = prefix.rpartition("/")
    left = [file for file in tf.io.gfile.listdir(folder) if file.lstrip(".").startswith(f"{name}.")]
    for file in sorted(left, key=lambda file: not file.endswith(".json")):
        tf.io.gfile.remove(f"{folder}/{file}")
