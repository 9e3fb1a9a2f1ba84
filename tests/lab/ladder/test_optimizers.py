"""The optimizers against hand-worked steps and NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import train_eager
from lab.ladder import layers, networks, optimizers, recipes
from lab.ladder.averaging import WeightAverage
from lab.ladder.layers import Role, Style
from lab.ladder.optimizers import EpochRate, Lars, Muon, Nesterov, orthogonalise
from model import Uniform
from schedule import PiecewiseLinear
from train_eager import LossScale


def options(recipe, **changes):
    return SimpleNamespace(**recipes.values(recipe) | {"seed": 0} | changes)


def test_two_steps_by_hand():
    weight = tf.Variable([1.0])
    nesterov = Nesterov(0.1, momentum=0.9)
    nesterov.apply([tf.constant([2.0])], [weight])
    # a = 0.9 * 0 + 2 = 2;  w = 1 - 0.1 (2 + 0.9 * 2) = 0.62
    np.testing.assert_allclose(weight.numpy(), [0.62], rtol=1e-6)
    nesterov.apply([tf.constant([-1.0])], [weight])
    # a = 0.9 * 2 - 1 = 0.8;  w = 0.62 - 0.1 (-1 + 0.9 * 0.8) = 0.648
    np.testing.assert_allclose(weight.numpy(), [0.648], rtol=1e-6)


class Doubling(tf.keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.01 * 2.0 ** tf.cast(step, tf.float32)


def test_the_rate_inside_the_accumulator_is_keras_own_form():
    generator = np.random.default_rng(1)
    gradients = generator.standard_normal((5, 4)).astype(np.float32)
    ours, theirs = tf.Variable(tf.ones(4)), tf.Variable(tf.ones(4))
    mine = Nesterov(Doubling(), momentum=0.9, rate_inside=True)
    keras = tf.keras.optimizers.SGD(Doubling(), momentum=0.9, nesterov=True)
    for gradient in gradients:
        mine.apply([tf.constant(gradient)], [ours])
        keras.apply([tf.constant(gradient)], [theirs])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5)


def test_each_variable_may_have_a_rate_of_its_own():
    first, second = tf.Variable([1.0]), tf.Variable([1.0])
    rates = [
        EpochRate(PiecewiseLinear([(0, 0.0), (1, 1.0)]), 1, 4, 2),
        EpochRate(PiecewiseLinear([(0, 3.0)]), 1, 4, 1),
    ]
    nesterov = Nesterov(rates[0], momentum=0.0, rates=rates)
    nesterov.apply([tf.constant([1.0]), tf.constant([1.0])], [first, second])
    # The first update reads the schedule at 1/4 epoch: 0.25, over 2.
    np.testing.assert_allclose([first.numpy()[0], second.numpy()[0]], [1 - 0.125, 1 - 3.0])


def test_lars_scales_each_filters_rate():
    generator = np.random.default_rng(2)
    start = generator.standard_normal((3, 3, 2, 5))
    gradients = generator.standard_normal((3, 3, 3, 2, 5))
    variable, flat = tf.Variable(start.astype(np.float32)), tf.Variable([2.0])
    lars = Lars(0.1, 0.9, rate_inside=True, is_filter=[True, False], decays=[0.5, 0.5])
    weights, velocity, other, other_velocity = start.copy(), 0.0, 2.0, 0.0
    for gradient in gradients:
        raw, slope = tf.constant(gradient, tf.float32), 1.0
        lars.apply([raw + 0.5 * variable, slope + 0.5 * flat], [variable, flat])
        norms = [np.sqrt(np.square(values).sum((0, 1, 2))) for values in (weights, gradient)]
        rate = 0.1 * norms[0] / (norms[1] + 1e-2)
        move = -rate * (gradient + 0.5 * weights)
        velocity = 0.9 * velocity + move
        weights = weights + move + 0.9 * velocity
        move = -0.1 * (slope + 0.5 * other)
        other_velocity = 0.9 * other_velocity + move
        other = other + move + 0.9 * other_velocity
    np.testing.assert_allclose(variable.numpy(), weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(flat.numpy(), [other], rtol=1e-5)


def test_lars_measures_the_filters_step_before_it_is_accumulated_and_moves_the_rest_as_davidnet():
    """The rate rises, so that inside and outside the accumulator differ; filters' inside, as in torch_backend.py."""
    generator = np.random.default_rng(7)
    start, gradients = generator.standard_normal((1, 1, 2, 3)), generator.standard_normal((4, 1, 1, 2, 3))
    filters, rest = tf.Variable(start.astype(np.float32)), tf.Variable([2.0])
    lars = Lars(Doubling(), 0.9, is_filter=[True, False], decays=[0.0, 0.0], rates=[Doubling(), lambda step: 0.1])
    weights, velocity, other, accumulated = start.copy(), 0.0, 2.0, 0.0
    for step, gradient in enumerate(gradients):
        lars.apply([tf.constant(gradient, tf.float32), tf.constant([1.0])], [filters, rest])
        sizes, slopes = (np.sqrt(np.square(values).sum((0, 1, 2))) for values in (weights, gradient))
        move = -0.01 * 2**step * sizes / (slopes + 1e-2) * gradient
        velocity = 0.9 * velocity + move
        weights = weights + move + 0.9 * velocity
        accumulated = 0.9 * accumulated + 1.0
        other -= 0.1 * (1.0 + 0.9 * accumulated)
    np.testing.assert_allclose(filters.numpy(), weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rest.numpy(), [other], rtol=1e-5)


COEFFICIENTS = {"airbench": (3.4445, -4.7750, 2.0315), "hiverge": (3.4576, -4.7391, 2.0843)}  # their scripts


def newton_schulz(matrix, steps=3, whose="airbench"):
    first, second, third = COEFFICIENTS[whose]
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = first * x + (second * a + third * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5)])
@pytest.mark.parametrize(("jit", "whose"), [(False, "airbench"), (True, "airbench"), (False, "hiverge")])
def test_newton_schulz_is_numpys_in_float64_and_evens_the_singular_values(shape, jit, whose):
    generator = np.random.default_rng(3)
    count = min(shape)
    left, right = (np.linalg.qr(generator.standard_normal((side, count)))[0] for side in shape)
    matrix = left * np.linspace(0.4, 1.0, count) @ right.T  # well conditioned
    run = tf.function(lambda matrix: orthogonalise(matrix, coefficients=whose), jit_compile=jit)
    result = run(tf.constant(matrix, tf.float32)).numpy()
    np.testing.assert_allclose(result, newton_schulz(matrix, whose=whose), atol=2e-5)
    found = np.linalg.svd(result.astype(np.float64), compute_uv=False)
    assert found.min() > 0.65 and found.max() < 1.25
    # The singular vectors stay.
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    core = u.T @ result @ v.T
    np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-4)


def test_muon_renormalises_the_filters_and_moves_them_along_the_orthogonalised_momentum():
    generator = np.random.default_rng(4)
    start = generator.standard_normal((3, 3, 4, 6))
    gradients = generator.standard_normal((3, *start.shape))
    filters, shift = tf.Variable(start.astype(np.float32)), tf.Variable([1.0])
    muon = Muon(0.24, 0.85, is_filter=[True, False], filter_momentum=0.6)
    weights, velocity, other, other_velocity = start.copy(), 0.0, 1.0, 0.0
    for gradient in gradients:
        muon.apply([tf.constant(gradient, tf.float32), tf.constant([0.5])], [filters, shift])
        velocity = 0.6 * velocity + gradient
        direction = (gradient + 0.6 * velocity).transpose(3, 2, 0, 1).reshape(6, -1)  # PyTorch's order
        update = newton_schulz(direction).reshape(6, 4, 3, 3).transpose(2, 3, 1, 0)
        weights = weights * np.sqrt(6) / np.linalg.norm(weights) - 0.24 * update
        other_velocity = 0.85 * other_velocity + 0.5
        other -= 0.24 * (0.5 + 0.85 * other_velocity)
    np.testing.assert_allclose(filters.numpy(), weights, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(shift.numpy(), [other], rtol=1e-5)


def test_filters_are_rescaled_ever_less_often_as_in_hiverges_script():
    def of_script(steps, counted):  # its own arithmetic, in floating point
        last, due = 0, []
        for step in range(1, steps + 1):
            if step - last >= 2 + int(15 * (step / counted)):
                due.append(step)
                last = step
        return due

    expected = of_script(243, 243)
    assert list(np.flatnonzero(optimizers.rescaling_steps(243, 15)) + 1) == expected
    assert expected[:14] == [2, 4, 6, 8, 10, 12, 14, 16, 19, 22, 25, 28, 31, 35]  # by hand: 3 from step 17, 4 from 33
    assert optimizers.rescaling_steps(5, 0).all()
    found, _ = optimizers.make(options("speedrun-lowres"), made(Front, Last, True), 32)
    assert list(np.flatnonzero(found.rescales) + 1) == of_script(284, 272)  # E1: runs on after its decay's end


@pytest.mark.parametrize("jit", [False, True])
def test_muon_as_hiverge_has_it(jit):
    """Filters scaled to their norm in some steps, other coefficients, and a decay that is not in the gradient."""
    generator = np.random.default_rng(5)
    start = generator.standard_normal((3, 3, 4, 6))
    gradients = generator.standard_normal((5, *start.shape))
    filters = tf.Variable(start.astype(np.float32))
    how = {"filter_momentum": 0.655, "filter_decay": 0.5, "coefficients": "hiverge"}
    muon = Muon(Doubling(), 0.825, is_filter=[True], rescales=np.array([False, True, False, False, True]), **how)
    muon.build([filters])
    apply = tf.function(lambda gradient: muon.apply([gradient], [filters]), jit_compile=jit)
    weights, velocity = start.copy(), 0.0
    for step, gradient in enumerate(gradients):
        apply(tf.constant(gradient, tf.float32))
        rate = 0.01 * 2.0**step
        velocity = 0.655 * velocity + gradient
        direction = (gradient + 0.655 * velocity).transpose(3, 2, 0, 1).reshape(6, -1)  # PyTorch's order
        update = newton_schulz(direction, whose="hiverge").reshape(6, 4, 3, 3).transpose(2, 3, 1, 0)
        if step in (1, 4):
            weights *= np.sqrt(6) / np.linalg.norm(weights)
        weights = (weights - rate * update) * (1 - rate * 0.5)
    np.testing.assert_allclose(filters.numpy(), weights, rtol=1e-3, atol=1e-4)
    apply(tf.constant(gradients[0], tf.float32))  # python -m lab pace may take more steps than a run has
    assert np.isfinite(filters.numpy()).all()


# ---- which weight learns how -------------------------------------------------------------------------------


class Front(layers.Whiten):
    """A whitening that goes by another name."""


class Last(layers.Head):
    """A head that goes by another name."""


class Net(tf.keras.Model):
    """Each kind of weight once, in layers held by an attribute or in a list, of whatever names."""

    def __init__(self, front, last, in_list):
        super().__init__()
        inner = [layers.Conv(4, Uniform(0, 0)), layers.BatchNorm(Style(), Uniform(0, 0))]
        self.kernel_of_shift = front(2, 5e-4, 10, both_signs=True)
        if in_list:
            self.scale = inner
        else:
            self.first, self.second = inner
        self.inner = lambda: inner  # a function: Keras does not look into it
        self.whiten_bias = last(10, Uniform(0, 1), bias=True)

    def call(self, images, training=False):
        x = self.kernel_of_shift(images)
        for layer in self.inner():
            x = layer(x)
        return self.whiten_bias(tf.reduce_max(x, [1, 2]))


def made(*arguments):
    network = Net(*arguments)
    network(tf.zeros([1, 8, 8, 3]))
    return network


@pytest.mark.parametrize("arguments", [(layers.Whiten, layers.Head, False), (Front, Last, True)])
def test_a_weights_role_is_its_layers_and_no_matter_of_names(arguments):
    network = made(*arguments)
    inner = network.inner()
    expected = [
        (network.kernel_of_shift.bias, Role.WHITENING_BIAS), (inner[0].kernel, Role.FILTER),
        (inner[1].scale, Role.SCALE), (inner[1].shift, Role.SHIFT), (network.whiten_bias.kernel, Role.HEAD),
        (network.whiten_bias.bias, Role.SHIFT),
    ]  # fmt: skip
    expected = {id(weight): role for weight, role in expected}
    assert layers.roles(network) == [expected[id(weight)] for weight in network.trainable_variables]
    assert len(expected) == len(network.trainable_variables)


def test_keras_own_layers_have_roles_and_an_unknown_weight_is_refused():
    network = tf.keras.Sequential([tf.keras.layers.Conv2D(2, 3), tf.keras.layers.Flatten(), tf.keras.layers.Dense(2)])
    network(tf.zeros([1, 4, 4, 3]))
    assert layers.roles(network) == [Role.FILTER, Role.SHIFT, Role.HEAD, Role.SHIFT]
    network.add(tf.keras.layers.PReLU())
    network(tf.zeros([1, 4, 4, 3]))
    with pytest.raises(TypeError, match=r"alpha is not known; say it in _roles_in of lab/ladder/layers\.py"):
        layers.roles(network)


def test_the_speedruns_rates_at_every_step_are_the_originals():
    speedrun, network = options("speedrun"), made(Front, Last, True)
    found, decays = optimizers.make(speedrun, network, 25)
    steps, rates = np.arange(200), dict(zip(layers.roles(network), found.rates, strict=True))
    expected = {
        Role.WHITENING_BIAS: 0.053 * np.maximum(0, 1 - steps / 75), Role.FILTER: 0.24 * (1 - steps / 200),
        Role.SHIFT: 0.053 * (1 - steps / 200), Role.SCALE: 0.053 * (1 - steps / 200),
        Role.HEAD: 0.67 * (1 - steps / 200),
    }  # fmt: skip
    for role, values in expected.items():
        np.testing.assert_allclose([rates[role](step) for step in steps], values, rtol=1e-4, atol=1e-6)
    # In units of the summed loss the decay is 2e-6 * 2000 over the rate, and the filters have none.
    share = {Role.FILTER: 0, Role.HEAD: 0.004 / 0.67}
    np.testing.assert_allclose(decays, [share.get(role, 0.004 / 0.053) for role in layers.roles(network)])
    is_filter = [role is Role.FILTER for role in layers.roles(network)]
    assert isinstance(found, Muon) and list(found.is_filter) == is_filter and found.filter_momentum == 0.6


def test_hiverges_rates_at_every_step_are_the_originals():
    hiverge, network = options("speedrun-hiverge"), made(Front, Last, True)
    found, decays = optimizers.make(hiverge, network, 32)
    steps, rates = np.arange(243), dict(zip(layers.roles(network), found.rates, strict=True))
    falling = 1 - steps / 243
    expected = {
        Role.WHITENING_BIAS: 0.0573 * np.maximum(0, 1 - steps / 7), Role.FILTER: 0.205 * falling,
        Role.SHIFT: 0.0573 * falling, Role.HEAD: 0.5415 * falling,
    }  # fmt: skip
    for role, values in expected.items():
        np.testing.assert_allclose([rates[role](step) for step in steps], values, rtol=1e-4, atol=1e-6)
    share = {Role.FILTER: 0, Role.HEAD: 1536 * 1.0418e-6 / 0.5415}
    rest = 1536 * 1.0418e-6 / 0.0573
    np.testing.assert_allclose(decays, [share.get(role, rest) for role in layers.roles(network)])
    assert (found.filter_momentum, found.coefficients) == (0.655, "hiverge")
    assert found.filter_decay == pytest.approx(1536 * 1.0418e-6)
    np.testing.assert_array_equal(found.rescales, optimizers.rescaling_steps(243, 15))


@pytest.mark.parametrize(
    ("recipe", "epochs", "peak", "decay", "rise", "last", "frozen"),
    [("speedrun95", 15, 10.0, 0.0153, 0.23, 0.07, 3), ("speedrun96", 45, 9.0, 0.012, 0.1, 0.0, 99)],
)
def test_airbench_95s_and_96s_rates_at_every_step_are_the_originals(recipe, epochs, peak, decay, rise, last, frozen):
    """As the scripts compute them: for the summed loss, with the decay over each group's rate."""
    network, total = made(Front, Last, True), 48 * epochs
    found, decays = optimizers.make(options(recipe), network, 48)
    steps, warmup = np.arange(total), int(rise * total)
    shape = np.where(steps < warmup, 0.2 + 0.8 * steps / warmup, 1 + (last - 1) * (steps - warmup) / (total - warmup))
    kilostep = 1024 * (1 + 1 / (1 - 0.85))
    rate, share = peak / kilostep, decay * 1024 / kilostep
    of_roles = dict(zip(layers.roles(network), zip(found.rates, decays, strict=True), strict=True))
    for role, (rates, found_decay) in of_roles.items():
        factor = 64 if role is Role.SHIFT else 1
        expected = factor * rate * shape
        if role is Role.WHITENING_BIAS:
            expected = np.where(steps < 48 * frozen, expected, 0)
        np.testing.assert_allclose(rates(np.arange(total)), expected, rtol=1e-4, atol=1e-9)
        assert found_decay == pytest.approx(share / rate / factor)
    assert type(found) is Nesterov and not found.rate_inside and found.momentum == 0.85
    due = np.flatnonzero(found.average.replaces.numpy())
    np.testing.assert_array_equal(due, np.arange(5, total + 1, 5))
    np.testing.assert_allclose(found.average.shares.numpy()[due], 0.95**5 * (due / total) ** 3, rtol=1e-5)


def test_a_whitenings_bias_is_frozen_beside_davidnets_own_update():
    network = made(Front, Last, True)
    found, _ = optimizers.make(options("davidnet", network="speednet", whiten_bias_epochs=2.0), network, 10)
    for role, rate in zip(layers.roles(network), found.rates, strict=True):
        assert float(rate(18)) == pytest.approx(0.4 * 1.9 / 5 / 512)
        assert float(rate(20)) == (0 if role is Role.WHITENING_BIAS else pytest.approx(0.4 * 2.1 / 5 / 512)), role
    assert Role.WHITENING_BIAS in layers.roles(network)
    never = optimizers.make(options("davidnet", network="speednet", whiten_bias_epochs=0.0), network, 10)[0]
    assert type(never) is train_eager.Nesterov


def test_post_8_moves_the_shifts_64_times_as_fast():
    network = made(Front, Last, False)
    found, decays = optimizers.make(options("tricks-frozen"), network, 97)
    plain = np.interp(11 / 97, [0, 3.4, 17], [0, 0.6, 0]) / 512
    quick = [role is Role.SHIFT for role in layers.roles(network)]
    np.testing.assert_allclose([rate(10) for rate in found.rates], plain * np.where(quick, 64, 1), rtol=1e-5)
    np.testing.assert_allclose(decays, 512 * 5e-4 / np.where(quick, 64, 1))
    assert found.rate_inside and type(found) is Nesterov


def test_lars_knows_the_filters_and_the_decays():
    network = made(Front, Last, False)
    found, decays = optimizers.make(options("lars", whiten_bias_epochs=0.0), network, 97)
    assert isinstance(found, Lars) and list(found.decays) == decays == [512 * 5e-4] * 6
    assert list(found.is_filter) == [role is Role.FILTER for role in layers.roles(network)]
    # The filters have a peak of their own, the rest DavidNet's.
    peaks = np.where(found.is_filter, 3.24, 0.4)
    for step in (0, 200, 5 * 97 - 1, 1500):
        shape = np.interp((step + 1) / 97, [0, 5, 24], [0, 1, 0]) / 512
        np.testing.assert_allclose([rate(step) for rate in found.rates], peaks * shape, rtol=1e-5)
    assert not found.rate_inside
    # A filter turns as far a step as one of SGD's does in balance, where eta^2 g^2 = 2 eta alpha (1 - rho) w^2.
    eta, alpha = 0.4 / 512, 512 * 5e-4
    assert np.sqrt(2 * eta * alpha * (1 - 0.9)) == pytest.approx(3.24 / 512, rel=1e-3)


def test_rates_of_zero_divide_by_nothing():
    network = made(Front, Last, False)
    found, decays = optimizers.make(options("speedrun", knots="", learning_rate=0.0, bias_rate=0.0), network, 5)
    assert all(float(rate(0)) == 0 for rate in found.rates) and np.isfinite(decays).all()


# ---- the moving average in the optimizer -------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_the_average_follows_each_update_that_is_made(jit, half):
    """In float16's loss scaling too, where a step that overflows counts neither for the weights nor for the average."""
    weight = tf.keras.Variable([1.0])
    average = WeightAverage([weight], keeps=0.5, every=2)
    optimizer = Nesterov(0.1, 0.0, average=average)
    optimizer = LossScale(optimizer, initial_scale=8.0) if half else optimizer
    optimizer.build([weight])
    step = tf.function(lambda g: optimizer.apply([optimizer.scale_loss(g)], [weight]), jit_compile=jit)
    gradients = [1.0, 2.0, *([np.inf] if half else []), -4.0, 1.0]
    for gradient in gradients:
        step(tf.constant([gradient], tf.float32))
    # Weights after the sound steps: 0.9, 0.7, 1.1, 1.0; the average moves after the second and the fourth.
    after_two = 0.25 * 1.0 + 0.75 * 0.7
    np.testing.assert_allclose(weight.numpy(), [1.0], rtol=1e-6)
    np.testing.assert_allclose(average.averages[0].numpy(), [0.25 * after_two + 0.75 * 1.0], rtol=1e-6)
    assert optimizers.average_of(optimizer) is average
    assert any(v is average.averages[0] for v in optimizer.variables)  # who saves the state saves it


def test_it_starts_at_the_network_and_holds_all_that_evaluation_reads():
    network = networks.make(options("davidnet", width=4), 10, fast=False)
    found, _ = optimizers.make(options("davidnet", ema_every=5), network, 10)
    names = {id(weight): name for name, weight in networks.evaluated_variables(network).items()}
    assert sorted(names[id(weight)] for weight in found.average.followed) == sorted(names.values())
    for average, weight in zip(found.average.averages, found.average.followed, strict=True):
        np.testing.assert_array_equal(average, weight)
    assert optimizers.average_of(optimizers.make(options("davidnet"), network, 10)[0]) is None
    assert optimizers.average_of(optimizers.make(options("lars"), network, 10)[0]) is None


def test_lookahead_lasts_the_run_or_its_last_epochs_and_evaluation_is_on_the_weights():
    network = networks.make(options("davidnet", width=4), 10, fast=False)
    every = {"lookahead_every": 4, "lookahead_keeps": 0.7}
    whole, last = (
        optimizers.make(options("davidnet", epochs=9, **every, **more), network, 32)[0]
        for more in ({"lookahead_power": 3.0}, {"lookahead_epochs": 0.625})
    )
    due = np.flatnonzero(whole.average.replaces.numpy())
    np.testing.assert_array_equal(due, np.arange(4, 289, 4))
    np.testing.assert_allclose(whole.average.shares.numpy()[due], 0.7 * (due / 288) ** 3, rtol=1e-5)
    np.testing.assert_array_equal(np.flatnonzero(last.average.replaces.numpy()), [272, 276, 280, 284, 288])
    shares = last.average.shares.numpy()
    np.testing.assert_allclose(shares[[267, 268, 269, 272, 273, 288]], [1, 0, 1, 0.7, 1, 0.7], rtol=1e-6)
    assert {id(v) for v in whole.average.followed} == {id(v) for v in network.variables}
    assert all(any(v is average for v in whole.variables) for average in whole.average.averages)
    assert optimizers.average_of(whole) is None


def test_davidnets_own_update_is_the_cores():
    network = networks.make(options("davidnet", width=4), 10, fast=False)
    found, decays = optimizers.make(options("davidnet"), network, 10)
    assert type(found) is train_eager.Nesterov and decays == [512 * 5e-4] * 25
    knots = "0,0 5,0.4 24,0"  # the same, as the lab writes it
    mine, others = optimizers.make(options("davidnet", knots=knots), network, 10)
    assert type(mine) is Nesterov and others == decays
    for step in (0, 7, 49, 50, 51, 239):
        expected = np.interp((step + 1) / 10, [0, 5, 24], [0, 0.4, 0]) / 512
        np.testing.assert_allclose([rate(step) for rate in mine.rates], expected, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(found._learning_rate(step), expected, rtol=1e-6, atol=1e-12)
