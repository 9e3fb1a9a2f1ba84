"""1, 2 and 4 logical CPU devices, each count in a process of its own, train alike; so do a CPU's float32 ways."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
STEPS = 20
# Rounding that decides a ReLU or a max-pool anew is felt a thousandfold from then on: even one replica, started
# with weights that differ in their last bit, ends 20 steps up to 1e-3 apart. So the long comparison has a smooth
# activation and strides in place of pools, and DavidNet's ends before chance comes in.
SMOOTH = {"network": "conv3", "activation": "celu"}

TRAIN = """
import json, sys
import numpy as np, tensorflow as tf
from lab import assemble
for line in sys.stdin:
    options, path = json.loads(line)
    training = assemble.make(assemble.configure(options))
    losses = []
    for epoch in range(1, 5):
        batches = training.batches.open(epoch)
        for step in range(training.steps_per_epoch):
            training.train_steps(batches, tf.constant(1))
            losses.append(training.fetch()[0])
    variables = enumerate(training.network.variables)
    arrays = {f"{n} {v.name}": np.array(tf.convert_to_tensor(v)) for n, v in variables if "seed" not in v.path}
    np.savez(path, losses=losses, evaluation=training.evaluate(), **arrays)
    print("trained by", training.replicas, flush=True)
"""

ITERATORS = """
import sys
sys.path.append("tests")
import numpy as np, tensorflow as tf
import data
from iterators import seconds_to_end
from lab.machine import devices
strategy = devices.choose("cpu", logical_devices=2).strategy
batches = data.each_replica(strategy, np.arange(48, dtype=np.int32).reshape(4, 2, 6), lambda rows: rows)
print([[part.numpy().tolist() for part in strategy.experimental_local_results(batch)] for batch in batches])
print(seconds_to_end(batches, 30))
"""


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory):
    """Losses, weights and statistics after 20 steps, by (replicas, other hyperparameters); each made once.

    Those of one number of replicas are made in one process, as in a notebook: networks of several sizes, too.
    """
    folder, made, processes = tmp_path_factory.mktemp("replicas"), {}, {}

    def get(replicas, **changes):
        key = (replicas, *sorted(changes.items()))
        if key not in made:
            options = {
                "data": small_data, "out": str(folder / "run"), "device": "cpu", "width": 4, "batch_size": 16,
                "epochs": 4, "learning_rate": 0.02, "weight_decay": 0.01, "ghost_groups": 4,
                "jit": False, "precision": "float32",
                "logical_devices": replicas if replicas > 1 else 0, **changes,
            }  # fmt: skip
            if replicas not in processes:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
                with open(folder / f"errors-{replicas}", "w") as errors:
                    command = [sys.executable, "-c", TRAIN]
                    processes[replicas] = subprocess.Popen(command, cwd=ROOT, stderr=errors, **pipes)
            process, path = processes[replicas], folder / f"end-{len(made)}.npz"
            with contextlib.suppress(BrokenPipeError):  # it has ended; its errors tell
                process.stdin.write(json.dumps([options, str(path)]) + "\n")
                process.stdin.flush()
            while (said := process.stdout.readline()) and not said.startswith("trained by"):
                pass  # what else it says
            assert said == f"trained by {replicas}\n", (folder / f"errors-{replicas}").read_text()[-2000:]
            made[key] = dict(np.load(path))
        return made[key]

    yield get
    for process in processes.values():
        process.kill()  # all it made is read; its own end, with all networks' graphs to free, takes seconds to a minute
        process.communicate()


@pytest.mark.long
@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("pipeline", ["host", "device"])
def test_losses_weights_and_statistics_are_one_replicas(trained, replicas, pipeline):
    one, several = trained(1, **SMOOTH), trained(replicas, pipeline=pipeline, **SMOOTH)
    assert len(one["losses"]) == STEPS
    np.testing.assert_allclose(several["losses"], one["losses"], rtol=1e-4)
    assert set(one) == set(several)
    for path, value in one.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(several[path], value, atol=2e-3 * scale + 1e-5, err_msg=path)


@pytest.mark.long
def test_two_replicas_change_the_side_as_one_does(trained):
    one, two = (trained(replicas, sides="20x1 26x1 32", **SMOOTH) for replicas in (1, 2))
    assert len(one["losses"]) == STEPS
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-4)
    assert np.abs(one["losses"] / trained(1, **SMOOTH)["losses"] - 1).max() > 1e-3


@pytest.mark.long
def test_davidnets_first_steps_and_its_later_losses_are_one_replicas(trained):
    one, several = trained(1)["losses"], trained(2)["losses"]
    np.testing.assert_allclose(several[:3], one[:3], rtol=1e-5)
    np.testing.assert_allclose(several, one, rtol=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("way", [{"operations": "fast"}, {"jit": True}], ids=["kernels", "kernels and XLA"])
def test_a_cpus_ways_train_alike_over_20_steps(trained, way):
    """In float32, beside TensorFlow's own kernels, whose result without --operations fast is the plain form."""
    plain, other = trained(1, **SMOOTH, ghost_groups=0), trained(1, **SMOOTH, ghost_groups=0, **way)
    assert len(plain["losses"]) == STEPS
    np.testing.assert_allclose(other["losses"], plain["losses"], rtol=1e-4)
    for path, value in plain.items():
        np.testing.assert_allclose(other[path], value, atol=2e-3 * np.abs(value).max() + 1e-5, err_msg=path)
    plain, other = trained(1, ghost_groups=0)["losses"], trained(1, ghost_groups=0, **way)["losses"]
    np.testing.assert_allclose(other[:3], plain[:3], rtol=1e-5)
    np.testing.assert_allclose(other, plain, rtol=1e-2)


@pytest.mark.long
def test_without_ghost_groups_each_replica_normalises_its_own_images(trained):
    one, two = trained(1, ghost_groups=0, **SMOOTH), trained(2, ghost_groups=0, **SMOOTH)
    assert np.abs(two["losses"] / one["losses"] - 1).max() > 1e-3
    assert np.isfinite(two["losses"]).all()


@pytest.mark.long
def test_two_replicas_have_their_parts_in_order_and_an_iterator_ends_at_once():
    # With a strategy's own iterators, one in ten waits for a thread that sleeps on, for up to a minute.
    done = subprocess.run([sys.executable, "-c", ITERATORS], cwd=ROOT, capture_output=True, text=True, timeout=300)
    parts, seconds = done.stdout.splitlines()
    assert json.loads(parts) == np.arange(48).reshape(4, 2, 1, 6).tolist()
    assert float(seconds) < 0.5


@pytest.mark.long
def test_the_decay_counts_once_whatever_the_number_of_replicas(trained):
    """With a decay so strong that the gradient hardly matters, doubling it would show at once."""
    one, four = trained(1, weight_decay=2.0, **SMOOTH), trained(4, weight_decay=2.0, **SMOOTH)
    norms = [sum(float(np.square(v).sum()) for k, v in run.items() if k.endswith("kernel")) for run in (one, four)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(small_data, tmp_path):
    flags = ["--data", small_data, "--out", str(tmp_path / "run"), "--batch-size", "18", "--width", "4"]
    command = [sys.executable, "train_eager.py", *flags, "--device", "cpu", "--logical-devices", "4"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if "replicas" in line]
    assert len(lines) == 1 and "18" in lines[0] and "16" in lines[0] and "20" in lines[0]
