"""Our candidates of the bench: what they run is what a training runs."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from data import plan
from lab.bench import ours, rivals


@pytest.fixture
def task(tmp_path):
    """Two steps of four images."""
    path = tmp_path / "images.npz"
    rivals.make_images(path, 10, 10)
    return rivals.Task("davidnet", 4, 2, path)


@pytest.fixture(autouse=True)
def float32_afterwards():
    """A training sets Keras' policy for its process, and here the next test's."""
    yield
    tf.keras.config.set_dtype_policy("float32")


def candidate(name, network="davidnet"):
    return rivals.load(rivals.candidates(network)[name])


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
def test_our_step_as_the_bench_drives_it(task):
    (steps, images), (evaluate, tested) = candidate("ours-device")(task), candidate("evaluation")(task)
    tf.config.run_functions_eagerly(True)  # compiling takes long, and is not what is tested
    try:
        steps(3)  # one and a half epochs
        evaluate(1)
    finally:
        tf.config.run_functions_eagerly(False)
    assert int(ours.training(task).optimizer.iterations) == 3
    assert (images, tested) == (4, 10)


def test_both_pipelines_make_an_epoch_of_the_same_batches(task):
    host, device = (made.batches for made in (ours.training(task, pipeline="host"), ours.training(task)))
    rows = plan(ours.training(task).config, 1, 10)
    batches = list(host.open(1))
    assert len(batches) == len(rows) == 2
    for (images, labels), row in zip(batches, rows, strict=True):
        made, of = device.make(tf.constant(row))
        np.testing.assert_allclose(images, made, atol=1e-5)
        np.testing.assert_array_equal(labels, of)
    for name in ("pipeline", "augmentation"):
        run, units = candidate(name)(task)
        run(1)
        assert units == 8


def test_a_candidate_s_options_reach_what_it_measures(task, monkeypatch):
    asked = []
    training = SimpleNamespace(config=SimpleNamespace(batch_size=4))
    monkeypatch.setattr(ours, "training", lambda task, **options: asked.append(options) or training)
    for name in ("ours-device", "ours-host", "ours-xla", "ours-graph"):
        candidate(name)(task)
    float32 = {"precision": "float32"}
    assert asked == [{}, {"pipeline": "host"}, float32, float32 | {"jit": False}]


def test_the_speedrun_s_update():
    run, units = candidate("newton-schulz", "speedrun")(rivals.Task("speedrun", 8, 4, Path("images.npz")))
    run(1)
    assert units == 20


@pytest.mark.parametrize("network", rivals.NETWORKS)
def test_every_candidate_has_its_function(network):
    for name, entry in rivals.candidates(network).items():
        if not rivals.missing(entry) and not entry.process.startswith("pytorch"):  # see test_rivals.py
            assert callable(candidate(name, network))
