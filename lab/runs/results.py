"""The results that runs leave, read back: result.json files, and the records made of them.

Nothing here needs TensorFlow. A result's checksum says that it is what was written; what is read of it is checked
besides to be of its kind, finite and printable, so that whoever computes with it or shows it need not ask. What is
not is a `UserError` of one line, or, of text, replaced.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin

from lab.base import paths
from lab.base.errors import UserError
from lab.base.files import sum_of
from lab.runs import record

SERIES = "series.json"  # in the folder of several seeds' runs
NOT_SEARCHED = ("checkpoints", "__pycache__", "node_modules")  # folders; hidden ones are not either
Value = str | int | float | bool | None


def at(inside: str = "", name: str = "", *, high: float = 1e15) -> Any:
    """A field that is read from another place than the top of the file, or a number with a limit of its own."""
    return dataclasses.field(metadata={"inside": inside, "name": name, "high": high})


@dataclass(frozen=True)
class Epoch:
    """One row of a result: losses are means an image, accuracies shares, the seconds this epoch's training alone."""

    train_loss: float
    train_accuracy: float = at(high=1)
    test_loss: float = at()
    test_accuracy: float = at(high=1)
    train_seconds: float = at()


@dataclass(frozen=True)
class Run:
    """A result. Accuracies are shares of 1; what older results do not have is None."""

    path: Path  # the file it was read from
    hyperparameters: Mapping[str, Value]  # by name, as recorded; an older result's flip in today's words
    epochs: tuple[Epoch, ...]  # one for each epoch trained, which may be fewer than the schedule's
    recipe: str
    seed: int
    finished: bool
    synthetic: bool = at("data")  # whether the images were made up
    data_sha256: str = at("data", "sha256")
    data_source: str = at("data", "source")  # the file or folder's name
    train_images: int = at("data")
    test_images: int = at("data")
    processor: str = at("hardware")
    cores: int | None = at("hardware")
    accelerators: tuple[str, ...] = at("hardware")  # their names; () on a CPU
    precision: str = at()
    replicas: int = at()  # devices that shared each batch
    versions: Mapping[str, Value] = at()
    code: Mapping[str, Value] = at()  # commit, changed, sha256 of the sources, see record.code; {} in older results
    weights_sha256: str | None = at()  # of weights.npz; None in older results
    random_stream: str | None = at()  # which random numbers it drew, see lab/runs/record.py
    unlike: str | None = at()  # of a record, added by hand: what the code of its day did otherwise than today's
    test_accuracy: float = at(high=1)
    test_accuracy_tta: float | None = at(high=1)  # over several views of each test image
    train_seconds: float = at()
    total_seconds: float = at()  # training and evaluation; compiling is apart
    compile_seconds: float = at()
    images_per_second: float = at()
    airbench_seconds: float | None = at()  # by airbench's rule, see lab/report/times.py
    forward_gflop_per_image: float | None = at()  # GFLOP of the forward pass for one image

    @property
    def accuracy(self) -> float:
        """The accuracy that counts: with test-time augmentation where the run has it."""
        return self.test_accuracy if self.test_accuracy_tta is None else self.test_accuracy_tta

    @property
    def scheduled_epochs(self) -> int:
        """The epochs of the whole schedule."""
        epochs = self.hyperparameters["epochs"]
        assert isinstance(epochs, int)  # `_run` has seen to it
        return epochs

    @property
    def is_full(self) -> bool:
        """Whether it was trained to the end of its schedule."""
        return self.finished and len(self.epochs) == self.scheduled_epochs

    @property
    def folder(self) -> Path | None:
        """The run's folder, in which other files may lie; None for a record."""
        return self.path.parent if self.path.name == "result.json" else None


def of_one_run(path: Path) -> Path:
    """The result.json, or record, that a path means: the file, or the folder that it is in.

    Raises UserError, which names its runs, for the folder of a series.
    """
    if not os.path.isdir(path):
        return path
    if os.path.exists(path / SERIES) and not os.path.exists(path / "result.json"):
        runs = sorted(file.parent for file in path.glob("seed-*/result.json"))
        remedy = f"give one of its {len(runs)} runs, such as {runs[0]}" if runs else "none of its runs has a result yet"
        raise UserError(f"{path} is the folder of a series; {remedy}")
    return path / "result.json"


def check_weights(path: Path, recorded: Any) -> None:
    """Raises UserError if a weights.npz is not the one whose sum its run recorded; an older run recorded none."""
    if recorded is not None and sum_of(path) != recorded:
        raise UserError(
            f"{path} is not what the run beside it wrote: another run's weights, or changed ones; copy the run's "
            "folder again"
        )


def find(path: Path) -> list[Run]:
    """The results at a path: one file, or those that `search` finds in a folder.

    Raises:
        UserError: if there is none, or the file is damaged or holds something else.
    """
    if not os.path.exists(path):  # pathlib's would raise for a name that is too long
        raise UserError(f"{path} does not exist; give results, folders of runs, or records")
    if not os.path.isdir(path):
        return [read(path)]
    if not (runs := search(path)):
        raise UserError(f"{path} holds no result.json and no record of a run; give a folder of runs")
    return runs


def search(folder: Path) -> list[Run]:
    """The results in a folder and its folders, but checkpoints and hidden ones, in the order of the files' names.

    JSON of another kind is passed over, unless it is called result.json.

    Raises:
        UserError: if a JSON file cannot be read, or a result is damaged.
    """
    runs = []
    for file in _json_files(folder):
        if file.name == "result.json" or record.is_result(file):
            runs.append(read(file))
    return runs


def read(path: Path) -> Run:
    """The result in one file. Raises UserError if it is missing, damaged, edited or something else."""
    _check_size(path)
    return _run(path, record.read_result(path))


def load(path: Path) -> Any:
    """Any JSON file's value. Raises UserError if it cannot be read."""
    _check_size(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = error.strerror or "it cannot be read"
    except (ValueError, RecursionError) as error:  # a JSON error and a wrong byte are ValueErrors
        why = str(error)
    raise UserError(f"cannot read {path}: {why}; restore it, or move it away")


def _check_size(path: Path) -> None:
    paths.check("result", str(path), schemes=())  # a FIFO would be waited for
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its rights") from None
    if size > record.LARGEST:
        raise UserError(f"{path} has {size:,} bytes, a result at most {record.LARGEST:,}; move it away")


def _json_files(folder: Path) -> Iterator[Path]:
    """The JSON files in a folder and its folders, sorted. Links to folders are not followed, which ends."""
    try:
        wanted = [one for one in sorted(folder.iterdir()) if one.name[0] != "." and one.name not in NOT_SEARCHED]
        entries = [(entry, entry.is_dir()) for entry in wanted]
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}; give another") from None
    for entry, is_folder in entries:
        if is_folder:
            if not entry.is_symlink():
                yield from _json_files(entry)
        elif entry.suffix == ".json":
            yield entry


# ---- from JSON to a Run ------------------------------------------------------------------------------------


class Fields:
    """A JSON object whose fields are asked for by name and kind; the wrong kind is a UserError that names it.

    Args:
        path: the file, for messages.
        value: what should be the object.
        where: its name in the file, "" for the whole.
    """

    def __init__(self, path: Path, value: Any, where: str = "") -> None:
        self.path, self.where = path, where
        if not isinstance(value, dict):
            self.refuse("" if where else "the file", value, "an object")
        self.values: dict[str, Any] = value

    def refuse(self, name: str, value: Any, wanted: str) -> NoReturn:
        """Raises the UserError for a field."""
        full = ".".join(part for part in (self.where, name) if part)
        shown = clean(repr(value))
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise UserError(f"{self.path}: {full} is {shown}, not {wanted}; restore the file, or move it away")

    def inside(self, name: str) -> "Fields":
        """The object in a field; an empty one where there is none."""
        return Fields(self.path, self.values.get(name, {}), f"{self.where}.{name}" if self.where else name)

    def number(self, name: str, low: float = 0.0, high: float = 1e15) -> float:
        """A number within limits, which NaN is not."""
        value: Any = self.values.get(name)
        if type(value) not in (int, float) or not low <= value <= high:
            self.refuse(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, low: int = 0, high: int = 2**53) -> int:
        """A whole number within limits."""
        value = self.values.get(name)
        if type(value) is not int or not low <= value <= high:
            self.refuse(name, value, f"a whole number from {low} to {high}")
        return value

    def items(self, name: str) -> list[Any]:
        """A list."""
        value = self.values.get(name)
        return value if isinstance(value, list) else self.refuse(name, value, "a list")

    def scalars(self) -> dict[str, Value]:
        """All fields, each a text, a finite number, true, false or null."""
        for name, value in self.values.items():
            if not isinstance(value, Value) or (isinstance(value, float) and not math.isfinite(value)):
                self.refuse(clean(name), value, "a finite number, a text or true or false")
        return {clean(k): clean(v) if isinstance(v, str) else v for k, v in self.values.items()}

    def of_kind(self, name: str, kind: Any, high: float) -> Any:
        """A field as a dataclass has it: `kind` is its annotation; numbers are from 0 to `high`."""
        value, kinds = self.values.get(name), get_args(kind) or (kind,)
        if value is None and NoneType in kinds:
            return None
        if get_origin(kind) is Mapping:
            return self.inside(name).scalars()
        if get_origin(kind) is tuple:
            texts = self.items(name)
            if not all(isinstance(text, str) for text in texts):
                self.refuse(name, texts, "a list of texts")
            return tuple(map(clean, texts))
        if float in kinds:
            return self.number(name, high=high)
        if int in kinds:
            return self.whole(name)
        if type(value) not in kinds:
            self.refuse(name, value, "true or false" if kind is bool else "a text")
        return clean(value) if isinstance(value, str) else value


def reaches(accuracy: float, target: float) -> bool:
    """Whether an accuracy is at least the target, give or take the float32 in which older results hold it."""
    return accuracy >= target - 1e-6  # a test image is 1e-4


def clean(text: str, limit: int = 200) -> str:
    """The text with a '?' for whatever does not print (line breaks, a terminal's commands), cut to `limit`."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:limit])


def _read(kind: type, top: Fields, **known: Any) -> Any:
    """A dataclass of the fields that a JSON object has for it, and of those that are known."""
    for item in dataclasses.fields(kind):
        if item.name not in known:
            about = {"inside": "", "name": "", "high": 1e15, **item.metadata}
            holder = top.inside(about["inside"]) if about["inside"] else top
            known[item.name] = holder.of_kind(about["name"] or item.name, item.type, about["high"])
    return kind(**known)


def _run(path: Path, value: Any) -> Run:
    top = Fields(path, value)
    hyperparameters = top.inside("hyperparameters")
    values = hyperparameters.scalars() | {"epochs": hyperparameters.whole("epochs", 1, 10**6)}
    if isinstance(flip := values.get("flip"), bool):  # in older results
        values["flip"] = "random" if flip else "none"
    rows = [Fields(path, row, f"epochs[{index}]") for index, row in enumerate(top.items("epochs"))]
    for number, row in enumerate(rows, start=1):
        row.whole("epoch", number, number)  # a gap would move every later row of a curve
    if not 1 <= len(rows) <= hyperparameters.values["epochs"]:
        top.refuse("epochs", rows and "...", f"a list of 1 to {values['epochs']} epochs")
    epochs = tuple(_read(Epoch, row) for row in rows)
    return _read(Run, top, path=path, hyperparameters=values, epochs=epochs)
