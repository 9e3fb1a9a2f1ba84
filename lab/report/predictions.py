"""What lab/predict.py leaves beside a result: which classes a network confuses, and test images it got wrong."""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.runs.results import Fields, clean, load

NAME = "predictions.json"
VIEWS = {"none": "one view", "flip": "two views", "six": "six views"}  # what is said of --tta
PNG = b"\x89PNG\r\n\x1a\n"  # its first bytes
MOST_CLASSES = 100
LARGEST_PNG = 100_000  # bytes; an image of 32 x 32 has at most 4,000


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


def read(folder: Path) -> Predictions | None:
    """The predictions in a run's folder; None if there are none. Raises UserError if they are damaged."""
    path = folder / NAME
    if not path.exists():
        return None
    top = Fields(path, load(path))
    classes = top.items("classes")
    if not 1 <= len(classes) <= MOST_CLASSES or not all(isinstance(name, str) for name in classes):
        top.refuse("classes", classes, f"a list of 1 to {MOST_CLASSES} texts")
    rows = top.items("confusion")
    if len(rows) != len(classes) or not all(_is_row(row, len(classes)) for row in rows):
        top.refuse("confusion", rows, f"{len(classes)} lists of {len(classes)} whole numbers from 0")
    mistakes = [
        _mistake(Fields(path, value, f"mistakes[{number}]"), len(classes))
        for number, value in enumerate(top.items("mistakes"))
    ]
    return Predictions(tuple(map(clean, classes)), tuple(map(tuple, rows)), tuple(mistakes))


def _is_row(row: Any, length: int) -> bool:
    whole = isinstance(row, list) and all(type(count) is int and 0 <= count < 2**53 for count in row)
    return whole and len(row) == length


def _mistake(fields: Fields, classes: int) -> Mistake:
    text = fields.values.get("png")
    try:
        png = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (ValueError, binascii.Error):  # a letter beyond ASCII, or one that is not of base64
        png = b""
    if not png.startswith(PNG) or len(png) > LARGEST_PNG:
        fields.refuse("png", text, f"a PNG of at most {LARGEST_PNG:,} bytes in base64")
    return Mistake(
        index=fields.whole("index"),
        label=fields.whole("label", 0, classes - 1),
        predicted=fields.whole("predicted", 0, classes - 1),
        probability=fields.number("probability", high=1),
        png=png,
    )


def most_confident(predictions: Predictions, count: int) -> list[Mistake]:
    """Of the images that were got wrong, those that the network was most confident about."""
    return sorted(predictions.mistakes, key=lambda mistake: -mistake.probability)[:count]
