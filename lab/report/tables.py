"""Runs, groups and comparisons as rows of text, for the terminal and for a page alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.report import statistics, times
from lab.report.evidence import Report
from lab.report.groups import Group
from lab.report.statistics import Comparison, Summary
from lab.runs.results import Run, clean

NONE = "–"  # a dash for what is not known


@dataclass(frozen=True)
class Table:
    """Headings, rows of as many texts, and which columns are words rather than numbers.

    lab/report/page.py makes HTML of it.
    """

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: tuple[int, ...] = (0,)

    def as_text(self) -> str:
        """For a terminal, with the columns aligned: words to the left, numbers to the right."""
        lines = [self.heads, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if index in self.words else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def as_markdown(self) -> str:
        """For a document."""
        escaped = ([cell.replace("|", "\\|") for cell in line] for line in (self.heads, *self.rows))
        head, *rows = (f"| {' | '.join(line)} |" for line in escaped)
        return "\n".join([head, "|" + "---|" * len(self.heads), *rows])


def percent(share: float | None, digits: int = 2) -> str:
    """A share of 1 in percent, without the sign."""
    return NONE if share is None else f"{100 * share:.{digits}f}"


def seconds(value: float | None, absent: str = NONE) -> str:
    """Seconds to a hundredth, from 100 on to a tenth; `absent` for None."""
    if value is None:
        return absent
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def probability(p: float | None) -> str:
    """A p value to two digits."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def target_name(target: float) -> str:
    """0.94 as 94 %."""
    return f"{100 * target:g} %"


def machine(run: Run) -> str:
    """What a run was made on: AMD EPYC, 2 cores, float32, TensorFlow 2.21.0."""
    chips = list(run.accelerators)
    named = [f"{chips.count(chip)} x {chip}" for chip in dict.fromkeys(chips)]
    cores = f"{run.processor}, {run.cores} cores" if run.cores else run.processor
    return ", ".join([*(named or [cores]), run.precision, tensorflow(run.versions)])


def tensorflow(versions: Mapping[str, Any]) -> str:
    """TensorFlow 2.21.0, of recorded versions; the package for TPUs has a name of its own."""
    return f"TensorFlow {versions.get('tensorflow') or versions.get('tensorflow-tpu') or '?'}"


def left_out(runs: Sequence[Run]) -> str:
    """That these runs are not finished and what that means."""
    paths = ", ".join(clean(str(run.path)) for run in runs)
    return f"unfinished, so listed but left out of the statistics: {paths}"


def of_runs(runs: Sequence[Run]) -> Table:
    """A row a run: what it was and how well it did, and where it lies."""
    rows = []
    for number, run in enumerate(runs, start=1):
        epochs = f"{len(run.epochs)}/{run.scheduled_epochs}"
        rows.append(
            (
                str(number),
                run.recipe + (" (SYNTHETIC images)" if run.synthetic else ""),
                epochs if run.finished else f"{epochs}, unfinished",
                str(run.seed),
                percent(run.test_accuracy),
                percent(run.test_accuracy_tta),
                seconds(run.train_seconds),
                seconds(run.total_seconds),
                seconds(run.compile_seconds),
                clean(str(run.path)),
            )
        )
    heads = ("run", "recipe", "epochs", "seed", "plain %", "TTA %", "train s", "total s", "compile s", "file")
    return Table(heads, rows, words=(0, 1, 2, 9))


def of_speeds(runs: Sequence[Run], target: float, peak_tflops: float | None) -> Table:
    """A row a run: its times by both rules, and how well it used the chip."""
    rows = []
    for number, run in enumerate(runs, start=1):
        speed = times.of(run, target, peak_tflops)
        rows.append(
            (
                str(number),
                seconds(speed.to_target, "never" if run.finished else "not yet"),
                seconds(speed.airbench, "not recorded"),
                seconds(speed.compiling),
                f"{speed.images_per_second:,.0f}",
                NONE if speed.tflops is None else f"{speed.tflops:.3g}",
                NONE if speed.peak_tflops is None else f"{speed.peak_tflops:g}",
                NONE if speed.share is None else f"{percent(speed.share, 1)} %",
                seconds(speed.seconds_at_peak),
            )
        )
    heads = (
        "run",
        f"DAWNBench s, to {target_name(target)}",
        "airbench s",
        "compile s",
        "images/s",
        "TFLOP/s",
        "peak",
        "of peak",
        "train s at 100 %",
    )
    return Table(heads, rows)


def of_summaries(named: Sequence[tuple[str, Summary]], target: float) -> Table:
    """A row a summary, by the name of its accuracy."""
    rows = []
    for name, summary in named:
        low, high = summary.interval or (None, None)
        rows.append(
            (
                name,
                str(summary.n),
                percent(summary.mean, 3),
                percent(summary.deviation, 3),
                NONE if low is None else f"{percent(low)} to {percent(high)}",
                f"{summary.reached} ({100 * summary.reached / summary.n:.0f} %)",
                probability(summary.p),
            )
        )
    aim = target_name(target)
    heads = ("accuracy", "n", "mean %", "σ %", "95 % interval of it", f"runs ≥ {aim}", f"p (mean ≥ {aim})")
    return Table(heads, rows)


def medians(group: Group, target: float) -> str:
    """The median seconds of a group's runs as a line."""
    absent = {"DAWNBench": "never", "airbench": "not recorded"}
    named = times.medians(group.runs, target)
    return ", ".join(f"{name} {seconds(value, absent.get(name, NONE))}" for name, value in named.items())


def of_comparison(named: Sequence[tuple[str, Comparison]], difference: float) -> Table:
    """A row a comparison, by the name of its accuracy."""
    rows = []
    for name, comparison in named:
        low, high = comparison.interval or (None, None)
        needed = comparison.runs_needed
        rows.append(
            (
                name,
                f"{100 * comparison.difference:+.3f}",
                NONE if low is None or high is None else f"{100 * low:+.3f} to {100 * high:+.3f}",
                probability(comparison.p),
                NONE if needed is None else f"{needed:,}",
            )
        )
    heads = ("accuracy", "B - A, points", "95 % interval", "p", f"runs each for {100 * difference:g} points")
    return Table(heads, rows)


def footnotes(target: float) -> list[str]:
    """What the columns mean."""
    aim = target_name(target)
    return [
        f"DAWNBench s: training alone, to the end of the first epoch with a plain accuracy of {aim}. airbench s: "
        "whitening, training and the evaluation with TTA. Neither has loading or compiling, nor has train s; "
        "total s is training and every evaluation.",
        f"TFLOP/s: {times.PASSES} forward passes a step, two operations a multiply-add, of direct convolutions. "
        "peak: of the chip's data sheet, or --peak-tflops.",
        f"p: the chance of a mean this high if the true one were {aim}, by a one-sided t test. The interval is "
        "Student's; σ is that of one run, with n - 1. A claim by airbench's rule takes "
        f"{statistics.CLAIM} runs with distinct seeds.",
    ]


def as_text(report: Report) -> str:
    """The report for a terminal."""
    runs, target = report.runs, report.target
    parts = [of_runs(runs).as_text(), of_speeds(runs, target, report.peak_tflops).as_text()]
    for section in report.sections:
        if section.name:
            parts.append(section.name)
        for group, summaries in section.groups:
            lines = [group.label, *dict.fromkeys(map(machine, group.runs))]
            lines += [f"note: {note}" for note in group.notes]
            lines.append(of_summaries(summaries, target).as_text())
            lines.append(f"median seconds: {medians(group, target)}")
            parts.append("\n".join(lines))
        if section.unfinished:
            parts.append(left_out(section.unfinished))
    if report.comparisons:
        parts.append(of_comparison(report.comparisons, report.difference).as_text())
    parts += [*report.notes, "\n".join(footnotes(target))]
    return "\n\n".join(parts)
