"""The layers that the networks of lab/ladder/networks.py are made of, and what each one's weights are for.

Images are (N, H, W, C). Convolutions compute in the layer's dtype, batch norm in float32; weights are float32.
"""

from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import model
from lab.machine import kernels
from model import Uniform

FIRST_BIAS = 2000  # a bias' numbers are keyed by this and its layer's index, so that no kernel's are the same
LEAST_FUSED_EPSILON = 1e-5  # older versions of cuDNN, behind the fused kernel on GPUs, refuse a smaller one


@dataclass(frozen=True)
class Style:
    """What the layers of one network have in common.

    Args:
        seed: of the initial weights and of dropout.
        fast: use the forms of lab/machine/kernels.py that are made for a CPU under XLA.
        dropout: share of a convolution's outputs set to 0 before BN in training, from 0 to below 1.
        pool_first: pool between convolution and batch norm, which then has a quarter of the work.
        activation: relu, celu, gelu or silu.
        celu_alpha: where a CELU levels off: at -alpha.
        ghost_groups: parts of the global batch that are normalised each by itself; 0: the replica's whole batch.
        frozen_scales: batch norm's scales stay as they start.
        random_scales: they start uniform in 0 to 1, as in PyTorch until 0.4, and not at 1.
        bn_epsilon: added to the variance.
        bn_keeps: share of the running statistics that each training step keeps.
    """

    seed: int = 0
    fast: bool = False
    dropout: float = 0.0
    pool_first: bool = False
    activation: str = "relu"
    celu_alpha: float = 1.0
    ghost_groups: int = 0
    frozen_scales: bool = False
    random_scales: bool = False
    bn_epsilon: float = 1e-5
    bn_keeps: float = 0.9


# ---- initial weights ---------------------------------------------------------------------------------------


class Between(Uniform):
    """Uniform from `low` to `high`, whatever the shape."""

    def __init__(self, seed: int, index: int, low: float, high: float) -> None:
        super().__init__(seed, index)
        self.low, self.high = low, high

    def __call__(self, shape: Any, dtype: Any = None) -> tf.Tensor:
        values = np.random.default_rng([self.seed, self.index]).uniform(self.low, self.high, shape)
        return tf.constant(values, dtype or tf.float32)


class Dirac(Uniform):
    """Uniform, but the first filters, as many as inputs, pass one input each through (torch.nn.init.dirac_)."""

    def __call__(self, shape: Any, dtype: Any = None) -> tf.Tensor:
        kernel = super().__call__(shape, tf.float32).numpy()  # (h, w, inputs, outputs)
        passed = min(shape[2:])
        kernel[..., :passed] = 0.0
        kernel[shape[0] // 2, shape[1] // 2, range(passed), range(passed)] = 1.0
        return tf.constant(kernel, dtype or tf.float32)


class UnitDeviation(Uniform):
    """Uniform, scaled to a standard deviation of 1 (n - 1 in the divisor)."""

    def __call__(self, shape: Any, dtype: Any = None) -> tf.Tensor:
        values = super().__call__(shape, tf.float32).numpy()
        return tf.constant(values / values.std(ddof=1), dtype or tf.float32)


# ---- convolution -------------------------------------------------------------------------------------------


class Conv(tf.keras.layers.Layer):
    """Convolution without bias, zero-padded by (size - 1) / 2: (N, H, W, C) -> (N, H/stride, W/stride, filters).

    Args:
        filters: number of output channels.
        initializer: of the kernel (size, size, C, filters).
        size: of the window, 1 or 3.
        stride: of the window, 1 or 2; divides H and W.
        fast: use the forms of lab/machine/kernels.py.
    """

    def __init__(
        self, filters: int, initializer: Uniform, *, size: int = 3, stride: int = 1, fast: bool = False
    ) -> None:
        super().__init__()
        self.filters, self.initializer, self.size, self.stride, self.fast = filters, initializer, size, stride, fast

    def build(self, input_shape: Any) -> None:
        shape = (self.size, self.size, input_shape[-1], self.filters)
        self.kernel = self.add_weight(shape=shape, initializer=self.initializer, name="kernel")

    def call(self, images: tf.Tensor) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        if self.size == 1:
            return kernels.conv1x1(images, kernel, self.stride, fast=self.fast)
        if self.stride == 1:
            return kernels.conv3x3(images, kernel, fast=self.fast)
        return kernels.conv3x3_stride2(images, kernel, fast=self.fast)


def whitening_filters(
    images: NDArray[np.float32], size: int, epsilon: float, *, unbiased: bool = True
) -> NDArray[np.float32]:
    """Filters whose outputs on patches like these images' are uncorrelated, of variance near 1.

    Filter i is v_i / sqrt(l_i + epsilon), (l_i, v_i) the eigenpairs, largest first, of the patches' matrix of
    second moments (their mean is not subtracted).

    Args:
        images: (N, H, W, C), standardised.
        size: of the patches; all that lie wholly inside the images count.
        epsilon: keeps the noise of the flattest directions small.
        unbiased: divide by n - 1 (cifar10-fast, bag_of_tricks.ipynb) and not by n (cifar10-airbench).

    Returns:
        (size, size, C, size * size * C) float32.
    """
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), (1, 2))  # (N, rows, cols, C, s, s)
    channels = images.shape[-1]
    moments, count = np.zeros([size * size * channels] * 2), 0
    for part in np.array_split(windows, -(-len(images) // 500)):  # all at once would be a gigabyte
        patches = part.transpose(0, 1, 2, 4, 5, 3).reshape(-1, len(moments)).astype(np.float64)
        moments += patches.T @ patches
        count += len(patches)
    values, vectors = np.linalg.eigh(moments / (count - unbiased))  # rising
    filters = vectors[:, ::-1] / np.sqrt(values[::-1] + epsilon)
    return filters.reshape(size, size, channels, -1).astype(np.float32)


class Whiten(tf.keras.layers.Layer):
    """A convolution whose filters are fitted to the images and then stay: see `fit`.

    In float32 whatever the network computes in: the filters of the flattest directions are large, and their
    outputs are small differences of large products.

    Args:
        size: of the window.
        epsilon: see `whitening_filters`.
        images: how many of the training set the filters are fitted to.
        both_signs: each filter a second time, negated; a bias, which is trained; no padding; the eigenvalues of
            moments divided by n. As in cifar10-airbench; otherwise zero padding, no bias and n - 1, as in
            cifar10-fast.
        bias_bound: the bias starts uniform in +- this; None: PyTorch's default, 1/sqrt(size * size * C).
        seed: of the bias.
    """

    def __init__(
        self,
        size: int,
        epsilon: float,
        images: int,
        *,
        both_signs: bool,
        bias_bound: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(dtype="float32")
        self.size, self.epsilon, self.images, self.both_signs, self.seed = size, epsilon, images, both_signs, seed
        self.bias_bound = bias_bound

    def build(self, input_shape: Any) -> None:
        outputs = self.size**2 * input_shape[-1] * (2 if self.both_signs else 1)
        shape = (self.size, self.size, input_shape[-1], outputs)
        self.kernel = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="kernel")
        self.bias = None
        if self.both_signs:
            bound = 1.0 / np.sqrt(self.size**2 * input_shape[-1]) if self.bias_bound is None else self.bias_bound
            self.bias = self.add_weight(
                shape=(outputs,), initializer=Between(self.seed, FIRST_BIAS, -bound, bound), name="bias"
            )

    def fit(self, images: NDArray[np.float32]) -> None:
        """Sets the filters from standardised images (N, H, W, C), of the training set only."""
        filters = whitening_filters(images[: self.images], self.size, self.epsilon, unbiased=not self.both_signs)
        self.kernel.assign(np.concatenate([filters, -filters], -1) if self.both_signs else filters)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        kernel = tf.stop_gradient(tf.convert_to_tensor(self.kernel))
        whitened = tf.nn.conv2d(images, kernel, 1, "VALID" if self.both_signs else "SAME")
        return whitened if self.bias is None else whitened + tf.convert_to_tensor(self.bias)


# ---- batch norm --------------------------------------------------------------------------------------------


class BatchNorm(model.BatchNorm):
    """The core's batch norm in the style of a network.

    With `style.ghost_groups`, that many parts of the global batch, in its order, have statistics of their own
    (ghost batch norm, E. Hoffer et al., arXiv 1705.08741), and the running statistics take the parts' mean. The
    groups are spread evenly over the replicas, so that their number does not change the result.
    """

    def __init__(self, style: Style, initializer: Uniform) -> None:
        super().__init__(style.bn_keeps, style.bn_epsilon)
        self.style, self.initializer = style, initializer

    def build(self, input_shape: Any) -> None:
        # The core's, but for the scale. (To assign it after super().build would be lost: in a network's first call
        # Keras makes the variables before they may hold anything but their initializer's numbers.)
        weight = {"shape": (input_shape[-1],), "dtype": "float32", "autocast": False}
        running = weight | {"trainable": False, "aggregation": "mean"}
        start = (
            Between(self.style.seed, 1000 + self.initializer.index, 0.0, 1.0) if self.style.random_scales else "ones"
        )
        trainable = not self.style.frozen_scales
        self.scale = self.add_weight(name="scale", initializer=start, trainable=trainable, **weight)
        self.shift = self.add_weight(name="shift", initializer="zeros", **weight)
        self.running_mean = self.add_weight(name="running_mean", initializer="zeros", **running)
        self.running_variance = self.add_weight(name="running_variance", initializer="ones", **running)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        fast, epsilon, keep = self.style.fast, self.epsilon, self.momentum
        groups = max(1, self.style.ghost_groups // tf.distribute.get_strategy().num_replicas_in_sync)
        # A CPU's own kernels are oneDNN's, which take any epsilon; XLA has no fused kernel, and 16 bits no XLA.
        fused = images.dtype != tf.float32 if fast else epsilon >= LEAST_FUSED_EPSILON
        if fused and not (training and groups > 1):
            return super().call(images, training=training)
        weights = (self.scale, self.shift, self.running_mean, self.running_variance)
        scale, shift, mean, variance = map(tf.convert_to_tensor, weights)
        if not training:
            factor = scale * tf.math.rsqrt(variance + epsilon)
            return tf.cast((tf.cast(images, tf.float32) - mean) * factor + shift, images.dtype)
        if fused and fast:
            normal, batch_mean, unbiased = kernels.fused_batch_norms(images, scale, shift, epsilon, groups)
        else:
            normal, batch_mean, batch_variance = kernels.batch_norm(
                images, scale, shift, mean, epsilon, groups=groups, fast=fast
            )
            count = tf.cast(tf.size(images) // (groups * images.shape[-1]), tf.float32)
            unbiased = batch_variance * (count / (count - 1.0))
        self.running_mean.assign(keep * mean + (1 - keep) * batch_mean)
        self.running_variance.assign(keep * variance + (1 - keep) * unbiased)
        return normal


# ---- without weights ---------------------------------------------------------------------------------------


def celu(values: tf.Tensor, alpha: float) -> tf.Tensor:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1)), elementwise."""
    below = tf.minimum(values, 0.0)  # so that the exponential cannot overflow, in value or gradient
    return tf.maximum(values, 0.0) + alpha * (tf.exp(below / alpha) - 1.0)


class Activation(tf.keras.layers.Layer):
    """The style's activation, elementwise: ReLU, CELU, GELU, x times the normal distribution's share below x, or SiLU,
    x times the logistic function of x."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.kind, self.alpha = style.activation, style.celu_alpha
        smooth = {"celu": partial(celu, alpha=self.alpha), "gelu": tf.nn.gelu, "silu": tf.nn.silu}
        self.function = {"relu": tf.nn.relu, **smooth}[self.kind]
        # Of many operations, each of which would read and write memory; under XLA they are one loop in any case.
        if style.fast and self.kind != "relu" and self.compute_dtype != "float32":
            self.function = kernels.compiled_elementwise(self.function)

    def call(self, values: tf.Tensor) -> tf.Tensor:
        result: tf.Tensor = self.function(values)
        return result


class MaxPool(tf.keras.layers.Layer):
    """Max-pooling, stride `size`: (N, H, W, C) -> (N, H // size, W // size, C)."""

    def __init__(self, size: int, *, fast: bool) -> None:
        super().__init__()
        self.size, self.fast = size, fast

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return kernels.max_pool(images, self.size, fast=self.fast)


class GlobalPool(tf.keras.layers.Layer):
    """The maximum over all pixels, (N, H, W, C) -> (N, C), or with `average` also their mean: (N, 2 C)."""

    def __init__(self, *, average: bool = False, fast: bool) -> None:
        super().__init__()
        self.average, self.fast = average, fast

    def call(self, images: tf.Tensor) -> tf.Tensor:
        largest = kernels.max_pool(images, images.shape[1], fast=self.fast)[:, 0, 0]
        return tf.concat([largest, tf.reduce_mean(images, [1, 2])], 1) if self.average else largest


class Add(tf.keras.layers.Layer):
    """The sum of two tensors of one shape."""

    def call(self, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        return first + second


class Head(tf.keras.layers.Layer):
    """Linear, times a constant: (N, C) -> (N, classes), float32.

    `bias` starts uniform in +-1/sqrt(C), as in PyTorch.
    """

    def __init__(self, classes: int, initializer: Uniform, *, logit_scale: float = 1.0, bias: bool = False) -> None:
        super().__init__()
        self.classes, self.initializer, self.logit_scale, self.has_bias = classes, initializer, logit_scale, bias

    def build(self, input_shape: Any) -> None:
        inputs = input_shape[-1]
        self.kernel = self.add_weight(shape=(inputs, self.classes), initializer=self.initializer, name="kernel")
        self.bias = None
        if self.has_bias:
            bound = 1.0 / np.sqrt(inputs)
            start = Between(self.initializer.seed, FIRST_BIAS + self.initializer.index, -bound, bound)
            self.bias = self.add_weight(shape=(self.classes,), initializer=start, name="bias")

    def call(self, features: tf.Tensor) -> tf.Tensor:
        logits = tf.cast(tf.matmul(features, tf.convert_to_tensor(self.kernel)), tf.float32)
        if self.bias is not None:
            logits = logits + tf.cast(tf.convert_to_tensor(self.bias), tf.float32)
        return self.logit_scale * logits


# ---- what the weights are for ------------------------------------------------------------------------------


class Role(Enum):
    """What a trained weight is for; an optimizer may move each kind in its own way."""

    FILTER = auto()  # of a convolution, (height, width, inputs, filters)
    HEAD = auto()  # the last layer's matrix, (inputs, classes)
    SCALE = auto()  # batch norm's
    SHIFT = auto()  # batch norm's, and the last layer's bias
    WHITENING_BIAS = auto()


def _roles_in(layer: Any) -> list[tuple[Any, Role]]:
    """The trained weights that a layer holds itself, each with its role."""
    if isinstance(layer, model.BatchNorm):
        return [(layer.scale, Role.SCALE), (layer.shift, Role.SHIFT)]
    if isinstance(layer, Whiten):
        return [(layer.bias, Role.WHITENING_BIAS)]
    if isinstance(layer, Head | tf.keras.layers.Dense):
        return [(layer.kernel, Role.HEAD), (layer.bias, Role.SHIFT)]
    if isinstance(layer, Conv | tf.keras.layers.Conv2D):
        return [(layer.kernel, Role.FILTER), (getattr(layer, "bias", None), Role.SHIFT)]
    return []


def roles(network: tf.keras.Model) -> list[Role]:
    """The role of each of network.trainable_variables, in their order.

    Raises TypeError for a weight of a layer that _roles_in does not know.
    """
    known = {id(weight): role for layer in network._flatten_layers() for weight, role in _roles_in(layer)}
    unknown = [weight.path for weight in network.trainable_variables if id(weight) not in known]
    if unknown:
        raise TypeError(f"the role of {unknown[0]} is not known; say it in _roles_in of lab/ladder/layers.py")
    return [known[id(weight)] for weight in network.trainable_variables]
