"""What lab/bench/bench.py has measured as tables: for a terminal, and in Markdown for the README."""

from collections.abc import Sequence
from typing import Any

SECTIONS = ("ceilings", "steps", "update", "input", "evaluation")
_COLUMNS = "{:<18} {:>34} {:>20} {:>6} {:>8} {:>8}"


def _interval(values: dict[str, float], form: str, dash: str = "-") -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}{dash}{values['max']:{form}})"


def _digits(value: float) -> str:
    return ",.1f" if value < 1000 else ",.0f"


def _share(row: dict[str, Any]) -> str:
    return f"{row['share_of_limit']['median']:.0%}" if row["share_of_limit"] else ""


def _peak(row: dict[str, Any]) -> str:
    return "?" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"


# ---- for a terminal ----------------------------------------------------------------------------------------


def rows(result: Sequence[dict[str, Any]]) -> str:
    """A table for each section; `result` as bench.rows returns it."""
    lines = []
    for section in SECTIONS:
        part = [row for row in result if row["section"] == section]
        if not part:
            continue
        lines += [
            "",
            _COLUMNS.format(section, "median (lowest-highest)", "ours is", "limit", "compile", "peak GiB"),
        ]
        for row in part:
            rate = f"{_interval(row['rate'], _digits(row['rate']['median']))} {row['unit']}/s"
            beside = next((f"{_interval(value, '.2f')} x" for value in row["times_as_fast"].values()), "")
            compiling = f"{row['compile_seconds']:.1f} s"
            line = _COLUMNS.format(row["name"], rate, beside, _share(row), compiling, _peak(row))
            lines.append(f"{line}  {row['about']}{'  noisy' if row['noisy'] else ''}")
    return "\n".join(lines)


def scaling(result: Sequence[dict[str, Any]]) -> str:
    """One table; `result` as bench.scale returns it."""
    lines = [
        f"\n{'':>31} {'':>9} {'':>8} | seconds from the command to the first step's end",
        "images  batch  threads  s a step images/s peak GiB |  total  imports  building  first step",
    ]
    for row in result:
        lines.append(
            f"{row['images']:6d}  {row['batch_size']:5d}  {row['threads']:7d} "
            f"{row['step_seconds']['median']:9.2f} {row['images_per_second']:8.1f} {_peak(row):>8} | "
            f"{row['start_to_first_step_seconds']:6.1f}  {row['import_seconds']:7.1f}  "
            f"{row['build_seconds']:8.1f}  {row['first_step_seconds']:10.1f}"
            + ("  noisy" if row["noisy"] else "")
        )
    return "\n".join(lines)


# ---- for the README ----------------------------------------------------------------------------------------


def rows_in_markdown(record: dict[str, Any]) -> str:
    """The rows of what `python -m lab.bench.bench --out` writes, and the conditions they were measured under."""
    lines = [
        "| measured | median (lowest–highest) | ours is so many times as fast | share of the limit |",
        "|---|---|---|---|",
    ]
    for row in sorted(record["rows"], key=lambda row: SECTIONS.index(row["section"])):
        form = ",.0f" if row["rate"]["median"] >= 20 else ".1f"
        rate = f"{_interval(row['rate'], form, '–')} {row['unit']}/s{' †' if row['noisy'] else ''}"
        beside = next((_interval(value, ".2f", "–") for value in row["times_as_fast"].values()), "")
        lines.append(
            f"| {row['section']}: {row['about']} (`{row['name']}`) | {rate} | {beside} | {_share(row)} |"
        )
    steps = record["steps_per_turn"]
    turn = f"{record['rounds']} rounds of {steps} step{'s' if steps > 1 else ''}"
    said = f"{_conditions(record)}, {turn}. {_doubts(record, record['rows'])}"
    if share := record["remarks"].get("augmentation_share_of_step"):
        said += f" Augmentation is {share:.2%} of the default step."
    return "\n".join([*lines, "", said])


def scaling_in_markdown(record: dict[str, Any]) -> str:
    """The rows of what `python -m lab.bench.bench --scaling --out` writes, and the conditions of measuring them."""
    lines = [
        "| images | batch | threads | s a step | images/s | peak memory, GiB | s to the end of the first step "
        "| of it imports | first step, compiling |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["scaling"]:
        cells = (
            f"{row['images']:,}",
            f"{row['batch_size']:,}",
            str(row["threads"]),
            f"{_interval(row['step_seconds'], '.2f', '–')}{' †' if row['noisy'] else ''}",
            f"{row['images_per_second']:.0f}",
            _peak(row),
            f"{row['start_to_first_step_seconds']:.0f}",
            f"{row['import_seconds']:.0f}",
            f"{row['first_step_seconds']:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    steps = f"median (lowest–highest) of {record['rounds']} steps"
    return "\n".join([*lines, "", f"{_conditions(record)}; {steps}. {_doubts(record, record['scaling'])}"])


def _conditions(record: dict[str, Any]) -> str:
    hardware, versions = record["hardware"], record["versions"]
    made = [f"TensorFlow {versions['tensorflow']}"]
    if "torch" in versions and "rows" in record:
        made.append(f"PyTorch {versions['torch']}")
    return f"{hardware['processor']}, {hardware['cores']} cores, float32, {', '.join(made)}"


def _doubts(record: dict[str, Any], measured: Sequence[dict[str, Any]]) -> str:
    """What the record says against its own figures."""
    load = record["load_average"]["start"][0]
    said = f"Load average before the start: {load:.2f}."
    if any(row["noisy"] for row in measured):
        said += (
            " †: the rounds spread by more than a quarter, or the machine was not idle; not fit to be quoted."
        )
    return said
