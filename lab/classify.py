"""What `python -m lab predict` answers, once its flags are read: classes of image files, of a test set, an export."""

import argparse
import json
from typing import Any

import numpy as np
from tqdm import tqdm

from lab.images import photos
from lab.report.confusion import evaluate, evaluation_text, load_data, probabilities, write_predictions
from lab.runs import trained
from lab.runs.results import clean
from lab.runs.trained import Trained

TOP = 3  # classes shown of an image
LONGEST = 4096  # letters of a path


def answer(options: argparse.Namespace) -> None:
    """Prints and writes what the flags of lab/predict.py ask for. Raises UserError."""
    run = trained.load(options.run, options.tta)
    if options.images:
        rows = classify(run, options.images)
        print(json.dumps(rows, indent=1) if options.json else predictions_text(rows))
    if options.evaluate:
        _evaluate(run, options.data)
    if options.export:
        trained.export(run.classifier, options.export)
        print(f"wrote {options.export}/saved_model, model.keras and classes.json")


def classify(run: Trained, names: list[str]) -> list[dict[str, Any]]:
    """Each image's path and most probable classes, best first.

    Args:
        run: the trained network.
        names: files and folders.

    Raises:
        UserError: for the first file that is no image, before anything is predicted.
    """
    paths = photos.find(names)
    images = np.stack([photos.read(path) for path in tqdm(paths, unit="images", leave=False, disable=None)])
    classes, rows = run.classifier.description.classes, []
    for path, shares in zip(paths, probabilities(run.logits(images)), strict=True):
        best = np.argsort(-shares, kind="stable")[:TOP]
        top = [{"class": classes[label], "probability": float(shares[label])} for label in best]
        rows.append({"path": str(path), **top[0], "top": top})
    return rows


def predictions_text(rows: list[dict[str, Any]]) -> str:
    """`classify`'s rows as lines: path, class, probability, the others of the top."""
    paths = [_printable(row["path"]) for row in rows]
    longest, widest = max(map(len, paths)), max(len(_printable(row["class"])) for row in rows)
    lines = []
    for path, row in zip(paths, rows, strict=True):
        rest = ", ".join(f"{_printable(other['class'])} {other['probability']:.4f}" for other in row["top"][1:])
        best = f"{_printable(row['class']):<{widest}}  {row['probability']:.4f}"
        lines.append(f"{path:<{longest}}  {best}  {rest and f'then {rest}'}".rstrip())
    return "\n".join(lines)


def _printable(name: str) -> str:
    """A name in one line of any terminal's characters; file names may hold all sorts."""
    return clean(name, LONGEST)


def _evaluate(run: Trained, path: str | None) -> None:
    images = load_data(run.result, run.options, path)
    evaluation = evaluate(run, images)
    print(evaluation_text(run, images, evaluation))
    views, own = run.classifier.description.views, run.options["tta"]
    if views == own:
        print(f"\nwrote {write_predictions(run, images, evaluation)}")
    else:  # what reads it takes it for the run's own
        print(f"\npredictions.json is left alone: it is for the run's own views, --tta {own}")
