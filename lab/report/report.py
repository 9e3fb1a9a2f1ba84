"""What a set of runs says: tables, statistics, comparisons, a page, and the README's figures.

    python -m lab.report.report runs                            # every run under runs/, and their statistics
    python -m lab.report.report runs/before runs/after          # two sets of runs compared
    python -m lab.report.report records --html report.html      # one page with learning curves, which needs no network
    python -m lab.report.report --records                       # the README's tables and plot from records/
    python -m lab.report.report --check                         # exit 1 if they are not those of records/

A path is a result.json, a record of one, or a folder, searched through all its folders. Needs no TensorFlow;
statistics of two runs or more need SciPy, the plot matplotlib.

Exit: 0; 1 if --check finds the README stale; 2 for a wrong argument or a damaged file; 5 if a file cannot be written.
"""

import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab import documents as readme
from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.report import evidence, page, tables
from lab.report import times as speed
from lab.report.evidence import Report
from lab.runs import record

STALE = 1  # exit code of --check
ROOT = Path(__file__).resolve().parents[2]


# ---- as JSON -------------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """The report as values for other programs; accuracies are shares of 1, seconds and rates as in `speed.Speed`."""
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
                "speed": asdict(speed.of(run, report.target, report.peak_tflops)),
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
                        "median_seconds": speed.medians(group.runs, report.target),
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
    parser = Parser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="results, records, folders of them"
    )
    parser.add_argument("--target", type=float, default=0.94, help="accuracy to reach (default: %(default)s)")
    parser.add_argument("--compare", action="store_true", help="two sets; refuse what cannot be compared")
    parser.add_argument("--difference", type=float, default=0.001, help="to be seen (default: %(default)s)")
    parser.add_argument("--peak-tflops", type=float, help="of the chips together, if their names do not tell")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with learning curves as well")
    parser.add_argument("--records", action="store_true", help="write the README's figures from records/")
    parser.add_argument("--check", action="store_true", help="exit 1 if the README's figures are stale")
    try:
        options = parser.parse_args(arguments)
        _check(options)
        if options.records or options.check:
            return _records(check=options.check)
        report = evidence.make(
            options.paths,
            target=options.target,
            difference=options.difference,
            peak_tflops=options.peak_tflops,
            comparing=options.compare,
        )
        if options.html:
            record.write_whole(options.html, page.html(report))
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal without σ
        print(
            json.dumps(as_json(report), indent=2, allow_nan=False) if options.json else tables.as_text(report)
        )
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush fails too
    return 0


def _check(options: Any) -> None:
    """Raises UserError for options that are out of range or do not go together."""
    if options.records or options.check:
        if options.paths or options.html or options.json or options.compare:
            raise UserError("--records and --check are about records/ and README.md; give them alone")
        return
    if not options.paths:
        raise UserError("0 paths to read; give results, folders of runs, or records")
    for flag, value in (("--target", options.target), ("--difference", options.difference)):
        if not 0 < value <= 1:
            raise UserError(f"{flag} {value:g} is not a share above 0, at most 1; for 94 % give 0.94")
    peak = options.peak_tflops
    if peak is not None and not (peak > 0 and math.isfinite(peak)):
        raise UserError(
            f"--peak-tflops {peak:g} is not above 0; give the data sheet's 10^12 operations a second"
        )
    if options.html and options.html.suffix not in (".html", ".htm"):
        raise UserError(f"--html {options.html} is no page's name; give one that ends in .html")


def _records(*, check: bool) -> int:
    """Writes the README's figures, or tells whether they are stale. Returns the exit code."""
    stale = readme.stale(ROOT)
    if check and stale:
        print(
            f"not what records/ say: {', '.join(stale)}; run python -m lab.report.report --records",
            file=sys.stderr,
        )
        return STALE
    if not check:
        readme.write(ROOT)
    print(f"{'wrote' if stale else 'up to date:'} {', '.join(stale or readme.MADE)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
