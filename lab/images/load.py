"""Finding, verifying and preparing the images. NumPy only.

    python -m lab.images.load --preview sheet.png                       # training images as the network sees them
    python -m lab.images.load --preview sheet.png --recipe speedrun --seed 3 --data PATH
    python -m lab.images.load --data PATH --to-tfrecord FOLDER          # compressed records; storage such as gs:// too

The one-time work is here: reading (lab/images/formats.py), downloading (lab/images/download.py), subsets, the
training set's statistics, standardisation and padding.
"""

import argparse
import hashlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab import options as settings
from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.images import download, formats
from lab.images.imagefile import ImageFile, Images

SYNTHETIC_TRAIN = 10_000  # images, as many of each class
SYNTHETIC_TEST = 2_000
SYNTHETIC_CLASSES = (
    "disc",
    "ring",
    "square",
    "frame",
    "triangle",
    "plus",
    "cross",
    "rows",
    "columns",
    "checks",
)

# Every use of the seed draws from a stream of its own, so that one option does not change another's choice.
_STREAM_SYNTHETIC, _STREAM_HOLDOUT, _STREAM_TRAIN, _STREAM_TEST = range(4)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images uint8 (N, 32, 32, 3), red-green-blue, and labels int32 (N,) from 0 to len(classes) - 1.

    `source` names where they are from, without its folder, for the user and the record; `synthetic` is true
    for made-up images; `doubt` says why they may not be the published ones (formats.doubt), if so. With a
    held-out part, the `test_` arrays are that part and `source` says so. The training images may be in a file
    instead of memory.
    """

    train_images: Images
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int32]
    classes: tuple[str, ...]
    source: str
    synthetic: bool
    doubt: str = ""

    def sha256(self) -> str:
        """Hexadecimal checksum of the four arrays: dtypes, shapes and bytes, whatever they were read from."""
        digest = hashlib.sha256()
        for array, dtype in (
            (self.train_images, "|u1"),
            (self.train_labels, "<i4"),
            (self.test_images, "|u1"),
            (self.test_labels, "<i4"),
        ):
            digest.update(f"{dtype} {array.shape};".encode())
            for start in range(0, len(array), 1_000):  # what is in a file may not fit in memory
                part = np.ascontiguousarray(array[start : start + 1_000], dtype)
                digest.update(part.reshape(-1).data)
        return digest.hexdigest()


def load(
    path: str | None,
    *,
    seed: int,
    limit_train: int = 0,
    limit_test: int = 0,
    holdout: int = 0,
    scratch: str | None = None,
) -> ImageSet:
    """Reads, makes or downloads the images, then takes the subsets asked for.

    Args:
        path: a folder that is or holds cifar-10-batches-py or cifar-10-batches-bin, the .tar.gz of either,
            an .npz (see formats.read_npz), a folder or storage path of TFRecords (see lab/images/tfrecords.py), or the
            word "synthetic" (a folder of that name is "./synthetic"). None: ./data, then Keras' cache, then a
            download to ./data.
        seed: 0 or more; chooses the subsets and makes the synthetic images.
        limit_train: how many training images to keep, class-balanced; 0 keeps all.
        limit_test: likewise for the test images, or for the held-out ones.
        holdout: how many training images to hold out, stratified by class; they take the place of the test
            set. 0 holds none out.
        scratch: for TFRecords: a folder on a local disk, from which the training images are then read.

    Raises: UserError, one line, for a bad path, file or number.
    """
    for name, value in (
        ("seed", seed),
        ("limit_train", limit_train),
        ("limit_test", limit_test),
        ("holdout", holdout),
    ):
        if value < 0:
            raise UserError(f"{name} {value} is negative; give 0 or more")
    if path and path != "synthetic" and tfrecord_path(path):
        images = from_tfrecord(path, scratch)
    elif scratch:
        raise UserError(f"--scratch {scratch} is for TFRecords, which --data does not name; leave it out")
    else:
        images = synthetic(seed) if path == "synthetic" else _read(path)
    if holdout:
        images = _hold_out(images, holdout, seed)
    return _limit(images, limit_train, limit_test, seed)


def _read(path: str | None) -> ImageSet:
    if path is None:
        found = _find() or _download(Path("data"))
    elif path.strip():
        found = Path(os.path.expanduser(path))
    else:
        raise UserError("--data is empty; give a folder, a .tar.gz, an .npz or the word synthetic")
    arrays, doubt = formats.read(found), formats.doubt(found)
    return ImageSet(*arrays, source=found.resolve().name, synthetic=False, doubt=doubt)


def _find() -> Path | None:
    """The first complete copy in ./data or in Keras' cache."""
    # keras/src/datasets/cifar10.py unpacks to cifar-10-batches-py-target/, before Keras 3 to the cache itself
    keras = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")) / "datasets"
    for folder in (Path("data"), keras, keras / f"{formats.PYTHON.folder}-target"):
        found = formats.locate(folder)
        if found is not None:
            return found[0]
    archive = keras / f"{formats.PYTHON.folder}.tar.gz"
    return archive if archive.is_file() else None


def _download(folder: Path) -> Path:
    archive = download.fetch(
        download.CIFAR10_URLS,
        folder / formats.PYTHON.archive,
        md5=formats.PUBLISHED_MD5[formats.PYTHON.archive],
        size=download.CIFAR10_BYTES,
    )
    return download.safe_extract(archive, folder, folder=formats.PYTHON.folder, files=formats.PYTHON.files)


# --- subsets -------------------------------------------------------------------------------------------


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


def _only(images: Images, chosen: NDArray[np.intp]) -> Images:
    return images.only(chosen) if isinstance(images, ImageFile) else images[chosen]


def _hold_out(images: ImageSet, count: int, seed: int) -> ImageSet:
    available = len(images.train_labels)
    if count >= available:
        raise UserError(
            f"holdout {count} leaves nothing of {available} training images; give at most {available - 1}"
        )
    rest, held_out = stratified_split(images.train_labels, count, seed, _STREAM_HOLDOUT)
    return replace(
        images,
        train_images=_only(images.train_images, rest),
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
            changes[f"{part}_images"] = _only(getattr(images, f"{part}_images"), chosen)
            changes[f"{part}_labels"] = labels[chosen]
    return replace(images, **changes)


# --- TFRecords -----------------------------------------------------------------------------------------


def tfrecord_path(path: str) -> bool:
    """Whether a path is to be read as TFRecords: a folder with their manifest, or on storage (gs://...)."""
    return "://" in path or os.path.isfile(os.path.join(os.path.expanduser(path), formats.TFRECORD_MANIFEST))


def from_tfrecord(path: str, scratch: str | None = None) -> ImageSet:
    """Reads TFRecords; see tfrecords.read."""
    from lab.images import tfrecords  # it needs TensorFlow, which this module does without

    arrays, manifest = tfrecords.read(os.path.expanduser(path), scratch)
    images = ImageSet(
        *arrays,
        source=f"{manifest.source}, from TFRecords",
        synthetic=manifest.synthetic,
        doubt=manifest.doubt,
    )
    # Every shard may be whole, but they are not those, or not in that order.
    if images.sha256() != manifest.images_sha256:
        raise UserError(
            f"--data {path} does not hold the images that {formats.TFRECORD_MANIFEST} says; write it anew"
        )
    return images


def to_tfrecord(images: ImageSet, folder: str) -> None:
    """Writes TFRecords; see tfrecords.write."""
    from lab.images import tfrecords

    mean, std = mean_std(images.train_images)
    tfrecords.write(
        os.path.expanduser(folder),
        formats.Arrays(
            images.train_images, images.train_labels, images.test_images, images.test_labels, images.classes
        ),
        {
            "source": images.source,
            "synthetic": images.synthetic,
            "doubt": images.doubt,
            "images_sha256": images.sha256(),
            "mean": mean.tolist(),
            "std": std.tolist(),
        },
    )


# --- a set made on the spot ----------------------------------------------------------------------------


def synthetic(seed: int) -> ImageSet:
    """Makes 10,000 training and 2,000 test images of ten shapes, as many of each.

    Place, size, tilt, colours, contrast, background slope and noise are random and say nothing about the
    class, and a shape is as often darker as brighter than its background: pixels and mean colours alone do
    not tell the classes apart, shapes do.

    Args:
        seed: 0 or more.
    """
    generator = np.random.default_rng([seed, _STREAM_SYNTHETIC])
    labels = np.concatenate(
        [generator.permutation(np.arange(n) % 10) for n in (SYNTHETIC_TRAIN, SYNTHETIC_TEST)]
    ).astype(np.int32)
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    for start in range(0, len(labels), 2_000):  # a bound on the memory
        part = slice(start, start + 2_000)
        images[part] = _draw(labels[part], generator)
    return ImageSet(
        images[:SYNTHETIC_TRAIN],
        labels[:SYNTHETIC_TRAIN],
        images[SYNTHETIC_TRAIN:],
        labels[SYNTHETIC_TRAIN:],
        SYNTHETIC_CLASSES,
        source=f"synthetic shapes (seed {seed}), not CIFAR-10",
        synthetic=True,
    )


def _draw(labels: NDArray[np.int32], generator: np.random.Generator) -> NDArray[np.uint8]:
    n = len(labels)

    def draw(low: float, high: float, *shape: int) -> NDArray[np.float32]:
        return generator.uniform(low, high, (n, *shape)).astype(np.float32)

    y, x = np.mgrid[0:32, 0:32].astype(np.float32)  # pixels, (32, 32) each
    centre_x, centre_y, tilt = draw(10, 22, 1, 1), draw(10, 22, 1, 1), draw(-0.25, 0.25, 1, 1)  # (n, 1, 1)
    scale = 1 / draw(6, 11, 1, 1)  # 1 / half the shape's width in pixels
    u = scale * (np.cos(tilt) * (x - centre_x) + np.sin(tilt) * (y - centre_y))  # (n, 32, 32)
    v = scale * (np.cos(tilt) * (y - centre_y) - np.sin(tilt) * (x - centre_x))
    inside = np.empty((n, 32, 32, 1), np.float32)
    for label in range(10):
        members = labels == label
        inside[members, :, :, 0] = _shape(label, u[members], v[members])

    background = draw(70, 185, 1, 1, 3)
    slope = draw(-1.5, 1.5, 1, 1, 3) * (x[..., None] - 15.5) + draw(-1.5, 1.5, 1, 1, 3) * (
        y[..., None] - 15.5
    )
    direction = generator.standard_normal((n, 1, 1, 3), np.float32)  # of the colour difference, (n, 1, 1, 3)
    contrast = draw(50, 130, 1, 1, 1) * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    noise = draw(8, 28, 1, 1, 1) * generator.standard_normal((n, 32, 32, 3), np.float32)
    return np.clip(background + slope + contrast * inside + noise, 0, 255).astype(np.uint8)


def _shape(label: int, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the points (u, v), in half-widths from the centre, are inside the shape."""
    radius, side = np.hypot(u, v), np.maximum(abs(u), abs(v))
    arm = np.minimum(abs(u), abs(v))
    diagonal = np.minimum(abs(u + v), abs(u - v))
    row, column = np.floor(2.5 * v) % 2 == 0, np.floor(2.5 * u) % 2 == 0
    match SYNTHETIC_CLASSES[label]:
        case "disc":
            return radius < 1
        case "ring":
            return (radius > 0.55) & (radius < 1)
        case "square":
            return side < 0.9
        case "frame":
            return (side > 0.5) & (side < 0.9)
        case "triangle":
            return (v < 0.8) & (abs(u) < 0.55 * (v + 1))
        case "plus":
            return (arm < 0.25) & (side < 1)
        case "cross":
            return (diagonal < 0.35) & (side < 0.8)
        case "rows":
            return row & (side < 1)
        case "columns":
            return column & (side < 1)
        case _:
            return (row ^ column) & (side < 1)


# --- one-time preparation ------------------------------------------------------------------------------


def mean_std(images: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population deviation of each channel, on the 0 to 1 scale, from exact integer sums.

    Args:
        images: uint8 (N, H, W, 3).

    Returns: float64 (3,) and (3,). A channel with a single value has deviation 0.
    """
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), 1_000):  # bincount makes 8 bytes of every pixel
        part = images[start : start + 1_000]
        for channel in range(3):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    values = np.arange(256)
    n = counts.sum(axis=1)
    mean = counts @ values / n
    # exact in integers: the variance times n squared, in Python's numbers, which do not overflow
    spread = [
        int(k) * int(q) - int(s) ** 2 for k, q, s in zip(n, counts @ values**2, counts @ values, strict=True)
    ]
    return mean / 255, np.sqrt(np.array(spread, np.float64)) / n / 255


def standardise(
    images: NDArray[np.uint8], mean: NDArray[np.floating], std: NDArray[np.floating]
) -> NDArray[np.float32]:
    """(images / 255 - mean) / std.

    Args:
        images: uint8 (N, H, W, 3).
        mean: (3,), on the 0 to 1 scale; with `std` from mean_std of the training images.
        std: (3,), above 0.

    Returns: float32 (N, H, W, 3).

    Raises: UserError when a deviation is 0.
    """
    if not np.all(np.asarray(std) > 0):
        raise UserError(f"a channel's deviation is {np.min(std):g}, not above 0; give images that differ")
    scale = (1 / (255 * np.asarray(std, np.float64))).astype(np.float32)
    shift = (np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32)
    result = images * scale
    result -= shift
    return result


def reflect_pad(images: NDArray[Any], pad: int) -> NDArray[Any]:
    """Mirrors the images at their borders, the border pixels themselves not repeated.

    Args:
        images: any dtype (N, H, W, C).
        pad: pixels on every side, 0 to min(H, W) - 1.

    Returns: the same dtype (N, H + 2 pad, W + 2 pad, C).

    Raises: UserError when `pad` is out of range.
    """
    limit = min(images.shape[1:3]) - 1
    if not 0 <= pad <= limit:
        raise UserError(f"pad {pad} is out of range; give 0 to {limit}")
    return np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")


# --- python -m lab.images.load ------------------------------------------------------------------------------


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    preview, folder = options.pop("preview", None), options.pop("to_tfrecord", None)
    if folder is not None:
        _convert(options, folder)
    else:
        _preview(options, preview)
    return 0


def _parser() -> Parser:
    parser = Parser(description="Shows or converts a data set.", allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--preview", metavar="FILE", type=Path, help="draw training images as the network sees them"
    )
    what.add_argument("--to-tfrecord", metavar="DIR", help="write TFRecords to this new folder, gs:// too")
    for name in ("data", "seed", "recipe", "batch_size", "pad", "flip", "cutout"):
        kind = settings.Settings.__annotations__[name]
        about = settings.Settings.__dataclass_fields__[name].metadata["about"]
        default = argparse.SUPPRESS  # train_eager.py's
        parser.add_argument(
            settings.flag(name), type=kind, metavar=kind.__name__.upper(), default=default, help=about
        )
    return parser


def _preview(options: dict[str, Any], path: Path) -> None:
    from lab import preview  # here, for it needs TensorFlow

    preview.write(path, options)
    print(f"wrote {path}")


def _convert(options: dict[str, Any], folder: str) -> None:
    from lab.images import tfrecords  # here, for it needs TensorFlow

    for name in options:
        if name not in ("data", "seed"):
            raise UserError(
                f"{settings.flag(name)} is for --preview; --to-tfrecord keeps the images as they are"
            )
    tfrecords.check_new(os.path.expanduser(folder))  # before a download
    images = load(options.get("data"), seed=options.get("seed", 0))
    to_tfrecord(images, folder)
    print(
        f"wrote {len(images.train_labels):,} training and {len(images.test_labels):,} test images to {folder}"
    )


if __name__ == "__main__":
    sys.exit(main())
