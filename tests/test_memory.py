"""The restart, in processes of their own."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """\
import os, sys, memory
memory.restart_with_huge_pages()
print(os.environ["GLIBC_TUNABLES"], sys.argv[1:])
"""
FREED = """\
import ctypes, memory
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
    import memory

    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(memory.os, "execv", lambda *_: pytest.fail("the kernel would be gone"))
    memory.restart_with_huge_pages()


def test_what_is_free_is_given_back():
    command = [sys.executable, "-c", FREED]
    result = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    full, freed, given_back = map(int, result.stdout.split())  # MiB
    assert full - freed < 20  # free, but still the process's
    assert full - given_back > 150  # of 190


def test_elsewhere_than_under_glibc_nothing_is_given_back(monkeypatch):
    import memory

    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda *_: pytest.fail("no such call there"))
    memory.give_back()
