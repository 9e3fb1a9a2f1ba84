"""Seconds of recipes beside each other: by hand-worked numbers, and the command at tiny sizes."""

import json
from types import SimpleNamespace

import pytest

from lab import assemble, drive
from lab.base.errors import UserError
from lab.bench import pace


def staged(name, *stages):
    """A row of `pace.measure`: each stage is its side, its steps and the seconds of a step by round."""
    return {
        "recipe": name,
        "precision": "float32",
        "batch_size": 1536,
        "stages": [
            {"side": side, "epoch": 1, "steps": steps, "seconds": list(seconds)} for side, steps, seconds in stages
        ],
    }


ROWS = [
    staged("speedrun", (32, 200, [6.0, 5.0, 7.0])),
    staged("speedrun-lowres", (24, 96, [2.0, 2.5, 3.0]), (32, 92, [4.0, 5.0, 4.0])),
]


def test_a_recipes_seconds_are_those_of_its_steps_round_by_round():
    first, other = pace.conclude(ROWS, load=0.1)
    assert first["train_seconds"] == {"median": 1200.0, "min": 1000.0, "max": 1400.0}
    # 96 x 2 + 92 x 4 = 560, 96 x 2.5 + 92 x 5 = 700, 96 x 3 + 92 x 4 = 656
    assert other["train_seconds"] == {"median": 656.0, "min": 560.0, "max": 700.0}
    assert other["share_of_first"] == pytest.approx({"median": 656 / 1400, "min": 560 / 1200, "max": 700 / 1000})
    assert first["noisy"] == "spread 33%, limit 25%" and other["noisy"] == ""


def test_the_table_says_steps_sides_and_doubts():
    result = {
        "rounds": 3,
        "recipes": pace.conclude(ROWS, load=0.1),
        "hardware": {"processor": "A CPU", "processor_flags": ["avx2"], "cores": 2},
        "versions": {"tensorflow": "2.21.0"},
        "load_average": [0.1, 0.2, 0.3],
    }
    _, _, first, other, _, said = pace.as_markdown(result).splitlines()
    assert first == "| `speedrun` | float32 | 1,536 | 200 x 6.00 s at 32 | 1,200 (1,000–1,400) † | 1.00 (1.00–1.00) |"
    assert "| 96 x 2.50 s at 24, 92 x 4.00 s at 32 | 656 (560–700) | 0.47 (0.47–0.70) |" in other
    assert said.startswith("A CPU (avx2), 2 cores, TensorFlow 2.21.0, 3 rounds; load average before the start: 0.10. †")


TINY = {"width": 8, "batch_size": 32, "limit_train": 640, "limit_test": 64, "data": "synthetic"}


def test_every_side_of_a_recipe_has_its_turns_and_nothing_is_compiled_in_them():
    options = assemble.configure({**TINY, "recipe": "speedrun-lowres", "precision": "float32", "jit": False})
    training = assemble.make(options)
    drive.warm_up(training)
    compiled = training.train_steps.experimental_get_tracing_count()
    (row,) = pace.measure({"speedrun-lowres": training}, rounds=2)
    assert training.train_steps.experimental_get_tracing_count() == compiled == 3
    # 20 steps an epoch: three epochs of 24 pixels, three of 28, two and 28/32 of 32
    assert [(stage["side"], stage["steps"], len(stage["seconds"])) for stage in row["stages"]] == [
        (24, 60, 2), (28, 60, 2), (32, 58, 2),
    ]  # fmt: skip


def test_a_proxys_step_is_the_mean_of_those_in_one_of_which_it_learns(monkeypatch):
    taken, ticks = [], iter([10.0, 18.0])
    proxy, batches = SimpleNamespace(every=4), SimpleNamespace(open=lambda epoch: epoch)
    training = SimpleNamespace(batches=batches, train_steps=lambda *step: taken.append(step), fetch=lambda: None)
    training.proxy = proxy
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(ticks))
    assert pace.step_seconds(training, 3) == 2.0 and [epoch for epoch, _ in taken] == [3] * 4


def test_the_command_writes_what_it_measured_and_no_path_of_the_user(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pace.memory, "restart_with_huge_pages", lambda: None)
    out = tmp_path / "pace.json"
    flags = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert pace.main(["davidnet", "davidnet-flip", "--rounds", "2", "--no-jit", *flags, "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert [row["recipe"] for row in written["recipes"]] == ["davidnet", "davidnet-flip"]
    assert [row["stages"][0]["steps"] for row in written["recipes"]] == [24 * 20, 19 * 20]
    assert "data" not in written["changes"] and written["changes"]["width"] == 8
    assert "`davidnet-flip`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["davidnet", "--runs", "3"], "--runs says nothing about the seconds of a step"),
        (["davidnet", "--rounds", "0"], "--rounds 0 is below 1"),
        (["davidnett"], "did you mean davidnet?"),
        (["davidnet", "--out", "/no/such/folder/pace.json"], "cannot write --out"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(pace.memory, "restart_with_huge_pages", lambda: None)
    assert pace.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    with pytest.raises(UserError):
        pace.pace(["davidnet"], 1, {"resume": "auto"}, [0.0] * 3)
