"""A data set made on the spot: ten shapes, to try everything without CIFAR-10. NumPy only."""

import numpy as np
from numpy.typing import NDArray

from lab.images.imageset import ImageSet

TRAIN_IMAGES = 10_000  # images, as many of each class
TEST_IMAGES = 2_000
STREAM = 0  # of the seed; lab/images/load.py draws from the next ones
CLASSES = ("disc", "ring", "square", "frame", "triangle", "plus", "cross", "rows", "columns", "checks")


def make(seed: int) -> ImageSet:
    """Makes 10,000 training and 2,000 test images of ten shapes, as many of each.

    Place, size, tilt, colours, contrast, background slope and noise are random and say nothing about the
    class, and a shape is as often darker as brighter than its background: pixels and mean colours alone do
    not tell the classes apart, shapes do.

    Args:
        seed: 0 or more.
    """
    generator = np.random.default_rng([seed, STREAM])
    labels = np.concatenate([generator.permutation(np.arange(n) % 10) for n in (TRAIN_IMAGES, TEST_IMAGES)]).astype(
        np.int32
    )
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    for start in range(0, len(labels), 2_000):  # a bound on the memory
        part = slice(start, start + 2_000)
        images[part] = _draw(labels[part], generator)
    return ImageSet(
        images[:TRAIN_IMAGES],
        labels[:TRAIN_IMAGES],
        images[TRAIN_IMAGES:],
        labels[TRAIN_IMAGES:],
        CLASSES,
        source=f"synthetic shapes (seed {seed}), not CIFAR-10",
        synthetic=True,
    )


def _draw(labels: NDArray[np.int32], generator: np.random.Generator) -> NDArray[np.uint8]:
    n = len(labels)

    def draw(low: float, high: float, *shape: int) -> NDArray[np.float32]:
        return generator.uniform(low, high, (n, *shape)).astype(np.float32)

    y, x = np.mgrid[0:32, 0:32].astype(np.float32)  # pixels, (32, 32) each
    centre_x, centre_y, tilt = draw(10, 22, 1, 1), draw(10, 22, 1, 1), draw(-0.25, 0.25, 1, 1)  # (n, 1, 1)
    scale = 1 / draw(6, 11, 1, 1)  # 1 / half the shape's width in pixels
    u = scale * (np.cos(tilt) * (x - centre_x) + np.sin(tilt) * (y - centre_y))  # (n, 32, 32)
    v = scale * (np.cos(tilt) * (y - centre_y) - np.sin(tilt) * (x - centre_x))
    inside = np.empty((n, 32, 32, 1), np.float32)
    for label in range(10):
        members = labels == label
        inside[members, :, :, 0] = _shape(label, u[members], v[members])

    background = draw(70, 185, 1, 1, 3)
    slope = draw(-1.5, 1.5, 1, 1, 3) * (x[..., None] - 15.5) + draw(-1.5, 1.5, 1, 1, 3) * (y[..., None] - 15.5)
    direction = generator.standard_normal((n, 1, 1, 3), np.float32)  # of the colour difference, (n, 1, 1, 3)
    contrast = draw(50, 130, 1, 1, 1) * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    noise = draw(8, 28, 1, 1, 1) * generator.standard_normal((n, 32, 32, 3), np.float32)
    return np.clip(background + slope + contrast * inside + noise, 0, 255).astype(np.uint8)


def _shape(label: int, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the points (u, v), in half-widths from the centre, are inside the shape."""
    radius, side = np.hypot(u, v), np.maximum(abs(u), abs(v))
    arm = np.minimum(abs(u), abs(v))
    diagonal = np.minimum(abs(u + v), abs(u - v))
    row, column = np.floor(2.5 * v) % 2 == 0, np.floor(2.5 * u) % 2 == 0
    match CLASSES[label]:
        case "disc":
            return radius < 1
        case "ring":
            return (radius > 0.55) & (radius < 1)
        case "square":
            return side < 0.9
        case "frame":
            return (side > 0.5) & (side < 0.9)
        case "triangle":
            return (v < 0.8) & (abs(u) < 0.55 * (v + 1))
        case "plus":
            return (arm < 0.25) & (side < 1)
        case "cross":
            return (diagonal < 0.35) & (side < 0.8)
        case "rows":
            return row & (side < 1)
        case "columns":
            return column & (side < 1)
        case _:
            return (row ^ column) & (side < 1)
