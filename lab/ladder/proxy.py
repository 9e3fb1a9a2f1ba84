"""A small network whose losses choose the part of each batch that the main one is trained on."""

from dataclasses import replace
from functools import partial
from typing import Any

import tensorflow as tf

import train_eager
from lab.ladder import optimizers, schedules
from train_eager import cross_entropy_sum

LEARNS_EVERY = 4  # batches (K. Jordan, cifar10-airbench, airbench96_faster.py)


def losses_of(logits: tf.Tensor, labels: tf.Tensor, smoothing: float) -> tf.Tensor:
    """What train_eager.cross_entropy_sum sums up: logits (N, classes), labels (N,) int32 -> (N,) float32."""
    classes = logits.shape[-1]
    targets = (1.0 - smoothing) * tf.one_hot(labels, classes) + smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


class Proxy:
    """The small network, which is trained beside the main one and knows nothing of it.

    Of every batch, as it is augmented, it takes the images with the largest losses, its batch norms on the statistics
    of all; from those of every fourth batch it learns, by the main network's rates at these steps. The original trains
    it beforehand and keeps what it chose; here it does both in the main training's step, of which its state is a part,
    so that a checkpoint holds that.

    Args:
        options: the main training's hyperparameters; `hardest` is the share that is chosen.
        network: see networks.proxy, its whitening fitted.
        steps_per_epoch: of the main training.
        loss_scale: the first of float16's, as the main training's; 0: the gradients are not scaled.
    """

    def __init__(self, options: Any, network: tf.keras.Model, steps_per_epoch: int, *, loss_scale: float) -> None:
        self.network, self.smoothing = network, options.label_smoothing
        self.count = max(1, round(options.hardest * options.batch_size))
        self.weights = network.trainable_variables
        # Knots, even where the schedule has none of its own, since the core's optimizer has but one rate.
        alone = replace(options, lookahead_every=0, ema_every=0, knots=str(schedules.of(vars(options))))
        update, self.decays = optimizers.make(alone, network, steps_per_epoch)
        update.rates = tuple(partial(_at_its_batch, rate) for rate in update.rates)
        self.optimizer = train_eager.LossScale(update, initial_scale=loss_scale) if loss_scale else update
        self.optimizer.build(self.weights)
        self.every = LEARNS_EVERY
        self.seen = tf.Variable(0, trainable=False, dtype=tf.int64)  # batches

    @property
    def variables(self) -> list[Any]:
        """Its state."""
        return [*self.network.variables, *self.optimizer.variables, self.seen]

    def __call__(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The chosen part of a batch, in its order: images (N, H, W, C) and labels (N,) -> (count, H, W, C), (count,).

        To be called in the training's step, once for each batch.
        """
        learns = tf.equal(self.seen % LEARNS_EVERY, 0)
        chosen = tf.cond(learns, lambda: self._learn(images, labels), lambda: self._choose(images, labels)[1])
        self.seen.assign_add(1)
        return tf.gather(images, chosen), tf.gather(labels, chosen)

    def _choose(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The logits of all images, and which are chosen: int32 (count,), rising."""
        logits = self.network(images, training=True)
        losses = losses_of(logits, labels, self.smoothing)
        return logits, tf.sort(tf.math.top_k(losses, self.count, sorted=False).indices)

    def _learn(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        scale = self.optimizer.scale_loss(1.0)
        with tf.GradientTape() as tape:
            logits, chosen = self._choose(images, labels)
            loss = cross_entropy_sum(tf.gather(logits, chosen), tf.gather(labels, chosen), self.smoothing)
            scaled_loss = scale * loss
        gradients = tape.gradient(scaled_loss, self.weights)
        decays = [scale * decay for decay in self.decays]
        gradients = [g + d * tf.convert_to_tensor(w) for g, d, w in zip(gradients, decays, self.weights, strict=True)]
        self.optimizer.apply(gradients, self.weights)
        return chosen


def _at_its_batch(rate: Any, step: Any) -> tf.Tensor:
    """The main network's rate at the batch of this many updates before."""
    return rate(LEARNS_EVERY * tf.convert_to_tensor(step))
