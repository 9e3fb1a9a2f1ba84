"""lab/images/formats.py on small files made here, whole, damaged and hostile."""

import collections
import hashlib
import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.base.errors import UserError
from lab.images import formats

COUNT = 20  # images a batch file here, instead of 10,000
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "IMAGES_PER_FILE", COUNT)


def images_and_labels(seed: int, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 32, 32, 3), np.uint8), generator.integers(0, 10, count)


def rows_of(images: np.ndarray) -> bytes:
    """Red, green and blue planes of each image, written pixel by pixel in the order of the format's page."""
    return b"".join(image[:, :, channel].tobytes() for image in images for channel in range(3))


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The opcodes of the published files, as Python 2's cPickle wrote them with protocol 2."""
    pixels = rows_of(images)
    shape = b"M" + struct.pack("<H", len(images)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = b"cnumpy\ndtype\nq\x05" + short(b"u1") + b"K\x00K\x01\x87Rq\x06"
    dtype += b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85" + short(b"b") + b"\x87R"
    array += b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    items = short(b"batch_label") + short(b"training batch 1 of 5")
    items += short(b"labels") + b"]q\x02(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items += short(b"data") + array
    items += short(b"filenames") + b"](" + b"".join(short(b"a_%d.png" % i) for i in range(len(labels))) + b"e"
    return b"\x80\x02}q\x01(" + items + b"u."


def python3_pickle(images: np.ndarray, labels: np.ndarray, protocol: int) -> bytes:
    rows = np.frombuffer(rows_of(images), np.uint8).reshape(len(images), 3072)
    return pickle.dumps({"data": rows, "labels": labels.tolist(), "filenames": ["x.png"]}, protocol)


def binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    return b"".join(bytes([label]) + rows_of(image[None]) for image, label in zip(images, labels, strict=True))


def make_folder(parent: Path, layout: formats.Layout = formats.PYTHON) -> Path:
    """A small whole version; batch i is images_and_labels(i), the test batch is 6."""
    folder = parent / layout.folder
    folder.mkdir(parents=True)
    write = python2_pickle if layout is formats.PYTHON else binary
    for seed, name in enumerate((*layout.train_files, layout.test_file), 1):
        (folder / name).write_bytes(write(*images_and_labels(seed)))
    if layout is formats.PYTHON:
        meta = {"num_cases_per_batch": COUNT, "label_names": list(NAMES), "num_vis": 3072}
        (folder / layout.names_file).write_bytes(pickle.dumps(meta, 2))
    else:
        (folder / layout.names_file).write_text("\n".join(NAMES) + "\n\n")
    return folder


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


def check_whole(arrays: formats.Arrays) -> None:
    images, labels = zip(*(images_and_labels(seed) for seed in range(1, 7)), strict=True)
    np.testing.assert_array_equal(arrays.train_images, np.concatenate(images[:5]))
    np.testing.assert_array_equal(arrays.train_labels, np.concatenate(labels[:5]))
    np.testing.assert_array_equal(arrays.test_images, images[5])
    np.testing.assert_array_equal(arrays.test_labels, labels[5])
    assert arrays.train_images.dtype == arrays.test_images.dtype == np.uint8
    assert arrays.train_labels.dtype == arrays.test_labels.dtype == np.int32
    assert arrays.classes == NAMES


@pytest.mark.parametrize("layout", formats.LAYOUTS, ids=lambda layout: layout.folder)
def test_every_way_to_give_a_version(tmp_path: Path, layout: formats.Layout) -> None:
    folder = make_folder(tmp_path / "held", layout)
    check_whole(formats.read(folder))
    check_whole(formats.read(folder.parent))
    (tmp_path / "packed").mkdir()
    check_whole(formats.read(pack(folder, tmp_path / "packed" / layout.archive)))
    check_whole(formats.read(tmp_path / "packed"))
    check_whole(formats.read(pack(folder, tmp_path / "any-name.tgz")))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_python_3(tmp_path: Path, protocol: int) -> None:
    images, labels = images_and_labels(1)
    got_images, got_labels = formats.decode(formats.PYTHON, python3_pickle(images, labels, protocol), "x")
    np.testing.assert_array_equal(got_images, images)
    np.testing.assert_array_equal(got_labels, labels)


def test_the_hand_written_pickle_is_what_python_itself_reads() -> None:
    images, labels = images_and_labels(1)
    batch = pickle.loads(python2_pickle(images, labels), encoding="latin1")
    assert batch["data"].shape == (COUNT, 3072) and batch["labels"] == labels.tolist()


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    "hostile",
    [
        Call(os.system, "touch {mark}"),
        Call(eval, "open({mark!r}, 'w')"),
        {"data": Call(os.mkdir, "{mark}"), "labels": []},
        {"data": np.array([Call(os.mkdir, "{mark}")], object), "labels": [0]},
        Call(np.load, "{mark}"),
        Call(getattr, dict, "get"),
    ],
)
@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_is_refused_and_never_run(tmp_path: Path, hostile: Any, protocol: int) -> None:
    folder = make_folder(tmp_path)
    mark = tmp_path / "mark"
    target = hostile["data"] if isinstance(hostile, dict) else hostile
    target = target[0] if isinstance(target, np.ndarray) else target
    function, arguments = target.call
    target.call = function, tuple(a.format(mark=str(mark)) if a is not dict else a for a in arguments)
    (folder / "data_batch_3").write_bytes(pickle.dumps(hostile, protocol))
    target.call = function, arguments
    with pytest.raises(UserError, match=r"data_batch_3.*download it again"):
        formats.read(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    "data, why",
    [
        (b"\x80\x02}r\xff\xff\xff\xff.", "memo index 4294967295"),  # 64 GB of memo
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x00.", "BYTEARRAY8|bytes in a bytearray8"),
        (b"\x80\x02T\xff\xff\xff\x7f.", "bytes in a string4"),
        (b"\x80\x02)" + b"\x85" * 100_000 + b".", "structured objects"),
        (b"\x80\x02(" + b"l" + b".", "opcode LIST"),
        (b"\x80\x02(c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hexR.", "damaged"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.", "encoding 'hex'"),
        (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", "asks for posix.system"),
        (b"\x80\x02]q\x01h\x01a.", "holds a list"),  # a list that holds itself
        (b"", "damaged"),
    ],
)
def test_a_bomb_in_a_pickle_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(UserError, match=why):
        formats.decode(formats.PYTHON, data, "some/file")


def test_a_wrong_array_is_named() -> None:
    images, labels = images_and_labels(1)
    rows = images.reshape(COUNT, 3072)

    def read(data: Any, labels: Any = labels.tolist()) -> str:  # noqa: B008
        with pytest.raises(UserError) as caught:
            formats.decode(formats.PYTHON, pickle.dumps({"data": data, "labels": labels}, 2), "the/file")
        assert str(caught.value).startswith("the/file: ") and "\n" not in str(caught.value)
        return str(caught.value)

    assert "shape (20, 3071)" in read(rows[:, 1:].copy())
    assert "shape (61440,)" in read(rows.reshape(-1))
    assert "dtype 'f4'" in read(rows.astype(np.float32))
    assert "dtype 'i1'" in read(rows.astype(np.int8))
    assert "19 images and 20 labels instead of 20 each" in read(rows[1:].copy())
    assert "20 images and 21 labels" in read(rows, [0] * 21)
    assert "'data' is no array" in read([1, 2])
    for bad in ([10] * COUNT, [-1] * COUNT, [True] * COUNT, ["1"] * COUNT, "text"):
        assert "'labels' is no list of whole numbers from 0 to 9" in read(rows, bad)
    with pytest.raises(UserError, match="'data' or 'labels' is missing"):
        formats.decode(formats.PYTHON, pickle.dumps({"labels": []}, 2), "the/file")


def test_a_column_major_array_is_read_right() -> None:
    images, labels = images_and_labels(1)
    rows = np.asfortranarray(np.frombuffer(rows_of(images), np.uint8).reshape(COUNT, 3072))
    data = pickle.dumps({"data": rows, "labels": labels.tolist()}, 2)
    np.testing.assert_array_equal(formats.decode(formats.PYTHON, data, "x")[0], images)


def read_or_refuse(layout: formats.Layout, data: bytes) -> bool:
    """True when `data` is read, and then it is valid; False for a one-line refusal. Nothing else passes."""
    try:
        images, labels = formats.decode(layout, data, "the/file")
    except UserError as error:
        assert "the/file" in str(error) and "\n" not in str(error)
        return False
    assert images.shape == (COUNT, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (COUNT,) and labels.dtype == np.int32
    assert labels.min() >= 0 and labels.max() <= 9
    return True


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_damaged_pickles_are_read_or_refused(protocol: int) -> None:
    images, labels = images_and_labels(1)
    whole = python3_pickle(images, labels, protocol) if protocol else python2_pickle(images, labels)
    assert read_or_refuse(formats.PYTHON, whole)
    chance = random.Random(protocol)
    # Pixels cannot be told right from wrong: aim at the structure, which is at both ends.
    ends = [*range(700), *range(len(whole) - 400, len(whole))]
    places = chance.sample(ends, 300) + chance.sample(range(len(whole)), 50)
    refused = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8) if chance.random() < 0.5 else chance.randrange(1, 256)
        refused += not read_or_refuse(formats.PYTHON, bytes(damaged))
    assert refused > 20
    for length in [*chance.sample(range(len(whole)), 50), *range(30), len(whole) - 1]:
        assert not read_or_refuse(formats.PYTHON, whole[:length])


def test_damaged_binary_files_are_read_or_refused() -> None:
    whole = binary(*images_and_labels(1))
    chance = random.Random(0)
    for length in [0, 3073, len(whole) - 3073, *chance.sample(range(len(whole)), 20)]:
        assert not read_or_refuse(formats.BINARY, whole[:length])
    for value in (10, 255):
        with pytest.raises(UserError, match=f"label {value}, the limit is 9"):
            formats.decode(formats.BINARY, bytes([value]) + whole[1:], "x")


def test_a_file_that_is_missing_too_large_or_unreadable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(formats, "MAX_FILE_BYTES", 1000)
        with pytest.raises(UserError, match=r"data_batch_1 has .* bytes, the limit is 1000"):
            formats.read(folder)
    (folder / "data_batch_2").unlink()
    (folder / "test_batch").unlink()
    (folder / "test_batch").mkdir()
    for path in (folder, tmp_path):
        with pytest.raises(UserError, match="cifar-10-batches-py lacks data_batch_2, test_batch; "):
            formats.read(path)


def test_bad_class_names_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for names, why in (
        (["cat"], "1 names instead of 10"),
        ("cat", "no list of names"),
        ([1], "no list of names"),
    ):
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, 2))
        with pytest.raises(UserError, match=f"batches.meta: .*{why}"):
            formats.read(folder)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file.jpg").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name, why in (
        ("nowhere", "does not exist; give a folder"),
        ("file.jpg", "is of no known type"),
        ("empty", "holds neither cifar-10-batches-py nor cifar-10-batches-bin"),
    ):
        with pytest.raises(UserError, match=why) as caught:
            formats.read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_damaged_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pack(make_folder(tmp_path), tmp_path / "x.tar.gz").read_bytes()
    chance = random.Random(0)
    bad = tmp_path / "bad.tar.gz"
    for length in (0, 1, 9, 100, *chance.sample(range(len(whole)), 5), len(whole) - 1):
        bad.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"bad\.tar\.gz"):
            formats.read(bad)
    for place in chance.sample(range(20, len(whole) - 8), 15):  # gzip's own checksum notices every one
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        bad.write_bytes(damaged)
        with pytest.raises(UserError, match=r"bad\.tar\.gz"):
            formats.read(bad)
    with monkeypatch.context() as patch:
        patch.setattr(formats, "MAX_TAR_BYTES", 100_000)
        with pytest.raises(UserError, match="unpacks to more than 100000 bytes"):
            formats.read(tmp_path / "x.tar.gz")


def test_archives_of_something_else_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "data_batch_4").unlink()
    with pytest.raises(UserError, match="lacks data_batch_4"):
        formats.read(pack(folder, tmp_path / "x.tar.gz"))
    (folder / "data_batch_4").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="data_batch_4' is no regular file"):
        formats.read(pack(folder, tmp_path / "x.tar.gz"))
    (folder / "data_batch_4").unlink()
    with pytest.raises(UserError, match="holds neither"):
        formats.read(pack(folder.rename(tmp_path / "other"), tmp_path / "y.tar.gz"))


# --- .npz ----------------------------------------------------------------------------------------------


def save(path: Path, **changes: Any) -> Path:
    x_train, y_train = images_and_labels(1, 7)
    x_test, y_test = images_and_labels(2, 3)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i2"])
def test_own_data_of_any_number(tmp_path: Path, column: bool, dtype: Any) -> None:
    y_train, y_test = np.array([0, 1, 2, 3, 4, 5, 6], dtype), np.array([6, 5, 7], dtype)
    labels = {"y_train": y_train[:, None], "y_test": y_test[:, None]} if column else {"y_train": y_train}
    arrays = formats.read(save(tmp_path / "x.npz", **{"y_test": y_test, **labels}))
    np.testing.assert_array_equal(arrays.train_images, images_and_labels(1, 7)[0])
    np.testing.assert_array_equal(arrays.test_images, images_and_labels(2, 3)[0])
    assert arrays.train_labels.tolist() == [0, 1, 2, 3, 4, 5, 6] and arrays.test_labels.tolist() == [6, 5, 7]
    assert arrays.train_labels.dtype == np.int32
    assert arrays.classes == tuple("01234567")


def test_own_data_compressed_or_column_major(tmp_path: Path) -> None:
    images, labels = images_and_labels(1, 7)
    np.savez_compressed(
        tmp_path / "x.npz", x_train=np.asfortranarray(images), y_train=labels, x_test=images, y_test=labels
    )
    np.testing.assert_array_equal(formats.read(tmp_path / "x.npz").train_images, images)


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"x_test": None}, "array x_test is missing"),
        (
            {"x_train": np.zeros((7, 32, 32, 3), np.float32)},
            r"x_train is float32 \(7, 32, 32, 3\) instead of",
        ),
        ({"x_train": np.zeros((7, 3, 32, 32), np.uint8)}, r"instead of uint8 \(N, 32, 32, 3\)"),
        ({"x_train": np.zeros((0, 32, 32, 3), np.uint8)}, r"x_train is uint8 \(0, "),
        ({"x_test": np.zeros(3, object)}, "x_test is object"),
        ({"y_test": np.zeros(3, np.float32)}, "y_test is float32"),
        ({"y_test": np.zeros((3, 10), np.int32)}, r"y_test is int32 \(3, 10\) instead of"),
        ({"y_test": np.int32(3)}, "y_test is int32"),
        ({"y_test": np.zeros(4, np.int32)}, "y_test has 4 labels for the 3 images"),
        ({"y_test": np.array([0, 1000, 1])}, "y_test has label 1000; labels go from 0 to 999"),
        ({"y_train": np.array([0, -1, 1, 0, 0, 0, 0])}, "y_train has label -1"),
        ({"y_train": np.array([2**63] * 7, np.uint64)}, "y_train has label 9223372036854775808"),
    ],
)
def test_bad_own_data_is_named(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        formats.read(save(tmp_path / "x.npz", **changes))
    assert str(tmp_path / "x.npz") in str(caught.value) and "\n" not in str(caught.value)


def test_a_hundred_classes_and_their_names(tmp_path: Path) -> None:
    labels = np.array([0, 99, 2, 3, 4, 5, 6])
    path = save(tmp_path / "x.npz", y_train=labels, y_test=np.array([98, 1, 2]))
    assert formats.read(path).classes == tuple(str(k) for k in range(100))
    (tmp_path / "x.txt").write_text("".join(f"kind {k}\r\n" for k in range(120)) + "\n")
    assert formats.read(path).classes == tuple(f"kind {k}" for k in range(120))
    for text, why in (
        ("a\nb\n", "label 99, but .*x.txt names 2 classes"), ("a\n" * 120, "1 of them different"),
        ("", "names 0 classes"),
        ("\x1b[2J\n", "no printable text"), ("a" * 101, "at most 100 letters"), ("\udcff", "no printable text|but"),
    ):  # fmt: skip
        (tmp_path / "x.txt").write_text(text, errors="surrogateescape")
        with pytest.raises(UserError, match=why) as caught:
            formats.read(path)
        assert str(caught.value).isprintable()


def test_damaged_own_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = save(tmp_path / "x.npz").read_bytes()
    bad = tmp_path / "bad.npz"
    chance = random.Random(0)
    for length in (0, 10, 1000, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"bad\.npz"):
            formats.read(bad)
    outcomes = collections.Counter[bool]()
    places = [
        *range(0, 200, 2),
        *chance.sample(range(len(whole)), 40),
        *range(len(whole) - 300, len(whole), 2),
    ]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= chance.randrange(1, 256)
        bad.write_bytes(damaged)
        try:
            arrays = formats.read(bad)
        except UserError as error:
            assert "bad.npz" in str(error) and "\n" not in str(error)
            outcomes[False] += 1
        else:
            assert arrays.train_images.shape == (7, 32, 32, 3)
            np.testing.assert_array_equal(arrays.train_images, images_and_labels(1, 7)[0])
            outcomes[True] += 1
    assert outcomes[False] > 100
    monkeypatch.setattr(formats, "MAX_NPZ_BYTES", 10_000)
    with pytest.raises(UserError, match="the limit is 10000"):
        formats.read(tmp_path / "x.npz")


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path: Path) -> None:
    save(tmp_path / "x.npz")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 32, 32, 3)})
    with (
        zipfile.ZipFile(tmp_path / "x.npz") as old,
        zipfile.ZipFile(tmp_path / "y.npz", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, header.getvalue() if name == "x_train.npy" else old.read(name))
    with pytest.raises(UserError, match="does not have the bytes of its shape"):
        formats.read(tmp_path / "y.npz")


@pytest.mark.parametrize("version, digits", [(b"\x01\x00", 2), (b"\x02\x00", 4)])
def test_a_header_that_is_a_deep_nesting_is_not_parsed(tmp_path: Path, version: bytes, digits: int) -> None:
    """Python's parser, which NumPy asks, has crashed the process with one."""
    header = b"-" * 9_000 + b"1\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as new:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            new.writestr(f"{name}.npy", b"\x93NUMPY" + version + len(header).to_bytes(digits, "little") + header)
    with pytest.raises(UserError, match="its header has 9002 bytes"):
        formats.read(tmp_path / "x.npz")


def test_files_that_are_not_the_published_ones_are_doubted(tmp_path, monkeypatch) -> None:
    folder = make_folder(tmp_path)
    assert "data_batch_1" in formats.doubt(folder) and "batches.meta" in formats.doubt(folder)
    for name in formats.PYTHON.files:
        monkeypatch.setitem(formats.PUBLISHED_MD5, name, hashlib.md5((folder / name).read_bytes()).hexdigest())
    assert formats.doubt(tmp_path) == ""
    content = bytearray((folder / "data_batch_3").read_bytes())
    content[len(content) // 2] ^= 1  # a pixel, which no reader can notice
    (folder / "data_batch_3").write_bytes(content)
    assert formats.doubt(tmp_path).startswith("data_batch_3 of cifar-10-batches-py")
    assert "no checksums" in formats.doubt(make_folder(tmp_path / "bin", formats.BINARY))
    save(tmp_path / "x.npz")
    assert formats.doubt(tmp_path / "x.npz") == ""
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"another")
    assert "not the published file" in formats.doubt(tmp_path / "cifar-10-python.tar.gz")
