"""The posts' experiments: lists them, runs one, and writes its record, verdict and picture.

    python -m lab posts                    # all: what each is to show, and what its small form takes
    python -m lab post6                    # those of a post
    python -m lab post6 norms --seed 1     # runs one; --original: in the post's own sizes

An experiment is a file postN_NAME.py beside this one. It has
    a docstring: the claim in its first paragraph, then what is done, the source, what would refute it, and in the last
        paragraph `Small form: ...`, what that takes;
    SMALL, ORIGINAL: its sizes by name; a name that is a hyperparameter's (width, limit_train, holdout) goes to every
        training, see lab/posts/training.py;
    measure(sizes, images, seed) -> dict: all that is measured, as finite numbers, texts, None, lists and dicts;
    judge(record) -> list[Finding]: what the claim predicts beside what was measured;
    draw(record, figure): the picture, into an empty matplotlib Figure.
A record is what `measure` returned and, beside it, ABOUT's keys; `seconds` may be of `measure`, if it went on with what
an earlier call has left. No TensorFlow here: an experiment brings it.
"""

import ast
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lab.base import paths
from lab.base.console import say
from lab.base.errors import Exit, Parser, UserError, exits_with_one_line, nearest
from lab.base.files import encode, write_whole
from lab.machine import memory
from lab.report import figures
from lab.report.tables import Table, tensorflow
from lab.runs import record as records
from lab.start import load

FOLDER = Path(__file__).parent
ABOUT = ("experiment", "original", "seed", "sizes", "seconds", "data", "precision", "code", "versions", "hardware")
SIZE = (8.0, 4.5)  # inches of a picture; `draw` may choose another
Record = Mapping[str, Any]


class Finding(NamedTuple):
    """One thing that the claim predicts: what it is, what is expected and what was measured, in words and numbers.

    `holds`: whether they agree; None if the measurement cannot tell.
    """

    what: str
    expected: str
    measured: str
    holds: bool | None


class Experiment(NamedTuple):
    """The name of its module, what it is to show, and what its small form takes."""

    module: str
    claim: str
    small: str


def experiments() -> dict[str, Experiment]:
    """All experiments by name, "post6 norms", in the posts' order; from their docstrings, without importing them."""
    found = {}
    for path in sorted(FOLDER.glob("post?_*.py")):
        post, _, name = path.stem.partition("_")
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        claim, *_, last = (" ".join(part.split()) for part in text.split("\n\n"))
        small = last.removeprefix("Small form: ")
        found[f"{post} {name.replace('_', '-')}"] = Experiment(f"lab.posts.{path.stem}", claim, small)
    return found


def known(name: str) -> Experiment:
    """The experiment of that name. Raises UserError if there is none."""
    found = experiments()
    if name not in found:
        raise UserError(f"no experiment {name}; {nearest(name, found) or 'python -m lab posts lists them'}")
    return found[name]


def listing(post: str) -> str:
    """The experiments of a post, or of all with "posts". Raises UserError if it has none."""
    found = experiments()
    shown = {name: about for name, about in found.items() if post in (name[:5], "posts")}
    rows = [f"{name}\n    {about.claim}\n    {about.small}" for name, about in shown.items()]
    if not rows:
        posts = ", ".join(dict.fromkeys(name[:5] for name in found))
        raise UserError(f"{post} has no experiments; {posts} have")
    return "\n".join([*rows, "", f"Run one: python -m lab {next(iter(shown))}"])


# ---- running -----------------------------------------------------------------------------------------------


def run(name: str, *, original: bool = False, seed: int = 0, data: str = "") -> dict[str, Any]:
    """Runs an experiment and returns its record.

    Args:
        name: "post6 norms".
        original: in the post's own sizes and not the small ones.
        seed: of the weights, the images chosen, their order and augmentation; 0 or more.
        data: see lab/images/load.py; "": CIFAR-10, downloaded if need be.

    Raises:
        UserError: for an unknown name, bad data, or a loss that is not finite where the experiment does not expect it.
    """
    experiment, tools = load(known(name).module), load("lab.posts.training")
    sizes = experiment.ORIGINAL if original else experiment.SMALL
    images = tools.read_images(sizes, data, seed)
    start = time.perf_counter()
    try:
        measured = experiment.measure(sizes, images, seed)
    except FloatingPointError as error:
        raise UserError(str(error), exit_code=Exit.NOT_FINITE) from None
    about = {
        "experiment": name,
        "original": original,
        "seed": seed,
        "sizes": dict(sizes),
        "seconds": measured.pop("seconds", time.perf_counter() - start),
        "data": {"source": images.source, "sha256": images.sha256, "synthetic": images.synthetic},
        "precision": tools.OF_ALL["precision"],
        "code": records.code(),
        "versions": records.versions(),
        "hardware": records.hardware(load("lab.machine.devices").accelerators()),
    }
    assert not measured.keys() & about.keys(), "a name of ABOUT is taken"
    return about | measured


def judge(record: Record) -> list[Finding]:
    """The verdict on a record, by its experiment. Raises UserError if there is no such experiment."""
    found: list[Finding] = load(known(record["experiment"]).module).judge(record)
    return found


def draw(record: Record) -> Any:
    """The picture of a record, a matplotlib Figure. Raises UserError without matplotlib."""
    figure = figures.new_figure(*SIZE)
    load(known(record["experiment"]).module).draw(record, figure)
    return figure


# ---- what it says ------------------------------------------------------------------------------------------


def table(findings: Sequence[Finding]) -> Table:
    """The verdict, a row for each finding."""
    words = {True: "yes", False: "no", None: "cannot tell"}
    rows = [(found.what, found.expected, found.measured, words[found.holds]) for found in findings]
    return Table(("", "expected", "measured", "holds"), rows, words=(0, 1, 2, 3))


def conditions(record: Record) -> str:
    """In which form, with which seed and sizes, and on what it was measured."""
    sizes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["sizes"].items())
    hardware, data = record["hardware"], record["data"]
    chips = ", ".join(hardware["accelerators"]) or f"{hardware['processor']}, {hardware['cores']} cores"
    where = f"{chips}, {record['precision']}, {tensorflow(record['versions'])}"
    originals = record["original"] or record["sizes"] == load(known(record["experiment"]).module).ORIGINAL
    form = "The original's sizes" if originals else "Small form"
    made_up = "; synthetic images, not CIFAR-10" if data["synthetic"] else ""
    runs = record["sizes"].get("seeds", record["sizes"].get("runs", 1))  # of each training
    return f"{form}, seed {record['seed']}, n = {runs}: {sizes}. {where}{made_up}; {record['seconds']:.0f} s."


def as_markdown(record: Record) -> str:
    """Verdict and conditions, for a document."""
    return f"{table(judge(record)).as_markdown()}\n\n{conditions(record)}"


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are those after `python -m lab`, or after `posts`. Returns the exit code."""
    parser = Parser(prog="python -m lab", description="The posts' experiments.")
    add = parser.add_argument
    add("post", nargs="?", default="posts", help="post1 to post8; without a name: lists its experiments")
    add("name", nargs="?", help="which experiment to run")
    add(
        "--original",
        action="store_true",
        help="in the post's sizes, not the small ones: hours; post 6 on a CPU, the rest on an accelerator",
    )
    add("--seed", type=int, default=0, help="for weights, images, order and augmentation (default: %(default)s)")
    add("--data", default="", help="as of train_eager.py; empty: ./data, downloaded if missing")
    add(
        "--out",
        default="",
        help="folder for record.json and picture.png; empty: runs/<post>-<name>[-original]-seed<seed>",
    )
    options = parser.parse_args(arguments)
    if options.name is None:
        print(listing(options.post))
        return Exit.DONE
    name = f"{options.post} {options.name}"
    known(name)
    memory.restart_with_huge_pages()  # before the slow imports
    form = "-original" if options.original else ""
    out = options.out or f"runs/{name.replace(' ', '-')}{form}-seed{options.seed}"
    folder = Path(paths.check("--out", out, schemes=(), folder=True))
    paths.check_writable("--out", str(folder))  # now, and not when all is measured
    if (folder / "record.json").exists():
        raise UserError(f"{folder} holds an experiment's record; give another --out, or delete it")
    figures.check(folder / "picture.png")
    record = run(name, original=options.original, seed=options.seed, data=options.data)
    write_whole(folder / "record.json", encode(record))
    say(f"{table(judge(record)).as_text()}\n\n{conditions(record)}")
    figures.write(draw(record), folder / "picture.png")
    say(f"wrote {folder}/record.json and picture.png")
    return Exit.DONE
