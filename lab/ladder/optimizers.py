"""Nesterov momentum in its two forms, LARS and Muon, as Keras optimizers; which variable learns at which rate."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from lab.options import Settings
from lab.schedules import PiecewiseLinear


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


class Nesterov(tf.keras.optimizers.Optimizer):
    """Gradient descent with Nesterov momentum. By default in the form of PyTorch and of TensorFlow 1:

        a <- momentum a + g
        w <- w - rate (g + momentum a)

    and with `rate_inside` in the form of Keras' SGD(nesterov=True) and of cifar10-fast since October 2019:

        a <- momentum a + rate g
        w <- w - (rate g + momentum a)

    They are the same only while the rate is constant: as it rises, the latter lags some nine steps behind (at
    momentum 0.9). DavidNet's published results were made with the former, post 8's with the latter.

    Gradients are summed over the replicas of a distribution strategy before the update.

    Args:
        learning_rate: a float, or a Keras LearningRateSchedule of the number of updates made so far.
        momentum: from 0 to below 1.
        rate_inside: see above.
        rates: a LearningRateSchedule for each variable, in the order of `build`, in place of `learning_rate`.
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: float = 0.9,
        *,
        rate_inside: bool = False,
        rates: Sequence[Any] = (),
        name: str = "nesterov",
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name)
        self.momentum, self.rate_inside, self.rates = momentum, rate_inside, tuple(rates)
        self.accumulators: list[Any] = []

    def build(self, variables: list[Any]) -> None:
        """Makes one accumulator of zeros a variable."""
        if self.built:
            return
        super().build(variables)
        self.accumulators = [self.add_variable_from_reference(v, name="accumulator") for v in variables]

    def rate_of(self, index: int, learning_rate: tf.Tensor) -> tf.Tensor:
        """The rate of the variable of that index now."""
        return self.rates[index](self.iterations) if self.rates else learning_rate

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """One update of one variable; `gradient` has the variable's shape."""
        index = self._get_variable_index(variable)
        rate = tf.cast(self.rate_of(index, learning_rate), variable.dtype)
        self.move(index, tf.cast(gradient, variable.dtype), variable, rate)

    def move(self, index: int, gradient: tf.Tensor, variable: Any, rate: tf.Tensor) -> None:
        """The formula; `rate` may also be of a shape that broadcasts to the gradient's."""
        before = rate if self.rate_inside else 1.0
        after = 1.0 if self.rate_inside else rate
        accumulator = self.accumulators[index]
        moved = self.momentum * tf.convert_to_tensor(accumulator) + before * gradient
        self.assign(accumulator, moved)
        self.assign_sub(variable, after * (before * gradient + self.momentum * moved))

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self._learning_rate,
            "momentum": self.momentum,
            "rate_inside": self.rate_inside,
            "rates": self.rates,
            "name": self.name,
        }


class Lars(Nesterov):
    """Nesterov with layer-wise adaptive rates (Y. You et al., arXiv 1708.03888) as in Page's post 7.

    The rate of each output filter of a convolution (a variable of rank 4) is multiplied by
    |w| / (|g| + 1e-2), g without the decay.

    Args:
        decays: for each variable, the number by which the variable was multiplied and added to its gradient.
        others: as Nesterov's.
    """

    EPSILON = 1e-2  # cifar10-fast, batch_norm_post.ipynb

    def __init__(
        self, learning_rate: Any, momentum: float = 0.9, *, decays: Sequence[float], **others: Any
    ) -> None:
        super().__init__(learning_rate, momentum, **others)
        self.decays = tuple(decays)

    def move(self, index: int, gradient: tf.Tensor, variable: Any, rate: tf.Tensor) -> None:
        if len(variable.shape) == 4:
            weights = tf.convert_to_tensor(variable)
            size, slope = (
                tf.sqrt(tf.reduce_sum(tf.square(values), [0, 1, 2]))
                for values in (weights, gradient - self.decays[index] * weights)
            )
            rate = rate * size / (slope + self.EPSILON)
        super().move(index, gradient, variable, rate)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"decays": self.decays}


def orthogonalise(matrix: tf.Tensor, steps: int = 3) -> tf.Tensor:
    """A Newton-Schulz iteration that brings a matrix' singular values near 1 and keeps its singular vectors.

    X <- X / |X|, then `steps` times X <- a X + (b A + c A A) X with A = X X'. The coefficients are chosen for
    speed: three steps leave singular values between about 0.7 and 1.2 where they began well conditioned
    (K. Jordan, cifar10-airbench; "Muon", 2024).

    Args:
        matrix: (m, n) float32.
        steps: from 0.

    Returns:
        (m, n) float32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = tf.transpose(matrix) if tall else matrix
    x = x / (tf.norm(x) + 1e-7)
    for _ in range(steps):
        square = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * square + c * tf.matmul(square, square), x)
    return tf.transpose(x) if tall else x


class Muon(Nesterov):
    """Muon for the filters of convolutions (variables of rank 4), Nesterov for the rest.

    A filter bank (kh, kw, C, K) is first scaled to the norm sqrt(K); then it moves by `rate` times the
    orthogonalised K x (C kh kw) matrix of g + filter_momentum a, where a <- filter_momentum a + g. Each bank by
    itself; `python -m lab.bench.bench --network speedrun --sections update` compares that with padding and
    stacking them.

    Args:
        filter_momentum: from 0 to below 1.
        others: as Nesterov's.
    """

    def __init__(self, learning_rate: Any, momentum: float, *, filter_momentum: float, **others: Any) -> None:
        super().__init__(learning_rate, momentum, **others)
        self.filter_momentum = filter_momentum

    def move(self, index: int, gradient: tf.Tensor, variable: Any, rate: tf.Tensor) -> None:
        if len(variable.shape) != 4:
            return super().move(index, gradient, variable, rate)
        accumulator, filters = self.accumulators[index], variable.shape[-1]
        moved = self.filter_momentum * tf.convert_to_tensor(accumulator) + gradient
        self.assign(accumulator, moved)
        direction = gradient + self.filter_momentum * moved
        flat = tf.transpose(tf.reshape(direction, [-1, filters]))  # (K, kh kw C)
        update = tf.reshape(tf.transpose(orthogonalise(flat)), variable.shape)
        weights = tf.convert_to_tensor(variable)
        self.assign(variable, weights * (filters**0.5 / tf.norm(weights)) - rate * update)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"filter_momentum": self.filter_momentum}


# ---- which variable learns how -----------------------------------------------------------------------------


class Plan(NamedTuple):
    """How one variable learns: its rate as a function of the epoch, and its decay, both for the mean loss."""

    rate: PiecewiseLinear
    decay: float


def plans(options: Settings, variables: Sequence[Any], schedule: PiecewiseLinear) -> list[Plan]:
    """How each variable learns under these hyperparameters."""
    if options.optimizer == "muon":
        return speedrun_plans(
            variables,
            schedule,
            options.weight_decay,
            bias_rate=options.bias_rate,
            head_rate=options.head_rate,
            whiten_bias_epochs=options.whiten_bias_epochs,
            batch_size=options.batch_size,
        )
    return shift_plans(variables, schedule, options.weight_decay, options.bias_factor)


def make(options: Settings, plans: Sequence[Plan], steps_per_epoch: int) -> tf.keras.optimizers.Optimizer:
    """The optimizer of these hyperparameters, for the gradient of the summed loss."""
    rates = [EpochRate(plan.rate, steps_per_epoch, options.batch_size) for plan in plans]
    common: dict[str, Any] = {
        "momentum": options.momentum,
        "rate_inside": options.rate_inside,
        "rates": rates,
    }
    if options.optimizer == "lars":
        return Lars(rates[0], decays=[plan.decay * options.batch_size for plan in plans], **common)
    if options.optimizer == "muon":
        return Muon(rates[0], filter_momentum=options.filter_momentum, **common)
    return Nesterov(rates[0], **common)


def shift_plans(
    variables: Sequence[Any], schedule: PiecewiseLinear, decay: float, factor: float
) -> list[Plan]:
    """Rate times `factor` and decay divided by it for the shifts of batch norm and biases (post 8), else both."""
    return [
        Plan(schedule.times(factor), decay / factor)
        if variable.path.endswith(("/shift", "/bias"))
        else Plan(schedule, decay)
        for variable in variables
    ]


def speedrun_plans(
    variables: Sequence[Any],
    schedule: PiecewiseLinear,
    decay: float,
    *,
    bias_rate: float,
    head_rate: float,
    whiten_bias_epochs: float,
    batch_size: int,
) -> list[Plan]:
    """airbench94_muon's: `schedule` for the filters, without decay; its shape with other peaks for the rest.

    Args:
        variables: of the network.
        schedule: of the filters' rate.
        decay: of a unit rate: the others' is this over their rate.
        bias_rate: peak for the biases and shifts, for the summed loss.
        head_rate: peak for the last layer, for the summed loss.
        whiten_bias_epochs: the whitening bias' rate is 0 after these.
        batch_size: images a step, which turns a rate for the summed loss into one for the mean.
    """
    (start, _), *_ = schedule.knots

    def plan(variable: Any) -> Plan:
        if len(variable.shape) == 4:
            return Plan(schedule.times(batch_size), 0.0)  # Muon's step does not grow with the gradient
        rate = head_rate if variable.path.endswith("/kernel") else bias_rate
        shape = schedule.times(rate / schedule.peak * batch_size)
        if "whiten" in variable.path:
            shape = PiecewiseLinear([(start, rate * batch_size), (start + whiten_bias_epochs, 0.0)])
        return Plan(shape, decay / rate)

    return [plan(variable) for variable in variables]
