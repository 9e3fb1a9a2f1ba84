"""Small data that the tests make, and a short training on it."""

import gc
import os
import shutil
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads only wait for one another on a busy machine

import json
from pathlib import Path

import pytest

import faults
import train_eager
from lab import command, start
from lab.base import files
from lab.machine import fastest, memory

gc.freeze()  # each training collects what is given up, and need not look through all of TensorFlow for it


@pytest.fixture(scope="session", autouse=True)
def in_float32():
    """No test depends on what this machine's processor is good at: the choice for a CPU is float32, as flags say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastest, "fastest", lambda *, jit: ("float32", ""))
        yield


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """An .npz of 80 training and 24 test images of 4 classes that differ in colour."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    faults.make_data(path)
    return str(path)


@pytest.fixture
def short(small_data, tmp_path):
    """Hyperparameters of a training that takes seconds."""
    return {
        "data": small_data,
        "out": str(tmp_path / "run"),
        "device": "cpu",
        "width": 4,
        "batch_size": 16,
        "epochs": 2,
        "jit": False,
    }


@pytest.fixture
def unprivileged():
    """A folder that this process may not enter, while the test lasts."""
    closed = Path(tempfile.mkdtemp(prefix="closed-"))  # all folders above it are open to everybody
    closed.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # nobody
    yield closed
    if root:
        os.seteuid(0)
    closed.rmdir()


@pytest.fixture
def command_line(monkeypatch):
    """python train_eager.py with these arguments, in this process: command_line(["--epochs", "2"]) -> exit code."""
    monkeypatch.setattr(memory, "restart_with_huge_pages", lambda: None)
    return lambda arguments: start.main(train_eager.Config, train_eager.add_flags, list(map(str, arguments)))


@pytest.fixture(scope="session")
def finished(small_data, tmp_path_factory):
    """The folder of a run that has ended: one epoch, whitening, an average of the weights, two views."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    options = {"data": small_data, "out": str(folder), "device": "cpu", "jit": False, "checkpoint_every": 0}
    options |= {"width": 4, "batch_size": 16, "epochs": 1, "learning_rate": 0.1, "seed": 3}
    options |= {"whiten": True, "ema_every": 2, "ema_keeps": 0.9, "tta": "flip"}
    options |= {"activation": "celu", "celu_alpha": 0.3, "pool_first": True}
    command.train(**options)
    return folder


@pytest.fixture
def run_folder(finished, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def made_result():
    """Makes a result.json's value: made_result(seed=1, accuracies=(0.5, 0.94)); `changes` replace fields."""

    def make(recipe="davidnet", seed=0, accuracies=(0.5, 0.9), hyperparameters=None, **changes):
        rows = [
            {
                "epoch": number,
                "learning_rate": 0.1,
                "train_loss": 2.0 / number,
                "train_accuracy": accuracy,
                "test_loss": 1.9 / number,
                "test_accuracy": accuracy,
                "train_seconds": 10.0,
                "total_seconds": 12.0 * number,
            }
            for number, accuracy in enumerate(accuracies, start=1)
        ]
        result = {
            "recipe": recipe,
            "seed": seed,
            "finished": True,
            "hyperparameters": {"epochs": len(rows), "seed": seed, **(hyperparameters or {})},
            "data": {
                "source": "made",
                "sha256": "ab" * 32,
                "synthetic": False,
                "train_images": 50000,
                "test_images": 10000,
            },
            "versions": {"python": "3.11.7", "tensorflow": "2.21.0"},
            "hardware": {
                "processor": "Abacus",
                "cores": 2,
                "memory_gib": 8.0,
                "accelerators": [],
                "system": "Linux",
            },
            "precision": "float32",
            "replicas": 1,
            "epochs": rows,
            "test_accuracy": accuracies[-1],
            "test_accuracy_tta": None,
            "train_seconds": 10.0 * len(rows),
            "total_seconds": 12.0 * len(rows),
            "compile_seconds": 3.0,
            "images_per_second": 5000.0,
        }
        return json.loads(json.dumps(result | changes))  # of its own, as from a file

    return make


@pytest.fixture
def leave(made_result):
    """Writes a run's folder with a made result.json: leave(folder, seed=1); returns the file's path."""

    def write(folder, **values):
        folder.mkdir(parents=True)
        path = folder / "result.json"
        path.write_text(files.encode(made_result(**values)))
        return path

    return write
