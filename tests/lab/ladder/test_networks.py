"""DavidNet against a forward pass in NumPy, PyTorch's initialisation and the published parameter count."""

import numpy as np
import pytest
import tensorflow as tf

from lab.ladder import layers
from lab.ladder import networks as model
from lab.ladder.layers import Style


def conv(images, kernel):
    """3x3 convolution with zero padding, straight from its definition, in float64."""
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    height, width = images.shape[1:3]
    return sum(
        padded[:, row : row + height, column : column + width] @ kernel[row, column].astype(np.float64)
        for row in range(3)
        for column in range(3)
    )


def conv_bn_relu(block, images, training):
    hidden = conv(images, block.conv.kernel.numpy())
    mean, variance = block.norm.running_mean.numpy(), block.norm.running_variance.numpy()
    if training:
        mean, variance = hidden.mean((0, 1, 2)), hidden.var((0, 1, 2))
    normal = (hidden - mean) / np.sqrt(variance + 1e-5) * block.norm.scale.numpy() + block.norm.shift.numpy()
    return np.maximum(normal, 0)


def pool(images):
    n, height, width, channels = images.shape
    return images.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def res_blk(block, images, training):
    hidden = pool(conv_bn_relu(block.entry, images, training))
    if block.first is None:
        return hidden
    inner = conv_bn_relu(block.first, hidden, training)
    return hidden + conv_bn_relu(block.second, inner, training)


def davidnet(net, images, training):
    hidden = conv_bn_relu(net.prep, images.astype(np.float64), training)
    for block in (net.layer1, net.layer2, net.layer3):
        hidden = res_blk(block, hidden, training)
    return 0.125 * hidden.max((1, 2)) @ net.head.kernel.numpy().astype(np.float64)


def narrow(**options):
    net = model.DavidNet(10, Style(seed=3, **options), width=4)
    net(tf.zeros([1, 32, 32, 3]))
    generator = np.random.default_rng(1)
    for weight in net.weights:  # so that no scale is 1, no shift 0 and no running average fresh
        if weight.path.rpartition("/")[2] in ("scale", "shift", "running_mean", "running_variance"):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return net


@pytest.mark.parametrize("training", [False, True])
def test_the_forward_pass_is_numpys(training):
    net = narrow()
    images = np.random.default_rng(2).standard_normal((5, 32, 32, 3)).astype(np.float32)
    expected = davidnet(net, images, training)
    np.testing.assert_allclose(net(images, training=training), expected, atol=1e-5 * np.abs(expected).max())


def test_it_has_the_published_number_of_parameters_and_shapes():
    net = model.DavidNet()
    logits = net(tf.zeros([2, 32, 32, 3]))
    assert logits.shape == (2, 10) and logits.dtype == tf.float32
    assert sum(int(np.prod(weight.shape)) for weight in net.trainable_variables) == 6_573_120
    assert len(net.trainable_variables) == 8 * 3 + 1  # every kernel, scale and shift, and the head
    assert len(net.non_trainable_variables) >= 8 * 2


def test_initial_weights_are_pytorchs_uniform():
    net = model.DavidNet(10, Style(seed=5))
    net(tf.zeros([1, 32, 32, 3]))
    for weight in net.trainable_variables:
        values, name = weight.numpy(), weight.path.rpartition("/")[2]
        if name == "kernel":
            bound = 1 / np.sqrt(np.prod(values.shape[:-1]))
            assert 0.99 * bound < np.abs(values).max() <= bound  # 1,728 values or more
            assert abs(values.std() / (bound / np.sqrt(3)) - 1) < 0.05
            assert abs(values.mean()) < 0.05 * bound
        else:
            np.testing.assert_array_equal(values, 1.0 if name == "scale" else 0.0)


def test_the_seed_decides_the_weights_and_no_two_layers_share_them():
    def kernels(seed):
        net = model.DavidNet(10, Style(seed=seed), width=4)
        net(tf.zeros([1, 32, 32, 3]))
        return [weight.numpy() for weight in net.trainable_variables if weight.path.endswith("kernel")]

    first, again, other = kernels(1), kernels(1), kernels(2)
    for same, value, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(same, value)
        assert (same != different).all()
    assert not np.array_equal(first[2], first[3])  # the two convolutions of a residual have one shape


def test_running_statistics_keep_nine_tenths_and_an_unbiased_variance():
    norm = layers.BatchNorm(Style(), layers.Uniform(0, 0))
    images = np.random.default_rng(0).standard_normal((4, 3, 3, 2)).astype(np.float32) * 2 + 5
    norm(images, training=True)
    flat = images.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.running_variance.numpy(), 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


def test_dropout_zeroes_its_share_in_training_only_and_differs_between_layers():
    net = narrow(dropout=0.5)
    images = tf.ones([2, 32, 32, 3])
    np.testing.assert_array_equal(net(images), net(images))
    assert (net(images, training=True).numpy() != net(images, training=True).numpy()).any()
    dropped = net.prep.dropout(tf.ones([1000]), training=True).numpy()
    assert 0.4 < (dropped == 0).mean() < 0.6
    assert (dropped != net.layer1.entry.dropout(tf.ones([1000]), training=True).numpy()).any()


def test_every_variable_is_checkpointed(tmp_path):
    net, other = narrow(), model.DavidNet(10, Style(seed=9), width=4)
    other(tf.zeros([1, 32, 32, 3]))
    tf.train.Checkpoint(net).write(str(tmp_path / "net"))
    tf.train.Checkpoint(other).read(str(tmp_path / "net")).assert_consumed()
    for saved, restored in zip(net.variables, other.variables, strict=True):
        np.testing.assert_array_equal(saved.numpy(), restored.numpy())
