"""What `python -m lab tpu` has compiled: a line for a terminal, and a table for the documents.

A row is a program of its report: a dictionary of the fields of lab.tpu.lower.Program.
"""

from collections.abc import Sequence
from typing import Any

from lab.report.tables import Table

Row = dict[str, Any]

HEADS = (
    "chip",
    "precision",
    "step",
    "TFLOP",
    "GB moved",
    "GB of memory",
    "at the peaks: ms a step",
    "s an epoch",
    "the compiler's estimate: ms a step",
    "s an epoch",
)


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
    """A row for each program, in Markdown."""
    lines = [
        (
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
        for row in rows
    ]
    return Table(HEADS, lines).as_markdown()
