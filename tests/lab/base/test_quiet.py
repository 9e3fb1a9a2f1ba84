"""TensorFlow's start-up lines are held back, and nothing else: in processes of their own, with lines of its kind."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CHATTER = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    "I0000 00:00:1795532429.147942    4254 port.cc:153] oneDNN custom operations are on.\n"
    "2026-11-24 10:00:00.123456: I tensorflow/core/platform/cpu_feature_guard.cc:210] optimized\n"
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow.\n"
    "E0000 00:00:1795532432.544372    4254 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)\n"
)
PROGRAM = """
import os, signal, sys, warnings
from lab.base.quiet import held_back
sys.stderr.write("before\\n")
with held_back():
    os.write(2, {chatter!r}.encode())
    {within}
sys.stderr.write("after\\n")
"""


def run(within):
    program = PROGRAM.format(chatter=CHATTER, within=within)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_the_chatter_of_a_start_that_went_well_is_not_shown():
    assert run("pass") == (0, "before\nafter\n")


@pytest.mark.parametrize(
    "line",
    [
        "OpenBLAS warning: precompiled NUM_THREADS exceeded",
        "F0000 00:00:1795532432.544372    4254 gpu.cc:52] Check failed",
        "2026-11-24 10:00:00.123456: F tensorflow/core/platform/cpu_feature_guard.cc:210] needs AVX",
        "RuntimeError: module compiled against ABI version 0x1000009",
    ],
)
def test_other_lines_are_shown(line):
    assert run(f"os.write(2, {line!r}.encode() + b'\\n')") == (0, f"before\n{line}\nafter\n")


def test_what_was_loaded_within_goes_on_writing_afterwards():
    """As TensorFlow's logging, which keeps the stderr that Python had as it was loaded."""
    within = "import atexit, logging; handler = logging.StreamHandler(); logging.getLogger().addHandler(handler); "
    within += "atexit.register(logging.warning, 'of later')"
    assert run(within) == (0, "before\nafter\nof later\n")


def test_pythons_own_lines_are_shown_at_once():
    code, error = run("warnings.warn('this matters'); sys.stderr.write('so does this\\n')")
    assert code == 0 and "UserWarning: this matters" in error and "so does this\n" in error and "oneDNN" not in error


@pytest.mark.parametrize(
    ("within", "code"),
    [
        ("raise ImportError('libtensorflow is broken')", 1),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11),
        ("os.abort()", -6),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os._exit(3)", 3),
    ],
)
def test_all_is_shown_of_a_start_that_failed(within, code):
    found, error = run(within)
    assert found == code and CHATTER in error
    assert ("libtensorflow is broken" in error) == (code == 1)


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_tool_starts_quietly_unless_it_is_asked(debug):
    command = [sys.executable, "-c", "from lab.start import load; print(load('tensorflow').__name__)"]
    environment = {"PYTHONPATH": str(ROOT), "DAVIDNET_DEBUG": debug}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "tensorflow\n")
    assert bool(done.stderr) == bool(debug)  # which of its lines there are depends on the machine


def test_a_package_that_is_not_installed_is_named():
    command = [
        sys.executable,
        "-c",
        "import sys; sys.modules['tensorflow'] = None; from lab.__main__ import main; sys.exit(main(['devices']))",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "tensorflow is not installed; pip install -r requirements.txt\n"
