"""Image files of any kind and size, read by Pillow, as the 32x32 pixels that a network takes.

An image is turned as its EXIF data says, cut to the square in its middle, and brought to 32x32 by bicubic
interpolation over all pixels that a new one covers (antialiased). One of 32x32 stays as it is, pixel by pixel.
Grey, palettes and CMYK become RGB, 16 bits become 8; transparency is left out; the first of several frames counts.
"""

import contextlib
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.base.errors import UserError, brief

SIDE = 32
MAX_PIXELS = 50_000_000
MAX_BYTES = 4 * MAX_PIXELS + 2**20  # uncompressed, with transparency, and some room for a header
# What is opened, by Pillow's names; it knows more, some of which start other programs. HEIF needs a plugin.
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "HEIF")
# That count in a folder; what a file is, its bytes say.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".avif", ".heic", ".heif"),
)
HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")  # ISO 23008-12's brands
WHOLE = ((0, 0, 1, 1),)  # a PNG's pixels at once, and interlaced: first column and row, steps between columns and rows
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PIECE = 2**20  # bytes unpacked at once
TURNED = 0x0112  # EXIF's tag for how an image lies, 1 to 8


def find(names: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files, and of folders all those below them that end like images, in the order of their names.

    Raises UserError for a folder without images, or that cannot be read, for an address, and without Pillow.
    """
    _pillow()  # once for all files

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; give a folder that can be read")

    paths: list[Path] = []
    for name in names:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(name)) and not os.path.exists(name):
            raise UserError(f"{name} is an address, and nothing is fetched; download it and give the file")
        path = Path(name)
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

    Raises UserError, one line, for a file that is missing, damaged, too large, or of no known kind; and without Pillow.
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
    except ValueError as error:
        raise UserError(f"{path}: {error}; give a whole image, such as a PNG or JPEG file") from None


def decode(content: bytes) -> NDArray[np.uint8]:
    """The pixels of an image file, upright: uint8 (H, W, 3).

    Raises ValueError, in a few words, for anything else, and UserError without Pillow.
    """
    pillow = _pillow()
    if content[4:8] == b"ftyp" and content[8:12] in HEIC and "HEIF" not in pillow.OPEN:
        raise ValueError("it is HEIC, which needs a plugin: pip install pillow-heif")
    formats = [name for name in FORMATS if name in pillow.OPEN]
    try:
        with _held_back():
            with pillow.open(io.BytesIO(content), formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"it has {image.width} x {image.height} pixels, the limit is {MAX_PIXELS}")
                image.verify()  # PNG's checksums, which reading passes over
            with pillow.open(io.BytesIO(content), formats=formats) as image:
                image.load()
                if image.format == "PNG":
                    _check_rows(content)
                return _turn(_rgb(image), _orientation(image))
    except pillow.DecompressionBombError:
        raise ValueError(f"it has too many pixels, the limit is {MAX_PIXELS}") from None
    except pillow.UnidentifiedImageError:
        raise ValueError("it is no image of a known kind, or damaged") from None
    except Exception as error:  # whatever some decoder makes of damaged bytes
        raise ValueError(brief(error)) from None


def fit(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) -> (32, 32, 3): the square in the middle, resized."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == SIDE:
        return square
    pillow = _pillow()
    # Channel by channel in floating point: of 8 bits Pillow would round the rows before it joins the columns.
    channels = [pillow.fromarray(np.ascontiguousarray(square[..., channel])).convert("F") for channel in range(3)]
    resized = [np.asarray(channel.resize((SIDE, SIDE), pillow.Resampling.BICUBIC)) for channel in channels]
    return np.clip(np.rint(np.stack(resized, axis=-1)), 0, 255).astype(np.uint8)


def _pillow() -> Any:
    """Pillow's module Image, all its formats known, and HEIF where pillow-heif is. Raises UserError without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError("images need Pillow; try: pip install Pillow") from None
    Image.init()
    if "HEIF" not in Image.OPEN:
        with contextlib.suppress(ImportError):
            from pillow_heif import register_heif_opener

            register_heif_opener()
    return Image


def _check_rows(content: bytes) -> None:
    """Raises ValueError for a whole PNG whose compressed pixels end before the last row, which Pillow leaves black.

    What has to be there: W3C's PNG specification, 7.2 (rows) and 8.2 (interlacing's seven passes).
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    bits = depth * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in (ADAM7 if interlaced else WHOLE)]
    missing = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)
    stream, at = zlib.decompressobj(), 8
    while missing > 0 and at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        piece = content[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        while piece and missing > 0:
            missing -= len(stream.decompress(piece, PIECE))
            piece = stream.unconsumed_tail
        at += 12 + length
    if missing > 0:
        raise ValueError("its pixels end before the last row")


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Within it, what Pillow and the C libraries below it write to stderr about damage goes nowhere; we say it."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _rgb(image: Any) -> NDArray[np.uint8]:
    """A Pillow image as uint8 (H, W, 3). Raises ValueError for pixels of 32 bits, whose range is not known."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # grey of 16 bits
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of 32 bits, whose range is not known")
    return np.array(image.convert("RGB"))


def _orientation(image: Any) -> int:
    """How EXIF says that an image lies, 1 to 8; 1, upright, where it says nothing (EXIF 2.3, tag 0x0112)."""
    try:
        value = image.getexif().get(TURNED, 1)
    except Exception:  # EXIF data is often damaged, and the pixels are not
        return 1
    return value if value in range(1, 9) else 1


def _turn(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The image upright."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
