"""The layers against NumPy in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from lab.ladder import layers, networks, recipes
from lab.ladder.layers import Style
from model import Uniform

FIRST = Uniform(0, 0)


def relative(value, reference):
    return float(np.max(np.abs(np.asarray(value, np.float64) - reference)) / np.max(np.abs(reference)))


@pytest.mark.parametrize(("size", "unbiased"), [(3, True), (2, False)])
def test_whitening_filters_make_the_patches_uncorrelated_with_unit_variance(size, unbiased):
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((3, 3))
    images = np.cumsum(generator.standard_normal((40, 12, 12, 3)) @ mixing, axis=2).astype(np.float32)
    images /= images.std()
    filters = layers.whitening_filters(images, size, 0.0, unbiased=unbiased)
    outputs = []
    for top in range(12 - size + 1):
        for left in range(12 - size + 1):
            patches = images[:, top : top + size, left : left + size].reshape(40, -1).astype(np.float64)
            outputs.append(patches @ filters.reshape(-1, filters.shape[-1]))
    outputs = np.concatenate(outputs)
    second = outputs.T @ outputs / (len(outputs) - unbiased)
    np.testing.assert_allclose(second, np.eye(3 * size**2), atol=2e-3)
    # With epsilon: the same directions, shorter by sqrt(l / (l + epsilon)); and the largest comes first.
    damped = layers.whitening_filters(images, size, 0.01, unbiased=unbiased)
    values = 1 / np.square(filters).sum((0, 1, 2))
    assert (np.diff(values) < 0).all()
    np.testing.assert_allclose(np.square(damped).sum((0, 1, 2)), 1 / (values + 0.01), rtol=1e-2)


def test_the_whitening_layer_is_fitted_frozen_and_twofold_in_the_speedrun():
    images = np.random.default_rng(1).standard_normal((30, 8, 8, 3)).astype(np.float32)
    layer = layers.Whiten(2, 5e-4, 20, both_signs=True)
    layer(tf.constant(images))
    layer.fit(images)
    kernel = layer.kernel.numpy()
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    np.testing.assert_array_equal(kernel[..., :12], layers.whitening_filters(images[:20], 2, 5e-4, unbiased=False))
    layer.bias.assign(np.arange(24))
    assert layer(images).shape == (30, 7, 7, 24)
    patch = images[3, 2:4, 5:7].astype(np.float64)
    expected = np.einsum("hwc,hwck->k", patch, kernel) + np.arange(24)
    np.testing.assert_allclose(layer(images)[3, 2, 5], expected, rtol=1e-4, atol=1e-4)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(images))
    assert [weight.path.rpartition("/")[2] for weight in layer.trainable_variables] == ["bias"]
    np.testing.assert_allclose(tape.gradient(total, layer.bias.value), np.full(24, 30 * 49.0))
    padded = layers.Whiten(3, 1e-2, 30, both_signs=False)
    assert padded(images).shape == (30, 8, 8, 27) and not padded.trainable_variables


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_ghost_batch_norm_gives_each_group_its_own_statistics(jit, fast):
    generator = np.random.default_rng(2)
    images = (generator.standard_normal((8, 4, 4, 3)) * 2 + generator.standard_normal((8, 1, 1, 3))).astype(np.float32)
    upstream = generator.standard_normal(images.shape).astype(np.float32)
    layer = layers.BatchNorm(Style(ghost_groups=4, fast=fast), FIRST)
    layer.build(images.shape)
    layer.scale.assign([0.5, 1.0, 2.0])
    layer.shift.assign([0.1, 0.2, 0.3])

    @tf.function(jit_compile=jit)
    def run(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            output = layer(images, training=True)
            total = tf.reduce_sum(output * upstream)
        return output, tape.gradient(total, [images, layer.scale.value, layer.shift.value])

    output, (gradient, scale_gradient, shift_gradient) = run(tf.constant(images))
    means, variances = [], []
    expected, slopes = np.zeros(images.shape), np.zeros(images.shape)
    for group in range(4):
        part = slice(2 * group, 2 * group + 2)
        x, above = images[part].astype(np.float64), upstream[part].astype(np.float64)
        mean, variance, count = x.mean((0, 1, 2)), x.var((0, 1, 2)), 2 * 16
        normal = (x - mean) / np.sqrt(variance + 1e-5)
        expected[part] = normal * [0.5, 1.0, 2.0] + [0.1, 0.2, 0.3]
        centred = above - above.mean((0, 1, 2)) - normal * (above * normal).mean((0, 1, 2))
        slopes[part] = centred * np.array([0.5, 1.0, 2.0]) / np.sqrt(variance + 1e-5)
        means.append(mean)
        variances.append(variance * count / (count - 1))
    assert relative(output, expected) < 1e-5
    assert relative(gradient, slopes) < 1e-5
    normal = (expected - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0]
    assert relative(scale_gradient, (upstream * normal).sum((0, 1, 2))) < 1e-5
    assert relative(shift_gradient, upstream.sum((0, 1, 2), dtype=np.float64)) < 1e-5
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * np.mean(means, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer.running_variance.numpy(), 0.9 + 0.1 * np.mean(variances, 0), rtol=1e-5)


def test_frozen_scales_do_not_train_and_random_ones_start_between_0_and_1():
    frozen, random = (
        layers.BatchNorm(style, FIRST) for style in (Style(frozen_scales=True), Style(random_scales=True))
    )
    frozen.build((None, 4))
    random.build((None, 500))
    assert [weight.path.rpartition("/")[2] for weight in frozen.trainable_variables] == ["shift"]
    values = random.scale.numpy()
    assert 0 <= values.min() < 0.02 and 0.98 < values.max() <= 1 and abs(values.mean() - 0.5) < 0.05
    np.testing.assert_array_equal(frozen.scale.numpy(), 1)
    network = networks.make(SimpleNamespace(**recipes.values("post4-conv3") | {"width": 4, "seed": 2}), 10, fast=False)
    expected = np.random.default_rng([2, 1000]).uniform(0, 1, 4)  # in a network's first call, too
    np.testing.assert_array_equal(network.prep.norm.scale, expected.astype(np.float32))


def test_celu_and_its_gradient_far_from_zero_too():
    values = np.array([-1e4, -3.0, -0.3, -1e-3, 0.0, 1e-3, 2.0, 1e4], np.float32)
    for alpha in (0.075, 0.3):
        x = tf.constant(values)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layers.celu(x, alpha)
        wide = values.astype(np.float64)
        expected = np.maximum(0, wide) + np.minimum(0, alpha * np.expm1(np.minimum(wide, 0) / alpha))
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-7)
        slopes = np.where(wide > 0, 1.0, np.exp(np.minimum(wide, 0) / alpha))
        inner = values != 0  # at 0 both sides have slope 1; TensorFlow may split it
        np.testing.assert_allclose(tape.gradient(y, x).numpy()[inner], slopes[inner], rtol=1e-5)


def test_gelu_is_the_exact_one_of_the_error_function():
    values = np.linspace(-6, 6, 2001)
    from math import erf

    exact = values * 0.5 * (1 + np.array([erf(value / np.sqrt(2)) for value in values]))
    ours = layers.Activation(Style(activation="gelu"))(tf.constant(values, tf.float32))
    assert np.abs(ours - exact).max() < 1e-6  # GELU's tanh form is 5e-4 away


@pytest.mark.parametrize("size", [2, 3])
def test_the_whitenings_bias_starts_as_pytorchs(size):
    """Uniform in +-1/sqrt(fan_in), fan_in = size * size * 3; other numbers for another seed, the same for the same."""

    def bias(seed, whiten=layers.Whiten):
        layer = whiten(size, 5e-4, 10, both_signs=True, seed=seed)
        layer.build((None, 8, 8, 3))
        return layer.bias.numpy()

    bound, drawn = 1 / np.sqrt(3 * size**2), np.concatenate([bias(seed) for seed in range(200)])
    assert 0.99 * bound < np.abs(drawn).max() <= bound
    # The mean and the variance of that distribution, within four deviations of their estimates.
    assert abs(drawn.mean()) < 4 * bound / np.sqrt(3 * drawn.size)
    assert drawn.var() == pytest.approx(bound**2 / 3, abs=4 * bound**2 * np.sqrt(4 / 45 / drawn.size))
    np.testing.assert_array_equal(bias(7), bias(7))
    assert (bias(7) != bias(8)).all()


def test_the_speedruns_bias_has_its_seed_and_post_8s_whitening_none():
    def network(name, seed):
        return networks.make(SimpleNamespace(**recipes.values(name) | {"width": 4, "seed": seed}), 10, fast=False)

    one, same, other = (network("speedrun", seed).whiten.bias.numpy() for seed in (1, 1, 2))
    assert one.shape == (24,) and 0 < np.abs(one).max() <= 1 / np.sqrt(12) and (one == same).all()
    assert (one != other).all() and network("tricks-whiten", 1).whiten.bias is None


@pytest.mark.parametrize(("size", "stride"), [(1, 2), (3, 2), (3, 1)])
@pytest.mark.parametrize("fast", [False, True])
def test_convolutions_with_a_stride_pad_all_around_as_pytorch_does(size, stride, fast):
    generator = np.random.default_rng(4)
    images = generator.standard_normal((2, 6, 6, 5)).astype(np.float32)
    layer = layers.Conv(7, FIRST, size=size, stride=stride, fast=fast)
    outputs = layer(images).numpy()
    kernel, margin = layer.kernel.numpy().astype(np.float64), size // 2
    padded = np.pad(images, [(0, 0), (margin, margin), (margin, margin), (0, 0)]).astype(np.float64)
    expected = np.zeros((2, 6 // stride, 6 // stride, 7))
    for row, column in np.ndindex(6 // stride, 6 // stride):
        top, left = row * stride, column * stride
        expected[:, row, column] = np.einsum("nhwc,hwck->nk", padded[:, top : top + size, left : left + size], kernel)
    assert outputs.shape == expected.shape
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_a_dirac_start_passes_the_inputs_through_the_first_filters():
    kernel = layers.Dirac(1, 2)((3, 3, 4, 9)).numpy()
    images = np.random.default_rng(5).standard_normal((2, 5, 5, 4)).astype(np.float32)
    outputs = tf.nn.conv2d(images, kernel, 1, "SAME").numpy()
    np.testing.assert_allclose(outputs[..., :4], images, rtol=1e-6)
    bound = 1 / np.sqrt(36)
    assert 0.9 * bound < np.abs(kernel[..., 4:]).max() <= bound
    wide = layers.Dirac(1, 2)((3, 3, 9, 4)).numpy()  # more inputs than filters
    np.testing.assert_array_equal(wide[1, 1], np.eye(9, 4))


def test_the_speedruns_head_starts_with_unit_deviation():
    values = layers.UnitDeviation(0, 0)((256, 10)).numpy()
    assert values.std(ddof=1) == pytest.approx(1, rel=1e-5)


def test_the_head_has_pytorchs_bias_where_it_has_one():
    head = layers.Head(10, FIRST, bias=True, logit_scale=0.5)
    features = np.random.default_rng(6).standard_normal((4, 400)).astype(np.float32)
    logits = head(features)
    assert 0 < np.abs(head.bias.numpy()).max() <= 1 / 20
    expected = 0.5 * (features.astype(np.float64) @ head.kernel.numpy() + head.bias.numpy())
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_global_pool_joins_maximum_and_mean():
    images = np.random.default_rng(7).standard_normal((2, 4, 4, 3)).astype(np.float32)
    both = layers.GlobalPool(average=True, fast=False)(images)
    np.testing.assert_allclose(both, np.concatenate([images.max((1, 2)), images.mean((1, 2))], 1), rtol=1e-5, atol=1e-6)
