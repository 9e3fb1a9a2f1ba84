import numpy as np
import pytest
import tensorflow as tf

from lab.posts import hessian
from lab.posts.eight_layers import LAYERS, EightLayers
from lab.posts.hessian import Derivatives


@pytest.fixture
def regression():
    """A linear softmax regression of 5 values to 3 classes, two batches, and the Hessian of its mean loss by hand."""
    generator = np.random.default_rng(0)
    inputs, labels = generator.normal(size=(2, 4, 5)), generator.integers(0, 3, (2, 4))
    network = tf.keras.Sequential([tf.keras.layers.Dense(3, use_bias=False)])
    network.build((None, 5))
    matrix = generator.normal(size=(5, 3))
    network.layers[0].kernel.assign(matrix)

    def loss(values, answers):
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(answers, network(values)))

    batches = [(tf.constant(x, tf.float32), tf.constant(y)) for x, y in zip(inputs, labels, strict=True)]
    x = inputs.reshape(8, 5)
    p = np.exp(x @ matrix)
    p /= p.sum(1, keepdims=True)
    # Of -log p_y by the (5, 3) matrix: x x' times diag(p) - p p'.
    by_hand = np.mean([np.kron(np.outer(a, a), np.diag(q) - np.outer(q, q)) for a, q in zip(x, p, strict=True)], 0)
    gradient = np.mean([np.outer(a, q - np.eye(3)[y]).ravel() for a, q, y in zip(x, p, labels.ravel(), strict=True)], 0)
    return network, Derivatives(loss, network.trainable_variables, batches), by_hand, gradient


def test_the_product_and_the_gradient_are_those_by_hand(regression):
    _, derivatives, by_hand, gradient = regression
    vector = np.random.default_rng(1).normal(size=15).astype(np.float32)
    assert derivatives.product(vector) == pytest.approx(by_hand @ vector, abs=1e-6)
    assert derivatives.gradient() == pytest.approx(gradient, abs=1e-6)


def test_the_leading_eigenpairs_are_numpys(regression):
    _, derivatives, by_hand, _ = regression
    values, vectors = hessian.leading(derivatives.product, 15, 3, seed=0, tolerance=1e-4)
    expected, columns = np.linalg.eigh(by_hand)
    assert values == pytest.approx(expected[:-4:-1], rel=1e-4)
    assert np.abs(np.sum(vectors * columns.T[:-4:-1], 1)) == pytest.approx(np.ones(3), abs=1e-4)


def test_of_several_outputs_the_gradient_is_of_those_along_the_vector():
    weights = [tf.Variable([1.0, 2.0]), tf.Variable([[3.0]])]

    def squares(scale):
        return scale * tf.stack([weights[0][0] ** 2, weights[0][1] * weights[1][0, 0]])

    derivatives = Derivatives(squares, weights, [(tf.constant(1.0),), (tf.constant(3.0),)])  # mean 2
    assert derivatives.gradient([1.0, 0.0]) == pytest.approx([4.0, 0.0, 0.0])
    assert derivatives.gradient([0.0, 1.0]) == pytest.approx([0.0, 6.0, 4.0])


def test_a_convolution_before_active_batch_norm_has_the_hessian_of_a_scale_invariant_loss():
    """f(s w) = f(w) for all s, so that the gradient is of degree -1 in w: H w = -g, and 0 for the other layers."""
    network = EightLayers(3, width=2, seed=0, norm=True, smooth=True)
    for layer in network.norms:
        layer.epsilon = 1e-8  # it would break the invariance a little
    generator = np.random.default_rng(0)
    images = tf.constant(generator.normal(size=(8, 32, 32, 3)), tf.float32)

    def loss(pixels):
        return tf.reduce_mean(network(pixels, training=True)[:, 0] ** 2)

    weights = network.trainable_variables
    assert len(weights) == len(LAYERS)
    derivatives = Derivatives(loss, weights, [(images,)])
    along = [tf.convert_to_tensor(w) if number == 2 else tf.zeros(w.shape) for number, w in enumerate(weights)]
    sizes = np.cumsum([np.prod(w.shape) for w in weights])[:-1].astype(int)
    product = np.split(derivatives.product(hessian.flat(along).numpy()), sizes)
    gradient = np.split(derivatives.gradient(), sizes)
    scale = float(np.linalg.norm(gradient[2]))
    assert product[2] == pytest.approx(-gradient[2], abs=1e-3 * scale)
    for number in (0, 1, 3, 4, 5, 6, 7):
        assert np.linalg.norm(product[number]) < 1e-3 * np.linalg.norm(gradient[number]) + 1e-4 * scale


def test_moved_moves_the_weights_and_brings_all_back(regression):
    network, *_ = regression
    before = network.layers[0].kernel.numpy()
    with hessian.moved(network, np.arange(15, dtype=np.float32)):
        assert network.layers[0].kernel.numpy() == pytest.approx(before + np.arange(15).reshape(5, 3))
    assert (network.layers[0].kernel.numpy() == before).all()


def test_the_share_in_a_span():
    vector = np.array([3.0, 4.0, 0.0], np.float32)
    first, both = np.array([2.0, 0.0, 0.0], np.float32), np.array([1.0, 1.0, 0.0], np.float32)
    assert hessian.share_in_span(vector, [first]) == pytest.approx(9 / 25)
    assert hessian.share_in_span(vector, [first, both]) == pytest.approx(1.0)
    assert hessian.share_in_span(vector, [np.array([0.0, 0.0, 5.0], np.float32)]) == pytest.approx(0.0)
