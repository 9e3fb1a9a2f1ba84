"""A folder belongs to one run and to one live process: by hand, in threads, and with real processes at once."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tensorflow as tf

import faults
from lab.base import files
from lab.base.errors import UserError
from lab.runs import claim
from lab.runs.claim import Claim

ROOT = Path(__file__).resolve().parents[3]


def content(folder):
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "name",
    ["result.json", "weights.npz", "dawnbench.tsv", "checkpoints/step-3.npz", "series.json", "seed-3/x"],
)
def test_a_folder_that_holds_anything_is_refused_and_left_as_it_was(tmp_path, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_text("precious")
    before = content(tmp_path)
    with Claim("mine") as own, pytest.raises(UserError, match="choose another folder"):
        own.take("--out", str(tmp_path / "run"))
    assert content(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file/run", "link"):
        with Claim("mine") as own, pytest.raises(UserError, match="try another --out"):
            own.take("--out", str(tmp_path / name))


def test_a_run_json_that_cannot_be_opened_is_anothers_and_stays(tmp_path):
    """As one that another user's umask closes to us; here a link, which is not followed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").symlink_to(tmp_path / "nowhere")
    with Claim("mine") as own, pytest.raises(UserError, match="cannot write the folder"):
        own.take("--out", str(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_folder_in_which_nothing_was_left_is_gone_again(tmp_path):
    with Claim("mine", {"seed": 3}) as own:
        own.take("--out", str(tmp_path / "a" / "b"))
        own.say(data_sha256="ab")
        about = files.decode((tmp_path / "a" / "b" / "run.json").read_text())
        assert about == {"name": "mine", "seed": 3, "data_sha256": "ab"} == claim.read(tmp_path / "a" / "b")
        assert claim.is_written(tmp_path / "a" / "b")
        (tmp_path / "a" / "b" / "checkpoints").mkdir()
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with Claim("mine") as own:
        own.take("--out", str(tmp_path / "mine"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and not list((tmp_path / "mine").iterdir())


def test_the_very_run_may_come_back_when_its_process_has_ended(tmp_path):
    folder = tmp_path / "run"
    with Claim("mine") as own:
        own.take("--out", str(folder))
        (folder / "result.json").write_text("{}")
        with Claim("mine") as other, pytest.raises(UserError, match="another process is writing"):
            other.take("--out", str(folder))
    assert not claim.is_written(folder)
    with Claim("other") as other, pytest.raises(UserError, match="holds a run"):
        other.take("--out", str(folder))
    with Claim("mine") as own:
        own.take("--out", str(folder))
    assert (folder / "result.json").read_text() == "{}" and claim.read(folder)["name"] == "mine"


@pytest.mark.parametrize("spoil", [b"", b"{}", b"[" * 100_000, b"\xff\x00", b'{"name": 3}'])
def test_a_damaged_run_json_is_nobodys(tmp_path, spoil):
    (tmp_path / "run.json").write_bytes(spoil)
    assert claim.read(tmp_path) == {}
    (tmp_path / "result.json").write_text("{}")
    with Claim("mine") as own, pytest.raises(UserError, match="holds"):
        own.take("--out", str(tmp_path))


def test_of_many_at_once_each_has_a_default_folder_of_its_own(tmp_path):
    together, made = threading.Barrier(12), []

    def make():
        together.wait()
        with Claim(claim.new_name()) as own:
            path = Path(own.take_new(tmp_path / "runs", "davidnet-0-20260101-000000"))
            (path / "result.json").write_text("{}")
            made.append(path.name)

    threads = [threading.Thread(target=make) for _ in range(12)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    numbers = ["", *(f"-{number}" for number in range(2, 13))]
    assert sorted(made) == sorted(f"davidnet-0-20260101-000000{number}" for number in numbers)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_of_many_at_once_at_most_one_has_a_named_folder(tmp_path, scheme):
    together, over, got, others = threading.Barrier(8), threading.Barrier(8, timeout=60), [], []

    def take(number):
        own = Claim(claim.new_name())
        together.wait()
        try:
            own.take("--checkpoint-dir", f"{scheme}{tmp_path}/run")
            got.append(number)
        except Exception as error:
            others.append(error)
        over.wait()
        own.release()

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    for error in others:
        assert isinstance(error, UserError), error
        assert "another process is writing" in str(error) or "holds a run" in str(error)
    assert len(got) <= 1 and (got or scheme)  # without locks all may step back
    assert not list(tmp_path.rglob("*.json"))


def marker(folder, **about):
    mine = {"host": socket.gethostname(), "process": os.getpid(), "time": "2026-01-01 00:00:00 +0000"}
    tf.io.gfile.makedirs(folder)
    with tf.io.gfile.GFile(f"{folder}/writing-0123.json", "w") as file:
        file.write(json.dumps(mine | about))


def test_a_service_without_locks_has_markers_with_a_way_out():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number, (about, stale) in enumerate(
        [
            ({"process": dead.pid}, True),  # of this machine, and ended
            ({}, True),  # in a container, a first process before this one
            ({"process": os.getppid()}, False),
            ({"host": "elsewhere", "process": dead.pid}, False),
            ({"process": "x\n" * 500}, False),
        ]
    ):
        folder = f"ram://claims/{number}"
        marker(folder, **about)
        with Claim("mine") as own:
            if stale:
                own.take("--checkpoint-dir", folder)
                assert claim.read(folder)["name"] == "mine"
                continue
            with pytest.raises(UserError, match=r"has ended, remove ram://claims/\d/writing-0123\.json") as said:
                own.take("--checkpoint-dir", folder)
            assert "\n" not in str(said.value) and len(str(said.value)) < 500
        assert tf.io.gfile.listdir(folder) == ["writing-0123.json"]


# ---- real processes, several at once -----------------------------------------------------------------------


def start(folder, name, *flags):
    """python train_eager.py in a folder; what it says goes to a file there."""
    with open(folder / f"{name}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train_eager.py"), *map(str, flags)],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def training(data, *more):
    _, _, *flags = faults.command(data, "OUT", *more)
    at = flags.index("--out")
    return [*flags[:at], *flags[at + 2 :]]


@pytest.mark.long
def test_runs_at_once_lose_nothing(tmp_path):
    """Two of one seed without --out, two with the same --out: of the latter one goes on."""
    faults.make_data(data := tmp_path / "data.npz")
    flags = [*training(data), "--epochs", 2]
    alone = [start(tmp_path, f"alone{rate}", *flags, "--learning-rate", rate) for rate in (0.1, 0.2)]
    same = [start(tmp_path, f"same{rate}", *flags, "--learning-rate", rate, "--out", "same") for rate in (0.1, 0.2)]
    codes = [process.wait(300) for process in (*alone, *same)]
    logs = {path.stem: path.read_text() for path in tmp_path.glob("*.log")}
    assert codes[:2] == [0, 0] and sorted(codes[2:]) == [0, 2], logs
    folders = sorted((tmp_path / "runs").iterdir())
    rates = {json.loads((folder / "result.json").read_text())["hyperparameters"]["learning_rate"] for folder in folders}
    assert len(folders) == 2 and rates == {0.1, 0.2}
    refused = logs[f"same{(0.1, 0.2)[codes[2:].index(2)]}"]
    assert "--out same" in refused and "Traceback" not in refused
    kept = json.loads((tmp_path / "same" / "result.json").read_text())
    assert kept["hyperparameters"]["learning_rate"] == (0.1, 0.2)[codes[2:].index(0)] and kept["finished"]


@pytest.mark.long
def test_a_killed_process_leaves_its_folder_free(tmp_path):
    faults.make_data(data := tmp_path / "data.npz")
    process = start(tmp_path, "first", *training(data), "--out", "run")
    while not list(tmp_path.glob("run/checkpoints/step-*.json")):
        assert process.poll() is None, (tmp_path / "first.log").read_text()
        time.sleep(0.02)
    second = start(tmp_path, "second", "--resume", "run")
    process.kill()
    process.wait()
    assert second.wait(300) == 0, (tmp_path / "second.log").read_text()
    before = content(tmp_path / "run")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert start(tmp_path, "third", "--resume", "run").wait(300) == 0
    log = (tmp_path / "third.log").read_text()
    assert "nothing is left to do" in log and "compiled" not in log
    assert content(tmp_path / "run") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
