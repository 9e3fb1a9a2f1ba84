"""The fast operations against TensorFlow's own and against NumPy in float64."""

import math

import numpy as np
import pytest
import tensorflow as tf

from lab.machine import kernels as ops
from lab.machine import processor


def relative(value, reference) -> float:
    """Largest difference, as a share of the reference's largest value."""
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    return float(np.max(np.abs(value - reference)) / np.max(np.abs(reference)))


def gradients(function, upstream, *inputs):
    inputs = [tf.convert_to_tensor(value) for value in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = function(*inputs)
        total = tf.reduce_sum(output * upstream)
    return output, tape.gradient(total, inputs)


@pytest.mark.parametrize(
    ("tile", "height", "width", "inputs", "outputs"),
    [
        *((4, 16, 16, 64, 32), (4, 8, 8, 32, 64), (4, 4, 4, 128, 128), (4, 7, 7, 32, 32)),
        *((2, 2, 2, 64, 64), (2, 5, 3, 32, 32), (3, 3, 3, 64, 64), (3, 4, 7, 32, 32)),
        *((5, 5, 5, 64, 64), (5, 13, 15, 32, 32), (6, 6, 6, 64, 64), (6, 11, 4, 32, 32)),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_winograd_agrees_with_plain_convolution(tile, height, width, inputs, outputs, jit):
    generator = np.random.default_rng(height)
    images = np.maximum(generator.standard_normal((6, height, width, inputs)), 0).astype(np.float32)
    filters = generator.uniform(-0.05, 0.05, (3, 3, inputs, outputs)).astype(np.float32)
    upstream = generator.standard_normal((6, height, width, outputs)).astype(np.float32)

    def plain(x, w):
        return tf.nn.conv2d(x, w, 1, "SAME")

    @tf.function(jit_compile=jit)
    def fast_gradients(x, w):
        return gradients(lambda x, w: ops.conv3x3_winograd(x, w, tile), upstream, x, w)

    output, (images_gradient, filters_gradient) = fast_gradients(images, filters)
    reference, (images_reference, filters_reference) = gradients(
        plain, upstream.astype(np.float64), images.astype(np.float64), filters.astype(np.float64)
    )
    most = 1e-5 if tile <= 4 else 4e-5
    assert relative(output, reference) < most
    assert relative(images_gradient, images_reference) < most
    assert relative(filters_gradient, filters_reference) < most


def test_winograd_matrices_correlate_exactly():
    a, b, g = (matrix.astype(np.float64) for matrix in ops.winograd_matrices((0.0, 1.0, -1.0, 2.0, -2.0)))
    data, taps = np.array([3.0, -1.0, 4.0, 1.0, -5.0, 9.0]), np.array([2.0, 7.0, -1.0])
    expected = [3 * 2 - 7 - 4, -2 + 28 - 1, 8 + 7 + 5, 2 - 35 - 9]
    np.testing.assert_allclose(a.T @ ((g @ taps) * (b @ data)), expected, rtol=1e-6)


@pytest.mark.parametrize("tile", ops.POINTS)
def test_a_tile_s_points_are_as_many_as_it_needs_and_exact_in_its_matrices(tile):
    points = ops.POINTS[tile]
    assert len(set(points)) == tile + 1
    a, b, _ = ops.winograd_matrices(points)
    powers = np.array([[point**power for power in range(tile)] for point in points])
    np.testing.assert_array_equal(a[:-1], powers)
    np.testing.assert_array_equal(b * 2.0**12, np.rint(b * 2.0**12))


@pytest.mark.parametrize(
    ("sizes", "tile"),
    [
        ((16, 16, 128, 128), 4),  # 16 tiles of 36 products; of 6 they are 9 of 64, as many
        ((8, 8, 256, 256), 4),
        ((4, 4, 512, 512), 4),
        ((6, 6, 256, 256), 6),  # 64 products where four tiles of 3 take 100, of 4 144
        ((5, 5, 256, 256), 5),
        ((3, 3, 256, 256), 3),
        ((2, 2, 256, 256), 2),
        ((11, 6, 256, 256), 6),  # two tiles
        ((16, 16, 16, 16), None),  # 576 x 16 x (16 + 2 x 128) against 9 x 17 x 17 x 16 x 16 products
        ((8, 8, 3, 64), None),
    ],
)
def test_the_tile_is_that_of_the_least_work(sizes, tile):
    assert ops.fastest_tile(*sizes) == tile


def test_conv3x3_leaves_large_and_narrow_layers_to_tensorflow(monkeypatch):
    monkeypatch.setattr(ops, "conv3x3_winograd", lambda *_: pytest.fail("not where it does not pay"))
    for shape, filters in (((1, 32, 32, 64), (3, 3, 64, 128)), ((1, 8, 8, 3), (3, 3, 3, 64))):
        result = ops.conv3x3(tf.ones(shape), tf.ones(filters), fast=True)
        assert result.shape == (*shape[:3], filters[-1])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("jit", [False, True])
def test_max_pool_and_its_gradient_with_ties(size, jit):
    generator = np.random.default_rng(size)
    images = generator.integers(-1, 2, (3, 13, 12, 5)).astype(np.float32)  # full of ties
    rows, columns = 13 // size, 12 // size
    upstream = generator.standard_normal((3, rows, columns, 5)).astype(np.float32)

    @tf.function(jit_compile=jit)
    def fast(x):
        return gradients(lambda x: ops.max_pool(x, size, fast=True), upstream, x)

    pooled, (gradient,) = fast(images)
    expected, expected_gradient = np.zeros_like(upstream), np.zeros_like(images)
    for n, row, column, channel in np.ndindex(*upstream.shape):
        top, left = row * size, column * size
        window = images[n, top : top + size, left : left + size, channel]
        down, across = np.unravel_index(np.argmax(window), window.shape)  # the first in reading order
        expected[n, row, column, channel] = window.max()
        expected_gradient[n, top + down, left + across, channel] = upstream[n, row, column, channel]
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_array_equal(gradient, expected_gradient)
    plain, (plain_gradient,) = gradients(lambda x: tf.nn.max_pool2d(x, size, size, "VALID"), upstream, images)
    np.testing.assert_array_equal(pooled, plain)
    np.testing.assert_array_equal(gradient, plain_gradient)


@pytest.mark.parametrize("shape", [(512, 4, 4, 24), (6, 5, 5, 7), (64, 8)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize(("fast", "jit"), [(True, False), (True, True), (False, True)])
def test_batch_norm_and_its_gradient(shape, offset, fast, jit):
    generator = np.random.default_rng(3)
    channels = shape[-1]
    images = (generator.standard_normal(shape) * 2 + offset).astype(np.float32)
    scale = generator.uniform(0.5, 1.5, channels).astype(np.float32)
    shift = generator.standard_normal(channels).astype(np.float32)
    guess = np.full(channels, 0.9 * offset, np.float32)
    upstream = generator.standard_normal(shape).astype(np.float32)

    def plain(x, scale, shift):
        mean, variance = tf.nn.moments(x, list(range(len(shape) - 1)))
        return tf.nn.batch_normalization(x, mean, variance, shift, scale, 1e-5)

    @tf.function(jit_compile=jit)
    def ours(x, scale, shift):
        return gradients(lambda *args: ops.batch_norm(*args, guess, 1e-5, fast=fast)[0], upstream, x, scale, shift)

    normal, our_gradients = ours(images, scale, shift)
    reference, references = gradients(
        plain, upstream.astype(np.float64), *(a.astype(np.float64) for a in (images, scale, shift))
    )
    assert relative(normal, reference) < 1e-5
    for value, expected in zip(our_gradients, references, strict=True):
        assert relative(value, expected) < 1e-5
    _, mean, variance = ops.batch_norm(*map(tf.constant, (images, scale, shift, guess)), 1e-5, fast=fast)
    flat = images.reshape(-1, channels).astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance, flat.var(0), rtol=1e-5)


def test_a_convolution_of_stride_2_takes_odd_sides():
    generator = np.random.default_rng(0)
    images, filters = generator.standard_normal((2, 7, 5, 4)), generator.standard_normal((3, 3, 4, 6))
    padded, expected = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))), np.zeros([2, 4, 3, 6])
    for row in range(4):
        for column in range(3):
            window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected[:, row, column] = np.einsum("nhwc,hwck->nk", window, filters)
    found = ops.conv3x3_stride2(tf.constant(images, tf.float32), tf.constant(filters, tf.float32), fast=True)
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("function", "size", "shape"), [("conv1x1", 1, (2, 8, 6, 5)), ("conv3x3_stride2", 3, (2, 8, 6, 5))]
)
@pytest.mark.parametrize("jit", [False, True])
def test_convolutions_as_matrix_products_and_their_gradients(function, size, shape, jit):
    generator = np.random.default_rng(size)
    images = generator.standard_normal(shape).astype(np.float32)
    filters = generator.standard_normal((size, size, 5, 7)).astype(np.float32)
    upstream = generator.standard_normal((2, 4, 3, 7)).astype(np.float32)
    around = [[0, 0], [size // 2] * 2, [size // 2] * 2, [0, 0]]
    others = (2,) if function == "conv1x1" else ()

    @tf.function(jit_compile=jit)
    def ours(x, w):
        return gradients(lambda x, w: getattr(ops, function)(x, w, *others, fast=True), upstream, x, w)

    output, found = ours(images, filters)
    reference, expected = gradients(
        lambda x, w: tf.nn.conv2d(x, w, 2, around), upstream.astype(np.float64),
        images.astype(np.float64), filters.astype(np.float64),
    )  # fmt: skip
    assert relative(output, reference) < 1e-5
    for value, known in zip(found, expected, strict=True):
        assert relative(value, known) < 1e-5


# ---- in bfloat16, for oneDNN's kernels ---------------------------------------------------------------------

ULP = 2.0**-8  # bfloat16's largest relative error of rounding to nearest, half a unit in the last place


def in_bfloat16(*arrays):
    """The tensors, and the same numbers in float64 to compute a reference with."""
    tensors = [tf.cast(array, tf.bfloat16) for array in arrays]
    return tensors, [np.asarray(tf.cast(tensor, tf.float64)) for tensor in tensors]


@pytest.mark.parametrize(("side", "inputs", "outputs"), [(8, 16, 32), (4, 32, 32), (7, 8, 24), (3, 5, 3)])
def test_gradients_by_products_agree_with_a_convolution_in_float64(side, inputs, outputs):
    generator = np.random.default_rng(side)
    images = np.maximum(generator.standard_normal((6, side, side, inputs)), 0)
    filters = generator.uniform(-0.05, 0.05, (3, 3, inputs, outputs))
    upstream = generator.standard_normal((6, side, side, outputs))
    tensors, (x, w, up) = in_bfloat16(images, filters, upstream)

    @tf.function
    def ours(x, w, up):
        return gradients(lambda x, w: ops.conv3x3(x, w, fast=True), up, x, w)

    output, our_gradients = ours(*tensors)
    reference, references = gradients(lambda x, w: tf.nn.conv2d(x, w, 1, "SAME"), up, x, w)
    for value, expected in zip((output, *our_gradients), (reference, *references), strict=True):
        assert value.dtype == tf.bfloat16
        # oneDNN sums in float32, so that only the end rounds. Without those instructions TensorFlow rounds on the way.
        limit = ULP if processor.multiplies_bfloat16() else 4 * ULP
        assert relative(tf.cast(value, tf.float64), expected) < limit


def test_the_products_serve_small_bfloat16_images_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(ops, "conv3x3_products", lambda x, w: seen.append(x.shape[1]) or tf.nn.conv2d(x, w, 1, "SAME"))
    half = "bfloat16"
    for side, dtype, fast in ((8, half, True), (16, half, True), (8, "float32", True), (4, half, False)):
        ops.conv3x3(tf.ones((1, side, side, 8), dtype), tf.ones((3, 3, 8, 8), dtype), fast=fast)
    assert seen == [8]


@pytest.mark.parametrize("groups", [1, 4])
def test_fused_norms_of_groups_have_their_own_statistics(groups):
    generator = np.random.default_rng(5)
    images = generator.standard_normal((8, 4, 4, 6)) * 2 + 3
    scale, shift = generator.uniform(0.5, 1.5, 6).astype(np.float32), generator.standard_normal(6).astype(np.float32)
    (tensor,), (values,) = in_bfloat16(images)
    normal, mean, variance = ops.fused_batch_norms(tensor, scale, shift, 1e-5, groups)
    parts = values.reshape(groups, -1, 6)
    means, deviations = parts.mean(1, keepdims=True), np.sqrt(parts.var(1, keepdims=True) + 1e-5)
    expected = ((parts - means) / deviations * scale + shift).reshape(images.shape)
    assert relative(tf.cast(normal, tf.float64), expected) < ULP
    np.testing.assert_allclose(mean, parts.mean(1).mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, parts.var(1, ddof=1).mean(0), rtol=1e-4)


def test_the_gradient_of_fused_norms_is_batch_norms_own():
    generator = np.random.default_rng(6)
    images, upstream = generator.standard_normal((2, 8, 4, 4, 6))
    scale, shift = np.full(6, 1.5, np.float32), np.ones(6, np.float32)
    (x, up), (values, above) = in_bfloat16(images, upstream)
    _, ours = gradients(lambda *args: ops.fused_batch_norms(*args, 1e-5, 4)[0], up, x, scale, shift)

    def plain(x, scale, shift):
        parts = tf.reshape(x, [4, -1, 6])
        mean, variance = tf.nn.moments(parts, [1], keepdims=True)
        return tf.reshape(tf.nn.batch_normalization(parts, mean, variance, shift, scale, 1e-5), x.shape)

    _, references = gradients(plain, above, values, scale.astype(np.float64), shift.astype(np.float64))
    for value, expected in zip(ours, references, strict=True):
        assert relative(tf.cast(value, tf.float64), expected) < 2 * ULP  # normal values are rounded on the way


def test_a_compiled_activation_is_the_function_and_its_derivative():
    values = np.linspace(-6, 6, 97).astype(np.float32)
    (x, up), (exact, above) = in_bfloat16(values, np.linspace(0.5, 2.0, 97))
    share = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in exact])  # of the normal distribution below
    density = np.exp(-(exact**2) / 2) / math.sqrt(2 * math.pi)
    output, (gradient,) = gradients(ops.compiled_elementwise(tf.nn.gelu), up, x)
    assert output.dtype == gradient.dtype == tf.bfloat16
    np.testing.assert_allclose(np.float64(tf.cast(output, tf.float32)), exact * share, rtol=ULP, atol=1e-6)
    np.testing.assert_allclose(
        np.float64(tf.cast(gradient, tf.float32)), above * (share + exact * density), rtol=ULP, atol=1e-6
    )
