"""lab/images/load.py: where images are looked for, and subsets against NumPy written another way."""

import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lab.base.errors import UserError
from lab.images import download, formats, load
from lab.images.imageset import ImageSet

COUNT = 20  # images a batch file here, instead of 10,000


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and cache, small batch files, and no way to the network."""
    monkeypatch.setattr(formats, "IMAGES_PER_FILE", COUNT)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(download, "CIFAR10_URLS", ())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def save(path: Path, train: int = 60, test: int = 30, train_labels: Any = None) -> Path:
    generator = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        x_train=generator.integers(0, 256, (train, 32, 32, 3), np.uint8),
        y_train=np.arange(train) % 10 if train_labels is None else train_labels,
        x_test=generator.integers(0, 256, (test, 32, 32, 3), np.uint8),
        y_test=np.arange(test) % 10,
    )
    return path


def make_binary(folder: Path, fill: int) -> Path:
    """A small cifar-10-batches-bin whose pixels are all `fill`."""
    folder.mkdir(parents=True)
    for name in (*formats.BINARY.train_files, "test_batch.bin"):
        (folder / name).write_bytes((bytes([1]) + bytes([fill]) * 3072) * COUNT)
    (folder / "batches.meta.txt").write_text("a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n")
    return folder


def make_python(folder: Path, fill: int) -> Path:
    """The same as pickles."""
    folder.mkdir(parents=True)
    for name in (*formats.PYTHON.train_files, "test_batch"):
        rows = np.full((COUNT, 3072), fill, np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [1] * COUNT}, 2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, 2))
    return folder


def archive_of(folder: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    return stream.getvalue()


def fill_of(images: ImageSet) -> int:
    assert images.train_images.min() == images.train_images.max()
    return int(images.train_images[0, 0, 0, 0])


# ---- finding -----------------------------------------------------------------------------------------------


def test_the_formats_and_the_download_need_no_tensorflow() -> None:
    code = "import sys, lab.images.download; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    root = str(Path(load.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_without_a_path_the_folder_goes_before_the_caches(tmp_path: Path) -> None:
    keras = tmp_path / "keras" / "datasets"
    keras.mkdir(parents=True)
    old_archive = archive_of(make_python(tmp_path / "old" / "cifar-10-batches-py", 4))
    (keras / "cifar-10-batches-py.tar.gz").write_bytes(old_archive)
    found = load.load(None, seed=0)
    assert fill_of(found) == 4 and found.source == "cifar-10-batches-py.tar.gz"
    make_python(keras / "cifar-10-batches-py-target" / "cifar-10-batches-py", 3)  # Keras 3
    assert fill_of(load.load(None, seed=0)) == 3
    make_python(keras / "cifar-10-batches-py", 2)  # Keras 2
    assert fill_of(load.load(None, seed=0)) == 2
    Path("data").mkdir()
    assert fill_of(load.load(None, seed=0)) == 2
    (make_python(Path("data/cifar-10-batches-py"), 1) / "test_batch").unlink()  # incomplete: passed over
    assert fill_of(load.load(None, seed=0)) == 2
    make_binary(Path("data/cifar-10-batches-bin"), 0)
    found = load.load(None, seed=0)
    assert fill_of(found) == 0 and found.source == "cifar-10-batches-bin"


def test_without_keras_home_the_cache_is_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    make_python(tmp_path / ".keras" / "datasets" / "cifar-10-batches-py", 7)
    assert fill_of(load.load(None, seed=0)) == 7
    assert fill_of(load.load("~/.keras/datasets", seed=0)) == 7


def test_a_download_is_unpacked_to_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive_of(make_python(tmp_path / "made" / "cifar-10-batches-py", 9))
    (tmp_path / "work" / "data").mkdir()
    Path("data/cifar-10-python.tar.gz.part").write_bytes(content)  # all there but its name: no server needed
    monkeypatch.setattr(download, "CIFAR10_URLS", ("http://127.0.0.1:9/x",))
    monkeypatch.setattr(download, "CIFAR10_BYTES", len(content))
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(formats.PUBLISHED_MD5, formats.PYTHON.archive, md5)
    assert fill_of(load.load(None, seed=0)) == 9
    assert sorted(path.name for path in Path("data").iterdir()) == [
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ]


def test_two_that_start_together_download_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    content = archive_of(make_python(tmp_path / "made" / "cifar-10-batches-py", 9))
    started, fetched = threading.Event(), []

    def fetch(urls: object, destination: Path, **how: object) -> Path:
        fetched.append(destination)
        started.set()
        time.sleep(1.0)
        destination.write_bytes(content)
        return destination

    monkeypatch.setattr(download, "fetch", fetch)
    other = threading.Thread(target=load.load, args=(None,), kwargs={"seed": 0})  # its lock is of another opening
    other.start()
    assert started.wait(60)
    assert fill_of(load.load(None, seed=0)) == 9
    other.join()
    assert len(fetched) == 1 and "waits for another process" in capfd.readouterr().err


def test_what_may_not_be_read_is_a_users_error(unprivileged: Path) -> None:
    with pytest.raises(UserError, match=r"^cannot read .*/closed-.*: Permission denied; check its rights"):
        load.load(str(unprivileged), seed=0)


def test_when_nothing_is_found_the_remedies_are_named() -> None:
    with pytest.raises(UserError, match=r"--data PATH.*--data synthetic"):
        load.load(None, seed=0)


@pytest.mark.parametrize("path", ["", " ", "nowhere", "~nobody-of-this-name/x"])
def test_a_bad_path_is_a_users_error(path: str) -> None:
    with pytest.raises(UserError, match="--data") as caught:
        load.load(path, seed=0)
    assert caught.value.exit_code == 2


def test_a_line_break_in_a_path_stays_one_line() -> None:
    with pytest.raises(UserError) as caught:
        load.load("no\nwhere", seed=0)
    assert "\n" not in str(caught.value)


def test_own_data(tmp_path: Path) -> None:
    path = save(tmp_path / "own.npz")
    images = load.load(str(path), seed=0)
    assert images.source == path.name and not images.synthetic
    assert images.classes == tuple("0123456789")
    with np.load(path) as arrays:
        np.testing.assert_array_equal(images.train_images, arrays["x_train"])


def test_a_folder_of_images_by_class(tmp_path: Path) -> None:
    from PIL import Image

    def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)

    folder = tmp_path / "own"
    colours = {"ant": (200, 10, 20), "bee": (30, 210, 40), "cow": (50, 60, 220)}
    for name, colour in colours.items():
        paint(folder / "train" / name / "1.png", colour, (32, 32))
        paint(folder / "train" / name / "deep" / "2.png", colour, (64, 48))
    paint(folder / "test" / "cow" / "1.png", colours["cow"], (33, 50))
    images = load.load(str(folder), seed=0)
    assert images.classes == ("ant", "bee", "cow") and images.source == "own"
    assert images.train_labels.tolist() == [0, 0, 1, 1, 2, 2] and images.test_labels.tolist() == [2]
    for image, label in zip(images.train_images, images.train_labels, strict=True):
        assert image.shape == (32, 32, 3) and (image == list(colours.values())[label]).all()
    assert (images.test_images == colours["cow"]).all()
    (folder / "train" / "bee" / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png: .*no image"):
        load.load(str(folder), seed=0)
    (folder / "train" / "bee" / "3.png").unlink()
    paint(folder / "test" / "dog" / "1.png", (1, 2, 3), (32, 32))
    with pytest.raises(UserError, match="has the class dog, which"):
        load.load(str(folder), seed=0)


# ---- checksum ----------------------------------------------------------------------------------------------


def test_the_checksum_is_of_the_arrays_and_not_of_the_files(tmp_path: Path) -> None:
    python = load.load(str(make_python(tmp_path / "cifar-10-batches-py", 5)), seed=0)
    binary = load.load(str(make_binary(tmp_path / "cifar-10-batches-bin", 5)), seed=0)
    assert python.sha256 == binary.sha256
    pixels, labels = bytes([5]) * 3072 * COUNT, struct.pack("<i", 1) * COUNT
    expected = hashlib.sha256(
        b"|u1 (100, 32, 32, 3);" + pixels * 5 + b"<i4 (100,);" + labels * 5
        + b"|u1 (20, 32, 32, 3);" + pixels + b"<i4 (20,);" + labels
    )  # fmt: skip
    assert python.sha256 == expected.hexdigest()
    other = load.load(str(make_binary(tmp_path / "x" / "cifar-10-batches-bin", 6)), seed=0)
    assert other.sha256 != python.sha256


# ---- subsets -----------------------------------------------------------------------------------------------


def counts(labels: np.ndarray) -> list[int]:
    return np.bincount(labels, minlength=10).tolist()


def same_images(part: np.ndarray, whole: np.ndarray) -> set[int]:
    """Where in `whole` the images of `part` are; each must be there."""
    index = {image.tobytes(): i for i, image in enumerate(whole)}
    return {index[image.tobytes()] for image in part}


def test_limits_are_balanced_seeded_and_keep_labels_with_their_images(tmp_path: Path) -> None:
    path = str(save(tmp_path / "x.npz", 600, 200))
    whole = load.load(path, seed=0)
    images = load.load(path, seed=1, limit_train=50, limit_test=23)
    assert counts(images.train_labels) == [5] * 10
    assert sorted(counts(images.test_labels)) == [2] * 7 + [3] * 3
    for part in ("train", "test"):
        chosen = sorted(same_images(getattr(images, f"{part}_images"), getattr(whole, f"{part}_images")))
        np.testing.assert_array_equal(getattr(images, f"{part}_labels"), np.array(chosen) % 10)
    again, other = (load.load(path, seed=seed, limit_train=50, limit_test=23) for seed in (1, 2))
    assert again.sha256 == images.sha256 != other.sha256
    larger = load.load(path, seed=1, limit_train=70)
    assert same_images(images.train_images, whole.train_images) < same_images(larger.train_images, whole.train_images)


@pytest.mark.parametrize("count, expected", [(4, [1, 1, 1, 1]), (14, [2, 3, 4, 5]), (22, [2, 3, 7, 10]), (9, [])])
def test_a_subset_is_as_even_as_the_classes_allow(count: int, expected: list[int]) -> None:
    labels = np.repeat(np.arange(4), (2, 3, 7, 10)).astype(np.int32)
    for seed in range(20):
        got = np.bincount(labels[load.balanced_subset(labels, count, seed)], minlength=4)
        assert got.sum() == count
        if count == 14:  # 2 + 3 leaves 9 for two classes
            assert sorted(got.tolist()) == [2, 3, 4, 5]
        elif expected:
            assert got.tolist() == expected
        else:
            assert got.max() - got.min() <= 1


def test_a_subset_chooses_every_image_alike() -> None:
    labels = (np.arange(40) % 4).astype(np.int32)
    chosen = np.zeros(40)
    for seed in range(2000):
        chosen[load.balanced_subset(labels, 10, seed)] += 1
    # binomial with p = 1/4: sigma is 19.4
    assert abs(chosen - 500).max() < 5 * 19.4


def test_holding_out_takes_from_training_and_replaces_the_test_set(tmp_path: Path) -> None:
    path = str(save(tmp_path / "x.npz", 600, 200))
    whole = load.load(path, seed=3)
    images = load.load(path, seed=3, holdout=100)
    assert counts(images.test_labels) == [10] * 10 and counts(images.train_labels) == [50] * 10
    rest = same_images(images.train_images, whole.train_images)
    held_out = same_images(images.test_images, whole.train_images)
    assert len(rest) == 500 and len(held_out) == 100 and not rest & held_out
    np.testing.assert_array_equal(images.test_labels, np.array(sorted(held_out)) % 10)
    assert images.source == f"{Path(path).name} (validation: 100 held out of the training set; test set unused)"
    assert load.load(path, seed=3, holdout=100).sha256 == images.sha256
    assert load.load(path, seed=4, holdout=100).sha256 != images.sha256
    limited = load.load(path, seed=3, holdout=100, limit_train=40, limit_test=20)
    assert same_images(limited.train_images, whole.train_images) < rest
    assert same_images(limited.test_images, whole.train_images) < held_out


def test_holding_out_is_in_proportion_to_the_classes() -> None:
    sizes = np.array([10, 100, 390, 500])
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), sizes)).astype(np.int32)
    for seed in range(10):
        rest, held_out = load.stratified_split(labels, 200, seed)
        np.testing.assert_array_equal(np.sort(np.concatenate([rest, held_out])), np.arange(1000))
        assert abs(np.bincount(labels[held_out]) - sizes / 5).max() <= 1


@pytest.mark.parametrize(
    "options, why",
    [
        ({"limit_train": 61}, "limit_train 61 is more than the 60 train images; give at most 60"),
        ({"limit_test": 31}, "limit_test 31 is more than the 30 test images"),
        ({"holdout": 60}, "holdout 60 leaves nothing of 60 training images; give at most 59"),
        ({"holdout": 20, "limit_train": 41}, "limit_train 41 is more than the 40"),
        ({"holdout": 20, "limit_test": 21}, "limit_test 21 is more than the 20"),
        ({"limit_train": -1}, "limit_train -1 is negative; give 0 or more"),
        ({"limit_test": -2}, "limit_test -2 is negative"),
        ({"holdout": -3}, "holdout -3 is negative"),
        ({"seed": -4}, "seed -4 is negative"),
    ],
)
def test_bad_numbers_are_users_errors(tmp_path: Path, options: dict[str, int], why: str) -> None:
    with pytest.raises(UserError, match=why):
        load.load(str(save(tmp_path / "x.npz")), **{"seed": 0, **options})


# ---- by hyperparameters ------------------------------------------------------------------------------------


def options(data: str, **changes: int) -> SimpleNamespace:
    return SimpleNamespace(**{"data": data, "seed": 3, "limit_train": 0, "limit_test": 0, "holdout": 0, **changes})


@pytest.mark.parametrize("name, count", [("limit_train", 40), ("limit_test", 20), ("holdout", 100), ("seed", 5)])
def test_each_hyperparameter_reaches_the_images(tmp_path: Path, name: str, count: int) -> None:
    path = str(save(tmp_path / "x.npz", 600, 200))
    others = {"limit_train": 30, "limit_test": 10, "holdout": 60}
    images = load.of(options(path, **{**others, name: count}))
    assert images.sha256 == load.load(path, **{"seed": 3, **others, name: count}).sha256
    assert images.sha256 != load.of(options(path, **others)).sha256


def test_no_path_among_the_hyperparameters_looks_in_the_usual_places() -> None:
    make_mixed = np.random.default_rng(0).integers(0, 256, (COUNT, 3073), np.uint8) % 10
    folder = make_binary(Path("data/cifar-10-batches-bin"), 0)
    (folder / "data_batch_1.bin").write_bytes(make_mixed.tobytes())
    assert load.of(options("")).source == "cifar-10-batches-bin"


@pytest.mark.parametrize("channel", range(3))
def test_training_images_that_cannot_be_standardised_are_a_users_error(tmp_path: Path, channel: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    images[..., channel] = 7
    labels = np.arange(6)
    np.savez(tmp_path / "x.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(UserError, match=r"x\.npz: a channel's deviation is 0, not above 0; give images that differ"):
        load.of(options(str(tmp_path / "x.npz")))
    images[3, 4, 5, channel] = 8
    np.savez(tmp_path / "x.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert load.of(options(str(tmp_path / "x.npz"))).source == "x.npz"
