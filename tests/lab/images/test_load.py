"""lab/images/load.py: subsets, statistics and the synthetic set against NumPy written another way."""

import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.base.errors import UserError
from lab.images import download, formats
from lab.images import load as data

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


def fill_of(images: data.ImageSet) -> int:
    assert images.train_images.min() == images.train_images.max()
    return int(images.train_images[0, 0, 0, 0])


# --- finding -------------------------------------------------------------------------------------------


def test_importing_reads_nothing_and_needs_no_tensorflow() -> None:
    code = "import sys, lab.images.load; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    root = str(Path(data.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_without_a_path_the_folder_goes_before_the_caches(tmp_path: Path) -> None:
    keras = tmp_path / "keras" / "datasets"
    keras.mkdir(parents=True)
    old_archive = archive_of(make_python(tmp_path / "old" / "cifar-10-batches-py", 4))
    (keras / "cifar-10-batches-py.tar.gz").write_bytes(old_archive)
    found = data.load(None, seed=0)
    assert fill_of(found) == 4 and found.source == "cifar-10-batches-py.tar.gz"
    make_python(keras / "cifar-10-batches-py-target" / "cifar-10-batches-py", 3)  # Keras 3
    assert fill_of(data.load(None, seed=0)) == 3
    make_python(keras / "cifar-10-batches-py", 2)  # Keras 2
    assert fill_of(data.load(None, seed=0)) == 2
    Path("data").mkdir()
    assert fill_of(data.load(None, seed=0)) == 2
    (make_python(Path("data/cifar-10-batches-py"), 1) / "test_batch").unlink()  # incomplete: passed over
    assert fill_of(data.load(None, seed=0)) == 2
    make_binary(Path("data/cifar-10-batches-bin"), 0)
    found = data.load(None, seed=0)
    assert fill_of(found) == 0 and found.source == "cifar-10-batches-bin"


def test_without_keras_home_the_cache_is_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    make_python(tmp_path / ".keras" / "datasets" / "cifar-10-batches-py", 7)
    assert fill_of(data.load(None, seed=0)) == 7
    assert fill_of(data.load("~/.keras/datasets", seed=0)) == 7


def test_a_download_is_unpacked_to_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive_of(make_python(tmp_path / "made" / "cifar-10-batches-py", 9))
    (tmp_path / "work" / "data").mkdir()
    Path("data/cifar-10-python.tar.gz.part").write_bytes(content)  # all there but its name: no server needed
    monkeypatch.setattr(download, "CIFAR10_URLS", ("http://127.0.0.1:9/x",))
    monkeypatch.setattr(download, "CIFAR10_BYTES", len(content))
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(formats.PUBLISHED_MD5, formats.PYTHON.archive, md5)
    assert fill_of(data.load(None, seed=0)) == 9
    assert sorted(path.name for path in Path("data").iterdir()) == [
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ]


def test_when_nothing_is_found_the_remedies_are_named() -> None:
    with pytest.raises(UserError, match=r"--data PATH.*--data synthetic"):
        data.load(None, seed=0)


@pytest.mark.parametrize("path", ["", " ", "nowhere", "~nobody-of-this-name/x"])
def test_a_bad_path_is_a_users_error(path: str) -> None:
    with pytest.raises(UserError, match="--data") as caught:
        data.load(path, seed=0)
    assert caught.value.exit_code == 2


def test_a_line_break_in_a_path_stays_one_line() -> None:
    with pytest.raises(UserError) as caught:
        data.load("no\nwhere", seed=0)
    assert "\n" not in str(caught.value)


def test_own_data(tmp_path: Path) -> None:
    path = save(tmp_path / "own.npz")
    images = data.load(str(path), seed=0)
    assert images.source == path.name and not images.synthetic
    assert images.classes == tuple("0123456789")
    with np.load(path) as arrays:
        np.testing.assert_array_equal(images.train_images, arrays["x_train"])


# --- checksum ------------------------------------------------------------------------------------------


def test_the_checksum_is_of_the_arrays_and_not_of_the_files(tmp_path: Path) -> None:
    python = data.load(str(make_python(tmp_path / "cifar-10-batches-py", 5)), seed=0)
    binary = data.load(str(make_binary(tmp_path / "cifar-10-batches-bin", 5)), seed=0)
    assert python.sha256() == binary.sha256()
    pixels, labels = bytes([5]) * 3072 * COUNT, struct.pack("<i", 1) * COUNT
    expected = hashlib.sha256(
        b"|u1 (100, 32, 32, 3);" + pixels * 5 + b"<i4 (100,);" + labels * 5
        + b"|u1 (20, 32, 32, 3);" + pixels + b"<i4 (20,);" + labels
    )  # fmt: skip
    assert python.sha256() == expected.hexdigest()
    other = data.load(str(make_binary(tmp_path / "x" / "cifar-10-batches-bin", 6)), seed=0)
    assert other.sha256() != python.sha256()


# --- subsets -------------------------------------------------------------------------------------------


def counts(labels: np.ndarray) -> list[int]:
    return np.bincount(labels, minlength=10).tolist()


def same_images(part: np.ndarray, whole: np.ndarray) -> set[int]:
    """Where in `whole` the images of `part` are; each must be there."""
    index = {image.tobytes(): i for i, image in enumerate(whole)}
    return {index[image.tobytes()] for image in part}


def test_limits_are_balanced_seeded_and_keep_labels_with_their_images(tmp_path: Path) -> None:
    path = str(save(tmp_path / "x.npz", 600, 200))
    whole = data.load(path, seed=0)
    images = data.load(path, seed=1, limit_train=50, limit_test=23)
    assert counts(images.train_labels) == [5] * 10
    assert sorted(counts(images.test_labels)) == [2] * 7 + [3] * 3
    for part in ("train", "test"):
        chosen = sorted(same_images(getattr(images, f"{part}_images"), getattr(whole, f"{part}_images")))
        np.testing.assert_array_equal(getattr(images, f"{part}_labels"), np.array(chosen) % 10)
    again, other = (data.load(path, seed=seed, limit_train=50, limit_test=23) for seed in (1, 2))
    assert again.sha256() == images.sha256() != other.sha256()
    larger = data.load(path, seed=1, limit_train=70)
    assert same_images(images.train_images, whole.train_images) < same_images(
        larger.train_images, whole.train_images
    )


@pytest.mark.parametrize(
    "count, expected", [(4, [1, 1, 1, 1]), (14, [2, 3, 4, 5]), (22, [2, 3, 7, 10]), (9, [])]
)
def test_a_subset_is_as_even_as_the_classes_allow(count: int, expected: list[int]) -> None:
    labels = np.repeat(np.arange(4), (2, 3, 7, 10)).astype(np.int32)
    for seed in range(20):
        got = np.bincount(labels[data.balanced_subset(labels, count, seed)], minlength=4)
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
        chosen[data.balanced_subset(labels, 10, seed)] += 1
    # binomial with p = 1/4: sigma is 19.4
    assert abs(chosen - 500).max() < 5 * 19.4


def test_holding_out_takes_from_training_and_replaces_the_test_set(tmp_path: Path) -> None:
    path = str(save(tmp_path / "x.npz", 600, 200))
    whole = data.load(path, seed=3)
    images = data.load(path, seed=3, holdout=100)
    assert counts(images.test_labels) == [10] * 10 and counts(images.train_labels) == [50] * 10
    rest = same_images(images.train_images, whole.train_images)
    held_out = same_images(images.test_images, whole.train_images)
    assert len(rest) == 500 and len(held_out) == 100 and not rest & held_out
    np.testing.assert_array_equal(images.test_labels, np.array(sorted(held_out)) % 10)
    assert (
        images.source == f"{Path(path).name} (validation: 100 held out of the training set; test set unused)"
    )
    assert data.load(path, seed=3, holdout=100).sha256() == images.sha256()
    assert data.load(path, seed=4, holdout=100).sha256() != images.sha256()
    limited = data.load(path, seed=3, holdout=100, limit_train=40, limit_test=20)
    assert same_images(limited.train_images, whole.train_images) < rest
    assert same_images(limited.test_images, whole.train_images) < held_out


def test_holding_out_is_in_proportion_to_the_classes() -> None:
    sizes = np.array([10, 100, 390, 500])
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), sizes)).astype(np.int32)
    for seed in range(10):
        rest, held_out = data.stratified_split(labels, 200, seed)
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
        data.load(str(save(tmp_path / "x.npz")), **{"seed": 0, **options})


# --- the synthetic set ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes() -> data.ImageSet:
    return data.synthetic(0)


def test_the_synthetic_set_is_balanced_seeded_and_says_what_it_is(shapes: data.ImageSet) -> None:
    assert shapes.train_images.shape == (10_000, 32, 32, 3) and shapes.train_images.dtype == np.uint8
    assert shapes.test_images.shape == (2_000, 32, 32, 3) and shapes.test_images.dtype == np.uint8
    assert counts(shapes.train_labels) == [1000] * 10 and counts(shapes.test_labels) == [200] * 10
    assert shapes.train_labels.dtype == np.int32 and len(shapes.classes) == 10
    assert shapes.synthetic and "synthetic" in shapes.source and "not CIFAR-10" in shapes.source
    small = data.load("synthetic", seed=0, limit_train=100, limit_test=50)
    assert small.synthetic and len(same_images(small.train_images, shapes.train_images)) == 100
    assert data.synthetic(1).sha256() != shapes.sha256()


def linear_accuracy(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> float:
    """Logistic regression on the features, 12 epochs of plain gradient descent."""
    generator = np.random.default_rng(0)
    weight = np.zeros((train.shape[1], 10), np.float32)
    for _ in range(12):
        order = generator.permutation(len(train))
        for start in range(0, len(order), 500):
            batch = order[start : start + 500]
            logits = train[batch] @ weight
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            error = odds / odds.sum(axis=1, keepdims=True) - np.eye(10, dtype=np.float32)[labels[batch]]
            weight -= 0.01 * train[batch].T @ error / len(batch)
    return float(((test @ weight).argmax(axis=1) == test_labels).mean())


def neighbour_accuracy(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> float:
    """The label of the nearest training image, features of unit length."""
    return float((labels[(test @ train.T).argmax(axis=1)] == test_labels).mean())


def edges(images: np.ndarray) -> np.ndarray:
    """Gradient lengths in 10 x 10 cells, centred and of unit length: shape without colour and contrast."""
    images = images.astype(np.float32)
    across = images[:, 1:-1, 2:] - images[:, 1:-1, :-2]
    down = images[:, 2:, 1:-1] - images[:, :-2, 1:-1]
    length = np.sqrt((across**2 + down**2).sum(axis=-1)).reshape(-1, 10, 3, 10, 3).mean(axis=(2, 4))
    length = length.reshape(len(images), 100)
    length -= length.mean(axis=1, keepdims=True)
    return length / np.linalg.norm(length, axis=1, keepdims=True)


def test_the_synthetic_set_is_neither_trivial_nor_noise(shapes: data.ImageSet) -> None:
    train, test = (
        (a.reshape(len(a), -1) / np.float32(64) - 2) for a in (shapes.train_images, shapes.test_images)
    )
    labels = shapes.train_labels, shapes.test_labels
    assert linear_accuracy(train, labels[0], test, labels[1]) < 0.30  # CIFAR-10 itself allows 0.38
    colours = [
        a.mean(axis=(1, 2), dtype=np.float32) / 64 - 2 for a in (shapes.train_images, shapes.test_images)
    ]
    assert linear_accuracy(colours[0], labels[0], colours[1], labels[1]) < 0.15
    assert (
        neighbour_accuracy(edges(shapes.train_images), labels[0], edges(shapes.test_images), labels[1]) > 0.5
    )


# --- one-time preparation ------------------------------------------------------------------------------


def test_mean_and_deviation_are_exact() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2_345, 5, 7, 3), np.uint8) // np.array([1, 2, 5], np.uint8)
    mean, std = data.mean_std(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)
    # by hand: channels of 0 and 255, of 0 0 0 255, and of 7 alone
    pixels = np.array([[0, 0, 7], [255, 0, 7], [0, 0, 7], [255, 255, 7]], np.uint8).reshape(2, 2, 1, 3)
    mean, std = data.mean_std(pixels)
    np.testing.assert_allclose(mean, [0.5, 0.25, 7 / 255], rtol=1e-15)
    np.testing.assert_allclose(std, [0.5, np.sqrt(3) / 4, 0], rtol=1e-15)


def test_standardising() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    mean, std = data.mean_std(images)
    result = data.standardise(images, mean, std)
    assert result.dtype == np.float32 and result.shape == images.shape
    np.testing.assert_allclose(result, (images / 255 - mean) / std, atol=2e-6)
    np.testing.assert_allclose(result.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(axis=(0, 1, 2)), 1, atol=1e-5)
    with pytest.raises(UserError, match="deviation is 0"):
        data.standardise(images, mean, np.array([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_reflect_padding(dtype: Any) -> None:
    row = np.array([1, 2, 3, 4, 5], dtype)
    images = (row[None, :, None, None] * 10 + row[None, None, :, None]) * np.ones((2, 1, 1, 3), dtype)
    padded = data.reflect_pad(images, 2)
    mirrored = np.array([3, 2, 1, 2, 3, 4, 5, 4, 3], dtype)
    assert padded.shape == (2, 9, 9, 3) and padded.dtype == dtype
    np.testing.assert_array_equal(padded[1, :, :, 2], mirrored[:, None] * 10 + mirrored[None, :])
    np.testing.assert_array_equal(data.reflect_pad(images, 0), images)
    assert data.reflect_pad(images, 4).shape == (2, 13, 13, 3)
    for bad in (5, -1):
        with pytest.raises(UserError, match=f"pad {bad} is out of range; give 0 to 4"):
            data.reflect_pad(images, bad)
