"""Every rung: its size and shapes; that each network and each optimizer learns; what a recipe says of itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from lab import assemble
from lab.base.errors import UserError
from lab.ladder import describe, networks, recipes


def conv(inputs, outputs, size=3):
    return size * size * inputs * outputs


def conv_bn(inputs, outputs, size=3):
    return conv(inputs, outputs, size) + 2 * outputs


def pre_activation(inputs, outputs, halved):
    """Two batch norms, two convolutions, and a 1x1 where the shape changes."""
    shortcut = conv(inputs, outputs, 1) if halved else 0
    return 2 * inputs + conv(inputs, outputs) + 2 * outputs + conv(outputs, outputs) + shortcut


DAWN = (
    conv(3, 64) + 2 * pre_activation(64, 64, False)
    + pre_activation(64, 128, True) + pre_activation(128, 128, False)
    + pre_activation(128, 256, True) + pre_activation(256, 256, False)
    + pre_activation(256, 256, True) + pre_activation(256, 256, False)
    + 512 * 10 + 10
)  # fmt: skip
SHORTCUTS = (
    conv(3, 64) + 2 * 2 * 64 + 2 * 64 + conv(64, 128, 1) + 2 * 128 + 2 * 128 + conv(128, 256, 1)
    + 2 * 256 + 2 * 256 + conv(256, 256, 1) + 2 * 256 + 512 * 10 + 10
)  # fmt: skip


def backbone(size, last):
    widths = conv_bn(3, 64) + conv_bn(64, 128, size) + conv_bn(128, 256, size) + conv_bn(256, last, size)
    return widths + (512 * 10 + 10)  # 512 features either way: 2 * 256 from both pools, or 512 from one


PLAIN = conv_bn(3, 64) + conv_bn(64, 128) + conv_bn(128, 256) + conv_bn(256, 512) + 5120
WIDE = conv_bn(3, 128) + conv_bn(128, 256) + conv_bn(256, 512) + conv_bn(512, 1024) + 10240
EXTRA = PLAIN + conv_bn(128, 128) + conv_bn(256, 256) + conv_bn(512, 512)
DAVIDNET = 6_573_120  # published
SCALES = 64 + 3 * 128 + 256 + 3 * 512
WHITENED = DAVIDNET - SCALES - conv(3, 64) + 27 * 64
SPEEDNET = (
    24 + conv(24, 64) + conv(64, 64) + conv(64, 256) + 3 * conv(256, 256) + 2 * 64 + 4 * 256 + 2560
)  # fmt: skip
PARAMETERS = {
    "post1-baseline": DAWN, "post2-batch512": DAWN, "post3-fp32-bn": DAWN, "post3-cutout": DAWN,
    "post3-batch768": DAWN, "post4-backbone": SHORTCUTS, "post4-no-repeat": backbone(1, 256),
    "post4-conv3": backbone(3, 256), "post4-maxpool": backbone(3, 256), "post4-global-pool": backbone(3, 512),
    "post4-bn-scale1": PLAIN, "post4-wide": WIDE, "post4-extra": EXTRA, "post4-davidnet20": DAVIDNET,
    "davidnet": DAVIDNET, "lars": DAVIDNET, "tricks-gpu-data": DAVIDNET, "tricks-pool-first": DAVIDNET,
    "tricks-smoothing": DAVIDNET, "tricks-celu": DAVIDNET, "tricks-ghost": DAVIDNET,
    "tricks-frozen": DAVIDNET - SCALES, "tricks-whiten": WHITENED, "tricks-ema": WHITENED,
    "bag-of-tricks": WHITENED, "eager-tutorial": DAVIDNET, "fenwicks": DAVIDNET, "speedrun": SPEEDNET,
}  # fmt: skip


def test_every_recipe_is_counted():
    assert set(PARAMETERS) == set(recipes.RECIPES)


def network_of(name):
    return networks.make(SimpleNamespace(**recipes.values(name) | {"seed": 0}), 10, fast=False)


# Recipes whose networks have different layers; the parameters of the others follow from them by PARAMETERS.
DIFFERENT = {
    tuple(recipes.values(name)[key] for key in ("network", "width", "whiten", "frozen_scales")): name
    for name in PARAMETERS
}


@pytest.mark.parametrize("name", DIFFERENT.values())
def test_its_network_has_the_parameters_and_shapes_that_it_should(name):
    network = network_of(name)
    assert networks.parameters(network) == PARAMETERS[name]
    rows = describe.trace(network)
    assert sum(row.parameters for row in rows) == PARAMETERS[name]  # the trace misses no layer
    assert rows[-1].kind == "Head" and rows[-1].shape == (10,)
    sides = [row.shape[0] for row in rows if row.kind == "Conv"]
    assert sides[0] == (31 if name == "speedrun" else 32) and sides[-1] >= 3


def test_recipes_of_one_network_have_the_parameters_of_one():
    for name in PARAMETERS:
        same = DIFFERENT[tuple(recipes.values(name)[key] for key in ("network", "width", "whiten", "frozen_scales"))]
        assert PARAMETERS[name] == PARAMETERS[same]


LEARNS = (
    "post1-baseline", "post4-backbone", "post4-no-repeat", "post4-conv3", "post4-maxpool", "post4-global-pool",
    "post4-bn-scale1", "post4-extra", "davidnet", "lars", "tricks-frozen", "bag-of-tricks", "speedrun",
)  # fmt: skip


def test_every_network_and_optimizer_is_among_those_that_learn():
    values = [recipes.values(name) for name in LEARNS]
    assert {one["network"] for one in values} == set(networks.NETWORKS)
    assert {one["optimizer"] for one in values} == {"nesterov", "lars", "muon"}


@pytest.mark.parametrize(
    "name", [name if name in ("lars", "speedrun") else pytest.param(name, marks=pytest.mark.long) for name in LEARNS]
)
def test_it_learns_within_two_steps(name, small_data):
    """A rate that is steady: the loss before the third step is below the first's."""
    rate = {"muon": 0.1, "lars": 0.5, "nesterov": 0.02}[recipes.values(name)["optimizer"]]
    changes = {"recipe": name, "data": small_data, "device": "cpu", "jit": False, "batch_size": 32, "width": 8}
    changes |= {"knots": f"0,{rate}", "pipeline": "device"}
    changes |= {"bias_rate": 0.01, "head_rate": 0.01} if name == "speedrun" else {}
    training = assemble.make(assemble.configure(changes))
    rows = training.batches.open(1)
    batch, losses = next(rows), []
    for _ in range(3):
        training.train_steps(iter([batch]), tf.constant(1))
        losses.append(training.fetch()[0] / 32)
    assert np.isfinite(losses).all() and losses[2] < losses[0], losses
    assert abs(losses[0] - np.log(4)) < 2.5  # starts near chance


def test_each_states_only_what_it_changes():
    for name, recipe in recipes.RECIPES.items():
        if not recipe.below:
            continue
        below = recipes.values(recipe.below)
        unchanged = [key for key, value in recipe.changes.items() if below.get(key) == value]
        assert not unchanged, f"{name} repeats {unchanged}"
        assert recipe.about and recipe.source
    assert [name for name, recipe in recipes.RECIPES.items() if not recipe.below] == ["davidnet"]


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean speedrun"):
        recipes.values("speedrnu")
