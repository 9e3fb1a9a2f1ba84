"""Two worker processes on this machine: the training of one, the results of the first, the end of either."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lab import assemble, command
from lab.base.errors import Exit, UserError
from lab.machine import devices
from lab.runs import checkpoint

ROOT = Path(__file__).resolve().parents[3]
BOUND = 90  # seconds in which a worker has to notice that another is gone

TRAIN = """
import json, sys
import numpy as np
from lab import assemble, command
runs = command.Runs(command.Interrupt())
runs.train(assemble.configure(json.loads(sys.argv[1])), None)
np.savez(sys.argv[2], *[np.asarray(v) for v in runs.training.network.variables if "seed" not in v.path])
"""


@pytest.fixture
def workers(tmp_path):
    """Starts two processes of a command, which gets `worker` and ends with the test; returns both."""
    started = []

    def start(command):
        with socket.socket() as first, socket.socket() as second:
            for one in (first, second):
                one.bind(("127.0.0.1", 0))
            hosts = [f"127.0.0.1:{one.getsockname()[1]}" for one in (first, second)]
        for index in range(2):
            task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, "TF_CONFIG": json.dumps(task), "PYTHONUNBUFFERED": "1"}
            with (tmp_path / f"out{index}").open("w") as out, (tmp_path / f"err{index}").open("w") as err:
                started.append(
                    subprocess.Popen(
                        [sys.executable, *command(index)], cwd=ROOT, env=environment, stdout=out, stderr=err
                    )
                )
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.long
def test_two_workers_train_as_one_does_and_the_first_writes(short, tmp_path, workers):
    # Five steps: rounding that decides a tie in a pool grows a thousandfold with each step after it.
    short |= {"ghost_groups": 2, "learning_rate": 0.02, "epochs": 1}
    short["jit"] = True  # which several replicas do without
    options = [short | {"out": str(tmp_path / f"run{index}")} for index in range(2)]
    ends = [tmp_path / f"end{index}.npz" for index in range(2)]
    started = workers(lambda index: ["-c", TRAIN, json.dumps(options[index]), str(ends[index])])
    codes = [process.wait(timeout=500) for process in started]
    assert codes == [0, 0], (tmp_path / "err0").read_text()[-2000:]

    first, second = (list(np.load(end).values()) for end in ends)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    alone = command.Runs(command.Interrupt())
    result = alone.train(assemble.configure(short | {"out": str(tmp_path / "alone"), "jit": False}), None)
    values = [np.asarray(v) for v in alone.training.network.variables if "seed" not in v.path]
    for value, other in zip(values, first, strict=True):
        np.testing.assert_allclose(other, value, atol=2e-3 * np.abs(value).max() + 1e-5)
    written = json.loads((tmp_path / "run0" / "result.json").read_text())
    assert written["replicas"] == 2
    for row, expected in zip(written["epochs"], result["epochs"], strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert row["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-3)

    assert not (tmp_path / "run1").exists()
    for index in range(2):
        said = (tmp_path / f"out{index}").read_text()
        assert f"worker {index} of 2" in said and "no XLA" in said
    sums = [
        line
        for index in range(2)
        for line in (tmp_path / f"out{index}").read_text().splitlines()
        if line.startswith("weights sha256")
    ]
    assert len(sums) == 2 and sums[0] == sums[1]


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_that_is_killed_ends_the_other_with_exit_4(short, tmp_path, workers, victim):
    flags = {**short, "epochs": 5000, "out": str(tmp_path / "run")}
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in flags.items() if key != "jit"]
    started = workers(lambda index: ["train_eager.py", *arguments])
    until = time.monotonic() + 400  # TensorFlow starts slowly on a busy machine
    rows = [0, 0]
    while min(rows) < 3 and time.monotonic() < until and all(p.poll() is None for p in started):
        time.sleep(0.5)
        rows = [(tmp_path / f"out{index}").read_text().count("\n    ") for index in range(2)]
    assert min(rows) >= 3, (tmp_path / "err0").read_text()[-2000:]
    started[victim].kill()
    survivor = started[1 - victim]
    with contextlib.suppress(subprocess.TimeoutExpired):
        survivor.wait(timeout=BOUND)
    error = (tmp_path / f"err{1 - victim}").read_text()
    assert survivor.returncode == Exit.LOST_WORKER, error[-2000:]
    last = error.strip().splitlines()[-1]
    assert "is gone, so this one ends" in last
    assert "Traceback" not in error
    if victim == 1:
        check_that_both_go_on(flags, tmp_path, workers)


def check_that_both_go_on(flags, tmp_path, workers):
    """From the last checkpoint, to the weights of two workers of which none was killed."""
    saved, damaged = checkpoint.newest(flags["out"])
    assert saved and not damaged and len(saved.about["rows"]) >= 2
    last = len(saved.about["rows"]) + 2

    def sums(*arguments):
        started = workers(lambda index: ["train_eager.py", *arguments, "--no-jit", "--stop-after", str(last)])[-2:]
        codes = [process.wait(timeout=400) for process in started]
        assert codes == [0, 0], (tmp_path / "err0").read_text()[-2000:]
        texts = [(tmp_path / f"out{index}").read_text() for index in range(2)]
        return [line for text in texts for line in text.splitlines() if line.startswith("weights sha256")]

    resumed = sums("--resume", flags["out"])
    others = {**flags, "out": str(tmp_path / "undisturbed")}
    undisturbed = sums(*[f"--{key.replace('_', '-')}={value}" for key, value in others.items() if key != "jit"])
    assert len(resumed) == len(undisturbed) == 2 and len({*resumed, *undisturbed}) == 1
    rows = [json.loads((Path(out) / "result.json").read_text())["epochs"] for out in (flags["out"], others["out"])]
    for one, other in zip(*rows, strict=True):
        assert all(one[key] == other[key] for key in one if not key.endswith("seconds"))


MISSED = "aborted: Error from /job:worker/task:0: unhealthy tasks:\n/job:worker/replica:0/task:3\nThe tasks"


def test_the_worker_that_is_missed_is_named(monkeypatch):
    task = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    with pytest.raises(UserError, match=r"^worker 3 is gone") as error, devices.reports_lost_workers():
        raise tf.errors.UnavailableError(None, None, MISSED)
    assert error.value.exit_code == 4
    with pytest.raises(UserError, match=r"^another worker is gone"), devices.reports_lost_workers():
        raise tf.errors.AbortedError(None, None, "connection reset")


def test_alone_tensorflows_errors_stay_what_they_are(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    with pytest.raises(tf.errors.UnavailableError), devices.reports_lost_workers():
        raise tf.errors.UnavailableError(None, None, MISSED)
