"""DavidNet, the nine-layer residual network of D. C. Page's cifar10-fast (2018), as a Keras model.

    images  (N, 32, 32, 3)
    prep    conv-BN-ReLU to c                                      (N, 32, 32, c)
    layer1  conv-BN-ReLU to 2c, max-pool 2, then x + f(f(x))       (N, 16, 16, 2c)
    layer2  conv-BN-ReLU to 4c, max-pool 2                         (N, 8, 8, 4c)
    layer3  conv-BN-ReLU to 8c, max-pool 2, then x + f(f(x))       (N, 4, 4, 8c)
    head    global max-pool, linear without bias, x 0.125          (N, classes)

All convolutions are 3x3, stride 1, zero-padded, without bias; f is conv-BN-ReLU. With c = 64 and ten classes
it has 6,573,120 trainable parameters.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import tensorflow as tf

# ---- initial weights ---------------------------------------------------------------------------------------


class Uniform(tf.keras.initializers.Initializer):
    """Uniform in +-1/sqrt(fan_in), PyTorch's default, with which DavidNet's results were made.

    fan_in is the product of all axes but the last: 3 * 3 * inputs, or inputs. The numbers are NumPy's, keyed by
    (seed, index), and so the same on every device and version of TensorFlow.
    """

    def __init__(self, seed: int, index: int) -> None:
        self.seed, self.index = seed, index

    def __call__(self, shape: Any, dtype: Any = None) -> tf.Tensor:
        bound = 1.0 / np.sqrt(np.prod(shape[:-1]))
        values = np.random.default_rng([self.seed, self.index]).uniform(-bound, bound, shape)
        return tf.constant(values, dtype or tf.float32)


def initializers(seed: int) -> Iterator[Uniform]:
    """One for each layer, in the order in which the network asks for them."""
    return (Uniform(seed, index) for index in count())


# ---- layers ------------------------------------------------------------------------------------------------


class BatchNorm(tf.keras.layers.Layer):
    """Batch norm over all axes but the last, by TensorFlow's fused kernel: (N, H, W, C) -> (N, H, W, C).

    Unlike Keras' layer it reads the batch once, and its running variance is unbiased, n / (n - 1) times the batch's, as
    in PyTorch. Like it, it computes in float32 whatever the images' dtype, and each of several replicas normalises with
    the statistics of its own part of the batch; the running ones take the replicas' mean.
    `momentum` is the share of the running statistics that a step keeps, `epsilon` is added to the variance.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon

    def build(self, input_shape: Any) -> None:
        # autocast=False: float32 even where the network computes in bfloat16 or float16.
        weight = {"shape": (input_shape[-1],), "dtype": "float32", "autocast": False}
        running = weight | {"trainable": False, "aggregation": "mean"}
        self.scale = self.add_weight(name="scale", initializer="ones", **weight)
        self.shift = self.add_weight(name="shift", initializer="zeros", **weight)
        self.running_mean = self.add_weight(name="running_mean", initializer="zeros", **running)
        self.running_variance = self.add_weight(name="running_variance", initializer="ones", **running)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        weights = (self.scale, self.shift, self.running_mean, self.running_variance)
        scale, shift, mean, variance = map(tf.convert_to_tensor, weights)
        # In training the kernel computes the batch's statistics and returns them; else it uses the running ones.
        none = tf.zeros([0])
        moments = {"mean": none, "variance": none} if training else {"mean": mean, "variance": variance}
        normal, batch_mean, batch_variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images, scale=scale, offset=shift, epsilon=self.epsilon, is_training=training, **moments
        )
        if training:
            keep = self.momentum
            self.running_mean.assign(keep * mean + (1 - keep) * batch_mean)
            self.running_variance.assign(keep * variance + (1 - keep) * batch_variance)
        return normal


class ConvBN(tf.keras.Model):
    """conv - BN - ReLU, then perhaps max-pool 2: (N, H, W, C) -> (N, H, W, filters), halved if `pool`."""

    def __init__(self, filters: int, initializer: Any, *, pool: bool = False) -> None:
        super().__init__()
        self.conv = tf.keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer=initializer)
        self.norm = BatchNorm()
        self.pool = tf.keras.layers.MaxPool2D(2) if pool else None

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = tf.nn.relu(self.norm(self.conv(images), training=training))
        return x if self.pool is None else self.pool(x)


class ResBlk(tf.keras.Model):
    """conv-BN-ReLU and max-pool 2, then x + f(f(x)) if `residual`: (N, H, W, C) -> (N, H/2, W/2, filters)."""

    def __init__(self, filters: int, inits: Iterator[Any], conv_bn: Callable[..., Any], *, residual: bool) -> None:
        super().__init__()
        self.entry = conv_bn(filters, next(inits), pool=True)
        self.first = conv_bn(filters, next(inits)) if residual else None
        self.second = conv_bn(filters, next(inits)) if residual else None

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.entry(images, training=training)
        if self.first is None or self.second is None:
            return x
        return x + self.second(self.first(x, training=training), training=training)


class DavidNet(tf.keras.Model):
    """The network at the top of this file: standardised images (N, 32, 32, 3) to logits (N, classes), float32.

    Args:
        classes: number of classes.
        width: c, the filters of the first convolution; the others have 2, 4 and 8 times as many.
        logit_scale: factor on the last layer's outputs, else too large at first ("How to train your ResNet", post 4).
        seed: of the initial weights.
        conv_bn: makes f; called as conv_bn(filters, initializer, pool=...).
    """

    def __init__(
        self, classes: int = 10, *, width: int = 64, logit_scale: float = 0.125, seed: int = 0, conv_bn: Any = ConvBN
    ) -> None:
        super().__init__()
        inits = initializers(seed)
        self.prep = conv_bn(width, next(inits))
        self.layer1 = ResBlk(2 * width, inits, conv_bn, residual=True)
        self.layer2 = ResBlk(4 * width, inits, conv_bn, residual=False)
        self.layer3 = ResBlk(8 * width, inits, conv_bn, residual=True)
        self.head = tf.keras.layers.Dense(classes, use_bias=False, kernel_initializer=next(inits))
        self.logit_scale = logit_scale

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.prep(images, training=training)  # (N, 32, 32, c)
        x = self.layer1(x, training=training)  # (N, 16, 16, 2c)
        x = self.layer2(x, training=training)  # (N, 8, 8, 4c)
        x = self.layer3(x, training=training)  # (N, 4, 4, 8c)
        x = tf.reduce_max(x, [1, 2])  # (N, 8c)
        return self.logit_scale * tf.cast(self.head(x), tf.float32)  # (N, classes)
