"""The core's data: reading it, whatever lies there; an epoch's plan; and its batches, against loops in NumPy."""

import gc
import hashlib
import http.server
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import data
from data import UserError
from iterators import seconds_to_end

CORE = Path(data.__file__).resolve().parent
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ONE = tf.distribute.OneDeviceStrategy("/cpu:0")


def options(**changes):
    """The part of a Config that data.py reads."""
    return SimpleNamespace(**{"batch_size": 16, "pad": 4, "flip": "random", "cutout": 8, "seed": 0, **changes})


def some_images(count=40, tests=24, classes=4):
    generator = np.random.default_rng(5)
    parts = []
    for n in (count, tests):
        parts += [
            generator.integers(0, 256, (n, 32, 32, 3), np.uint8),
            np.arange(n, dtype=np.int32) % classes,
        ]
    return data.Images(*parts, classes=tuple("abcdefghij"[:classes]))


# ---- reading: pickles as Python 2 wrote them, opcode by opcode ---------------------------------------------


def text(value):
    """SHORT_BINSTRING, Python 2's str."""
    return b"U" + bytes([len(value)]) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def listed(items):
    return b"](" + b"".join(items) + b"e"


def python_2_array(pixels):
    """What cPickle made of a uint8 array of NumPy 1.6, protocol 2."""
    rows, columns = pixels.shape
    start = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text("|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    shape = number(rows) + number(columns) + b"\x86"
    return (
        start + b"(K\x01" + shape + dtype + b"\x89" + b"T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
    )


def python_2(items):
    """A dictionary as cPickle wrote it: keys are str, values are already opcodes."""
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in items.items()) + b"u."


def batch_file(pixels, labels, label="a batch"):
    return python_2({"batch_label": text(label), "labels": listed(map(number, labels)), "data": python_2_array(pixels)})


def write_folder(folder, per_file=6):
    """cifar-10-batches-py with few images; returns all pixels (N, 3072), training first, and all labels."""
    generator = np.random.default_rng(3)
    folder.mkdir(parents=True)
    pixels, labels = generator.integers(0, 256, (6 * per_file, 3072), np.uint8), np.arange(6 * per_file) % 10
    for index, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        part = slice(index * per_file, (index + 1) * per_file)
        (folder / name).write_bytes(batch_file(pixels[part], labels[part].tolist()))
    (folder / "batches.meta").write_bytes(
        python_2({"num_cases_per_batch": number(per_file), "label_names": listed(map(text, NAMES))})
    )
    return pixels, labels


def refused(path):
    """The message of the one-line error that reading `path` ends in."""
    with pytest.raises(UserError) as error:
        data.load(str(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def test_the_original_files_are_read_to_the_pixel(tmp_path):
    pixels, labels = write_folder(tmp_path / "cifar-10-batches-py")
    images = data.load(str(tmp_path / "cifar-10-batches-py"))
    assert images.classes == tuple(NAMES)
    assert images.train_images.shape == (30, 32, 32, 3) and images.test_images.shape == (6, 32, 32, 3)
    assert images.train_images.dtype == images.test_images.dtype == np.uint8
    assert images.train_labels.dtype == images.test_labels.dtype == np.int32
    np.testing.assert_array_equal(np.concatenate([images.train_labels, images.test_labels]), labels)
    generator = np.random.default_rng(0)
    for image, row, column, channel in generator.integers(0, (30, 32, 32, 3), (500, 4)):
        assert images.train_images[image, row, column, channel] == pixels[image, 1024 * channel + 32 * row + column]
    assert images.test_images[2, 3, 4, 1] == pixels[32, 1024 + 32 * 3 + 4]


def test_pickles_of_todays_python_and_numpy_are_read_too(tmp_path):
    folder = tmp_path / "batches"
    pixels, labels = write_folder(folder)
    content = {b"data": pixels[:6], b"labels": labels[:6].tolist()}
    (folder / "data_batch_1").write_bytes(pickle.dumps(content, protocol=4))
    images = data.load(str(folder))
    np.testing.assert_array_equal(images.train_images[0, :, :, 2].ravel(), pixels[0, 2048:])


@pytest.mark.parametrize("column", [False, True], ids=["(N,)", "(N, 1) as Keras has them"])
def test_an_npz_is_read(tmp_path, column):
    made = some_images()
    labels = [made.train_labels.astype(np.int64), made.test_labels.astype(np.uint8)]
    y_train, y_test = [y[:, None] for y in labels] if column else labels
    path = tmp_path / "own.npz"
    np.savez(path, x_train=made.train_images, y_train=y_train, x_test=made.test_images, y_test=y_test)
    images = data.load(str(path))
    for mine, theirs in zip(images[:4], made[:4], strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    assert images.classes == ("0", "1", "2", "3")


class Hostile:
    """Pickled, it calls `function(*arguments)` in whoever unpickles it carelessly."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def traps(canary):
    write = f"open({str(canary)!r}, 'w').close()"
    yield "os.system", pickle.dumps(Hostile(os.system, f"touch {canary}"), 2)
    yield "eval", pickle.dumps({b"data": Hostile(eval, write)}, 2)
    yield "open", pickle.dumps(Hostile(open, str(canary), "w"), 4)
    # Names in NumPy that run code, or reach what does.
    for module, name in (
        ("numpy", "load"), ("numpy.testing._private.utils", "runstring"), ("numpy.f2py", "os.system"),
        ("numpy.core.multiarray", "scalar"), ("numpy", "ndarray.tofile"), ("numpyish", "ndarray"),
        ("builtins", "exec"), ("os", "_reconstruct"),
    ):  # fmt: skip
        yield f"{module}.{name}", b"\x80\x02" + f"c{module}\n{name}\n".encode() + b"(" + text(write) + b"tR."


def test_a_hostile_pickle_runs_nothing(tmp_path):
    folder, canary = tmp_path / "batches", tmp_path / "canary"
    write_folder(folder)
    good = (folder / "data_batch_2").read_bytes()
    for name, content in traps(canary):
        for file in ("data_batch_2", "batches.meta"):
            before = (folder / file).read_bytes()
            (folder / file).write_bytes(content)
            assert "it asks for" in refused(folder), name
            (folder / file).write_bytes(before)
    assert not canary.exists()
    assert (folder / "data_batch_2").read_bytes() == good and data.load(str(folder))
    pickle.loads(next(traps(canary))[1])  # the trap is a trap
    assert canary.exists()


def test_a_hostile_npz_runs_nothing(tmp_path):
    canary = tmp_path / "canary"
    trap = np.array([Hostile(os.system, f"touch {canary}")], object)
    np.savez(tmp_path / "bad.npz", x_train=trap, y_train=trap, x_test=trap, y_test=trap)
    refused(tmp_path / "bad.npz")
    assert not canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"not a pickle", b"\x80\x02", b"\x80\x02}.", b"\x80\x02].", b"\x80\x02N.", b"\x80\x02K\x07.",
        batch_file(np.zeros((6, 3072), np.uint8), [0] * 6)[:2000], b"\x80\x02}(U\x04datau.", b"\x80\x02R.",
        python_2({"labels": listed([number(1)])}), python_2({"data": number(3), "labels": number(3)}),
        python_2({"data": text("x"), "labels": listed([text("cat")])}),
        python_2({"data": b"cnumpy\nndarray\n(" + b"(\x8a\x06" + (2**42).to_bytes(6, "little") + b"ttR"}),  # 4 TB
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_batch_is_refused_in_one_line(tmp_path, content):
    write_folder(tmp_path / "batches")
    (tmp_path / "batches" / "data_batch_3").write_bytes(content)
    assert str(tmp_path / "batches") in refused(tmp_path / "batches")


@pytest.mark.filterwarnings("ignore:dtype\\(\\)")  # a flipped bit in a pickled dtype
def test_a_bit_flipped_or_an_end_cut_off_is_refused_or_read_but_never_a_traceback(tmp_path):
    folder, generator = tmp_path / "batches", np.random.default_rng(6)
    write_folder(folder)
    for name in ("data_batch_5", "batches.meta"):
        path, content = folder / name, (folder / name).read_bytes()
        ends = [*range(min(400, len(content))), *range(max(0, len(content) - 100), len(content))]
        for place in generator.choice(ends, 150):
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(generator.integers(8))
            for damaged in (bytes(flipped), content[:place]):
                path.write_bytes(damaged)
                try:
                    data.load(str(folder))
                except UserError as error:
                    assert "\n" not in str(error), (name, place)
        path.write_bytes(content)


def test_what_is_missing_is_named(tmp_path):
    assert "/no/such/folder" in refused("/no/such/folder")
    assert "none.npz" in refused(tmp_path / "none.npz")
    write_folder(tmp_path / "batches")
    (tmp_path / "batches" / "data_batch_4").unlink()
    assert "data_batch_4" in refused(tmp_path / "batches")
    np.savez(tmp_path / "part.npz", x_train=np.zeros((2, 32, 32, 3), np.uint8))
    assert "y_train" in refused(tmp_path / "part.npz")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": np.zeros((4, 32, 32, 3), np.float32)}, "float32"),
        ({"x_test": np.zeros((2, 32, 32, 3), np.int64)}, "int64"),
        ({"x_train": np.zeros((4, 28, 28, 3), np.uint8)}, "28"),
        ({"x_train": np.zeros((4, 3, 32, 32), np.uint8)}, "32"),
        ({"x_train": np.zeros((5, 32, 32, 3), np.uint8)}, "5"),
        ({"x_test": np.zeros(4, np.uint8)}, "4"),
        ({"y_train": np.array([0, 1, -1, 1])}, "label"),
        ({"y_test": np.array([0, 2])}, "label"),
        ({"y_train": np.array([0, 1, 0.5, 1])}, "label"),
        ({"y_train": np.array(["cat", "dog", "cat", "dog"])}, "label"),
        ({"y_train": np.array(1)}, ""),
        ({"y_train": np.zeros(0, int)}, ""),
        ({"x_test": np.zeros((0, 32, 32, 3), np.uint8), "y_test": np.zeros(0, int)}, ""),
        ({"y_train": np.array([0, 1, 3_000_000, 1])}, "label"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(f"{k} {v.dtype}{v.shape}" for k, v in value.items()),
)
def test_arrays_that_are_no_labelled_images_are_refused_in_one_line(tmp_path, changes, words):
    arrays = {"x_train": np.zeros((4, 32, 32, 3), np.uint8), "y_train": np.array([0, 1, 0, 1])}
    arrays |= {"x_test": np.zeros((2, 32, 32, 3), np.uint8), "y_test": np.array([0, 1])}
    np.savez(tmp_path / "own.npz", **{**arrays, **changes})
    assert words in refused(tmp_path / "own.npz")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # NumPy leaves such a file open
def test_a_damaged_npz_is_refused_in_one_line(tmp_path):
    path = tmp_path / "own.npz"
    images = some_images()
    arrays = dict(zip(("x_train", "y_train", "x_test", "y_test"), images[:4], strict=True))
    for save in (np.savez, np.savez_compressed):
        save(path, **arrays)
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 3] ^= 8
        for damaged in (
            b"",
            b"PK",
            b"some words",
            content[:-100],
            content[: len(content) // 2],
            bytes(flipped),
        ):
            path.write_bytes(damaged)
            refused(path)
    gc.collect()  # here, where the warning is expected, and not in a later test


# ---- downloading, from a server on this machine ------------------------------------------------------------


@pytest.fixture
def server():
    """Serves the bytes in `server.files` by their paths and notes what was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    files, asked = {}, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield SimpleNamespace(files=files, asked=asked, url=f"http://127.0.0.1:{http_server.server_port}")
        http_server.shutdown()


def archived(folder):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.add(folder, data.FOLDER)
    return content.getvalue()


def offer(monkeypatch, server, archive, *paths):
    monkeypatch.setattr(data, "MD5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(data, "MIRRORS", tuple(server.url + path for path in paths))


def test_it_downloads_once_from_the_first_mirror_whose_archive_has_the_sum(tmp_path, monkeypatch, server):
    pixels, labels = write_folder(tmp_path / "made")
    good = archived(tmp_path / "made")
    server.files |= {"/wrong": good[:-1] + b"?", "/good": good}
    offer(monkeypatch, server, good, "/missing", "/wrong", "/good", "/never")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")  # where there is no folder data yet
    images = data.load()
    assert server.asked == ["/missing", "/wrong", "/good"]
    np.testing.assert_array_equal(images.train_labels, labels[:30])
    np.testing.assert_array_equal(images.train_images[7, :, :, 0].ravel(), pixels[7, :1024])
    assert (tmp_path / "work" / "data" / data.FOLDER / "data_batch_5").is_file()
    server.files.clear()
    again = data.load()  # what is there is not asked for again
    np.testing.assert_array_equal(again.train_images, images.train_images)
    assert len(server.asked) == 3


def test_without_a_mirror_that_delivers_the_archive_one_line_says_so(tmp_path, monkeypatch, server):
    server.files["/wrong"] = b"another archive"
    offer(monkeypatch, server, b"the archive", "/missing", "/wrong")
    monkeypatch.chdir(tmp_path)
    message = refused("")
    assert "/missing" in message and "/wrong" in message and "404" in message
    assert not (tmp_path / "data" / data.FOLDER).exists()


def hostile_archive(member, content=b"x", **attributes):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        for name, value in attributes.items():
            setattr(entry, name, value)
        file.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


@pytest.mark.parametrize(
    ("member", "attributes"),
    [
        ("../escaped", {}),
        (f"{data.FOLDER}/../../escaped", {}),
        (f"{data.FOLDER}/link", {"type": tarfile.SYMTYPE, "linkname": "../../../escaped", "size": 0}),
        (f"{data.FOLDER}/device", {"type": tarfile.CHRTYPE, "size": 0}),
    ],
)
def test_an_archive_whose_members_escape_is_refused(tmp_path, monkeypatch, server, member, attributes):
    """Even with the right sum, which only its publisher can have made."""
    server.files["/bad"] = hostile_archive(member, **attributes)
    offer(monkeypatch, server, server.files["/bad"], "/bad")
    (tmp_path / "work" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    refused("")
    assert not list(tmp_path.rglob("escaped")) and not list(tmp_path.rglob("device"))


def test_what_the_mirrors_serve_is_trusted_by_its_published_sum():
    assert data.MD5 == "c58f30108f718f92721af3b95e74349a"  # https://www.cs.toronto.edu/~kriz/cifar.html
    assert all(url.startswith("https://") and url.endswith("/cifar-10-python.tar.gz") for url in data.MIRRORS)


# ---- once, in NumPy ----------------------------------------------------------------------------------------


def test_mean_and_deviation_are_numpys():
    images = np.random.default_rng(1).integers(0, 200, (70, 32, 32, 3), np.uint8)
    images[..., 1] //= 3
    mean, std = data.mean_std(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-9)
    assert mean.shape == std.shape == (3,) and mean.dtype == np.float64


def test_standardised_images_are_float32_to_rounding():
    images = some_images().train_images
    mean, std = np.array([0.49, 0.48, 0.45]), np.array([0.247, 0.243, 0.262])
    expected = (images / 255 - mean) / std
    for pixels in (images, images.astype(np.float32), tf.constant(images, tf.float32)):
        values = data.standardise(pixels, mean, std)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected, atol=2.4e-7)


@pytest.mark.parametrize("pad", [0, 1, 4, 31])
def test_padding_reflects_without_repeating_the_border(pad):
    images = some_images(3).train_images
    padded = data.reflect_pad(images, pad)
    mirror = [abs(k) if k < 32 else 62 - k for k in range(-pad, 32 + pad)]
    np.testing.assert_array_equal(padded, images[:, mirror][:, :, mirror])


# ---- the plan of an epoch ----------------------------------------------------------------------------------


def chi_square(counts):
    """How many standard deviations the chi-square of equal shares is above its mean."""
    expected = counts.sum() / counts.size
    chi2, freedom = ((counts - expected) ** 2 / expected).sum(), counts.size - 1
    return (chi2 - freedom) / np.sqrt(2 * freedom)


def test_the_plan_depends_on_seed_and_epoch_alone():
    first = data.plan(options(), 3, 100)
    np.random.seed(7)
    tf.random.set_seed(7)
    np.testing.assert_array_equal(data.plan(options(), 3, 100), first)
    assert first.dtype == np.int32 and first.shape == (6, 16, 6)
    for other in (data.plan(options(seed=1), 3, 100), data.plan(options(), 4, 100)):
        for column in range(6):
            assert (other[..., column] != first[..., column]).any()
    same = data.plan(options(batch_size=32), 3, 100)  # other batches, the same order and draws of the order
    np.testing.assert_array_equal(same[..., 0].ravel(), first[..., 0].ravel()[:96])


def test_an_epoch_has_each_image_at_most_once_and_drops_the_partial_batch():
    for epoch in range(5):
        numbers = data.plan(options(), epoch, 80)[..., 0].ravel()
        assert sorted(numbers) == list(range(80))
    left_out = [set(range(90)) - set(data.plan(options(), epoch, 90)[..., 0].ravel()) for epoch in range(3)]
    assert all(len(left) == 10 for left in left_out) and left_out[0] != left_out[1]


def test_all_offsets_and_places_are_equally_likely_and_half_the_images_are_mirrored():
    rows = np.concatenate([data.plan(options(batch_size=500), epoch, 50_000) for epoch in (1, 2)]).reshape(-1, 6)
    _, top, left, mirrored, cut_top, cut_left = rows.T
    assert len(rows) == 100_000
    offsets, places = (
        np.bincount(9 * top + left, minlength=81),
        np.bincount(25 * cut_top + cut_left, minlength=625),
    )
    assert offsets.size == 81 and places.size == 625  # 0 to 8, and 0 to 24: the square lies in the image
    assert max(top.max(), left.max()) == 8 and max(cut_top.max(), cut_left.max()) == 24
    assert abs(chi_square(offsets)) < 4 and abs(chi_square(places)) < 4
    assert set(mirrored) == {0, 1} and abs(mirrored.mean() - 0.5) < 0.007  # 4 deviations
    # and no column tells another
    columns = rows[:, 1:].astype(float)
    assert np.abs(np.corrcoef(columns.T) - np.eye(5)).max() < 0.015


def test_nothing_is_mirrored_cropped_or_cut_where_the_config_says_so():
    plain = data.plan(options(flip="none", pad=0, cutout=32), 1, 400)
    assert (plain[..., 1:] == 0).all()
    random, none = (data.plan(options(flip=flip), 1, 400) for flip in ("random", "none"))
    assert (none[..., 3] == 0).all() and (random[..., 3] == 1).any()
    np.testing.assert_array_equal(np.delete(random, 3, 2), np.delete(none, 3, 2))  # the rest is not moved


# ---- batches -----------------------------------------------------------------------------------------------


def augmented(images, row, pad, cutout):
    """One image by the plan's row, in float64: pad, window, mirror, square; with loops over pixels."""
    number, top, left, mirrored, cut_top, cut_left = row
    pixels = images.train_images / 255
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    out = np.zeros((32, 32, 3))
    for y in range(32):
        for x in range(32):
            from_y, from_x = top + y - pad, left + (31 - x if mirrored else x) - pad
            from_y, from_x = (abs(k) if k < 32 else 62 - k for k in (from_y, from_x))
            if not (cut_top <= y < cut_top + cutout and cut_left <= x < cut_left + cutout):
                out[y, x] = (pixels[number, from_y, from_x] - mean) / std
    return out


@pytest.mark.parametrize(("pad", "cutout"), [(4, 8), (0, 0), (2, 31), (31, 5)])
def test_a_batch_is_numpys_loop(pad, cutout):
    images, config = some_images(40), options(pad=pad, cutout=cutout)
    batches = data.Batches(config, images, ONE)
    rows = data.plan(config, 2, 40)
    taken = list(batches.open(2))
    assert len(taken) == 2
    for step, batch in enumerate(taken):
        pixels, labels = batches.decode(*batch)
        assert pixels.dtype == tf.float32 and pixels.shape == (16, 32, 32, 3) and labels.dtype == tf.int32
        np.testing.assert_array_equal(labels, images.train_labels[rows[step, :, 0]])
        expected = np.stack([augmented(images, row, pad, cutout) for row in rows[step]])
        np.testing.assert_allclose(pixels, expected, atol=2.4e-7 * max(1, np.abs(expected).max()))


def test_make_does_as_its_rows_say():
    """Rows chosen for their corners: the last offset, mirrored, the square in a corner, and none moved."""
    images = some_images(10)
    rows = np.array([[3, 8, 8, 1, 24, 24], [3, 0, 0, 0, 0, 0], [9, 4, 4, 1, 12, 0], [0, 0, 8, 1, 0, 24]], np.int32)
    pixels, labels = data.Batches(options(), images, ONE).make(tf.constant(rows))
    np.testing.assert_allclose(pixels, np.stack([augmented(images, row, 4, 8) for row in rows]), atol=5e-7)
    np.testing.assert_array_equal(labels, images.train_labels[[3, 3, 9, 0]])


def test_cutting_and_cropping_on_their_own():
    images = np.arange(2 * 6 * 6, dtype=np.float32).reshape(2, 6, 6, 1) + 1
    cut = data.cut_out(tf.constant(images), tf.constant([0, 3]), tf.constant([4, 1]), 2).numpy()
    expected = images.copy()
    expected[0, 0:2, 4:6], expected[1, 3:5, 1:3] = 0, 0
    np.testing.assert_array_equal(cut, expected)
    np.testing.assert_array_equal(
        data.cut_out(tf.constant(images), tf.constant([1, 1]), tf.constant([1, 1]), 0), images
    )
    window = data.crop(tf.constant(images), tf.constant([1, 2]), tf.constant([0, 2]), tf.constant([0, 1]), side=4)
    np.testing.assert_array_equal(window[0], images[0, 1:5, 0:4])
    np.testing.assert_array_equal(window[1], images[1, 2:6, 2:6][:, ::-1])


def test_an_epoch_opened_after_some_steps_is_its_tail():
    batches = data.Batches(options(batch_size=8), some_images(40), ONE)
    every = list(batches.open(3))
    assert len(every) == 5
    for done in (1, 4, 5):
        rest = list(batches.open(3, done))
        assert len(rest) == 5 - done
        for (pixels, labels), (same, numbers) in zip(rest, every[done:], strict=True):
            np.testing.assert_array_equal(pixels, same)
            np.testing.assert_array_equal(labels, numbers)


def test_an_iterator_ends_at_once():
    # With tf.data's autotuning, one in ten waits for a thread that sleeps on, longer the longer the iterator lived.
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    batches = data.each_replica(strategy, np.zeros([4, 2, 6], np.int32), lambda rows: rows)
    assert seconds_to_end(batches, 60) < 0.5


@pytest.mark.parametrize(("size", "steps"), [(1000, 1), (24, 1), (7, 4), (23, 2), (1, 24)])
def test_test_batches_hold_every_image_once_and_fill_the_last_up(size, steps):
    images = some_images()
    batches, count = data.Batches(options(), images, ONE).test(size)
    taken = list(batches)
    assert count == len(taken) == steps
    assert {pixels.shape[0] for pixels, _ in taken} == {min(size, 24)}  # one shape, compiled once
    labels, pixels = (np.concatenate([batch[k] for batch in taken]) for k in (1, 0))
    np.testing.assert_array_equal(labels[:24], images.test_labels)
    assert (labels[24:] == -1).all()
    scaled = images.train_images / 255
    expected = (images.test_images / 255 - scaled.mean((0, 1, 2))) / scaled.std((0, 1, 2))
    np.testing.assert_allclose(pixels[:24], expected, atol=4e-7)


REPLICAS = """
import json, sys
from types import SimpleNamespace
import numpy as np, tensorflow as tf
import data
options, archive, out = json.loads(sys.argv[1]), *sys.argv[2:]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
images, seen = data.load(archive), {}
for replicas in (2, 3):
    strategy = tf.distribute.MirroredStrategy([f"/cpu:{k}" for k in range(replicas)])
    batches = data.Batches(SimpleNamespace(**options), images, strategy)
    tests, steps = batches.test(7)
    for name, iterator in (("train", batches.open(2, 1)), ("test", iter(tests))):
        for step, batch in enumerate(iterator):
            images_of, labels_of = map(strategy.experimental_local_results, batch)
            assert len(images_of) == replicas and len({part.shape[0] for part in images_of}) == 1
            seen[f"{replicas} {name} {step} images"] = np.concatenate(images_of)
            seen[f"{replicas} {name} {step} labels"] = np.concatenate(labels_of)
    assert steps == step + 1
np.savez(out, **seen)
"""


def test_several_replicas_see_together_what_one_sees_in_its_order(small_data, tmp_path):
    config = options(batch_size=12)
    command = [
        sys.executable,
        "-c",
        REPLICAS,
        json.dumps(vars(config)),
        small_data,
        str(tmp_path / "seen.npz"),
    ]
    environment = os.environ | {"PYTHONPATH": str(CORE)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    seen, images = np.load(tmp_path / "seen.npz"), data.load(small_data)
    one = data.Batches(config, images, ONE)
    train = list(one.open(2, 1))
    assert len(train) == 5  # 80 // 12 less the one that is done
    for replicas, size, steps in ((2, 8, 3), (3, 9, 3)):  # 7 rounded up to a multiple
        for step, (pixels, labels) in enumerate(train):
            np.testing.assert_array_equal(seen[f"{replicas} train {step} images"], pixels)
            np.testing.assert_array_equal(seen[f"{replicas} train {step} labels"], labels)
        parts = [seen[f"{replicas} test {step} labels"] for step in range(steps)]
        assert [len(part) for part in parts] == [size] * steps
        every = np.concatenate(parts)
        np.testing.assert_array_equal(every[:24], images.test_labels)
        assert (every[24:] == -1).all()
    assert len(seen.files) == 2 * 2 * (5 + 3)
