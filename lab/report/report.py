"""What a set of runs says: tables, statistics, comparisons, a page.

    python -m lab report runs                            # every run under runs/, and their statistics
    python -m lab report runs/before runs/after          # two sets of runs compared
    python -m lab report records --html report.html      # one page with learning curves, which needs no network

A path is a result.json, a record of one, or a folder, searched through all its folders. Needs no TensorFlow;
statistics of two runs or more need SciPy.

Exit: 0; 2 for a wrong argument or a damaged file; 5 if a file cannot be written.
"""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.base.files import write_whole
from lab.report import evidence, page, tables, times
from lab.report.evidence import Report

# ---- as JSON -------------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """The report as values for other programs; accuracies are shares of 1, seconds and rates as in `times.Speed`."""
    return {
        "target": report.target,
        "runs": [
            {
                "path": str(run.path),
                "recipe": run.recipe,
                "seed": run.seed,
                "finished": run.finished,
                "epochs": len(run.epochs),
                "scheduled_epochs": run.scheduled_epochs,
                "synthetic": run.synthetic,
                "test_accuracy": run.test_accuracy,
                "test_accuracy_tta": run.test_accuracy_tta,
                "speed": asdict(times.of(run, report.target, report.peak_tflops)),
            }
            for run in report.runs
        ],
        "sets": [
            {
                "name": section.name,
                "groups": [
                    {
                        "label": group.label,
                        "recipe": group.recipe,
                        "changed": group.changed,
                        "seeds": [run.seed for run in group.runs],
                        "notes": group.notes,
                        "accuracies": {name: asdict(summary) for name, summary in summaries},
                        "median_seconds": times.medians(group.runs, report.target),
                    }
                    for group, summaries in section.groups
                ],
                "left_out": [str(run.path) for run in section.unfinished],
            }
            for section in report.sections
        ],
        "comparisons": {name: asdict(comparison) for name, comparison in report.comparisons},
        "difference": report.difference,
        "notes": report.notes,
    }


# ---- the command line --------------------------------------------------------------------------------------


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="results, records, folders of them")
    parser.add_argument("--target", type=float, default=0.94, help="accuracy to reach (default: %(default)s)")
    parser.add_argument("--compare", action="store_true", help="two sets; refuse what cannot be compared")
    parser.add_argument(
        "--difference", type=float, default=0.001, help="the smallest worth detecting (default: %(default)s)"
    )
    parser.add_argument("--peak-tflops", type=float, help="of the chips together, if their names do not tell")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with learning curves as well")
    options = parser.parse_args(arguments)
    _check(options)
    report = evidence.make(
        options.paths,
        target=options.target,
        difference=options.difference,
        peak_tflops=options.peak_tflops,
        comparing=options.compare,
    )
    if options.html:
        write_whole(options.html, page.html(report))
        print(f"wrote {options.html}", file=sys.stderr if options.json else sys.stdout)
    print(json.dumps(as_json(report), indent=2, allow_nan=False) if options.json else tables.as_text(report))
    return 0


def _check(options: Any) -> None:
    """Raises UserError for options that are out of range or do not go together."""
    if not options.paths:
        raise UserError("0 paths to read; give results, folders of runs, or records")
    for flag, value in (("--target", options.target), ("--difference", options.difference)):
        if not 0 < value <= 1:
            raise UserError(f"{flag} {value:g} is not a share above 0, at most 1; for 94 % give 0.94")
    peak = options.peak_tflops
    if peak is not None and not (peak > 0 and math.isfinite(peak)):
        raise UserError(f"--peak-tflops {peak:g} is not above 0; give the data sheet's 10^12 operations a second")
    if options.html and options.html.suffix not in (".html", ".htm"):
        raise UserError(f"--html {options.html} does not end in .html; give a name that does")
