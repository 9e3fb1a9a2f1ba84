"""DavidNet against a forward pass in NumPy, PyTorch's initialisation and the published parameter count."""

import numpy as np
import pytest
import tensorflow as tf

from model import BatchNorm, ConvBN, DavidNet, Uniform
from reference import conv_bn_relu, pool, unsettled


@pytest.fixture(autouse=True)
def restored_policy():
    before = tf.keras.config.dtype_policy()
    yield
    tf.keras.config.set_dtype_policy(before)


def davidnet(net, images, training):
    """The logits, (N, classes) float64."""
    x = conv_bn_relu(net.prep, images, training)
    for block, residual in ((net.layer1, True), (net.layer2, False), (net.layer3, True)):
        x = pool(conv_bn_relu(block.entry, x, training))
        if residual:
            x = x + conv_bn_relu(block.second, conv_bn_relu(block.first, x, training), training)
    return 0.125 * x.max((1, 2)) @ net.head.kernel.numpy().astype(np.float64)


def narrow(**options):
    """A network 4 filters wide, with no scale left at 1, no shift at 0 and no running statistics at their start."""
    net = DavidNet(10, width=4, seed=3, **options)
    net(tf.zeros([1, 32, 32, 3]))
    return unsettled(net)


def named(net, name):
    return [w for w in net.variables if w.path.rpartition("/")[2] == name]


@pytest.mark.parametrize("training", [False, True])
def test_the_forward_pass_is_numpys(training):
    net = narrow()
    images = np.random.default_rng(2).standard_normal((5, 32, 32, 3)).astype(np.float32)
    expected = davidnet(net, images, training)
    np.testing.assert_allclose(net(images, training=training), expected, atol=1e-5 * np.abs(expected).max())


def test_the_forward_pass_does_not_train_unless_it_is_told_to():
    net, images = narrow(), np.random.default_rng(3).standard_normal((2, 32, 32, 3)).astype(np.float32)
    before = [w.numpy() for w in net.variables]
    np.testing.assert_array_equal(net(images), net(images, training=False))
    assert all((w.numpy() == old).all() for w, old in zip(net.variables, before, strict=True))


def test_it_has_the_published_number_of_parameters_and_shapes():
    net = DavidNet()
    logits = net(tf.zeros([2, 32, 32, 3]))
    assert logits.shape == (2, 10) and logits.dtype == tf.float32
    assert sum(int(np.prod(w.shape)) for w in net.trainable_variables) == 6_573_120
    assert len(net.trainable_variables) == 8 * 3 + 1  # every kernel, scale and shift, and the head
    assert len(net.non_trainable_variables) == 8 * 2
    kernels = [tuple(w.shape) for w in named(net, "kernel")]
    widths = [(3, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
    assert kernels == [(3, 3, *pair) for pair in widths] + [(512, 10)]


def test_the_initial_weights_are_pytorchs_uniform_by_numpys_generator():
    net = DavidNet(4, width=8, seed=5)
    net(tf.zeros([1, 32, 32, 3]))
    kernels = named(net, "kernel")
    for index, weight in enumerate(kernels):
        bound = 1 / np.sqrt(np.prod(weight.shape[:-1]))  # PyTorch: kaiming_uniform with a = sqrt(5)
        expected = np.random.default_rng([5, index]).uniform(-bound, bound, weight.shape)
        np.testing.assert_array_equal(weight, expected.astype(np.float32))
        assert 0.9 * bound < np.abs(weight).max() <= bound
    assert len(kernels) == 9
    for name, value in {"scale": 1, "shift": 0, "running_mean": 0, "running_variance": 1}.items():
        assert len(named(net, name)) == 8 and all((w.numpy() == value).all() for w in named(net, name))


def test_the_seed_decides_the_weights_and_no_two_layers_share_them():
    def kernels(seed):
        net = DavidNet(10, width=4, seed=seed)
        net(tf.zeros([1, 32, 32, 3]))
        return [w.numpy() for w in named(net, "kernel")]

    for same, value, different in zip(kernels(1), kernels(1), kernels(2), strict=True):
        np.testing.assert_array_equal(same, value)
        assert (same != different).all()
    assert (kernels(1)[2] != kernels(1)[3]).all()  # the two convolutions of a residual have one shape


def test_the_logit_scale_and_another_conv_bn_reach_the_network():
    images = np.random.default_rng(4).standard_normal((2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(narrow(logit_scale=0.5)(images), 4 * narrow()(images).numpy(), rtol=1e-5)
    made = []

    def conv_bn(filters, initializer, *, pool=False):
        made.append((filters, isinstance(initializer, Uniform), pool))
        return ConvBN(filters, initializer, pool=pool)

    DavidNet(10, width=4, conv_bn=conv_bn)(images)
    pooled = [False, True, False, False, True, True, False, False]
    assert made == [(4 * times, True, p) for times, p in zip([1, 2, 2, 2, 4, 8, 8, 8], pooled, strict=True)]


# ---- batch norm --------------------------------------------------------------------------------------------


def test_running_statistics_keep_nine_tenths_and_an_unbiased_variance():
    norm, generator = BatchNorm(), np.random.default_rng(0)
    mean, variance = np.zeros(2), np.ones(2)
    for _ in range(2):
        images = generator.standard_normal((4, 3, 3, 2)).astype(np.float32) * 2 + 5
        norm(images, training=True)
        flat = images.reshape(-1, 2).astype(np.float64)  # n = 36, so n / (n - 1) shows
        mean, variance = 0.9 * mean + 0.1 * flat.mean(0), 0.9 * variance + 0.1 * flat.var(0, ddof=1)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.running_variance, variance, rtol=1e-5)
    norm(images)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-5)  # as an evaluation leaves them
    quick = BatchNorm(momentum=0.5)
    quick(images, training=True)
    np.testing.assert_allclose(quick.running_mean, 0.5 * flat.mean(0), rtol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_batch_norms_gradients_are_the_closed_form(epsilon):
    """With h = (x - mean) / sqrt(var + e) and gradient g of the output, over n pixels of a channel:

    dx = scale / sqrt(var + e) (g - mean(g) - h mean(g h)),  dscale = sum(g h),  dshift = sum(g).
    """
    generator = np.random.default_rng(7)
    images, g = generator.standard_normal((2, 3, 4, 5, 3)) * 1.5 + 0.5
    norm = BatchNorm(epsilon=epsilon)
    x = tf.constant(images, tf.float32)
    norm(x)
    norm.scale.assign(generator.uniform(0.5, 2, 3))
    norm.shift.assign(generator.uniform(-1, 1, 3))
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(norm(x, training=True) * tf.constant(g, tf.float32))
    dx, dscale, dshift = tape.gradient(total, [x, *norm.trainable_variables])
    axes, deviation = (0, 1, 2), np.sqrt(images.var((0, 1, 2)) + epsilon)
    h = (images - images.mean(axes)) / deviation
    expected = norm.scale.numpy() / deviation * (g - g.mean(axes) - h * (g * h).mean(axes))
    np.testing.assert_allclose(dx, expected, atol=2e-5)
    np.testing.assert_allclose(dscale, (g * h).sum(axes), rtol=1e-4)
    np.testing.assert_allclose(dshift, g.sum(axes), rtol=1e-4)


def test_the_networks_gradients_are_finite_differences_in_float64():
    """Along one direction in the head and one in each batch norm's shift, where the loss is smooth."""
    net = narrow()
    images = np.random.default_rng(8).standard_normal((4, 32, 32, 3)).astype(np.float32)
    weights = [net.head.kernel, net.layer3.second.norm.shift, net.layer3.second.norm.scale]
    pull = np.random.default_rng(9).standard_normal((4, 10))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(net(images, training=True) * tf.constant(pull, tf.float32))
    for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
        start = weight.numpy()
        direction = np.random.default_rng(10).standard_normal(start.shape)
        ends = []
        for step in (-1e-3, 1e-3):
            weight.assign(start + step * direction)
            ends.append((davidnet(net, images, True) * pull).sum())
        weight.assign(start)
        slope = (ends[1] - ends[0]) / 2e-3
        assert (gradient.numpy() * direction).sum() == pytest.approx(slope, rel=5e-3, abs=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_keeps_weights_statistics_and_logits_in_float32(precision):
    images = np.random.default_rng(2).standard_normal((8, 32, 32, 3)).astype(np.float32)
    expected = davidnet(narrow(), images, True)
    tf.keras.config.set_dtype_policy(f"mixed_{precision}")
    net = narrow()
    logits = net(images, training=True)
    assert logits.dtype == tf.float32 and {w.dtype for w in net.variables} == {"float32"}
    assert net.prep(tf.constant(images), training=True).dtype == precision  # it does compute in it
    spread = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, atol={"bfloat16": 0.05, "float16": 0.01}[precision] * spread)
    # 1 + 2^-10 is 1 in bfloat16: statistics that went through it would lose the step.
    net.prep.norm.running_mean.assign(np.full(4, 1 + 2**-10))
    net(tf.zeros([1, 32, 32, 3]), training=True)  # the batch's mean is 0
    np.testing.assert_allclose(net.prep.norm.running_mean, 0.9 * (1 + 2**-10), rtol=1e-6)
