"""A network as a table and as a diagram, both read off the model by running it once.

Nothing here knows the networks: `trace` watches the layers as they are called.
"""

from dataclasses import dataclass
from html import escape
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

from lab.ladder.networks import leaves

BOX_WIDTH, BOX_HEIGHT, GAP = 250, 34, 20  # of the diagram, in pixels
COLOURS = {  # of a box, by what the layer does
    "Conv": "#cfe3f7",
    "Whiten": "#d9d2ee",
    "BatchNorm": "#e3f1d7",
    "Activation": "#fbe8c8",
    "MaxPool": "#f6d5d5",
    "GlobalPool": "#f6d5d5",
    "Add": "#ffffff",
    "Head": "#dddddd",
}


@dataclass(frozen=True)
class Row:
    """One layer as it was called.

    Args:
        name: where it is in the network, e.g. layer1/entry/conv.
        kind: its class.
        detail: the window and stride of a convolution, the size of a pool, the kind of an activation.
        shape: of its output for one image.
        parameters: numbers that are trained.
        frozen: other numbers it holds, running averages included.
        multiply_adds: for one image, of products with weights only.
        inputs: indices of the rows whose outputs it takes; -1 for the images.
    """

    name: str
    kind: str
    detail: str
    shape: tuple[int, ...]
    parameters: int
    frozen: int
    multiply_adds: int
    inputs: tuple[int, ...]


def trace(model: tf.keras.Model, side: int = 32) -> list[Row]:
    """The layers of a network in the order in which they are called for an image (side, side, 3).

    Dropout layers, which do nothing then, are left out.
    """
    names = {id(layer): name for name, layer in leaves(model)}
    images = tf.zeros([1, side, side, 3])
    made: dict[int, int] = {id(images): -1}  # a tensor's row
    rows: list[Row] = []
    kept = [images]  # tensors must live, or an id would be used again
    call = tf.keras.layers.Layer.__call__

    def watched(layer: Any, *arguments: Any, **options: Any) -> Any:
        output = call(layer, *arguments, **options)
        if id(layer) not in names:
            return output
        kept.append(output)
        inputs = [argument for argument in arguments if tf.is_tensor(argument)]
        sources = tuple(made.get(id(argument), -2) for argument in inputs)
        if isinstance(layer, tf.keras.layers.Dropout):
            made[id(output)] = sources[0]
            return output
        made[id(output)] = len(rows)
        rows.append(_row(names[id(layer)], layer, output, sources))
        return output

    with mock.patch.object(tf.keras.layers.Layer, "__call__", watched):
        model(images)
    return rows


def _row(name: str, layer: Any, output: tf.Tensor, inputs: tuple[int, ...]) -> Row:
    kernel, shape = getattr(layer, "kernel", None), tuple(output.shape[1:])
    pixels = int(np.prod(shape[:-1]))  # () for a vector: 1
    return Row(
        name=name,
        kind=type(layer).__name__,
        detail=_detail(layer),
        shape=shape,
        parameters=sum(int(np.prod(weight.shape)) for weight in layer.trainable_variables),
        frozen=sum(int(np.prod(weight.shape)) for weight in layer.non_trainable_variables),
        multiply_adds=0 if kernel is None else pixels * int(np.prod(kernel.shape)),
        inputs=inputs,
    )


def _detail(layer: Any) -> str:
    kernel = getattr(layer, "kernel", None)
    if kernel is not None and len(kernel.shape) == 4:
        stride = getattr(layer, "stride", 1)
        return f"{kernel.shape[0]}x{kernel.shape[1]}" + (f", stride {stride}" if stride > 1 else "")
    if hasattr(layer, "kind"):
        return str(layer.kind)
    if hasattr(layer, "average"):
        return "maximum and mean" if layer.average else "maximum"
    return f"{layer.size}x{layer.size}" if hasattr(layer, "size") else ""


def outputs(rows: list[Row]) -> int:
    """The numbers in the outputs of all layers for one image."""
    return sum(int(np.prod(row.shape)) for row in rows)


def multiply_adds(rows: list[Row]) -> int:
    """Of a forward pass, for one image."""
    return sum(row.multiply_adds for row in rows)


def table(rows: list[Row]) -> str:
    """The rows as text, with their sums."""
    form = "{:<24} {:<11} {:<16} {:>14} {:>11} {:>8} {:>13}"
    lines = [form.format("layer", "kind", "", "output", "parameters", "frozen", "multiply-adds")]
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        numbers = (f"{row.parameters:,}", f"{row.frozen:,}", f"{row.multiply_adds:,}")
        lines.append(form.format(row.name, row.kind, row.detail, shape, *numbers))
    sums = (sum(row.parameters for row in rows), sum(row.frozen for row in rows), multiply_adds(rows))
    return "\n".join([*lines, form.format("sum", "", "", "", *(f"{number:,}" for number in sums))])


def svg(rows: list[Row], title: str) -> str:
    """A diagram: a box a layer, top to bottom, an arrow for each input; skips run along the right side."""
    left, top, step = 30, 60, BOX_HEIGHT + GAP
    width, height = left + BOX_WIDTH + 430, top + step * (len(rows) + 1)

    def middle(index: int) -> float:
        return top + step * (index + 1) + BOX_HEIGHT / 2

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="3.5" orient="auto">'
        '<path d="M0,0 L7,3.5 L0,7 z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="30" font-size="17" font-weight="bold">{escape(title)}</text>',
    ]
    for index in range(-1, len(rows)):
        y = middle(index) - BOX_HEIGHT / 2
        row = rows[index] if index >= 0 else None
        colour = COLOURS.get(row.kind, "#eeeeee") if row else "#ffffff"
        text = f"{row.kind} {row.detail}" if row else "images"
        shape = " x ".join(map(str, row.shape)) if row else "32 x 32 x 3"
        parts += [
            f'<rect x="{left}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" fill="{colour}" '
            'stroke="#555"/>',
            f'<text x="{left + 10}" y="{y + 21}">{escape(text.strip())}</text>',
            f'<text x="{left + BOX_WIDTH - 8}" y="{y + 21}" text-anchor="end" fill="#555">{shape}</text>',
        ]
        if row:
            count = f", {row.parameters:,} parameters" if row.parameters else ""
            parts.append(
                f'<text x="{left + BOX_WIDTH + 70}" y="{y + 21}" fill="#777">{escape(row.name + count)}</text>'
            )
            parts += [_arrow(source, index, middle, left) for source in row.inputs if source >= -1]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _arrow(source: int, target: int, middle: Any, left: int) -> str:
    style = 'fill="none" stroke="#555" stroke-width="1.5" marker-end="url(#head)"'
    if target == source + 1:
        x = left + BOX_WIDTH / 2
        down, up = middle(source) + BOX_HEIGHT / 2, middle(target) - BOX_HEIGHT / 2
        return f'<path d="M{x},{down} L{x},{up}" {style}/>'
    x, out = left + BOX_WIDTH, left + BOX_WIDTH + 50
    path = f"M{x},{middle(source)} C{out},{middle(source)} {out},{middle(source) + 20} {out},{middle(source) + 30} "
    path += f"L{out},{middle(target) - 30} C{out},{middle(target) - 20} {out},{middle(target)} {x},{middle(target)}"
    return f'<path d="{path}" {style}/>'
