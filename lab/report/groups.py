"""Runs put together by what they trained. Nothing here needs TensorFlow."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab import options as settings
from lab.ladder import recipes
from lab.ladder.recipes import RECIPES
from lab.options import Settings
from lab.runs.results import Run


@dataclass(frozen=True)
class Group:
    """Runs of one training: unlike only in seed, and in where and how they ran.

    Args:
        recipe: its name.
        changed: the hyperparameters that are not the recipe's, by name.
        label: recipe, what is changed, and what else sets it apart.
        runs: finished, in the order in which they were found.
        notes: what a reader must know of them, a line each.
    """

    recipe: str
    changed: dict[str, Any]
    label: str
    runs: tuple[Run, ...]
    notes: tuple[str, ...]


def put_together(runs: Sequence[Run], constants: Settings) -> list[Group]:
    """The finished runs by what they trained, in the order in which they were found.

    Args:
        constants: the recipe `davidnet`.
    """
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.finished:
            found.setdefault(_identity(run, _reference(run, runs, constants)), []).append(run)
    made = []
    for members in found.values():
        reference = _reference(members[0], runs, constants)
        changed = recipes.changed(members[0], reference)
        made.append((members, changed, _label(members[0], changed)))
    labels = Counter(label for _, _, label in made)
    return [
        Group(
            members[0].recipe,
            changed,
            # Alike in all but their images.
            label if labels[label] == 1 else f"{label}, data {members[0].data_sha256[:8]}",
            tuple(members),
            tuple(_notes(members)),
        )
        for members, changed, label in made
    ]


def _reference(run: Run, runs: Sequence[Run], constants: Settings) -> Settings:
    """What a run's hyperparameters are compared with: its recipe; or the first run's of that unknown name."""
    if run.recipe in RECIPES:
        return recipes.resolve(run.recipe, constants)
    first = next(other for other in runs if other.recipe == run.recipe)
    known = {name: value for name, value in first.hyperparameters.items() if name in settings.OF_A_RECIPE}
    return Settings(**(vars(constants) | known | {"recipe": run.recipe}))


def _identity(run: Run, reference: Settings) -> tuple[Any, ...]:
    changed = recipes.changed(run, reference)
    # A subset is drawn by the seed, and so are made-up images.
    images = "" if _drawn_by_seed(run) else run.data_sha256
    counts = (run.train_images, run.test_images, len(run.epochs))
    return (run.recipe, tuple(sorted(changed.items())), run.synthetic, images, counts)


def _drawn_by_seed(run: Run) -> bool:
    subset = any(run.hyperparameters.get(name) for name in ("holdout", "limit_train", "limit_test"))
    return run.synthetic or subset


def _label(run: Run, changed: dict[str, Any]) -> str:
    parts = [run.recipe, *(f"{name} {value}" for name, value in changed.items())]
    if not run.is_full:
        parts.append(f"stopped after {len(run.epochs)} of {run.scheduled_epochs} epochs")
    if run.synthetic:
        parts.append("SYNTHETIC images")
    return ", ".join(parts)


def _notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know of the finished runs of one training."""
    notes = []
    repeated = [str(seed) for seed, count in Counter(run.seed for run in runs).items() if count > 1]
    if repeated:
        notes.append(
            f"seed {', '.join(repeated)} more than once: such runs are not independent, and the spread, interval "
            "and p below hold only for independent ones"
        )
    if any(run.hyperparameters.get("holdout") for run in runs):
        notes.append("accuracies are of held-out training images, not of the test set")
    machines = {(run.processor, run.cores, run.accelerators, run.precision, run.replicas) for run in runs}
    if len(machines) > 1:
        notes.append(
            f"{len(machines)} kinds of machine or precision, so the median seconds are of unlike runs"
        )
    if len({run.versions.get("tensorflow") for run in runs}) > 1:
        notes.append("more than one version of TensorFlow")
    return notes


def accuracies(group: Group) -> list[tuple[str, list[float]]]:
    """What a group's accuracies are called, and what they are: with TTA first, where all its runs have it."""
    found = [("plain", [run.test_accuracy for run in group.runs])]
    with_views = [run.test_accuracy_tta for run in group.runs if run.test_accuracy_tta is not None]
    if len(with_views) == len(group.runs):
        found.insert(
            0, (f"with TTA, {group.runs[0].hyperparameters.get('tta', 'several')} views", with_views)
        )
    return found
