"""The results that runs leave, read back and checked: result.json files, and the records made of them.

Nothing here needs TensorFlow. What a file says is not trusted: a wrong type, a number that is not finite or text
that does not print is a `UserError` of one line, or is replaced, before anything is computed or shown.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lab.base.errors import UserError
from lab.runs import record

LARGEST = 64 * 2**20  # bytes of a JSON file that is read; a result of 1,000 epochs has 0.3 MB
NOT_SEARCHED = ("checkpoints", "__pycache__", "node_modules")  # folders; hidden ones are not either
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Epoch:
    """One row of a result: losses are means an image, accuracies shares, the seconds this epoch's training alone."""

    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    train_seconds: float


@dataclass(frozen=True)
class Run:
    """A result. Accuracies are shares of 1; what older results do not have is None.

    Args:
        path: the file it was read from.
        hyperparameters: by name, as they were recorded; an older result's flip in today's words.
        synthetic: whether the images were made up.
        data_sha256: of the images.
        train_images, test_images: how many there were.
        accelerators: their names; () on a CPU.
        replicas: devices that shared each batch.
        epochs: one for each epoch trained, which may be fewer than the schedule's.
        test_accuracy_tta: over several views of each test image.
        total_seconds: training and evaluation; `compile_seconds` are apart.
        airbench_seconds: by airbench's rule, see `lab/report/times.py`.
        forward_gflop_per_image: GFLOP of the forward pass for one image.
    """

    path: Path
    recipe: str
    seed: int
    finished: bool
    hyperparameters: Mapping[str, Value]
    synthetic: bool
    data_sha256: str
    train_images: int
    test_images: int
    processor: str
    cores: int | None
    accelerators: tuple[str, ...]
    precision: str
    replicas: int
    versions: Mapping[str, str]
    epochs: tuple[Epoch, ...]
    test_accuracy: float
    test_accuracy_tta: float | None
    train_seconds: float
    total_seconds: float
    compile_seconds: float
    images_per_second: float
    airbench_seconds: float | None
    forward_gflop_per_image: float | None

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
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its rights") from None
    if size > LARGEST:
        raise UserError(f"{path} has {size:,} bytes, a result at most {LARGEST:,}; move it away")


def _json_files(folder: Path) -> Iterator[Path]:
    """The JSON files in a folder and its folders, sorted. Links to folders are not followed, which ends."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}; give another") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name in NOT_SEARCHED:
            continue
        if entry.is_dir():
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
        """The object in a field."""
        return Fields(self.path, self.values.get(name), f"{self.where}.{name}" if self.where else name)

    def number(self, name: str, low: float = 0.0, high: float = 1e15) -> float:
        """A number within limits."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def number_or_none(self, name: str, low: float = 0.0, high: float = 1e15) -> float | None:
        """A number within limits; None for null and where the field is absent."""
        return None if self.values.get(name) is None else self.number(name, low, high)

    def whole(self, name: str, low: int = 0, high: int = 2**53) -> int:
        """A whole number within limits."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(name, value, f"a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.values.get(name)
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return value

    def text(self, name: str) -> str:
        """A text, of characters that print."""
        value = self.values.get(name)
        if not isinstance(value, str):
            self.refuse(name, value, "a text")
        return clean(value)

    def items(self, name: str) -> list[Any]:
        """A list."""
        value = self.values.get(name)
        if not isinstance(value, list):
            self.refuse(name, value, "a list")
        return value


def reaches(accuracy: float, target: float) -> bool:
    """Whether an accuracy is at least the target, give or take the float32 in which older results hold it."""
    return accuracy >= target - 1e-6  # a test image is 1e-4


def clean(text: str, limit: int = 200) -> str:
    """The text with a '?' for whatever does not print (line breaks, a terminal's commands), cut to `limit`."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:limit])


def _run(path: Path, value: Any) -> Run:
    top = Fields(path, value)
    data, hardware = top.inside("data"), top.inside("hardware")
    rows = [Fields(path, row, f"epochs[{index}]") for index, row in enumerate(top.items("epochs"))]
    hyperparameters = _hyperparameters(top.inside("hyperparameters"))
    if not 1 <= len(rows) <= hyperparameters["epochs"]:
        top.refuse("epochs", rows and "...", f"a list of 1 to {hyperparameters['epochs']} epochs")
    return Run(
        path=path,
        recipe=top.text("recipe"),
        seed=top.whole("seed"),
        finished=top.flag("finished"),
        hyperparameters=hyperparameters,
        synthetic=data.flag("synthetic"),
        data_sha256=data.text("sha256"),
        train_images=data.whole("train_images", 1),
        test_images=data.whole("test_images", 1),
        processor=hardware.text("processor"),
        cores=None if hardware.values.get("cores") is None else hardware.whole("cores", 1),
        accelerators=_texts(hardware, "accelerators"),
        precision=top.text("precision"),
        replicas=top.whole("replicas", 1),
        versions={clean(name): top.inside("versions").text(name) for name in top.inside("versions").values},
        epochs=tuple(_epoch(row, index + 1) for index, row in enumerate(rows)),
        test_accuracy=top.number("test_accuracy", high=1),
        test_accuracy_tta=top.number_or_none("test_accuracy_tta", high=1),
        train_seconds=top.number("train_seconds"),
        total_seconds=top.number("total_seconds"),
        compile_seconds=top.number("compile_seconds"),
        images_per_second=top.number("images_per_second"),
        airbench_seconds=top.number_or_none("airbench_seconds"),
        forward_gflop_per_image=top.number_or_none("forward_gflop_per_image"),
    )


def _hyperparameters(fields: Fields) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in fields.values.items():
        if not isinstance(value, str | int | float | None):
            fields.refuse(clean(name), value, "a number, a text or true or false")
        if isinstance(value, float) and not math.isfinite(value):
            fields.refuse(clean(name), value, "finite")
        values[clean(name)] = clean(value) if isinstance(value, str) else value
    if isinstance(flip := values.get("flip"), bool):  # in older results
        values["flip"] = "random" if flip else "none"
    return values | {"epochs": fields.whole("epochs", 1, 10**6)}


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    texts = fields.items(name)
    for text in texts:
        if not isinstance(text, str):
            fields.refuse(name, texts, "a list of texts")
    return tuple(clean(text) for text in texts)


def _epoch(row: Fields, number: int) -> Epoch:
    row.whole("epoch", number, number)  # a gap would move every later row of a curve
    return Epoch(
        train_loss=row.number("train_loss"),
        train_accuracy=row.number("train_accuracy", high=1),
        test_loss=row.number("test_loss"),
        test_accuracy=row.number("test_accuracy", high=1),
        train_seconds=row.number("train_seconds"),
    )
