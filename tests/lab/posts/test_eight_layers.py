import numpy as np
import pytest
import tensorflow as tf

from lab.posts import eight_layers
from lab.posts.eight_layers import EightLayers


@pytest.mark.parametrize("norm", [True, False])
def test_its_weights_are_seven_banks_and_a_matrix_of_hes_variance(norm):
    network = EightLayers(10, width=4, seed=0, norm=norm)
    channels = [(3, 4), (4, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32)]
    shapes = [(3, 3, *pair) for pair in channels] + [(32, 10)]
    assert [tuple(weight.shape) for weight in network.trainable_variables] == shapes
    for weight, shape in zip(network.trainable_variables[1:7], shapes[1:7], strict=True):
        assert np.var(weight.numpy()) == pytest.approx(2 / np.prod(shape[:3]), rel=0.15)


def test_its_outputs_are_numpys_at_a_constant_image():
    """Away from a constant image's border the first convolution sums its kernel over the window."""
    network = EightLayers(10, width=2, seed=1, norm=False)
    first = network.outputs(tf.ones([1, 32, 32, 3]))[0].numpy()
    kernel = network.trainable_variables[0].numpy()
    assert first[0, 5, 5] == pytest.approx(kernel.sum((0, 1, 2)) / np.sqrt(2), abs=1e-5)
    *_, last, logits = network.outputs(tf.ones([1, 32, 32, 3]))
    pooled = np.maximum(last.numpy(), 0).max((1, 2))
    assert logits.numpy() == pytest.approx(pooled @ network.trainable_variables[-1].numpy(), abs=1e-5)
    assert network(tf.ones([1, 32, 32, 3])).numpy() == pytest.approx(logits.numpy() * 0.125 / np.sqrt(6), abs=1e-6)
    assert [tuple(o.shape[1:]) for o in network.outputs(tf.ones([1, 32, 32, 3]))][1:3] == [(32, 32, 4), (16, 16, 4)]


def test_with_batch_norm_each_output_has_mean_0_and_variance_1():
    network = EightLayers(10, width=2, seed=0, norm=True)
    images = tf.constant(np.random.default_rng(0).normal(size=(8, 32, 32, 3)), tf.float32)
    for values in network.outputs(images, training=True)[:-1]:
        assert np.mean(values, (0, 1, 2)) == pytest.approx(np.zeros(values.shape[-1]), abs=1e-4)
        assert np.var(values, (0, 1, 2)) == pytest.approx(np.ones(values.shape[-1]), abs=1e-2)


def test_softplus_is_numpys():
    values = np.linspace(-2, 2, 9)
    assert eight_layers.softplus(tf.constant(values)).numpy() == pytest.approx(np.log1p(np.exp(10 * values)) / 10)
