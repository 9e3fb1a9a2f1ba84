"""Whether trainings follow the logs that were published of the same recipe, epoch by epoch. No TensorFlow here.

The training loss repeats so closely from run to run that two epochs tell a right network from a nearly right one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.ladder import recipes
from lab.ladder.published import LOGS
from lab.report import groups
from lab.runs import record, results
from lab.runs.results import Run

LOSS_LIMITS = (0.03, 0.02)  # of the first epoch and of those after it, as a share of the published loss
ACCURACY_LIMIT = 0.015  # a share of the images


@dataclass(frozen=True)
class Deviation:
    """How far runs are from their published log, each at its worst epoch, with its sign: ours more is positive.

    Args:
        runs: how many there are.
        epochs: how many could be compared, of the run that has most.
        loss: of the training loss, as a share of the published one.
        accuracy: of the training accuracy, a share of the images.
        follows: whether every epoch is within LOSS_LIMITS and ACCURACY_LIMIT.
    """

    runs: int
    epochs: int
    loss: float
    accuracy: float
    follows: bool


def deviation(runs: Sequence[Run], log: Sequence[tuple[float, float]]) -> Deviation:
    """How far these runs, at least one, are from a log of (training loss, training accuracy) by epoch."""
    pairs = [
        (index, ours, theirs) for run in runs for index, (ours, theirs) in enumerate(zip(run.epochs, log, strict=False))
    ]
    losses = [(index, ours.train_loss / loss - 1.0) for index, ours, (loss, _) in pairs]
    accuracies = [ours.train_accuracy - accuracy for _, ours, (_, accuracy) in pairs]
    near = all(abs(by) <= LOSS_LIMITS[min(index, 1)] for index, by in losses)
    return Deviation(
        runs=len(runs),
        epochs=1 + max(index for index, _, _ in pairs),
        loss=max((by for _, by in losses), key=abs),
        accuracy=max(accuracies, key=abs),
        follows=near and all(abs(by) <= ACCURACY_LIMIT for by in accuracies),
    )


def of_records(folder: Path) -> dict[str, Deviation | None]:
    """By recipe, for each that has a published log; None where no record in the folder tells.

    Those that do are of unchanged recipes on all images, perhaps stopped early, with today's code and random numbers. A
    recipe that is here the same training as another has the other's runs too.

    Raises UserError for a damaged record.
    """
    runs = [run for run in filter(groups.is_unchanged, results.search(folder)) if run.finished and not run.unlike]
    runs = [run for run in runs if run.random_stream == record.RANDOM_STREAM]
    found: dict[str, Deviation | None] = {}
    for name, log in LOGS.items():
        values = recipes.values(name)
        ours = [run for run in runs if recipes.values(run.recipe) == values]
        found[name] = deviation(ours, log) if ours else None
    return found


def still_to_train(folder: Path) -> list[str]:
    """The recipes with a published log of which no record in the folder tells, each training once."""
    missing = [name for name, by in of_records(folder).items() if by is None]
    values = [recipes.values(name) for name in missing]
    return [name for index, name in enumerate(missing) if values[index] not in values[:index]]


def in_words(found: Mapping[str, Deviation | None], name: str) -> str:
    """What `of_records` found of a recipe: yes: 2 epochs, loss +0.9 %, accuracy -0.4 points."""
    if name not in found:
        return "no log"
    by = found[name]
    if by is None:
        return "not measured yet"
    count = f"{by.epochs} epoch" + ("s" if by.epochs > 1 else "")
    count = f"{by.runs} runs, {count}" if by.runs > 1 else count
    answer = "yes" if by.follows else "NO"
    return f"{answer}: {count}, loss {100 * by.loss:+.1f} %, accuracy {100 * by.accuracy:+.1f} points"
