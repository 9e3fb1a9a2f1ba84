"""DavidNet, the nine-layer residual network of D. C. Page's cifar10-fast (2019), as Keras models.

    images  (N, 32, 32, 3)
    prep    conv-BN-ReLU to c                                      (N, 32, 32, c)
    layer1  conv-BN-ReLU to 2c, max-pool 2, then x + f(f(x))       (N, 16, 16, 2c)
    layer2  conv-BN-ReLU to 4c, max-pool 2                         (N, 8, 8, 4c)
    layer3  conv-BN-ReLU to 8c, max-pool 2, then x + f(f(x))       (N, 4, 4, 8c)
    head    global max-pool, linear without bias, x 0.125          (N, classes)

All convolutions are 3x3, stride 1, zero-padded, without bias; f is conv-BN-ReLU. With c = 64 and ten classes
it has 6,573,120 trainable parameters.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

import ops

LOGIT_SCALE = 0.125  # cifar10-fast, dawn.py: BN scales start at 1, so the logits would start too large
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_KEEPS = 0.9  # of the old running average, at each training step


class PyTorchUniform(tf.keras.initializers.Initializer):
    """PyTorch's default for convolutions and linear layers: uniform in +-1/sqrt(fan_in).

    fan_in is the product of all axes but the last: kh * kw * inputs, or inputs. The numbers are NumPy's,
    keyed by (seed, index), and so the same on every device and version of TensorFlow.
    """

    def __init__(self, seed: int, index: int) -> None:
        self.seed, self.index = seed, index

    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        bound = 1.0 / np.sqrt(np.prod(shape[:-1]))
        values = np.random.default_rng([self.seed, self.index]).uniform(-bound, bound, shape)
        return tf.constant(values, dtype or tf.float32)

    def get_config(self) -> dict[str, int]:
        return {"seed": self.seed, "index": self.index}


def initializers(seed: int) -> Iterator[PyTorchUniform]:
    """One initializer a layer, in the order in which a network asks for them."""
    index = 0
    while True:
        yield PyTorchUniform(seed, index)
        index += 1


class Conv(tf.keras.layers.Layer):
    """3x3 convolution, stride 1, zero-padded, no bias: (N, H, W, C) -> (N, H, W, filters)."""

    def __init__(self, filters: int, init: Iterator[PyTorchUniform], *, fast: bool = False) -> None:
        super().__init__()
        self.filters, self.fast = filters, fast
        self.initializer = next(init)

    def build(self, input_shape: Any) -> None:
        shape = (3, 3, input_shape[-1], self.filters)
        self.kernel = self.add_weight(shape=shape, initializer=self.initializer, name="kernel")

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return ops.conv3x3(images, tf.convert_to_tensor(self.kernel), fast=self.fast)


class BatchNorm(tf.keras.layers.Layer):
    """Batch norm over all axes but the last, in float32 whatever the inputs' dtype.

    Scale starts at 1, shift at 0.
    Unlike Keras' layer it reads the batch once for both moments, and its running variance is unbiased
    (n / (n - 1)), as in PyTorch and TensorFlow's fused kernel.

    Args:
        synchronised: under a distribution strategy, take the statistics over the global batch. Otherwise each
            replica takes its own, and so do its running averages until `average_statistics` is called.
        fast: see ops.batch_norm.
    """

    def __init__(self, *, synchronised: bool = False, fast: bool = False) -> None:
        super().__init__()
        self.synchronised, self.fast = synchronised, fast

    def build(self, input_shape: Any) -> None:
        def weight(name: str, start: str, trainable: bool) -> Any:
            return self.add_weight(
                shape=(input_shape[-1],),
                initializer=start,
                trainable=trainable,
                name=name,
                dtype="float32",
                autocast=False,
            )

        self.scale = weight("scale", "ones", True)
        self.shift = weight("shift", "zeros", True)
        self.running_mean = weight("running_mean", "zeros", False)
        self.running_variance = weight("running_variance", "ones", False)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        scale, shift, mean, variance = (
            tf.convert_to_tensor(weight)
            for weight in (self.scale, self.shift, self.running_mean, self.running_variance)
        )
        if not training:
            factor = scale * tf.math.rsqrt(variance + BATCH_NORM_EPSILON)
            return tf.cast((tf.cast(images, tf.float32) - mean) * factor + shift, images.dtype)
        replicas = tf.distribute.get_replica_context()

        def mean_over_replicas(values: tf.Tensor) -> tf.Tensor:
            return replicas.all_reduce(tf.distribute.ReduceOp.MEAN, values)

        normal, batch_mean, batch_variance = ops.batch_norm(
            images,
            scale,
            shift,
            mean,
            BATCH_NORM_EPSILON,
            fast=self.fast,
            **({"over_replicas": mean_over_replicas} if self.synchronised else {}),
        )
        images_seen = replicas.num_replicas_in_sync if self.synchronised else 1
        count = tf.cast(images_seen * tf.size(images) // images.shape[-1], tf.float32)
        unbiased = batch_variance * (count / (count - 1.0))
        keep = BATCH_NORM_KEEPS
        self.running_mean.assign(keep * mean + (1 - keep) * batch_mean)
        self.running_variance.assign(keep * variance + (1 - keep) * unbiased)
        return normal


def average_statistics(model: tf.keras.Model) -> None:
    """Sets every replica's running averages to the mean over the replicas; call it on each replica."""
    replica = tf.distribute.get_replica_context()
    for weight in model.non_trainable_variables:
        if weight.path.endswith(("/running_mean", "/running_variance")):
            weight.assign(replica.all_reduce(tf.distribute.ReduceOp.MEAN, tf.convert_to_tensor(weight)))


class ConvBN(tf.keras.Model):
    """conv - (dropout) - BN - ReLU: (N, H, W, C) -> (N, H, W, filters)."""

    def __init__(
        self,
        filters: int,
        init: Iterator[PyTorchUniform],
        *,
        dropout: float = 0.0,
        sync_bn: bool = False,
        fast: bool = False,
    ) -> None:
        super().__init__()
        self.conv = Conv(filters, init, fast=fast)
        seed = self.conv.initializer
        self.dropout = tf.keras.layers.Dropout(dropout, seed=1000 * seed.seed + seed.index)
        self.norm = BatchNorm(synchronised=sync_bn, fast=fast)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        hidden = self.dropout(self.conv(images), training=training)
        return tf.nn.relu(self.norm(hidden, training=training))


class ResBlk(tf.keras.Model):
    """ConvBN, max-pool 2, then x + f(f(x)) if `residual`: (N, H, W, C) -> (N, H/2, W/2, filters)."""

    def __init__(
        self, filters: int, init: Iterator[PyTorchUniform], *, residual: bool, **conv_options: Any
    ) -> None:
        super().__init__()
        self.fast = conv_options.get("fast", False)
        self.entry = ConvBN(filters, init, **conv_options)
        self.first = ConvBN(filters, init, **conv_options) if residual else None
        self.second = ConvBN(filters, init, **conv_options) if residual else None

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = ops.max_pool(self.entry(images, training=training), 2, fast=self.fast)
        if self.first is None or self.second is None:
            return x
        return x + self.second(self.first(x, training=training), training=training)


class DavidNet(tf.keras.Model):
    """The network of the module's docstring.

    Args:
        classes: number of classes.
        width: c, the filters of the first convolution.
        dropout: share of a convolution's outputs set to 0 before BN in training, from 0 to below 1 (the eager
            tutorial's variant has 0.05).
        seed: of the initial weights and of dropout.
        sync_bn: batch statistics over all replicas of a distribution strategy instead of each one's own.
        fast: use the forms of ops.py that are made for a CPU under XLA.

    Calling it on images (N, 32, 32, 3) gives logits (N, classes), float32.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        width: int = 64,
        dropout: float = 0.0,
        seed: int = 0,
        sync_bn: bool = False,
        fast: bool = False,
    ) -> None:
        super().__init__()
        self.fast = fast
        init = initializers(seed)
        options: dict[str, Any] = {"dropout": dropout, "sync_bn": sync_bn, "fast": fast}
        self.prep = ConvBN(width, init, **options)
        self.layer1 = ResBlk(2 * width, init, residual=True, **options)
        self.layer2 = ResBlk(4 * width, init, residual=False, **options)
        self.layer3 = ResBlk(8 * width, init, residual=True, **options)
        self.head = tf.keras.layers.Dense(classes, use_bias=False, kernel_initializer=next(init))

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.prep(images, training=training)  # (N, 32, 32, c)
        x = self.layer1(x, training=training)  # (N, 16, 16, 2c)
        x = self.layer2(x, training=training)  # (N, 8, 8, 4c)
        x = self.layer3(x, training=training)  # (N, 4, 4, 8c)
        x = ops.max_pool(x, x.shape[1], fast=self.fast)[:, 0, 0]  # (N, 8c)
        return LOGIT_SCALE * tf.cast(self.head(x), tf.float32)  # (N, classes)
