"""The tables and figures of README.md and docs/ that come from records/.

    python -m lab documents            # makes them again
    python -m lab documents --check    # exits with 1 if one is not what the records say

A table stands between `<!-- records: NAME -->` and `<!-- end -->`, in whichever document has the mark. A figure is
made of a recipe's records, or of the record of an experiment of the posts: records/post6-norms-cpu.json has the mark
`records: post6 norms` and the picture figures/post6-norms.svg. Drawing needs matplotlib, intervals need SciPy;
TensorFlow is loaded for the experiments alone.
"""

import hashlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lab.base.errors import Exit, Parser, UserError, exits_with_one_line
from lab.base.files import sum_of, write_whole
from lab.bench import pace
from lab.bench import tables as benchtables
from lab.ladder import published, recipes
from lab.ladder.recipes import RECIPES
from lab.ladder.speedruns import Recipe
from lab.report import figures, follows, groups, tables
from lab.report.predictions import VIEWS
from lab.report.statistics import summarise
from lab.report.tables import Table
from lab.runs import record, results
from lab.runs.results import Run
from lab.start import load
from lab.tpu import table as tputables

ROOT = Path(__file__).resolve().parents[1]
RECORDS, FIGURES = "records", "figures"
# The recipes of the README's table, measured or not; each has a figure.
FIRST = (recipes.ROOT, "speedrun", "speedrun-lowres")
SOURCES = {  # what a recipe's source mentions, and where it is
    "cifar10-fast": "https://github.com/davidcpage/cifar10-fast",
    "cifar10-airbench": "https://github.com/KellerJordan/cifar10-airbench",
    "hiverge/cifar10-speedrun": "https://github.com/hiverge/cifar10-speedrun",
    "fulcrumresearch/cifar-10-speedrun": "https://github.com/fulcrumresearch/cifar-10-speedrun",
}
BLOCK = re.compile(r"(<!-- records: ([a-z0-9 -]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
TARGET = 0.94  # accuracy, a share of 1
MANY_SEEDS = 10  # beyond which they are not listed


class Held(NamedTuple):
    """A row of our own record on a CPU: since when, the records of its runs, and what made it faster."""

    date: str
    records: str  # a pattern of their names
    changed: str


# The latest last; docs/records.md says what a new one takes.
HISTORY = (
    Held("2026-11-21", "speedrun-seed?-cpu.json", "the first: airbench94_muon in TensorFlow 2"),
    Held(
        "2026-11-30",
        "speedrun-lowres-seed?-cpu.json",
        "Fulcrum's E1: small images first, on hiverge's settings; Winograd's tiles of the size that fits them",
    ),
)

Runs = dict[str, list[Run]]  # by recipe


def stale(root: Path) -> list[str]:
    """The files that are not what the records say. A figure is not if other numbers were drawn.

    Raises UserError if a record or a document cannot be read, or the mark of a table is missing or there twice.
    """
    runs = of_recipes(root / RECORDS)
    names = [name for name, (before, after) in _documents(root, runs).items() if before != after]
    for name, digest, _ in _drawn(root, runs):
        if not (root / name).exists() or digest not in _read(root / name):
            names.append(name)
    return names


def write(root: Path) -> list[str]:
    """Makes all again, and returns the names of the files that changed.

    Raises UserError as `stale` does, or without matplotlib.
    """
    runs, changed = of_recipes(root / RECORDS), stale(root)
    for name, (_, after) in _documents(root, runs).items():
        if name in changed:
            write_whole(root / name, after)
    for name, digest, draw in _drawn(root, runs):
        if name in changed:
            (root / name).parent.mkdir(exist_ok=True)
            write_whole(root / name, figures.as_svg(draw(), digest))
    return changed


def of_recipes(folder: Path) -> Runs:
    """The records of finished runs of unchanged recipes, perhaps stopped early: FIRST, then in the order of RECIPES."""
    runs = [run for run in results.search(folder) if run.finished and groups.is_unchanged(run)]
    by_recipe = {name: [run for run in runs if run.recipe == name] for name in (*FIRST, *RECIPES)}
    return {name: members for name, members in by_recipe.items() if members}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; restore it") from None


def _documents(root: Path, runs: Runs) -> dict[str, tuple[str, str]]:
    """Each document's text, as it is and as the records have it."""
    paths = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    texts = {path.relative_to(root).as_posix(): _read(path) for path in paths}
    makers = _makers(root / RECORDS, runs)
    marks = sorted(match[2] for text in texts.values() for match in BLOCK.finditer(text))
    if marks != sorted(makers):
        wanted = " and ".join(f"<!-- records: {name} -->" for name in makers)
        raise UserError(f"README.md and docs/ have tables for {marks}; give {wanted} once, each up to an <!-- end -->")

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}{makers[match[2]]()}\n{match[4]}"

    return {name: (text, BLOCK.sub(fill, text)) for name, text in texts.items()}


def _makers(folder: Path, runs: Runs) -> dict[str, Callable[[], str]]:
    """What makes each table, by its mark's name."""
    return {
        "recipes": lambda: recipe_table(runs, FIRST),
        "ladder": lambda: ladder_table(runs),
        "history": lambda: history_table(folder),
        "pace": lambda: pace.as_markdown(results.load(folder / "pace-speedruns-cpu.json")),
        "published logs": lambda: follows_table(folder),
        "learning curve": lambda: curve_table(runs),
        "bench": lambda: benchtables.rows_in_markdown(results.load(folder / "bench-cpu.json")),
        "bench speedrun": lambda: benchtables.rows_in_markdown(results.load(folder / "bench-speedrun-cpu.json")),
        "scaling": lambda: benchtables.scaling_in_markdown(results.load(folder / "scaling-cpu.json")),
        "tpu": lambda: tputables.table(results.load(folder / "tpu-compile.json")["programs"]),
        **{name: partial(_verdict, path) for name, path in of_posts(folder).items()},
    }


def of_posts(folder: Path) -> dict[str, Path]:
    """The records of the posts' experiments, by their marks: "post6 norms" for post6-norms-cpu.json."""
    paths = [path for path in sorted(folder.glob("post*.json")) if not record.is_result(path)]
    return {path.stem.removesuffix("-cpu").replace("-", " ", 1): path for path in paths}


def _verdict(path: Path) -> str:
    return str(load("lab.posts.frame").as_markdown(record.read_result(path)))


# ---- tables ------------------------------------------------------------------------------------------------


def recipe_table(runs: Runs, names: Iterable[str]) -> str:
    """A row for each of these recipes: what is published, and what the full runs on record measure."""
    rows = []
    for name in names:
        values, ours = recipes.values(name), groups.todays(list(filter(groups.is_measurement, runs.get(name, []))))
        measured = _measured(ours, values["tta"]) if ours else "not measured yet"
        rows.append((f"`{name}`", recipes.epochs_of(name), _claim(RECIPES[name]), measured))
    return Table(("recipe", "epochs", "published", "measured here"), rows).as_markdown()


def ladder_table(runs: Runs) -> str:
    """The other recipes of which there are full runs."""
    return recipe_table(
        runs, [name for name in runs if name not in FIRST and any(map(groups.is_measurement, runs[name]))]
    )


def history_table(folder: Path) -> str:
    """Our own records on a CPU, the latest first: accuracy, seconds of training, hardware, and what changed."""
    rows = []
    for held in reversed(HISTORY):
        paths = sorted(folder.glob(held.records))
        if runs := [results.read(path) for path in paths]:
            accuracy = summarise([run.accuracy for run in runs], TARGET)
            interval = f" ({_between(accuracy.interval)})" if accuracy.interval else ""
            seconds = sorted(run.train_seconds for run in runs)
            unlike = [f"unlike today's recipe: {text}" for text in dict.fromkeys(run.unlike for run in runs) if text]
            rows.append(
                (
                    held.date,
                    "; ".join(dict.fromkeys(f"`{run.recipe}`" for run in runs)),
                    f"{tables.percent(accuracy.mean, 3)} %{interval}; n = {len(runs)}, {_seeds(runs)}",
                    f"{statistics.median(seconds):,.0f} ({seconds[0]:,.0f}–{seconds[-1]:,.0f})",
                    "; ".join(dict.fromkeys(tables.machine(run) for run in runs)),
                    "; ".join([held.changed, *unlike]),
                    ", ".join(f"[{run.seed}](../{RECORDS}/{run.path.name})" for run in runs),
                )
            )
    heads = ("since", "recipe", "accuracy (95 % interval)", "training s, median", "made on", "what changed", "records")
    return Table(heads, rows).as_markdown()


def follows_table(folder: Path) -> str:
    """The recipes of which a log was published, and whether the runs on record follow it."""
    found = follows.of_records(folder)
    rows = [(f"`{name}`", follows.in_words(found, name)) for name in found]
    return Table(("recipe", "follows its published log"), rows).as_markdown()


def _claim(recipe: Recipe) -> str:
    claim, source = recipe.claim, recipe.source
    if not claim.accuracy:
        return "no figure"
    for name, address in SOURCES.items():
        source = source.replace(name, f"[{name}]({address})")
    count = {0: "", 1: "one run"}.get(claim.runs, f"{claim.of_runs} of {claim.runs} runs")
    how = ", ".join(part for part in (count, claim.hardware and f"one {claim.hardware}") if part)
    return f"{claim.accuracy:.2f} % ({'; '.join(part for part in (how, source) if part)})"


def _measured(runs: Sequence[Run], views: str) -> str:
    digits = 2 if len(runs) == 1 else 3
    shown = f"{_mean([100 * run.accuracy for run in runs], digits)} %"
    if views != "none":
        shown += f" with {VIEWS[views]} ({_mean([100 * run.test_accuracy for run in runs], digits)} % without)"
    machines = "; ".join(dict.fromkeys(tables.machine(run) for run in runs))
    unlike = [f"unlike today's recipe: {text}" for text in dict.fromkeys(run.unlike for run in runs) if text]
    accuracy = summarise([run.accuracy for run in runs], TARGET)
    interval = [f"95 % interval of the mean {_between(accuracy.interval)}"] if accuracy.interval else []
    return "; ".join([shown, f"n = {len(runs)}, {_seeds(runs)}", *interval, machines, *unlike])


def _between(interval: tuple[float, float]) -> str:
    return " to ".join(map(tables.percent, interval))


def _mean(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and with two values or more the standard deviation of one: 93.995 ± 0.035."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _seeds(runs: Sequence[Run]) -> str:
    seeds = sorted({run.seed for run in runs})
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    if len(seeds) > MANY_SEEDS:
        return f"{len(seeds)} distinct seeds"
    return f"seeds {', '.join(map(str, seeds[:-1]))} and {seeds[-1]}"


def curve_table(runs: Runs) -> str:
    """DavidNet's training beside the published one, epoch by epoch."""
    rows = []
    for index, (loss, deviation, accuracy) in enumerate(published.LEARNING_CURVE):
        ours = [run.epochs[index] for run in runs.get(recipes.ROOT, []) if len(run.epochs) > index]
        if ours:
            losses, shares = [epoch.train_loss for epoch in ours], [epoch.train_accuracy for epoch in ours]
            theirs = (f"{loss:.3f} ± {deviation:.3f}", f"{accuracy:.3f}")
            rows.append((str(index + 1), theirs[0], _mean(losses), theirs[1], _mean(shares), str(len(ours))))
    heads = ("epoch", "training loss, published (mean ± σ)", "ours", "training accuracy, published", "ours", "n")
    return Table(heads, rows).as_markdown()


# ---- figures -----------------------------------------------------------------------------------------------


def _drawn(root: Path, runs: Runs) -> list[tuple[str, str, Callable[[], Any]]]:
    """Each figure: its name, a digest of what it shows, which stands in it, and what draws it."""
    found: list[tuple[str, str, Callable[[], Any]]] = []
    for name in FIRST:
        if name in runs:
            members = groups.todays(runs[name])
            found.append((f"{FIGURES}/{name}.svg", _digest(members), partial(figures.curves, members)))
    for name, path in of_posts(root / RECORDS).items():
        digest = f"record sha256 {sum_of(path)}"
        found.append((f"{FIGURES}/{name.replace(' ', '-')}.svg", digest, partial(_picture, path)))
    return found


def _picture(path: Path) -> Any:
    return load("lab.posts.frame").draw(record.read_result(path))


def _digest(runs: Sequence[Run]) -> str:
    """Of the numbers that are drawn: a figure's bytes depend on matplotlib's version too, these do not."""
    numbers: list[Any] = [
        [
            run.recipe,
            run.seed,
            run.test_accuracy_tta,
            [[e.train_loss, e.train_accuracy, e.test_loss, e.test_accuracy] for e in run.epochs],
        ]
        for run in runs
    ]
    text = json.dumps([numbers, published.LEARNING_CURVE])
    return f"numbers sha256 {hashlib.sha256(text.encode()).hexdigest()}"


# ---- the command line --------------------------------------------------------------------------------------


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    parser = Parser(prog="python -m lab documents", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say what is not as the records have it")
    if parser.parse_args(arguments).check:
        names = stale(ROOT)
        if names:
            print(f"not what records/ say: {', '.join(names)}; run python -m lab documents", file=sys.stderr)
        return Exit.NO if names else Exit.DONE
    for name in write(ROOT):
        print(f"wrote {name}")
    return Exit.DONE
