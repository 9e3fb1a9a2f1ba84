"""A moving average of a network's weights and statistics, on which it is evaluated."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


class WeightAverage(tf.Module):
    """An exponential moving average of variables, brought up to date every few steps.

    Every `every`-th step: average <- k average + (1 - k) value, with k = keeps ** every, so that it moves as if it
    were updated at every step (D. C. Page, post 8: 0.99 and 5). It starts at the variables' values.

    Args:
        variables: the weights and batch norm's running averages.
        keeps: share of the average that one step keeps, from 0 to below 1.
        every: steps between updates, from 1.
    """

    def __init__(self, variables: Sequence[Any], keeps: float, every: int) -> None:
        super().__init__()
        self.followed, self.keeps, self.every = list(variables), keeps, every
        how = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.averages = [tf.Variable(tf.convert_to_tensor(variable), **how) for variable in variables]

    def update(self, steps: tf.Tensor) -> None:
        """To be called in each step, after the optimiser's update; `steps` is the number of updates so far."""
        due = tf.equal(steps % self.every, 0)
        keep = tf.where(due, self.keeps**self.every, 1.0)
        for average, variable in zip(self.averages, self.followed, strict=True):
            average.assign(keep * average + (1.0 - keep) * tf.convert_to_tensor(variable))

    @tf.function
    def swap(self) -> None:
        """Exchanges the averages and the variables' values; a second call takes that back."""
        for average, variable in zip(self.averages, self.followed, strict=True):
            value = tf.identity(tf.convert_to_tensor(variable))
            variable.assign(tf.convert_to_tensor(average))
            average.assign(value)
