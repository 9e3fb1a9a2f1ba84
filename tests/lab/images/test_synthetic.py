"""lab/images/synthetic.py: shapes that a network must look at, and pixels that alone do not tell them."""

import numpy as np
import pytest

from lab.images import load, synthetic
from lab.images.imageset import ImageSet


def counts(labels: np.ndarray) -> list[int]:
    return np.bincount(labels, minlength=10).tolist()


@pytest.fixture(scope="module")
def shapes() -> ImageSet:
    return synthetic.make(0)


def test_the_synthetic_set_is_balanced_and_says_what_it_is(shapes: ImageSet) -> None:
    assert shapes.train_images.shape == (10_000, 32, 32, 3) and shapes.train_images.dtype == np.uint8
    assert shapes.test_images.shape == (2_000, 32, 32, 3) and shapes.test_images.dtype == np.uint8
    assert counts(shapes.train_labels) == [1000] * 10 and counts(shapes.test_labels) == [200] * 10
    assert shapes.train_labels.dtype == np.int32 and len(shapes.classes) == 10
    assert shapes.synthetic and "synthetic" in shapes.source and "not CIFAR-10" in shapes.source


def test_each_seed_makes_its_own_images_and_the_word_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "TRAIN_IMAGES", 200)
    monkeypatch.setattr(synthetic, "TEST_IMAGES", 100)
    made = synthetic.make(0)
    assert synthetic.make(0).sha256 == made.sha256 != synthetic.make(1).sha256
    assert load.load("synthetic", seed=0).sha256 == made.sha256
    small = load.load("synthetic", seed=0, limit_train=100, limit_test=50)
    assert small.synthetic and len(small.train_labels) == 100 and len(small.test_labels) == 50
    known = {image.tobytes() for image in made.train_images}
    assert {image.tobytes() for image in small.train_images} < known


def linear_accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Logistic regression on the features, 12 epochs of plain gradient descent."""
    weight = np.zeros((train.shape[1], 10), np.float32)
    for _ in range(12):
        for start in range(0, len(train), 500):  # the images are in random order
            batch = slice(start, start + 500)
            logits = train[batch] @ weight
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            error = odds / odds.sum(axis=1, keepdims=True) - np.eye(10, dtype=np.float32)[labels[batch]]
            weight -= 0.01 * (error.T @ train[batch]).T / len(error)
    return float(((test @ weight).argmax(axis=1) == test_labels).mean())


def neighbour_accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """The label of the nearest training image, features of unit length."""
    return float((labels[(test @ train.T).argmax(axis=1)] == test_labels).mean())


def edges(images: np.ndarray) -> np.ndarray:
    """Gradient lengths in 10 x 10 cells, centred and of unit length: shape without colour and contrast."""
    lengths = []
    for start in range(0, len(images), 200):  # as many as a processor's cache takes
        part = images[start : start + 200].astype(np.float32)
        across = part[:, 1:-1, 2:] - part[:, 1:-1, :-2]
        down = part[:, 2:, 1:-1] - part[:, :-2, 1:-1]
        length = np.sqrt((across**2 + down**2).sum(axis=-1)).reshape(-1, 10, 3, 10, 3).mean(axis=(2, 4))
        lengths.append(length.reshape(len(part), 100))
    cells = np.concatenate(lengths)
    cells -= cells.mean(axis=1, keepdims=True)
    return cells / np.linalg.norm(cells, axis=1, keepdims=True)


def test_the_synthetic_set_is_neither_trivial_nor_noise(shapes: ImageSet) -> None:
    train, test = ((a.reshape(len(a), -1) / np.float32(64) - 2) for a in (shapes.train_images, shapes.test_images))
    labels = shapes.train_labels, shapes.test_labels
    assert linear_accuracy(train, labels[0], test, labels[1]) < 0.30  # CIFAR-10 itself allows 0.38
    colours = [a.mean(axis=(1, 2), dtype=np.float32) / 64 - 2 for a in (shapes.train_images, shapes.test_images)]
    assert linear_accuracy(colours[0], labels[0], colours[1], labels[1]) < 0.15
    assert neighbour_accuracy(edges(shapes.train_images), labels[0], edges(shapes.test_images), labels[1]) > 0.5
