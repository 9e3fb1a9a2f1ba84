"""The four files in a folder of their own: they train, go on, and take an edited constant like a flag."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import train_eager
from data import UserError

ROOT = Path(__file__).resolve().parent.parent
CORE = ("data.py", "model.py", "schedule.py", "train_eager.py")
SMALL = {"epochs": 3, "batch_size": 16, "width": 4, "learning_rate": 0.1, "seed": 7, "device": "cpu"}


@pytest.fixture
def alone(tmp_path):
    """A folder with nothing but the four files."""
    folder = tmp_path / "alone"
    folder.mkdir()
    for name in CORE:
        shutil.copy(ROOT / name, folder)
    return folder


def run(folder, *flags, **options):
    """python train_eager.py in that folder, without this project on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # no __pycache__
    flags = [*flags, *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]
    command = [sys.executable, "train_eager.py", *flags]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def saved(folder):
    """The rows, the hyperparameters and the arrays of a checkpoint."""
    with np.load(folder / "last.npz", allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        values = [arrays[f"arr_{number}"] for number in range(len(arrays.files) - 1)]
    return without_times(about["rows"]), about["config"], values


def without_times(rows):
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def test_they_train_and_leave_nothing_behind(alone, small_data):
    done = run(alone, data=small_data, **SMALL)
    assert done.returncode == 0, done.stderr
    assert names_in(alone) == list(CORE)
    _, *rows = done.stdout.splitlines()
    _, expected = train_eager.train(data=small_data, **SMALL)
    assert len(rows) == len(expected) == 3
    for line, row in zip(rows, without_times(expected), strict=True):
        words = line.split()
        printed = dict(zip(words[::2], words[1::2], strict=True))
        assert {name: printed[name] for name in row} == {name: f"{value:.4g}" for name, value in row.items()}


@pytest.mark.long
def test_a_second_call_goes_on_where_the_first_one_stopped(alone, small_data, tmp_path):
    """Rows and weights are those of a training that nothing disturbed."""
    train_eager.train(data=small_data, checkpoint_dir=str(tmp_path / "undisturbed"), **SMALL)
    train_eager.train(data=small_data, checkpoint_dir=str(alone / "stopped"), stop_after=1, **SMALL)
    first, _, _ = saved(alone / "stopped")
    done = run(alone, data=small_data, checkpoint_dir="stopped", **SMALL)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()[1:]] == ["2", "3"]  # the epochs that were left
    assert names_in(alone) == sorted((*CORE, "stopped/last.npz"))
    (rows, config, values), (all_rows, same, expected) = saved(alone / "stopped"), saved(tmp_path / "undisturbed")
    assert (rows, config) == (all_rows, same) and rows[:1] == first
    for value, right in zip(values, expected, strict=True):
        np.testing.assert_array_equal(value, right)
    with pytest.raises(UserError, match="take another folder"):
        train_eager.train(data=small_data, checkpoint_dir=str(alone / "stopped"), **SMALL | {"seed": 8})


@pytest.mark.long
def test_an_edited_constant_counts_like_its_flag(alone, small_data):
    """Colab's form writes a whole number without a point, as here the learning rate."""
    edits = {"EPOCHS": 2, "BATCH_SIZE": 16, "WIDTH": 4, "LEARNING_RATE": 1, "SEED": 7, "DATA": small_data}
    edits |= {"DEVICE": "cpu", "CHECKPOINT_DIR": "left"}
    edit(alone / "train_eager.py", edits)
    done = run(alone)
    assert done.returncode == 0, done.stderr
    rows, config, _ = saved(alone / "left")
    assert config["warmup_epochs"] == pytest.approx(2 * 5 / 24)
    _, expected = train_eager.train(data=small_data, **SMALL | {"epochs": 2, "learning_rate": 1.0})
    assert rows == without_times(expected)


@pytest.mark.long
def test_a_flag_goes_before_an_edited_constant(alone, small_data):
    """The warm-up, edited in epochs, keeps the share that it has of the edited epochs."""
    edit(alone / "train_eager.py", {"WARMUP_EPOCHS": 1, "EPOCHS": 2, "LEARNING_RATE": 1})
    done = run(alone, data=small_data, checkpoint_dir="left", **SMALL | {"epochs": 4, "learning_rate": 0.5})
    assert done.returncode == 0, done.stderr
    _, config, _ = saved(alone / "left")
    assert (config["epochs"], config["learning_rate"], config["warmup_epochs"]) == (4, 0.5, 2)


def edit(path, values):
    """Writes other values into the lines of constants, as a user would; each must be there once."""
    lines = path.read_text().splitlines()
    for name, value in values.items():
        (place,) = [number for number, line in enumerate(lines) if line.startswith(f"{name} = ")]
        lines[place] = f"{name} = {value!r}"
    path.write_text("\n".join(lines) + "\n")
