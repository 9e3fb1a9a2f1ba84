"""What a run leaves: its folder, and what a result says of code and machine."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.runs import record

ROOT = Path(__file__).resolve().parents[3]


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


def test_the_processors_flags_are_linuxs(tmp_path):
    cpuinfo = Path("/proc/cpuinfo")
    machine = record.hardware()
    if not cpuinfo.exists() or "flags" not in cpuinfo.read_text():
        assert machine["processor_flags"] is None
        return
    first = cpuinfo.read_text().split("\n\n")[0].splitlines()
    (flags,) = [line.split(":")[1].split() for line in first if line.startswith("flags")]
    known = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]
    assert machine["processor_flags"] == [name for name in known if name in flags]


# ---- which code --------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A folder like the project's, without git."""
    root = tmp_path / "project"
    for name in ("train_eager.py", "model.py", "data.py", "schedule.py", "lab/__init__.py", "lab/b/c.py", "lab/b_.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    return root


def code(root):
    record.code.cache_clear()
    return record.code(root)


@pytest.fixture(autouse=True)
def fresh_code():
    yield
    record.code.cache_clear()


def git(root, *command):
    call = ["git", "-c", "user.name=A", "-c", "user.email=a@b", "-C", str(root), *command]
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()


def shell_sum(root):
    """The sum by the command that the docstring gives."""
    files = "train_eager.py model.py data.py schedule.py $(find lab -name '*.py' | LC_ALL=C sort)"
    done = subprocess.run(
        f"sha256sum {files} | sha256sum", shell=True, cwd=root, check=True, capture_output=True, text=True
    )
    return done.stdout.split()[0]


def test_without_git_the_sources_tell_the_code(project, tmp_path):
    before = code(project)
    names = ["train_eager.py", "model.py", "data.py", "schedule.py", "lab/__init__.py", "lab/b/c.py", "lab/b_.py"]
    lines = "".join(f"{hashlib.sha256(f'# {name}'.encode() + bytes([10])).hexdigest()}  {name}\n" for name in names)
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert before == {"commit": None, "changed": None, "sha256": expected}
    assert before["sha256"] == shell_sum(project)
    (project / "notes.txt").write_text("no source")
    assert code(project) == before
    assert code(shutil.copytree(project, tmp_path / "elsewhere")) == before
    (project / "lab" / "b" / "c.py").write_text("# another\n")
    changed = code(project)["sha256"]
    assert changed != expected and changed == shell_sum(project)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_repository_tells_commit_and_changes(project):
    git(project, "init", "-q")
    assert (code(project)["commit"], code(project)["changed"]) == (None, None)  # no commit yet
    git(project, "add", ".")
    git(project, "commit", "-q", "-m", "first")
    commit = git(project, "rev-parse", "HEAD")
    (project / "README.md").write_text("no source")
    assert (code(project)["commit"], code(project)["changed"]) == (commit, False)
    for name in ("model.py", "lab/b/c.py", "lab/new.py"):
        path = project / name
        before = path.read_text() if path.exists() else None
        path.write_text("# changed\n")
        assert (code(project)["commit"], code(project)["changed"]) == (commit, True)
        path.unlink() if before is None else path.write_text(before)
    assert code(project)["changed"] is False
    assert record.code(project) is record.code(project)  # read once


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_another_projects_repository_is_not_ours(project):
    git(project.parent, "init", "-q")
    (project.parent / ".gitignore").write_text("project\n")
    git(project.parent, "add", ".gitignore")
    git(project.parent, "commit", "-q", "-m", "another project")
    assert (code(project)["commit"], code(project)["changed"]) == (None, None)


@pytest.mark.parametrize("what", ["missing", "slow"])
def test_git_that_does_not_answer_is_left_out(project, tmp_path, monkeypatch, what):
    (tmp_path / "bin").mkdir()
    if what == "slow":
        (tmp_path / "bin" / "git").write_text("#!/bin/sh\nexec /bin/sleep 30\n")
        (tmp_path / "bin" / "git").chmod(0o755)
        monkeypatch.setattr(record, "GIT_SECONDS", 0.2)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    told = code(project)
    assert (told["commit"], told["changed"]) == (None, None) and len(told["sha256"]) == 64


# ---- memory ------------------------------------------------------------------------------------------------


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
