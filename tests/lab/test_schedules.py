"""The schedule against np.interp and hand-worked values."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lab import schedules as schedule
from lab.base.errors import UserError
from lab.ladder.optimizers import EpochRate

ROOT = Path(__file__).resolve().parent.parent
KNOTS = [
    [(0, 0), (5, 0.4), (24, 0)],
    [(0, 0), (15, 0.1), (30, 0.005), (35, 0)],
    [(2, 0.3)],
    [(0.5, 1.0), (0.75, 0.0)],
]


@pytest.mark.parametrize("knots", KNOTS)
def test_the_curve_is_numpys_interpolation(knots):
    epochs = np.linspace(-1, 40, 1000)
    expected = np.interp(epochs, *zip(*knots, strict=True))
    np.testing.assert_allclose(schedule.PiecewiseLinear(knots)(epochs), expected, atol=1e-12)


def test_a_scalar_gives_a_scalar():
    rate = schedule.triangle(24, 5, 0.4)
    assert rate(5) == pytest.approx(0.4)
    assert rate(2.5) == pytest.approx(0.2)
    assert rate(24) == 0.0
    assert np.ndim(rate(3)) == 0


def test_without_warm_up_the_rate_starts_at_its_peak():
    assert schedule.triangle(10, 0, 0.4)(0) == pytest.approx(0.4)


@pytest.mark.parametrize("jit", [False, True])
def test_a_compiled_step_reads_it_at_step_k_over_97_from_one(jit):
    rate = EpochRate(schedule.triangle(24, 5, 0.4), steps_per_epoch=97, divisor=512)
    steps = np.arange(97 * 24)
    values = tf.function(rate, jit_compile=jit)(tf.constant(steps))
    expected = np.interp((steps + 1) / 97, [0, 5, 24], [0, 0.4, 0]) / 512
    np.testing.assert_allclose(values, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("knots", "words"),
    [
        ([], "0 knots"),
        ([(0, 0), (5, 1), (5, 0)], "5 and 5 do not rise"),
        ([(3, 0), (2, 1)], "3 and 2 do not rise"),
        ([(0, float("nan"))], "nan"),
        ([(0, -0.1)], "-0.1"),
        ([(-1, 0.1)], "-1"),
        ([(0, 0), (float("inf"), 0.1)], "inf"),
    ],
)
def test_bad_knots_are_refused(knots, words):
    with pytest.raises(UserError, match=words):
        schedule.PiecewiseLinear(knots)


def run(*arguments, **options):
    command = [sys.executable, "schedule.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def test_the_script_prints_the_curve_and_does_not_import_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('schedule.py must not import TensorFlow')")
    result = run(env={"PYTHONPATH": str(tmp_path)})
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) == 25
    assert lines[5].split() == ["5.00", "0.40000", "#" * 50]


def test_the_script_refuses_bad_knots_in_one_line(tmp_path):
    for knots in ("0,0 5", "a,b", "5,1 3,2"):
        result = run("--knots", knots)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1


def test_the_script_draws(tmp_path):
    pytest.importorskip("matplotlib", reason="drawing is optional")
    result = run("--plot", tmp_path / "rate.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "rate.png").read_bytes().startswith(b"\x89PNG")
    assert run("--plot", tmp_path / "absent" / "rate.png").returncode == 2
