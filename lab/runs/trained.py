"""A finished run's network, from the folder the run left, as a Keras model that takes pixels.

    >>> from lab.runs import trained
    >>> run = trained.load("runs/davidnet-0-20261121-120000")
    >>> run.classifier(images)    # uint8 (N, 32, 32, 3) -> logits float32 (N, classes)

An exported model.keras is read by `tf.keras.models.load_model`, once this module is imported, which makes its class
known.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from data import standardise
from lab.base.errors import Exit, UserError
from lab.images import formats
from lab.ladder import networks, recipes
from lab.ladder.networks import OF_A_NETWORK
from lab.ladder.views import view_logits
from lab.options import GROUPS
from lab.runs import record, results

BATCH = 250  # images at once; a thousand of DavidNet's activations would take gigabytes
PIXELS = tf.TensorSpec([None, 32, 32, 3], tf.uint8, name="images")


@dataclass(frozen=True)
class Description:
    """All that makes a classifier but its weights.

    Args:
        hyperparameters: those of networks.OF_A_NETWORK, by name.
        classes: their names.
        mean, std: of the training set's channels, on the 0-1 scale.
        views: of each image, whose logits are averaged; see views.view_logits.
    """

    hyperparameters: Mapping[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: str


@tf.keras.utils.register_keras_serializable(package="davidnet")
class Classifier(tf.keras.Model):
    """A network with what comes before and after it: uint8 (N, 32, 32, 3) to logits float32 (N, classes).

    Standardises the pixels and averages the logits over the description's views. The logits are those of the loss,
    the network's scale included: their softmax gives the probabilities. For prediction, not for training.
    """

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description = description
        options = SimpleNamespace(**description.hyperparameters)
        self.network = networks.make(options, len(description.classes), fast=False)
        self.build([None, 32, 32, 3])

    def build(self, input_shape: Any) -> None:
        """Nothing is left to make; Keras wants to be told, before it saves or exports."""

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return self.logits(images, self.description.views)

    def logits(self, images: tf.Tensor, views: str) -> tf.Tensor:
        """The same with other views."""
        mean, std = np.array(self.description.mean), np.array(self.description.std)
        return view_logits(self.network, standardise(tf.cast(images, tf.float32), mean, std), views)

    def get_config(self) -> dict[str, Any]:
        """The description as plain values, for a .keras file."""
        values = asdict(self.description)
        return values | {name: list(values[name]) for name in ("classes", "mean", "std")}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Classifier":
        known = {name: config[name] for name in Description.__annotations__}
        tuples = {name: tuple(config[name]) for name in ("classes", "mean", "std")}
        return cls(Description(**known | tuples))


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run: its folder, its result.json, its hyperparameters, its classifier."""

    folder: Path
    result: dict[str, Any]
    options: dict[str, Any]
    classifier: Classifier

    def logits(self, images: NDArray[np.uint8], views: str = "") -> NDArray[np.float32]:
        """Of images uint8 (N, 32, 32, 3), batch by batch: (N, classes). `views` in place of the classifier's."""
        views = views or self.classifier.description.views
        step = tf.function(lambda batch: self.classifier.logits(batch, views), input_signature=[PIXELS])
        starts = tqdm(range(0, len(images), BATCH), unit_scale=BATCH, unit="images", leave=False, disable=None)
        parts = [step(tf.constant(images[start : start + BATCH])).numpy() for start in starts]
        return np.concatenate([np.empty([0, len(self.classifier.description.classes)], np.float32), *parts])


def load(folder: str | Path, views: str = "") -> Trained:
    """The network of a finished run, with plain operations in float32, whatever it was trained with.

    Args:
        folder: the run's, with result.json and weights.npz, or its result.json. Those are the evaluated weights: of
            a recipe with a moving average, the averages.
        views: none, flip, six or unsure in place of the run's own.

    Raises:
        UserError: if a file is missing, damaged, or of another network or run, or if the run has not ended.
    """
    path = results.of_one_run(Path(folder).expanduser())
    if not record.is_result(path):
        raise UserError(f"{path} is no result of a run; give a finished run's folder")
    folder, result = path.parent, record.read_result(path)
    if result.get("finished") is not True:
        raise UserError(f"the run in {folder} has not ended; go on with it: --resume {folder}")
    options = _options(result["hyperparameters"], path)
    description = Description(
        hyperparameters={name: options[name] for name in OF_A_NETWORK},
        views=views or options["tta"],
        **_of_the_data(result["data"], path),
    )
    classifier = Classifier(description)
    _set_weights(classifier.network, folder / "weights.npz", result.get("weights_sha256"))
    return Trained(folder, result, options, classifier)


def _options(recorded: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The run's hyperparameters; one that it does not know has this version's value, as in --resume.

    Raises UserError for a choice that this version does not know.
    """
    known = {item.name: item for group in GROUPS for item in fields(group)}
    defaults = {name: item.default for name, item in known.items()} | recipes.values(recipes.ROOT) | {"seed": 0}
    options = defaults | {name: value for name, value in recorded.items() if name in defaults}
    for name in (*OF_A_NETWORK, "tta"):
        choices = known[name].metadata["choices"] if name in known else ()
        if choices and options[name] not in choices:
            raise UserError(
                f"{path}: {name} {options[name]!r} is not known; another version wrote it, read it with that"
            )
    return options


def _of_the_data(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Classes, mean and deviation."""
    names = ("classes", "mean", "std")
    if missing := [name for name in names if name not in data]:
        raise UserError(f"{path} lacks the data's {', '.join(missing)}; an older version wrote it, train again")
    return {name: tuple(data[name]) for name in names}


def _set_weights(network: tf.keras.Model, path: Path, recorded: str | None) -> None:
    """Gives the network the arrays of a weights.npz, by name, which must be all of them and no others.

    Raises UserError if the file is missing, or not the one whose sum was `recorded`; or, of an older version, which
    recorded none, if it is damaged or of another network. Nothing is unpickled.
    """
    try:
        results.check_weights(path, recorded)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    except formats.BROKEN_NPZ as error:
        raise UserError(f"{path}: {str(error) or 'truncated'}; copy the run's folder again") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give a finished run's folder") from None
    variables = networks.evaluated_variables(network)
    for name in sorted(variables.keys() ^ arrays.keys()):
        raise UserError(
            f"{path}: {name} is {'missing' if name in variables else 'not of this network'}; it is of an older version "
            "with other names: read it with that version, or train again"
        )
    for name, variable in variables.items():
        if arrays[name].shape != variable.shape:
            held = f"{arrays[name].shape} instead of {tuple(variable.shape)}"
            raise UserError(f"{path}: {name} is {held}; copy the run's folder again")
        variable.assign(arrays[name])


def export(classifier: Classifier, folder: Path) -> None:
    """Writes `saved_model`, `model.keras` and `classes.json` (the names) to a folder, all of them or none.

    The SavedModel's signature takes images, uint8 (N, 32, 32, 3), and gives logits and probabilities, (N, classes)
    each; it needs none of these modules. Called, the Keras model gives the logits.

    Raises UserError if the folder holds one of them already or cannot be written.
    """

    def served(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = classifier(images)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    names, temporary = ("saved_model", "model.keras", "classes.json"), None
    try:
        held = [name for name in names if (folder / name).exists()]
        if held:
            raise UserError(f"--export {folder} holds {', '.join(held)} already; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".export."))
        archive = tf.keras.export.ExportArchive()
        archive.track(classifier)
        archive.add_endpoint(name="serve", fn=served, input_signature=[PIXELS])
        archive.write_out(str(temporary / names[0]), verbose=False)
        classifier.save(temporary / names[1])
        (temporary / names[2]).write_text(json.dumps(classifier.description.classes) + "\n", encoding="utf-8")
        for name in names:
            (temporary / name).rename(folder / name)
    except (tf.errors.OpError, OSError) as error:
        why = getattr(error, "strerror", "") or getattr(error, "message", "") or str(error)
        raise UserError(
            f"cannot write --export {folder}: {why}; free the disk, or try another folder",
            exit_code=Exit.CANNOT_WRITE,
        ) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)
