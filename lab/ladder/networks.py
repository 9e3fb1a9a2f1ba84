"""The networks of the recipes, by name, and what one can ask of a network.

DavidNet itself is the core's, in the style of a recipe. The others lead to it in the posts "How to train your
ResNet", come after it there, or are the speedrun's.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

import model
from lab.base.errors import UserError
from lab.ladder.layers import (
    Activation,
    Add,
    BatchNorm,
    Conv,
    Dirac,
    GlobalPool,
    Head,
    MaxPool,
    Style,
    UnitDeviation,
    Whiten,
)
from model import ResBlk, Uniform, initializers

BLOCKS = ("residual", "extra", "nothing")  # after the pool of one of DavidNet's layers
DAVIDNETS = ("residual", "nothing", "residual")
LAYERS = len(DAVIDNETS)
# The hyperparameters that make a network.
OF_A_NETWORK = (
    "network",
    "blocks",
    "width",
    "logit_scale",
    "whiten",
    "seed",
    "dropout",
    "pool_first",
    "activation",
    "celu_alpha",
    "ghost_groups",
    "frozen_scales",
)


class ConvBN(tf.keras.Model):
    """conv - (dropout) - BN - activation, with a max-pool 2 at its end if `pool` (before BN if the style says so).

    (N, H, W, C) -> (N, H', W', filters), where H' is H, divided by the stride, and by 2 if pooled. The core's
    networks take it as their conv_bn.
    """

    def __init__(
        self, filters: int, start: Uniform, style: Style, *, pool: bool = False, size: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.pool_first = style.pool_first
        self.conv = Conv(filters, start, size=size, stride=stride, fast=style.fast)
        self.norm = BatchNorm(style, start)
        self.activation = Activation(style)
        self.pool = MaxPool(2, fast=style.fast) if pool else None
        seed = 1000 * start.seed + start.index
        self.dropout = tf.keras.layers.Dropout(style.dropout, seed=seed) if style.dropout else None

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.conv(images)
        if self.pool is not None and self.pool_first:
            x = self.pool(x)
        if self.dropout is not None:
            x = self.dropout(x, training=training)
        x = self.activation(self.norm(x, training=training))
        if self.pool is not None and not self.pool_first:
            x = self.pool(x)
        return x


class ConvGroup(tf.keras.Model):
    """Two ConvBN, the first with a max-pool 2: (N, H, W, C) -> (N, H//2, W//2, filters)."""

    def __init__(self, filters: int, starts: Iterator[Uniform], style: Style) -> None:
        super().__init__()
        self.first = ConvBN(filters, next(starts), style, pool=True)
        self.second = ConvBN(filters, next(starts), style)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.second(self.first(images, training=training), training=training)


class DeepGroup(tf.keras.Model):
    """A ConvGroup, then convolution and batch norm; the first's output is added before the last activation."""

    def __init__(self, filters: int, starts: Iterator[Uniform], style: Style) -> None:
        super().__init__()
        self.first = ConvBN(filters, next(starts), style, pool=True)
        self.second = ConvBN(filters, next(starts), style)
        start = next(starts)
        self.conv, self.norm = Conv(filters, start, fast=style.fast), BatchNorm(style, start)
        self.add, self.activation = Add(), Activation(style)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.first(images, training=training)
        y = self.norm(self.conv(self.second(x, training=training)), training=training)
        return self.activation(self.add(x, y))


class Variant(tf.keras.Model):
    """DavidNet with other blocks, or with patch whitening: images (N, 32, 32, 3) to logits (N, classes), float32.

    Args:
        classes: number of classes.
        style: of its layers.
        width, logit_scale: as the core's DavidNet.
        blocks: what follows the pool in layers 1 to 3: residual, extra (one ConvBN) or nothing.
        whiten: a frozen whitening convolution, then a learned 1x1, in place of the first convolution (post 8).
    """

    def __init__(
        self, classes: int, style: Style, *, width: int, logit_scale: float, blocks: tuple[str, ...], whiten: bool
    ) -> None:
        super().__init__(autocast=False)  # the whitening takes the pixels in float32; each layer casts for itself
        starts = initializers(style.seed)
        self.whiten = Whiten(3, 1e-2, 10_000, both_signs=False) if whiten else None
        self.prep = ConvBN(width, next(starts), style, size=1 if whiten else 3)

        def block(filters: int, kind: str) -> tf.keras.Model:
            if kind == "extra":
                return ConvGroup(filters, starts, style)
            return ResBlk(filters, starts, partial(ConvBN, style=style), residual=kind == "residual")

        self.layer1, self.layer2, self.layer3 = map(block, (2 * width, 4 * width, 8 * width), blocks)
        self.pool = GlobalPool(fast=style.fast)
        self.head = Head(classes, next(starts), logit_scale=logit_scale)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = images if self.whiten is None else self.whiten(images)  # (N, 32, 32, 27)
        x = self.prep(x, training=training)  # (N, 32, 32, c)
        x = self.layer1(x, training=training)  # (N, 16, 16, 2c)
        x = self.layer2(x, training=training)  # (N, 8, 8, 4c)
        x = self.layer3(x, training=training)  # (N, 4, 4, 8c)
        return self.head(self.pool(x))  # (N, 8c) -> (N, classes)


# ---- posts 1 to 4: on the way to DavidNet ------------------------------------------------------------------


class PreActivation(tf.keras.Model):
    """A pre-activation block: h = ReLU(BN(x)), then shortcut(h) + conv(ReLU(BN(conv(h)))).

    The shortcut is a 1x1 convolution of h where the shape changes, else h itself, or x if `raw`. With `shortcut_only`
    the long branch is left out: (N, H, W, C) -> (N, H/stride, W/stride, filters).
    """

    def __init__(
        self,
        inputs: int,
        filters: int,
        stride: int,
        starts: Iterator[Uniform],
        style: Style,
        *,
        raw: bool,
        shortcut_only: bool,
    ) -> None:
        super().__init__()
        fast, self.raw = style.fast, raw
        start = next(starts)
        self.norm1, self.activation = BatchNorm(style, start), Activation(style)
        self.shortcut = self.conv1 = None
        if stride != 1 or inputs != filters:
            self.shortcut = Conv(filters, next(starts), size=1, stride=stride, fast=fast)
        if not shortcut_only:
            self.conv1 = Conv(filters, start, stride=stride, fast=fast)
            start = next(starts)
            self.norm2, self.activation2 = BatchNorm(style, start), Activation(style)
            self.conv2, self.add = Conv(filters, start, fast=fast), Add()

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        h = self.activation(self.norm1(images, training=training))
        short = (images if self.raw else h) if self.shortcut is None else self.shortcut(h)
        if self.conv1 is None:
            return short
        branch = self.activation2(self.norm2(self.conv1(h), training=training))
        return self.add(short, self.conv2(branch))


class DawnNet(tf.keras.Model):
    """The pre-activation network of posts 1 to 3, or its shortcuts alone (post 4).

    Convolution to c; stages of two blocks at c, 2c, 4c, 4c, the later three halving the image; concatenated
    max- and average-pool; linear with bias. `original`: as B. Johnson's, from which it comes, with batch norm and
    ReLU after the first convolution and skips that start before a block's first batch norm.
    """

    def __init__(
        self, classes: int, style: Style, *, width: int, original: bool = False, shortcut_only: bool = False
    ) -> None:
        super().__init__()
        starts, start = initializers(style.seed), Uniform(style.seed, 0)
        next(starts)
        self.prep = ConvBN(width, start, style) if original else Conv(width, start, fast=style.fast)
        inputs = width
        for stage, factor in enumerate((1, 2, 4, 4), 1):
            for block in (0, 1):
                stride = 2 if stage > 1 and block == 0 else 1
                made = PreActivation(
                    inputs, factor * width, stride, starts, style, raw=original, shortcut_only=shortcut_only
                )
                setattr(self, f"layer{stage}_block{block}", made)
                inputs = factor * width
        self.pool = GlobalPool(average=True, fast=style.fast)
        self.head = Head(classes, next(starts), bias=True)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.prep(images, training=training)  # (N, 32, 32, c)
        for stage in (1, 2, 3, 4):
            for block in (0, 1):
                x = getattr(self, f"layer{stage}_block{block}")(x, training=training)
        return self.head(self.pool(x))  # (N, 8c) -> (N, classes)


class Backbone(tf.keras.Model):
    """Conv-BN-ReLU to c, then three that halve the image, without any skip (post 4).

    Args:
        down: how they halve it: conv1 and conv3 with stride 2, maxpool after a 3x3 convolution of stride 1.
        widths: factors of c; global max-pool alone if the last is 8, else concatenated with the average.
    """

    def __init__(self, classes: int, style: Style, *, width: int, down: str, widths: tuple[int, int, int]) -> None:
        super().__init__()
        starts = initializers(style.seed)
        pool, size, stride = down == "maxpool", 1 if down == "conv1" else 3, 1 if down == "maxpool" else 2

        def halve(factor: int) -> ConvBN:
            return ConvBN(factor * width, next(starts), style, pool=pool, size=size, stride=stride)

        self.prep = ConvBN(width, next(starts), style)
        self.layer1, self.layer2, self.layer3 = map(halve, widths)
        self.pool = GlobalPool(average=widths[-1] < 8, fast=style.fast)
        self.head = Head(classes, next(starts), bias=True)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.prep(images, training=training)  # (N, 32, 32, c)
        x = self.layer1(x, training=training)  # (N, 16, 16, .)
        x = self.layer2(x, training=training)  # (N, 8, 8, .)
        x = self.layer3(x, training=training)  # (N, 4, 4, .)
        return self.head(self.pool(x))


# ---- the speedrun ------------------------------------------------------------------------------------------


class SpeedNet(tf.keras.Model):
    """The network of K. Jordan's airbench94_muon (cifar10-airbench; arXiv 2404.00498), of hiverge's and, if `plain`, of
    airbench95 and 96.

    Whitening 2x2 convolution to 24 with a bias, activation; three groups; global max-pool; linear without bias.
    Convolutions start as the identity on their first filters. The bias and the last layer start at random and with
    the deviation 1, and the logits are divided by its inputs; or if `plain` at 0 and as in PyTorch, and by 9.

    Args:
        classes: number of classes.
        style: of the layers in the groups.
        widths: filters of the groups.
        images: how many the whitening is fitted to.
        activation: after the whitening.
        group: ConvGroup or DeepGroup.
        plain: see above.
    """

    def __init__(
        self,
        classes: int,
        style: Style,
        *,
        widths: tuple[int, int, int],
        images: int = 5_000,
        activation: str = "gelu",
        group: Callable[..., tf.keras.Model] = ConvGroup,
        plain: bool = False,
    ) -> None:
        super().__init__(autocast=False)  # as Variant
        starts = (Dirac(style.seed, index) for index in itertools.count())
        self.whiten = Whiten(2, 5e-4, images, both_signs=True, bias_bound=0.0 if plain else None, seed=style.seed)
        self.activation = Activation(replace(style, activation=activation))
        self.group1, self.group2, self.group3 = (group(width, starts, style) for width in widths)
        self.pool = GlobalPool(fast=style.fast)
        last = next(starts).index
        start = Uniform(style.seed, last) if plain else UnitDeviation(style.seed, last)
        self.head = Head(classes, start, logit_scale=1 / 9 if plain else 1 / widths[-1])

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.activation(self.whiten(images))  # (N, 31, 31, 24)
        x = self.group1(x, training=training)  # (N, 15, 15, c)
        x = self.group2(x, training=training)  # (N, 7, 7, .)
        x = self.group3(x, training=training)  # (N, 3, 3, .)
        return self.head(self.pool(x))  # (N, .) -> (N, classes)


# ---- by name -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network by name: what it is, and what makes it: make(options, classes, style)."""

    about: str
    make: Callable[[Any, int, Style], tf.keras.Model]


def parse_blocks(text: str) -> tuple[str, ...]:
    """What follows the pools of the three layers, from a text like residual,nothing,residual.

    Raises UserError if it is not three of BLOCKS.
    """
    blocks = tuple(text.split(","))
    if len(blocks) != LAYERS or not set(blocks) <= set(BLOCKS):
        raise UserError(f"--blocks {text!r} is not {LAYERS} of {', '.join(BLOCKS)}; try --blocks {','.join(DAVIDNETS)}")
    return blocks


def _davidnet(options: Any, classes: int, style: Style) -> tf.keras.Model:
    blocks, sizes = parse_blocks(options.blocks), {"width": options.width, "logit_scale": options.logit_scale}
    if options.whiten or blocks != DAVIDNETS:
        return Variant(classes, style, **sizes, blocks=blocks, whiten=options.whiten)
    plain = style == Style(seed=style.seed)
    conv_bn = model.ConvBN if plain else partial(ConvBN, style=style)  # what stands in model.py is what trains
    return model.DavidNet(classes, **sizes, seed=options.seed, conv_bn=conv_bn)


def _other(kind: Callable[..., tf.keras.Model], **fixed: Any) -> Callable[[Any, int, Style], tf.keras.Model]:
    def make(options: Any, classes: int, style: Style) -> tf.keras.Model:
        # These are from before the posts' change of it: PyTorch 0.4 started batch norm's scales at random.
        return kind(classes, replace(style, random_scales=True), width=options.width, **fixed)

    return make


def _speednet(*factors: int, keeps: float, **fixed: Any) -> Callable[[Any, int, Style], tf.keras.Model]:
    def make(options: Any, classes: int, style: Style) -> tf.keras.Model:
        style = replace(style, pool_first=True, bn_epsilon=1e-12, bn_keeps=keeps)
        first, second, third = (factor * options.width for factor in factors)
        return SpeedNet(classes, style, widths=(first, second, third), **fixed)

    return make


NETWORKS: dict[str, Network] = {
    "davidnet": Network("DavidNet", _davidnet),
    "dawnbench": Network("the pre-activation network of DAWNBench's winner of 2018", _other(DawnNet, original=True)),
    "dawn": Network("that network in posts 1 to 3", _other(DawnNet)),
    "shortcuts": Network("that network's shortcuts alone", _other(DawnNet, shortcut_only=True)),
    "conv1": Network("four conv-BN-ReLU, 1x1 with stride 2", _other(Backbone, down="conv1", widths=(2, 4, 4))),
    "conv3": Network("four conv-BN-ReLU, 3x3 with stride 2", _other(Backbone, down="conv3", widths=(2, 4, 4))),
    "maxpool": Network("3x3 with max-pool 2", _other(Backbone, down="maxpool", widths=(2, 4, 4))),
    "globalpool": Network("that, wider, global max-pool", _other(Backbone, down="maxpool", widths=(2, 4, 8))),
    "speednet": Network("airbench94_muon's network", _speednet(1, 4, 4, keeps=0.6)),
    "hivenet": Network("that network as hiverge has it", _speednet(1, 4, 4, keeps=0.5566, images=960)),
    "e1net": Network("that, its whitening fitted to 5,000 images, not 960", _speednet(1, 4, 4, keeps=0.5566)),
    "speednet95": Network("airbench95's network", _speednet(1, 3, 3, keeps=0.6, plain=True)),
    "speednet96": Network("airbench96_faster's network", _speednet(1, 3, 4, keeps=0.9, plain=True, group=DeepGroup)),
}


def style_of(options: Any, *, fast: bool) -> Style:
    """The style that the hyperparameters ask for; `fast`: see Style."""
    names = ("seed", "dropout", "pool_first", "activation", "celu_alpha", "ghost_groups", "frozen_scales")
    return Style(fast=fast, **{name: getattr(options, name) for name in names})


def make(options: Any, classes: int, *, fast: bool) -> tf.keras.Model:
    """The network of these hyperparameters with its variables made, whitening filters at 0: see fit_whitening.

    Args:
        options: with the attributes OF_A_NETWORK; `network` is a key of NETWORKS.
        classes: number of classes.
        fast: layers in the forms made for a CPU under XLA.
    """
    network = NETWORKS[options.network].make(options, classes, style_of(options, fast=fast))
    network(tf.zeros([1, 32, 32, 3]))  # Keras makes the variables in the first call
    return network


def proxy(options: Any, classes: int, *, fast: bool) -> tf.keras.Model:
    """The small network of airbench96_faster, a quarter as wide as the main one, with a whitening whose bias stays 0.

    Args: as make. It has numbers of its own to start with.
    """
    style, width = style_of(options, fast=fast), SimpleNamespace(width=max(1, options.width // 4))
    network = _speednet(1, 2, 2, keeps=0.9, plain=True)(width, classes, replace(style, seed=style.seed + 2**31))
    network(tf.zeros([1, 32, 32, 3]))
    network.whiten.bias.trainable = False
    return network


# ---- what one can ask of a network -------------------------------------------------------------------------


def _whitening(network: tf.keras.Model) -> list[Whiten]:
    return [layer for layer in network._flatten_layers() if isinstance(layer, Whiten)]


def whitening_images(network: tf.keras.Model) -> int:
    """How many training images the whitening is fitted to; 0 for a network without."""
    return max((layer.images for layer in _whitening(network)), default=0)


def fit_whitening(network: tf.keras.Model, images: np.ndarray) -> None:
    """Fits the whitening filters of a network that has them to standardised training images (N, 32, 32, 3)."""
    for layer in _whitening(network):
        layer.fit(images)


def averaged_variables(network: tf.keras.Model) -> list[Any]:
    """The weights and running statistics: all that evaluation reads and training changes."""
    norms = [layer for layer in network._flatten_layers() if isinstance(layer, model.BatchNorm)]
    statistics = [weight for norm in norms for weight in (norm.running_mean, norm.running_variance)]
    return [*network.trainable_variables, *statistics]


def parts(layer: Any) -> list[tuple[str, Any]]:
    """The layers directly in a layer, by the attributes that hold them, or by number where they are in a list."""
    names = {id(part): name for name, part in vars(layer).items() if not name.startswith("_")}
    inner = layer._flatten_layers(recursive=False, include_self=False)
    inner = [part for part in inner if not isinstance(part, tf.keras.layers.InputLayer)]  # keras.Sequential's
    return [(names.get(id(part), str(number)), part) for number, part in enumerate(inner)]


def leaves(layer: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The layers without layers of their own, each with its place in the network: layer1/entry/conv."""
    inner = parts(layer)
    if not inner:
        return [(prefix.rstrip("/"), layer)]
    return [leaf for name, part in inner for leaf in leaves(part, f"{prefix}{name}/")]


def _named_weights(layer: Any, prefix: str = "") -> dict[str, Any]:
    inner = parts(layer)
    theirs = {id(weight) for _, part in inner for weight in part.weights}
    named = {prefix + weight.name: weight for weight in layer.weights if id(weight) not in theirs}
    for name, part in inner:
        named |= _named_weights(part, f"{prefix}{name}/")
    return named


def evaluated_variables(network: tf.keras.Model) -> dict[str, Any]:
    """All that evaluation reads, by place: layer1/entry/conv/kernel. That is Keras' network.weights, all of them.

    Raises TypeError if two weights would have one name.
    """
    named = _named_weights(network)
    kept = {id(weight) for weight in named.values()}
    lost = [weight.path for weight in network.weights if id(weight) not in kept]
    if lost:
        raise TypeError(f"another weight has the name of {lost[0]} in its layer; rename one of them")
    return named


def evaluated_arrays(network: tf.keras.Model) -> dict[str, np.ndarray]:
    """Their values, by the same names."""
    return {name: np.asarray(tf.convert_to_tensor(v)) for name, v in evaluated_variables(network).items()}


def parameters(network: tf.keras.Model) -> int:
    """How many numbers are trained."""
    return sum(int(np.prod(weight.shape)) for weight in network.trainable_variables)


def parameters_by_width(options: Any, classes: int) -> Callable[[int], float]:
    """How many numbers a network of these hyperparameters trains, by its width, without building it.

    A layer has a share of the width as inputs, as outputs, as both or as neither, so the number is a polynomial of
    degree 2, and three small networks tell it.
    """
    widths = (1, 2, 3)
    names = {name: getattr(options, name) for name in OF_A_NETWORK}
    small = [SimpleNamespace(**{**names, "width": width}) for width in widths]
    counts = [parameters(make(each, classes, fast=False)) for each in small]
    coefficients = np.linalg.solve(np.vander(widths), counts)
    return lambda width: float(np.polyval(coefficients, width))
