"""Own images as files: train/CLASS/... and test/CLASS/..., each read by Pillow and made 32x32 (see photos.py)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lab.base.errors import UserError
from lab.images import photos
from lab.images.formats import MAX_NPZ_BYTES, PIXEL_BYTES, Arrays, check_names


def is_one(path: Path) -> bool:
    """Whether this is a folder of images by class."""
    return (path / "train").is_dir() and (path / "test").is_dir()


def read(path: Path) -> Arrays:
    """Reads it; the classes are the folders' names in train, in their order.

    Raises: UserError, without Pillow too, for a class without images or one of the test set that training has not, and
    for an image that cannot be read.
    """
    classes = check_names(_names(path / "train"), path / "train")
    if strange := sorted(set(_names(path / "test")) - set(classes)):
        raise UserError(
            f"{path / 'test'} has the class {strange[0]}, which {path / 'train'} has not; give it there too"
        )
    train, test = (_read_part(path / part, classes) for part in ("train", "test"))
    return Arrays(*train, *test, classes)


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _read_part(folder: Path, classes: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    known = [(label, name) for label, name in enumerate(classes) if (folder / name).is_dir()]
    files = [(file, label) for label, name in known for file in photos.find([folder / name])]
    if not files or len(files) * PIXEL_BYTES > MAX_NPZ_BYTES:
        raise UserError(f"{folder} has {len(files)} images, the limits are 1 and {MAX_NPZ_BYTES // PIXEL_BYTES}")
    images = [photos.read(file) for file, _ in tqdm(files, unit="images", desc="reading", leave=False, disable=None)]
    return np.stack(images), np.array([label for _, label in files], np.int32)
