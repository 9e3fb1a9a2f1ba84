"""The operations that make the step fast on a CPU: max-pooling, batch norm, 3x3 convolution.

Each computes what TensorFlow's own operation computes, gradient included (tests/lab/machine/test_kernels.py holds them
against it), in a form that is faster on a CPU: in float32 for XLA, in bfloat16 for oneDNN, whose kernels TensorFlow
runs where XLA does not compile (lab/machine/fastest.py chooses). GPUs and TPUs are better served by the plain form,
which `fast=False` takes: the fast one moves four times the bytes on a TPU v5e, by its compiler's count.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

# ---- max-pooling -------------------------------------------------------------------------------------------


def max_pool(images: tf.Tensor, size: int, *, fast: bool) -> tf.Tensor:
    """Max-pooling over size x size windows, stride `size`; rows and columns left over are dropped.

    XLA's own gradient of it (select-and-scatter) walks a CPU's memory element by element; a reshape and a
    maximum do not. Ties go to the first element in reading order, as in `tf.nn.max_pool2d` and PyTorch.

    Args:
        images: (N, H, W, C), floating point; H, W and C known when traced.
        size: the window's side, from 1.
        fast: in float32 take the form for a CPU under XLA.

    Returns:
        (N, H // size, W // size, C), the same dtype.
    """
    if not fast or images.dtype != tf.float32:
        return tf.nn.max_pool2d(images, size, size, "VALID")
    height, width, channels = images.shape[1:]
    rows, columns = height // size, width // size

    @tf.custom_gradient
    def pool(images: tf.Tensor) -> tuple[tf.Tensor, Any]:
        whole = images[:, : rows * size, : columns * size]
        tiled = tf.reshape(whole, [-1, rows, size, columns, size, channels])
        peak = tf.reduce_max(tiled, axis=[2, 4])  # (N, rows, columns, C)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            taken = tf.zeros_like(peak, tf.bool)
            parts = []
            for row in range(size):
                for column in range(size):
                    here = tf.logical_and(tiled[:, :, row, :, column] >= peak, tf.logical_not(taken))
                    parts.append(tf.where(here, upstream, tf.zeros_like(upstream)))
                    taken = tf.logical_or(taken, here)
            lines = [tf.stack(parts[row * size : (row + 1) * size], axis=3) for row in range(size)]
            spread = tf.reshape(tf.stack(lines, axis=2), [-1, rows * size, columns * size, channels])
            return tf.pad(spread, [[0, 0], [0, height - rows * size], [0, width - columns * size], [0, 0]])

        return peak, gradient

    return pool(images)


# ---- batch norm --------------------------------------------------------------------------------------------


PARTS = 16  # into which a sum over rows is cut; XLA fuses the addition of so many slices into one loop


def _single(array: tf.Tensor) -> tf.Tensor:
    return tf.cast(array, tf.float32)


def _channel_sum(term: Callable[..., tf.Tensor], *arrays: tf.Tensor, fast: bool) -> tf.Tensor:
    """Sum of term(*arrays), arrays (G, rows, C), over the rows, in float32: (G, 1, C).

    XLA's reduction to a handful of channels runs as a slow chain of windows on a CPU. Adding slices of the
    rows, element by element, is vectorised, uses every core, and rounds less.
    """
    groups, _, channels = arrays[0].shape
    while fast and (arrays[0].shape[1] or 1) % PARTS == 0 and arrays[0].shape[1] > PARTS**2:
        parts = zip(
            *(tf.unstack(tf.reshape(array, [groups, PARTS, -1, channels]), axis=1) for array in arrays),
            strict=True,
        )
        terms = [term(*part) for part in parts]
        arrays, term = (sum(terms[1:], terms[0]),), tf.identity
    return tf.reduce_sum(term(*arrays), axis=1, keepdims=True)


def batch_norm(
    images: tf.Tensor,
    scale: tf.Tensor,
    shift: tf.Tensor,
    guess: tf.Tensor,
    epsilon: float,
    *,
    groups: int = 1,
    fast: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalises with the batch's own statistics, over all axes but the last.

    The mean and the mean of squares are taken in one pass, about `guess`, so that they do not cancel where
    the mean is large beside the deviation. The gradient is the closed form (S. Ioffe and C. Szegedy, arXiv
    1502.03167, section 3), with respect to `images`, `scale` and `shift`.

    Args:
        images: (..., C), floating point; computed with in float32.
        scale, shift: (C,) float32.
        guess: (C,) float32, roughly the mean, e.g. the running one. It changes the rounding, not the result.
        epsilon: added to the variance.
        groups: equal parts of the first axis, in its order, each normalised with its own statistics.
        fast: take the form for a CPU under XLA.

    Returns:
        The normalised images, of the dtype of `images`; the mean over the groups of their means and of their
        biased variances, (C,) float32, through which no gradient flows.
    """
    guess, channels = tf.stop_gradient(guess), images.shape[-1]

    @tf.custom_gradient
    def normalise(images: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> Any:
        count = _single(tf.size(images) // (groups * channels))
        rows = tf.reshape(images, [groups, -1, channels])
        offset = _channel_sum(lambda part: _single(part) - guess, rows, fast=fast) / count  # (groups, 1, C)
        squares = _channel_sum(lambda part: tf.square(_single(part) - guess), rows, fast=fast)
        variance = tf.maximum(squares / count - tf.square(offset), 0.0)
        mean, inverse = guess + offset, tf.math.rsqrt(variance + epsilon)
        factor = scale * inverse
        normal = (_single(rows) - mean) * factor + shift

        def gradient(upstream: tf.Tensor, *_: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            above = tf.reshape(upstream, [groups, -1, channels])
            products = _channel_sum(lambda up, part: _single(up) * (_single(part) - mean), above, rows, fast=fast)
            shift_gradient = _channel_sum(_single, above, fast=fast)
            scale_gradient = products * inverse
            level, slope = shift_gradient / count, scale_gradient / count
            tilt = (_single(rows) - mean) * (slope * inverse)
            change = (_single(above) - level - tilt) * factor
            change = tf.reshape(tf.cast(change, images.dtype), tf.shape(images))
            return change, *(tf.reduce_sum(part, [0, 1]) for part in (scale_gradient, shift_gradient))

        normal = tf.reshape(tf.cast(normal, images.dtype), tf.shape(images))
        return (normal, *(tf.reduce_mean(part, [0, 1]) for part in (mean, variance))), gradient

    normal, mean, variance = normalise(images, scale, shift)
    return normal, tf.stop_gradient(mean), tf.stop_gradient(variance)


def fused_batch_norms(
    images: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor, epsilon: float, groups: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """As batch_norm, by TensorFlow's fused kernel, one call for each group, which is faster without XLA.

    Its third value is the mean of the groups' unbiased variances.
    """
    none = tf.zeros([0])
    given = {"scale": scale, "offset": shift, "mean": none, "variance": none, "epsilon": epsilon}
    parts = [tf.raw_ops.FusedBatchNormV3(x=part, is_training=True, **given) for part in tf.split(images, groups)]
    mean = tf.add_n([part.batch_mean for part in parts]) / groups
    variance = tf.add_n([part.batch_variance for part in parts]) / groups
    return tf.concat([part.y for part in parts], 0), tf.stop_gradient(mean), tf.stop_gradient(variance)


# ---- activations -------------------------------------------------------------------------------------------


def compiled_elementwise(function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """The same function of one tensor, computed in float32 by one loop that XLA compiles; its gradient by another.

    For a step that XLA does not compile. The gradient keeps the argument alone, and computes the rest again.
    """

    @tf.function(jit_compile=True, autograph=False)
    def forward(values: tf.Tensor) -> tf.Tensor:
        return tf.cast(function(_single(values)), values.dtype)

    @tf.function(jit_compile=True, autograph=False)
    def backward(values: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        argument = _single(values)
        with tf.GradientTape() as tape:
            tape.watch(argument)
            result = function(argument)
        return tf.cast(tape.gradient(result, argument, _single(upstream)), upstream.dtype)

    @tf.custom_gradient
    def compiled(values: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return forward(values), lambda upstream: backward(values, upstream)

    return compiled


# ---- 3x3 convolution ---------------------------------------------------------------------------------------
#
# Winograd's minimal filtering F(4x4, 3x3): a 4x4 tile of outputs needs 36 multiplications for a pair of
# channels instead of 144 (S. Winograd 1980; A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
# Networks", arXiv 1509.09308). The transforms around the multiplications are cheap for 128 channels and more,
# and the multiplications become 36 matrix products. Other tiles fit other sides: two of 4 cover a side of 5,
# of whose 64 outputs 25 are wanted; one of 5 needs 49 multiplications instead of their 144.

# By tile, its outputs on a side: where the two polynomials are evaluated, infinity aside. The usual choice for 4,
# 0, +-1, +-2, rounds four times worse in float32 (larger constants, more cancellation). These have about the
# smallest error among the short binary fractions, in which A and B are exact; 5 and 6 round as that usual choice.
POINTS = {
    2: (0.0, 1.0, -1.0),
    3: (0.0, 0.75, -0.75, 2.0),
    4: (0.0, 0.625, -0.625, 1.5, -1.5),
    5: (0.0, 1.0, -1.0, 1.75, -1.75, 0.375),
    6: (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0),
}
# Timed by hand, on two cores of a CPU:
TRANSFORM = 128  # multiplications of a matrix product that take as long as the transforms of a number
LARGEST_SIDE = 16  # beyond it the transformed images take much memory and gain little
LARGEST_PRODUCT_SIDE = 8  # of images whose filter gradients are products


def winograd_matrices(
    points: tuple[float, ...],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The Toom-Cook matrices A (t + 2, t), B (t + 2, t + 2), G (t + 2, 3) of a tile of t outputs, with which, in
    one dimension, correlate(data (t + 2,), filter (3,)) = A' ((G filter) * (B data))  (t,).

    A's column k is the points' k-th power. G evaluates the filter's polynomial and divides by
    prod(point - other points). B's rows are the coefficients of prod(x - other points). The last row of each
    is the point at infinity. Rows of B and G are scaled against one another by powers of two, which is exact.
    """
    count, tile = len(points), len(points) - 1
    a, b, g = np.zeros((count + 1, tile)), np.zeros((count + 1, count + 1)), np.zeros((count + 1, 3))
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        a[row] = point ** np.arange(tile)
        b[row, :count] = np.poly(others)[::-1]
        g[row] = point ** np.arange(3) / np.prod([point - other for other in others])
    a[count, -1] = g[count, -1] = 1.0
    b[count] = np.poly(points)[::-1]
    ratio = np.linalg.norm(g, axis=1) / np.linalg.norm(b, axis=1)
    scale = 2.0 ** np.rint(np.log2(ratio) / 2)[:, None]
    return a.astype(np.float32), (b * scale).astype(np.float32), (g / scale).astype(np.float32)


MATRICES = {tile: winograd_matrices(points) for tile, points in POINTS.items()}


def fastest_tile(height: int, width: int, inputs: int, outputs: int) -> int | None:
    """The tile with which a CPU is fastest, for images of height x width and filters (3, 3, inputs, outputs).

    None where a direct convolution is faster, which costs a CPU about a border of pixels more than it computes.
    """
    direct = 9 * (height + 1) * (width + 1) * inputs * outputs

    def work(tile: int) -> int:
        products = _tiles(height, tile) * _tiles(width, tile) * (tile + 2) ** 2
        return products * (inputs * outputs + TRANSFORM * (inputs + outputs))

    tile = min(POINTS, key=work)
    return tile if work(tile) < direct else None


def _tiles(side: int, tile: int) -> int:
    return -(-side // tile)


def _combine(weights: NDArray[np.float32], parts: list[tf.Tensor]) -> list[tf.Tensor]:
    """weights (rows, len(parts)) times the vector of `parts`: the list of the rows' sums."""
    sums = []
    for row in weights:
        terms = [float(weight) * part for weight, part in zip(row, parts, strict=True) if weight]
        sums.append(sum(terms[1:], terms[0]))
    return sums


def _spread(weights: NDArray[np.float32], images: tf.Tensor, tile: int, before: int = 0) -> tf.Tensor:
    """weights x part x weights' for every tile of the images, from `before` pixels before it, as wide as `weights`;
    zeros stand around the images.

    images (N, H, W, C), weights (cells, width) -> (cells * cells, N * tiles down * tiles across, C).
    """
    height, across = images.shape[1:3]
    rows, columns, width = _tiles(height, tile), _tiles(across, tile), weights.shape[1]
    down, right = tile * (rows - 1) + 1, tile * (columns - 1) + 1
    below, beside = down - 1 + width - before - height, right - 1 + width - before - across
    images = tf.pad(images, [[0, 0], [before, below], [before, beside], [0, 0]])
    # Stacked after each dimension: cells of their own would be as many kernels to compile.
    lines = tf.stack(_combine(weights, [images[:, i : i + down : tile] for i in range(width)]))
    cells = _combine(weights, [lines[:, :, :, j : j + right : tile] for j in range(width)])
    return tf.reshape(tf.stack(cells, axis=1), [len(weights) ** 2, -1, images.shape[-1]])


def _spread_inputs(images: tf.Tensor, tile: int) -> tf.Tensor:
    """B part B', parts overlapping by two pixels: (N, H, W, C) -> ((tile + 2)^2, tiles, C)."""
    return _spread(MATRICES[tile][1], images, tile, before=1)


def _spread_gradient(gradient: tf.Tensor, tile: int) -> tf.Tensor:
    """A part A' of the gradient that comes from above, as _spread_inputs."""
    return _spread(MATRICES[tile][0], gradient, tile)


def _gather_outputs(products: tf.Tensor, height: int, width: int, tile: int) -> tf.Tensor:
    """A' part A: ((tile + 2)^2, tiles, C) -> (N, height, width, C)."""
    a = MATRICES[tile][0]
    rows, columns, channels = _tiles(height, tile), _tiles(width, tile), products.shape[-1]
    cells = tf.reshape(products, [len(a), len(a), -1, rows, columns, channels])
    lines = tf.stack(_combine(a.T, tf.unstack(cells)))  # (tile, tile + 2, N, rows, columns, C)
    # A transposition at the end would be repeated in every loop that reads the result, and memory would hold
    # it before and after; stacked at its place, it is written once.
    across = [tf.stack(_combine(a.T, tf.unstack(line)), axis=3) for line in tf.unstack(lines)]
    images = tf.stack(across, axis=2)  # (N, rows, tile, columns, tile, C)
    return tf.reshape(images, [-1, tile * rows, tile * columns, channels])[:, :height, :width]


def conv3x3_winograd(images: tf.Tensor, filters: tf.Tensor, tile: int) -> tf.Tensor:
    """`tf.nn.conv2d(images, filters, 1, "SAME")` for 3x3 filters, with about a quarter of the multiplications.

    Its gradient with respect to the images is such a convolution again, with the filters turned by 180
    degrees; that with respect to the filters transposes each of the three steps. It rounds somewhat
    more than a direct convolution; tests/lab/machine/test_kernels.py holds it to 1e-5 of the largest value,
    4e-5 with tiles of 5 and 6.

    Args:
        images: (N, H, W, C) float32; H, W and C known when traced.
        filters: (3, 3, C, K) float32.
        tile: outputs on a side that are computed together, 2 to 6.

    Returns:
        (N, H, W, K) float32.
    """
    height, width = images.shape[1:3]
    gg = np.kron(MATRICES[tile][2], MATRICES[tile][2])  # G filter G' for a filter laid out as a vector

    def forward(images: tf.Tensor, filters: tf.Tensor) -> tf.Tensor:
        spread = tf.reshape(tf.matmul(gg, tf.reshape(filters, [9, -1])), [len(gg), *filters.shape[2:]])
        return _gather_outputs(tf.matmul(_spread_inputs(images, tile), spread), height, width, tile)

    @tf.custom_gradient
    def convolve(images: tf.Tensor, filters: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            images_gradient = forward(upstream, tf.transpose(filters[::-1, ::-1], [0, 1, 3, 2]))
            products = tf.matmul(_spread_inputs(images, tile), _spread_gradient(upstream, tile), transpose_a=True)
            filters_gradient = tf.matmul(gg, tf.reshape(products, [len(gg), -1]), transpose_a=True)
            return images_gradient, tf.reshape(filters_gradient, filters.shape)

        return forward(images, filters), gradient

    return convolve(images, filters)


@tf.custom_gradient
def conv3x3_products(images: tf.Tensor, filters: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """`tf.nn.conv2d(images, filters, 1, "SAME")` for 3x3 filters, whose gradient is nine matrix products.

    oneDNN's bfloat16 kernel of the filters' gradient is older than its matrix product, and slow for small images.

    Args:
        images: (N, H, W, C), floating point; H, W and C known when traced.
        filters: (3, 3, C, K), of the same dtype.

    Returns:
        (N, H, W, K), the same dtype.
    """
    height, width, channels = images.shape[1:]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        same = {"strides": [1, 1, 1, 1], "padding": "SAME"}
        images_gradient = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(images), filter=filters, out_backprop=upstream, **same
        )
        padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
        flat = tf.reshape(upstream, [-1, filters.shape[-1]])
        shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        products = [tf.matmul(tf.reshape(part, [-1, channels]), flat, transpose_a=True) for part in shifted]
        return images_gradient, tf.reshape(tf.stack(products), filters.shape)

    return tf.nn.conv2d(images, filters, 1, "SAME"), gradient


def conv3x3(images: tf.Tensor, filters: tf.Tensor, *, fast: bool) -> tf.Tensor:
    """3x3 convolution, stride 1, 'same' zero padding.

    Args:
        images: (N, H, W, C), floating point.
        filters: (3, 3, C, K), of the same dtype.
        fast: take the forms for a CPU: in float32 Winograd's minimal filtering, for XLA; in bfloat16 that of
            conv3x3_products, for oneDNN. Each where it pays.

    Returns:
        (N, H, W, K), the same dtype.
    """
    side = max(images.shape[1:3])
    if fast and side <= LARGEST_SIDE and images.dtype == tf.float32:
        tile = fastest_tile(*images.shape[1:3], *filters.shape[2:])
        if tile:
            return conv3x3_winograd(images, filters, tile)
    if fast and side <= LARGEST_PRODUCT_SIDE and images.dtype == tf.bfloat16:
        return conv3x3_products(images, filters)
    return tf.nn.conv2d(images, filters, 1, "SAME")


def conv1x1(images: tf.Tensor, filters: tf.Tensor, stride: int, *, fast: bool) -> tf.Tensor:
    """1x1 convolution, as one matrix product if `fast`: (N, H, W, C), (1, 1, C, K) -> (N, H/stride, W/stride, K)."""
    if not fast:
        return tf.nn.conv2d(images, filters, stride, "VALID")
    kept = images[:, ::stride, ::stride]
    products = tf.matmul(tf.reshape(kept, [-1, kept.shape[-1]]), filters[0, 0])
    return tf.reshape(products, [-1, *kept.shape[1:3], filters.shape[-1]])


def conv3x3_stride2(images: tf.Tensor, filters: tf.Tensor, *, fast: bool) -> tf.Tensor:
    """3x3 convolution, stride 2, padded by a pixel of zeros all around, as PyTorch does.

    ('SAME' would pad below and to the right only.) The fast form is one matrix product over gathered windows,
    whose gradient is two products more; XLA's gradients of a strided convolution take four times as long on a CPU.

    Args:
        images: (N, H, W, C), floating point; H and W known when traced.
        filters: (3, 3, C, K), of the same dtype.
        fast: where H and W are even, take the form for a CPU under XLA.

    Returns:
        (N, H/2, W/2, K), rounded up, the same dtype.
    """
    if not fast or images.shape[1] % 2 or images.shape[2] % 2:
        return tf.nn.conv2d(images, filters, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])
    height, width, channels = images.shape[1:]
    rows, columns = height // 2, width // 2
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    # Even and odd rows, even and odd columns apart: a window takes neighbours within each of the four.
    split = tf.reshape(padded, [-1, rows + 1, 2, columns + 1, 2, channels])
    planes = [tf.unstack(line, axis=3) for line in tf.unstack(split, axis=2)]
    windows = [
        planes[i % 2][j % 2][:, i // 2 : i // 2 + rows, j // 2 : j // 2 + columns] for i in range(3) for j in range(3)
    ]
    flat = tf.reshape(tf.concat(windows, axis=-1), [-1, 9 * channels])
    products = tf.matmul(flat, tf.reshape(filters, [9 * channels, -1]))
    return tf.reshape(products, [-1, rows, columns, filters.shape[-1]])
