"""What a network makes of its run's test set: accuracies, the confusion matrix, the worst mistakes.

It needs the network and the images, and so TensorFlow; what it leaves is read by lab/report/predictions.py.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lab.base.errors import UserError
from lab.images import load
from lab.images.imageset import ImageSet
from lab.report import predictions
from lab.report.predictions import VIEWS
from lab.report.tables import Table
from lab.runs.results import clean
from lab.runs.trained import Trained

WORST = 24  # mistakes kept
# What rounding may do to an accuracy: a share of the images that other operations, or another precision, take
# otherwise. One image is always allowed.
ROUNDING = {"float32": 0.001}
COARSE_ROUNDING = 0.005  # of bfloat16 and float16


def probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The softmax of logits (N, classes)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network makes of a test set.

    Args:
        plain, viewed: its accuracy, 0 to 1, of one view and of the views asked for.
        confusion: images by class (row) and predicted class (column), (classes, classes).
        correct_plain: of each class, how many are right with one view, (classes,).
        worst: indices of mistakes, the most probable ones first.
        labels, predicted: of each image, (N,).
        certainty: the probability of the predicted class, (N,).
    """

    plain: float
    viewed: float
    confusion: NDArray[np.int64]
    correct_plain: NDArray[np.int64]
    worst: NDArray[np.intp]
    labels: NDArray[np.int32]
    predicted: NDArray[np.intp]
    certainty: NDArray[np.float64]


def judge(plain: NDArray[Any], viewed: NDArray[Any], labels: NDArray[np.int32]) -> Evaluation:
    """From the logits (N, classes) of one view, and of the views, and the labels (N,)."""
    classes = plain.shape[1]
    hits, predicted = plain.argmax(1) == labels, viewed.argmax(1)
    certainty = probabilities(viewed).max(1)
    mistakes = np.flatnonzero(predicted != labels)
    return Evaluation(
        plain=float(hits.mean()),
        viewed=float((predicted == labels).mean()),
        confusion=np.bincount(classes * labels + predicted, minlength=classes**2).reshape(classes, classes),
        correct_plain=np.bincount(labels[hits], minlength=classes),
        worst=mistakes[np.argsort(-certainty[mistakes], kind="stable")][:WORST],
        labels=labels,
        predicted=predicted,
        certainty=certainty,
    )


def load_data(result: Mapping[str, Any], options: Mapping[str, Any], path: str | None) -> ImageSet:
    """A run's own images: those it trained on, and its test part, or what it held out.

    Args:
        result: the run's result.json.
        options: its hyperparameters.
        path: see lab/images/load.py; None or "" also for the synthetic images of a run on those.

    Raises:
        UserError: if they are others, or have other classes.
    """
    known = result["data"]
    images = load.load(
        path or ("synthetic" if known.get("synthetic") else None),
        seed=options["seed"],
        limit_train=options["limit_train"],
        limit_test=options["limit_test"],
        holdout=options["holdout"],
    )
    classes, sha256 = known.get("classes"), images.sha256
    if classes is not None and list(images.classes) != classes:
        raise UserError(
            f"--data: {images.source} has the classes {', '.join(images.classes)}, the run had "
            f"{', '.join(map(str, classes))}; give the data it was trained on"
        )
    if sha256 != known.get("sha256"):
        raise UserError(
            f"--data: the images are not those of the run (sha256 {sha256[:12]}..., it had "
            f"{str(known.get('sha256'))[:12]}...); give the data it was trained on"
        )
    return images


def evaluate(run: Trained, images: ImageSet) -> Evaluation:
    """Classifies the test part, with one view and with the classifier's."""
    views = run.classifier.description.views
    plain = run.logits(images.test_images, "none")
    viewed = plain if views == "none" else run.logits(images.test_images)
    return judge(plain, viewed, images.test_labels)


def evaluation_text(run: Trained, images: ImageSet, evaluation: Evaluation) -> str:
    """The accuracies beside those that the run recorded, those of the classes, and the confusion matrix."""
    views = run.classifier.description.views
    count, recorded = len(images.test_labels), _recorded(run)
    part = "validation" if run.options["holdout"] else "test"
    lines = [f"{count:,} {part} images of {images.source}"]
    for kind, accuracy in {"none": evaluation.plain, views: evaluation.viewed}.items():
        known = recorded.get(kind)
        beside = f"the run recorded {known:.4f}" if isinstance(known, float) else "not recorded"
        lines.append(f"accuracy {accuracy:.4f} with {VIEWS[kind]} ({beside})")
    return "\n".join([*lines, "", _class_table(run, evaluation), "", _confusion_text(run, evaluation.confusion)])


def missed(run: Trained, count: int, evaluation: Evaluation) -> str:
    """By how much the accuracy of `count` images misses what the run recorded; "" if by no more than rounding."""
    views = run.classifier.description.views
    allowed = max(1.0, count * ROUNDING.get(str(run.result.get("precision")), COARSE_ROUNDING)) + 1e-6
    for kind, accuracy in {"none": evaluation.plain, views: evaluation.viewed}.items():
        known = _recorded(run).get(kind)
        if isinstance(known, float) and not abs(accuracy - known) * count <= allowed:
            return (
                f"WARNING: accuracy {accuracy:.4f} with {VIEWS[kind]}, but the run recorded {known:.4f}: by more than "
                "rounding, so these weights or images are not those of the run, or this code computes otherwise"
            )
    return ""


def _recorded(run: Trained) -> dict[str, Any]:
    """The accuracies that the run recorded, by its views."""
    return {run.options["tta"]: run.result.get("test_accuracy_tta")} | {"none": run.result.get("test_accuracy")}


def _class_table(run: Trained, evaluation: Evaluation) -> str:
    views = run.classifier.description.views
    columns = {"none": evaluation.correct_plain, views: np.diag(evaluation.confusion)}
    rows = []
    for label, name in enumerate(run.classifier.description.classes):
        count = int(evaluation.confusion[label].sum())
        shares = (f"{hits[label] / count:.4f}" if count else "-" for hits in columns.values())
        rows.append((clean(name), str(count), *shares))
    return Table(("class", "images", *(VIEWS[kind] for kind in columns)), rows).as_text()


def _confusion_text(run: Trained, confusion: NDArray[np.int64]) -> str:
    classes = [clean(name) for name in run.classifier.description.classes]
    if len(classes) > predictions.SHOWN_CLASSES:
        pairs = predictions.most_frequent(confusion.tolist(), classes)
        rows = [(name, other, str(number), str(total)) for name, other, number, total in pairs]
        return Table(("most often the class", "was taken for", "times", "of images"), rows, words=(0, 1)).as_text()
    longest = max(map(len, classes))
    heads = [name[:5] for name in classes]
    if len(set(heads)) < len(heads):  # too much alike
        heads = [str(label) for label in range(len(classes))]
    lines = ["rows: the class; columns: what it was taken for"]
    lines.append(" " * longest + "".join(f"{head:>7}" for head in heads))
    lines += [
        f"{name:<{longest}}" + "".join(f"{n:>7}" for n in row) for name, row in zip(classes, confusion, strict=True)
    ]
    return "\n".join(lines)


def write_predictions(run: Trained, images: ImageSet, evaluation: Evaluation) -> Path:
    """Writes predictions.json to the run's folder: classes, confusion and the worst mistakes with their images."""
    mistakes = [
        {
            "index": int(index),
            "label": int(evaluation.labels[index]),
            "predicted": int(evaluation.predicted[index]),
            "probability": float(evaluation.certainty[index]),
            "png": base64.b64encode(tf.io.encode_png(images.test_images[index]).numpy()).decode(),
        }
        for index in evaluation.worst
    ]
    classes = list(run.classifier.description.classes)
    content = {"classes": classes, "confusion": evaluation.confusion.tolist(), "mistakes": mistakes}
    return predictions.write(run.folder, content)
