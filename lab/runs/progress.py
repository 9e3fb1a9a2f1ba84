"""How far a run is, as its checkpoints hold it."""

from dataclasses import dataclass, field
from typing import Any

from lab.base.errors import UserError
from lab.runs.checkpoint import Saved


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


def read(saved: Saved) -> Progress:
    """The progress in a checkpoint. Raises UserError if it is not all there."""
    if missing := Progress.__annotations__.keys() - saved.about.keys():
        raise UserError(
            f"the checkpoint {saved.prefix} has no {', '.join(sorted(missing))}: another version of these scripts made "
            "it; move it away, or start a new run"
        )
    return Progress(**{name: saved.about[name] for name in Progress.__annotations__})
