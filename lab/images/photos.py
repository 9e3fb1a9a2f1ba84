"""Image files of any size as the 32x32 pixels that a network takes.

An image is turned as its EXIF data says, cut to the square in its middle, and brought to 32x32 by bicubic
interpolation over all pixels that a new one covers (antialiased). One of 32x32 stays as it is, pixel by pixel.
Grey becomes RGB; transparency is left out; of a GIF the first frame counts.
"""

import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lab.base.errors import UserError

SIDE = 32
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")  # that count in a folder; what a file is, its bytes say
MAX_PIXELS = 50_000_000
MAX_BYTES = 4 * MAX_PIXELS + 2**20  # uncompressed, with transparency, and some room for a header
BMP_MASKS = (0xFF0000, 0xFF00, 0xFF)  # of red, green and blue, in the only order that is decoded


def find(names: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files, and of folders all those below them that end like images, in the order of their names.

    Raises UserError for a folder without images, or that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; give a folder that can be read")

    paths: list[Path] = []
    for path in map(Path, names):
        if not os.path.isdir(path):
            paths.append(path)
            continue
        below = [
            Path(folder, name)
            for folder, _, files in os.walk(path, onerror=refuse)
            for name in files
            if name.lower().endswith(SUFFIXES)
        ]
        if not below:
            raise UserError(f"{path} holds no image; give a folder with {', '.join(SUFFIXES)} files")
        paths += sorted(below)
    return paths


def read(path: Path) -> NDArray[np.uint8]:
    """An image file as the network takes it: uint8 (32, 32, 3), red-green-blue.

    Raises UserError, one line, for a file that is missing, damaged, too large, or no PNG, JPEG, BMP or GIF.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UserError(f"{path} is no file; give an image")
        if size > MAX_BYTES:
            raise UserError(f"{path} has {size} bytes, the limit is {MAX_BYTES}; save it smaller")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}; give an image file") from None
    try:
        return fit(decode(content))
    except (ValueError, struct.error, tf.errors.OpError) as error:
        # less the names of TensorFlow's own parts
        reason = re.sub(r"{{.*?}} ?| ?\[Op:.*?\]", "", str(error))
        raise UserError(f"{path}: {reason}; give a whole PNG, JPEG, BMP or GIF file") from None


def decode(content: bytes) -> NDArray[np.uint8]:
    """The pixels of a PNG, JPEG, BMP or GIF, upright: uint8 (H, W, 3).

    Raises ValueError, struct.error or tf.errors.OpError for anything else.
    """
    channels, orientation = 3, 1
    if content.startswith(b"\x89PNG\r\n\x1a\n") and content[12:16] == b"IHDR":
        width, height = struct.unpack_from(">II", content, 16)
    elif content.startswith((b"GIF87a", b"GIF89a")):
        width, height = struct.unpack_from("<HH", content, 6)
    elif content.startswith(b"\xff\xd8\xff"):
        height, width = tf.io.extract_jpeg_shape(content).numpy()[:2]
        orientation = _orientation(content)
    elif content.startswith(b"BM"):
        width, height, channels = _bmp_header(content)
    else:
        raise ValueError("it is no image of a known kind")
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, the limit is {MAX_PIXELS}")
    pixels = tf.io.decode_image(content, channels=channels, expand_animations=False).numpy()
    return _turn(pixels[..., :3], orientation)


def fit(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) -> (32, 32, 3): the square in the middle, resized."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == SIDE:
        return square
    resized = tf.image.resize(square, [SIDE, SIDE], "bicubic", antialias=True).numpy()
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def _bmp_header(content: bytes) -> tuple[int, int, int]:
    """Width, height and channels; a ValueError for what TensorFlow would decode to wrong colours."""
    header, width, height, _, bits, compression = struct.unpack_from("<IiiHHI", content, 14)
    plain = compression == 0 or (compression == 3 and struct.unpack_from("<III", content, 54) == BMP_MASKS)
    if header < 40 or bits not in (24, 32) or not plain:
        raise ValueError("it is a BMP with a palette, compression or another order of colours")
    return width, abs(height), bits // 8


def _orientation(content: bytes) -> int:
    """How EXIF says that a JPEG lies, 1 to 8; 1, upright, where it says nothing (EXIF 2.3, tag 0x0112)."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:  # up to the pixels
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if content[at + 1] == 0xE1 and content[at + 4 : at + 10] == b"Exif\0\0":
            return _tiff_orientation(content[at + 10 : end])
        at = end
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, first)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, first + 2 + 12 * entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # EXIF data is often damaged, and the pixels are not
        pass
    return 1


def _turn(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The image upright."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
