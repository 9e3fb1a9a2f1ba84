"""A moving average of a network's weights and statistics, on which it is evaluated."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf


class WeightAverage:
    """An exponential moving average of variables, brought up to date every few steps.

    Every `every`-th step: average <- k average + (1 - k) value, with k = keeps ** every, so that it moves as if it
    were updated at every step (D. C. Page, post 8: 0.99 and 5). It starts at the variables' values.

    Args:
        followed: the weights and batch norm's running statistics.
        keeps: share of the average that one step keeps, from 0 to below 1.
        every: steps between updates, from 1.
    """

    def __init__(self, followed: Sequence[Any], keeps: float, every: int) -> None:
        self.followed, self.keeps, self.every = list(followed), keeps, every
        # All replicas compute the same average, as all have the same weights and statistics.
        how: dict[str, Any] = {"trainable": False, "autocast": False, "aggregation": "only_first_replica"}
        self.averages = [tf.keras.Variable(tf.convert_to_tensor(v), name="average", **how) for v in followed]

    def update(self, steps: Any) -> None:
        """To be called in each step, after the optimizer's update; `steps` is the number of updates so far."""
        due = tf.equal(tf.convert_to_tensor(steps) % self.every, 0)
        keep = tf.where(due, self.keeps**self.every, 1.0)
        for average, variable in zip(self.averages, self.followed, strict=True):
            average.assign(keep * tf.convert_to_tensor(average) + (1.0 - keep) * tf.convert_to_tensor(variable))

    @tf.function
    def swap(self) -> None:
        """Exchanges the averages and the variables' values; a second call takes that back."""
        for average, variable in zip(self.averages, self.followed, strict=True):
            value = tf.identity(tf.convert_to_tensor(variable))
            variable.assign(tf.convert_to_tensor(average))
            average.assign(value)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Within it, the variables have the averages' values."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
