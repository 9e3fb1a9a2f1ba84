"""What `python -m lab predict` answers, once its flags are read: classes of image files, of a test set, an export."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lab.base.errors import Exit, UserError
from lab.images import photos
from lab.report.confusion import evaluate, evaluation_text, load_data, missed, probabilities, write_predictions
from lab.runs import trained
from lab.runs.results import clean
from lab.runs.trained import Trained

TOP = 3  # classes shown of an image
LONGEST = 4096  # letters of a path
REPORTED = 10  # images that cannot be read, a line each


def answer(options: argparse.Namespace) -> int:
    """Prints and writes what the flags of lab/predict.py ask for. Returns the exit code. Raises UserError."""
    run = trained.load(options.run, options.tta)
    unread, misses = 0, False
    if options.images:
        paths, images, unread = read(options.images)
        rows = classify(run, paths, images)
        print(json.dumps(rows, indent=1) if options.json else predictions_text(rows))
    if options.evaluate:
        misses = _evaluate(run, options.data)
    if options.export:
        trained.export(run.classifier, options.export)
        print(f"wrote {options.export}/saved_model, model.keras and classes.json")
    return Exit.USAGE if unread else Exit.NO if misses else Exit.DONE


def read(names: list[str]) -> tuple[list[Path], NDArray[np.uint8], int]:
    """The images of files and folders, each reported on stderr that a folder holds and that cannot be read.

    Returns:
        Their paths; uint8 (N, 32, 32, 3); how many were reported.

    Raises:
        UserError: for the first file that was named itself and cannot be read, or if no image can.
    """
    paths, images, refusals = [], [], []
    for path in tqdm(photos.find(names), unit="images", leave=False, disable=None):
        try:
            images.append(photos.read(path))
            paths.append(path)
        except UserError as error:
            if path in map(Path, names):
                raise
            refusals.append(_printable(str(error)))
    if not images:
        raise UserError(f"none of {len(refusals)} images can be read; the first: {refusals[0]}")
    for refusal in refusals[:REPORTED]:
        print(f"left out: {refusal}", file=sys.stderr)
    if len(refusals) > REPORTED:
        print(f"left out: {len(refusals) - REPORTED} more images", file=sys.stderr)
    return paths, np.stack(images), len(refusals)


def classify(run: Trained, paths: list[Path], images: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Each image's path and most probable classes, best first; `images` are uint8 (N, 32, 32, 3)."""
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


def _evaluate(run: Trained, path: str | None) -> bool:
    """Prints what the network makes of the test set, and keeps it; returns whether it misses what the run recorded."""
    images = load_data(run.result, run.options, path)
    evaluation = evaluate(run, images)
    print(evaluation_text(run, images, evaluation))
    views, own = run.classifier.description.views, run.options["tta"]
    if warning := missed(run, len(images.test_labels), evaluation):
        print(f"\n{warning}; predictions.json is left alone", file=sys.stderr)
    elif views == own:
        print(f"\nwrote {write_predictions(run, images, evaluation)}")
    else:  # what reads it takes it for the run's own
        print(f"\npredictions.json is left alone: it is for the run's own views, --tta {own}")
    return bool(warning)
