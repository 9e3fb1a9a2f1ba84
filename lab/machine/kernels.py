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
# and the multiplications become 36 matrix products.

TILE = 4  # outputs on a side
# Where the two polynomials are evaluated, infinity aside. The usual choice, 0, +-1, +-2, rounds worse
# in float32 (larger constants, more cancellation); these are short binary fractions, so A and B are exact.
POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)
# The largest side at which the transforms cost less than they save on a CPU; timed by hand, on two cores.
LARGEST_SIDE = 16
LARGEST_PRODUCT_SIDE = 8  # of images whose filter gradients are products; timed by hand, on two cores


def winograd_matrices(
    points: tuple[float, ...] = POINTS,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The Toom-Cook matrices A (6, 4), B (6, 6), G (6, 3) with which, in one dimension,
    correlate(data (6,), filter (3,)) = A' ((G filter) * (B data))  (4,).

    A's column k is the points' k-th power. G evaluates the filter's polynomial and divides by
    prod(point - other points). B's rows are the coefficients of prod(x - other points). The sixth row of each
    is the point at infinity. Rows of B and G are scaled against one another by powers of two, which is exact.
    """
    count = len(points)
    a, b, g = np.zeros((count + 1, TILE)), np.zeros((count + 1, count + 1)), np.zeros((count + 1, 3))
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        a[row] = point ** np.arange(TILE)
        b[row, :count] = np.poly(others)[::-1]
        g[row] = point ** np.arange(3) / np.prod([point - other for other in others])
    a[count, -1] = g[count, -1] = 1.0
    b[count] = np.poly(points)[::-1]
    ratio = np.linalg.norm(g, axis=1) / np.linalg.norm(b, axis=1)
    scale = 2.0 ** np.rint(np.log2(ratio) / 2)[:, None]
    return a.astype(np.float32), (b * scale).astype(np.float32), (g / scale).astype(np.float32)


_A, _B, _G = winograd_matrices()
_GG = np.kron(_G, _G)  # (36, 9): G filter G' for a filter laid out as a vector


def _combine(weights: NDArray[np.float32], parts: list[tf.Tensor]) -> list[tf.Tensor]:
    """weights (rows, len(parts)) times the vector of `parts`: the list of the rows' sums."""
    sums = []
    for row in weights:
        terms = [float(weight) * part for weight, part in zip(row, parts, strict=True) if weight]
        sums.append(sum(terms[1:], terms[0]))
    return sums


def _tiles(side: int) -> int:
    return -(-side // TILE)


def _spread(weights: NDArray[np.float32], images: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """weights x tile x weights' for every tile; a tile is as wide as `weights` and starts every 4 pixels.

    images (N, H, W, C) -> (36, N * rows * columns, C).
    """
    width = weights.shape[1]
    down, right = TILE * (rows - 1) + 1, TILE * (columns - 1) + 1
    # Stacked after each dimension: 36 cells of their own would be 36 kernels to compile.
    lines = tf.stack(_combine(weights, [images[:, i : i + down : TILE] for i in range(width)]))
    cells = _combine(weights, [lines[:, :, :, j : j + right : TILE] for j in range(width)])
    return tf.reshape(tf.stack(cells, axis=1), [len(weights) ** 2, -1, images.shape[-1]])


def _spread_inputs(images: tf.Tensor) -> tf.Tensor:
    """B tile B': overlapping 6x6 tiles of the images, padded by one pixel of zeros and to whole tiles."""
    rows, columns = _tiles(images.shape[1]), _tiles(images.shape[2])
    below, right = TILE * rows - images.shape[1], TILE * columns - images.shape[2]
    padded = tf.pad(images, [[0, 0], [1, 1 + below], [1, 1 + right], [0, 0]])
    return _spread(_B, padded, rows, columns)


def _spread_gradient(gradient: tf.Tensor) -> tf.Tensor:
    """A tile A': 4x4 tiles of the gradient that comes from above, padded by zeros to whole tiles."""
    rows, columns = _tiles(gradient.shape[1]), _tiles(gradient.shape[2])
    below, right = TILE * rows - gradient.shape[1], TILE * columns - gradient.shape[2]
    return _spread(_A, tf.pad(gradient, [[0, 0], [0, below], [0, right], [0, 0]]), rows, columns)


def _gather_outputs(products: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """A' tile A: (36, tiles, C) -> (N, height, width, C)."""
    rows, columns, channels = _tiles(height), _tiles(width), products.shape[-1]
    cells = tf.reshape(products, [len(_A), len(_A), -1, rows, columns, channels])
    lines = tf.stack(_combine(_A.T, tf.unstack(cells)))  # (4, 6, N, rows, columns, C)
    # A transposition at the end would be repeated in every loop that reads the result, and memory would hold
    # it before and after; stacked at its place, it is written once.
    across = [tf.stack(_combine(_A.T, tf.unstack(line)), axis=3) for line in tf.unstack(lines)]
    images = tf.stack(across, axis=2)  # (N, rows, 4, columns, 4, C)
    return tf.reshape(images, [-1, TILE * rows, TILE * columns, channels])[:, :height, :width]


def _spread_filters(filters: tf.Tensor) -> tf.Tensor:
    """G filter G': (3, 3, C, K) -> (36, C, K)."""
    inputs, outputs = filters.shape[2:]
    return tf.reshape(tf.matmul(_GG, tf.reshape(filters, [9, -1])), [len(_GG), inputs, outputs])


def _winograd_forward(images: tf.Tensor, filters: tf.Tensor) -> tf.Tensor:
    products = tf.matmul(_spread_inputs(images), _spread_filters(filters))
    return _gather_outputs(products, images.shape[1], images.shape[2])


@tf.custom_gradient
def conv3x3_winograd(images: tf.Tensor, filters: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """`tf.nn.conv2d(images, filters, 1, "SAME")` for 3x3 filters, with a quarter of the multiplications.

    Its gradient with respect to the images is such a convolution again, with the filters turned by 180
    degrees; that with respect to the filters transposes each of the three steps. It rounds somewhat
    more than a direct convolution; tests/lab/machine/test_kernels.py holds it to 1e-5 of the largest value.

    Args:
        images: (N, H, W, C) float32; H, W and C known when traced.
        filters: (3, 3, C, K) float32.

    Returns:
        (N, H, W, K) float32.
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        turned = tf.transpose(filters[::-1, ::-1], [0, 1, 3, 2])
        images_gradient = _winograd_forward(upstream, turned)
        products = tf.matmul(_spread_inputs(images), _spread_gradient(upstream), transpose_a=True)
        filters_gradient = tf.matmul(_GG, tf.reshape(products, [len(_GG), -1]), transpose_a=True)
        return images_gradient, tf.reshape(filters_gradient, filters.shape)

    return _winograd_forward(images, filters), gradient


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
    if fast and side <= LARGEST_SIDE and images.dtype == tf.float32 and min(filters.shape[2:]) >= 32:
        return conv3x3_winograd(images, filters)
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
