"""Nesterov momentum in its two forms, LARS and Muon, as Keras optimizers; which weight learns at which rate."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import train_eager
from lab.base.errors import UserError
from lab.ladder import networks, schedules
from lab.ladder.averaging import Lookahead, WeightAverage
from lab.ladder.layers import Role, roles
from lab.ladder.schedules import Knots
from lab.options import run_length, run_steps
from train_eager import EpochRate


class Nesterov(train_eager.Nesterov):
    """The core's, with a rate for each weight; or, with `rate_inside`, in the form of Keras' SGD(nesterov=True) and of
    cifar10-fast since October 2019:

        a <- momentum a + rate g
        w <- w - (rate g + momentum a)

    They are the same only while the rate is constant: as it rises, the latter lags some nine steps behind (at
    momentum 0.9). DavidNet's published results were made with the core's, post 8's with the latter.

    Args:
        learning_rate: a float, or a Keras LearningRateSchedule of the number of updates made so far.
        momentum: from 0 to below 1.
        rate_inside: see above.
        rates: a LearningRateSchedule for each variable, in the order of `build`, in place of `learning_rate`.
        average: brought up to date after each update; its state is part of the optimizer's.
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: float = 0.9,
        *,
        rate_inside: bool = False,
        rates: Sequence[Any] = (),
        average: WeightAverage | Lookahead | None = None,
    ) -> None:
        super().__init__(learning_rate, momentum)
        self.rate_inside, self.rates, self.average = rate_inside, tuple(rates), average

    @property
    def variables(self) -> list[Any]:
        """The state: what Keras and the accumulators hold, and the averages."""
        return [*super().variables, *(self.average.averages if self.average else [])]

    def apply(self, grads: Sequence[tf.Tensor], trainable_variables: Any = None) -> None:
        # Here, and not after it: a step that float16's loss scaling skips does not come to this line.
        super().apply(grads, trainable_variables)
        if self.average:
            self.average.update(self.iterations)

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        index = self._get_variable_index(variable)
        rate = self.rates[index](self.iterations) if self.rates else learning_rate
        self.move(index, gradient, variable, rate)

    def move(self, index: int, gradient: tf.Tensor, variable: Any, rate: tf.Tensor) -> None:
        """The formula, for the variable of that index; `rate` may be of a shape that broadcasts to the gradient's."""
        if self.rate_inside:
            self.move_inside(index, gradient, variable, rate)
        else:
            super().update_step(gradient, variable, rate)

    def move_inside(self, index: int, gradient: tf.Tensor, variable: Any, rate: tf.Tensor) -> None:
        """With the rate inside the accumulator."""
        accumulator = self.accumulators[index]
        moved = self.momentum * tf.convert_to_tensor(accumulator) + rate * gradient
        self.assign(accumulator, moved)
        self.assign_sub(variable, rate * gradient + self.momentum * moved)


class Lars(Nesterov):
    """Layer-wise adaptive rates (Y. You et al., arXiv 1708.03888) for the filters as in Page's post 6, Nesterov for the
    rest.

    The rate of each filter of a convolution is multiplied by |w| / (|g| + 1e-2), g without the decay. It stands inside
    the accumulator, which then sums steps that each were measured in the norm of their time.

    Args:
        is_filter: for each variable, whether it is a convolution's filters, (height, width, inputs, filters).
        decays: for each variable, the number by which the variable was multiplied and added to its gradient.
        others: as Nesterov's.
    """

    EPSILON = 1e-2  # cifar10-fast, torch_backend.py

    def __init__(
        self,
        learning_rate: Any,
        momentum: float = 0.9,
        *,
        is_filter: Sequence[bool],
        decays: Sequence[float],
        **others: Any,
    ) -> None:
        super().__init__(learning_rate, momentum, **others)
        self.is_filter, self.decays = tuple(is_filter), tuple(decays)

    def move(self, index: int, gradient: tf.Tensor, variable: Any, rate: tf.Tensor) -> None:
        if not self.is_filter[index]:
            return super().move(index, gradient, variable, rate)
        weights = tf.convert_to_tensor(variable)
        raw = gradient - self.decays[index] * weights
        size, slope = (tf.sqrt(tf.reduce_sum(tf.square(values), [0, 1, 2])) for values in (weights, raw))
        self.move_inside(index, gradient, variable, rate * size / (slope + self.EPSILON))


NEWTON_SCHULZ = {  # a, b and c of the iteration below
    "airbench": (3.4445, -4.7750, 2.0315),  # K. Jordan, cifar10-airbench, airbench94_muon.py
    "hiverge": (3.4576, -4.7391, 2.0843),  # hiverge/cifar10-speedrun, cifar10_speedrun.py
}


def orthogonalise(matrix: tf.Tensor, steps: int = 3, coefficients: str = "airbench") -> tf.Tensor:
    """A Newton-Schulz iteration that brings a matrix' singular values near 1 and keeps its singular vectors.

    X <- X / |X|, then `steps` times X <- a X + (b A + c A A) X with A = X X'. The coefficients are chosen for
    speed: three steps leave singular values between about 0.7 and 1.2 where they began well conditioned
    (K. Jordan, cifar10-airbench; "Muon", 2024). There the steps are in bfloat16, for a GPU's speed; here in float32,
    whatever the network computes in, which is nearer to the formula and costs a CPU little.

    Args:
        matrix: (m, n) float32.
        steps: from 0.
        coefficients: a key of NEWTON_SCHULZ.

    Returns:
        (m, n) float32.
    """
    a, b, c = NEWTON_SCHULZ[coefficients]
    tall = matrix.shape[0] > matrix.shape[1]
    x = tf.transpose(matrix) if tall else matrix
    x = x / (tf.norm(x) + 1e-7)
    for _ in range(steps):
        square = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * square + c * tf.matmul(square, square), x)
    return tf.transpose(x) if tall else x


def rescaling_steps(steps: int, growth: float) -> NDArray[np.bool_]:
    """In which of a run's `steps` Muon scales the filters to their norm: bool (steps,).

    Without `growth` in all. With it in those that follow the last such one by 2 + int(growth k / steps), k the number
    of the step from 1: seldom where the rate is low and the norm hardly drifts (hiverge/cifar10-speedrun).
    """
    due, last = np.full(steps, growth == 0), 0
    for step in range(1, steps + 1) if growth else ():
        if step - last >= 2 + int(growth * step / steps):
            due[step - 1], last = True, step
    return due


class Muon(Nesterov):
    """Muon for the filters of convolutions, Nesterov for the rest.

    A filter bank (kh, kw, C, K) is first scaled to the norm sqrt(K); then it moves by `rate` times the
    orthogonalised K x (C kh kw) matrix of g + filter_momentum a, where a <- filter_momentum a + g; then it shrinks by
    `rate` times `filter_decay`.

    Args:
        is_filter: as for Lars.
        filter_momentum: from 0 to below 1.
        filter_decay: from 0; apart from the gradient, whose size the orthogonalisation forgets.
        coefficients: of the orthogonalisation, a key of NEWTON_SCHULZ.
        rescales: in which steps the bank is scaled, see rescaling_steps; None: in all.
        others: as Nesterov's.
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: float,
        *,
        is_filter: Sequence[bool],
        filter_momentum: float,
        filter_decay: float = 0.0,
        coefficients: str = "airbench",
        rescales: NDArray[np.bool_] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(learning_rate, momentum, **others)
        self.is_filter, self.filter_momentum, self.filter_decay = tuple(is_filter), filter_momentum, filter_decay
        self.coefficients, self.rescales = coefficients, rescales

    def move(self, index: int, gradient: tf.Tensor, variable: Any, rate: tf.Tensor) -> None:
        if not self.is_filter[index]:
            return super().move(index, gradient, variable, rate)
        accumulator, filters = self.accumulators[index], variable.shape[-1]
        moved = self.filter_momentum * tf.convert_to_tensor(accumulator) + gradient
        self.assign(accumulator, moved)
        direction = gradient + self.filter_momentum * moved
        flat = tf.transpose(tf.reshape(direction, [-1, filters]))  # (K, kh kw C)
        update = tf.reshape(tf.transpose(orthogonalise(flat, coefficients=self.coefficients)), variable.shape)
        weights = tf.convert_to_tensor(variable)
        factor = filters**0.5 / tf.norm(weights)
        if self.rescales is not None:
            step = tf.minimum(tf.cast(self.iterations, tf.int32), len(self.rescales) - 1)  # who times steps takes more
            factor = tf.where(tf.gather(tf.constant(self.rescales), step), factor, 1.0)
        after = weights * factor - rate * update
        self.assign(variable, after * (1.0 - rate * self.filter_decay) if self.filter_decay else after)


# ---- which weight learns how -------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How one weight learns: its rate as a function of the epoch, and its decay, both for the mean loss."""

    rate: Knots
    decay: float


def plans(options: Any, of_weights: Sequence[Role]) -> list[Plan]:
    """How weights of these roles learn under these hyperparameters. Raises UserError if a rate would be infinite, or
    knots would fall together by rounding."""
    plan = _speedruns_plan if options.optimizer == "muon" else _davidnets_plan
    try:
        return [plan(options, schedules.of(vars(options)), role) for role in of_weights]
    except ValueError as error:
        raise UserError(f"{error}: --learning-rate or --whiten-bias-epochs is too small") from None


def _davidnets_plan(options: Any, schedule: Knots, role: Role) -> Plan:
    """DavidNet's; post 8: `bias_factor` times the rate, and the decay divided by it, for shifts; post 6: the filters'
    schedule in the same shape with a peak of their own; airbench95: a whitening's bias that is frozen after a while."""
    if options.optimizer == "lars" and role is Role.FILTER:
        return Plan(schedule.times(options.filter_rate / (schedule.peak or 1.0)), options.weight_decay)
    if role is Role.WHITENING_BIAS and options.whiten_bias_epochs:
        schedule = schedule.until(options.whiten_bias_epochs)
    factor = options.bias_factor if role is Role.SHIFT else 1.0
    return Plan(schedule.times(factor), options.weight_decay / factor)


def _speedruns_plan(options: Any, schedule: Knots, role: Role) -> Plan:
    """airbench94_muon's: the schedule for the filters, without decay; its shape with other peaks for the rest.

    Those peaks are for the summed loss; the batch size turns them into rates for the mean. `weight_decay` is that of
    a unit rate: a weight's is this over its rate.
    """
    if role is Role.FILTER:
        return Plan(schedule.times(options.batch_size), 0.0)  # Muon's step does not grow with the gradient
    rate = options.head_rate if role is Role.HEAD else options.bias_rate
    shape = schedule.times(rate / (schedule.peak or 1.0) * options.batch_size)
    if role is Role.WHITENING_BIAS and options.whiten_bias_epochs:
        start = schedule.knots[0][0]
        shape = Knots([(start, rate * options.batch_size), (start + options.whiten_bias_epochs, 0.0)])
    return Plan(shape, options.weight_decay / rate if rate else 0.0)


def make(options: Any, network: tf.keras.Model, steps_per_epoch: int) -> tuple[Any, list[float]]:
    """What updates the weights, and each weight's decay, both for the gradient of the summed loss.

    Args:
        options: with the attributes of lab.options.Ladder and epochs, batch_size, learning_rate, warmup_epochs,
            momentum, weight_decay.
        network: with its variables made; call it in the strategy's scope.
    """
    plain = options.optimizer == "nesterov" and not options.rate_inside and options.bias_factor == 1
    plain = plain and not options.knots and options.last_epoch == 1
    plain = plain and not (options.whiten_bias_epochs and Role.WHITENING_BIAS in roles(network))
    if plain and not options.ema_every and not options.lookahead_every:
        return train_eager.make_optimizer(options, network, steps_per_epoch)  # what stands there is what trains
    of_weights = roles(network)
    planned = plans(options, of_weights)
    curves = {plan.rate.knots: plan.rate for plan in planned}  # a table for each, not for each weight
    tables = {
        knots: EpochRate(curve, options.epochs, steps_per_epoch, options.batch_size) for knots, curve in curves.items()
    }
    decays = [plan.decay * options.batch_size for plan in planned]
    average = _average(options, networks.averaged_variables(network), steps_per_epoch)
    rates = [tables[plan.rate.knots] for plan in planned]
    common: dict[str, Any] = {"rate_inside": options.rate_inside, "rates": rates, "average": average}
    filters = [role is Role.FILTER for role in of_weights]
    if options.optimizer == "lars":
        return Lars(rates[0], options.momentum, is_filter=filters, decays=decays, **common), decays
    if options.optimizer == "muon":
        common |= {name: getattr(options, name) for name in ("filter_momentum", "filter_decay")}
        common["coefficients"] = options.newton_schulz
        if options.rescale_growth:
            steps = run_steps(run_length(options.epochs, options.last_epoch), steps_per_epoch)
            common["rescales"] = rescaling_steps(steps, options.rescale_growth)
        return Muon(rates[0], options.momentum, is_filter=filters, **common), decays
    return Nesterov(rates[0], options.momentum, **common), decays


def _average(options: Any, followed: Sequence[Any], steps_per_epoch: int) -> WeightAverage | Lookahead | None:
    """The moving average that these hyperparameters ask for, if any."""
    if options.ema_every:
        return WeightAverage(followed, options.ema_keeps, options.ema_every)
    if not options.lookahead_every:
        return None
    steps = run_steps(run_length(options.epochs, options.last_epoch), steps_per_epoch)
    last = options.lookahead_epochs or options.epochs
    return Lookahead(
        followed,
        steps,
        every=options.lookahead_every,
        keeps=options.lookahead_keeps,
        power=options.lookahead_power,
        start=max(0, steps - round(last * steps_per_epoch)),
    )


def average_of(optimizer: tf.keras.optimizers.Optimizer) -> WeightAverage | None:
    """The moving average on which a network is evaluated, of an optimizer of `make`, with float16's loss scaling around
    it or not."""
    average = getattr(getattr(optimizer, "inner_optimizer", optimizer), "average", None)
    return average if isinstance(average, WeightAverage) else None
