"""Reading CIFAR-10's file formats, and .npz files of the same shape, as untrusted input. NumPy only."""

import io
import os
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.base.errors import UserError, brief
from lab.base.files import sum_of
from lab.images import pickles
from lab.images.pickles import AGAIN, shown

IMAGES_PER_FILE = 10_000  # of the published data set, in every batch file
PIXEL_BYTES = 3 * 32 * 32
MAX_CLASSES = 10
MOST_CLASSES = 1000  # of own data
LARGEST_HEADER = 500  # bytes, of an array in an .npz
TFRECORD_MANIFEST = "tfrecords.json"  # see lab/images/tfrecords.py

# Bounds that are checked before anything is read into memory.
MAX_FILE_BYTES = 1 << 26  # a batch file has about 31 MB
MAX_TAR_BYTES = 1 << 28  # an unpacked archive has about 186 MB
MAX_ARCHIVE_BYTES = 1 << 28  # it has 170 MB
MAX_MEMBERS, MAX_CHAIN, MAX_HEADER_BYTES = 1000, 4, 1 << 13  # it has 9, and no header about another
MAX_NPZ_BYTES = 1 << 32  # 1.4 million images

# md5 of the published files: the archives' from their home page, https://www.cs.toronto.edu/~kriz/cifar.html, the
# batches' as torchvision compares them (torchvision/datasets/cifar.py).
PUBLISHED_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
}

Rows = tuple[NDArray[np.uint8], NDArray[np.int32]]  # (N, 3072), red, green and blue planes, and labels (N,)


class Arrays(NamedTuple):
    """Images uint8 (N, 32, 32, 3), labels int32 (N,) from 0 to len(classes) - 1, and the classes' names."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int32]
    classes: tuple[str, ...]


# ---- the "python version": pickles -------------------------------------------------------------------------


def _decode_python(data: bytes, name: str) -> Rows:
    batch = pickles.load(data, name)
    if "data" not in batch or "labels" not in batch:
        raise ValueError("'data' or 'labels' is missing")
    labels = batch["labels"]
    # bool is an int to isinstance, and a label beyond int32 must not reach NumPy.
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < MAX_CLASSES for label in labels):
        raise ValueError(f"'labels' is no list of whole numbers from 0 to {MAX_CLASSES - 1}")
    return pickles.uint8_matrix(batch["data"], PIXEL_BYTES), np.array(labels, np.int32)


def _python_names(data: bytes, name: str) -> tuple[str, ...]:
    names = pickles.load(data, name).get("label_names")
    if not isinstance(names, list) or not all(isinstance(item, bytes | str) for item in names):
        raise UserError(f"{name}: 'label_names' is no list of names; {AGAIN}")
    return tuple(pickles.text(item) for item in names)


# ---- the "binary version" ----------------------------------------------------------------------------------


def _decode_binary(data: bytes, name: str) -> Rows:
    """Records of one label byte and 3072 pixels, red, green and blue planes."""
    record = 1 + PIXEL_BYTES
    if not data or len(data) % record:
        raise ValueError(f"{len(data)} bytes are no whole number of {record}-byte records")
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    return records[:, 1:], records[:, 0].astype(np.int32)


def _binary_names(data: bytes, name: str) -> tuple[str, ...]:
    return tuple(data.decode("latin1").split())


# ---- what both versions share ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The files of one version of the data set, and how to read one."""

    folder: str
    train_files: tuple[str, ...]
    test_file: str
    names_file: str
    archive: str
    decode: Callable[[bytes, str], Rows]
    decode_names: Callable[[bytes, str], tuple[str, ...]]

    @property
    def files(self) -> tuple[str, ...]:
        """All files, that of the classes' names included."""
        return (*self.train_files, self.test_file, self.names_file)


PYTHON = Layout(
    folder="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test_file="test_batch",
    names_file="batches.meta",
    archive="cifar-10-python.tar.gz",
    decode=_decode_python,
    decode_names=_python_names,
)
BINARY = Layout(
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test_file="test_batch.bin",
    names_file="batches.meta.txt",
    archive="cifar-10-binary.tar.gz",
    decode=_decode_binary,
    decode_names=_binary_names,
)
LAYOUTS = (PYTHON, BINARY)


def decode(layout: Layout, data: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A batch file's images (N, 32, 32, 3) and labels (N,); UserError, with its name, for anything wrong in it."""
    try:
        rows, labels = layout.decode(data, name)
        if len(rows) != IMAGES_PER_FILE or len(labels) != IMAGES_PER_FILE:
            raise ValueError(f"{len(rows)} images and {len(labels)} labels instead of {IMAGES_PER_FILE} each")
        if labels.max() >= MAX_CLASSES:
            raise ValueError(f"label {labels.max()}, the limit is {MAX_CLASSES - 1}")
    except ValueError as error:
        raise UserError(f"{name}: {brief(error)}; {AGAIN}, or give own data as .npz") from error
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _assemble(layout: Layout, where: str, read: Callable[[str], bytes]) -> Arrays:
    """Reads every file of a layout; `read` takes a file's name, `where` goes before it in messages."""
    train_images = np.empty((len(layout.train_files) * IMAGES_PER_FILE, 32, 32, 3), np.uint8)
    train_labels = np.empty(len(train_images), np.int32)
    for i, name in enumerate(layout.train_files):
        part = slice(i * IMAGES_PER_FILE, (i + 1) * IMAGES_PER_FILE)
        train_images[part], train_labels[part] = decode(layout, read(name), f"{where}/{name}")
    test_images, test_labels = decode(layout, read(layout.test_file), f"{where}/{layout.test_file}")
    names = layout.decode_names(read(layout.names_file), f"{where}/{layout.names_file}")
    if len(names) != MAX_CLASSES:
        raise UserError(f"{where}/{layout.names_file}: {len(names)} names instead of 10; {AGAIN}")
    names = check_names(names, Path(where, layout.names_file))
    return Arrays(train_images, train_labels, np.ascontiguousarray(test_images), test_labels, names)


def _cannot_read(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or error}; check the path and its rights")


def _read_file(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > limit:
            raise UserError(f"{path} has {size} bytes, the limit is {limit}; {AGAIN}")
        return path.read_bytes()
    except OSError as error:
        raise _cannot_read(path, error) from error


def missing_files(folder: Path, layout: Layout) -> list[str]:
    """The names of the files of `layout` that `folder` lacks."""
    return [name for name in layout.files if not (folder / name).is_file()]


def read_folder(folder: Path, layout: Layout) -> Arrays:
    """Reads an unpacked version of CIFAR-10: 50,000 training and 10,000 test images.

    Raises: UserError that names the file and what is wrong: missing, truncated, damaged, too large, wrong
    shapes, dtypes, counts or labels.
    """
    missing = missing_files(folder, layout)
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}; unpack the archive again")
    return _assemble(layout, str(folder), lambda name: _read_file(folder / name, MAX_FILE_BYTES))


def read_archive(path: Path) -> Arrays:
    """Reads the .tar.gz of either version, in memory: nothing is unpacked to the disk.

    Raises: UserError as read_folder does, and for an archive that is truncated, damaged or of something else.
    """
    known = {f"{layout.folder}/{name}" for layout in LAYOUTS for name in layout.files}
    members = archive_members(path, known)
    for layout in LAYOUTS:
        prefix = f"{layout.folder}/"
        contents = {name: members[prefix + name] for name in layout.files if prefix + name in members}
        if layout.test_file not in contents:
            continue
        where = f"{path}: {layout.folder}"
        if missing := [name for name in layout.files if name not in contents]:
            raise UserError(f"{where} lacks {', '.join(missing)}; {AGAIN}")
        return _assemble(layout, where, contents.__getitem__)
    raise UserError(f"{path} holds neither {PYTHON.folder} nor {BINARY.folder}; give CIFAR-10's archive")


def archive_members(path: Path, known: Collection[str]) -> dict[str, bytes]:
    """The contents of a .tar.gz's regular files whose paths in it are `known`; others are left alone.

    Raises: UserError for an archive that is truncated or damaged, or holds what no honest one does: a path that leads
    out of its folder, a link or device, a known file twice, or more files or bytes than CIFAR-10 has.
    """
    members: dict[str, bytes] = {}
    try:
        data = _gunzip(_read_file(path, MAX_ARCHIVE_BYTES))
        _check_headers(data)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                name = str(PurePosixPath(member.name))
                if wrong := _wrong_member(member, name in members):
                    raise UserError(f"{path}: member {member.name[:100]!r} {wrong}; {AGAIN}")
                content = tar.extractfile(member) if name in known else None
                if content is not None:  # as it is for a folder
                    members[name] = content.read()
    except UserError:
        raise
    except Exception as error:  # zlib's and tarfile's own, and what damaged headers make of them
        raise UserError(f"{path} is truncated, damaged or no .tar.gz ({brief(error)}); {AGAIN}") from error
    return members


def _gunzip(data: bytes) -> bytes:
    """What one gzip stream holds, its checksum compared; ValueError or zlib.error if it is not whole or too large."""
    stream = zlib.decompressobj(wbits=31)
    content = stream.decompress(data, MAX_TAR_BYTES + 1)
    if len(content) > MAX_TAR_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_TAR_BYTES} bytes")
    if not stream.eof or stream.unused_data.strip(b"\0"):
        raise ValueError("its compressed stream ends early" if not stream.eof else "something follows its end")
    return content


def _check_headers(data: bytes) -> None:
    """Walks over a tar's headers before tarfile does, which follows sizes and chains of headers wherever they lead."""
    at, count, chain = 0, 0, 0
    while any(block := data[at : at + tarfile.BLOCKSIZE]):  # a block of zeros ends it
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        count += 1
        if not 0 <= member.size <= MAX_FILE_BYTES:
            raise ValueError(f"a member has {shown(member.size)} bytes, limit {MAX_FILE_BYTES}")
        if member.type not in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            chain = 0
        else:  # long names and times, which describe the next header
            start = at + tarfile.BLOCKSIZE
            chain += 1
            if member.size > MAX_HEADER_BYTES or chain > MAX_CHAIN:
                raise ValueError(f"more than {MAX_CHAIN} headers or {MAX_HEADER_BYTES} bytes about one member")
            if any(word in data[start : start + member.size] for word in (b"size=", b"GNU.sparse")):
                raise ValueError("a header about the size of a member")
        if count > MAX_MEMBERS or member.type in (tarfile.GNUTYPE_SPARSE, tarfile.SOLARIS_XHDTYPE):
            raise ValueError(f"more than {MAX_MEMBERS} members, or one of a kind that CIFAR-10 has not")
        at += tarfile.BLOCKSIZE * (1 + -(-member.size // tarfile.BLOCKSIZE))


def _wrong_member(member: tarfile.TarInfo, known: bool) -> str:
    """What no honest archive of plain files holds, whether or not it would be read; "" if all is well."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
        return "leads out of its folder"
    if not (member.isreg() or member.isdir()):
        return "is no regular file"
    if known:
        return "is there twice"
    return ""


# ---- .npz --------------------------------------------------------------------------------------------------


BROKEN_NPZ = (  # from a damaged zip file, and from NumPy's parser of headers, which is Python's own
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    SyntaxError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    Warning,
)


def read_npz(path: Path) -> Arrays:
    """Reads own data: x_train, x_test uint8 (N, 32, 32, 3); y_train, y_test integers (N,) or (N, 1), from 0.

    The classes' names stand in own.txt beside own.npz, one a line; without it there are as many classes as the highest
    label says, named "0", "1" and so on.

    Raises: UserError that names the array and what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
            if total > MAX_NPZ_BYTES:
                raise ValueError(f"{total} bytes unpacked, the limit is {MAX_NPZ_BYTES}")
            arrays = {name: _npz_array(archive, name) for name in ("x_train", "y_train", "x_test", "y_test")}
    except BROKEN_NPZ as error:
        raise UserError(f"{path}: {brief(error)}; save it again with numpy.savez") from error
    except (NotImplementedError, RuntimeError, MemoryError) as error:  # compression, encryption, no room
        raise UserError(f"{path} cannot be read ({brief(error)}); save it again with numpy.savez") from error
    except OSError as error:
        raise _cannot_read(path, error) from error
    labels = np.concatenate([_npz_labels(arrays, part, path) for part in ("train", "test")])
    train_count = len(arrays["x_train"])
    classes = tuple(str(i) for i in range(labels.max() + 1))
    names = path.with_suffix(".txt")
    if names.is_file():
        classes = check_names(
            _read_file(names, MAX_HEADER_BYTES * MOST_CLASSES).decode(errors="replace").split("\n"), names
        )
        if labels.max() >= len(classes):
            raise UserError(f"{path} has label {labels.max()}, but {names} names {len(classes)} classes; add names")
    return Arrays(arrays["x_train"], labels[:train_count], arrays["x_test"], labels[train_count:], classes)


def check_names(lines: Sequence[str], where: Path) -> tuple[str, ...]:
    """Names of classes, less empty ones; UserError for none or too many, for one twice, too long or unprintable."""
    names = tuple(line.strip() for line in lines if line.strip())
    if not 1 <= len(names) <= MOST_CLASSES or len(set(names)) < len(names):
        raise UserError(
            f"{where} names {len(names)} classes, {len(set(names))} of them different; give 1 to {MOST_CLASSES}"
        )
    for name in names:
        if len(name) > 100 or not name.isprintable():
            raise UserError(f"{where}: the name {name[:20]!r} of a class is no printable text of at most 100 letters")
    return names


def _npz_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array, its header checked against the member's size before memory is taken for it."""
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"array {name} is missing; x_train, y_train, x_test and y_test are needed")
    size = archive.getinfo(f"{name}.npy").file_size
    with archive.open(f"{name}.npy") as member:
        shape, fortran_order, dtype = _npy_header(member)
        if name.startswith("x_"):
            if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (32, 32, 3) or not shape[0]:
                raise ValueError(f"{name} is {dtype} {shape} instead of uint8 (N, 32, 32, 3)")
        elif dtype.kind not in "iu" or (shape[1:] not in ((), (1,))) or not shape:
            raise ValueError(f"{name} is {dtype} {shape} instead of integers (N,) or (N, 1)")
        if size - member.tell() != dtype.itemsize * int(np.prod(shape, dtype=object)):
            raise ValueError(f"{name} does not have the bytes of its shape {shape}")
        data = member.read()
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version} is not supported")
    prefix = member.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(prefix, "little")
    if length > LARGEST_HEADER:  # NumPy would parse it as Python, whose parser a deep nesting can crash
        raise ValueError(f"its header has {length} bytes; that of a plain array has about 100")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(io.BytesIO(prefix + member.read(length)))


def _npz_labels(arrays: dict[str, NDArray[Any]], part: str, path: Path) -> NDArray[np.int32]:
    images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"].reshape(-1)
    if len(labels) != len(images):
        raise UserError(
            f"{path}: y_{part} has {len(labels)} labels for the {len(images)} images of x_{part}; "
            "save one label an image"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MOST_CLASSES:
        bad = low if low < 0 else high
        raise UserError(f"{path}: y_{part} has label {bad}; labels go from 0 to {MOST_CLASSES - 1}")
    return labels.astype(np.int32)


# ---- any of them -------------------------------------------------------------------------------------------


def locate(folder: Path) -> tuple[Path, Layout | None] | None:
    """The first complete version of CIFAR-10 that `folder` is or holds; a Layout only for a folder."""
    for layout in LAYOUTS:
        for candidate in (folder, folder / layout.folder):
            if not missing_files(candidate, layout):
                return candidate, layout
    for layout in LAYOUTS:
        if (folder / layout.archive).is_file():
            return folder / layout.archive, None
    return None


def read(path: str | os.PathLike[str]) -> Arrays:
    """Reads a folder (see locate), a .tar.gz or an .npz.

    Raises: UserError that names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        return _read(path)
    except UserError:
        raise
    except OSError as error:
        raise _cannot_read(path, error) from error
    except Exception as error:  # a reader's, on bytes that nobody foresaw
        raise UserError(f"cannot read {path} ({type(error).__name__}: {brief(error)}); is it damaged?") from error


def _read(path: Path) -> Arrays:
    if path.is_dir():
        located = locate(path)
        if located is None:
            raise UserError(_why_not(path))
        where, layout = located
        return read_archive(where) if layout is None else read_folder(where, layout)
    if not path.exists():
        raise UserError(f"--data {path} does not exist; give a folder, .tar.gz or .npz, or --data synthetic")
    if path.name.endswith((".tar.gz", ".tgz")) and path.is_file():
        return read_archive(path)
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path)
    raise UserError(f"--data {path} is of no known type; give a folder, a .tar.gz or an .npz")


def doubt(path: str | os.PathLike[str]) -> str:
    """Why what `read` takes may not be the published CIFAR-10, to the last bit; "" if it is, or does not say so.

    A damaged pixel leaves a pickle readable, and the formats have no checksum of their own: only the published
    one tells. Other images, or theirs in another order, differ as damage does.
    """
    path = Path(path)
    where, layout = (path, None) if path.is_file() else locate(path) or (path, None)
    if where.suffix == ".npz":  # has checksums, which reading compares
        return ""
    if layout is BINARY:
        return f"{where.name} cannot be told from a damaged copy: no checksums of it are published"
    try:
        if layout is None:
            same = sum_of(where, "md5") in PUBLISHED_MD5.values()
            return "" if same else f"{where.name} is not the published file, by its md5"
        differ = [name for name in PYTHON.files if sum_of(where / name, "md5") != PUBLISHED_MD5[name]]
    except OSError as error:
        raise _cannot_read(where, error) from error
    return f"{', '.join(differ)} of {where.name} are not the published files, by their md5" if differ else ""


def _why_not(folder: Path) -> str:
    """What an incomplete folder lacks, or that it holds nothing of CIFAR-10's."""
    for layout in LAYOUTS:
        for candidate in (folder, folder / layout.folder):
            missing = missing_files(candidate, layout)
            if len(missing) < len(layout.files):
                return f"{candidate} lacks {', '.join(missing)}; unpack the archive again"
    return (
        f"--data {folder} holds neither {PYTHON.folder} nor {BINARY.folder}; give the folder that does, "
        "or --data synthetic"
    )
