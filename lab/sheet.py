"""The sheet of python -m lab preview: the very images that a training trains on, since its batches make them."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lab import assemble
from lab.assemble import Options
from lab.base.errors import UserError
from lab.images import load
from lab.images.imageset import ImageSet
from lab.machine.resident import HostBatches
from lab.report import figures

ROWS, EPOCHS = 10, 8  # of the sheet
GAP = 2  # pixels between images


def make_batches(images: ImageSet, options: Options) -> HostBatches:
    """The batches of a training, made on the CPU. Raises UserError if an epoch has not one batch."""
    count = len(images.train_labels)
    if options.batch_size > count:
        raise UserError(f"--batch-size {options.batch_size} is above the {count} training images; lower it")
    placement = assemble.place(options)
    batches: HostBatches = assemble.make_batches(options, placement)(options, images, placement.strategy)
    return batches


def sheet(images: ImageSet, options: Options) -> Any:
    """A figure: a training image a row, as it is and as it is seen in the first epochs."""
    epochs = min(EPOCHS, options.epochs)
    chosen, seen = augmented(make_batches(images, options), ROWS, epochs)
    originals = images.train_images[chosen]
    grid = np.concatenate([originals[:, None], seen], 1)  # (rows, 1 + epochs, H, W, 3)
    rows, columns, height, width = grid.shape[:4]
    framed = np.pad(grid, [(0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)], constant_values=255)
    flat = framed.transpose(0, 2, 1, 3, 4).reshape(rows * (height + GAP), columns * (width + GAP), 3)
    figure = figures.new_figure(0.85 * columns + 1.2, 0.85 * rows + 1.0)
    axes = figure.add_subplot()
    axes.imshow(flat[:-GAP, :-GAP], interpolation="nearest")
    names = [images.classes[label] for label in images.train_labels[chosen]]
    middles = [(width + GAP) * column + width / 2 - 0.5 for column in range(columns)]
    axes.set_xticks(middles, ["as it is", *(f"epoch {epoch}" for epoch in range(1, epochs + 1))])
    middles = [(height + GAP) * row + height / 2 - 0.5 for row in range(rows)]
    axes.set_yticks(middles, names, parse_math=False)
    axes.tick_params(length=0, labelsize=figures.SMALL, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    hole = " Cutout's zeros are the training set's mean colour." if options.cutout else ""
    title = f"{images.source}, {options.recipe}: pad {options.pad}, flip {options.flip}, cutout {options.cutout}, "
    title += f"seed {options.seed}."
    axes.set_title(textwrap.fill(title + hole, 12 * columns), fontsize=figures.SMALL + 1)
    return figure


def augmented(batches: HostBatches, rows: int, epochs: int) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    """Training images, and the pixels that training sees of them.

    Args:
        batches: the training's.
        rows: how many images, of as many classes as there are.
        epochs: how many of its epochs, from the first.

    Returns:
        Indices of training images (rows,), fewer if there are fewer in all these epochs; what the network sees of
        them, taken back to pixels, uint8 (rows, epochs, H, W, 3); smaller images are in the upper left of white.
    """
    images = batches.images
    plans = [np.concatenate(batches.rows(epoch)) for epoch in range(1, epochs + 1)]
    chosen = _one_of_each(images.train_labels, [plan[:, 0] for plan in plans], rows)
    seen = np.full([len(chosen), epochs, *images.train_images.shape[1:]], 255, np.uint8)
    for column, plan in enumerate(plans):
        places = [np.flatnonzero(plan[:, 0] == image)[0] for image in chosen]
        views, _ = batches.decode(*batches.sent(tf.constant(plan[places])), *batches.matrix(column + 1))
        pixels = 255 * (views.numpy() * batches.std + batches.mean)
        side = views.shape[1]
        seen[:, column, :side, :side] = np.clip(np.rint(pixels), 0, 255)
    return chosen, seen


def _one_of_each(labels: NDArray[np.int32], orders: list[NDArray[np.int32]], count: int) -> NDArray[np.intp]:
    """The first image of each class, then the second of each, of those that no epoch leaves out."""
    kept = np.flatnonzero(np.all([np.isin(np.arange(len(labels)), order) for order in orders], 0))
    ranks = [np.count_nonzero(labels[kept[:index]] == labels[image]) for index, image in enumerate(kept[:1000])]
    first = sorted(range(len(ranks)), key=lambda index: (ranks[index], labels[kept[index]]))
    return kept[first[:count]]


def draw(path: Path, changes: dict[str, Any]) -> None:
    """Writes the sheet of a training with these hyperparameters. Raises UserError."""
    options = assemble.configure({**changes, "device": "cpu"})  # the batches are the same everywhere
    figures.check(path)
    figures.write(sheet(load.of(options), options), path)
