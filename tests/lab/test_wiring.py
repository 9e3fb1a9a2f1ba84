"""That each hyperparameter reaches what it is about, and that the published constants of the networks are theirs."""

import math
from dataclasses import fields

import numpy as np
import pytest
import tensorflow as tf

import data
from lab import assemble
from lab.ladder import layers, networks, optimizers, recipes
from lab.ladder.layers import Style
from reference import conv, pool

STYLE = {
    "seed": 7, "dropout": 0.25, "pool_first": True, "activation": "celu", "celu_alpha": 0.5, "ghost_groups": 4,
    "frozen_scales": True,
}  # fmt: skip
# What a Style has besides is not the user's: the machine's form of the layers, and what belongs to a network.
OWN = {"fast", "random_scales", "bn_epsilon", "bn_keeps"}


@pytest.fixture(scope="module")
def few(small_data):
    """Hyperparameters of a training that takes seconds."""
    return {"data": small_data, "device": "cpu", "width": 4, "batch_size": 16, "epochs": 1, "jit": False}


def style(**changes):
    return networks.style_of(assemble.configure(changes), fast=False)


def network(**changes):
    return networks.make(assemble.configure({"width": 4, **changes}), 10, fast=False)


def layers_of(net, kind):
    return [layer for layer in net._flatten_layers() if isinstance(layer, kind)]


# ---- from a hyperparameter to the layers -------------------------------------------------------------------


@pytest.mark.parametrize("name", STYLE)
def test_a_hyperparameter_of_the_layers_reaches_their_style(name):
    beside = {"activation": "celu"} if name == "celu_alpha" else {}
    assert getattr(style(**beside, **{name: STYLE[name]}), name) == STYLE[name] != getattr(Style(), name)


def test_every_field_of_the_style_is_a_hyperparameter_or_a_networks_own():
    assert {field.name for field in fields(Style)} == set(STYLE) | OWN


def test_the_style_reaches_every_layer_of_the_network():
    changes = {**STYLE, "batch_size": 512}
    net = network(**changes)
    blocks, norms = layers_of(net, networks.ConvBN), layers_of(net, layers.BatchNorm)
    acts = layers_of(net, layers.Activation)
    assert len(blocks) == len(norms) == 8 and len(acts) >= 8
    assert all(block.pool_first for block in blocks)
    assert all(block.dropout.rate == 0.25 for block in blocks)
    assert {(act.kind, act.alpha) for act in acts} == {("celu", 0.5)}
    assert {norm.style.ghost_groups for norm in norms} == {4}
    assert not [w for w in net.trainable_variables if w.path.endswith("/scale")]


def test_the_logit_scale_reaches_the_logits_and_the_whitening_the_network():
    images = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)
    for beside in ({}, {"blocks": "nothing,nothing,nothing"}):
        half, eighth = (network(logit_scale=scale, **beside)(images) for scale in (0.5, 0.125))
        np.testing.assert_allclose(half, 4 * eighth.numpy(), rtol=1e-5)
    whitened = network(whiten=True, logit_scale=0.5)
    assert whitened.head.logit_scale == 0.5
    found = (whitened.whiten.size, whitened.whiten.epsilon, whitened.whiten.images)
    assert found == (3, 1e-2, 10_000)  # post 8


def test_a_last_epoch_that_is_a_part_has_its_own_steps_rate_and_means(few):
    """At a rate of 0 the weights stay, so the row can be made again from the images of its three steps alone."""
    plain = {"pad": 0, "cutout": 0, "flip": "none", "batch_size": 16, "epochs": 2, "last_epoch": 0.5}
    training = assemble.make(assemble.configure({**few, **plain, "learning_rate": 0.0}))
    moments = list(training.run())
    assert [(moment.epoch, moment.step) for moment in moments if not moment.row] == [
        *((1, step) for step in range(1, 6)),
        *((2, step) for step in range(1, 4)),  # 1.5 times 5 steps are 7.5
    ]
    assert int(training.optimizer.iterations) == 8 and training.steps_per_epoch == 5
    pixels = training.images.train_images / 255
    images = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    losses = []
    for numbers in data.plan(training.config, 2, 80)[:3, :, 0]:
        logits = training.network(tf.constant(images[numbers], tf.float32), training=True).numpy().astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses += list(-logs[np.arange(16), training.images.train_labels[numbers]])
    assert moments[-1].row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    rate = optimizers.make(assemble.configure({**few, **plain}), training.network, 5)[0].rates[0]
    expected = np.interp(np.arange(1, 9) / 5, [0, 5 / 24 * 1.5, 1.5], [0, 0.4, 0]) / 16
    np.testing.assert_allclose([rate(step) for step in range(8)], expected, rtol=1e-5, atol=1e-9)


def test_a_rows_loss_and_accuracy_are_those_of_the_smoothed_loss_over_the_images_seen(few):
    """At a rate of 0 the weights stay, so an epoch's sums can be made again, batch by batch."""
    plain = {"learning_rate": 0.0, "pad": 0, "cutout": 0, "flip": "none"}
    training = assemble.make(assemble.configure({**few, **plain, "label_smoothing": 0.25, "logit_scale": 0.5}))
    row = [moment.row for moment in training.run()][-1]
    pixels = training.images.train_images / 255
    images = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    losses, hits = [], []
    for numbers in data.plan(training.config, 1, 80)[..., 0]:
        logits = training.network(tf.constant(images[numbers], tf.float32), training=True).numpy()
        labels = training.images.train_labels[numbers]
        logs = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
        losses += list(-0.75 * logs[np.arange(len(labels)), labels] - 0.25 * logs.mean(1))
        hits += list(logits.argmax(1) == labels)
    assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert row["train_accuracy"] == pytest.approx(np.mean(hits))


# ---- networks in NumPy -------------------------------------------------------------------------------------


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def silu(x):
    return x / (1 + np.exp(-x))


def speednet(net, images, activation, divisor):
    """airbench's networks in training: whiten, GELU, three ConvGroups, max-pool 3, head over the divisor."""

    def normal(x, conv_of, norm, pooled=False):
        x = conv(x, conv_of.kernel.numpy())
        x = pool(x) if pooled else x
        return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-12) + norm.shift.numpy()

    x = gelu(conv(images, net.whiten.kernel.numpy(), padding=0) + net.whiten.bias.numpy())
    for group in (net.group1, net.group2, net.group3):
        x = first = activation(normal(x, group.first.conv, group.first.norm, pooled=True))
        x = activation(normal(x, group.second.conv, group.second.norm))
        if hasattr(group, "conv"):  # airbench96's third
            x = activation(normal(x, group.conv, group.norm) + first)
    return pool(x, 3)[:, 0, 0] @ net.head.kernel.numpy() / divisor


@pytest.mark.parametrize(
    ("recipe", "widths", "activation", "divisor", "keeps", "count"),
    [
        ("speedrun", (4, 16, 16), gelu, 16, 0.6, 5_000),
        ("speedrun-hiverge", (4, 16, 16), silu, 16, 0.5566, 960),
        ("speedrun95", (4, 12, 12), gelu, 9, 0.6, 5_000),
        ("speedrun96", (4, 12, 16), gelu, 9, 0.9, 5_000),
    ],
)
def test_the_speedruns_networks_are_airbenchs_and_hiverges(recipe, widths, activation, divisor, keeps, count):
    net, generator = network(recipe=recipe), np.random.default_rng(0)
    images = generator.standard_normal((6, 32, 32, 3))
    networks.fit_whitening(net, images.astype(np.float32))
    for weight in net.trainable_variables:  # also of what starts at 0
        weight.assign(weight + 0.3 * generator.standard_normal(weight.shape).astype(np.float32))
    expected = speednet(net, images, activation, divisor)
    logits = net(tf.constant(images, tf.float32), training=True)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    first = gelu(conv(images, net.whiten.kernel.numpy(), padding=0) + net.whiten.bias.numpy())
    moments = pool(conv(first, net.group1.first.conv.kernel.numpy(), 1), 2).mean((0, 1, 2))
    np.testing.assert_allclose(net.group1.first.norm.running_mean, (1 - keeps) * moments, rtol=1e-3, atol=1e-5)
    assert (net.whiten.epsilon, net.whiten.images) == (5e-4, count)
    groups = (net.group1, net.group2, net.group3)
    assert tuple(group.first.conv.filters for group in groups) == widths
    assert {hasattr(group, "conv") for group in groups} == {recipe == "speedrun96"}


def test_airbench_95_and_96_start_with_the_whitenings_bias_at_0_and_pytorchs_last_layer():
    for recipe, inputs in (("speedrun95", 48), ("speedrun96", 64)):
        net = network(recipe=recipe, width=16)
        head = net.head.kernel.numpy()
        assert not net.whiten.bias.numpy().any()
        assert np.abs(head).max() < inputs**-0.5 and head.std() == pytest.approx((3 * inputs) ** -0.5, rel=0.1)


def test_the_speedruns_constants_are_airbench94s():
    published = {  # airbench94_muon.py
        "epochs": 8, "batch_size": 2000, "learning_rate": 0.24, "momentum": 0.85, "filter_momentum": 0.6,
        "bias_rate": 0.053, "head_rate": 0.67, "weight_decay": 2e-6, "label_smoothing": 0.2, "pad": 2,
        "whiten_bias_epochs": 3.0,
    }  # fmt: skip
    configured = assemble.configure({"recipe": "speedrun"})
    assert {name: getattr(configured, name) for name in published} == published
    values = recipes.values("speedrun")
    assert {name: values[name] for name in published} == published


def test_hiverges_constants_are_its_own():
    published = {  # cifar10_speedrun.py; 243 steps of 32 an epoch, a bias trained for ceil(0.19 * 32) of them
        "epochs": 8, "last_epoch": 243 / 32 - 7, "batch_size": 1536, "learning_rate": 0.205, "momentum": 0.825,
        "filter_momentum": 0.655, "filter_decay": pytest.approx(0.0016002048), "rescale_growth": 15,
        "newton_schulz": "hiverge", "bias_rate": 0.0573, "head_rate": 0.5415, "weight_decay": 1.0418e-06,
        "label_smoothing": 0.09, "pad": 2, "flip": "alternating", "cutout": 0, "brightness": 0.1399,
        "contrast": 0.1308, "whiten_bias_epochs": 7 / 32, "activation": "silu", "tta": "unsure",
    }  # fmt: skip
    configured = assemble.configure({"recipe": "speedrun-hiverge"})
    assert {name: getattr(configured, name) for name in published} == published


@pytest.mark.parametrize(
    ("recipe", "images"), [("speedrun", 5000), ("speedrun-hiverge", 960), ("speedrun-lowres", 5000)]
)
def test_the_whitening_is_fitted_to_as_many_images_as_in_the_script(recipe, images):
    """cifar10-airbench and E1 take the first 5,000, hiverge's script 960."""
    whiten = network(network=recipes.values(recipe)["network"], width=16).whiten
    rng = np.random.default_rng(3)
    pixels = (rng.standard_normal((5001, 2, 2, 3)) + np.linspace(0, 9, 5001)[:, None, None, None]).astype(np.float32)
    whiten.fit(pixels)
    patches = pixels[:images].transpose(0, 3, 1, 2).reshape(images, -1)
    values = np.linalg.eigvalsh(patches.T @ patches / images)
    first = whiten.kernel.numpy()[..., :12].transpose(3, 2, 0, 1).reshape(12, 12)
    scales = np.linalg.norm(first, axis=1)
    np.testing.assert_allclose(np.sort(scales), np.sort(1 / np.sqrt(values + 5e-4)), rtol=1e-3)


@pytest.mark.parametrize("name", ["dawn", "shortcuts", "conv1", "conv3", "maxpool", "globalpool"])
def test_the_networks_before_davidnet_start_with_random_scales(name):
    net = network(network=name, width=16)
    scales = [w.numpy() for w in net.trainable_variables if w.path.endswith("/scale")]
    assert scales and all(s.min() >= 0 and s.max() <= 1 and s.std() > 0.1 for s in scales)


def test_pooling_first_pools_between_convolution_and_batch_norm():
    images = np.random.default_rng(2).standard_normal((4, 8, 8, 3)).astype(np.float32)
    for first in (False, True):
        block = networks.ConvBN(5, layers.Uniform(0, 0), Style(pool_first=first), pool=True)
        x = block(tf.constant(images), training=True)
        hidden = conv(images, block.conv.kernel.numpy(), 1)
        hidden = pool(hidden, 2) if first else hidden
        normal = np.maximum((hidden - hidden.mean((0, 1, 2))) / np.sqrt(hidden.var((0, 1, 2)) + 1e-5), 0)
        np.testing.assert_allclose(x, normal if first else pool(normal, 2), atol=1e-4)
