"""python -m lab recipes: the table, how two recipes differ, and a network layer by layer."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as tree
from pathlib import Path

import pytest

from lab import show
from lab.base.files import encode
from lab.ladder.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_has_a_line_for_each_recipe_with_what_is_claimed_and_measured(tmp_path, made_result):
    for seed, accuracy in enumerate((0.94, 0.942)):
        made = made_result("speedrun", seed, [0.5] * 7 + [0.93], test_accuracy_tta=accuracy)
        (tmp_path / f"{seed}.json").write_text(encode(made))
    head, *lines = show.listing(tmp_path).splitlines()
    assert re.split("  +", head) == ["recipe", "epochs", "claimed", "time", "measured", "follows its published log"]
    assert [line.split()[0] for line in lines[: len(RECIPES)]] == list(RECIPES)
    cells = {line.split()[0]: re.split("  +", line) for line in lines[: len(RECIPES)]}
    assert cells["speedrun"] == ["speedrun", "8", "94.01 % (n=200)", "2.59 s, A100", "94.10 % (n=2)", "no log"]
    assert cells["bag-of-tricks"][1:] == ["10", "94.1 %", "26 s, V100", "not measured yet", "no log"]
    assert cells["lars"][1:] == ["24", "no figure", "not measured yet", "no log"]
    assert cells["post4-wide"][-1] == "not measured yet"


def test_a_difference_is_a_line_a_hyperparameter(capsys):
    assert show.main(["--diff", "post4-conv3", "post4-maxpool"]) == 0
    assert "'conv3'" in (shown := capsys.readouterr().out) and len(shown.splitlines()) == 1
    assert show.main(["--diff", "post2-batch512", "post3-fp32-bn"]) == 0  # of which nothing is left here
    assert "same hyperparameters" in capsys.readouterr().out
    assert show.main(["--diff", "davidnet", "davidnte"]) == 2
    assert "did you mean davidnet?" in capsys.readouterr().err


def test_a_recipe_is_described_layer_by_layer(capsys, tmp_path):
    drawing = tmp_path / "net.svg"
    assert show.main(["--describe", "davidnet", "--svg", str(drawing)]) == 0
    shown = capsys.readouterr().out
    assert "6,573,120" in shown and "379," in shown  # multiply-adds, in millions, as published
    boxes = tree.parse(drawing).getroot().findall("{http://www.w3.org/2000/svg}rect")
    arrows = tree.parse(drawing).getroot().findall("{http://www.w3.org/2000/svg}path")
    assert len(arrows) == len(boxes) - 2 + 2  # a box's arrow each but the images', less the frame; two skips
    assert show.main(["--describe", "davidnet", "--svg", str(tmp_path / "no" / "net.svg")]) == 5


def test_a_drawing_without_a_recipe_is_refused(capsys, tmp_path):
    assert show.main(["--svg", str(tmp_path / "net.svg")]) == 2
    assert "--describe davidnet" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--diff", "davidnet", "speedrun"], ["-h"]])
def test_the_table_and_a_difference_need_no_tensorflow(arguments, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('hidden')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "lab", "recipes", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and ("davidnet" in done.stdout or "-h" in arguments)
