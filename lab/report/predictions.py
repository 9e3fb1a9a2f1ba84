"""What lab/predict.py leaves beside a result: which classes a network confuses, and test images it got wrong."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.base.errors import UserError
from lab.base.files import decode, encode, sum_of, write_whole
from lab.runs.results import clean, load

NAME = "predictions.json"
# What is said of --tta.
VIEWS = {"none": "one view", "flip": "two views", "six": "six views", "unsure": "six views of the unsure quarter"}
RESULT = "result_sha256"  # the key for the sum of the result.json beside which they were made
SHOWN_CLASSES = 30  # of a whole matrix; of more classes the most frequent confusions are listed
LISTED = 20


@dataclass(frozen=True)
class Mistake:
    """A test image: its index, its class and the predicted one by their indices, the probability of the latter."""

    index: int
    label: int
    predicted: int
    probability: float
    png: bytes


@dataclass(frozen=True)
class Predictions:
    """The classes' names; how often each (row) was taken for each (column); images that were got wrong."""

    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    mistakes: tuple[Mistake, ...]


def write(folder: Path, content: dict[str, Any]) -> Path:
    """Writes the fields of `Predictions` to a run's folder, with the sum of the result that they belong to."""
    write_whole(folder / NAME, encode(content | {RESULT: sum_of(folder / "result.json")}))
    return folder / NAME


def missing(folder: Path) -> str:
    """Why a run's folder has no predictions of its own, and what makes them; "" if it has.

    Raises UserError if they are damaged or edited.
    """
    path, remedy = folder / NAME, f"write it: python -m lab predict {folder} --evaluate"
    if not path.exists():
        return f"there is no {NAME}; {remedy}"
    if _content(path).get(RESULT) != sum_of(folder / "result.json"):
        return f"{NAME} is of another run, or of an earlier epoch of this one; {remedy}"
    return ""


def _content(path: Path) -> dict[str, Any]:
    load(path)  # which refuses what is too large, and what is no JSON
    try:
        return decode(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} is damaged, edited or of an older version: {why}; remove it, and python -m lab predict "
            f"{path.parent} --evaluate writes it"
        ) from None


def read(folder: Path) -> Predictions | None:
    """The predictions in a run's folder; None if there are none of its own (see `missing`).

    Raises UserError if they are damaged or edited.
    """
    if missing(folder):
        return None
    content = _content(folder / NAME)
    return Predictions(
        classes=tuple(map(clean, content["classes"])),
        confusion=tuple(map(tuple, content["confusion"])),
        mistakes=tuple(Mistake(**value | {"png": base64.b64decode(value["png"])}) for value in content["mistakes"]),
    )


def most_confident(predictions: Predictions, count: int) -> list[Mistake]:
    """Of the images that were got wrong, those that the network was most confident about."""
    return sorted(predictions.mistakes, key=lambda mistake: -mistake.probability)[:count]


def most_frequent(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """The classes that are taken for another most often: the class, the other, how often, of how many images."""
    pairs = [
        (name, classes[column], count, sum(row))
        for number, (name, row) in enumerate(zip(classes, confusion, strict=True))
        for column, count in enumerate(row)
        if count and column != number
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:LISTED]
