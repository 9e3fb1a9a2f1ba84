"""The four files in a folder of their own: they train, leave nothing behind and go on."""

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


IMPORTED = """
import os, sys
import train_eager, model, data, schedule
from tensorflow.python.eager import context
assert not context.context()._initialized, "importing started TensorFlow's devices"
assert not [name for name in sys.modules if name.partition(".")[0] == "lab"], "the core imported lab"
assert sorted(os.listdir()) == ["data.py", "model.py", "schedule.py", "train_eager.py"], os.listdir()
sys.exit(train_eager.main())
"""


def run(folder, *program, **options):
    """python with that program and these flags in that folder, without this project on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # no __pycache__
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, *program, *flags]
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


def test_they_start_nothing_when_imported_train_when_asked_and_leave_nothing_behind(alone, small_data):
    done = run(alone, "-W", "error::DeprecationWarning:train_eager", "-c", IMPORTED, data=small_data, **SMALL)
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
    done = run(alone, "train_eager.py", data=small_data, checkpoint_dir="stopped", **SMALL)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()[1:]] == ["2", "3"]  # the epochs that were left
    assert names_in(alone) == sorted((*CORE, "stopped/last.npz"))
    (rows, config, values), (all_rows, same, expected) = saved(alone / "stopped"), saved(tmp_path / "undisturbed")
    assert (rows, config) == (all_rows, same) and rows[:1] == first
    for value, right in zip(values, expected, strict=True):
        np.testing.assert_array_equal(value, right)
    with pytest.raises(UserError, match="take another folder"):
        train_eager.train(data=small_data, checkpoint_dir=str(alone / "stopped"), **SMALL | {"seed": 8})
