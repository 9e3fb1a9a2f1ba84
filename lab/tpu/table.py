"""What lab/tpu/lower.py has compiled as tables: a line for a terminal, and in Markdown for the README.

A row is a program of its report: a dictionary of the fields of tpu_compile.Program.
"""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def _memory(row: Row) -> str:
    return f"{(row['argument_bytes'] + row['temporary_bytes']) / 1e9:.2f}"


def line(row: Row) -> str:
    """A program for a terminal."""
    return (
        f"{row['recipe']:18} {row['chip']:4} {row['step']:10} {row['precision']:8} batch {row['batch_size']}: "
        f"{row['flops'] / 1e12:.3f} TFLOP, {row['bytes_accessed'] / 1e9:.2f} GB moved, "
        f"{_memory(row)} GB of memory ({row['memory_share']:.0%} of a core's); predicted, on one core: "
        f"{1000 * row['predicted_step_seconds']:.2f} ms a step, "
        f"{row['predicted_epoch_seconds']:.2f} s an epoch, bound by {row['bound_by']}; the compiler expects "
        f"{1000 * row['estimated_step_seconds']:.2f} ms a step, {row['estimated_epoch_seconds']:.2f} s an epoch"
    )


def table(rows: Sequence[Row]) -> str:
    """A row for each program; with the recipe's name if there are several recipes."""
    head = (
        "| chip | precision | step | TFLOP | GB moved | GB of memory "
        "| at the peaks: ms a step | s an epoch | the compiler's estimate: ms a step | s an epoch |"
    )
    rule = "|---|---|---|---|---|---|---|---|---|---|"
    several = len({row["recipe"] for row in rows}) > 1
    lines = [f"| recipe {head}", f"|---{rule}"] if several else [head, rule]
    for row in rows:
        cells = (
            *([row["recipe"]] if several else []),
            row["chip"],
            row["precision"],
            f"{row['step']}, {row['batch_size']} images",
            f"{row['flops'] / 1e12:.3f}",
            f"{row['bytes_accessed'] / 1e9:.2f}",
            f"{_memory(row)} ({row['memory_share']:.0%})",
            f"{1000 * row['predicted_step_seconds']:.1f} ({row['bound_by']})",
            f"{row['predicted_epoch_seconds']:.2f}",
            f"{1000 * row['estimated_step_seconds']:.1f}",
            f"{row['estimated_epoch_seconds']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def epochs(rows: Sequence[Row]) -> str:
    """A row for each recipe and a column for each chip and precision: seconds of training + evaluation an epoch.

    They are the compiler's estimates. What was not compiled leaves a dash.
    """
    columns = list(dict.fromkeys((row["chip"], row["precision"]) for row in rows))
    at = {(row["recipe"], row["chip"], row["precision"], row["step"]): row for row in rows}
    lines = [
        f"| recipe | images a step | TFLOP a step | {' | '.join(' '.join(column) for column in columns)} |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        train = next(row for row in rows if row["recipe"] == recipe and row["step"] == "train")
        cells = [recipe, f"{train['batch_size']}", f"{train['flops'] / 1e12:.2f}"]
        for column in columns:
            both = (at.get((recipe, *column, step)) for step in ("train", "evaluation"))
            cells.append(" + ".join(f"{row['estimated_epoch_seconds']:.2f}" if row else "–" for row in both))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
