"""The networks by name: against a forward pass in NumPy, against the core's, and what is asked of them."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import model
import train_eager
from lab import options as hyperparameters
from lab.base.errors import UserError
from lab.ladder import describe, layers, networks, recipes
from lab.ladder.layers import Style
from model import Uniform
from reference import conv, conv_bn_relu, pool, unsettled


def options(**changes):
    return SimpleNamespace(**recipes.values("davidnet") | {"seed": 3, "width": 4} | changes)


def res_blk(block, kind, images, training):
    """The core's block, or an extra's: first with the pool, then second."""
    hidden = pool(conv_bn_relu(block.first if kind == "extra" else block.entry, images, training))
    if kind == "extra":
        return conv_bn_relu(block.second, hidden, training)
    if kind == "nothing":
        return hidden
    inner = conv_bn_relu(block.first, hidden, training)
    return hidden + conv_bn_relu(block.second, inner, training)


def davidnet(net, blocks, images, training):
    hidden = images.astype(np.float64)
    if getattr(net, "whiten", None):
        hidden = conv(hidden, net.whiten.kernel.numpy())
    hidden = conv_bn_relu(net.prep, hidden, training)
    for block, kind in zip((net.layer1, net.layer2, net.layer3), blocks.split(","), strict=True):
        hidden = res_blk(block, kind, hidden, training)
    return 0.125 * hidden.max((1, 2)) @ net.head.kernel.numpy().astype(np.float64)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"blocks": "nothing,nothing,nothing"},
        {"blocks": "extra,extra,extra"},
        {"blocks": "extra,residual,nothing"},
        {"whiten": True},
        {"whiten": True, "blocks": "nothing,extra,residual"},
    ],
)
@pytest.mark.parametrize("fast", [False, True])
def test_the_forward_pass_is_numpys(changes, fast):
    images = np.random.default_rng(2).standard_normal((5, 32, 32, 3)).astype(np.float32)
    net = networks.make(options(**changes), 10, fast=fast)
    networks.fit_whitening(net, images)
    unsettled(net)
    for training in (False, True):
        expected = davidnet(net, changes.get("blocks", "residual,nothing,residual"), images, training)
        np.testing.assert_allclose(net(images, training=training), expected, atol=1e-5 * np.abs(expected).max())


def norm_relu(norm, images):
    scale = norm.scale.numpy() / np.sqrt(norm.running_variance.numpy() + 1e-5)
    return np.maximum((images - norm.running_mean.numpy()) * scale + norm.shift.numpy(), 0)


def dawn(net, images, original):
    """The pre-activation network; in the original a skip leaves before the block's first batch norm."""
    hidden = conv(images.astype(np.float64), (net.prep.conv if original else net.prep).kernel.numpy())
    hidden = norm_relu(net.prep.norm, hidden) if original else hidden
    for stage in (1, 2, 3, 4):
        for number in (0, 1):
            block = getattr(net, f"layer{stage}_block{number}")
            stride = 2 if stage > 1 and number == 0 else 1
            inner = norm_relu(block.norm1, hidden)
            skip = hidden if original else inner
            if stride == 2:
                skip = conv(inner, block.shortcut.kernel.numpy())[:, ::2, ::2]
            branch = conv(inner, block.conv1.kernel.numpy())[:, ::stride, ::stride]
            hidden = skip + conv(norm_relu(block.norm2, branch), block.conv2.kernel.numpy())
    features = np.concatenate([hidden.max((1, 2)), hidden.mean((1, 2))], 1)
    return features @ net.head.kernel.numpy().astype(np.float64) + net.head.bias.numpy()


@pytest.mark.parametrize("name", ["dawn", "dawnbench"])
def test_the_pre_activation_networks_are_numpys(name):
    images = np.random.default_rng(6).standard_normal((3, 32, 32, 3)).astype(np.float32)
    net = unsettled(networks.make(options(network=name), 10, fast=False))
    expected = dawn(net, images, original=name == "dawnbench")
    np.testing.assert_allclose(net(images), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "text", ["", "residual", "extra,extra", "extra,extra,extra,extra", "extra, extra, extra", ",,"]
)
def test_blocks_that_are_not_three_known_ones_are_refused(text):
    with pytest.raises(UserError, match=r"^--blocks .* is not 3 of residual, extra, nothing; try") as error:
        networks.parse_blocks(text)
    assert "\n" not in str(error.value)


def test_the_names_are_those_of_the_options():
    assert tuple(networks.NETWORKS) == hyperparameters.NETWORKS
    known = {**recipes.values("davidnet"), "seed": 0}
    assert all(name in known for name in networks.OF_A_NETWORK)


# ---- the core's DavidNet and the lab's ---------------------------------------------------------------------


def stepped(net, images, labels, *, jit):
    """The logits before one update, and all variables after it."""
    optimizer = train_eager.Nesterov(0.1 / len(labels))
    optimizer.build(net.trainable_variables)

    @tf.function(jit_compile=jit)
    def step():
        with tf.GradientTape() as tape:
            logits = net(images, training=True)
            loss = train_eager.cross_entropy_sum(logits, labels)
        optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)
        return logits

    return step().numpy(), [weight.numpy() for weight in net.variables]


@pytest.mark.parametrize(("fast", "jit"), [(False, False), pytest.param(True, True, marks=pytest.mark.long)])
def test_the_labs_davidnet_is_the_cores(fast, jit):
    """Wide enough (32 inputs and filters at 16x16) for all fast forms."""
    generator = np.random.default_rng(4)
    images = tf.constant(generator.standard_normal((16, 32, 32, 3)), tf.float32)
    labels = tf.constant(generator.integers(0, 10, 16), tf.int32)
    conv_bn = partial(networks.ConvBN, style=Style(seed=3, fast=fast))
    core, lab = (model.DavidNet(10, width=16, seed=3, conv_bn=one) for one in (model.ConvBN, conv_bn))
    core(images), lab(images)
    assert len(core.variables) == len(lab.variables)
    for theirs, ours in zip(core.variables, lab.variables, strict=True):
        assert (theirs.name, theirs.trainable) == (ours.name, ours.trainable)
        np.testing.assert_array_equal(theirs, ours)
    (logits, updated), (ours, mine) = stepped(core, images, labels, jit=False), stepped(lab, images, labels, jit=jit)
    np.testing.assert_allclose(ours, logits, atol=1e-5 * np.abs(logits).max())
    for value, other in zip(updated, mine, strict=True):
        np.testing.assert_allclose(other, value, atol=1e-4 * np.abs(value).max())
    logits = core(images).numpy()
    np.testing.assert_allclose(lab(images), logits, atol=1e-4 * np.abs(logits).max())


def test_the_style_reaches_every_layer_of_the_cores_davidnet():
    changes = {"dropout": 0.5, "activation": "celu", "celu_alpha": 0.3, "pool_first": True, "ghost_groups": 2}
    net = networks.make(options(frozen_scales=True, **changes), 10, fast=True)
    assert isinstance(net, model.DavidNet)
    blocks = [part for part in net._flatten_layers() if isinstance(part, networks.ConvBN)]
    assert len(blocks) == 8
    for block in blocks:
        style = block.norm.style
        assert (style.ghost_groups, style.frozen_scales, style.fast) == (2, True, True)
        assert (block.activation.kind, block.activation.alpha, block.pool_first) == ("celu", 0.3, True)
        assert block.dropout.rate == 0.5 and block.conv.fast
    assert len({block.dropout.seed for block in blocks}) == 8


# ---- initial weights, dropout, precision -------------------------------------------------------------------


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_seed_decides_the_weights_and_no_two_layers_share_them(name):
    def kernels(seed):
        net = networks.make(options(network=name, seed=seed), 10, fast=False)
        return [weight.numpy() for weight in net.trainable_variables if weight.name == "kernel"]

    first, again, other = kernels(1), kernels(1), kernels(2)
    for same, value, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(same, value)
        assert (same != different).any() or set(same.ravel()) == {0, 1}  # as many inputs as filters: an identity
    drawn = np.concatenate([kernel[(kernel != 0) & (kernel != 1)] for kernel in first])  # all but the identities
    assert len(np.unique(drawn)) > 0.999 * len(drawn)


def test_dropout_zeroes_its_share_in_training_only_and_differs_between_layers():
    net = unsettled(networks.make(options(dropout=0.5), 10, fast=False))
    images = tf.ones([2, 32, 32, 3])
    np.testing.assert_array_equal(net(images), net(images))
    assert (net(images, training=True).numpy() != net(images, training=True).numpy()).any()
    dropped = net.prep.dropout(tf.ones([1000]), training=True).numpy()
    assert 0.4 < (dropped == 0).mean() < 0.6
    assert (dropped != net.layer1.entry.dropout(tf.ones([1000]), training=True).numpy()).any()


@pytest.fixture
def bfloat16():
    before = tf.keras.config.dtype_policy()
    tf.keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    tf.keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("changes", [{"whiten": True}, {"network": "speednet"}])
def test_the_whitening_computes_in_float32_and_the_rest_does_not(changes, bfloat16):
    images = np.random.default_rng(5).standard_normal((20, 32, 32, 3)).astype(np.float32)
    net, seen = networks.make(options(**changes), 10, fast=False), []
    networks.fit_whitening(net, images)
    call = net.whiten.call
    net.whiten.call = lambda images: seen.append(call(images)) or seen[-1]
    logits = net(images)
    padding = "SAME" if "whiten" in changes else "VALID"
    bias = 0.0 if net.whiten.bias is None else net.whiten.bias.numpy()
    np.testing.assert_array_equal(seen[0], tf.nn.conv2d(images, net.whiten.kernel.numpy(), 1, padding) + bias)
    assert seen[0].dtype == tf.float32 == logits.dtype
    convolutions = [part for part in net._flatten_layers() if isinstance(part, layers.Conv)]
    assert {part.compute_dtype for part in convolutions} == {"bfloat16"}


# ---- what one can ask of a network -------------------------------------------------------------------------


class Mixed(tf.keras.Model):
    """Layers by attribute, in a list and in a Sequential, and a weight of its own."""

    def __init__(self):
        super().__init__()
        self.blocks = [networks.ConvBN(2, Uniform(0, 0), Style()), networks.ConvBN(2, Uniform(0, 1), Style())]
        self.tail = tf.keras.Sequential([tf.keras.layers.Conv2D(3, 1), tf.keras.layers.Conv2D(3, 1)])
        self.shift = self.add_weight(shape=(3,), initializer="ones", name="shift")

    def call(self, images, training=False):
        for block in self.blocks:
            images = block(images, training=training)
        return self.tail(images) + self.shift


def test_the_evaluated_arrays_are_all_that_keras_says_the_network_has():
    net = Mixed()
    net(tf.zeros([1, 8, 8, 3]))
    named = networks.evaluated_variables(net)
    assert len(named) == len(net.weights) == 2 * 5 + 2 * 2 + 1
    assert {id(weight) for weight in named.values()} == {id(weight) for weight in net.weights}
    assert {"shift", "0/conv/kernel", "1/norm/running_mean", "tail/0/kernel", "tail/1/bias"} <= named.keys()
    arrays = networks.evaluated_arrays(net)
    np.testing.assert_array_equal(arrays["1/conv/kernel"], net.blocks[1].conv.kernel)
    other = Mixed()  # whose layers Keras has numbered otherwise
    other(tf.zeros([1, 8, 8, 3]))
    assert networks.evaluated_variables(other).keys() == named.keys()
    assert networks.parameters(net) == 2 * 2 * 2 + 9 * 3 * 2 + 9 * 2 * 2 + 9 + 12 + 3


class Own(tf.keras.Model):
    """A network of somebody's own, its layers held as `hold` makes it."""

    def __init__(self, hold, *layers):
        super().__init__()
        self.held = hold(layers)
        self.order = lambda: [self.held] if isinstance(self.held, tf.keras.Model) else layers

    def call(self, images, training=False):
        for layer in self.order():
            images = layer(images)
        return images


def own(hold):
    keras = tf.keras.layers
    shown = Own(hold, keras.SeparableConv2D(4, 3), keras.GlobalMaxPool2D(), keras.Dense(10))
    shown(tf.zeros([1, 32, 32, 3]))
    return shown


HOLDS = {
    "a list": list,
    "a tuple": tuple,
    "lists in a list": lambda layers: [[layers[0]], [layers[1], [layers[2]]]],
    "a dict": lambda layers: {str(number): layer for number, layer in enumerate(layers)},
    "Sequential": lambda layers: tf.keras.Sequential(list(layers)),
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS)
def test_wherever_its_layers_are_held_a_network_is_saved_and_counted(hold):
    network = own(hold)
    assert sum(array.size for array in networks.evaluated_arrays(network).values()) == 27 + 12 + 4 + 40 + 10
    rows = describe.trace(network)
    assert sum(row.parameters for row in rows) == 27 + 12 + 4 + 40 + 10
    assert describe.multiply_adds(rows) == 30 * 30 * (9 * 3 + 3 * 4) + 4 * 10


def test_weights_that_keras_does_not_know_are_refused():
    hidden = own(lambda layers: SimpleNamespace(layers=layers))
    assert hidden.weights == []  # a training of nothing, and an empty file
    with pytest.raises(UserError, match=r"reads own.*bias.* and 4 more, which Keras does not know.* list or dict"):
        describe.trace(hidden)


def test_weights_that_are_never_read_are_refused():
    idle = tf.keras.layers.Dense(3, name="idle")
    idle.build((None, 4))
    network = own(lambda layers: [*layers, idle])
    with pytest.raises(UserError, match=r"does not read its own idle/kernel and 1 more; leave"):
        describe.trace(network)


def test_dropout_has_a_random_state_which_evaluation_does_not_read():
    net = networks.make(options(dropout=0.5), 10, fast=False)
    plain = networks.make(options(), 10, fast=False)
    assert networks.evaluated_variables(net).keys() == networks.evaluated_variables(plain).keys()
    assert len(net.variables) == len(plain.variables) + 8


def test_two_weights_of_one_name_are_refused():
    layer = tf.keras.layers.Layer()
    layer.one, layer.two = layer.add_weight(shape=(1,), name="w"), layer.add_weight(shape=(1,), name="w")
    with pytest.raises(TypeError, match="rename one of them"):
        networks.evaluated_variables(layer)


def test_a_description_counts_what_the_core_computes_too():
    """The core's own layers, ours in both forms and a list of layers: the same products and outputs."""
    core = model.DavidNet(10, width=4)
    core(tf.zeros([1, 32, 32, 3]))
    rows = [describe.trace(net) for net in (core, *(networks.make(options(), 10, fast=f) for f in (False, True)))]
    convolutions = [(3, 4, 32), (4, 8, 32), *[(8, 8, 16)] * 2, (8, 16, 16), (16, 32, 8), *[(32, 32, 4)] * 2]
    products = sum(9 * inputs * filters * side**2 for inputs, filters, side in convolutions) + 320
    assert {describe.multiply_adds(one) for one in rows} == {products}
    numbers = [[(row.kind, row.shape, row.parameters, row.frozen, row.inputs) for row in one] for one in rows]
    assert numbers[0] == numbers[1] == numbers[2]
    net = Mixed()
    net(tf.zeros([1, 8, 8, 3]))
    assert describe.multiply_adds(describe.trace(net, 8)) == 64 * (9 * 3 * 2 + 9 * 2 * 2 + 2 * 3 + 3 * 3)
    assert net.blocks[0].conv.call.__func__ is layers.Conv.call  # nothing stays watched
