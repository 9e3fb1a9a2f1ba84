"""A run's pictures: its learning rate and curves, its filters, its confusion matrix, its worst mistakes.

    python -m lab pictures runs/NAME                              # all that its files allow, into its pictures/
    python -m lab pictures runs/NAME --beside records/OTHER.json  # another result in the same curves

Needs matplotlib, not TensorFlow. The confusion matrix and the mistakes are read from the predictions.json that
`python -m lab predict runs/NAME --evaluate` writes.
"""

import argparse
import io
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.base.files import write_whole
from lab.images import formats
from lab.ladder import published, recipes, schedules
from lab.ladder.recipes import RECIPES
from lab.ladder.schedules import Knots
from lab.report import groups, predictions
from lab.report.predictions import Predictions
from lab.runs import results
from lab.runs.results import Run

# M. Okabe and K. Ito's, "Color Universal Design", 2008: told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8a8a8a"
PUBLISHED = "published DavidNet: training, mean of 4 or 5 runs (bars: one deviation)"
SMALL = 8  # points
DPI = 150  # pixels an inch
MARKED = 10  # epochs, beyond which they are not marked
NARROWEST, WIDEST = 5.5, 13.0  # inches of a confusion matrix: its title fits, 2,000 pixels hold it
COUNTED, LABELS = 30, 40  # classes up to which its cells hold numbers, and each class is named at its axes
LONGEST = 24  # letters of a class there


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure, in inches, that needs no display. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib; try: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def check(path: Path) -> None:
    """Raises UserError, before any work is done, without matplotlib or if it cannot write that format."""
    if path.suffix[1:].lower() not in new_figure(1, 1).canvas.get_supported_filetypes():
        raise UserError(f"cannot draw {path}: its name has no picture's suffix; name it {path.stem}.png")


def write(figure: Any, path: Path) -> None:
    """Writes a figure in the format of the path's suffix. Raises UserError if it cannot be written."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=DPI)
    write_whole(path, buffer.getvalue())


def as_svg(figure: Any, description: str) -> str:
    """A figure as small SVG, the same for the same figure and version of matplotlib; `description` stands in it."""
    from matplotlib import rc_context

    metadata = {"Date": None, "Creator": None, "Description": description}
    fixed = {"svg.hashsalt": "davidnet", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}
    with rc_context(fixed):
        figure.savefig(file := io.StringIO(), format="svg", metadata=metadata)
    # Matplotlib writes six decimals, a name for each group, and the style of each element beside it.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"\d+\.\d{3,}", _four_digits, tag[0]), file.getvalue())
    for needless, kept in ((r" *\n\s*", "\n"), (r'<g id="[^"]*">', "<g>"), (r' transform="rotate\(-0 [^"]*"', "")):
        text = re.sub(needless, kept, text)
    styles: dict[str, str] = {}
    text = re.sub(r'style="([^"]*)"', lambda style: f'class="{styles.setdefault(style[1], f"s{len(styles)}")}"', text)
    rules = "".join(f"\n.{name}{{{style}}}" for style, name in styles.items())
    return text.replace("</style>", f"{rules}</style>", 1)


def _four_digits(number: re.Match[str]) -> str:
    return f"{float(number[0]):.4g}"


# ---- training ----------------------------------------------------------------------------------------------


def learning_rate(run: Run) -> Knots:
    """The schedule of a run. What an older result does not have is taken to be as published."""
    values = recipes.values(run.recipe if run.recipe in RECIPES else recipes.ROOT)
    return schedules.of(values | dict(run.hyperparameters))


def title(run: Run) -> str:
    """A run in a few words; of made-up images it says so."""
    synthetic = ", synthetic images" if run.synthetic else ""
    return f"{run.recipe}, seed {run.seed}{synthetic}"


def names(runs: Sequence[Run]) -> list[str]:
    """A name for each run, of its own: where titles are the same, with what it changes, or else where it lies."""
    titles = [title(run) for run in runs]
    for tell_apart in (_changes, _place, lambda run: str(run.path)):
        counts = Counter(titles)
        titles = [
            f"{name}, {more}" if counts[name] > 1 and (more := tell_apart(run)) else name
            for name, run in zip(titles, runs, strict=True)
        ]
    return [results.clean(name) for name in titles]


def _changes(run: Run) -> str:
    changed = groups.changed(run, recipes.values(run.recipe)) if run.recipe in RECIPES else {}
    return ", ".join(f"{name} {value}" for name, value in changed.items())


def _place(run: Run) -> str:
    return run.folder.name if run.folder else run.path.stem


def curves(*rows: Sequence[Run]) -> Any:
    """Loss and accuracy by epoch: two plots for each set of runs, one set under the other.

    A colour is a run, a solid line its test set, a dashed one its training. Behind a run of davidnet with nothing
    changed stands the published curve.
    """
    figure = new_figure(10, 4.6 if len(rows) == 1 else 3.7 * len(rows))
    for part, runs in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        panels = part.subplots(1, 2)
        coloured, keys = _draw_runs(panels, runs)
        for panel, name in zip(panels, ("loss", "accuracy"), strict=True):
            panel.set(xlabel="epoch", ylabel=name)
            panel.grid(alpha=0.25)
            panel.tick_params(bottom=False, left=False)  # the grid shows where
            panel.xaxis.get_major_locator().set_params(integer=True)
        if any(run.recipe == recipes.ROOT and groups.is_unchanged(run) for run in runs):
            keys.append(_published(*panels))
        blank = [_key("", linestyle="none")] * abs(len(coloured) - len(keys))  # so that each has its column
        handles = coloured + blank + keys if len(coloured) < len(keys) else coloured + keys + blank
        legend = part.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a recipe's name may hold a dollar
    return figure


def _draw_runs(panels: Sequence[Any], runs: Sequence[Run]) -> tuple[list[Any], list[Any]]:
    """Draws the curves of runs into the panels of loss and accuracy.

    Returns the legend's entries: one for each run, and what the lines mean.
    """
    called, coloured, few = names(runs), [], len(runs) <= len(COLOURS)
    held_out = any(run.hyperparameters.get("holdout") for run in runs)
    for index, (run, name) in enumerate(zip(runs, called, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        test = "validation" if run.hyperparameters.get("holdout") else "test"
        marker = "o" if len(run.epochs) <= MARKED else ""
        style = {"color": colour, "marker": marker, "ms": 4, "alpha": 1 if few else 0.5}
        epochs = range(1, len(run.epochs) + 1)
        for panel, measure in zip(panels, ("loss", "accuracy"), strict=True):
            for part, line, fill, kind in (("train", "--", "white", "training"), ("test", "-", colour, test)):
                values = [getattr(epoch, f"{part}_{measure}") for epoch in run.epochs]
                panel.plot(epochs, values, line, mfc=fill, label=f"{name}: {kind}", **style)
        if run.test_accuracy_tta is not None:
            label = f"{name}: {test}, averaged over views"
            panels[1].plot(epochs[-1], run.test_accuracy_tta, "D", color=colour, mfc="none", label=label)
        if few:
            coloured.append(_key(f"{name}{_caution(run)}", color=colour, marker="s", linestyle="none"))
    if not few:
        coloured.append(_key(f"{len(runs)} runs", color=GREY, marker="s", linestyle="none"))
    solid = "solid: test set" + (", or the images held out" if held_out else "")
    keys = [_key(solid, marker="o"), _key("dashed: training", linestyle="--", marker="o", mfc="white")]
    if any(run.test_accuracy_tta is not None for run in runs):
        keys.append(_key("averaged over views", linestyle="none", marker="D", mfc="none"))
    return coloured, keys


def _caution(run: Run) -> str:
    """What a reader of a run's losses must know."""
    smoothing = run.hyperparameters.get("label_smoothing")
    return f" (training loss with labels smoothed by {smoothing:g})" if smoothing else ""


def _key(label: str, **style: Any) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **{"color": "black", "markersize": 4, "linewidth": 1.2, **style})


def _published(loss: Any, accuracy: Any) -> Any:
    """Draws the published curve in grey, behind the rest. Returns the legend's entry."""
    epochs = range(1, len(published.LEARNING_CURVE) + 1)
    means, deviations, accuracies = zip(*published.LEARNING_CURVE, strict=True)
    style = {"color": GREY, "linewidth": 5, "alpha": 0.55, "zorder": 0, "solid_capstyle": "round"}
    loss.plot(epochs, means, **style)
    loss.errorbar(epochs, means, deviations, color=GREY, fmt="none", capsize=5, zorder=0)
    return accuracy.plot(epochs, accuracies, label=PUBLISHED, **style)[0]


# ---- the network -------------------------------------------------------------------------------------------


def filters(kernel: NDArray[np.float32]) -> Any:
    """Whitening filters (size, size, 3, N) as images in red, green and blue, in their order."""
    size, count = kernel.shape[0], kernel.shape[-1]
    columns = 12 if count % 12 == 0 else 9
    rows = -(-count // columns)
    figure = new_figure(0.75 * columns, 0.9 * rows + 0.7)
    for index, panel in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_color("#cccccc")
        if index >= count:
            panel.set_axis_off()
            continue
        filter_ = kernel[..., index]
        panel.imshow(0.5 + 0.5 * filter_ / max(np.abs(filter_).max(), 1e-30))
        panel.set_title(str(index + 1), fontsize=SMALL)
    half = count // 2
    signs = np.array_equal(kernel[..., :half], -kernel[..., half:])
    figure.suptitle(
        f"Whitening filters, {size}x{size} pixels, by falling variance of what they pick out"
        + (f"; from {half + 1} on the same negated" if signs else "")
        + ".\nEach over its own largest weight; grey is 0.",
        fontsize=10,
    )
    return figure


# ---- the test set ------------------------------------------------------------------------------------------


def confusion_matrix(of_run: Predictions, about: str) -> Any:
    """The confusion matrix of a predictions.json, `about` above it; the colour is of the mistakes alone.

    Of many classes some are named, and no numbers stand in the cells.
    """
    counts = np.array(of_run.confusion)
    count, mistakes = len(counts), counts * (1 - np.eye(len(counts), dtype=int))
    width = min(max(0.62 * count + 2.2, NARROWEST), WIDEST)
    figure = new_figure(width, min(0.52 * count + 1.6, 0.84 * WIDEST))
    axes = figure.add_subplot()
    top = max(int(mistakes.max()), 1)
    picture = axes.imshow(mistakes, cmap="Blues", vmin=0, vmax=top)
    for row in range(count):
        axes.add_patch(_grey_square(row))
    if count <= COUNTED:
        _write_counts(axes, counts, top)
    step = -(-count // LABELS)
    classes = [name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..." for name in of_run.classes]
    named = range(0, count, step)
    axes.set_xticks(named, classes[::step], rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(named, classes[::step], parse_math=False)
    axes.set(xlabel="taken for", ylabel="class")
    right = int(np.trace(counts))
    share = right / max(int(counts.sum()), 1)
    text = f"{about}: {right:,} of {counts.sum():,} right ({share:.2%})"
    figure.suptitle(textwrap.fill(text, int(11 * width)), fontsize=10, parse_math=False)
    figure.colorbar(picture, label="mistakes (images)", shrink=0.8)
    return figure


def _write_counts(axes: Any, counts: NDArray[np.int64], top: int) -> None:
    """Writes each cell's count into it; `top` mistakes have the darkest colour."""
    for (row, column), number in np.ndenumerate(counts):
        axes.text(
            column,
            row,
            number or "",
            ha="center",
            va="center",
            fontsize=SMALL,
            color="white" if row != column and number > 0.6 * top else "black",
            weight="bold" if row == column else "normal",
        )


def _grey_square(index: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((index - 0.5, index - 0.5), 1, 1, color="#dddddd")


def mistakes(of_run: Predictions, about: str) -> Any:
    """The mistakes of a predictions.json that the network was most confident about, `about` above them."""
    from matplotlib.image import imread

    classes, worst = of_run.classes, of_run.mistakes
    columns = 6
    rows = -(-len(worst) // columns)
    figure = new_figure(1.5 * columns, 1.85 * rows + 0.5)
    for index, panel in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        panel.set_axis_off()
        if index < len(worst):
            mistake = worst[index]
            panel.imshow(imread(io.BytesIO(mistake.png), format="png"))
            label, taken = classes[mistake.label], classes[mistake.predicted]
            text = f"{label}, taken for\n{taken}, {mistake.probability:.3f}"
            panel.set_title(text, fontsize=SMALL, parse_math=False)
    text = f"{about}: its most confident mistakes, with the probability it gives them"
    figure.suptitle(text, fontsize=10, parse_math=False)
    return figure


# ---- all of a run's ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """What became of one picture: its file's name, and why it is not there, or ""."""

    name: str
    missing: str = ""


def draw(path: Path, out: Path, beside: Sequence[Path] = ()) -> list[Drawn]:
    """Writes the pictures of a run.

    Args:
        path: its folder, or a result.json alone.
        out: folder for the pictures, made if it is not there.
        beside: other results for the curves.

    Raises:
        UserError: without matplotlib, or if a file is damaged or cannot be written.
    """
    run = _read(path)
    runs = {other.path.resolve(): other for other in (run, *map(_read, beside))}  # the same file once
    check(out / "curves.png")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; try another --out") from None
    try:
        schedules.plot(learning_rate(run), str(out / "learning-rate.png"))
        write(curves(list(runs.values())), out / "curves.png")
        drawn = [Drawn("learning-rate.png"), Drawn("curves.png"), _draw_filters(run, out)]
        return drawn + _draw_predictions(run, out)
    except (*formats.BROKEN_NPZ, OSError) as error:  # OSError: PIL's, for an image that is none
        raise UserError(f"a file of {path} is damaged ({error!r}); copy the run's folder again") from None


def _read(path: Path) -> Run:
    return results.read(results.of_one_run(path))


def _draw_filters(run: Run, out: Path) -> Drawn:
    name, path = "filters.png", run.path.with_name("weights.npz")
    if run.folder is None or not path.is_file():
        return Drawn(name, "there is no weights.npz")
    results.check_weights(path, run.weights_sha256)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as weights:
        if "whiten/kernel" not in weights:
            return Drawn(name, "the network does not whiten")
        write(filters(weights["whiten/kernel"]), out / name)
    return Drawn(name)


def _draw_predictions(run: Run, out: Path) -> list[Drawn]:
    of_run = predictions.read(run.folder) if run.folder else None
    if of_run is None:
        why = predictions.missing(run.folder) if run.folder else "a record has no predictions.json; give a run's folder"
        return [Drawn("confusion.png", why), Drawn("mistakes.png", why)]
    about = f"{title(run)}, {predictions.VIEWS[str(run.hyperparameters.get('tta', 'none'))]}"
    write(confusion_matrix(of_run, about), out / "confusion.png")
    if not of_run.mistakes:
        return [Drawn("confusion.png"), Drawn("mistakes.png", "there are no mistakes")]
    write(mistakes(of_run, about), out / "mistakes.png")
    return [Drawn("confusion.png"), Drawn("mistakes.png")]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, or a result.json")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where they go (default: RUN/pictures)")
    parser.add_argument(
        "--beside", metavar="RUN", type=Path, nargs="+", default=[], help="other results for the curves"
    )
    return parser.parse_args(arguments)


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = parse(arguments)
    out = options.out or (options.run if options.run.is_dir() else options.run.parent) / "pictures"
    for picture in draw(options.run, out, options.beside):
        print(f"no {picture.name}: {picture.missing}" if picture.missing else f"wrote {out / picture.name}")
    return 0
