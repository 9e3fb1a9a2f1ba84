"""What a run prints."""

import contextlib
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from lab.base import console

ROOT = Path(__file__).resolve().parents[3]

ROW = {
    "epoch": 3,
    "learning_rate": 0.4,
    "train_loss": 1.25,
    "train_accuracy": 0.5,
    "test_loss": 1.125,
    "test_accuracy": 0.625,
    "train_seconds": 12.34,
    "total_seconds": 56.78,
}


def test_a_row_stands_under_its_headings():
    heading, row = console.heading(), console.row(ROW)
    assert len(heading) == len(row)
    assert row.split() == ["3", "0.40000", "1.2500", "0.5000", "1.1250", "0.6250", "12.3", "56.8"]
    for name, value in (("train loss", "1.2500"), ("test acc", "0.6250"), ("total s", "56.8")):
        assert heading.index(name) + len(name) == row.index(value) + len(value)


def test_the_header_is_aligned(capsys):
    console.header({"recipe": "davidnet", "data": "synthetic"})
    assert capsys.readouterr().out == "recipe  davidnet\ndata    synthetic\n"


@pytest.fixture
def bar(monkeypatch):
    """A bar over 2 epochs of 1,000 images and one of 400, what it writes, and a clock to turn."""
    monkeypatch.setattr(console, "in_kernel", lambda: True)
    shown, clock = io.StringIO(), [0.0]
    monkeypatch.setattr("sys.stderr", shown)
    with console.EpochBar([0, 1000, 2000, 2400]) as made:
        made.bar._time = lambda: clock[0]
        yield made, shown, clock


def test_the_bar_counts_what_is_left_of_the_run(bar):
    made, shown, clock = bar
    made.show(1, 0)
    clock[0] = 1.0
    made.show(1, 80)  # 80 a second, and 920 + 1,400 to come
    assert made.bar.n == 80 and made.bar.postfix == "00:29 left"
    made.show(2, 0)
    clock[0] = 2.0
    made.show(2, 500)
    assert made.bar.n == 500 and made.bar.desc == "epoch 2/3"
    made.show(3, 200)
    assert made.bar.total == 400
    assert "epoch 2/3" in shown.getvalue() and "images/s" in shown.getvalue()


def test_no_bar_into_a_file(capsys):
    with console.EpochBar([0, 10]) as made:
        made.show(1, 5)
    assert capsys.readouterr().err == ""


def test_waiting_says_so_in_a_plain_line_where_nobody_watches(capsys):
    with console.waiting("preparing"):
        pass
    assert capsys.readouterr() == ("preparing\n", "")


def test_on_a_terminal_the_seconds_of_a_wait_count_and_are_gone_afterwards():
    program = (
        "import time; from lab.base import console\nwith console.waiting('preparing'): time.sleep(2.4)\nprint('done')"
    )
    leader, follower = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], stdout=follower, stderr=follower, cwd=ROOT) as process:
        os.close(follower)
        written = b""
        with contextlib.suppress(OSError):  # as a terminal's end is
            while piece := os.read(leader, 1000):
                written += piece
    os.close(leader)
    assert process.returncode == 0
    frames = written.split(b"\r")
    assert [b"preparing: %d s " % second in frames for second in (0, 1, 2)] == [True] * 3
    assert written.endswith(b"\r\x1b[Kdone\r\n")
