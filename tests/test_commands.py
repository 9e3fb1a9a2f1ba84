"""Hostile command lines, as many as half a minute holds; tests/commands.py tries all of them, some hundreds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_hostile_command_lines_end_in_a_line():
    driver = Path(__file__).with_name("commands.py")
    command = [sys.executable, str(driver), "--seconds", "30", "--seed", "20191122"]  # its own process: it moves about
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = re.search(r"^(\d+) cases: ", done.stdout, re.MULTILINE)
    assert tried and int(tried[1]) >= 10 and "refused" in done.stdout
