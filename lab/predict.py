"""What a finished run's network says: of image files, of its test set, or elsewhere, exported.

    python -m lab.predict runs/NAME photo.jpg more/            # class, probability, top 3 of files and folders
    python -m lab.predict runs/NAME --evaluate                 # accuracy of each class, confusion matrix
    python -m lab.predict runs/NAME --export model             # as a SavedModel and as model.keras

A probability is the softmax of the logits' mean over the run's views of the image (--tta for others). Files of any
size will do: lab/images/photos.py says how they become 32x32 pixels.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# 3, where the training has 2: TensorFlow would print a line of its own beside ours for each damaged image.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from tqdm import tqdm

from lab import options as settings
from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.report.confusion import evaluate, evaluation_text, load_data, probabilities, write_predictions

if TYPE_CHECKING:  # lab/runs/trained.py imports TensorFlow, for which -h need not wait
    from lab.runs.trained import Trained

TOP = 3  # classes shown of an image


# ---- image files -------------------------------------------------------------------------------------------


def classify(run: "Trained", names: list[str]) -> list[dict[str, Any]]:
    """Each image's path and most probable classes, best first.

    Args:
        run: the trained network.
        names: files and folders.

    Raises:
        UserError: for the first file that is no image, before anything is predicted.
    """
    from lab.images import photos

    paths = photos.find(names)
    bar = tqdm(paths, unit="images", leave=False, disable=None)
    images = np.stack([photos.read(path) for path in bar])
    classes, found = run.classifier.description.classes, []
    for path, row in zip(paths, probabilities(run.logits(images)), strict=True):
        best = np.argsort(-row, kind="stable")[:TOP]
        top = [{"class": classes[label], "probability": float(row[label])} for label in best]
        found.append({"path": str(path), **top[0], "top": top})
    return found


def predictions_text(found: list[dict[str, Any]]) -> str:
    """`classify`'s rows as lines: path, class, probability, the others of the top."""
    paths = [_printable(row["path"]) for row in found]
    longest, widest = max(map(len, paths)), max(len(_printable(row["class"])) for row in found)
    lines = []
    for path, row in zip(paths, found, strict=True):
        rest = ", ".join(
            f"{_printable(other['class'])} {other['probability']:.4f}" for other in row["top"][1:]
        )
        best = f"{_printable(row['class']):<{widest}}  {row['probability']:.4f}"
        lines.append(f"{path:<{longest}}  {best}  {rest and f'then {rest}'}".rstrip())
    return "\n".join(lines)


def _printable(name: str) -> str:
    """A name in one line of any terminal's characters; file names may hold all sorts."""
    return "".join(char if char.isprintable() else "?" for char in name)


# ---- the command line --------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Raises UserError for arguments that are unknown, or leave nothing to do."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="PNG, JPEG, BMP or GIF file, or a folder")
    parser.add_argument(
        "--tta", choices=settings.VIEWS, default="", help="views of an image (default: the run's)"
    )
    parser.add_argument("--json", action="store_true", help="the images' classes as JSON")
    parser.add_argument("--evaluate", action="store_true", help="classify the run's test set")
    parser.add_argument(
        "--data", metavar="PATH", help="with --evaluate: where it is (default: find or download)"
    )
    parser.add_argument(
        "--export", metavar="DIR", type=Path, help="write a SavedModel and a .keras file there"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.data is not None and not options.evaluate:
        raise UserError("--data is the test set's place; add --evaluate")
    if options.json and (options.evaluate or options.export or not options.images):
        raise UserError("--json is for images alone; give some, and leave out --evaluate and --export")
    if not (options.images or options.evaluate or options.export):
        raise UserError("there is nothing to do; give images, --evaluate or --export DIR")
    return options


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = parse(arguments)
    from lab.runs import trained

    run = trained.load(options.run, options.tta)
    if options.images:
        found = classify(run, options.images)
        print(json.dumps(found, indent=1) if options.json else predictions_text(found))
    if options.evaluate:
        _evaluate(run, options.data)
    if options.export:
        trained.export(run.classifier, options.export)
        print(f"wrote {options.export}/saved_model, model.keras and classes.json")
    return 0


def _evaluate(run: "Trained", path: str | None) -> None:
    images = load_data(run.result, run.options, path)
    found = evaluate(run, images)
    print(evaluation_text(run, images, found))
    views = run.classifier.description.views
    if views == run.options.tta:
        print(f"\nwrote {write_predictions(run, images, found)}")
    else:  # what reads it takes it for the run's own
        print(f"\npredictions.json is left alone: it is for the run's own views, --tta {run.options.tta}")


if __name__ == "__main__":
    sys.exit(main())
