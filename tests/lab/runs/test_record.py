"""Files are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.base.errors import UserError
from lab.runs import record

ROOT = Path(__file__).resolve().parents[3]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    record.write_whole(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(
                UserError, match=r"result\.json: No space left on device; free the disk"
            ) as refusal:
                record.write_whole(path, "new")
            assert refusal.value.exit_code == 5
        assert path.read_text() == "old"
        assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    record.write_whole(path, "new")
    assert path.read_text() == "new"


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="try another --out"):
        record.make_folder(str(tmp_path / "file" / "run"), tmp_path)


def test_the_default_folder_is_used_without_out(tmp_path):
    assert record.make_folder("", tmp_path / "runs" / "a") == tmp_path / "runs" / "a"
    assert (tmp_path / "runs" / "a").is_dir()


def test_dawnbenchs_hours_add_up():
    rows = [
        {"epoch": 1, "train_seconds": 1800.0, "test_accuracy": 0.5},
        {"epoch": 2, "train_seconds": 900.0, "test_accuracy": 0.94126},
    ]
    expected = "epoch\thours\ttop1Accuracy\n1\t0.50000000\t50.00\n2\t0.75000000\t94.13\n"
    assert record.dawnbench_table(rows) == expected


def test_versions_and_hardware_name_what_decides_the_numbers():
    assert {"python", "tensorflow", "keras", "numpy"} <= set(record.versions())
    machine = record.hardware(["GPU 0"])
    assert machine["cores"] >= 1 and machine["processor"] and machine["accelerators"] == ["GPU 0"]


def test_peak_memory_grows_with_what_is_held():
    """In a process of its own, whose peak is not that of earlier tests."""
    code = (
        "import numpy as np\n"
        "from lab.runs import record\n"
        "before = record.peak_memory_gib()\n"
        "held = np.ones(2**27)\n"  # 1 GiB
        "print(record.peak_memory_gib() - before, before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, before = map(float, done.stdout.split())
    assert grown == pytest.approx(1, abs=0.05) and 0.005 < before < 1
