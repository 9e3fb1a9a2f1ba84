"""The lab's loop: what a run leaves behind, every way to compute, one trace a run, and how a run ends."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lab import assemble, command, drive
from lab.base import console
from lab.base.errors import UserError
from lab.runs import record


def make(options, **changes):
    return assemble.make(assemble.configure({**options, **changes}))


def arrays(training):
    return [np.asarray(variable) for variable in assemble.variables(training)]


def flags(options):
    """The command line of these hyperparameters."""
    switch = {True: "--{}", False: "--no-{}"}
    names = {name: name.replace("_", "-") for name in options}
    return [
        switch[value].format(names[name]) if isinstance(value, bool) else f"--{names[name]}={value}"
        for name, value in options.items()
    ]


def test_a_run_leaves_its_result(short, capsys, command_line):
    result = command.train(**short)
    folder = Path(short["out"])
    left = ["checkpoints", "dawnbench.tsv", "result.json", "run.json", "weights.npz"]
    assert sorted(path.name for path in folder.iterdir()) == left
    assert record.read_result(folder / "result.json") == result
    promised = "recipe seed hyperparameters data versions hardware precision replicas epochs test_accuracy"
    promised += " test_accuracy_tta train_seconds total_seconds images_per_second code"
    assert set(promised.split()) <= set(result)
    assert [row["epoch"] for row in result["epochs"]] == [1, 2]
    assert set(result["epochs"][0]) == {
        "epoch", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
        "train_seconds", "total_seconds",
    }  # fmt: skip
    assert result["data"]["train_images"] == 80 and result["data"]["test_images"] == 24
    assert result["data"]["synthetic"] is False and len(result["data"]["sha256"]) == 64
    assert result["test_accuracy"] == result["epochs"][-1]["test_accuracy"] and result["finished"]
    assert result["images_per_second"] == pytest.approx(160 / result["train_seconds"])
    lines = [line.split("\t") for line in (folder / "dawnbench.tsv").read_text().splitlines()]
    assert lines[0] == ["epoch", "hours", "top1Accuracy"]
    assert float(lines[2][1]) == pytest.approx(result["train_seconds"] / 3600, abs=1e-7)
    assert float(lines[2][2]) == pytest.approx(100 * result["test_accuracy"], abs=0.01)
    shown = capsys.readouterr()
    assert "test accuracy" in shown.out
    assert "%|" not in shown.out + shown.err  # no bar where stdout is no terminal
    # An earlier result is never overwritten.
    assert command_line(["--data", short["data"], "--batch-size", "16", "--out", short["out"]]) == 2
    assert record.read_result(folder / "result.json") == result


def losses_of(short, name, **changes):
    result = command.train(**{**short, **changes, "out": f"{short['out']}-{name}"})
    return [row["train_loss"] for row in result["epochs"]] + [row["test_loss"] for row in result["epochs"]]


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(short):
    first = losses_of(short, "a")
    assert losses_of(short, "b") == first
    assert losses_of(short, "c", seed=1) != first


WAYS = {
    "host pipeline": {"pipeline": "host"},
    "compiled": {"jit": True},  # with batches made on the device, and the fast operations
    "eager": {"eager": True},
    "plain operations": {"jit": True, "operations": "plain"},
}


# Few steps at a low rate: rounding that decides a tie in a pool grows a thousandfold with each step.
FEW = {"learning_rate": 0.02, "batch_size": 40, "epochs": 1, "width": 4, "device": "cpu", "jit": False}


@pytest.fixture(scope="module")
def graphs(small_data, tmp_path_factory):
    return losses_of({**FEW, "data": small_data, "out": str(tmp_path_factory.mktemp("graph") / "run")}, "graph")


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
@pytest.mark.parametrize(
    "name", [name if name == "host pipeline" else pytest.param(name, marks=pytest.mark.long) for name in WAYS]
)
def test_every_way_to_compute_gives_the_same_losses(short, graphs, name):
    assert losses_of({**short, **FEW}, name, **WAYS[name]) == pytest.approx(graphs, rel=1e-3)


def test_warming_up_changes_nothing_and_traces_once(short):
    training = make(short)
    before = arrays(training)
    drive.warm_up(training)
    for value, same in zip(arrays(training), before, strict=True):
        np.testing.assert_array_equal(value, same)
    assert training.fetch() == (0.0, 0.0)
    list(training.run())
    assert training.train_steps.experimental_get_tracing_count() == 1
    assert training.train_step.experimental_get_tracing_count() == 1


def test_steps_that_float16_skips_are_counted_by_the_epoch(capsys):
    run = object.__new__(drive.Drive)
    run.progress = drive.Progress()

    def after(updates):
        inner = SimpleNamespace(iterations=np.int64(updates))
        optimizer = SimpleNamespace(inner_optimizer=inner)
        run.training = SimpleNamespace(precision="float16", steps_per_epoch=4, optimizer=optimizer)

    for epoch, updates, said in ((1, 2, "2 of 4 steps of epoch 1"), (2, 4, "2 of 4 steps of epoch 2"), (3, 8, "")):
        after(updates)
        run._check_skipped(epoch)
        shown = capsys.readouterr().out
        assert said in shown and bool(shown) == bool(said)
    with pytest.raises(UserError, match="all 4 steps of epoch 4"):
        run._check_skipped(4)


def test_stop_after_ends_early_on_the_same_schedule(short):
    result = command.train(**short, stop_after=1)
    assert len(result["epochs"]) == 1
    assert result["epochs"][0]["learning_rate"] == pytest.approx(np.interp(1, [0, 10 / 24, 2], [0, 0.4, 0]))


def test_a_loss_that_is_not_finite_ends_the_run_with_what_to_try(short, capsys, command_line):
    assert command_line([*flags(short), "--learning-rate", "1e6", "--weight-decay", "1e3"]) == 3
    error = capsys.readouterr().err
    assert "epoch" in error and "--learning-rate" in error and len(error.strip().splitlines()) == 1


def test_ctrl_c_ends_cleanly_and_keeps_the_epochs_that_had_ended(short, command_line, monkeypatch, capsys):
    row = console.row

    def interrupt(values):
        if values["epoch"] == 2:
            raise KeyboardInterrupt
        return row(values)

    monkeypatch.setattr(console, "row", interrupt)
    assert command_line(flags({**short, "epochs": 5})) == 130
    assert "interrupted" in capsys.readouterr().err
    saved = json.loads((Path(short["out"]) / "result.json").read_text())
    assert len(saved["epochs"]) == 1 and not saved["finished"]


def test_the_traceback_of_an_unforeseen_error_lies_in_the_runs_folder(short, command_line, monkeypatch, capsys):
    monkeypatch.setattr(drive, "warm_up", lambda training: 1 / 0)
    flags = [
        word for name in ("data", "width", "batch_size", "out") for word in (f"--{name}".replace("_", "-"), short[name])
    ]
    assert command_line([*flags, "--device", "cpu", "--no-jit"]) == 7
    (written,) = Path(short["out"]).glob("traceback-*.txt")
    assert capsys.readouterr().err.startswith("unforeseen ZeroDivisionError: division by zero; its traceback is in ")
    assert "ZeroDivisionError" in written.read_text()
