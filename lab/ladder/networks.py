"""DavidNet, the nine-layer residual network of D. C. Page's cifar10-fast (2019), and its kin, as Keras models.

    images  (N, 32, 32, 3)
    prep    conv-BN-ReLU to c                                      (N, 32, 32, c)
    layer1  conv-BN-ReLU to 2c, max-pool 2, then x + f(f(x))       (N, 16, 16, 2c)
    layer2  conv-BN-ReLU to 4c, max-pool 2                         (N, 8, 8, 4c)
    layer3  conv-BN-ReLU to 8c, max-pool 2, then x + f(f(x))       (N, 4, 4, 8c)
    head    global max-pool, linear without bias, x 0.125          (N, classes)

All convolutions are 3x3, stride 1, zero-padded, without bias; f is conv-BN-ReLU. With c = 64 and ten classes
it has 6,573,120 trainable parameters. NETWORKS lists the others: those that lead to it in the posts "How to train
your ResNet", and the network of the speedrun.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

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
    initializers,
)
from lab.options import Settings


class ConvBN(tf.keras.Model):
    """conv - (dropout) - BN - activation, with a max-pool 2 at its end if `pool` (before BN if the style says so).

    (N, H, W, C) -> (N, H', W', filters), where H' is H, divided by the stride, and by 2 if pooled.
    """

    def __init__(
        self, filters: int, init: Any, style: Style, *, pool: bool = False, size: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        start = next(init)
        self.pool_first = style.pool_first
        self.conv = Conv(filters, start, size=size, stride=stride, fast=style.fast)
        self.pool = MaxPool(2, fast=style.fast) if pool else None
        self.dropout = tf.keras.layers.Dropout(style.dropout, seed=1000 * start.seed + start.index)
        self.norm = BatchNorm(style, start)
        self.activation = Activation(style)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.conv(images)
        if self.pool is not None and self.pool_first:
            x = self.pool(x)
        x = self.activation(self.norm(self.dropout(x, training=training), training=training))
        if self.pool is not None and not self.pool_first:
            x = self.pool(x)
        return x


class ResBlk(tf.keras.Model):
    """ConvBN with a max-pool 2, then x + f(f(x)), f(x) or nothing: (N, H, W, C) -> (N, H/2, W/2, filters).

    `then` says which: residual, extra or nothing.
    """

    def __init__(self, filters: int, init: Any, style: Style, *, then: str) -> None:
        super().__init__()
        self.entry = ConvBN(filters, init, style, pool=True)
        self.first = ConvBN(filters, init, style) if then != "nothing" else None
        self.second = ConvBN(filters, init, style) if then == "residual" else None
        self.add = Add() if then == "residual" else None

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.entry(images, training=training)
        if self.first is None:
            return x
        f = self.first(x, training=training)
        if self.second is None or self.add is None:
            return f
        return self.add(x, self.second(f, training=training))


class DavidNet(tf.keras.Model):
    """The network of the module's docstring: images (N, 32, 32, 3) to logits (N, classes), float32.

    Args:
        classes: number of classes.
        style: of its layers.
        width: c, the filters of the first convolution.
        logit_scale: cifar10-fast's 0.125, since BN scales start at 1, so that logits would start too large.
        blocks: what follows the pool in layers 1 to 3: residual, extra (f alone) or nothing.
        whiten: patch whitening in place of the first convolution's 3x3 filters: a frozen whitening convolution,
            then a learned 1x1 (post 8).
    """

    def __init__(
        self,
        classes: int = 10,
        style: Style = Style(),  # noqa: B008  (frozen)
        *,
        width: int = 64,
        logit_scale: float = 0.125,
        blocks: tuple[str, ...] = ("residual", "nothing", "residual"),
        whiten: bool = False,
    ) -> None:
        super().__init__()
        init = initializers(style.seed)
        self.whiten = Whiten(3, 1e-2, 10_000, both_signs=False) if whiten else None
        self.prep = ConvBN(width, init, style, size=1 if whiten else 3)
        self.layer1 = ResBlk(2 * width, init, style, then=blocks[0])
        self.layer2 = ResBlk(4 * width, init, style, then=blocks[1])
        self.layer3 = ResBlk(8 * width, init, style, then=blocks[2])
        self.pool = GlobalPool(fast=style.fast)
        self.head = Head(classes, next(init), logit_scale=logit_scale)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = images if self.whiten is None else self.whiten(images)
        x = self.prep(x, training=training)  # (N, 32, 32, c)
        x = self.layer1(x, training=training)  # (N, 16, 16, 2c)
        x = self.layer2(x, training=training)  # (N, 8, 8, 4c)
        x = self.layer3(x, training=training)  # (N, 4, 4, 8c)
        return self.head(self.pool(x))  # (N, 8c) -> (N, classes)


# ---- posts 1 to 4: on the way to DavidNet ------------------------------------------------------------------


class PreActivation(tf.keras.Model):
    """A pre-activation block: h = ReLU(BN(x)), then shortcut(h) + conv(ReLU(BN(conv(h)))).

    The shortcut is a 1x1 convolution where the shape changes, else h itself. With `shortcut_only` the long
    branch is left out: (N, H, W, C) -> (N, H/stride, W/stride, filters).
    """

    def __init__(
        self, inputs: int, filters: int, stride: int, init: Any, style: Style, *, shortcut_only: bool
    ) -> None:
        super().__init__()
        fast = style.fast
        start = next(init)
        self.norm1, self.activation = BatchNorm(style, start), Activation(style)
        self.shortcut = self.conv1 = None
        if stride != 1 or inputs != filters:
            self.shortcut = Conv(filters, next(init), size=1, stride=stride, fast=fast)
        if not shortcut_only:
            self.conv1 = Conv(filters, start, stride=stride, fast=fast)
            start = next(init)
            self.norm2, self.activation2 = BatchNorm(style, start), Activation(style)
            self.conv2, self.add = Conv(filters, start, fast=fast), Add()

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        h = self.activation(self.norm1(images, training=training))
        short = h if self.shortcut is None else self.shortcut(h)
        if self.conv1 is None:
            return short
        branch = self.activation2(self.norm2(self.conv1(h), training=training))
        return self.add(short, self.conv2(branch))


class DawnNet(tf.keras.Model):
    """The pre-activation network of the DAWNBench baseline (posts 1 to 3), or its shortcuts alone (post 4).

    Convolution to c; stages of two blocks at c, 2c, 4c, 4c, the later three halving the image; concatenated
    max- and average-pool; linear with bias.
    """

    def __init__(self, classes: int, style: Style, *, width: int, shortcut_only: bool = False) -> None:
        super().__init__()
        init = initializers(style.seed)
        self.prep = Conv(width, next(init), fast=style.fast)
        inputs = width
        for stage, factor in enumerate((1, 2, 4, 4), 1):
            for block in (0, 1):
                stride = 2 if stage > 1 and block == 0 else 1
                made = PreActivation(inputs, factor * width, stride, init, style, shortcut_only=shortcut_only)
                setattr(self, f"layer{stage}_block{block}", made)  # not a list: a checkpoint would lose it
                inputs = factor * width
        self.pool = GlobalPool(average=True, fast=style.fast)
        self.head = Head(classes, next(init), bias=True)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.prep(images)  # (N, 32, 32, c)
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

    def __init__(
        self, classes: int, style: Style, *, width: int, down: str, widths: tuple[int, int, int]
    ) -> None:
        super().__init__()
        init = initializers(style.seed)
        pool, size, stride = down == "maxpool", 1 if down == "conv1" else 3, 1 if down == "maxpool" else 2

        def halve(factor: int) -> ConvBN:
            return ConvBN(factor * width, init, style, pool=pool, size=size, stride=stride)

        self.prep = ConvBN(width, init, style)
        self.layer1, self.layer2, self.layer3 = map(halve, widths)
        self.pool = GlobalPool(average=widths[-1] < 8, fast=style.fast)
        self.head = Head(classes, next(init), bias=True)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.prep(images, training=training)  # (N, 32, 32, c)
        x = self.layer1(x, training=training)  # (N, 16, 16, .)
        x = self.layer2(x, training=training)  # (N, 8, 8, .)
        x = self.layer3(x, training=training)  # (N, 4, 4, .)
        return self.head(self.pool(x))


# ---- the speedrun ------------------------------------------------------------------------------------------


class ConvGroup(tf.keras.Model):
    """conv - max-pool 2 - BN - activation - conv - BN - activation: (N, H, W, C) -> (N, H//2, W//2, filters)."""

    def __init__(self, filters: int, init: Any, style: Style) -> None:
        super().__init__()
        self.first = ConvBN(filters, init, style, pool=True)
        self.second = ConvBN(filters, init, style)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.second(self.first(images, training=training), training=training)


class SpeedNet(tf.keras.Model):
    """The network of K. Jordan's airbench94_muon (cifar10-airbench; arXiv 2404.00498).

    Whitening 2x2 convolution to 24 with a bias, activation; groups of c, 4c, 4c filters; max-pool 3; linear without
    bias, divided by its inputs. Convolutions start as the identity on their first filters.
    """

    def __init__(self, classes: int, style: Style, *, width: int) -> None:
        super().__init__()
        init = initializers(style.seed, Dirac)
        self.whiten = Whiten(2, 5e-4, 5_000, both_signs=True)
        self.activation = Activation(style)
        self.group1 = ConvGroup(width, init, style)
        self.group2 = ConvGroup(4 * width, init, style)
        self.group3 = ConvGroup(4 * width, init, style)
        self.pool = GlobalPool(fast=style.fast)
        start = UnitDeviation(style.seed, next(init).index)
        self.head = Head(classes, start, logit_scale=1.0 / (4 * width))

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.activation(self.whiten(images))  # (N, 31, 31, 24)
        x = self.group1(x, training=training)  # (N, 15, 15, c)
        x = self.group2(x, training=training)  # (N, 7, 7, 4c)
        x = self.group3(x, training=training)  # (N, 3, 3, 4c)
        return self.head(self.pool(x))  # (N, 4c) -> (N, classes)


# ---- by name -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network by name: what it is, and what makes it of classes, style, width, logit scale, whitening."""

    about: str
    make: Callable[..., tf.keras.Model]


def _davidnet(*blocks: str) -> Callable[..., tf.keras.Model]:
    def make(classes: int, style: Style, width: int, logit_scale: float, whiten: bool) -> tf.keras.Model:
        return DavidNet(classes, style, width=width, logit_scale=logit_scale, blocks=blocks, whiten=whiten)

    return make


def _other(kind: Callable[..., tf.keras.Model], **options: Any) -> Callable[..., tf.keras.Model]:
    def make(classes: int, style: Style, width: int, logit_scale: float, whiten: bool) -> tf.keras.Model:
        # These are from before the posts' change of it: PyTorch 0.4 started batch norm's scales at random.
        return kind(classes, replace(style, random_scales=True), width=width, **options)

    return make


def _speednet(classes: int, style: Style, width: int, logit_scale: float, whiten: bool) -> tf.keras.Model:
    return SpeedNet(classes, replace(style, pool_first=True, bn_epsilon=1e-12, bn_keeps=0.6), width=width)


NETWORKS: dict[str, Network] = {
    "davidnet": Network("DavidNet", _davidnet("residual", "nothing", "residual")),
    "plain": Network("DavidNet without residuals", _davidnet("nothing", "nothing", "nothing")),
    "extra": Network(
        "DavidNet with one more conv-BN-ReLU in each layer, no residuals", _davidnet(*["extra"] * 3)
    ),
    "dawn": Network("the pre-activation network of the DAWNBench baseline", _other(DawnNet)),
    "shortcuts": Network("that network's shortcuts alone", _other(DawnNet, shortcut_only=True)),
    "conv1": Network(
        "four conv-BN-ReLU, 1x1 with stride 2", _other(Backbone, down="conv1", widths=(2, 4, 4))
    ),
    "conv3": Network(
        "four conv-BN-ReLU, 3x3 with stride 2", _other(Backbone, down="conv3", widths=(2, 4, 4))
    ),
    "maxpool": Network("3x3 with max-pool 2", _other(Backbone, down="maxpool", widths=(2, 4, 4))),
    "globalpool": Network("that, wider, global max-pool", _other(Backbone, down="maxpool", widths=(2, 4, 8))),
    "speednet": Network("airbench94_muon's network", _speednet),
}


def make(
    name: str,
    classes: int,
    style: Style,
    *,
    width: int = 64,
    logit_scale: float = 0.125,
    whiten: bool = False,
) -> tf.keras.Model:
    """A network of NETWORKS with its variables made.

    Args:
        name: a key of NETWORKS.
        classes: number of classes.
        style: of its layers.
        width: filters of the first convolution; the others are multiples of it.
        logit_scale, whiten: for the DavidNet family; see DavidNet.

    Raises:
        UserError: for a name that is not there.
    """
    if name not in NETWORKS:
        raise UserError(f"--network {name!r} is not known; choose from {', '.join(NETWORKS)}")
    model = NETWORKS[name].make(classes, style, width, logit_scale, whiten)
    model(tf.zeros([1, 32, 32, 3]))  # Keras makes the variables in a call
    return model


def style_of(options: Settings, *, fast: bool) -> Style:
    """The style that the hyperparameters ask for; `fast`: see Style."""
    return Style(
        seed=options.seed,
        fast=fast,
        sync_bn=options.sync_bn,
        dropout=options.dropout,
        pool_first=options.pool_first,
        activation=options.activation,
        celu_alpha=options.celu_alpha,
        ghost_groups=options.ghost_groups,
        frozen_scales=options.frozen_scales,
    )


def fit_whitening(model: tf.keras.Model, images: np.ndarray) -> None:
    """Fits the whitening filters of a network that has them to standardised training images (N, 32, 32, 3)."""
    if whitening_images(model):
        model.whiten.fit(images)


def whitening_images(model: tf.keras.Model) -> int:
    """How many training images the whitening is fitted to; 0 for a network without."""
    layer = getattr(model, "whiten", None)
    return 0 if layer is None else layer.images


def averaged_variables(model: tf.keras.Model) -> list[Any]:
    """The weights and running statistics: all that evaluation reads and training changes."""
    running = ("/running_mean", "/running_variance")
    statistics = [weight for weight in model.non_trainable_variables if weight.path.endswith(running)]
    return [*model.trainable_variables, *statistics]


def leaves(layer: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The layers without layers of their own, each with the attributes that lead to it: layer1/entry/conv."""
    found = []
    for name, part in vars(layer).items():
        if isinstance(part, tf.keras.layers.Layer) and not name.startswith("_"):
            inner = leaves(part, f"{prefix}{name}/")
            found += inner or [(prefix + name, part)]
    return found


def evaluated_variables(model: tf.keras.Model) -> dict[str, Any]:
    """All that evaluation reads, by name: layer1/entry/conv/kernel."""
    return {
        f"{name}/{weight.name}": weight
        for name, layer in leaves(model)
        for weight in layer.weights
        if not isinstance(layer, tf.keras.layers.Dropout)
    }


def evaluated_arrays(model: tf.keras.Model) -> dict[str, np.ndarray]:
    """Their values, by the same names."""
    return {
        name: np.asarray(tf.convert_to_tensor(variable))
        for name, variable in evaluated_variables(model).items()
    }


def parameters(model: tf.keras.Model) -> int:
    """How many numbers are trained."""
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)
