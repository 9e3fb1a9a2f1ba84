"""The layers that the networks of lab/ladder/networks.py are made of.

Images are (N, H, W, C). Convolutions compute in the layer's dtype, batch norm in float32; weights are float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lab.machine import kernels as ops


@dataclass(frozen=True)
class Style:
    """What the layers of one network have in common.

    Args:
        seed: of the initial weights and of dropout.
        fast: use the forms of lab/machine/kernels.py that are made for a CPU under XLA.
        sync_bn: batch statistics over all replicas of a distribution strategy instead of each one's own.
        dropout: share of a convolution's outputs set to 0 before BN in training, from 0 to below 1.
        pool_first: pool between convolution and batch norm, which then has a quarter of the work.
        activation: relu, celu or gelu.
        celu_alpha: where a CELU levels off: at -alpha.
        ghost_groups: parts of the global batch that are normalised each by itself; 0: the replica's whole batch.
        frozen_scales: batch norm's scales stay as they start.
        random_scales: they start uniform in 0 to 1, as in PyTorch until 0.4, and not at 1.
        bn_epsilon: added to the variance.
        bn_keeps: share of the running averages that each training step keeps.
    """

    seed: int = 0
    fast: bool = False
    sync_bn: bool = False
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


class Uniform(tf.keras.initializers.Initializer):
    """Uniform random numbers.

    PyTorch's default for convolutions and linear layers unless `low` and `high` are given: in +-1/sqrt(fan_in),
    where fan_in is the product of all axes but the last: kh * kw * inputs, or inputs. The numbers are NumPy's,
    keyed by (seed, index), and so the same on every device and version of TensorFlow.
    """

    def __init__(self, seed: int, index: int, low: float | None = None, high: float | None = None) -> None:
        self.seed, self.index, self.low, self.high = seed, index, low, high

    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        bound = 1.0 / np.sqrt(np.prod(shape[:-1]))
        low = -bound if self.low is None else self.low
        high = bound if self.high is None else self.high
        values = np.random.default_rng([self.seed, self.index]).uniform(low, high, shape)
        return tf.constant(values, dtype or tf.float32)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "index": self.index, "low": self.low, "high": self.high}


class Dirac(Uniform):
    """Uniform, but the first filters, as many as inputs, pass one input each through (torch.nn.init.dirac_)."""

    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        kernel = super().__call__(shape, tf.float32).numpy()  # (h, w, inputs, outputs)
        passed = min(shape[2:])
        kernel[..., :passed] = 0.0
        kernel[shape[0] // 2, shape[1] // 2, range(passed), range(passed)] = 1.0
        return tf.constant(kernel, dtype or tf.float32)


class UnitDeviation(Uniform):
    """Uniform, scaled to a standard deviation of 1 (n - 1 in the divisor)."""

    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        values = super().__call__(shape, tf.float32).numpy()
        return tf.constant(values / values.std(ddof=1), dtype or tf.float32)


def initializers(seed: int, kind: type[Uniform] = Uniform) -> Iterator[Uniform]:
    """One initializer a layer, in the order in which a network asks for them."""
    index = 0
    while True:
        yield kind(seed, index)
        index += 1


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
        self.filters, self.size, self.stride, self.fast = filters, size, stride, fast
        self.initializer = initializer

    def build(self, input_shape: Any) -> None:
        shape = (self.size, self.size, input_shape[-1], self.filters)
        self.kernel = self.add_weight(shape=shape, initializer=self.initializer, name="kernel")

    def call(self, images: tf.Tensor) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        if self.size == 1:
            return ops.conv1x1(images, kernel, self.stride, fast=self.fast)
        if self.stride == 1:
            return ops.conv3x3(images, kernel, fast=self.fast)
        return ops.conv3x3_stride2(images, kernel, fast=self.fast)


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
    windows = np.lib.stride_tricks.sliding_window_view(
        images, (size, size), (1, 2)
    )  # (N, rows, cols, C, s, s)
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

    Args:
        size: of the window.
        epsilon: see `whitening_filters`.
        images: how many of the training set the filters are fitted to.
        both_signs: each filter a second time, negated; a bias, which is trained; no padding; the eigenvalues of
            moments divided by n. As in cifar10-airbench; otherwise zero padding, no bias and n - 1, as in
            cifar10-fast.
    """

    def __init__(self, size: int, epsilon: float, images: int, *, both_signs: bool) -> None:
        super().__init__()
        self.size, self.epsilon, self.images, self.both_signs = size, epsilon, images, both_signs

    def build(self, input_shape: Any) -> None:
        outputs = self.size**2 * input_shape[-1] * (2 if self.both_signs else 1)
        shape = (self.size, self.size, input_shape[-1], outputs)
        self.kernel = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="kernel")
        self.bias = (
            self.add_weight(shape=(outputs,), initializer="zeros", name="bias") if self.both_signs else None
        )

    def fit(self, images: NDArray[np.float32]) -> None:
        """Sets the filters from standardised images (N, H, W, C), of the training set only."""
        filters = whitening_filters(
            images[: self.images], self.size, self.epsilon, unbiased=not self.both_signs
        )
        self.kernel.assign(np.concatenate([filters, -filters], -1) if self.both_signs else filters)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        kernel = tf.stop_gradient(tf.convert_to_tensor(self.kernel))
        whitened = tf.nn.conv2d(images, kernel, 1, "VALID" if self.both_signs else "SAME")
        return whitened if self.bias is None else whitened + tf.convert_to_tensor(self.bias)


# ---- batch norm --------------------------------------------------------------------------------------------


class BatchNorm(tf.keras.layers.Layer):
    """Batch norm over all axes but the last, in float32 whatever the inputs' dtype. Shift starts at 0.

    Unlike Keras' layer it reads the batch once for both moments, and its running variance is unbiased
    (n / (n - 1)), as in PyTorch and TensorFlow's fused kernel.

    With `style.sync_bn`, under a distribution strategy, the statistics are the global batch's. Otherwise each
    replica takes its own, and so do its running averages until `average_statistics` is called.

    With `style.ghost_groups`, that many parts of the global batch, in its order, have statistics of their own
    (ghost batch norm, E. Hoffer et al., arXiv 1705.08741), and the running averages take the parts' mean. The
    groups are spread evenly over the replicas, so that their number does not change the result.
    """

    def __init__(self, style: Style, initializer: Uniform) -> None:
        super().__init__()
        self.style = style
        self.scale_start = (
            Uniform(style.seed, 1000 + initializer.index, 0.0, 1.0) if style.random_scales else "ones"
        )

    def build(self, input_shape: Any) -> None:
        def weight(name: str, start: Any, trainable: bool) -> Any:
            return self.add_weight(
                shape=(input_shape[-1],),
                initializer=start,
                trainable=trainable,
                name=name,
                dtype="float32",
                autocast=False,
            )

        self.scale = weight("scale", self.scale_start, not self.style.frozen_scales)
        self.shift = weight("shift", "zeros", True)
        self.running_mean = weight("running_mean", "zeros", False)
        self.running_variance = weight("running_variance", "ones", False)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        scale, shift, mean, variance = (
            tf.convert_to_tensor(weight)
            for weight in (self.scale, self.shift, self.running_mean, self.running_variance)
        )
        epsilon, keep = self.style.bn_epsilon, self.style.bn_keeps
        if not training:
            factor = scale * tf.math.rsqrt(variance + epsilon)
            return tf.cast((tf.cast(images, tf.float32) - mean) * factor + shift, images.dtype)
        replicas = tf.distribute.get_replica_context()

        def mean_over_replicas(values: tf.Tensor) -> tf.Tensor:
            return replicas.all_reduce(tf.distribute.ReduceOp.MEAN, values)

        groups = max(1, self.style.ghost_groups // replicas.num_replicas_in_sync)
        synchronised = self.style.sync_bn and not self.style.ghost_groups
        normal, batch_mean, batch_variance = ops.batch_norm(
            images,
            scale,
            shift,
            mean,
            epsilon,
            groups=groups,
            fast=self.style.fast,
            **({"over_replicas": mean_over_replicas} if synchronised else {}),
        )
        together = replicas.num_replicas_in_sync if synchronised else 1  # replicas in one set of statistics
        count = tf.cast(together * tf.size(images) // (groups * images.shape[-1]), tf.float32)
        unbiased = batch_variance * (count / (count - 1.0))
        self.running_mean.assign(keep * mean + (1 - keep) * batch_mean)
        self.running_variance.assign(keep * variance + (1 - keep) * unbiased)
        return normal


def average_statistics(model: tf.keras.Model) -> None:
    """Sets every replica's running averages to the mean over the replicas; call it on each replica."""
    replica = tf.distribute.get_replica_context()
    for weight in model.non_trainable_variables:
        if weight.path.endswith(("/running_mean", "/running_variance")):
            own = tf.identity(tf.convert_to_tensor(weight))  # on this device; several workers need one named
            weight.assign(replica.all_reduce(tf.distribute.ReduceOp.MEAN, own))


# ---- without weights ---------------------------------------------------------------------------------------


def celu(values: tf.Tensor, alpha: float) -> tf.Tensor:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1)), elementwise."""
    below = tf.minimum(values, 0.0)  # so that the exponential cannot overflow, in value or gradient
    return tf.maximum(values, 0.0) + alpha * (tf.exp(below / alpha) - 1.0)


class Activation(tf.keras.layers.Layer):
    """The style's activation, elementwise: ReLU, CELU, or GELU in its tanh form."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.kind, self.alpha = style.activation, style.celu_alpha

    def call(self, values: tf.Tensor) -> tf.Tensor:
        if self.kind == "celu":
            return celu(values, self.alpha)
        return tf.nn.gelu(values, approximate=True) if self.kind == "gelu" else tf.nn.relu(values)


class MaxPool(tf.keras.layers.Layer):
    """Max-pooling, stride `size`: (N, H, W, C) -> (N, H // size, W // size, C)."""

    def __init__(self, size: int, *, fast: bool) -> None:
        super().__init__()
        self.size, self.fast = size, fast

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return ops.max_pool(images, self.size, fast=self.fast)


class GlobalPool(tf.keras.layers.Layer):
    """The maximum over all pixels, (N, H, W, C) -> (N, C), or with `average` also their mean: (N, 2 C)."""

    def __init__(self, *, average: bool = False, fast: bool) -> None:
        super().__init__()
        self.average, self.fast = average, fast

    def call(self, images: tf.Tensor) -> tf.Tensor:
        largest = ops.max_pool(images, images.shape[1], fast=self.fast)[:, 0, 0]
        return tf.concat([largest, tf.reduce_mean(images, [1, 2])], 1) if self.average else largest


class Add(tf.keras.layers.Layer):
    """The sum of two tensors of one shape."""

    def call(self, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        return first + second


class Head(tf.keras.layers.Layer):
    """Linear, times a constant: (N, C) -> (N, classes), float32.

    `bias` starts uniform in +-1/sqrt(C), as in PyTorch.
    """

    def __init__(
        self, classes: int, initializer: Uniform, *, logit_scale: float = 1.0, bias: bool = False
    ) -> None:
        super().__init__()
        self.classes, self.initializer, self.logit_scale, self.has_bias = (
            classes,
            initializer,
            logit_scale,
            bias,
        )

    def build(self, input_shape: Any) -> None:
        inputs = input_shape[-1]
        self.kernel = self.add_weight(
            shape=(inputs, self.classes), initializer=self.initializer, name="kernel"
        )
        self.bias = None
        if self.has_bias:
            bound = 1.0 / np.sqrt(inputs)
            start = Uniform(self.initializer.seed, 2000 + self.initializer.index, -bound, bound)
            self.bias = self.add_weight(shape=(self.classes,), initializer=start, name="bias")

    def call(self, features: tf.Tensor) -> tf.Tensor:
        logits = tf.cast(tf.matmul(features, tf.convert_to_tensor(self.kernel)), tf.float32)
        if self.bias is not None:
            logits = logits + tf.cast(tf.convert_to_tensor(self.bias), tf.float32)
        return self.logit_scale * logits
