"""Images in a file on a local disk, read a few at a time, for sets larger than the memory. NumPy only."""

import itertools
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lab.base.errors import UserError
from lab.runs.record import CANNOT_WRITE

IMAGE_SHAPE = (32, 32, 3)
IMAGE_BYTES = 32 * 32 * 3


class _Descriptor:
    """An open file's number; closed when the last ImageFile that has it is gone."""

    def __init__(self, number: int) -> None:
        self.number = number
        weakref.finalize(self, os.close, number)


class ImageFile:
    """Images uint8 (N, 32, 32, 3) in a file, for what reads an array by slices or by numbers of images.

    The file has no name: it goes with the process, however that ends, so no other run can find an old or half
    one. It is read and not mapped into memory, since mapped pages count as the process's own until the system
    takes them back, and then no one can say how much memory a run needs.

    Args:
        folder: on a local disk, where the file goes.
        count: images; set them with `file[start:stop] = images` before reading.

    Raises:
        UserError: if the folder cannot be written or has no room for them.
    """

    def __init__(self, folder: str, count: int) -> None:
        size, path = count * IMAGE_BYTES, Path(folder).expanduser()
        try:
            free = shutil.disk_usage(path).free
            if free < size:
                raise UserError(
                    f"--scratch {folder} has {free / 2**30:.2f} GiB free, the images need {size / 2**30:.2f}; "
                    "free the disk, or give another folder",
                    exit_code=CANNOT_WRITE,
                )
            with tempfile.TemporaryFile(dir=path) as file:
                self.file = _Descriptor(os.dup(file.fileno()))
        except OSError as error:
            raise UserError(
                f"cannot write --scratch {folder}: {error.strerror}; give a folder on a local disk",
                exit_code=CANNOT_WRITE,
            ) from None
        self.rows = np.arange(count)  # numbers in the file, int64 (N,)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.rows), *IMAGE_SHAPE)

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, rows: NDArray[np.integer]) -> "ImageFile":
        """These images alone, in this order, still in the same file."""
        part = object.__new__(ImageFile)
        part.file, part.rows = self.file, self.rows[rows]
        return part

    def __getitem__(self, which: slice | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Reads images: uint8 (n, 32, 32, 3)."""
        rows = self.rows[which]
        images = np.empty((len(rows), *IMAGE_SHAPE), np.uint8)
        # One read for each stretch of neighbours: a slice is one, a shuffled batch as many as it has images.
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for start, stop in itertools.pairwise([0, *breaks.tolist(), len(rows)]):
            if stop > start:
                self._read(images[start:stop], int(rows[start]) * IMAGE_BYTES)
        return images

    def __setitem__(self, which: slice, images: NDArray[np.uint8]) -> None:
        """Writes images uint8 (n, 32, 32, 3) to neighbouring places; the file is a whole one, not a part."""
        view = np.ascontiguousarray(images).reshape(-1).data
        offset = int(self.rows[which][0]) * IMAGE_BYTES
        try:
            while view:
                written = os.pwrite(self.file.number, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise UserError(
                f"cannot write to --scratch: {error.strerror}; free the disk, or give another folder",
                exit_code=CANNOT_WRITE,
            ) from None

    def _read(self, images: NDArray[np.uint8], offset: int) -> None:
        view = images.reshape(-1).data
        while view:
            count = os.preadv(self.file.number, [view], offset)
            if not count:
                raise EOFError(f"byte {offset} of the scratch file was never written")
            view, offset = view[count:], offset + count


Images = NDArray[np.uint8] | ImageFile  # uint8 (N, 32, 32, 3), in memory or in a file
