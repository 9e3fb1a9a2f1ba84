"""A run that was stopped, by whatever, goes on to the very same end."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import faults
import train_eager
from lab import assemble, command, start
from lab.base import console, files
from lab.base.errors import UserError
from lab.drive import Drive
from lab.ladder import views
from lab.machine import memory
from lab.runs import checkpoint, resume

SEED = 20191121


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "data.npz"
    faults.make_data(path)
    return path


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("faults") / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "restart_with_huge_pages", lambda: None)
        assert start.main(train_eager.Config, train_eager.add_flags, faults.command(data, out)[2:]) == 0
    return faults.left(out)


@pytest.mark.long
@pytest.mark.parametrize("number", range(3))
def test_killed_runs_end_with_the_same_weights(number, data, undisturbed, tmp_path):
    """Two kills each; tests/faults.py does as many as you like."""
    print(f"seed {[SEED, number]}")
    moment = faults.MOMENTS[number]
    found, kills = faults.case(tmp_path, data, moment, np.random.default_rng([SEED, number]))
    assert kills >= 1 and found == undisturbed


def wait_for_row(process, log):
    while "    1  " not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code", "pipeline"), [(signal.SIGTERM, 143, "host"), (signal.SIGINT, 130, "device")]
)
def test_a_signal_saves_and_the_run_goes_on(number, code, pipeline, data, undisturbed, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    with open(log, "w") as file:
        process = faults.start(faults.command(data, out, "--pipeline", pipeline), file)
        wait_for_row(process, log)
        process.send_signal(number)
        assert process.wait(60) == code, log.read_text()
    text = log.read_text()
    assert f"stopped by {number.name} in epoch" in text and f"--resume {out}" in text and "Traceback" not in text
    assert not json.loads((out / "result.json").read_text())["finished"]
    status, shown, error = faults.run(faults.resume_command(out))
    assert status == 0, shown + error
    assert faults.left(out) == undisturbed


def stopped(short, **changes):
    """A run that was stopped after the first of two epochs; its hyperparameters."""
    options = short | {"epochs": 3, "stop_after": 1, **changes}
    command.train(**options)
    return options


def test_what_would_be_another_training_is_refused_by_name(short, tmp_path):
    stopped(short)
    for changes, word in (
        ({"learning_rate": 0.1}, "--learning-rate 0.4, not 0.1"),
        ({"seed": 4}, "--seed 0, not 4"),
        ({"width": 8}, "--width 4, not 8"),
        ({"limit_train": 40}, "--limit-train 0, not 40"),
        ({"sides": "24x1 32"}, "--sides '', not '24x1 32'"),
    ):
        with pytest.raises(UserError, match=word):
            command.train(resume=short["out"], **changes)
    arrays = dict(np.load(short["data"]))
    arrays["x_train"][3, 5, 7, 1] ^= 1  # a single bit
    np.savez(other := tmp_path / "other.npz", **arrays)
    with pytest.raises(UserError, match="the images are not those of the run"):
        command.train(resume=short["out"], data=str(other))
    with pytest.raises(UserError, match="no complete checkpoint"):
        command.train(resume=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="holds a run"):
        command.train(**short)


def stop_at(monkeypatch, epoch, step):
    """Sends this process SIGTERM once that step of that epoch has been made."""
    show = console.EpochBar.show

    def stopping(bar, at, images):
        show(bar, at, images)
        if (at, images) == (epoch, 16 * step):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(console.EpochBar, "show", stopping)


def test_a_run_resumed_twice_around_an_epochs_end_has_the_undisturbed_rows(short, tmp_path, monkeypatch):
    """The sums of the part of an epoch that was made before a stop are in its row, and in no other; the average that
    takes the weights' place and the network that chooses images go on from what they were; each epoch has its side."""
    short = short | {"lookahead_every": 2, "hardest": 0.5, "sides": "24x1 32"}
    whole = command.train(**short | {"out": str(tmp_path / "whole")})
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 2)
        with pytest.raises(UserError, match="SIGTERM in epoch 1 after step 2 of 5") as stopped:
            command.train(**short)
        assert stopped.value.exit_code == 143
    command.train(resume=short["out"], stop_after=1)
    again = command.train(resume=short["out"])
    for row, other in zip(again["epochs"], whole["epochs"], strict=True):
        assert {k: v for k, v in row.items() if not k.endswith("seconds")} == {
            k: v for k, v in other.items() if not k.endswith("seconds")
        }
    assert again["weights_sha256"] == whole["weights_sha256"]


def test_a_run_stopped_in_a_last_epoch_that_is_a_part_ends_like_its_twin(short, tmp_path, monkeypatch, capsys):
    """With jitter, decay and rescaling at intervals, which must not depend on where it was stopped either."""
    options = short | {"recipe": "speedrun-hiverge", "last_epoch": 0.5, "rescale_growth": 4}
    twin = tmp_path / "twin"
    whole = command.train(**options | {"out": str(twin)})
    with monkeypatch.context() as patch:
        stop_at(patch, 2, 1)
        with pytest.raises(UserError, match="SIGTERM in epoch 2 after step 1 of 3"):
            command.train(**options)
    capsys.readouterr()
    again = command.train(resume=short["out"])
    ending = f"{again['test_accuracy_tta']:.4f} with six views of the unsure quarter (evaluation: "
    assert ending in capsys.readouterr().out
    assert faults.left(Path(short["out"])) == faults.left(twin)
    assert [row["train_loss"] for row in again["epochs"]] == [row["train_loss"] for row in whole["epochs"]]
    assert whole["images_per_second"] == pytest.approx(8 * 16 / whole["train_seconds"])
    assert whole["epochs"][1]["learning_rate"] == pytest.approx(0.205 / 48)  # a step of 1/32 epoch before the end


STOPPER = """
import os, signal, sys
import train_eager
from lab import start
from lab.base import console
from lab.machine import memory
memory.restart_with_huge_pages = lambda: None
show, seen = console.EpochBar.show, set()
def stopping(bar, epoch, images):
    show(bar, epoch, images)
    seen.add((epoch, images))
    if len(seen) > 2 and images:  # the first is where it went on
        os.kill(os.getpid(), signal.SIGTERM)
def train(*arguments):
    seen.clear()
    return start.main(train_eager.Config, train_eager.add_flags, arguments)
twin, out, *flags = sys.argv[1:]
assert train(*flags, "--out", twin) == 0
console.EpochBar.show = stopping
codes = [train(*flags, "--out", out)]
while codes[-1] == 143:
    codes.append(train("--resume", out))
print("codes", *codes)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [
        ["--recipe", "eager-tutorial", "--warmup-epochs", 1],
        ["--logical-devices", 2, "--learning-rate", 0.05, "--ema-every", 2, "--tta", "flip", "--network", "conv3"],
    ],
    ids=["dropout", "two replicas"],
)
def test_a_run_stopped_after_every_second_step_ends_like_its_twin(flags, data, tmp_path):
    """Nothing that is drawn or averaged in training may depend on where it was stopped and saved, or on what a process
    has drawn before: all are of one, the twin first. Fresh processes are those that are killed above."""
    flags = ["--batch-size", 16, "--width", 2, "--epochs", 2, "--device", "cpu", "--no-jit", *flags]
    flags += ["--precision", "float32", "--data", data]
    command = [sys.executable, "-c", STOPPER, tmp_path / "twin", tmp_path / "run", *flags]
    done = subprocess.run(list(map(str, command)), cwd=faults.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    codes = done.stdout.split("codes")[-1].split()
    assert codes == ["143"] * (len(codes) - 1) + ["0"] and len(codes) >= 4, done.stdout
    assert faults.left(tmp_path / "run") == faults.left(tmp_path / "twin")


def test_a_stop_in_an_epoch_whose_loss_is_not_finite_says_so(short, monkeypatch):
    stop_at(monkeypatch, 1, 4)
    with pytest.raises(UserError, match="the loss is not finite in epoch 1") as error:
        command.train(**short | {"learning_rate": 1e6, "weight_decay": 1e3, "logit_scale": 1e6, "epochs": 1})
    assert error.value.exit_code == 3


def test_a_runs_own_flags_may_be_repeated_and_edited_constants_are_noted(short, monkeypatch, capsys):
    options = short | {"activation": "celu", "celu_alpha": 0.1, "epochs": 2, "stop_after": 1}
    command.train(**options)
    written = dataclasses.replace(train_eager.Config(), epochs=3, warmup_epochs=5 / 24 * 3)
    monkeypatch.setattr(assemble, "Config", lambda: written)
    result = command.train(resume=short["out"], celu_alpha=0.1)
    assert len(result["epochs"]) == 2
    assert "EPOCHS 3 at the top of train_eager.py is not this run's; it has 2" in capsys.readouterr().out


def test_data_that_changes_during_a_run_counts_when_it_is_resumed(short, tmp_path, monkeypatch):
    whole = command.train(**short | {"out": str(tmp_path / "whole"), "stop_after": 1})
    path = tmp_path / "own.npz"
    path.write_bytes(Path(short["data"]).read_bytes())
    run = Drive.run

    def spoil(drive, **how):
        arrays = dict(np.load(short["data"]))
        arrays["x_train"][:] = 255 - arrays["x_train"]
        np.savez(path, **arrays)
        return run(drive, **how)

    options = short | {"data": str(path), "stop_after": 1}
    with monkeypatch.context() as patch:
        patch.setattr(Drive, "run", spoil)
        found = command.train(**options)
    for name in ("train_loss", "test_loss"):
        assert found["epochs"][0][name] == whole["epochs"][0][name]
    with pytest.raises(UserError, match="the images are not those of the run"):
        command.train(resume=short["out"])


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_taken(short, capsys):
    stopped(short, stop_after=2)
    newest = max((Path(short["out"]) / "checkpoints").glob("*.npz"), key=lambda path: int(path.stem[5:]))
    newest.write_bytes(newest.read_bytes()[:-7])
    result = command.train(resume=short["out"], stop_after=0)
    assert "is damaged" in capsys.readouterr().out
    whole = command.train(**short | {"epochs": 3, "out": short["out"] + "-whole"})
    losses = [[row["train_loss"] for row in one["epochs"]] for one in (result, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_a_run_that_ends_where_it_was_stopped_is_evaluated_with_its_views(short, monkeypatch):
    save, numbers = Drive._save, iter([0.1, 0.2])
    monkeypatch.setattr(views, "accuracy", lambda training, which: next(numbers))

    def stop(drive):
        save(drive)
        raise UserError("stopped by a test", exit_code=143)

    first = command.train(**short | {"epochs": 3, "tta": "flip", "stop_after": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Drive, "_save", stop)
        with pytest.raises(UserError, match="stopped by a test"):
            command.train(resume=short["out"])
    again = command.train(resume=short["out"], stop_after=2)
    assert [(len(run["epochs"]), run["test_accuracy_tta"]) for run in (first, again)] == [(1, 0.1), (2, 0.2)]
    assert again["airbench_seconds"] > again["train_seconds"]


def test_a_run_of_another_version_is_told_so_and_auto_passes_over_it(short, tmp_path, monkeypatch, capsys):
    """Its checkpoint is whole, by its sums, and knows less."""
    stopped(short)
    path = Path(checkpoint.newest(short["out"])[0].prefix + ".json")
    manifest = files.decode(path.read_text())
    del manifest["about"]["updates"]
    path.write_text(files.encode(manifest))
    with pytest.raises(UserError, match=r"step-5 has no updates: another version of these scripts made it"):
        command.train(resume=short["out"])
    (Path(short["out"]) / "weights.npz").unlink()  # as if it had been killed before it ended
    os.renames(short["out"], tmp_path / "runs" / "davidnet-0-old")
    monkeypatch.chdir(tmp_path)
    assert resume.find_newest("davidnet", 0) == "" and "has no updates" in capsys.readouterr().out


def test_auto_does_not_take_another_recipes_run_whose_name_begins_alike(short, tmp_path, monkeypatch):
    stopped(short)
    (Path(short["out"]) / "weights.npz").unlink()  # as if it had been killed before it ended
    os.renames(short["out"], tmp_path / "runs" / "davidnet-20-0-20260101-000000")  # as of a recipe davidnet-20
    monkeypatch.chdir(tmp_path)
    assert resume.find_newest("davidnet", 20) == ""
    folder = Path("runs", "davidnet-20-0-20260101-000000").rename("runs/davidnet-0-20260101-000000")
    assert resume.find_newest("davidnet", 0) == str(folder)


def test_sides_may_be_written_in_any_way(short):
    stopped(short, sides="24x1   032")
    assert len(command.train(resume=short["out"], stop_after=2)["epochs"]) == 2


def test_auto_takes_the_newest_unfinished_run_or_starts_one(short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {key: value for key, value in short.items() if key != "out"} | {"epochs": 3}
    first = command.train(**options, resume="auto")  # there is none
    assert len(first["epochs"]) == 3 and first["finished"]
    time.sleep(1.1)  # folders are named by the second
    command.train(**options, stop_after=1)
    results = {folder: json.loads((folder / "result.json").read_text()) for folder in Path("runs").iterdir()}
    (newest,) = [folder for folder, result in results.items() if len(result["epochs"]) == 1]
    (newest / "weights.npz").unlink()  # as if it had been killed before it ended
    again = command.train(**options, resume="auto")
    assert [row["train_loss"] for row in again["epochs"]] == [row["train_loss"] for row in first["epochs"]]
    assert len(list(Path("runs").iterdir())) == 2


@pytest.mark.long
def test_another_number_of_replicas_sees_the_same_batches(data, tmp_path):
    """Plain steps and the same ghost groups: 2 replicas go on from 1's checkpoint to the same weights, to rounding."""
    flags = ["--ghost-groups", 2, "--learning-rate", 0.02, "--network", "conv3"]
    first = tmp_path / "one"
    assert faults.run(faults.command(data, first, *flags, "--stop-after", 2))[0] == 0
    second = tmp_path / "two"
    shutil.copytree(first, second)
    for out, more in ((first, []), (second, ["--logical-devices", 2])):
        code, shown, error = faults.run(faults.resume_command(out, "--stop-after", 3, *more))
        assert code == 0, shown + error
    one, two = (faults.left(out)[1][2]["train_loss"] for out in (first, second))
    assert two == pytest.approx(one, rel=2e-3)  # other batches would be off by some percent
