"""A finished run's network, from the folder the run left, as a Keras model that takes pixels.

    >>> from lab.runs import trained
    >>> run = trained.load("runs/davidnet-0-20261121-120000")
    >>> run.classifier(images)    # uint8 (N, 32, 32, 3) -> logits float32 (N, classes)

An exported model.keras is read by `tf.keras.models.load_model`, once this module is imported, which makes its class
known.
"""

import contextlib
import json
import math
import shutil
import tempfile
import zipfile
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
WIDEST = 4096  # filters of the first convolution; a network many times as wide fits no memory
HEADER = 4096  # bytes; more than NumPy writes before an array
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
        views: none, flip or six in place of the run's own.

    Raises:
        UserError: if a file is missing, damaged, or of another network or run, or if the run has not ended.
    """
    path = results.of_one_run(Path(folder).expanduser())
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
    _set_weights(classifier.network, folder / "weights.npz")
    results.check_weights(folder / "weights.npz", result.get("weights_sha256"))
    return Trained(folder, result, options, classifier)


def _options(recorded: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The run's hyperparameters; one that it does not know has this version's value, as in --resume.

    Raises UserError for a value with which no network can be made.
    """
    known = {item.name: item for group in GROUPS for item in fields(group)}
    defaults: dict[str, Any] = (
        {name: item.default for name, item in known.items()} | recipes.values(recipes.ROOT) | {"seed": 0}
    )
    limits: dict[str, Any] = {name: item.metadata for name, item in known.items()}
    limits["width"] = {"low": 1, "high": WIDEST}
    options = defaults | {name: value for name, value in recorded.items() if name in defaults}
    for name in (*OF_A_NETWORK, "tta"):
        value, default, limit = options[name], defaults[name], limits.get(name, {})
        right = type(value) is type(default) or (type(default) is float and type(value) is int)
        if right and type(default) in (int, float):
            right = math.isfinite(value) and (limit.get("low") or 0) <= value <= (limit.get("high") or math.inf)
        if not right or (limit.get("choices") and value not in limit["choices"]):
            raise UserError(f"{path} is damaged: {name} is {value!r}; copy the run's folder again")
    return options


def _of_the_data(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Classes, mean and deviation."""
    missing = [name for name in ("classes", "mean", "std") if name not in data]
    if missing:
        raise UserError(f"{path} lacks the data's {', '.join(missing)}; an older version wrote it, train again")
    classes, moments = data["classes"], {name: data[name] for name in ("mean", "std")}
    names = isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)
    numbers = all(
        isinstance(values, list)
        and len(values) == 3
        and all(isinstance(value, float) and np.isfinite(value) for value in values)
        for values in moments.values()
    )
    if not names or not numbers or min(moments["std"]) <= 0:
        raise UserError(f"{path} is damaged: classes, mean or std of the data; copy the run's folder again")
    return {"classes": tuple(classes)} | {name: tuple(values) for name, values in moments.items()}


def _set_weights(network: tf.keras.Model, path: Path) -> None:
    """Gives the network the arrays of a weights.npz, which must be all of them and no others."""
    variables = networks.evaluated_variables(network)
    arrays = read_weights(path, {name: tuple(variable.shape) for name, variable in variables.items()})
    for name, variable in variables.items():
        variable.assign(arrays[name])


def read_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """The float32 arrays of a weights.npz, by name, with these shapes.

    Raises UserError if the file is missing or damaged, or holds fewer, more or others; nothing is unpickled.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
        for name in sorted(shapes.keys() ^ sizes.keys()):
            raise UserError(
                f"{path}: {name} is {'missing' if name in shapes else 'not of this network'}; it is damaged, or of an "
                "older version with other names: read it with that version, or train again"
            )
        for name, shape in shapes.items():  # before memory is taken
            if sizes[name] > 4 * np.prod(shape) + HEADER:
                raise ValueError(f"{name} has {sizes[name]} bytes, too many for {shape}")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in shapes}
        for name, shape in shapes.items():
            if arrays[name].dtype != np.float32 or arrays[name].shape != shape:
                held = f"{arrays[name].dtype} {arrays[name].shape}"
                raise ValueError(f"{name} is {held} instead of float32 {shape}")
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} holds numbers that are not finite")
    except (*formats.BROKEN_NPZ, NotImplementedError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: {str(error) or 'truncated'}; copy the run's folder again") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give a finished run's folder") from None
    return arrays


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
