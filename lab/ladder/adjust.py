"""Optimizers whose rates, momentum and decays are variables, so that a compiled step serves many of their values."""

from typing import Any

import tensorflow as tf

from lab.ladder import optimizers

# Hyperparameters that reach the step through these variables alone.
NAMES = (
    "learning_rate",
    "warmup_epochs",
    "knots",
    "momentum",
    "weight_decay",
    "filter_rate",
    "filter_momentum",
    "bias_rate",
    "head_rate",
)


def make(options: Any, network: tf.keras.Model, steps_per_epoch: int) -> tuple[Any, list[Any]]:
    """As optimizers.make, with variables in place of numbers: see `adjust`."""
    optimizer, decays = optimizers.make(options, network, steps_per_epoch)
    held = {id(table): tf.Variable(table.rates, trainable=False) for table in _tables(optimizer)}
    for table in _tables(optimizer):
        table.rates = held[id(table)]
    for name in _momenta(optimizer):
        setattr(optimizer, name, tf.Variable(getattr(optimizer, name), trainable=False))
    variables = [tf.Variable(decay, trainable=False, dtype=tf.float32) for decay in decays]
    if hasattr(optimizer, "decays"):  # LARS takes them out of the gradient again
        optimizer.decays = tuple(variables)
    return optimizer, variables


def adjust(training: Any, options: Any) -> bool:
    """Gives a training whose optimizer `make` has made the rates, momentum and decays of these hyperparameters.

    Returns whether it could: not where weights that shared a table of rates are to have different ones, or another
    number of updates. Then nothing is changed.
    """
    optimizer = getattr(training.optimizer, "inner_optimizer", training.optimizer)
    with training.strategy.scope():
        fresh, decays = optimizers.make(options, training.network, training.steps_per_epoch)
    tables, others = _tables(optimizer), _tables(fresh)
    pairs = list(zip(tables, others, strict=False))
    wanted = {id(old): new for old, new in pairs}
    alike = all(wanted[id(old)] is new and old.rates.shape == new.rates.shape for old, new in pairs)
    if not alike or len(tables) != len(others) or training.proxy:  # whose rates are no variables
        return False
    for old, new in pairs:
        old.rates.assign(new.rates)
    for name in _momenta(optimizer):
        getattr(optimizer, name).assign(getattr(fresh, name))
    for old, new in zip(training.decays, decays, strict=True):
        old.assign(new)
    return True


def _tables(optimizer: Any) -> list[Any]:
    """The EpochRates: the optimizer's own, and each weight's if it has them."""
    return [optimizer._learning_rate, *getattr(optimizer, "rates", ())]


def _momenta(optimizer: Any) -> list[str]:
    return [name for name in ("momentum", "filter_momentum") if hasattr(optimizer, name)]
