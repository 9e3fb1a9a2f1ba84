"""Gradients that are not finite: seen on every replica, counted on the device, skipped in float16."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# Of the summed loss, at the start. Keras starts at 2^15 for a mean; the sum over 512 images is 2^9 larger.
LOSS_SCALE = 2.0**6


def finite_on_all(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Whether all gradients of all replicas are finite: a bool scalar, the same on each. For the replicas."""
    own = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    replica = tf.distribute.get_replica_context()
    flaws = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(tf.logical_not(own), tf.float32))
    return tf.equal(flaws, 0.0)


class LossScale(tf.keras.optimizers.LossScaleOptimizer):
    """Keras' dynamic loss scaling, for float16, which has no room for small gradients.

    The loop trains on `scale_loss(loss)`; `apply` divides the gradients by the scale, which doubles after
    2000 sound steps. A step whose gradients are not finite is skipped, on all replicas, and halves it. The
    schedule does not count such a step.
    Keras (3.15) asks the first replica only, and before the gradients are summed, so that what overflowed on
    another would end in the weights.
    """

    def __init__(self, inner_optimizer: tf.keras.optimizers.Optimizer, **options: Any) -> None:
        super().__init__(inner_optimizer, **{"initial_scale": LOSS_SCALE, **options})

    def check_finite(self, grads: Sequence[tf.Tensor]) -> tf.Tensor:
        """Keras' hook, called on each replica."""
        return finite_on_all(grads)


class BadSteps:
    """Counts the steps whose gradients are not finite, on the devices. Make it in the strategy's scope."""

    def __init__(self) -> None:
        # Every replica counts the same, so one of them will do.
        how = {
            "trainable": False,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        }
        self.bad, self.good_before = tf.Variable(0, **how), tf.Variable(0, **how)

    def add(self, finite: tf.Tensor) -> None:
        """Counts a step, by what finite_on_all said. For the replicas."""
        before = tf.logical_and(finite, tf.equal(tf.convert_to_tensor(self.bad), 0))
        self.good_before.assign_add(tf.cast(before, tf.int32))
        self.bad.assign_add(tf.cast(tf.logical_not(finite), tf.int32))

    def reset(self) -> None:
        """Back to zero."""
        self.bad.assign(0)
        self.good_before.assign(0)

    def fetch(self) -> tuple[int, int]:
        """How many there were, and which was the first (from 1), since the reset. Waits for the devices."""
        bad, good_before = (int(tf.convert_to_tensor(value)) for value in (self.bad, self.good_before))
        return bad, good_before + 1 if bad else 0
