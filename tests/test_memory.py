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
