"""The images of a training: found, downloaded or made, and the subsets asked for."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.base import paths
from lab.base.errors import UserError, brief
from lab.images import download, folders, formats, synthetic, tfrecords
from lab.images.imageset import ImageSet

# Every choice draws from a stream of the seed of its own, so that one option does not change another's.
_STREAM_HOLDOUT, _STREAM_TRAIN, _STREAM_TEST = range(synthetic.STREAM + 1, synthetic.STREAM + 4)


def of(options: Any) -> ImageSet:
    """The images of a training with these hyperparameters: data, seed, limit_train, limit_test and holdout.

    Raises:
        UserError: as load does, and for training images that cannot be standardised.
    """
    images = load(
        options.data or None,
        seed=options.seed,
        limit_train=options.limit_train,
        limit_test=options.limit_test,
        holdout=options.holdout,
    )
    pixels = images.train_images.reshape(-1, 3)
    if any((pixels[:, channel] == pixels[0, channel]).all() for channel in range(3)):
        raise UserError(f"{images.source}: a channel's deviation is 0, not above 0; give images that differ")
    return images


def load(path: str | None, *, seed: int, limit_train: int = 0, limit_test: int = 0, holdout: int = 0) -> ImageSet:
    """Reads, makes or downloads the images, then takes the subsets asked for.

    Args:
        path: a folder that is or holds cifar-10-batches-py or cifar-10-batches-bin, the .tar.gz of either,
            an .npz (see formats.read_npz), a folder of images by class (see lab/images/folders.py), a folder or storage
            path of TFRecords (see lab/images/tfrecords.py), or the
            word "synthetic" (a folder of that name is "./synthetic"). None: ./data, then Keras' cache, then a
            download to ./data.
        seed: 0 or more; chooses the subsets and makes the synthetic images.
        limit_train: how many training images to keep, class-balanced; 0 keeps all.
        limit_test: likewise for the test images, or for the held-out ones.
        holdout: how many training images to hold out, stratified by class; they take the place of the test
            set. 0 holds none out.

    Raises:
        UserError: for a bad path, file or number.
    """
    numbers = {"seed": seed, "limit_train": limit_train, "limit_test": limit_test, "holdout": holdout}
    for name, value in numbers.items():
        if value < 0:
            raise UserError(f"{name} {value} is negative; give 0 or more")
    if path:
        paths.check("--data", path)
    if path == "synthetic":
        images = synthetic.make(seed)
    elif path and tfrecords.is_data_set(path):
        images = tfrecords.read(path)
    else:
        try:
            images = _read(path)
        except OSError as error:  # of a folder that may not be entered
            where = error.filename or path or "data"
            raise UserError(f"cannot read {where}: {brief(error)}; check its rights, or give another --data") from None
    if holdout:
        images = _hold_out(images, holdout, seed)
    return _limit(images, limit_train, limit_test, seed)


def _read(path: str | None) -> ImageSet:
    if path is None:
        place = _find() or _download(Path("data"))
    elif path.strip():
        place = Path(os.path.expanduser(path))
    else:
        raise UserError("--data is empty; give a folder, a .tar.gz, an .npz or the word synthetic")
    if folders.is_one(place):
        return ImageSet(*folders.read(place), source=place.resolve().name, synthetic=False)
    arrays, doubt = formats.read(place), formats.doubt(place)
    return ImageSet(*arrays, source=place.resolve().name, synthetic=False, doubt=doubt)


def _find() -> Path | None:
    """The first complete copy in ./data or in Keras' cache."""
    # keras/src/datasets/cifar10.py unpacks to cifar-10-batches-py-target/, before Keras 3 to the cache itself
    keras = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")) / "datasets"
    for folder in (Path("data"), keras, keras / f"{formats.PYTHON.folder}-target"):
        if located := formats.locate(folder):
            return located[0]
    archive = keras / f"{formats.PYTHON.folder}.tar.gz"
    return archive if archive.is_file() else None


def _download(folder: Path) -> Path:
    with download.alone(folder):
        if located := formats.locate(folder):  # by another process, for which this one has waited
            return located[0]
        archive = download.fetch(
            download.CIFAR10_URLS,
            folder / formats.PYTHON.archive,
            md5=formats.PUBLISHED_MD5[formats.PYTHON.archive],
            size=download.CIFAR10_BYTES,
        )
        return download.safe_extract(archive, folder, folder=formats.PYTHON.folder, files=formats.PYTHON.files)


# ---- subsets -----------------------------------------------------------------------------------------------


def _class_ranks(labels: NDArray[np.int32], generator: np.random.Generator) -> NDArray[np.float64]:
    """Each image's place, from 0, in a random order of its class, plus a tie-break below 1."""
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks[members] = generator.permutation(len(members))
    return ranks + generator.random(len(labels))


def balanced_subset(labels: NDArray[np.int32], count: int, seed: int, stream: int = 0) -> NDArray[np.intp]:
    """Indices of `count` images with the classes' numbers as even as they can be.

    A smaller count chooses a subset of a larger one's images. Classes with too few images give all.

    Args:
        labels: int32 (N,).
        count: 0 to N.
        seed: 0 or more.
        stream: another stream of the same seed chooses independently.

    Returns: indices (count,), ascending.
    """
    ranks = _class_ranks(labels, np.random.default_rng([seed, stream]))
    return np.sort(np.argsort(ranks, kind="stable")[:count])


def stratified_split(
    labels: NDArray[np.int32], count: int, seed: int, stream: int = 0
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Splits off the last `count` images of a random order in which the classes are evenly spread.

    Each class gives its share in proportion to its number, to within one image.

    Args: as for balanced_subset.

    Returns: indices (N - count,) of the rest and (count,) of the part split off, ascending.
    """
    ranks = _class_ranks(labels, np.random.default_rng([seed, stream]))
    order = np.argsort(ranks / np.bincount(labels)[labels], kind="stable")
    rest = len(labels) - count
    return np.sort(order[:rest]), np.sort(order[rest:])


def _hold_out(images: ImageSet, count: int, seed: int) -> ImageSet:
    available = len(images.train_labels)
    if count >= available:
        raise UserError(f"holdout {count} leaves nothing of {available} training images; give at most {available - 1}")
    rest, held_out = stratified_split(images.train_labels, count, seed, _STREAM_HOLDOUT)
    return replace(
        images,
        train_images=images.train_images[rest],
        train_labels=images.train_labels[rest],
        test_images=images.train_images[held_out],
        test_labels=images.train_labels[held_out],
        source=f"{images.source} (validation: {count} held out of the training set; test set unused)",
    )


def _limit(images: ImageSet, limit_train: int, limit_test: int, seed: int) -> ImageSet:
    changes: dict[str, Any] = {}
    for part, limit, labels, stream in (
        ("train", limit_train, images.train_labels, _STREAM_TRAIN),
        ("test", limit_test, images.test_labels, _STREAM_TEST),
    ):
        if limit > len(labels):
            raise UserError(
                f"limit_{part} {limit} is more than the {len(labels)} {part} images; "
                f"give at most {len(labels)}, or 0 for all"
            )
        if limit:
            chosen = balanced_subset(labels, limit, seed, stream)
            changes[f"{part}_images"] = getattr(images, f"{part}_images")[chosen]
            changes[f"{part}_labels"] = labels[chosen]
    return replace(images, **changes)
