"""The rivals are DavidNet: the core's logits and loss with its weights copied in, PyTorch's update too."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lab.bench import rivals, tables, with_tensorflow
from model import DavidNet
from train_eager import cross_entropy_sum

ROOT = Path(__file__).resolve().parents[3]
TASK = rivals.Task("davidnet", 16, 4, Path("images.npz"))


@pytest.fixture
def davidnet():
    """The core's network of width 4, with scales, shifts and running statistics that are not their start's."""
    network = DavidNet(width=4, seed=3)
    network(tf.zeros([1, 32, 32, 3]))
    generator = np.random.default_rng(5)
    for layer in norms(network):
        for variable, low in ((layer.scale, 0.5), (layer.shift, -0.5), (layer.running_mean, -0.5)):
            variable.assign(generator.uniform(low, low + 1, variable.shape))
        layer.running_variance.assign(generator.uniform(0.5, 2, layer.running_variance.shape))
    return network


def conv_bns(network):
    """The core's eight conv-BN-ReLU in the order of the forward pass."""
    blocks = (network.layer1, network.layer2, network.layer3)
    parts = [network.prep, *(part for block in blocks for part in (block.entry, block.first, block.second))]
    return [part for part in parts if part is not None]


def norms(network):
    return [part.norm for part in conv_bns(network)]


def layers_of_keras(model):
    """The functional model's convolutions and batch norms, each in the order of the forward pass, and its head."""
    kinds = (tf.keras.layers.Conv2D, tf.keras.layers.BatchNormalization, tf.keras.layers.Dense)
    return [[layer for layer in model.layers if isinstance(layer, kind)] for kind in kinds]


def layers_of_the_tutorial(model):
    """The same of the tutorial's."""
    blocks = (model.blk1, model.blk2, model.blk3)
    rest = [part for block in blocks for part in (block.conv_bn, *((block.res1, block.res2) if block.res else ()))]
    parts = [model.init_conv_bn, *rest]
    return [part.conv for part in parts], [part.norm for part in parts], [model.linear]


@pytest.mark.parametrize(
    ("make", "layers"),
    [(with_tensorflow.keras_davidnet, layers_of_keras), (with_tensorflow.TutorialNet, layers_of_the_tutorial)],
)
def test_keras_rivals_have_davidnet_s_logits(davidnet, make, layers):
    images = tf.constant(rivals.ready_batch(TASK)[0])
    model = make(4)
    model(images[:1])  # makes the variables
    convolutions, batch_norms, (head,) = layers(model)
    for part, conv, norm in zip(conv_bns(davidnet), convolutions, batch_norms, strict=True):
        conv.kernel.assign(part.conv.kernel)
        norm.gamma.assign(part.norm.scale)
        norm.beta.assign(part.norm.shift)
        norm.moving_mean.assign(part.norm.running_mean)
        norm.moving_variance.assign(part.norm.running_variance)
    head.kernel.assign(davidnet.head.kernel)
    for training in (False, True):
        expected = davidnet(images, training=training).numpy()
        np.testing.assert_allclose(model(images, training=training), expected, atol=1e-5)
        assert np.ptp(expected) > 0.1  # not all the same


@pytest.mark.parametrize("make", [with_tensorflow.keras_davidnet, with_tensorflow.TutorialNet])
def test_keras_rivals_have_davidnet_s_size(make):
    model = make(64)
    model(tf.zeros([1, 32, 32, 3]))
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_variables) == 6_573_120


# In a process of its own: PyTorch for GPUs and TensorFlow together have crashed.
PYTORCH = """
import sys
import numpy as np, torch
from lab.bench import rivals, with_pytorch

weights, task = dict(np.load(sys.argv[1])), rivals.Task("davidnet", 16, 4, None)
network = with_pytorch.DavidNet(4)
convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
(head,) = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
assert len(convolutions) == len(norms) == 8
pairs = [(head.weight, weights["head"].T)]
for number, (conv, norm) in enumerate(zip(convolutions, norms)):
    pairs.append((conv.weight, weights[f"kernel{number}"].transpose(3, 2, 0, 1)))  # (out, in, height, width)
    values = weights[f"norm{number}"]
    pairs += zip((norm.weight, norm.bias, norm.running_mean, norm.running_var), values)
with torch.no_grad():
    for parameter, value in pairs:
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    images = torch.from_numpy(rivals.ready_batch(task)[0]).permute(0, 3, 1, 2)
    logits = network.eval()(images).numpy()
    training = network.train()(images).numpy()
with_pytorch.RATE, with_pytorch.WEIGHT_DECAY = 1.0, 0.5  # so that both can be seen in float32
run, units = with_pytorch.steps(task, network=network)
run(1)
assert units == 16
trained = {f"kernel{number}": conv.weight.detach().numpy().transpose(2, 3, 1, 0)
           for number, conv in enumerate(convolutions)}
trained |= {f"scale{number}": norm.weight.detach().numpy() for number, norm in enumerate(norms)}
np.savez(sys.argv[2], logits=logits, training=training, head=head.weight.detach().numpy().T, **trained)
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed (pip install torch)")
def test_pytorch_s_rival_has_davidnet_s_logits_and_update(davidnet, tmp_path):
    parts = conv_bns(davidnet)
    weights = {f"kernel{number}": part.conv.kernel.numpy() for number, part in enumerate(parts)}
    for number, part in enumerate(parts):
        norm = part.norm
        values = (norm.scale, norm.shift, norm.running_mean, norm.running_variance)
        weights[f"norm{number}"] = np.stack([value.numpy() for value in values])
    np.savez(tmp_path / "weights.npz", head=davidnet.head.kernel.numpy(), **weights)
    done = subprocess.run(
        [sys.executable, "-c", PYTORCH, tmp_path / "weights.npz", tmp_path / "answer.npz"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer = np.load(tmp_path / "answer.npz")
    images, labels = map(tf.constant, rivals.ready_batch(TASK))
    np.testing.assert_allclose(answer["logits"], davidnet(images, training=False), atol=1e-5)
    with tf.GradientTape() as tape:
        logits = davidnet(images, training=True)
        loss = cross_entropy_sum(logits, labels)
    np.testing.assert_allclose(answer["training"], logits, atol=1e-5)
    # The first update by hand: a = g + decay w, then w - rate (g + decay w + momentum a), for the summed loss.
    watched = {f"kernel{number}": part.conv.kernel for number, part in enumerate(parts)}
    watched |= {f"scale{number}": part.norm.scale for number, part in enumerate(parts)}
    watched["head"] = davidnet.head.kernel
    for name, gradient in tape.gradient(loss, watched).items():
        before = watched[name].numpy()
        moved = -1.0 / 16 * 1.9 * (gradient.numpy() + 0.5 * 16 * before)
        np.testing.assert_allclose(answer[name] - before, moved, atol=1e-4 * np.abs(moved).max())


# ---- the table ---------------------------------------------------------------------------------------------


def test_gflop_of_davidnet():
    # 379 M multiply-adds an image forward at width 64, three times two FLOP each
    assert rivals.davidnet_gflop(64) == pytest.approx(6 * 0.3793, rel=1e-3)


def test_gflop_of_the_speedrun():
    # 118,147,360 multiply-adds an image forward, by the layers' shapes; 0.29 PFLOP for 8 epochs, as published
    assert rivals.speedrun_gflop(64) == pytest.approx(6 * 0.11814736, rel=1e-6)
    assert rivals.speedrun_gflop(64) * 1e9 * 8 * 50_000 == pytest.approx(0.29e15, rel=0.03)


@pytest.mark.parametrize("network", rivals.NETWORKS)
def test_every_candidate_stands_beside_one_of_its_unit(network):
    table = rivals.candidates(network)
    for candidate in table.values():
        assert candidate.section in tables.SECTIONS
        assert candidate.process in rivals.PROCESSES
        assert not candidate.beside or table[candidate.beside].unit == candidate.unit
        if candidate.process.startswith(("tensorflow", "pytorch")):
            assert candidate.options.get("half", False) is (candidate.precision == "bfloat16")
    assert rivals.OURS in table
