"""A deep network without batch norm computes nearly the same for every image before it is trained.

A ReLU's outputs have a positive mean. The next layer turns it into a mean of each channel, which is the same for all
inputs; He's initial weights keep the variance of all channels together, so as the means grow apart with the depth, what
depends on the input shrinks. Measured is the share of a layer's variance that is variance between its channels' means,
by depth: in linear layers with ReLU, He's weights and inputs of N(0, 1); in the same with the ReLU shifted and scaled
to mean 0 and variance 1; and in the eight layers of lab/posts/eight_layers.py, on noise and on images.

In the limit of many channels that share is the correlation of one channel's values on two inputs, and a ReLU takes a
correlation c to (sqrt(1 - c^2) + c (pi - arccos c)) / pi (Y. Cho and L. Saul, 2009): the line in the picture.

Source: D. C. Page, "How to train your ResNet", post 7 (cifar10-fast, batch_norm_post.ipynb), after K. Luther and
S. Seung, arXiv 1902.04942. It is refuted if the share does not rise towards 1 with ReLU, or does with the shifted one.

Small form: the original's sizes, about a minute.
"""

from collections.abc import Mapping
from math import acos, pi, sqrt
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from data import mean_std, standardise
from lab.images.imageset import ImageSet
from lab.posts.eight_layers import LAYERS, EightLayers
from lab.posts.frame import Finding
from lab.report.figures import COLOURS, GREY

ORIGINAL = {"layers": 50, "channels": 2048, "inputs": 512, "width": 64}
SMALL = ORIGINAL
NEAR = 0.05  # from the limit of many channels


def share_between(values: NDArray[Any]) -> float:
    """The share of the variance of values (N, ..., C), all channels together, that is variance between their means."""
    values = values.reshape(-1, values.shape[-1]).astype(np.float64)
    return float(values.mean(0).var() / values.var())


def linear_layers(layers: int, channels: int, inputs: int, seed: int) -> dict[str, list[float]]:
    """The share after each linear layer, with ReLU and with the shifted one between them, the weights the same."""
    generator = np.random.default_rng([seed, 7])
    start = generator.standard_normal((inputs, channels), np.float32)
    values: dict[str, NDArray[Any]] = {"relu": start, "shifted": start}
    shares: dict[str, list[float]] = {"relu": [], "shifted": []}
    for _ in range(layers):
        weights = generator.standard_normal((channels, channels), np.float32) * np.float32(sqrt(2 / channels))
        for kind, before in values.items():
            after = before @ weights
            shares[kind].append(share_between(after))
            after = np.maximum(after, 0)
            # Of a normal value of variance 2, which He's weights make of inputs of mean square 1.
            values[kind] = after if kind == "relu" else (after - sqrt(1 / pi)) / np.float32(sqrt(1 - 1 / pi))
    return shares


def limit(layers: int, *, shifted: bool) -> list[float]:
    """The share after each linear layer in the limit of many channels."""
    share, shares = 0.0, []
    for _ in range(layers):
        shares.append(share)
        after = (sqrt(1 - share**2) + share * (pi - acos(share))) / pi
        share = min(1.0, (after - 1 / pi) / (1 - 1 / pi) if shifted else after)
    return shares


def measure(sizes: Mapping[str, Any], images: ImageSet, seed: int) -> dict[str, Any]:
    """The share by depth, and of the images the share that gets the answer which most of them get."""
    pixels = images.train_images[: sizes["inputs"]]
    real = tf.constant(standardise(pixels, *mean_std(images.train_images)))
    noise = tf.constant(np.random.default_rng([seed, 8]).standard_normal(real.shape, np.float32))
    shares, answers = {}, {}
    for name, batch, norm in (("noise", noise, False), ("images", real, False), ("batch norm", real, True)):
        network = EightLayers(len(images.classes), width=sizes["width"], seed=seed, norm=norm)
        outputs = network.outputs(batch, training=True)
        shares[name] = [share_between(values.numpy()) for values in outputs]
        counts = np.bincount(outputs[-1].numpy().argmax(1))
        answers[name] = float(counts.max() / counts.sum())
    linear = linear_layers(sizes["layers"], sizes["channels"], sizes["inputs"], seed)
    return {"linear": linear, "eight": shares, "most_frequent_answer": answers}


def judge(record: Mapping[str, Any]) -> list[Finding]:
    """Both kinds of linear layers against the limit, and the eight layers with and without batch norm."""
    found = []
    for kind, what in (("relu", "linear layers with ReLU"), ("shifted", "the same, ReLU with mean 0 and variance 1")):
        last, shares = record["linear"][kind][-1], record["linear"][kind]
        theory = limit(len(shares), shifted=kind == "shifted")[-1]
        holds = abs(last - theory) < NEAR
        found.append(
            Finding(
                f"{what}: share between means, layer {len(shares)}", f"{theory:.2f} ± {NEAR:g}", f"{last:.3f}", holds
            )
        )
    for name, what in (("noise", "N(0, 1)"), ("images", "CIFAR-10")):
        shares = record["eight"][name]
        grows = shares[-1] > max(0.5, shares[0])
        same = f"{record['most_frequent_answer'][name]:.0%} of the inputs get one answer"
        text = f"{shares[0]:.2f} in the first layer, {shares[-1]:.2f} in the last; {same}"
        found.append(Finding(f"eight layers without batch norm, on {what}", "rises towards 1, above 0.5", text, grows))
    without, normed = record["eight"]["images"][-1], record["eight"]["batch norm"][-1]
    same = f"{record['most_frequent_answer']['batch norm']:.0%} of the inputs get one answer"
    text = f"{normed:.2f}; the layers before have {max(record['eight']['batch norm'][:-1]):.2f} at most; {same}"
    what = "eight layers with batch norm, on CIFAR-10: the last"
    found.append(Finding(what, f"less than without ({without:.2f}), not 0", text, 0 < normed < without))
    return found


def draw(record: Mapping[str, Any], figure: Any) -> None:
    """The shares by depth, linear layers on the left, the eight on the right."""
    left, right = figure.subplots(1, 2, sharey=True)
    colour = dict(zip(("relu", "shifted"), COLOURS, strict=False))
    for kind, shares in record["linear"].items():
        depth = range(1, len(shares) + 1)
        left.plot(depth, limit(len(shares), shifted=kind == "shifted"), color=GREY, linewidth=4, alpha=0.5)
        left.plot(depth, shares, ".", color=colour[kind], label={"relu": "ReLU"}.get(kind, "ReLU, mean 0, variance 1"))
    left.plot([], [], color=GREY, linewidth=4, alpha=0.5, label="limit of many channels")
    left.set(xlabel="linear layer", ylabel="share of variance between channel means (0 to 1)", ylim=(-0.03, 1.03))
    left.set_title(f"{record['sizes']['channels']} channels, inputs N(0, 1)", fontsize="medium")
    for (name, shares), colour_of in zip(record["eight"].items(), COLOURS[2:], strict=False):
        label = {"noise": "no batch norm, N(0, 1)", "images": "no batch norm, CIFAR-10"}.get(
            name, "batch norm, CIFAR-10"
        )
        right.plot(range(len(shares)), shares, "o-", color=colour_of, label=label)
    right.set_xticks(range(len(LAYERS)), LAYERS, rotation=40)
    right.set_xlabel("layer")
    right.set_title("the eight layers, before training", fontsize="medium")
    for axes in (left, right):
        axes.legend(fontsize="small")
