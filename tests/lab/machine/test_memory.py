"""The restart, in processes of their own."""

import dataclasses
import platform
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tensorflow as tf

from lab import assemble, drive
from lab.base.errors import Exit, UserError
from lab.ladder import networks
from lab.machine import memory

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """\
import os, sys
from lab.machine import memory
memory.restart_with_huge_pages()
print(os.environ["GLIBC_TUNABLES"], sys.argv[1:])
"""
FREED = """\
import ctypes
from lab.machine import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmRSS"))
blocks = [libc.malloc(4000) for _ in range(50_000)]
for block in blocks:
    ctypes.memset(block, 1, 4000)
full = resident()
for block in blocks[:-1]:  # the last one keeps the heap's end where it is
    libc.free(block)
freed = resident()
memory.give_back()
print(full, freed, resident())
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),  # a user's own choice stands
    ],
)
def test_it_restarts_once_with_the_same_arguments(before, after):
    environment = {"PYTHONPATH": str(ROOT)} | ({"GLIBC_TUNABLES": before} if before else {})
    command = [sys.executable, "-c", SCRIPT, "a b", "--c"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{after} ['a b', '--c']\n"


def test_a_notebooks_kernel_is_left_alone(monkeypatch):
    from lab.machine import memory

    monkeypatch.setitem(
        sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=1))
    )
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(memory.os, "execv", lambda *_: pytest.fail("the kernel would be gone"))
    memory.restart_with_huge_pages()


def test_a_prompt_is_left_alone(monkeypatch):
    from lab.machine import memory

    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(memory.os, "execv", lambda *_: pytest.fail("the session would be gone"))
    memory.restart_with_huge_pages()


def test_what_is_free_is_given_back():
    command = [sys.executable, "-c", FREED]
    result = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    full, freed, given_back = map(int, result.stdout.split())  # MiB
    assert full - freed < 20  # free, but still the process's
    assert full - given_back > 150  # of 190


def test_elsewhere_than_under_glibc_nothing_is_given_back(monkeypatch):
    from lab.machine import memory

    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda *_: pytest.fail("no such call there"))
    memory.give_back()


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    """Both versions of control groups, as files that look like theirs."""
    free = memory.proc_gib("/proc/meminfo", "MemAvailable:")
    if free is None:
        pytest.skip("the system does not say")
    resident = memory.proc_gib("/proc/self/status", "VmRSS:")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    assert memory.available_gib() == pytest.approx(free, rel=0.2)
    (tmp_path / "memory").mkdir()
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        (tmp_path / name).write_text(f"{int((resident + 0.25) * 2**30)}\n")
        assert memory.available_gib() == pytest.approx(0.25, abs=0.05)
        (tmp_path / name).write_text("max\n")
    assert memory.available_gib() == pytest.approx(free, rel=0.2)


def test_a_batch_that_cannot_fit_names_one_that_does(monkeypatch):
    monkeypatch.setattr(memory, "available_gib", lambda: 2.0)
    assert memory.check_batch(1000, 2 * 2**20, 1) == ""  # 1.95 GiB
    note = memory.check_batch(2000, 2 * 2**20, 1)  # 3.9 GiB may fit, in 0.5 times of it
    assert "takes about 3.9 GiB, 2.0 are available; if it does not fit, try --batch-size 819" in note
    with pytest.raises(UserError, match=r"--batch-size 8000 takes about 15.6 GiB.*try --batch-size 816$") as error:
        memory.check_batch(8000, 2 * 2**20, 8)
    assert error.value.exit_code == Exit.EXHAUSTED == 6
    monkeypatch.setattr(memory, "available_gib", lambda: None)
    assert memory.check_batch(10**9, 2**20, 1) == ""


def test_a_run_that_does_not_fit_ends_with_6_and_the_batch_it_names_runs(
    short, monkeypatch, capsys, tmp_path, command_line
):
    flags = ["--batch-size", "64", "--width", "4", "--epochs", "1", "--device", "cpu", "--no-jit"]
    flags += ["--data", short["data"], "--ghost-groups", "4"]
    monkeypatch.setattr(memory, "available_gib", lambda: 0.005)
    assert command_line([*flags, "--out", str(tmp_path / "one")]) == 6
    error = capsys.readouterr().err
    found = re.fullmatch(r"--batch-size 64 takes about 0\.0 GiB, 0\.0 are available; try --batch-size (\d+)\n", error)
    assert found and int(found[1]) % 4 == 0 and 0 < int(found[1]) < 64
    assert command_line([*flags, "--batch-size", found[1], "--out", str(tmp_path / "one")]) == 0

    def exhausted(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating: out of memory")

    monkeypatch.setattr(memory, "available_gib", lambda: None)
    monkeypatch.setattr(drive, "warm_up", exhausted)
    assert command_line([*flags, "--out", str(tmp_path / "three")]) == 6
    assert capsys.readouterr().err == "--batch-size 64 with --width 4 does not fit in memory; try --batch-size 32\n"


def test_of_several_workers_each_holds_its_part_of_the_batch_that_is_named(short, monkeypatch, capsys):
    training = assemble.make(assemble.configure(short))
    training.placement = dataclasses.replace(training.placement, workers=2)
    needed = []
    monkeypatch.setattr(memory, "check_batch", lambda *call: needed.append(call[0] * call[1]) or f"{call[0]} images")
    drive.check_memory(types.SimpleNamespace(options=training.config, training=training))
    assert capsys.readouterr().out == "note: 16 images\n"
    training.placement = dataclasses.replace(training.placement, workers=1)
    drive.check_memory(types.SimpleNamespace(options=training.config, training=training))
    assert needed[0] == pytest.approx(needed[1] / 2, rel=1e-3)


def test_a_network_that_cannot_fit_is_refused_before_it_is_built(short, monkeypatch, capsys, command_line):
    monkeypatch.setattr(
        networks, "make", lambda options, *_, make=networks.make, **how: check_small(make, options, how)
    )
    flags = ["--width", "3000", "--batch-size", "16", "--device", "cpu", "--data", short["data"], "--out", short["out"]]
    monkeypatch.setattr(memory, "available_gib", lambda: 8.0)
    assert command_line(flags) == 6
    error = capsys.readouterr().err
    found = re.fullmatch(
        r"--width 3000 makes ([\d,]+) million parameters, which take about [\d.]+ GiB to train, 8\.0 are available; "
        r"try --width (\d+)\n",
        error,
    )
    # DavidNet by hand: 3x3 filters between layers of c, 2c, 4c and 8c; the rest is nothing beside them.
    filters = 9 * (1 * 2 + 2 * 2 * 2 + 2 * 4 + 4 * 8 + 2 * 8 * 8) * 3000**2
    assert int(found[1].replace(",", "")) == pytest.approx(filters / 1e6, rel=1e-3)
    assert 0.5 < memory.PARAMETER_BYTES["fast"] * 9 * 178 * int(found[2]) ** 2 / (8 * 2**30) < 0.81
    assert not Path(short["out"]).exists()


def check_small(make, options, how):
    assert options.width < 4
    return make(options, 4, **how)


def test_more_updates_than_their_rates_fit_are_refused(short, monkeypatch, capsys, command_line):
    monkeypatch.setattr(memory, "available_gib", lambda: 0.1)
    flags = [
        "--epochs",
        "100000",
        "--batch-size",
        "1",
        "--device",
        "cpu",
        "--data",
        short["data"],
        "--out",
        short["out"],
    ]
    assert command_line(flags) == 6
    assert capsys.readouterr().err.startswith("the rates of 8,000,000 updates take about 0.2 GiB, 0.1 are available")
