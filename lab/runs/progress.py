"""How far a run is, as its checkpoints hold it; and whether what a checkpoint says can be so."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.base import console
from lab.runs.results import Fields


@dataclass
class Progress:
    """What a run has done, besides its variables."""

    epoch: int = 1  # of which `step_of_epoch` steps have been made
    step_of_epoch: int = 0
    loss_sum: float = 0.0  # over those
    correct: float = 0.0
    parts: list[list[float]] = field(default_factory=list)  # of both sums, each replica's: their sum would be rounded
    rows: list[dict[str, Any]] = field(default_factory=list)
    tta_accuracy: float | None = None
    train_seconds: float = 0.0  # of the epochs in `rows`
    epoch_seconds: float = 0.0  # of this one
    total_seconds: float = 0.0
    evaluation_seconds: float = 0.0  # of the last evaluation
    updates: int = 0  # by the end of the last whole epoch; float16 skips some


def read(about: Mapping[str, Any]) -> Progress:
    """The progress in a checkpoint's manifest, which `check` has seen."""
    return Progress(**{name: about[name] for name in Progress.__annotations__})


def check(path: str, about: Mapping[str, Any]) -> None:
    """Raises UserError, naming the first field that is missing, of a wrong type or out of range."""
    top = Fields(Path(path), about)
    epoch, step = top.whole("epoch", 1), top.whole("step_of_epoch")
    for name in ("loss_sum", "correct", "train_seconds", "epoch_seconds", "total_seconds", "evaluation_seconds"):
        top.number(name)
    top.whole("updates")
    if about.get("tta_accuracy") is not None:
        top.number("tta_accuracy", high=1)
    for part in top.items("parts"):
        if not isinstance(part, list) or len(part) != 2 or not all(type(value) is float for value in part):
            top.refuse("parts", part, "two numbers for each replica")
    rows = top.items("rows")
    if len(rows) != epoch - 1:
        top.refuse("rows", len(rows), f"{epoch - 1} rows")
    for number, value in enumerate(rows, start=1):
        row = Fields(Path(path), value, f"rows[{number - 1}]")
        row.whole("epoch", number, number)
        for name, _, _ in console.COLUMNS[1:]:
            row.number(name, high=1 if name.endswith("accuracy") else 1e15)
        if set(value) != {name for name, _, _ in console.COLUMNS}:
            row.refuse("", sorted(value), "a row of these scripts")
    top.inside("hyperparameters").scalars()
    if step and step > top.whole("step", step):
        top.refuse("step_of_epoch", step, "one of the steps made")
    if not isinstance(about.get("data_sha256"), str):
        top.refuse("data_sha256", about.get("data_sha256"), "a text")
