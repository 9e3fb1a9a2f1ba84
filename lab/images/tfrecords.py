"""Data sets as compressed TFRecord shards, in a folder or on storage: any path of tf.io.gfile, `gs://` too.

    python -m lab convert --data cifar-10-batches-py --to-tfrecord gs://bucket/cifar10
    python train_eager.py --data gs://bucket/cifar10

A folder holds train-00000-of-00010.tfrecord.gz and so on, and tfrecords.json, the manifest, which is written last:
a folder without one is incomplete. A record is a tf.train.Example of `image`, 3072 bytes (32 rows of 32 pixels of
red, green, blue), and `label`, an int64. Neither depends on Keras or on this program, and the statistics in the
manifest (of the training images, on the 0-1 scale) are for other readers too; training computes its own.

Each epoch has an order of its own over all images, and compressed records can be read from their beginning only.
So the shards are read once, several at a time, into memory, and training is then the very same as from arrays.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from data import mean_std
from lab.base import storage
from lab.base.errors import Exit, UserError, brief
from lab.base.files import decode, encode
from lab.images.formats import MAX_NPZ_BYTES, TFRECORD_MANIFEST
from lab.images.imageset import ImageSet

VERSION = 1  # of the manifest and the records
IMAGE_SHAPE, IMAGE_BYTES = (32, 32, 3), 32 * 32 * 3
IMAGES_A_SHARD = 5_000  # at most; about 12 MB of CIFAR-10
READERS = 4  # shards read at a time
RECORDS_A_BATCH = 256  # decoded together
BUFFER_BYTES = 1 << 20  # of a read; a storage service answers each with some delay
MAX_MANIFEST_BYTES = 1 << 26
_AGAIN = "write the folder again with python -m lab convert, or copy it again"


@dataclass(frozen=True)
class RecordFile:
    """A shard: its name, images and bytes, and the sum of its content, label (int32, little-endian) and pixels of
    each record. The file's own sum would take a second reading to compare."""

    file: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder holds."""

    source: str
    synthetic: bool
    classes: tuple[str, ...]
    doubt: str  # why they may not be the published images, as in ImageSet
    images_sha256: str  # of all: ImageSet.sha256
    train: tuple[RecordFile, ...]
    test: tuple[RecordFile, ...]


# ---- writing -----------------------------------------------------------------------------------------------


def check_new(folder: str) -> None:
    """Raises UserError if the folder holds something, or cannot be reached."""
    # exists, since listdir does not tell what is not there from what does not answer.
    if not _ask(folder, tf.io.gfile.exists):
        return
    if not tf.io.gfile.isdir(folder):
        raise UserError(f"--to-tfrecord {folder} is no folder; give another")
    try:
        names = _ask(folder, tf.io.gfile.listdir)
    except storage.FILE_ERRORS as error:
        raise UserError(f"cannot read --to-tfrecord {folder}: {brief(error)}; check its rights") from None
    if names:
        raise UserError(
            f"--to-tfrecord {folder} holds {sorted(names)[0]} and {len(names) - 1} more; give a new or empty folder"
        )


def write(folder: str, images: ImageSet) -> Manifest:
    """Writes a data set.

    Args:
        folder: a path of tf.io.gfile; a new one, or one that holds nothing.

    Raises: UserError if the folder holds something or cannot be written.
    """
    folder = os.path.expanduser(folder)
    check_new(folder)
    folder = folder.rstrip("/")
    mean, std = mean_std(images.train_images)
    try:
        tf.io.gfile.makedirs(folder)
        with _bar(len(images.train_labels) + len(images.test_labels), "writing") as bar:
            parts = {
                "train": _write_part(folder, "train", images.train_images, images.train_labels, bar),
                "test": _write_part(folder, "test", images.test_images, images.test_labels, bar),
            }
        content = {
            "format": f"TFRecord, GZIP; tf.train.Example: image {IMAGE_BYTES} bytes {IMAGE_SHAPE}, label int64",
            "version": VERSION,
            "source": images.source,
            "synthetic": images.synthetic,
            "doubt": images.doubt,
            "images_sha256": images.sha256,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "classes": images.classes,
            **{f"{part}_images": sum(shard.images for shard in shards) for part, shards in parts.items()},
            **{part: [asdict(shard) for shard in shards] for part, shards in parts.items()},
        }
        storage.write_whole(f"{folder}/{TFRECORD_MANIFEST}", encode(content))
    except storage.FILE_ERRORS as error:
        raise UserError(
            f"cannot write {folder}: {brief(error)}; free the disk, or give another folder",
            exit_code=Exit.CANNOT_WRITE,
        ) from None
    return _parse(encode(content))


def _write_part(
    folder: str, part: str, images: NDArray[np.uint8], labels: NDArray[np.int32], bar: tqdm
) -> list[RecordFile]:
    count = -(-len(labels) // IMAGES_A_SHARD)
    bounds = [len(labels) * number // count for number in range(count + 1)]
    shards = []
    for number in range(count):
        name = f"{part}-{number:05d}-of-{count:05d}.tfrecord.gz"
        rows = slice(bounds[number], bounds[number + 1])
        shards.append(_write_shard(folder, name, images[rows], labels[rows]))
        bar.update(shards[-1].images)
    return shards


def _write_shard(folder: str, name: str, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> RecordFile:
    with tf.io.TFRecordWriter(f"{folder}/{name}", tf.io.TFRecordOptions(compression_type="GZIP")) as file:
        for image, label in zip(images, labels.tolist(), strict=True):
            features = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            file.write(example.SerializeToString(deterministic=True))  # the same bytes for the same images
    size = tf.io.gfile.stat(f"{folder}/{name}").length
    digest = hashlib.sha256(_content(images, labels))
    return RecordFile(name, len(labels), size, digest.hexdigest())


def _content(images: NDArray[np.uint8], labels: NDArray[Any]) -> bytes:
    """What a shard's sum is of."""
    first = labels.astype("<i4")[:, None].view(np.uint8)  # (n, 4)
    return np.concatenate([first, images.reshape(len(labels), -1)], axis=1).tobytes()


def _bar(images: int, what: str) -> tqdm:
    return tqdm(total=images, unit="images", unit_scale=True, desc=what, disable=None)  # on a terminal only


# ---- reading -----------------------------------------------------------------------------------------------


def is_data_set(path: str) -> bool:
    """Whether a path is to be read as TFRecords: a folder with their manifest, or on storage (gs://...)."""
    return storage.is_remote(path) or os.path.isfile(os.path.join(os.path.expanduser(path), TFRECORD_MANIFEST))


def read(path: str) -> ImageSet:
    """Reads a data set from a path of tf.io.gfile.

    Raises: UserError, one line: no manifest, a shard that is missing or not what was written.
    """
    folder = os.path.expanduser(path).rstrip("/")
    manifest = read_manifest(folder)
    train, test = (sum(shard.images for shard in part) for part in (manifest.train, manifest.test))
    with _bar(train + test, "reading") as bar:
        train_arrays = _read_part(folder, manifest.train, len(manifest.classes), bar)
        test_arrays = _read_part(folder, manifest.test, len(manifest.classes), bar)
    images = ImageSet(
        *train_arrays,
        *test_arrays,
        manifest.classes,
        source=f"{manifest.source}, from TFRecords",
        synthetic=manifest.synthetic,
        doubt=manifest.doubt,
    )
    # Every shard may be complete, but they are not those, or not in that order.
    if images.sha256 != manifest.images_sha256:
        raise UserError(f"--data {path} does not hold the images that {TFRECORD_MANIFEST} says; {_AGAIN}")
    return images


def read_manifest(folder: str) -> Manifest:
    """What a folder holds. Raises UserError if it has no manifest or a damaged one."""
    path = f"{folder}/{TFRECORD_MANIFEST}"
    try:
        return _parse(_ask(path, _text))
    except tf.errors.NotFoundError:
        raise UserError(
            f"--data {folder} holds no {TFRECORD_MANIFEST}, so no TFRecords, or only a part; {_AGAIN}"
        ) from None
    except storage.FILE_ERRORS as error:
        raise UserError(f"cannot read {path}: {brief(error)}; check the path and its rights") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{brief(error)} is missing" if isinstance(error, KeyError) else brief(error)
        raise UserError(f"{path} is no manifest or is damaged ({what}); {_AGAIN}") from None


def _ask(path: str, question: Callable[[str], Any]) -> Any:
    return storage.with_timeout(path, question) if storage.is_remote(path) else question(path)


def _text(path: str) -> str:
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise ValueError(f"more than {MAX_MANIFEST_BYTES} bytes")
    return content.decode()


def _parse(text: str) -> Manifest:
    """A manifest's text, checked; ValueError, KeyError or TypeError say what is wrong."""
    content = decode(text)
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}, this program reads {VERSION}")
    parts = {part: tuple(RecordFile(**entry) for entry in content[part]) for part in ("train", "test")}
    for part, shards in parts.items():
        for shard in shards:
            if PurePosixPath(shard.file).name != shard.file:
                raise ValueError(f"file {shard.file!r} is not in the folder")
            if type(shard.images) is not int or type(shard.bytes) is not int or min(shard.images, shard.bytes) < 1:
                raise ValueError(f"{shard.file}: {shard.images!r} images in {shard.bytes!r} bytes")
        total = sum(shard.images for shard in shards)
        if total * IMAGE_BYTES > MAX_NPZ_BYTES:
            raise ValueError(f"{total} {part} images are more than {MAX_NPZ_BYTES} bytes")
        if not total or total != content[f"{part}_images"]:
            raise ValueError(f"{total} {part} images in all shards, {content[f'{part}_images']} by their number")
    classes = content["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes is no list of names")
    return Manifest(
        source=str(content["source"]),
        synthetic=bool(content["synthetic"]),
        classes=tuple(classes),
        doubt=str(content["doubt"]),
        images_sha256=str(content["images_sha256"]),
        **parts,
    )


def _read_part(
    folder: str, shards: Sequence[RecordFile], classes: int, bar: tqdm
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The shards' images and labels, once every shard is seen to be what was written."""
    _check_files(folder, shards)
    starts = np.cumsum([0, *(shard.images for shard in shards)])
    images, labels = np.empty((starts[-1], *IMAGE_SHAPE), np.uint8), np.empty(starts[-1], np.int32)
    done, digests = [0] * len(shards), [hashlib.sha256() for _ in shards]
    try:
        for number, pixels, values in _batches(folder, shards):
            first, after = starts[number] + done[number], starts[number] + done[number] + len(values)
            if after > starts[number + 1]:
                raise _not_written(folder, shards[number], f"holds more than its {shards[number].images} images")
            if values.min() < 0 or values.max() >= classes:
                raise _not_written(folder, shards[number], f"has a label that is not from 0 to {classes - 1}")
            images[first:after], labels[first:after] = pixels, values
            digests[number].update(_content(pixels, values))
            done[number] += len(values)
            bar.update(len(values))
    except tf.errors.OpError as error:
        raise _which(folder, shards, error) from None
    for shard, count, digest in zip(shards, done, digests, strict=True):
        if count != shard.images:
            raise _not_written(folder, shard, f"holds {count} of its {shard.images} images")
        if digest.hexdigest() != shard.sha256:
            raise _not_written(folder, shard, "does not hold the images that were written (sha256)")
    return images, labels


def _check_files(folder: str, shards: Sequence[RecordFile]) -> None:
    """Raises UserError for a shard that is missing or of another size."""

    def fault(shard: RecordFile) -> UserError | None:
        try:
            size = tf.io.gfile.stat(f"{folder}/{shard.file}").length
        except tf.errors.NotFoundError:
            return _not_written(folder, shard, "is missing")
        except storage.FILE_ERRORS as error:
            return _not_written(folder, shard, f"cannot be read ({brief(error)})")
        if size != shard.bytes:
            return _not_written(folder, shard, f"has {size:,} bytes instead of {shard.bytes:,}")
        return None

    with ThreadPoolExecutor(4 * READERS) as pool:  # a storage service answers each with some delay
        for error in pool.map(fault, shards):
            if error is not None:
                raise error


def _batches(folder: str, shards: Sequence[RecordFile]) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.int64]]]:
    """Number of the shard, pixels uint8 (n, 32, 32, 3) and labels int64 (n,): each shard's in their order."""

    def of_shard(path: tf.Tensor, number: tf.Tensor) -> tf.data.Dataset:
        records = tf.data.TFRecordDataset(path, compression_type="GZIP", buffer_size=BUFFER_BYTES)
        return records.batch(RECORDS_A_BATCH).map(lambda batch: (number, *_decode(batch)))

    paths = [f"{folder}/{shard.file}" for shard in shards]
    files, options = tf.data.Dataset.from_tensor_slices((paths, np.arange(len(paths)))), tf.data.Options()
    options.autotune.enabled = False  # see data.each_replica
    # Which shard's batch comes first does not matter, so no reader waits for another.
    batches = files.interleave(of_shard, cycle_length=READERS, num_parallel_calls=READERS, deterministic=False)
    return batches.with_options(options).as_numpy_iterator()


def _decode(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
    parsed = tf.io.parse_example(records, features)
    return tf.reshape(tf.io.decode_raw(parsed["image"], tf.uint8), [-1, *IMAGE_SHAPE]), parsed["label"]


def _not_written(folder: str, shard: RecordFile, what: str) -> UserError:
    return UserError(f"{folder}/{shard.file} {what}; {_AGAIN}")


def _which(folder: str, shards: Sequence[RecordFile], error: Exception) -> UserError:
    """The shard that cannot be read, which tf.data's error does not name: each is tried alone."""
    for shard in shards:
        try:
            for _ in _batches(folder, [shard]):
                pass
        except tf.errors.OpError as fault:
            return _not_written(folder, shard, f"cannot be read ({brief(fault)})")
    return UserError(f"cannot read {folder}: {brief(error)}; try again")
