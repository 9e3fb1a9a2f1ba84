"""Derivatives of a network by its weights as flat vectors: gradients, Hessian-vector products, leading eigenpairs.

A batch is what the network's function takes; all is averaged over batches. Vectors are float32 (n,), n the number of
trained weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lab.base.errors import UserError

Vector = NDArray[np.float32]


class Derivatives:
    """Of a function of a batch and of weights: function(*batch) -> (k,) or a scalar.

    Args:
        function: reads the weights.
        weights: the network's trained variables.
        batches: each the function's arguments, all of one shape.
    """

    def __init__(self, function: Callable[..., tf.Tensor], weights: Sequence[Any], batches: Sequence[Any]) -> None:
        self.function, self.weights, self.batches = function, list(weights), batches
        self._gradient, self._product = tf.function(self._gradient_of_batch), tf.function(self._product_of_batch)

    def _gradient_of_batch(self, along: tf.Tensor, *batch: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = self.function(*batch)
        return flat(tape.gradient(outputs, self.weights, output_gradients=along))

    def _product_of_batch(self, vector: tf.Tensor, *batch: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                value = self.function(*batch)
            slope = tf.tensordot(flat(inner.gradient(value, self.weights)), vector, 1)
        # Zero, not None, where the gradient does not depend on a weight.
        return flat(outer.gradient(slope, self.weights, unconnected_gradients=tf.UnconnectedGradients.ZERO))

    def _mean(self, of_batch: Callable[..., tf.Tensor], first: Any) -> Vector:
        first = tf.constant(first, tf.float32)
        return np.mean([of_batch(first, *batch).numpy() for batch in self.batches], 0)

    def gradient(self, along: Any = 1.0) -> Vector:
        """Of the function's outputs times `along`, which has their shape."""
        return self._mean(self._gradient, along)

    def product(self, vector: Vector) -> Vector:
        """The Hessian of the function, a scalar, times a vector (B. Pearlmutter, 1994)."""
        return self._mean(self._product, vector)


def flat(tensors: Sequence[Any]) -> tf.Tensor:
    """All numbers of the tensors in one vector."""
    return tf.concat([tf.reshape(tf.convert_to_tensor(tensor), [-1]) for tensor in tensors], 0)


@contextmanager
def moved(network: tf.keras.Model, step: Vector) -> Iterator[None]:
    """Within it the trained weights are moved by a step; after it all variables are what they were."""
    before = [variable.numpy() for variable in network.variables]
    weights = network.trainable_variables
    parts = np.split(step, np.cumsum([np.prod(weight.shape) for weight in weights])[:-1].astype(int))
    for weight, part in zip(weights, parts, strict=True):
        weight.assign_add(part.reshape(weight.shape))
    try:
        yield
    finally:
        for variable, value in zip(network.variables, before, strict=True):
            variable.assign(value)


def leading(
    product: Callable[[Vector], Vector], size: int, count: int, seed: int, tolerance: float
) -> tuple[NDArray[np.float64], Vector]:
    """The `count` eigenpairs of largest size of a symmetric matrix, known by its products with vectors.

    Args:
        product: the matrix times a vector.
        size: n, of the vectors.
        count: below n.
        seed: of the start.
        tolerance: of an eigenvalue, as a share of it.

    Returns: eigenvalues (count,), the largest first, and their eigenvectors (count, n), of norm 1.

    Raises UserError without SciPy, whose restarted Lanczos iteration does it (ARPACK).
    """
    try:
        from scipy.sparse.linalg import LinearOperator, eigsh
    except ImportError:
        raise UserError("the Hessian's eigenvalues need SciPy; try: pip install scipy") from None
    operator = LinearOperator((size, size), matvec=lambda vector: product(vector.ravel()), dtype=np.float32)
    start = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    values, vectors = eigsh(operator, k=count, v0=start, tol=tolerance)
    order = np.argsort(-values)
    return values[order].astype(np.float64), vectors.T[order]


def share_in_span(vector: Vector, spanning: Sequence[Vector]) -> float:
    """The share, 0 to 1, of a vector's squared norm that lies in the span of others, which are independent."""
    basis, _ = np.linalg.qr(np.stack(spanning, 1).astype(np.float64))
    return float(np.sum((basis.T @ vector) ** 2) / np.sum(np.square(vector, dtype=np.float64)))
