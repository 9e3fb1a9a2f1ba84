"""The recipes as a table, how two of them differ, and a recipe's network layer by layer.

    python -m lab recipes
    python -m lab recipes --to-follow              # the names of those with a published log and no record beside it
    python -m lab recipes --diff davidnet bag-of-tricks
    python -m lab recipes --describe speedrun --svg network.svg

Only the last needs TensorFlow.
"""

from pathlib import Path
from typing import Any

from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.base.files import write_whole
from lab.ladder import recipes
from lab.ladder.recipes import RECIPES
from lab.options import flag
from lab.report import follows, groups
from lab.report.tables import Table
from lab.start import load

RECORDS = Path(__file__).resolve().parents[1] / "records"
CLASSES = 10  # of a network that is described


def listing(records: Path) -> str:
    """All recipes: what is claimed of them, and what the full runs in a folder of records measure."""
    measured, followed, rows = groups.measured(records), follows.of_records(records), []
    for name, recipe in RECIPES.items():
        claim = recipe.claim
        runs = f" (n={claim.runs})" if claim.runs else ""
        ours = [100 * run.accuracy for run in measured.get(name, [])]
        rows.append(
            (
                name,
                recipes.epochs_of(name),
                f"{claim.accuracy:g} %{runs}" if claim.accuracy else "no figure",
                f"{claim.seconds:g} s, {claim.hardware}" if claim.seconds else "",
                f"{sum(ours) / len(ours):.2f} % (n={len(ours)})" if ours else "not measured yet",
                follows.in_words(followed, name),
            )
        )
    table = Table(
        ("recipe", "epochs", "claimed", "time", "measured", "follows its published log"), rows, words=(0, 2, 3, 4, 5)
    )
    first, later = follows.LOSS_LIMITS
    return (
        f"{table.as_text()}\n\nmeasured: mean over the full runs under records/, with test-time augmentation where the "
        "recipe has it.\nfollows its published log: training loss and accuracy of the epoch that is farthest from the "
        f"published run's; yes: within {100 * first:g} % in the first epoch and {100 * later:g} % after it, and "
        f"{100 * follows.ACCURACY_LIMIT:g} points.\nParameters and multiply-adds: --describe RECIPE."
    )


def difference(first: str, second: str) -> str:
    """A line for each hyperparameter in which two recipes differ: its flag, and both values."""
    values = recipes.differences(recipes.values(first), recipes.values(second))
    lines = [f"{flag(name):<22} {one!r:>28}  {other!r}" for name, (one, other) in values.items()]
    return "\n".join(lines or [f"{first} and {second} train with the same hyperparameters"])


def describe(name: str, svg: Path | None) -> None:
    """Prints a recipe's text and its network's layers, and draws them into an SVG file if one is named."""
    recipe = recipes.known(name)
    differs = f"Otherwise than there: {recipe.differs}\n" if recipe.differs else ""
    print(f"{name}: {recipe.about}\nSource: {recipe.source}.\n{differs}")
    layers = load("lab.ladder.describe")
    rows = layers.trace(network(name))
    print(layers.table(rows))
    if svg is not None:
        write_whole(svg, layers.svg(rows, name))
        print(f"wrote {svg}")


def network(name: str) -> Any:
    """A recipe's network, as a Keras model with its variables made."""
    options = load("lab.assemble").configure({"recipe": name})
    return load("lab.ladder.networks").make(options, CLASSES, fast=False)


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--diff", nargs=2, metavar="RECIPE", help="how two recipes differ")
    parser.add_argument("--describe", metavar="RECIPE", help="its text and network, layer by layer")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="with --describe: a diagram of the network")
    parser.add_argument("--to-follow", action="store_true", help="names with a published log and no record beside it")
    options = parser.parse_args(arguments)
    if options.svg and not options.describe:
        raise UserError("--svg needs to know of which network; add --describe davidnet")
    if options.to_follow:
        print("\n".join(follows.still_to_train(RECORDS)))
    elif options.diff:
        print(difference(*options.diff))
    elif options.describe:
        describe(options.describe, options.svg)
    else:
        print(listing(RECORDS))
    return 0
