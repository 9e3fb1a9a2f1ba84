"""All that a set of results says: its runs, the groups they fall into, their statistics, and a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.base.errors import UserError
from lab.report import groups, statistics
from lab.report.groups import Group
from lab.report.statistics import Comparison, Summary
from lab.runs import results
from lab.runs.results import Run


@dataclass(frozen=True)
class Section:
    """A set of runs: its name, "" for the only one; its groups, each with named summaries of its accuracies."""

    name: str
    runs: list[Run]
    groups: list[tuple[Group, list[tuple[str, Summary]]]]

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.runs if not run.finished]


@dataclass(frozen=True)
class Report:
    """All that is shown: one section, or the two that are compared; notes; the limits it was made with."""

    sections: list[Section]
    comparisons: list[tuple[str, Comparison]]
    notes: list[str]
    target: float
    difference: float
    peak_tflops: float | None

    @property
    def runs(self) -> list[Run]:
        return [run for section in self.sections for run in section.runs]


def make(
    paths: Sequence[Path],
    *,
    target: float = 0.94,
    difference: float = 0.001,
    peak_tflops: float | None = None,
    comparing: bool = False,
) -> Report:
    """Reads results and works out what there is to say.

    Args:
        paths: of results, records, or folders of them. Two sets of two or more finished runs are compared.
        target: accuracy, a share of 1, that runs and their means are held against.
        difference: the smallest between two means, a share of 1, that a comparison should detect.
        peak_tflops: of the chips, where their names do not tell; None: their names'.
        comparing: refuse what cannot be compared, instead of a note that says why.

    Raises:
        UserError: if a path holds no result, or a damaged one; or SciPy is missing.
    """
    sets = [(results.clean(str(path)), results.find(path)) for path in paths]
    grouped = [groups.put_together(runs) for _, runs in sets]
    why_not = _why_not_compared(sets, grouped)
    if comparing and why_not:
        raise UserError(f"--compare: {why_not}")
    comparisons: list[tuple[str, Comparison]] = []
    notes: list[str] = []
    if len(paths) == 2 and not why_not:
        sets = [(f"{letter}: {name}", runs) for letter, (name, runs) in zip("AB", sets, strict=True)]
        comparisons, notes = _compare(grouped[0][0], grouped[1][0], difference)
    else:
        notes = [f"not compared: {why_not}"] if len(paths) == 2 else []
        each = {run.path.resolve(): run for _, runs in sets for run in runs}  # the same file once
        sets = [("", list(each.values()))]
        grouped = [groups.put_together(sets[0][1])]
    sections = [
        Section(name, runs, [(group, _summaries(group, target)) for group in members])
        for (name, runs), members in zip(sets, grouped, strict=True)
    ]
    return Report(sections, comparisons, notes, target, difference, peak_tflops)


def _why_not_compared(sets: list[tuple[str, list[Run]]], grouped: list[list[Group]]) -> str:
    """Why these two sets cannot be compared; "" if they can."""
    if len(sets) != 2:
        return f"it takes two sets, these are {len(sets)}; give two folders of runs"
    first, second = ({run.path.resolve() for run in runs} for _, runs in sets)
    if common := len(first & second):
        return f"{common} results are in both sets; give sets without common runs"
    for (name, _), members in zip(sets, grouped, strict=True):
        if len(members) > 1:
            kinds = "; ".join(group.label for group in members)
            return f"{name} holds {len(members)} kinds of training ({kinds}); give folders of one kind each"
        if sum(len(group.runs) for group in members) < 2:
            return f"{name} holds fewer than 2 finished runs; a spread needs two"
    return ""


def _compare(first: Group, second: Group, difference: float) -> tuple[list[tuple[str, Comparison]], list[str]]:
    """The comparisons of what both have, and what to know of them."""
    notes, ours, theirs = [], dict(groups.accuracies(first)), dict(groups.accuracies(second))
    names = [name for name in ours if name in theirs]
    left_out = [name for name in (ours.keys() | theirs.keys()) if name not in names]
    if left_out:
        notes.append(f"not in both sets, so not compared: accuracy {' and '.join(sorted(left_out))}")
    if not groups.drawn_by_seed(first.runs[0]) and first.runs[0].data_sha256 != second.runs[0].data_sha256:
        notes.append("the sets' images are not the same")
    for about, of in (("code", groups.code), ("random stream", groups.random_stream)):
        kinds = ["; ".join(dict.fromkeys(map(of, group.runs))) for group in (first, second)]
        if kinds[0] != kinds[1]:
            notes.append(f"the sets' {about} is not the same: A {kinds[0]}, B {kinds[1]}")
    notes.append(
        "comparison: Welch's t test; runs each: the fewest with which it sees that difference at p < 0.05, two-sided, "
        "in 80 of 100 cases, by noncentral t, if the spreads are those of these runs"
    )
    return [(name, statistics.compare(ours[name], theirs[name], difference)) for name in names], notes


def _summaries(group: Group, target: float) -> list[tuple[str, Summary]]:
    return [(name, statistics.summarise(values, target)) for name, values in groups.accuracies(group)]
