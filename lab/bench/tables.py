"""What `python -m lab bench` has measured as tables: for a terminal, and in Markdown for the documents."""

from collections.abc import Mapping, Sequence
from typing import Any

from lab.bench import rivals
from lab.report.tables import Table, tensorflow

DOUBTFUL = "†: the rounds spread by more than a quarter, or the machine was not idle; not fit to be quoted."
SECTIONS = ("ceilings", "steps", "update", "input", "evaluation")


def interval(values: Mapping[str, float], form: str) -> str:
    """What bench.summary returns: 2.31 (2.20–2.50)."""
    return f"{values['median']:{form}} ({values['min']:{form}}–{values['max']:{form}})"


def _share(row: dict[str, Any]) -> str:
    return f"{row['share_of_limit']['median']:.0%}" if row["share_of_limit"] else ""


def _peak(row: dict[str, Any]) -> str:
    return "?" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"


# ---- for a terminal ----------------------------------------------------------------------------------------


def rows(result: Sequence[dict[str, Any]]) -> str:
    """A table for each section; `result` as bench.rows returns it."""
    parts = []
    for section in SECTIONS:
        lines = []
        for row in result:
            if row["section"] == section:
                form = ",.1f" if row["rate"]["median"] < 1000 else ",.0f"
                beside = next((f"{interval(value, '.2f')} x" for value in row["times_as_fast"].values()), "")
                lines.append(
                    (
                        row["name"],
                        f"{interval(row['rate'], form)} {row['unit']}/s",
                        beside,
                        _share(row),
                        f"{row['compile_seconds']:.1f} s",
                        _peak(row),
                        row["about"] + ("  noisy" if row["noisy"] else ""),
                    )
                )
        if lines:
            heads = (section, "median (lowest–highest)", "ours is", "limit", "compile", "peak GiB", "")
            parts.append("\n" + Table(heads, lines, words=(0, 6)).as_text())
    return "\n".join(parts)


def scaling(result: Sequence[dict[str, Any]]) -> Table:
    """What bench.scale returns, for a terminal and for the documents alike."""
    lines = [
        (
            row["way"],
            f"{row['images']:,}",
            f"{row['batch_size']:,}",
            str(row["threads"]),
            f"{interval(row['step_seconds'], '.2f')}{' †' if row['noisy'] else ''}",
            f"{row['images_per_second']:.0f}",
            _peak(row),
            f"{row['start_to_first_step_seconds']:.0f}",
            f"{row['import_seconds']:.0f}",
            f"{row['first_step_seconds']:.0f}",
        )
        for row in result
    ]
    seconds = ("s to the end of the first step", "of it imports", "first step, compiling")
    return Table(("way", "images", "batch", "threads", "s a step", "images/s", "peak memory, GiB", *seconds), lines)


# ---- for the documents -------------------------------------------------------------------------------------


def rows_in_markdown(record: dict[str, Any]) -> str:
    """The rows of what `python -m lab bench --out` writes, and the conditions they were measured under."""
    lines = []
    for row in sorted(record["rows"], key=lambda row: SECTIONS.index(row["section"])):
        form = ",.0f" if row["rate"]["median"] >= 20 else ".1f"
        rate = f"{interval(row['rate'], form)} {row['unit']}/s{' †' if row['noisy'] else ''}"
        beside = next((interval(value, ".2f") for value in row["times_as_fast"].values()), "")
        lines.append((f"{row['section']}: {row['about']} (`{row['name']}`)", rate, beside, _share(row)))
    heads = ("measured", "median (lowest–highest)", "ours is so many times as fast", "share of the limit")
    steps = record["steps_per_turn"]
    turn = f"{record['rounds']} rounds of {steps} step{'s' if steps > 1 else ''}"
    said = f"{conditions(record)}, {turn}. {_doubts(record, record['rows'])}"
    if share := record["remarks"].get("augmentation_share_of_step"):
        said += f" Augmentation is {share:.2%} of the default step."
    return f"{Table(heads, lines).as_markdown()}\n\n{said}{_absent(record)}"


def _absent(record: dict[str, Any]) -> str:
    """The usual candidates of the record's sections that it has no row of, so that no rival is left out unsaid."""
    rows = record["rows"]
    there, sections = {row["name"] for row in rows}, {row["section"] for row in rows}
    absent = [
        f"`{name}`"
        for name, candidate in rivals.candidates(record["network"]).items()
        if name not in there and candidate.usual and candidate.section in sections
    ]
    return f" Not in this record, but measured by the command: {', '.join(absent)}." if absent else ""


def scaling_in_markdown(record: dict[str, Any]) -> str:
    """The rows of what `python -m lab bench --scaling --out` writes, and the conditions they were measured under."""
    steps = f"median (lowest–highest) of {record['rounds']} steps"
    said = f"{conditions(record)}; {steps}. {_doubts(record, record['scaling'])}"
    if record.get("left_out"):
        said += f" Left out: {'; '.join(record['left_out'])}."
    return f"{scaling(record['scaling']).as_markdown()}\n\n{said}"


def conditions(record: Mapping[str, Any]) -> str:
    """The machine and the versions of a record of the bench or of pace."""
    hardware, versions = record["hardware"], record["versions"]
    made = [tensorflow(versions)]
    if "torch" in versions and "rows" in record:
        made.append(f"PyTorch {versions['torch']}")
    if "scaling" in record:
        made.insert(0, f"`ours-device` in {record['precision']}, the others in float32")
    flags = f" ({', '.join(hardware['processor_flags'])})" if hardware.get("processor_flags") else ""
    return f"{hardware['processor']}{flags}, {hardware['cores']} cores, {', '.join(made)}"


def _doubts(record: dict[str, Any], measured: Sequence[dict[str, Any]]) -> str:
    """What the record says against its own figures."""
    load = record["load_average"]["start"][0]
    said = f"Load average before the start: {load:.2f}."
    if any(row["noisy"] for row in measured):
        said += f" {DOUBTFUL}"
    return said
