"""Every rung: its size and shapes; that each network and each optimizer learns; what a recipe says of itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from lab import assemble
from lab.base.errors import UserError
from lab.ladder import describe, networks, recipes
from lab.machine.sides import of_epoch


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
SPEEDNET95 = (
    24 + conv(24, 128) + conv(128, 128) + conv(128, 384) + 3 * conv(384, 384) + 2 * 128 + 4 * 384 + 3840
)  # fmt: skip
SPEEDNET96 = (
    24 + conv(24, 128) + 2 * conv(128, 128) + conv(128, 384) + 2 * conv(384, 384) + conv(384, 512)
    + 2 * conv(512, 512) + 3 * (128 + 384 + 512) + 5120
)  # fmt: skip
PARAMETERS = {
    "post0-dawnbench": DAWN + 2 * 64, "post3-cutout-35": DAWN, "post3-simple-35": DAWN, "davidnet-flip": DAVIDNET,
    "bag-of-tricks-80": WHITENED, "post1-baseline": DAWN, "post2-batch512": DAWN, "post3-fp32-bn": DAWN,
    "post3-cutout": DAWN,
    "post3-batch768": DAWN, "post4-backbone": SHORTCUTS, "post4-no-repeat": backbone(1, 256),
    "post4-conv3": backbone(3, 256), "post4-maxpool": backbone(3, 256), "post4-global-pool": backbone(3, 512),
    "post4-bn-scale1": PLAIN, "post4-wide": WIDE, "post4-extra": EXTRA, "post4-davidnet20": DAVIDNET,
    "davidnet": DAVIDNET, "lars": DAVIDNET, "tricks-gpu-data": DAVIDNET, "tricks-pool-first": DAVIDNET,
    "tricks-smoothing": DAVIDNET, "tricks-celu": DAVIDNET, "tricks-ghost": DAVIDNET,
    "tricks-frozen": DAVIDNET - SCALES, "tricks-whiten": WHITENED, "tricks-ema": WHITENED,
    "bag-of-tricks": WHITENED, "eager-tutorial": DAVIDNET, "fenwicks": DAVIDNET, "speedrun": SPEEDNET,
    "speedrun-lowres": SPEEDNET, "speedrun-hiverge": SPEEDNET,
    "speedrun95": SPEEDNET95, "speedrun96": SPEEDNET96, "speedrun96-proxy": SPEEDNET96,
}  # fmt: skip


def test_every_recipe_is_counted():
    assert set(PARAMETERS) == set(recipes.RECIPES)


def network_of(name):
    return networks.make(SimpleNamespace(**recipes.values(name) | {"seed": 0}), 10, fast=False)


# Recipes whose networks have different layers; the parameters of the others follow from them by PARAMETERS.
DIFFERENT = {
    tuple(recipes.values(name)[key] for key in ("network", "blocks", "width", "whiten", "frozen_scales")): name
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
    assert sides[0] == (31 if name.startswith("speedrun") else 32) and sides[-1] >= 3


def test_recipes_of_one_network_have_the_parameters_of_one():
    for name in PARAMETERS:
        keys = ("network", "blocks", "width", "whiten", "frozen_scales")
        same = DIFFERENT[tuple(recipes.values(name)[key] for key in keys)]
        assert PARAMETERS[name] == PARAMETERS[same]


LEARNS = (
    "post0-dawnbench", "post1-baseline", "post4-backbone", "post4-no-repeat", "post4-conv3", "post4-maxpool",
    "post4-global-pool", "post4-bn-scale1", "post4-extra", "davidnet", "lars", "tricks-frozen", "bag-of-tricks",
    "speedrun", "speedrun-hiverge", "speedrun-lowres", "speedrun95", "speedrun96",
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
    optimizer = recipes.values(name)["optimizer"]
    rate = {"muon": 0.1, "lars": 0.02, "nesterov": 0.02}[optimizer]
    changes = {"recipe": name, "data": small_data, "device": "cpu", "jit": False, "batch_size": 32, "width": 8}
    changes |= {"knots": f"0,{rate}", "pipeline": "device"}
    changes |= {"filter_rate": 0.5} if name == "lars" else {}
    changes |= {"bias_rate": 0.01, "head_rate": 0.01} if optimizer == "muon" else {}
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


# What the sources say (cifar10-fast's notebooks; basenet.json of the DAWNBench entry): epochs, batch, cutout, and the
# rate over the epochs, by knots.
SOURCES = {
    "post0-dawnbench": (40, 128, 0, [(0, 0), (15, 0.1), (30, 0.005), (35, 0), (35.001, 0.0005), (40, 0.0005)]),
    "post1-baseline": (35, 128, 0, [(0, 0), (15, 0.1), (30, 0.005), (35, 0)]),
    "post2-batch512": (35, 512, 0, [(0, 0), (15, 0.44), (30, 0.005), (35, 0)]),
    "post3-fp32-bn": (35, 512, 0, [(0, 0), (15, 0.44), (30, 0.005), (35, 0)]),
    "post3-cutout-35": (35, 512, 8, [(0, 0), (15, 0.44), (30, 0.005), (35, 0)]),
    "post3-simple-35": (35, 512, 8, [(0, 0), (8, 0.4), (35, 0)]),
    "post3-cutout": (30, 512, 8, [(0, 0), (8, 0.4), (30, 0)]),
    "post3-batch768": (30, 768, 8, [(0, 0), (8, 0.6), (30, 0)]),
    **dict.fromkeys(
        ("post4-backbone", "post4-no-repeat", "post4-conv3", "post4-maxpool", "post4-global-pool", "post4-bn-scale1",
         "post4-davidnet20"),
        (20, 512, 8, [(0, 0), (4, 0.4), (20, 0)]),
    ),
    "post4-wide": (60, 512, 8, [(0, 0), (12, 0.4), (60, 0)]),
    "post4-extra": (60, 512, 12, [(0, 0), (12, 0.4), (60, 0)]),
    "davidnet": (24, 512, 8, [(0, 0), (5, 0.4), (24, 0)]),
    "davidnet-flip": (19, 512, 8, [(0, 0), (5, 0.4), (19, 0)]),
    "lars": (24, 512, 8, [(0, 0), (5, 0.4), (24, 0)]),
    "tricks-gpu-data": (24, 512, 8, [(0, 0), (5, 0.4), (24, 0)]),
    "tricks-pool-first": (25, 512, 8, [(0, 0), (5, 0.4), (25, 0)]),
    "tricks-smoothing": (23, 512, 8, [(0, 0), (4.6, 0.4), (23, 0)]),
    "tricks-celu": (20, 512, 8, [(0, 0), (4, 0.4), (20, 0)]),
    "tricks-ghost": (18, 512, 8, [(0, 0), (3.6, 0.6), (18, 0)]),
    "tricks-frozen": (17, 512, 8, [(0, 0), (3.4, 0.6), (17, 0)]),
    "tricks-whiten": (14, 512, 5, [(0, 0), (2.8, 1), (14, 0)]),
    "tricks-ema": (13, 512, 5, [(0, 0), (2.6, 1), (11, 0.1), (13, 0.1)]),
    "bag-of-tricks": (10, 512, 0, [(0, 0), (2, 1), (8, 0.1), (10, 0.1)]),
    "bag-of-tricks-80": (80, 512, 12, [(0, 0), (16, 0.4), (78, 0.04), (80, 0.04)]),
    "eager-tutorial": (24, 512, 0, [(0, 0), (5, 0.4), (24, 0)]),
    "fenwicks": (24, 512, 8, [(0, 0), (5, 0.4), (24, 0)]),
    "speedrun": (8, 2000, 0, [(0.04, 0.24), (8.04, 0)]),
    "speedrun-hiverge": (8, 1536, 0, [(1 / 32, 0.205), (244 / 32, 0)]),
    "speedrun95": (15, 1024, 0, [(1 / 48, 6 / 23), (166 / 48, 30 / 23), (721 / 48, 2.1 / 23)]),
    **dict.fromkeys(
        ("speedrun96", "speedrun96-proxy"), (45, 1024, 12, [(1 / 48, 5.4 / 23), (217 / 48, 27 / 23), (2161 / 48, 0)])
    ),
    "speedrun-lowres": (9, 1536, 0, [(1 / 32, 0.2255), (0.95 * 8.5 + 1 / 32, 0.05 * 0.2255), (9, 0.05 * 0.2255)]),
}  # fmt: skip


def rates(options):
    """The rate at a thousand places of the run, by NumPy."""
    at = np.linspace(0, options.epochs, 1001)
    pairs = [tuple(map(float, pair.split(","))) for pair in options.knots.split()]
    pairs = pairs or [(0, 0), (options.warmup_epochs, options.learning_rate), (options.epochs, 0)]
    return np.interp(at, *zip(*pairs, strict=True))


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_epochs_batch_cutout_and_rates_are_the_sources(name):
    epochs, batch, cutout, knots = SOURCES[name]
    options = assemble.configure({"recipe": name})
    assert (options.epochs, options.batch_size, options.cutout) == (epochs, batch, cutout)
    expected = np.interp(np.linspace(0, epochs, 1001), *zip(*knots, strict=True))
    np.testing.assert_allclose(rates(options), expected, rtol=1e-9, atol=1e-9)  # knots are written with ten digits


@pytest.mark.parametrize(
    ("name", "epochs", "knots"),
    [
        ("tricks-ema", 20, [(0, 0), (4, 1), (18, 0.1), (20, 0.1)]),  # the last two epochs stay two
        ("tricks-ema", 3, [(0, 0), (0.6, 1), (1, 0.1), (3, 0.1)]),
        ("bag-of-tricks", 13, [(0, 0), (2.6, 1), (11, 0.1), (13, 0.1)]),
        ("bag-of-tricks-80", 24, [(0, 0), (4.8, 0.4), (22, 0.04), (24, 0.04)]),
        ("speedrun", 4, [(0.04, 0.24), (4.04, 0)]),  # the shift stays one step
        ("speedrun", 16, [(0.04, 0.24), (16.04, 0)]),
        # The tail stays twelve steps.
        ("speedrun-lowres", 3, [(1 / 32, 0.2255), (0.95 * 84 / 32 + 1 / 32, 0.05 * 0.2255), (3, 0.05 * 0.2255)]),
        ("post1-baseline", 70, [(0, 0), (30, 0.1), (60, 0.005), (70, 0)]),
        ("post0-dawnbench", 8, [(0, 0), (3, 0.1), (6, 0.005), (7, 0), (7.001, 0.0005), (8, 0.0005)]),
        ("tricks-pool-first", 24, [(0, 0), (5, 0.4), (24, 0)]),  # 94.0 % there, with the warm-up of 25 epochs
        ("tricks-gpu-data", 4, [(0, 0), (4 * 5 / 24, 0.4), (4, 0)]),  # 5 would be more than the run
        ("tricks-smoothing", 25, [(0, 0), (5, 0.4), (25, 0)]),
        ("davidnet", 12, [(0, 0), (2.5, 0.4), (12, 0)]),
    ],
)
def test_with_other_epochs_what_is_absolute_stays(name, epochs, knots):
    options = assemble.configure({"recipe": name, "epochs": epochs})
    expected = np.interp(np.linspace(0, epochs, 1001), *zip(*knots, strict=True))
    np.testing.assert_allclose(rates(options), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "warmup", "knots"),
    [
        ({"last_epoch": 0.4}, 5 / 24 * 23.4, []),
        ({"epochs": 12, "last_epoch": 0.5}, 5 / 24 * 11.5, []),
        ({"last_epoch": 0.4, "warmup_epochs": 5.0}, 5, []),
        ({"recipe": "bag-of-tricks", "last_epoch": 0.5}, 1.9, [(0, 0), (1.9, 1), (7.5, 0.1), (9.5, 0.1)]),
        ({"recipe": "speedrun-hiverge", "epochs": 4}, 0, [(1 / 32, 0.205), (4 + 1 / 32, 0)]),  # four whole ones
        ({"recipe": "speedrun-hiverge", "last_epoch": 21 / 32}, 0, [(1 / 32, 0.205), (246 / 32, 0)]),
    ],
)
def test_a_last_epoch_that_is_a_part_shortens_the_schedule(changes, warmup, knots):
    options = assemble.configure(changes)
    assert options.warmup_epochs == pytest.approx(warmup)
    pairs = [tuple(map(float, pair.split(","))) for pair in options.knots.split()]
    np.testing.assert_allclose(np.array(pairs), np.array(knots), rtol=1e-9)
    with pytest.raises(UserError, match=r"--warmup-epochs 1\.8 is not below the run's 1\.7; lower it"):
        assemble.configure({"epochs": 2, "last_epoch": 0.7, "warmup_epochs": 1.8})


def test_the_rates_sides_and_lookahead_of_every_step_are_e1s():
    """284 steps of 32 an epoch; the rate of step s, from 0, is max(1 - s / 272, 0.05) of its start. Lookahead begins
    eight steps before the 272nd and comes every four (fulcrumresearch/cifar-10-speedrun, runners/recipes/e1.py)."""
    options = assemble.configure({"recipe": "speedrun-lowres"})
    steps = np.arange(284)
    assert (options.epochs - 1 + options.last_epoch) * 32 == 284
    pairs = [tuple(map(float, pair.split(","))) for pair in options.knots.split()]
    found = np.interp((steps + 1) / 32, *zip(*pairs, strict=True))
    np.testing.assert_allclose(found, 0.2255 * np.maximum(1 - steps / 272, 0.05), rtol=1e-8)
    assert (options.lookahead_every, options.lookahead_keeps, options.lookahead_power) == (4, 0.7, 0)
    assert 284 - options.lookahead_epochs * 32 == 272 - 8
    sides = [of_epoch(options.sides, 1 + step // 32) for step in steps]
    assert sides == [24] * 96 + [28] * 96 + [32] * 92


def test_sides_keep_their_share_of_other_epochs():
    """As --epochs stretches the rest; of an epoch alone nothing is left but full size."""
    sides = {18: "24x6 28x6 32", 9: "24x3 28x3 32", 4: "24x1 28x1 32", 3: "24x1 28x1 32", 1: "32"}
    found = {epochs: assemble.configure({"recipe": "speedrun-lowres", "epochs": epochs}).sides for epochs in sides}
    assert found == sides
    assert assemble.configure({"recipe": "speedrun-lowres", "epochs": 4, "sides": "16x3 32"}).sides == "16x3 32"


def test_a_lower_peak_lowers_every_knot_and_knots_of_ones_own_stay():
    lower = assemble.configure({"recipe": "bag-of-tricks", "learning_rate": 0.5})
    assert lower.knots == "0,0 2,0.5 8,0.05 10,0.05"
    assert assemble.configure({"recipe": "bag-of-tricks", "learning_rate": 0.0}).knots == "0,0 2,0 8,0 10,0"
    assert assemble.configure({"recipe": "tricks-ema", "epochs": 2, "knots": "0,1"}).knots == "0,1"
    run = recipes.values("bag-of-tricks") | {"epochs": 5, "knots": "0,1 5,0"}  # one that goes on
    assert recipes.change("bag-of-tricks", run, {"epochs": 5})["knots"] == "0,1 5,0"


def test_only_the_uncut_lengths_of_post_8_carry_fifty_runs():
    """The post gives means of 50 runs before it cuts a rung's epochs; of what is left none."""
    counts = {name: recipe.claim.runs for name, recipe in recipes.RECIPES.items() if "post 8" in recipe.about.lower()}
    assert counts.pop("bag-of-tricks-80") == 5
    assert len(counts) == 10 and set(counts.values()) == {0}


def test_posts_0_to_4_and_the_tutorial_name_the_last_batch_as_a_difference():
    for name, recipe in recipes.RECIPES.items():
        old = name.startswith(("post0", "post1", "post2", "post3", "post4")) or name == "eager-tutorial"
        assert old == ("partial batch too" in recipe.differs), name


def test_post_8_draws_in_groups_and_what_came_before_for_each_image():
    for name in recipes.RECIPES:
        tricks = name.startswith(("tricks", "bag-of-tricks"))
        assert recipes.values(name)["draws"] == ("grouped" if tricks else "each"), name
