"""The command: tables, comparisons, JSON, what it refuses, and that it needs no TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lab.report import report, statistics, tables

ROOT = Path(__file__).resolve().parents[3]
stats = pytest.importorskip("scipy.stats", reason="statistics need SciPy")


@pytest.fixture
def series(leave, tmp_path):
    """Folders of runs whose last accuracies are given: series("before", [0.94, 0.941]); returns the folder."""

    def make(name, accuracies, **values):
        for seed, accuracy in enumerate(accuracies):
            # json's shortest form is read back to the same number
            leave(tmp_path / name / str(seed), seed=seed, accuracies=(0.5, float(accuracy)), **values)
        return tmp_path / name

    return make


def shown(capsys, *arguments):
    """What the command prints, as it is meant to succeed."""
    assert report.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """The line with which the command refuses."""
    assert report.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    return err


def test_a_row_a_run_and_statistics_a_group(series, leave, capsys, tmp_path):
    folder = series("runs", [0.939, 0.941, 0.942])
    leave(folder / "stopped", seed=9, finished=False, accuracies=(0.3,), hyperparameters={"epochs": 2})
    leave(folder / "wide", accuracies=(0.5, 0.95), hyperparameters={"width": 128})
    out = shown(capsys, folder)
    lines = out.splitlines()
    assert sum("result.json" in line and line[0].isdigit() for line in lines) == 5
    assert "davidnet, epochs 2" in lines and "davidnet, epochs 2, width 128" in lines
    low, high = stats.ttest_1samp([0.939, 0.941, 0.942], 0.94).confidence_interval()
    p = stats.ttest_1samp([0.939, 0.941, 0.942], 0.94, alternative="greater").pvalue
    (row,) = [line for line in lines if line.startswith("plain  ") and " 3 " in line]
    assert f"{100 * low:.2f} to {100 * high:.2f}" in row and f"{p:.2g}" in row
    assert "94.067" in row and "0.153" in row and "2 (67 %)" in row
    assert "1/2, unfinished" in out and "unfinished, so listed but left out of the statistics" in out
    assert "median seconds: train 20.00, total 24.00, compile 3.00, DAWNBench 20.00, airbench not recorded" in out


def test_the_target_can_be_another(series, capsys):
    out = shown(capsys, series("runs", [0.91, 0.93]), "--target", "0.92")
    assert "runs ≥ 92 %" in out and "1 (50 %)" in out and "DAWNBench s, to 92 %" in out


def test_synthetic_images_are_marked(series, made_result, capsys):
    data = made_result()["data"] | {"synthetic": True}
    out = shown(capsys, series("runs", [0.94], data=data))
    assert out.count("SYNTHETIC") == 2


def test_two_sets_are_compared(series, capsys):
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.94, 0.0015, 6), generator.normal(0.943, 0.002, 5)
    paths = series("before", first), series("after", second, hyperparameters={"cutout": 0})
    out = json.loads(shown(capsys, *paths, "--json", "--difference", "0.002"))
    found, expected = out["comparisons"]["plain"], stats.ttest_ind(second, first, equal_var=False)
    low, high = expected.confidence_interval()
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["interval"] == pytest.approx([low, high])
    assert found["difference"] == pytest.approx(second.mean() - first.mean())
    assert [entry["name"][:2] for entry in out["sets"]] == ["A:", "B:"]
    text = shown(capsys, *paths)
    assert "images are not the same" not in text
    assert "B - A" in text and f"{100 * (second.mean() - first.mean()):+.3f}" in text and "Welch" in text
    assert f"{statistics.runs_needed(0.001, first.std(ddof=1), second.std(ddof=1))}" in text


def test_two_sets_of_other_images_are_compared_with_a_word(series, made_result, capsys):
    data = made_result()["data"]
    other = series("other", [0.94, 0.942], data=data | {"sha256": "0" * 64})
    assert "images are not the same" in shown(capsys, series("one", [0.93, 0.932]), other)
    # Where the seed draws the images, no two runs have the same ones.
    held = [
        series(name, [0.94, 0.942], hyperparameters={"holdout": 5000}, data=data | {"sha256": sha256 * 64})
        for name, sha256 in (("left", "1"), ("right", "2"))
    ]
    assert "images are not the same" not in shown(capsys, *held)


def test_what_cannot_be_compared_says_why(series, leave, capsys, tmp_path):
    two, one = series("two", [0.94, 0.941]), series("one", [0.94])
    assert "one holds fewer than 2 finished runs" in shown(capsys, two, one)
    assert "one holds fewer than 2 finished runs" in refused(capsys, "--compare", two, one)
    assert "2 results are in both" in refused(capsys, "--compare", two, two)
    assert "these are 1" in refused(capsys, "--compare", two)
    leave(one / "other", hyperparameters={"width": 8})
    assert "2 kinds of training" in refused(capsys, "--compare", two, one)
    with_tta = series("tta", [0.93, 0.931], test_accuracy_tta=0.94)
    assert "not in both sets" in shown(capsys, two, with_tta)


def test_json_has_the_numbers(series, capsys):
    folder = series("runs", [0.94, 0.942], forward_gflop_per_image=0.76)
    out = json.loads(shown(capsys, folder, "--json", "--peak-tflops", "114"))
    assert [run["seed"] for run in out["runs"]] == [0, 1]
    medians = out["sets"][0]["groups"][0]["median_seconds"]
    assert medians == {"train": 20, "total": 24, "compile": 3, "DAWNBench": 20, "airbench": None}
    assert out["runs"][0]["speed"]["share"] == pytest.approx(0.1)
    (group,) = out["sets"][0]["groups"]
    assert group["changed"] == {"epochs": 2} and group["accuracies"]["plain"]["mean"] == pytest.approx(0.941)
    text = shown(capsys, folder, "--peak-tflops", "114")
    assert "10.0 %" in text and "11.4" in text


def test_the_same_file_counts_once(series, capsys):
    folder = series("runs", [0.94, 0.941])
    out = shown(capsys, folder, folder / "0", folder / "0" / "result.json")
    assert sum("result.json" in line for line in out.splitlines()) == 2


def test_mistakes_are_refused_in_one_line(series, tmp_path, capsys):
    folder = series("runs", [0.94])
    assert "for 94 % give 0.94" in refused(capsys, folder, "--target", "94")
    assert "--difference nan" in refused(capsys, folder, "--difference", "nan")
    assert "--peak-tflops" in refused(capsys, folder, "--peak-tflops", "0")
    assert "0 paths" in refused(capsys)
    assert "--nonsense" in refused(capsys, folder, "--nonsense")
    assert "does not end in .html" in refused(capsys, folder, "--html", tmp_path / "runs" / "0" / "result.json")
    (folder / "0" / "result.json").write_text('{"recipe": "davidnet"')
    assert "result.json" in refused(capsys, folder)


def test_the_command_needs_neither_tensorflow_nor_for_one_run_scipy(series, tmp_path):
    hidden = tmp_path / "hidden"
    for package in ("tensorflow", "scipy", "matplotlib"):
        (hidden / package).mkdir(parents=True)
        (hidden / package / "__init__.py").write_text("raise ImportError('hidden')")

    def run(*arguments):
        command = [sys.executable, "-m", "lab", "report", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": f"{hidden}{os.pathsep}{ROOT}", "PYTHONIOENCODING": "ascii"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    one = run(series("one", [0.94]), "--html", tmp_path / "page.html")
    assert (one.returncode, one.stderr) == (0, "") and (tmp_path / "page.html").exists()
    assert one.stdout.startswith(f"wrote {tmp_path / 'page.html'}\n")
    several = run(series("two", [0.94, 0.95]))
    assert several.returncode == 2 and several.stderr.strip().endswith("pip install scipy")
    assert len(several.stderr.splitlines()) == 1


def test_a_table_as_text_and_in_markdown():
    table = tables.Table(("name", "n"), [("a | b", "12"), ("c", "3")])
    assert table.as_text() == "name    n\na | b  12\nc       3"
    assert table.as_markdown() == "| name | n |\n|---|---|\n| a \\| b | 12 |\n| c | 3 |"


def test_tensorflow_for_tpus_has_another_name():
    assert tables.tensorflow({"tensorflow-tpu": "2.20.0"}) == "TensorFlow 2.20.0"
    assert tables.tensorflow({"tensorflow": "2.21.0"}) == "TensorFlow 2.21.0"
    assert tables.tensorflow({}) == "TensorFlow ?"


def test_two_sets_of_other_code_are_compared_with_a_word(series, capsys):
    code = {"commit": "0123456789", "changed": False, "sha256": "ab" * 32}
    paths = series("before", [0.94, 0.941]), series("after", [0.942, 0.943], code=code, random_stream="numpy-plan")
    text = shown(capsys, *paths)
    assert "the sets' code is not the same: A not recorded, B commit 01234567" in text
    assert "the sets' random stream is not the same: A the older one, B numpy-plan" in text
    assert "is not the same" not in shown(capsys, paths[0], series("again", [0.93, 0.931]))
