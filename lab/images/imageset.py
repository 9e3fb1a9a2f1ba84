"""A data set in memory, with where it is from and a checksum."""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images uint8 (N, 32, 32, 3), red-green-blue, and labels int32 (N,) from 0 to len(classes) - 1.

    The attributes are those of the core's data.Images, and three more: `source` names where the images are from,
    without its folder, for the user and the record; `synthetic` is true for made-up images; `doubt` says why they may
    not be the published ones (formats.doubt), if so. With a held-out part, the `test_` arrays are that part and
    `source` says so.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int32]
    classes: tuple[str, ...]
    source: str
    synthetic: bool
    doubt: str = ""

    @functools.cached_property
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
            digest.update(np.ascontiguousarray(array, dtype).reshape(-1).data)
        return digest.hexdigest()
