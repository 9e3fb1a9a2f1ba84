"""Data made by an enemy, each case in its own bounds of time and memory; tests/hostile.py has the cases."""

import sys

import pytest

import hostile


@pytest.mark.long
@pytest.mark.parametrize("kind", hostile.KINDS)
def test_data_of_an_enemy_ends_in_one_line(kind):
    fell = []
    ((tried, held),) = hostile.cases(kind, fell.append).values()
    assert not fell and tried == held > 7


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
