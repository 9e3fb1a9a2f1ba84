"""Tuning by tiny trainings: what is measured, what is kept when it is stopped, what is refused."""

import math
import os
import signal

import pytest

from lab import __main__ as lab_main
from lab import command
from lab.base import files
from lab.base.errors import Exit, UserError
from lab.machine import fastest, memory
from lab.tune.tuner import TUNE, Tuner, tune


@pytest.fixture
def few(short):
    """Hyperparameters of a tuning whose runs take a moment: 64 images to train on, 16 that judge."""
    return {**short, "epochs": 1, "learning_rate": 0.4, "holdout": 16, "runs": 2}


@pytest.fixture
def made_up(monkeypatch):
    """Runs that take no time, best at a rate of 0.2, a little better with a larger seed: the rates and seeds of those
    that were made."""
    made = []

    def run(tuner, options):
        made.append((options.learning_rate, options.seed))
        accuracy = 0.9 - 0.1 * abs(math.log2(options.learning_rate / 0.2)) + 0.01 * options.seed
        return {"accuracy": accuracy, "loss": 1 - accuracy, "train_loss": 0.5, "seconds": 1.5}

    monkeypatch.setattr(Tuner, "_run", run)
    return made


def kept(folder):
    return files.decode((folder / TUNE).read_text())["runs"]


def test_a_points_first_run_is_the_training_with_its_flags(few, tmp_path, capsys):
    found = tune(few, ["momentum"], by="loss")
    text = capsys.readouterr().out
    start, second = found["trace"][:2]
    assert start["values"] == {"learning_rate": 0.4, "momentum": 0.9} and second["point"] == (1,)
    single = {**few, "runs": 1}
    for visit in (start, second):
        alone = command.train(**single | visit["values"] | {"out": str(tmp_path / str(visit["point"]))})
        assert visit["scores"][0] == pytest.approx(-alone["epochs"][-1]["test_loss"], rel=1e-5)
    best = max((visit for visit in found["trace"] if visit["better"]), key=lambda visit: sum(visit["scores"]))
    flags = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in best["values"].items())
    assert found["best"] == best["values"] and text.endswith(f"go on with {flags}\n")
    assert sum(visit["runs"] for visit in found["trace"]) == len(kept(tmp_path / "run"))
    assert text.count("preparing the step") == 1  # for all points and seeds


def test_the_table_by_hand(few, made_up, capsys):
    found = tune(few, ["learning_rate"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["learning_rate", "accuracy", "gain", "runs", "seconds"],
        ["0.4", "0.8050", "2", "3.0", "start"],
        ["0.8", "0.7050", "-0.1000", "±", "0.0000", "2", "3.0", "worse"],
        ["0.2", "0.9050", "+0.1000", "±", "0.0000", "2", "3.0", "better"],
        ["0.1", "0.8050", "-0.1000", "±", "0.0000", "2", "3.0", "worse"],
        [],
        ["best", "of", "4", "points,", "8", "runs,", "12", "s:", "accuracy", "0.9050"],
        ["go", "on", "with", "--learning-rate", "0.2"],
    ]
    assert found["best"] == {"learning_rate": 0.2} and found["seeds"] == [0, 1]


def test_a_rate_given_as_a_whole_number_is_not_rounded_to_0(few, made_up):
    found = tune({**few, "learning_rate": 1, "momentum": 0}, ["weight_decay"])
    assert found["trace"][1]["values"] == {"learning_rate": 0.5, "weight_decay": 0.001}


def test_all_runs_of_a_tuning_are_in_one_precision(few, made_up, tmp_path, monkeypatch):
    """`auto` is timed; on another machine the same folder would go on in another."""
    monkeypatch.setattr(fastest, "fastest", lambda *, jit: ("bfloat16", ""))
    tune({**few, "precision": "auto"}, ["weight_decay"])
    monkeypatch.setattr(fastest, "fastest", lambda *, jit: ("float32", ""))
    count = len(made_up)
    found = tune({**few, "precision": "auto"}, ["weight_decay"])
    assert found["start"]["precision"] == "bfloat16" and len(made_up) == count
    with pytest.raises(UserError, match="starts from precision bfloat16, not float32"):
        tune({**few, "precision": "float32"}, ["weight_decay"])


def test_a_tuning_of_an_older_version_goes_on(few, made_up, tmp_path):
    tune(few, ["weight_decay"])
    path, count = tmp_path / "run" / TUNE, len(made_up)
    written = files.decode(path.read_text())
    del written["start"]["precision"]
    path.write_text(files.encode(written))
    tune(few, ["weight_decay"])
    assert len(made_up) == count
    written = files.decode(path.read_text())
    del written["start"]["momentum"]  # what it does not know otherwise is not taken for the same
    path.write_text(files.encode(written))
    with pytest.raises(UserError, match="starts from momentum None"):
        tune(few, ["weight_decay"])


def test_a_killed_tuning_goes_on_and_measures_nothing_twice(few, tmp_path, made_up, monkeypatch):
    whole, made = tune({**few, "out": str(tmp_path / "whole")}, ["learning_rate"]), list(made_up)
    assert made == [(rate, seed) for rate in (0.4, 0.8, 0.2, 0.1) for seed in (0, 1)]
    made_up.clear()
    run = Tuner._run

    def killed(tuner, options):
        if len(made_up) == 3:
            raise KeyboardInterrupt
        return run(tuner, options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tuner, "_run", killed)
        tune(few, ["learning_rate"])
    assert len(kept(tmp_path / "run")) == 3
    assert tune(few, ["learning_rate"])["trace"] == whole["trace"]
    assert made_up == made
    tune({**few, "runs": 3}, ["learning_rate"], by="loss")
    assert made_up[len(made) :] == [(rate, 2) for rate in (0.4, 0.8, 0.2, 0.1)]


def test_a_signal_ends_it_between_two_steps_with_its_exit_code(few, tmp_path, monkeypatch):
    write = Tuner._write
    monkeypatch.setattr(Tuner, "_write", lambda tuner: [write(tuner), os.kill(os.getpid(), signal.SIGINT)])
    with pytest.raises(UserError, match="the same command goes on after 1 finished runs") as caught:
        tune(few, ["learning_rate"])
    assert caught.value.exit_code == 130 and len(kept(tmp_path / "run")) == 1


def test_diverged_runs_are_the_worst_and_where_all_diverge_that_is_said(few, tmp_path, capsys):
    wild = {**few, "learning_rate": 5e5, "weight_decay": 1e3, "momentum": 0.0, "warmup_epochs": 0.0}
    with pytest.raises(UserError, match="every point diverged") as caught:
        tune(wild, ["weight_decay"])
    assert caught.value.exit_code == Exit.NOT_FINITE
    first, second, third = capsys.readouterr().out.splitlines()[-3:]
    assert first.endswith("diverged") and third.endswith("diverged")
    assert "--weight-decay 2000.0 is out of range" in second  # not possible is not the end either
    assert [run["seed"] for run in kept(tmp_path / "run")] == [0, 0]  # the second seed cannot mend it


def test_a_point_that_does_not_fit_in_memory_is_not_the_end(few, monkeypatch, capsys):
    ready = Tuner._ready

    def exhausted(tuner, options):
        if options.width > few.get("width", 64):
            raise UserError(f"--width {options.width} needs 99 GiB", exit_code=Exit.EXHAUSTED)
        return ready(tuner, options)

    monkeypatch.setattr(Tuner, "_ready", exhausted)
    found = tune({**few, "runs": 1}, ["width"])
    assert "needs 99 GiB" in capsys.readouterr().out and found["best"]["width"] <= few.get("width", 64)


@pytest.mark.parametrize(
    ("names", "changes", "why"),
    [
        (["momentum"], {"holdout": 0}, "--holdout 0 would tune on the test set"),
        (["momentun"], {}, "did you mean momentum"),
        (["momentum", "momentum"], {}, "twice"),
        (["flip"], {}, "no number of a recipe"),
        (["holdout"], {}, "no number of a recipe"),
        (["label_smoothing"], {}, "0 cannot be doubled"),
        (["learning_rate"], {"knots": "0,0 1,0.1"}, "leave --knots out"),
        (["momentum"], {"resume": "auto"}, "--resume is for a single run"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(few, tmp_path, names, changes, why):
    with pytest.raises(UserError, match=why):
        tune({**few, **changes}, names)
    assert not (tmp_path / "run").exists()


def test_another_tunings_folder_or_a_runs_is_refused(few, tmp_path, leave, made_up):
    folder = tmp_path / "run"
    tune(few, ["warmup_epochs"])
    before = (folder / TUNE).read_bytes()
    with pytest.raises(UserError, match=r"starts from learning_rate 0\.4, not 0\.1"):
        tune({**few, "learning_rate": 0.1}, ["warmup_epochs"])
    assert (folder / TUNE).read_bytes() == before
    leave(tmp_path / "other")
    with pytest.raises(UserError, match="holds a run"):
        tune({**few, "out": str(tmp_path / "other")}, ["momentum"])


def test_the_command_line(few, tmp_path, monkeypatch, capsys, made_up):
    monkeypatch.setattr(memory, "restart_with_huge_pages", lambda: None)
    flags = ["--data", few["data"], "--out", str(tmp_path / "run"), "--device", "cpu", "--width", "4", "--no-jit"]
    flags += ["--batch-size", "16", "--epochs", "1", "--holdout", "16"]
    assert lab_main.main(["tune", *flags, "--tune", "cutout", "--runs", "1"]) == 0
    text = capsys.readouterr().out
    assert "16 held out of the training set" in text and text.splitlines()[-1].startswith("go on with --cutout ")
    for wrong in (["--holdout", "0"], ["--finer", "-1"], ["--by", "luck"], ["--epoch", "2"]):
        assert lab_main.main(["tune", *flags, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
