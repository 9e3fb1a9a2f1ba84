"""Nesterov momentum with the learning rate outside the accumulator."""

from typing import Any

import tensorflow as tf


class Nesterov(tf.keras.optimizers.Optimizer):
    """Gradient descent with Nesterov momentum, in the form of PyTorch and of TensorFlow 1:

        a <- momentum a + g
        w <- w - rate (g + momentum a)

    Keras' own SGD(nesterov=True) keeps the rate inside the accumulator, which is the same only while the rate
    is constant: as it rises, theirs lags some nine steps behind (at momentum 0.9). DavidNet's published
    results were made with the rate outside.

    Gradients are summed over the replicas of a distribution strategy before the update.

    Args:
        learning_rate: a float, or a Keras LearningRateSchedule of the number of updates made so far.
        momentum: from 0 to below 1.
    """

    def __init__(self, learning_rate: Any, momentum: float = 0.9, name: str = "nesterov") -> None:
        super().__init__(learning_rate=learning_rate, name=name)
        self.momentum = momentum
        self.accumulators: list[Any] = []

    def build(self, variables: list[Any]) -> None:
        """Makes one accumulator of zeros a variable."""
        if self.built:
            return
        super().build(variables)
        self.accumulators = [self.add_variable_from_reference(v, name="accumulator") for v in variables]

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """One update of one variable; `gradient` has the variable's shape."""
        accumulator = self.accumulators[self._get_variable_index(variable)]
        gradient = tf.cast(gradient, variable.dtype)
        rate = tf.cast(learning_rate, variable.dtype)
        moved = self.momentum * tf.convert_to_tensor(accumulator) + gradient
        self.assign(accumulator, moved)
        self.assign_sub(variable, rate * (gradient + self.momentum * moved))

    def get_config(self) -> dict[str, Any]:
        return {"learning_rate": self._learning_rate, "momentum": self.momentum, "name": self.name}


class EpochRate(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A schedule in epochs as Keras' schedule in updates, for the gradient of a summed loss.

    Args:
        schedule: rate as a function of the epoch, e.g. schedule.PiecewiseLinear; called with
            `clip=tf.clip_by_value`.
        steps_per_epoch: updates an epoch. The k-th update, from 1, reads the schedule at k / steps_per_epoch.
        divisor: what the rate is divided by: the global batch size turns a rate for the mean loss into one
            for the sum.
    """

    def __init__(self, schedule: Any, steps_per_epoch: int, divisor: float) -> None:
        self.schedule, self.steps_per_epoch, self.divisor = schedule, steps_per_epoch, divisor

    def __call__(self, step: Any) -> tf.Tensor:
        epoch = (tf.cast(step, tf.float32) + 1.0) / self.steps_per_epoch
        return self.schedule(epoch, clip=tf.clip_by_value) / self.divisor

    def get_config(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule,
            "steps_per_epoch": self.steps_per_epoch,
            "divisor": self.divisor,
        }
