"""Every rung: its size, its shapes, that it learns; and the commands that list and compare recipes."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

import train_eager
from lab import options as settings
from lab.base.errors import UserError
from lab.ladder import describe, recipes
from lab.ladder import networks as model
from lab.runs import record

CONSTANTS = train_eager.constants()


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


@pytest.mark.parametrize("name", PARAMETERS)
def test_its_network_has_the_parameters_and_shapes_that_it_should(name):
    values = recipes.resolve(name, CONSTANTS)
    network = recipes.network(values)
    assert model.parameters(network) == PARAMETERS[name]
    rows = describe.trace(network)
    assert sum(row.parameters for row in rows) == PARAMETERS[name]  # the trace misses no layer
    assert rows[-1].kind == "Head" and rows[-1].shape == (10,)
    sides = [row.shape[0] for row in rows if row.kind == "Conv"]
    assert sides[0] == (31 if name == "speedrun" else 32) and sides[-1] >= 3


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_learns_within_two_steps(name, small_data, tmp_path):
    """The same batch three times at a steady rate: the loss before the third step is below the first's."""
    changes = {
        "data": small_data, "out": str(tmp_path / "run"), "device": "cpu", "jit": False, "batch_size": 32,
        "width": 8, "pipeline": "device",
    }  # fmt: skip
    base = recipes.resolve(name, CONSTANTS)
    rate = {"muon": 0.1, "lars": 0.5, "nesterov": 0.02}[base.optimizer]
    changes |= {"knots": f"0,{rate}", "bias_rate": 0.01, "head_rate": 0.01}
    run = train_eager.Run(settings.change(base, changes))
    source, losses = run.pipeline.open(1), []
    for _ in range(3):
        run.counters.reset()
        run.train_steps(source, tf.constant(0), tf.constant(1))
        losses.append(run.counters.fetch()[0] / 32)
    assert np.isfinite(losses).all() and losses[2] < losses[0], losses
    assert abs(losses[0] - np.log(4)) < 2.5  # starts near chance


def test_each_states_only_what_it_changes():
    for name, recipe in recipes.RECIPES.items():
        if not recipe.below:
            continue
        below = recipes.resolve(recipe.below, CONSTANTS)
        unchanged = [key for key, value in recipe.changes.items() if getattr(below, key) == value]
        assert not unchanged, f"{name} repeats {unchanged}"
        assert recipe.about and recipe.source
    assert [name for name, recipe in recipes.RECIPES.items() if not recipe.below] == ["davidnet"]


def test_davidnet_is_the_constants_and_edits_reach_the_others(monkeypatch):
    assert recipes.resolve("davidnet", CONSTANTS) == CONSTANTS
    assert recipes.resolve("speedrun", dataclasses.replace(CONSTANTS, seed=7)).seed == 7


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean speedrun"):
        recipes.resolve("speedrnu", CONSTANTS)
    assert train_eager.main(["--recipe", "nothing-like-it"]) == 2


def test_flags_override_a_recipe_and_its_knots_stretch(small_data, tmp_path):
    base = recipes.resolve("bag-of-tricks", CONSTANTS)
    longer = settings.change(base, {"epochs": 20, "learning_rate": 0.5})
    assert longer.knots == "0,0 4,0.5 16,0.05 20,0.05"
    assert settings.change(base, {"epochs": 20, "knots": "0,1"}).knots == "0,1"
    flags = ["--recipe", "post4-no-repeat", "--data", small_data, "--out", str(tmp_path / "run"), "--no-jit"]
    flags += [
        "--epochs",
        "1",
        "--warmup-epochs",
        "0",
        "--batch-size",
        "16",
        "--width",
        "4",
        "--device",
        "cpu",
    ]
    assert train_eager.main(flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["recipe"] == "post4-no-repeat" and result["hyperparameters"]["network"] == "conv1"
    assert result["hyperparameters"]["epochs"] == 1


def test_the_header_says_what_differs_from_davidnet(small_data, tmp_path, capsys):
    train_eager.train(
        recipe="post4-conv3", data=small_data, out=str(tmp_path / "run"), jit=False, width=4, batch_size=16,
        epochs=1, device="cpu",
    )  # fmt: skip
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("beside davidnet")]
    assert "network conv3" in line and "epochs 1" in line and "out" not in line.split()


def test_the_commands(capsys, tmp_path):
    assert recipes.main(["--diff", "post4-conv3", "post4-maxpool"]) == 0
    assert "'conv3'" in (shown := capsys.readouterr().out) and len(shown.splitlines()) == 1
    drawing = tmp_path / "net.svg"
    assert recipes.main(["--describe", "davidnet", "--svg", str(drawing)]) == 0
    shown = capsys.readouterr().out
    assert "6,573,120" in shown and "379," in shown  # multiply-adds, in millions, as published
    import xml.etree.ElementTree as tree

    boxes = tree.parse(drawing).getroot().findall("{http://www.w3.org/2000/svg}rect")
    arrows = tree.parse(drawing).getroot().findall("{http://www.w3.org/2000/svg}path")
    assert len(arrows) == len(boxes) - 2 + 2  # a box's arrow each but the images', less the frame; two skips
    assert recipes.main(["--svg", str(drawing)]) == 2
    assert recipes.main(["--diff", "davidnet", "davidnte"]) == 2
    assert recipes.main(["--describe", "davidnet", "--svg", str(tmp_path / "no" / "net.svg")]) == 5


def test_the_table_takes_its_measurements_from_the_records(tmp_path, made_result):
    def leave(name, **changes):
        base = {"recipe": "speedrun", "accuracies": [0.5] * 7 + [0.93], "test_accuracy_tta": 0.94}
        (tmp_path / name).write_text(record.encode(made_result(**base | changes)))

    leave("a.json")
    leave("b.json", test_accuracy_tta=0.942, seed=1)
    leave("short.json", accuracies=[0.5], hyperparameters={"epochs": 8})
    leave("narrow.json", hyperparameters={"width": 8})
    leave("half.json", hyperparameters={"limit_train": 25000})
    leave("fast.json", accuracies=[0.93])  # --epochs 1
    leave("unfinished.json", finished=False)
    leave("made-up.json", data=made_result()["data"] | {"synthetic": True})
    (tmp_path / "bench.json").write_text(json.dumps({"rows": []}))
    found = recipes.measured(tmp_path, CONSTANTS)
    assert {name: [run.accuracy for run in runs] for name, runs in found.items()} == {
        "speedrun": [0.94, 0.942]
    }
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(UserError, match=r"torn\.json"):
        recipes.measured(tmp_path, CONSTANTS)


def test_the_constants_can_be_read_without_importing_tensorflow():
    assert recipes.written_constants() == CONSTANTS
