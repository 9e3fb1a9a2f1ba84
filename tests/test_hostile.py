"""Data made by an enemy, each case in its own bounds of time and memory; tests/hostile.py has the cases."""

import re
import subprocess
import sys

import pytest

import hostile


@pytest.mark.long
@pytest.mark.parametrize("kind", hostile.KINDS)
def test_data_of_an_enemy_ends_in_one_line(kind):
    # In a process of its own: forked from one in which TensorFlow has threads, a case would hang.
    command = [sys.executable, hostile.__file__, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    name, tried, held = re.fullmatch(r"(\w+) +(\d+) tried, +(\d+) held, 0 fell short\n", done.stdout).groups()
    assert name == kind and int(tried) == int(held) > 7


def test_what_falls_short_is_noticed(monkeypatch):
    monkeypatch.setattr(hostile, "SECONDS", 0.5)

    def hang(content, folder):
        while True:
            pass

    def fail(content, folder):
        raise KeyError(content)

    def chatter(content, folder):
        print("\x1b[2J", file=sys.stderr)
        raise hostile.UserError("refused")

    assert hostile.outcome(hang, "x").startswith("FELL more than")
    assert hostile.outcome(chatter, "x").startswith("FELL")
    assert hostile.outcome(fail, "x").startswith("FELL KeyError")
    assert hostile.outcome(lambda content, folder: bytearray(1 << 33), "x").startswith("FELL MemoryError")
