"""A training seen step by step: what each step did to the filters, and the arithmetic of its lengths and angles.

The weights are read between two yields of the core's loop, which on a CPU come after every step. Nothing is computed
twice for it: the gradient follows from the optimizer's accumulators.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lab.base.errors import UserError
from lab.ladder import networks
from lab.ladder.layers import Role, roles
from train_eager import Training

Arrays = dict[str, NDArray[np.float32]]  # by the place in the network: layer1/entry/conv/kernel


class Step(NamedTuple):
    """One update: its number, from 1; the followed weights before and after it; their gradients.

    The gradients are those of the summed loss at `weights`, without the decay.
    """

    number: int
    weights: Arrays
    moved: Arrays
    gradients: Arrays


def filter_banks(training: Training) -> dict[str, int]:
    """The convolutions' filters, (height, width, inputs, filters) each: their place in training.weights, by name."""
    names = {id(weight): name for name, weight in networks.evaluated_variables(training.network).items()}
    of_weights = zip(training.weights, roles(training.network), strict=True)
    return {names[id(w)].removesuffix("/kernel"): k for k, (w, role) in enumerate(of_weights) if role is Role.FILTER}


def steps(training: Any, followed: dict[str, int], rows: list[dict[str, float]] | None = None) -> Iterator[Step]:
    """Trains, on a CPU, and yields after each step.

    Args:
        training: with Nesterov's update in the core's form, a <- momentum a + g, whose accumulators tell g. With
            another one the gradients are not to be used.
        followed: names of weights, and their places in training.weights.
        rows: takes each epoch's row, if given.

    Raises:
        UserError: on an accelerator, whose loop yields after ten steps.
    """
    if training.kind != "CPU":
        raise UserError("this reads the weights after each step, which a CPU's loop allows; hide the accelerators")

    def read(variables: Any) -> Arrays:
        return {name: tf.convert_to_tensor(variables[index]).numpy() for name, index in followed.items()}

    number, momentum = 0, training.config.momentum
    weights, sums = read(training.weights), read(training.optimizer.accumulators)
    for moment in training.run():
        if moment.row is not None:
            if rows is not None:
                rows.append(moment.row)
            continue
        number += 1
        moved, new = read(training.weights), read(training.optimizer.accumulators)
        decays = {name: training.decays[index] for name, index in followed.items()}
        gradients = {name: new[name] - momentum * sums[name] - decays[name] * weights[name] for name in followed}
        yield Step(number, weights, moved, gradients)
        weights, sums = moved, new


# ---- lengths and angles ------------------------------------------------------------------------------------


def norm(values: NDArray[Any]) -> float:
    """The length of all the numbers as one vector."""
    return float(np.linalg.norm(values.astype(np.float64)))


def rms(values: Any) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Of the angle between two arrays of one shape, as vectors."""
    return float(np.sum(one.astype(np.float64) * other)) / (norm(one) * norm(other))


def angle(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The angle between two arrays as vectors, radians, 0 to pi; exact for small ones, where the cosine is near 1."""
    first, second = one.astype(np.float64) / norm(one), other.astype(np.float64) / norm(other)
    return 2.0 * math.atan2(norm(first - second), norm(first + second))


def equilibrium_angle(rate: float, decay: float, momentum: float) -> float:
    """The angle, radians, that scale-invariant weights turn a step once growth and decay of their norm balance.

    Gradients orthogonal to the weights and to one another lengthen them, |w|^2 by (rate |g| / (1 - momentum))^2 for
    each; the decay shortens them, |w|^2 by its share 2 rate decay / (1 - momentum) a step. So in balance rate |g| is
    sqrt(2 rate decay (1 - momentum)) |w|; and with heavy-ball momentum a step is 1 / sqrt(1 - momentum^2) times as
    long as its newest gradient's part, since it sums gradients that are orthogonal.

    Args:
        rate, decay: of the loss whose gradient it is; their product is the same for the summed loss and its mean.
        momentum: 0 to below 1.
    """
    return math.sqrt(2.0 * rate * decay / (1.0 + momentum))


def nesterov_angle(rate: float, decay: float, momentum: float) -> float:
    """The same for Nesterov's step, rate (g + momentum a), which puts 1 + momentum on its newest gradient.

    The balance is the same, since a gradient moves the weights as far in all; but less evenly.
    """
    newest, older = (1.0 + momentum) ** 2, momentum**4 / (1.0 - momentum**2)
    return math.sqrt(2.0 * rate * decay * (1.0 - momentum) * (newest + older))
