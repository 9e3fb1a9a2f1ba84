"""The unbranched network of post 7: seven 3x3 convolutions and a linear layer, with or without batch norm.

    images  (N, 32, 32, 3), times 1/sqrt(2)
    prep    conv-BN-activation to c                                     (N, 32, 32, c)
    layer k conv-BN-activation to 2c, 4c, 8c, max-pool 2, and the same  (N, 16, 16, 2c) ... (N, 4, 4, 8c)
            once more without the pool
    head    global max-pool, linear without bias, x 0.125 / sqrt(6)     (N, classes)

Without shortcuts, since what post 7 looks at grows with depth. Batch norm's scale and shift stay at 1 and 0.
Source: D. C. Page, cifar10-fast, batch_norm_post.ipynb, nets['simple'].
"""

from math import sqrt
from typing import Any

import tensorflow as tf

from lab import assemble
from lab.images.imageset import ImageSet
from lab.ladder import optimizers
from lab.posts.training import Sizes, options, placement
from model import BatchNorm
from train_eager import Training

FILTERS = (1, 2, 2, 4, 4, 8, 8)  # of each convolution, in units of the width
POOLED = (1, 3, 5)  # the convolutions after which the image is halved
LAYERS = ("prep", "layer1", "extra1", "layer2", "extra2", "layer3", "extra3", "head")
STEEPNESS = 10.0  # of the softplus: within log(2) / 10 of a ReLU


def softplus(values: tf.Tensor) -> tf.Tensor:
    """A smooth ReLU, log(1 + exp(10 x)) / 10: the second derivative of a ReLU is 0 wherever there is one."""
    return tf.nn.softplus(STEEPNESS * values) / STEEPNESS


class EightLayers(tf.keras.Model):
    """The network at the top of this file: standardised images (N, 32, 32, 3) to logits (N, classes), float32.

    Args:
        classes: number of classes.
        width: c.
        seed: of the initial weights, He's: uniform with the variance 2/fan_in.
        norm: with batch norm.
        smooth: with softplus for ReLU.
    """

    def __init__(self, classes: int, *, width: int, seed: int, norm: bool, smooth: bool = False) -> None:
        super().__init__()
        he = [tf.keras.initializers.HeUniform(seed=1000 * seed + layer) for layer in range(len(LAYERS))]
        self.convs = [
            tf.keras.layers.Conv2D(factor * width, 3, padding="same", use_bias=False, kernel_initializer=start)
            for factor, start in zip(FILTERS, he, strict=False)
        ]
        self.norms = [BatchNorm() for _ in FILTERS] if norm else []
        for layer in self.norms:
            layer.trainable = False  # its scale and shift; the running statistics follow the batches all the same
        self.activation = softplus if smooth else tf.nn.relu
        self.pool = tf.keras.layers.MaxPool2D(2)
        self.head = tf.keras.layers.Dense(classes, use_bias=False, kernel_initializer=he[-1])
        self(tf.zeros([1, 32, 32, 3]))  # Keras makes the variables in the first call

    def outputs(self, images: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        """Each of LAYERS' outputs before its activation: (N, H, W, C), after batch norm if any; at last (N, classes).

        They are not scaled to logits yet.
        """
        found, x = [], images / sqrt(2)
        for number, conv in enumerate(self.convs):
            x = conv(x)
            if self.norms:
                x = self.norms[number](x, training=training)
            found.append(x)
            x = self.activation(x)
            if number in POOLED:
                x = self.pool(x)
        return [*found, self.head(tf.reduce_max(x, [1, 2]))]

    def call(self, images: tf.Tensor, training: bool = False) -> Any:
        return 0.125 / sqrt(6) * tf.cast(self.outputs(images, training)[-1], tf.float32)


def make_training(
    sizes: Sizes, images: ImageSet, seed: int, *, norm: bool, smooth: bool = False, **changes: Any
) -> Training:
    """The core's training of this network, with post 7's update and augmentation.

    Args:
        sizes, images, seed, changes: as lab.posts.training.make.
        norm, smooth: see EightLayers.

    Raises UserError as lab.posts.training.options.
    """
    config = options(sizes, seed, **{"rate_inside": True, "weight_decay": 1e-4, "cutout": 0, **changes})
    return Training(
        config,
        strategy=placement().strategy,
        images=images,  # type: ignore[arg-type]  # it has what Images has, and more
        network=lambda _, images: EightLayers(
            len(images.classes), width=config.width, seed=seed, norm=norm, smooth=smooth
        ),
        optimizer=optimizers.make,
        batches=assemble.make_batches(config, placement()),
    )
