"""Small data that the tests make, and a short training on it."""

import os
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """An .npz of 80 training and 24 test images of 4 classes that differ in colour."""
    generator = np.random.default_rng(0)

    def made(count):
        labels = np.arange(count) % 4
        images = generator.integers(0, 80, (count, 32, 32, 3)) + 40 * labels[:, None, None, None]
        return images.astype(np.uint8), labels

    path = tmp_path_factory.mktemp("data") / "small.npz"
    (x_train, y_train), (x_test, y_test) = made(80), made(24)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
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


@pytest.fixture(scope="session")
def finished(small_data, tmp_path_factory):
    """The folder of a run that has ended: one epoch, whitening, an average of the weights, two views."""
    import train_eager

    folder = tmp_path_factory.mktemp("runs") / "finished"
    options = {"data": small_data, "out": str(folder), "device": "cpu", "jit": False, "checkpoint_every": 0}
    options |= {"width": 4, "batch_size": 16, "epochs": 1, "learning_rate": 0.1, "seed": 3}
    options |= {"whiten": True, "ema_every": 2, "ema_keeps": 0.9, "tta": "flip"}
    options |= {"activation": "celu", "celu_alpha": 0.3, "pool_first": True}
    train_eager.train(**options)
    return folder


@pytest.fixture
def run_folder(finished, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(finished, tmp_path / "run")
