"""The README's tables and plot that come from records/: `python -m lab.report.report --records` writes them.

A table stands in README.md between `<!-- records: NAME -->` and `<!-- end -->`; what is between is made here.
"""

import hashlib
import io
import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.base.errors import UserError
from lab.bench import tables as benchtables
from lab.ladder import recipes
from lab.ladder.recipes import RECIPES, Recipe
from lab.options import Settings
from lab.report import tables
from lab.runs import record, results
from lab.runs.results import Run
from lab.tpu import table as tputables

README, PLOT, RECORDS = "README.md", "figures/learning-curves.svg", "records"
MADE = (README, PLOT)
FIRST = (recipes.ROOT, "speedrun")  # the recipes at the README's top, measured or not
SOURCES = {  # what a recipe's source mentions, and where it is
    "cifar10-fast": "https://github.com/davidcpage/cifar10-fast",
    "cifar10-airbench": "https://github.com/KellerJordan/cifar10-airbench",
}
BLOCK = re.compile(r"(<!-- records: ([a-z -]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
MANY_SEEDS = 10  # beyond which they are not listed
COLOURS = 10  # of Matplotlib's cycle


def stale(root: Path) -> list[str]:
    """Which of `MADE` are not what records/ say. The plot is if other numbers were drawn.

    Raises UserError if a record or the README cannot be read, or a table's marks are missing.
    """
    text, runs = _read(root / README), _of_recipes(root / RECORDS)
    found = [] if _filled(text, root, runs) == text else [README]
    plot = root / PLOT
    if not plot.exists() or _digest(runs) not in _read(plot):
        found.append(PLOT)
    return found


def write(root: Path) -> None:
    """Writes all of `MADE`. Raises UserError as `stale` does, or if Matplotlib is missing."""
    text, runs = _read(root / README), _of_recipes(root / RECORDS)
    (root / PLOT).parent.mkdir(exist_ok=True)
    record.write_whole(root / PLOT, _plot(runs))
    record.write_whole(root / README, _filled(text, root, runs))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; restore it") from None


def _of_recipes(folder: Path) -> dict[str, list[Run]]:
    """The records of unchanged recipes on real images, perhaps stopped early: FIRST, then in the order of RECIPES."""
    constants, found = recipes.written_constants(), {}
    runs = [run for run in results.search(folder) if run.finished and not run.synthetic]
    for name in dict.fromkeys([*FIRST, *RECIPES]):
        values = recipes.resolve(name, constants)
        ours = [run for run in runs if run.recipe == name and not recipes.changed(run, values)]
        if ours:
            found[name] = ours
    return found


def _filled(text: str, root: Path, runs: dict[str, list[Run]]) -> str:
    """The README with its tables made anew."""

    def of(name: str, maker: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
        return lambda: maker(results.load(root / RECORDS / name))

    makers: dict[str, Callable[[], str]] = {
        "recipes": lambda: recipe_table(runs, FIRST),
        "ladder": lambda: ladder_table(runs),
        "learning curve": lambda: curve_table(runs),
        "bench": of("bench-cpu.json", benchtables.rows_in_markdown),
        "bench input": of("bench-input-cpu.json", benchtables.rows_in_markdown),
        "scaling": of("scaling-cpu.json", benchtables.scaling_in_markdown),
        "tpu": of("tpu-compile.json", davidnet_on_tpus),
        "tpu recipes": of("tpu-compile.json", lambda report: tputables.epochs(report["programs"])),
    }
    names = [match[2] for match in BLOCK.finditer(text)]
    if sorted(names) != sorted(makers):
        wanted = " and ".join(f"<!-- records: {name} -->" for name in makers)
        raise UserError(
            f"{README} has tables for {names}; it takes {wanted} once, each up to an <!-- end -->"
        )
    return BLOCK.sub(lambda match: f"{match[1]}{makers[match[2]]()}\n{match[4]}", text)


# ---- tables ------------------------------------------------------------------------------------------------


def recipe_table(runs: dict[str, list[Run]], names: Iterable[str]) -> str:
    """A row for each of these recipes: what is published, and what the full runs on record measure."""
    constants = recipes.written_constants()
    lines = ["| recipe | epochs | published | measured here |", "|---|---|---|---|"]
    for name in names:
        recipe, values = RECIPES[name], recipes.resolve(name, constants)
        ours = [run for run in runs.get(name, []) if recipes.is_measurement(run, values)]
        lines.append(f"| `{name}` | {values.epochs} | {_published(recipe)} | {_measured(ours, values)} |")
    return "\n".join(lines)


def ladder_table(runs: dict[str, list[Run]]) -> str:
    """The other recipes of which there are full runs."""
    constants = recipes.written_constants()
    measured = [
        name
        for name, members in runs.items()
        if any(recipes.is_measurement(run, recipes.resolve(name, constants)) for run in members)
    ]
    return recipe_table(runs, [name for name in measured if name not in FIRST])


def davidnet_on_tpus(report: dict[str, Any]) -> str:
    """The programs of the default recipe in a report of lab/tpu/lower.py."""
    return tputables.table([row for row in report["programs"] if row["recipe"] == "davidnet"])


def _published(recipe: Recipe) -> str:
    claim, source = recipe.claim, recipe.source
    if not claim.accuracy:
        return "no figure"
    for name, address in SOURCES.items():
        source = source.replace(name, f"[{name}]({address})")
    count = {0: "", 1: "one run, "}.get(claim.runs, f"{claim.of_runs} of {claim.runs} runs, ")
    return f"{claim.accuracy:.2f} % ({count}one {claim.hardware}; {source})"


def _measured(runs: Sequence[Run], values: Settings) -> str:
    if not runs:
        return "not measured yet"
    digits = 2 if len(runs) == 1 else 3
    shown = f"{_mean([100 * run.accuracy for run in runs], digits)} %"
    if values.tta != "none":
        shown += (
            f" with {values.tta} views ({_mean([100 * run.test_accuracy for run in runs], digits)} % without)"
        )
    machines = "; ".join(dict.fromkeys(tables.machine(run) for run in runs))
    return f"{shown}; n = {len(runs)}, {_seeds(runs)}; {machines}"


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


def curve_table(runs: dict[str, list[Run]]) -> str:
    """DavidNet's training beside the published one, for the epochs of which both are known."""
    lines = [
        "| epoch | training loss, published (mean ± σ of 5) | ours | training accuracy, published | ours | n |",
        "|---|---|---|---|---|---|",
    ]
    for index, (loss, deviation, accuracy) in enumerate(recipes.LEARNING_CURVE):
        rows = [run.epochs[index] for run in runs.get(recipes.ROOT, []) if len(run.epochs) > index]
        if rows:
            losses, shares = [row.train_loss for row in rows], [row.train_accuracy for row in rows]
            lines.append(
                f"| {index + 1} | {loss:.3f} ± {deviation:.3f} | {_mean(losses)} | {accuracy:.3f} "
                f"| {_mean(shares)} | {len(rows)} |"
            )
    return "\n".join(lines)


# ---- the plot ----------------------------------------------------------------------------------------------


def _digest(runs: dict[str, list[Run]]) -> str:
    """Of the numbers that are drawn: the plot's bytes depend on Matplotlib's version too, these do not."""
    drawn = {
        name: [
            [run.seed, [[row.train_loss, row.train_accuracy, row.test_accuracy] for row in run.epochs]]
            for run in members
        ]
        for name, members in runs.items()
    }
    text = json.dumps([drawn, recipes.LEARNING_CURVE])
    return f"numbers sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def _plot(runs: dict[str, list[Run]]) -> str:
    """An SVG: a row of two plots a recipe, training loss and accuracies; DavidNet's published curve behind."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--records draws with Matplotlib; try: pip install matplotlib") from None
    figure = Figure(figsize=(9, 3.1 * max(1, len(runs))), layout="constrained")
    grid = figure.subplots(max(1, len(runs)), 2, squeeze=False)
    for (losses, shares), (name, members) in zip(grid, runs.items(), strict=False):
        if name == recipes.ROOT:
            _draw_published(losses, shares)
        _draw_runs(losses, shares, members)
        losses.set(title=name, xlabel="epoch", ylabel="training loss")
        shares.set(title=name, xlabel="epoch", ylabel="accuracy")
        for axes in (losses, shares):
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
    metadata = {"Date": None, "Creator": None, "Description": _digest(runs)}
    with matplotlib.rc_context({"svg.hashsalt": "davidnet", "svg.fonttype": "none"}):
        figure.savefig(file := io.StringIO(), format="svg", metadata=metadata)
    return file.getvalue()


def _draw_published(losses: Any, shares: Any) -> None:
    """The published curve as a broad line on the axes of the losses and of the accuracies."""
    epochs = range(1, len(recipes.LEARNING_CURVE) + 1)
    loss, deviation, share = zip(*recipes.LEARNING_CURVE, strict=True)
    style = {"color": "0.75", "linewidth": 5, "solid_capstyle": "round"}
    losses.plot(epochs, loss, label="published, mean of 5", **style)
    losses.errorbar(epochs, loss, deviation, color="0.5", linestyle="none", capsize=3)
    shares.plot(epochs, share, label="training, published", **style)


def _draw_runs(losses: Any, shares: Any, runs: Sequence[Run]) -> None:
    """A colour a run; the legend names a few seeds, or counts many."""
    few = len(runs) <= COLOURS
    for index, run in enumerate(runs):
        epochs, style = range(1, len(run.epochs) + 1), {"color": f"C{index % COLOURS}", "markersize": 3}
        name = f"seed {run.seed}" if few else f"{len(runs)} runs"
        losses.plot(
            epochs,
            [row.train_loss for row in run.epochs],
            "o-",
            label=name if few or not index else "",
            **style,
        )
        training, test = ("", "") if index else ("training", "test")
        shares.plot(epochs, [row.train_accuracy for row in run.epochs], "--", label=training, **style)
        shares.plot(epochs, [row.test_accuracy for row in run.epochs], "o-", label=test, **style)
