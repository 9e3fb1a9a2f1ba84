"""A sheet of training images as the network sees them, epoch by epoch; `python -m lab.images.load --preview` writes it.

The images come out of the pipeline that training uses, for the same seed, epoch and step, so they are the very
ones that it trains on.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import train_eager
from lab import options as settings
from lab.base.errors import UserError
from lab.images import load as data
from lab.images.load import ImageSet
from lab.ladder import recipes
from lab.machine.pipeline import make_pipeline
from lab.options import Settings
from lab.report import figures as pictures

ROWS, EPOCHS = 10, 8  # of the sheet
GAP = 2  # pixels between images


def hyperparameters(changes: Mapping[str, Any]) -> Settings:
    """Those of train_eager.py but for these, by name. Raises UserError if one is wrong."""
    recipe = changes.get("recipe", train_eager.RECIPE)
    return settings.change(recipes.resolve(recipe, train_eager.constants()), changes)


def write(path: Path, changes: Mapping[str, Any]) -> None:
    """Writes the sheet of the hyperparameters that differ from train_eager.py's, by name.

    Raises UserError for wrong hyperparameters or images, without matplotlib, and if it cannot be written.
    """
    options = hyperparameters(changes)
    pictures.check(path)
    images = data.load(
        options.data or None,
        seed=options.seed,
        limit_train=options.limit_train,
        limit_test=options.limit_test,
        holdout=options.holdout,
    )
    pictures.write(sheet(images, options), path)


def sheet(images: ImageSet, options: Settings) -> Any:
    """A figure: a training image a row, as it is and as it is seen in the first epochs."""
    epochs = min(EPOCHS, options.epochs)
    chosen, seen = augmented(images, options, ROWS, epochs)
    originals = images.train_images[chosen]
    grid = np.concatenate([originals[:, None], seen], 1)  # (rows, 1 + epochs, H, W, 3)
    rows, columns, height, width = grid.shape[:4]
    framed = np.pad(grid, [(0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)], constant_values=255)
    flat = framed.transpose(0, 2, 1, 3, 4).reshape(rows * (height + GAP), columns * (width + GAP), 3)
    figure = pictures.new_figure(0.85 * columns + 1.2, 0.85 * rows + 1.0)
    axes = figure.add_subplot()
    axes.imshow(flat[:-GAP, :-GAP], interpolation="nearest")
    names = [images.classes[label] for label in images.train_labels[chosen]]
    middles = [(width + GAP) * column + width / 2 - 0.5 for column in range(columns)]
    axes.set_xticks(middles, ["as it is", *(f"epoch {epoch}" for epoch in range(1, epochs + 1))])
    middles = [(height + GAP) * row + height / 2 - 0.5 for row in range(rows)]
    axes.set_yticks(middles, names, parse_math=False)
    axes.tick_params(length=0, labelsize=pictures.SMALL, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    hole = " Cutout's zeros are the training set's mean colour." if options.cutout else ""
    title = f"{images.source}, {options.recipe}: pad {options.pad}, flip {options.flip}, cutout {options.cutout}, "
    title += f"seed {options.seed}."
    axes.set_title(textwrap.fill(title + hole, 12 * columns), fontsize=pictures.SMALL + 1)
    return figure


def augmented(
    images: ImageSet, options: Settings, rows: int, epochs: int
) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    """Training images, and the pixels that training sees of them.

    Args:
        images: as loaded for the training.
        options: its hyperparameters.
        rows: how many images, of as many classes as there are.
        epochs: how many of its epochs, from the first.

    Returns:
        Indices of training images (rows,), fewer if there are fewer in all these epochs; what the network sees of
        them, taken back to pixels, uint8 (rows, epochs, H, W, 3).

    Raises:
        UserError: if an epoch has not one batch.
    """
    count = len(images.train_labels)
    if options.batch_size > count:
        raise UserError(f"--batch-size {options.batch_size} is above the {count} training images; lower it")
    mean, std = data.mean_std(images.train_images)
    pipeline = make_pipeline(settings.change(options, {"pipeline": "device"}), images, mean, std, jit=False)
    sources = [pipeline.open(epoch) for epoch in range(1, epochs + 1)]
    orders = [np.where(order < 0, -1 - order, order) for order in (source[0].numpy() for source in sources)]
    chosen = _one_of_each(images.train_labels, orders, rows)
    seen = np.empty([len(chosen), epochs, *images.train_images.shape[1:]], np.uint8)
    for column, (source, order) in enumerate(zip(sources, orders, strict=True)):
        for row, image in enumerate(chosen):
            step, place = np.argwhere(order == image)[0]
            batch, _ = pipeline.decode(*pipeline.take(source, step))
            pixels = 255 * (batch[place].numpy() * std + mean)
            seen[row, column] = np.clip(np.rint(pixels), 0, 255)
    return chosen, seen


def _one_of_each(labels: NDArray[np.int32], orders: list[NDArray[np.int32]], count: int) -> NDArray[np.intp]:
    """The first image of each class, then the second of each, of those that no epoch leaves out."""
    whole = np.all([np.isin(np.arange(len(labels)), order) for order in orders], 0)
    kept = np.flatnonzero(whole)
    ranks = [
        np.count_nonzero(labels[kept[:index]] == labels[image]) for index, image in enumerate(kept[:1000])
    ]
    first = sorted(range(len(ranks)), key=lambda index: (ranks[index], labels[kept[index]]))
    return kept[first[:count]]
