"""Runs put together by what they trained, and which of them measure a recipe. Nothing here needs TensorFlow."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lab.ladder import recipes
from lab.ladder.recipes import RECIPES
from lab.options import IDENTITY, OF_A_RECIPE, Selection
from lab.runs import results
from lab.runs.results import Run

ALL_IMAGES = {item.name: item.default for item in fields(Selection)}
MOST_KINDS = 5  # of code that a note lists
GONE = {"sync_bn": False}  # hyperparameters that older results alone have, and what changed nothing


@dataclass(frozen=True)
class Group:
    """Runs of one training: unlike only in seed, and in where and how they ran.

    Args:
        recipe: its name.
        changed: the hyperparameters that are not the recipe's, by name.
        label: recipe, what is changed, and what else sets it apart.
        runs: finished, in the order in which they were read.
        notes: what a reader must know of them, a line each.
    """

    recipe: str
    changed: dict[str, Any]
    label: str
    runs: tuple[Run, ...]
    notes: tuple[str, ...]


# ---- one run beside its recipe -----------------------------------------------------------------------------


def changed(run: Run, values: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a run's training that are not those of a recipe, by name, with the run's own.

    Args:
        values: the recipe's, as recipes.values gives them. What an older result does not have is taken to be as there.
    """
    reference = {**ALL_IMAGES, **GONE, **values}
    names = [name for name in (*IDENTITY, *GONE) if name not in ("recipe", "seed")]
    ours = {name: run.hyperparameters[name] for name in names if name in run.hyperparameters}
    return {name: value for name, value in ours.items() if value != reference[name]}


def is_unchanged(run: Run) -> bool:
    """Whether a run trained a known recipe, on all real images, with nothing changed, perhaps not to its end."""
    known = run.recipe in RECIPES and not run.synthetic
    return known and not changed(run, recipes.values(run.recipe))


def is_measurement(run: Run) -> bool:
    """Whether a run tells its recipe's accuracy: unchanged, and trained to the end of its schedule."""
    return run.is_full and is_unchanged(run)


def measured(folder: Path) -> dict[str, list[Run]]:
    """The runs recorded in a folder that tell a recipe's accuracy, by recipe. Raises UserError for a damaged record."""
    runs: dict[str, list[Run]] = {}
    for run in filter(is_measurement, results.search(folder)):
        runs.setdefault(run.recipe, []).append(run)
    return {name: todays(members) for name, members in runs.items()}


def todays(runs: Sequence[Run]) -> list[Run]:
    """Those that trained as today's code does; all of them if none did, which then say in `unlike` how they did."""
    return [run for run in runs if not run.unlike] or list(runs)


# ---- many runs ---------------------------------------------------------------------------------------------


def put_together(runs: Sequence[Run]) -> list[Group]:
    """The finished runs by what they trained, in the order in which they were read."""
    references = _references(runs)
    alike: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.finished:
            alike.setdefault(_identity(run, changed(run, references[run.recipe])), []).append(run)
    groups = []
    for members in alike.values():
        changes = changed(members[0], references[members[0].recipe])
        groups.append((members, changes, _label(members[0], changes)))
    labels = Counter(label for _, _, label in groups)
    return [
        Group(
            members[0].recipe,
            changes,
            # Alike in all but their images.
            label if labels[label] == 1 else f"{label}, data {members[0].data_sha256[:8]}",
            tuple(members),
            tuple(_notes(members)),
        )
        for members, changes, label in groups
    ]


def _references(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """What runs are compared with, by the name of their recipe: its values; of an unknown one, its first run's."""
    references: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.recipe in RECIPES:
            references[run.recipe] = recipes.values(run.recipe)
        elif run.recipe not in references:
            of_first = {name: run.hyperparameters[name] for name in OF_A_RECIPE if name in run.hyperparameters}
            references[run.recipe] = recipes.values(recipes.ROOT) | of_first
    return references


def _identity(run: Run, changes: Mapping[str, Any]) -> tuple[Any, ...]:
    # A subset is drawn by the seed, and so are made-up images, whose source names it: their sums differ.
    images = "" if run.synthetic else run.data_source if drawn_by_seed(run) else run.data_sha256
    counts = (run.train_images, run.test_images, len(run.epochs))
    return (run.recipe, tuple(sorted(changes.items())), run.unlike, run.synthetic, images, counts)


def drawn_by_seed(run: Run) -> bool:
    """Whether another seed has other images: synthetic ones, subsets and held-out parts."""
    return run.synthetic or any(run.hyperparameters.get(name) for name in ALL_IMAGES)


def _label(run: Run, changes: Mapping[str, Any]) -> str:
    parts = [run.recipe, *(f"{name} {value}" for name, value in changes.items())]
    if not run.is_full:
        parts.append(f"stopped after {len(run.epochs)} of {run.scheduled_epochs} epochs")
    if run.synthetic:
        parts.append("SYNTHETIC images")
    if run.unlike:
        parts.append(f"unlike today's recipe: {run.unlike}")
    return ", ".join(parts)


def _notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know of the finished runs of one training."""
    notes = []
    draws = Counter((run.seed, random_stream(run)) for run in runs)
    repeated = sorted({seed for (seed, _), count in draws.items() if count > 1})
    if repeated:
        notes.append(
            f"seed {', '.join(map(str, repeated))} more than once: such runs are not independent, and the spread, "
            "interval and p below hold only for independent ones"
        )
    if any(run.hyperparameters.get("holdout") for run in runs):
        notes.append("accuracies are of held-out training images, not of the test set")
    machines = {(run.processor, run.cores, run.accelerators, run.precision, run.replicas) for run in runs}
    if len(machines) > 1:
        notes.append(f"{len(machines)} kinds of machine or precision, so the median seconds are of unlike runs")
    if len({run.versions.get("tensorflow") for run in runs}) > 1:
        notes.append("more than one version of TensorFlow")
    if len(codes := Counter(map(code, runs))) > 1:
        notes.append(f"made by {len(codes)} versions of this code: {_counted(codes)}")
    if len(streams := Counter(map(random_stream, runs))) > 1:
        notes.append(
            f"random numbers of {len(streams)} streams: {_counted(streams)}; the distributions are the same, but "
            "what a seed draws is not"
        )
    return notes


def code(run: Run) -> str:
    """Which code made a run, in a few words: the same for the same sources."""
    commit, sha256 = run.code.get("commit"), str(run.code.get("sha256"))[:8]
    if not run.code:
        return "not recorded"
    if commit and not run.code.get("changed"):
        return f"commit {str(commit)[:8]}"
    return f"commit {str(commit)[:8]} with changes, sha256 {sha256}" if commit else f"sha256 {sha256}"


def random_stream(run: Run) -> str:
    """Which random numbers a run drew; see lab/runs/record.py."""
    return run.random_stream or "the older one"


def _counted(kinds: Counter[str]) -> str:
    """The most frequent kinds, with how many runs each has."""
    shown = [f"{kind} ({count} {'run' if count == 1 else 'runs'})" for kind, count in kinds.most_common(MOST_KINDS)]
    return "; ".join(shown) + (f"; {len(kinds) - MOST_KINDS} more" if len(kinds) > MOST_KINDS else "")


def accuracies(group: Group) -> list[tuple[str, list[float]]]:
    """What a group's accuracies are called, and what they are: with TTA first, where all its runs have it."""
    named = [("plain", [run.test_accuracy for run in group.runs])]
    with_views = [run.test_accuracy_tta for run in group.runs if run.test_accuracy_tta is not None]
    if len(with_views) == len(group.runs):
        views = group.runs[0].hyperparameters.get("tta", "several")
        named.insert(0, (f"with TTA, {views} views", with_views))
    return named
