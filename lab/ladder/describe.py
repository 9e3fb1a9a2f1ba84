"""A network as a table and as a diagram, both read off the graph of its forward pass.

Nothing here knows the networks: each layer is watched while the graph is made, for the operations that are its own.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

from lab.base.errors import UserError
from lab.ladder.networks import leaves
from lab.machine import sides

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
# Operations that a network does itself, outside any layer without layers of its own, and what they are here.
OPERATIONS = {"AddV2": "Add", "Max": "GlobalPool", "Relu": "Activation"}
KERAS = {"Dense": "Head", "Conv2D": "Conv", "MaxPooling2D": "MaxPool"}
PRODUCTS = (
    "Conv2D",
    "DepthwiseConv2dNative",
    "MatMul",
    "BatchMatMulV2",
)  # with weights, whose last axis is that of the output


@dataclass(frozen=True)
class Row:
    """One layer as it was called.

    Args:
        name: where it is in the network, e.g. layer1/entry/conv.
        kind: its class.
        detail: the window and stride of a convolution, the size of a pool, the kind of an activation.
        shape: of its output for one image.
        parameters: numbers that are trained.
        frozen: other numbers it holds, running statistics included.
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


def trace(network: tf.keras.Model, side: int = sides.FULL) -> list[Row]:
    """The layers of a network in the order in which they are called for an image (side, side, 3), each once.

    Dropout layers, which do nothing then, are left out.

    Raises:
        UserError: if it reads weights that Keras does not know, or does not read some that Keras would train.
    """
    graph, layer_of = _graph(network, side)
    _check_weights(network, graph)
    places = {id(layer): place for place, layer in leaves(network)}
    row_of = {graph.inputs[0].name: -1}  # by tensor; those that do not depend on the images have none
    numbers: dict[Any, int] = {}  # a row's, by layer, or by operation where it stands in none
    rows: list[Row] = []
    products: Counter[int] = Counter()  # multiply-adds, by row
    for operation in graph.get_operations():
        sources = [row_of[tensor.name] for tensor in operation.inputs if tensor.name in row_of]
        if not sources:
            continue
        layer, row = layer_of.get(operation.name), sources[0]
        if layer is not None or operation.type in OPERATIONS:  # else a cast or a scale, without a row of its own
            row = numbers.setdefault(id(layer) if layer is not None else operation.name, len(rows))
            inputs = rows[row].inputs if row < len(rows) else ()
            inputs += tuple(source for source in dict.fromkeys(sources) if source not in (*inputs, row))
            shape = tuple(operation.outputs[0].shape[1:])  # in the end, of the layer's last operation
            kind = OPERATIONS.get(operation.type, "")
            made = Row(kind.lower(), kind, "", shape, 0, 0, 0, inputs)
            rows[row:] = [made if layer is None else _row(places[id(layer)], layer, shape, inputs), *rows[row + 1 :]]
        products[row] += _multiply_adds(operation, row_of)
        row_of |= {tensor.name: row for tensor in operation.outputs}
    return [replace(row, multiply_adds=products[number]) for number, row in enumerate(rows)]


def of_sides(network: tf.keras.Model, text: str) -> dict[int, list[Row]]:
    """`trace` at full size and for each side of a text like '24x3 28x3 32', by the side.

    Raises UserError as `trace` does, or for a side that is too small.
    """
    rows = {sides.FULL: trace(network)} | {stage.side: _whole(network, stage.side) for stage in sides.parse(text)}
    for side in [side for side in rows if not rows[side]]:
        least = next(more for more in range(side + 1, sides.FULL + 1) if _whole(network, more))
        raise UserError(f"--sides {text!r}: this network's pools leave nothing of {side} pixels; give {least} or more")
    return rows


def _whole(network: tf.keras.Model, side: int) -> list[Row]:
    """`trace`, or [] if a layer has nothing to put out."""
    try:
        rows = trace(network, side)
    except ValueError:  # TensorFlow's, for some sizes of a pool
        return []
    return [] if any(0 in row.shape for row in rows) else rows


def _multiply_adds(operation: Any, row_of: Mapping[str, int]) -> int:
    """Of an operation on one image; 0 if it is no product with weights, which do not depend on the images."""
    kernels = [tensor for tensor in operation.inputs if tensor.name not in row_of]
    if operation.type not in PRODUCTS or len(kernels) != 1:
        return 0
    out, kernel = operation.outputs[0].shape, kernels[0].shape
    return int(np.prod(out) // out[-1] * np.prod(kernel[-2:] if "MatMul" in operation.type else kernel))


def _check_weights(network: tf.keras.Model, graph: tf.Graph) -> None:
    """Raises UserError unless the forward pass reads what Keras says the network has.

    What Keras does not know is neither trained nor saved; what is not read has no gradient.
    """

    def handles(variable: Any) -> set[int]:
        """Of a variable, or of its copies on several replicas."""
        return {id(copy.handle) for copy in getattr(variable, "values", (variable,))}

    values = {variable.path: getattr(variable, "value", variable) for variable in network.variables}
    known = set().union(*(handles(value) for value in values.values()))
    read = {id(variable.handle): variable.name for variable in graph.variables}
    lost = sorted(name for handle, name in read.items() if handle not in known)
    if lost:
        raise UserError(
            f"the network reads {lost[0]}{_more(lost)}, which Keras does not know, so that it would be neither trained "
            "nor saved; keep its layer in an attribute, list or dict of a Keras layer, or make it by add_weight"
        )
    idle = [weight.path for weight in network.trainable_variables if not handles(values[weight.path]) & read.keys()]
    if idle:
        raise UserError(f"the network does not read its own {idle[0]}{_more(idle)}; leave that layer out")


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _graph(network: tf.keras.Model, side: int) -> tuple[tf.Graph, dict[str, Any]]:
    """The graph of a forward pass in plain forms, and the innermost layer of each operation, by its name."""
    layer_of = {}

    def noting(layer: Any) -> Any:
        call = layer.call

        def noted(*arguments: Any, **options: Any) -> Any:
            graph = tf.compat.v1.get_default_graph()
            before = len(graph.get_operations())
            output = call(*arguments, **options)
            layer_of.update({operation.name: layer for operation in graph.get_operations()[before:]})
            return output

        return noted

    with contextlib.ExitStack() as changes:  # of these layers only, and undone here
        for _, layer in leaves(network):
            changes.enter_context(mock.patch.object(layer, "call", noting(layer)))
            if getattr(layer, "fast", False):
                changes.enter_context(mock.patch.object(layer, "fast", False))
        images = tf.TensorSpec([1, side, side, 3], tf.float32)
        graph = tf.function(lambda images: network(images)).get_concrete_function(images).graph
    return graph, layer_of


def _row(place: str, layer: Any, shape: tuple[int, ...], inputs: tuple[int, ...]) -> Row:
    kind = type(layer).__name__
    return Row(
        name=place,
        kind=KERAS.get(kind, kind),
        detail=_detail(layer),
        shape=shape,
        parameters=sum(int(np.prod(weight.shape)) for weight in layer.trainable_variables),
        frozen=sum(int(np.prod(weight.shape)) for weight in layer.non_trainable_variables),
        multiply_adds=0,  # see trace
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
