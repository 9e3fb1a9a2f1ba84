"""Schedules as text and as a picture; the curve itself is in tests/test_schedule.py."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lab.base.errors import UserError
from lab.ladder import schedules

ROOT = Path(__file__).resolve().parents[3]


def test_knots_are_read_from_text_and_written_as_it():
    rate = schedules.parse(" 0,0  5,0.4 24,0 ")
    assert rate.knots == ((0, 0), (5, 0.4), (24, 0))
    assert str(rate) == "0,0 5,0.4 24,0"
    third = rate.times(1 / 3)
    np.testing.assert_allclose(schedules.parse(str(third)).knots, third.knots, rtol=1e-9)
    assert rate.peak == 0.4 and rate(2.5) == pytest.approx(0.2)


def test_a_multiplied_schedule_has_other_rates():
    assert schedules.parse("1,0.5 3,0.25").times(2).knots == ((1, 1.0), (3, 0.5))


@pytest.mark.parametrize("text", ["", "0,0 5", "a,b", "5,1 3,2", "0,0 5,-1", "0,0 inf,1", "0,0,0"])
def test_text_that_is_no_schedule_is_refused_by_the_flag_s_name(text):
    with pytest.raises(UserError, match=r"^--knots ") as error:
        schedules.parse(text)
    assert repr(text) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("knots", "words"),
    [
        ([], "0 knots"),
        ([(0, 0), (5, 1), (5, 0)], "5 and 5 do not rise"),
        ([(3, 0), (2, 1)], "3 and 2 do not rise"),
        ([(0, float("nan"))], "nan"),
        ([(float("nan"), 0.1)], "nan"),
        ([(0, 0.1), (float("inf"), 0)], "inf"),
        ([(0, -0.1)], "-0.1"),
        ([(-1, 0.1)], "-1"),
    ],
)
def test_knots_that_are_no_schedule_are_refused_in_one_line(knots, words):
    with pytest.raises(ValueError, match=words) as error:
        schedules.Knots(knots)
    assert "\n" not in str(error.value) and ";" in str(error.value)  # and it says what to do


def test_the_command_prints_the_curve_and_does_not_import_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('python -m lab schedule must not import TensorFlow')")
    command = [sys.executable, "-m", "lab", "schedule"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 25
    assert lines[0].split() == ["0.00", "0.00000"]
    assert lines[5].split() == ["5.00", "0.40000", "#" * 50]


def test_the_command_refuses_bad_knots_in_one_line(capsys):
    for knots in ("0,0 5", "a,b", "5,1 3,2"):
        assert schedules.main(["--knots", knots]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1


def test_the_command_draws(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="drawing is optional")
    assert schedules.main(["--plot", str(tmp_path / "rate.png")]) == 0
    assert (tmp_path / "rate.png").read_bytes().startswith(b"\x89PNG")
    assert schedules.main(["--plot", str(tmp_path / "absent" / "rate.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_schedule_until_an_epoch_is_itself_and_then_0():
    knots, at = schedules.Knots([(0, 0.0), (2, 1.0), (6, 0.0)]), np.arange(81) / 10
    for end in (1.0, 2.0, 3.5, 7.0):
        expected = np.where(at <= end, np.interp(at, [0, 2, 6], [0, 1, 0]), 0)
        np.testing.assert_allclose(knots.until(end)(at), expected, atol=1e-9)
