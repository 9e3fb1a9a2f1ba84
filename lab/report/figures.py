"""A run's pictures: its learning rate and curves, its filters, its confusion matrix, its worst mistakes.

    python -m lab.report.figures runs/NAME                              # all that its files allow, into its pictures/
    python -m lab.report.figures runs/NAME --beside records/OTHER.json  # another result in the same curves
    python -m lab.report.figures runs/NAME --data PATH                  # with a sheet of images as the network saw them

Needs matplotlib. The confusion matrix and the mistakes are read from the predictions.json that
`python -m lab.predict runs/NAME --evaluate` writes.
"""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab import options as settings
from lab import schedules as schedule
from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.images import formats
from lab.ladder import recipes
from lab.report.confusion import VIEWS, load_data
from lab.report.predictions import Predictions
from lab.report.predictions import read as read_predictions
from lab.runs import record

# M. Okabe and K. Ito's, "Color Universal Design", 2008: told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8a8a8a"
PUBLISHED = "published DavidNet: training, mean of 5 runs (bars: one deviation)"
SMALL = 8  # points


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure, in inches, that needs no display. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib; try: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def check(path: Path) -> None:
    """Raises UserError if there is no matplotlib, or it draws no files of that name; before the work is done."""
    if path.suffix[1:].lower() not in new_figure(1, 1).canvas.get_supported_filetypes():
        raise UserError(f"cannot draw {path}: its name has no picture's suffix; name it {path.stem}.png")


def write(figure: Any, path: Path) -> None:
    """Writes a figure in the format of the path's suffix. Raises UserError if it cannot be written."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=150)
    record.write_whole(path, buffer.getvalue())


# ---- training ----------------------------------------------------------------------------------------------


def learning_rate(hyperparameters: Mapping[str, Any]) -> schedule.PiecewiseLinear:
    """The schedule of a run."""
    if hyperparameters.get("knots"):  # results of the first version have none
        return schedule.parse(hyperparameters["knots"])
    return schedule.triangle(
        *(hyperparameters[name] for name in ("epochs", "warmup_epochs", "learning_rate"))
    )


def title(result: Mapping[str, Any]) -> str:
    """A run in a few words; of made-up images it says so."""
    synthetic = ", synthetic images" if result["data"].get("synthetic") else ""
    return f"{result['recipe']}, seed {result['seed']}{synthetic}"


def curves(results: Sequence[Mapping[str, Any]]) -> Any:
    """Loss and accuracy by epoch of one or more results, with the published curve behind those of davidnet."""
    figure = new_figure(10, 4.6)
    panels = figure.subplots(1, 2)
    for panel, name in zip(panels, ("loss", "accuracy"), strict=True):
        for colour, result in zip(_colours(len(results)), results, strict=True):
            rows = result["epochs"]
            epochs = [row["epoch"] for row in rows]
            held_out = "validation" if result["hyperparameters"].get("holdout") else "test"
            label = title(result)
            smoothing = result["hyperparameters"].get("label_smoothing")
            training = f"training (loss with labels smoothed by {smoothing:g})" if smoothing else "training"
            for part, line, fill, called in (
                ("train", "-", colour, training),
                ("test", "--", "white", held_out),
            ):
                panel.plot(
                    epochs,
                    [row[f"{part}_{name}"] for row in rows],
                    line,
                    color=colour,
                    marker="o",
                    markersize=4,
                    markerfacecolor=fill,
                    label=f"{label}: {called}",
                )
            if name == "accuracy" and result.get("test_accuracy_tta"):
                views = f"{label}: {held_out}, averaged over views"
                panel.plot(
                    epochs[-1], result["test_accuracy_tta"], "D", color=colour, mfc="none", label=views
                )
        panel.set(xlabel="epoch", ylabel=name)
        panel.grid(alpha=0.25)
        panel.xaxis.get_major_locator().set_params(integer=True)
    if any(result["recipe"] == recipes.ROOT for result in results):
        _published(*panels)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    return figure


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _published(loss: Any, accuracy: Any) -> None:
    """The published first epochs in grey, behind the rest."""
    epochs = range(1, len(recipes.LEARNING_CURVE) + 1)
    means, deviations, accuracies = zip(*recipes.LEARNING_CURVE, strict=True)
    style = {"color": GREY, "linewidth": 5, "alpha": 0.55, "zorder": 0, "solid_capstyle": "round"}
    loss.plot(epochs, means, **style)
    loss.errorbar(epochs, means, deviations, color=GREY, fmt="none", capsize=5, zorder=0)
    accuracy.plot(epochs, accuracies, label=PUBLISHED, **style)


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


def confusion_matrix(predictions: Predictions, about: str) -> Any:
    """The confusion matrix of a predictions.json, `about` above it; the colour is of the mistakes alone."""
    classes, counts = predictions.classes, np.array(predictions.confusion)
    count, mistakes = len(classes), counts * (1 - np.eye(len(classes), dtype=int))
    figure = new_figure(0.62 * count + 2.2, 0.52 * count + 1.6)
    axes = figure.add_subplot()
    top = max(int(mistakes.max()), 1)
    picture = axes.imshow(mistakes, cmap="Blues", vmin=0, vmax=top)
    for row in range(count):
        axes.add_patch(_grey_square(row))
        for column in range(count):
            number = int(counts[row, column])
            dark = row != column and number > 0.6 * top
            axes.text(
                column,
                row,
                number or "",
                ha="center",
                va="center",
                fontsize=SMALL,
                color="white" if dark else "black",
                weight="bold" if row == column else "normal",
            )
    axes.set_xticks(range(count), classes, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(count), classes, parse_math=False)
    axes.set(xlabel="taken for", ylabel="class")
    right = int(np.trace(counts))
    share = right / max(int(counts.sum()), 1)
    axes.set_title(f"{about}: {right:,} of {counts.sum():,} right ({share:.2%})", fontsize=10)
    figure.colorbar(picture, label="mistakes (images)", shrink=0.8)
    return figure


def _grey_square(index: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((index - 0.5, index - 0.5), 1, 1, color="#dddddd")


def mistakes(predictions: Predictions, about: str) -> Any:
    """The images of a predictions.json that the network is most wrong about, `about` above them."""
    from matplotlib.image import imread

    classes, found = predictions.classes, predictions.mistakes
    columns = 6
    rows = -(-len(found) // columns)
    figure = new_figure(1.5 * columns, 1.85 * rows + 0.5)
    for index, panel in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        panel.set_axis_off()
        if index < len(found):
            mistake = found[index]
            panel.imshow(imread(io.BytesIO(mistake.png), format="png"))
            label, taken = classes[mistake.label], classes[mistake.predicted]
            text = f"{label}, taken for\n{taken}, {mistake.probability:.3f}"
            panel.set_title(text, fontsize=SMALL, parse_math=False)
    figure.suptitle(f"{about}: the mistakes it is surest of, with the probability it gives them", fontsize=10)
    return figure


# ---- all of a run's ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """What became of one picture: its file's name, and why it is not there, or ""."""

    name: str
    missing: str = ""


def draw(run: Path, out: Path, beside: Sequence[Path] = (), data: str | None = "") -> list[Drawn]:
    """Writes the pictures of a run.

    Args:
        run: its folder, or a result.json alone.
        out: folder for the pictures, made if it is not there.
        beside: other results for the curves.
        data: path of the run's images, for the sheet; None: found as data.load finds them; "": no sheet.

    Raises:
        UserError: without matplotlib, or if a file is damaged or cannot be written.
    """
    result = record.read_result(run)
    others = [record.read_result(path) for path in beside]
    check(out / "curves.png")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; try another --out") from None
    try:
        schedule.plot(learning_rate(result["hyperparameters"]), str(out / "learning-rate.png"))
        write(curves([result, *others]), out / "curves.png")
        drawn = [Drawn("learning-rate.png"), Drawn("curves.png"), _draw_filters(run, out)]
        drawn += _draw_predictions(run, out, result)
    except (*formats.BROKEN_NPZ, OSError) as error:  # OSError: PIL's, for an image that is none
        raise UserError(f"a file of {run} is damaged ({error!r}); copy the run's folder anew") from None
    return [*drawn, _draw_sheet(result, out, data)]


def _draw_filters(run: Path, out: Path) -> Drawn:
    name, path = "filters.png", run / "weights.npz"
    if not path.is_file():
        return Drawn(name, "there is no weights.npz")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as weights:
        if "whiten/kernel" not in weights:
            return Drawn(name, "the network does not whiten")
        write(filters(weights["whiten/kernel"]), out / name)
    return Drawn(name)


def _draw_predictions(run: Path, out: Path, result: Mapping[str, Any]) -> list[Drawn]:
    predictions = read_predictions(run)
    if predictions is None:
        why = f"there is no predictions.json; write it: python -m lab.predict {run} --evaluate"
        return [Drawn("confusion.png", why), Drawn("mistakes.png", why)]
    about = f"{title(result)}, {VIEWS[result['hyperparameters'].get('tta', 'none')]}"
    write(confusion_matrix(predictions, about), out / "confusion.png")
    if not predictions.mistakes:
        return [Drawn("confusion.png"), Drawn("mistakes.png", "there are no mistakes")]
    write(mistakes(predictions, about), out / "mistakes.png")
    return [Drawn("confusion.png"), Drawn("mistakes.png")]


def _draw_sheet(result: Mapping[str, Any], out: Path, data: str | None) -> Drawn:
    name = "augmented.png"
    if data == "":
        return Drawn(name, "it needs the images; add --data PATH")
    from lab import preview  # it imports TensorFlow

    known = {key: value for key, value in result["hyperparameters"].items() if key in settings.NAMES}
    options = preview.hyperparameters(known)
    write(preview.sheet(load_data(result, options, data), options), out / name)
    return Drawn(name)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, or a result.json")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where they go (default: RUN/pictures)")
    parser.add_argument(
        "--beside", metavar="RUN", type=Path, nargs="+", default=[], help="other results for the curves"
    )
    parser.add_argument("--data", metavar="PATH", default="", help="the run's images, for a sheet of them")
    return parser.parse_args(arguments)


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = parse(arguments)
    out = options.out or (options.run if options.run.is_dir() else options.run.parent) / "pictures"
    for picture in draw(options.run, out, options.beside, options.data):
        print(f"no {picture.name}: {picture.missing}" if picture.missing else f"wrote {out / picture.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
