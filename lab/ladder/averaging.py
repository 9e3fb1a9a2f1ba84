"""Moving averages of a network's weights and statistics: one to evaluate it on, and one that takes their place."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def _at_their_values(followed: Sequence[Any]) -> list[Any]:
    """A variable for each one's average. All replicas compute the same, as all have the same weights and statistics."""
    how: dict[str, Any] = {"trainable": False, "autocast": False, "aggregation": "only_first_replica"}
    return [tf.keras.Variable(tf.convert_to_tensor(v), name="average", **how) for v in followed]


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
        self.averages = _at_their_values(followed)

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


class Lookahead:
    """A moving average that takes the place of the variables every few steps (M. R. Zhang et al., arXiv 1907.08610).

    From step `start` on, where it starts at the variables' values, in every `every`-th step t:

        average <- d average + (1 - d) value
        value <- average                          d = keeps (t / steps) ** power

    and after the last step the values are the average, whether it is due then or not. K. Jordan's airbench96 has
    every 5, keeps 0.95 ** 5, power 3 all along; a constant d in the last steps settles a run that ends at a low rate.

    Args:
        followed: the weights and batch norm's running statistics.
        steps: of the whole run.
        every: steps between updates, from 1.
        keeps: share of the average that an update keeps, in the end: from 0 to below 1.
        power: how that share grows over the run; 0: not at all.
        start: from 0.
    """

    def __init__(
        self, followed: Sequence[Any], steps: int, *, every: int, keeps: float, power: float = 0.0, start: int = 0
    ) -> None:
        self.followed, self.averages = list(followed), _at_their_values(followed)
        step = np.arange(steps + 1)
        due = (step > start) & ((step - start) % every == 0)
        shares = np.where(due, keeps * (step / steps) ** power, step != start)
        self.shares = tf.constant(shares, tf.float32)  # of the average, by the number of updates so far
        self.replaces = tf.constant(due | (step == steps))

    def update(self, steps: Any) -> None:
        """To be called in each step, after the optimizer's update; `steps` is the number of updates so far."""
        step = tf.minimum(tf.cast(tf.convert_to_tensor(steps), tf.int32), len(self.shares) - 1)
        share, replaces = tf.gather(self.shares, step), tf.gather(self.replaces, step)
        # A weight may be assigned only where all replicas' copies are, as in Keras' own optimizers.
        tf.distribute.get_replica_context().merge_call(self._move, args=(share, replaces))

    def _move(self, strategy: tf.distribute.Strategy, share: tf.Tensor, replaces: tf.Tensor) -> None:
        def move(variable: Any, average: Any, share: tf.Tensor, replaces: tf.Tensor) -> None:
            value = tf.convert_to_tensor(variable)
            moved = share * tf.convert_to_tensor(average) + (1.0 - share) * value
            average.assign(moved)
            variable.assign(tf.where(replaces, moved, value))

        for variable, average in zip(self.followed, self.averages, strict=True):
            inner = variable.value if isinstance(variable, tf.keras.Variable) else variable
            strategy.extended.update(inner, move, args=(average.value, share, replaces), group=False)
