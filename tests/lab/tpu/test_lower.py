"""Roofline and tables by hand; the command with the compiler's environment played; DavidNet's step lowered for real."""

import importlib.util
import json
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import pytest

from lab.tpu import lower, table

ROOT = Path(__file__).resolve().parents[3]

COUNTS = {
    "device": "TPU v5 lite",
    "compile_seconds": 1.0,
    "flops": 1.97e12,  # 10 ms at 197 TFLOP/s
    "bytes_accessed": 0.819e9,  # 1 ms at 819 GB/s
    "argument_bytes": 10**9,
    "temporary_bytes": 6 * 10**8,  # with the arguments a tenth of 16 GB
    "estimated_cycles": 18 * 10**6,  # 12 ms at 1.5 GHz
}


def test_the_roofline_is_the_longer_of_computing_and_moving():
    counts = {
        "device": "TPU v2",
        "compile_seconds": 1.0,
        "flops": 23e9,  # 1 ms at a v2 core's 23 TFLOP/s
        "bytes_accessed": 0.7e9,  # 2 ms at its 350 GB/s
        "argument_bytes": 10**9,
        "temporary_bytes": 10**9,
        "estimated_cycles": 2_100_000,  # 3 ms at 700 MHz
    }
    train = lower.Lowered("davidnet", "train", "bfloat16", 512, "digest")
    program = lower.predict(train, "v2", counts)
    assert program.predicted_step_seconds == pytest.approx(0.002)
    assert program.predicted_epoch_seconds == pytest.approx(97 * 0.002)
    assert (program.bound_by, program.memory_share) == ("memory", 0.25)
    assert program.estimated_step_seconds == pytest.approx(0.003)
    assert program.estimated_epoch_seconds == pytest.approx(97 * 0.003)
    evaluation = lower.Lowered("davidnet", "evaluation", "bfloat16", 1000, "digest")
    evaluation = lower.predict(evaluation, "v2", counts | {"bytes_accessed": 1.0})
    assert evaluation.bound_by == "computing"
    assert evaluation.predicted_epoch_seconds == pytest.approx(10 * 0.001)


def test_the_table_by_hand():
    lowered = lower.Lowered("davidnet", "train", "bfloat16", 512, "digest")
    program = asdict(lower.predict(lowered, "v5e", COUNTS))
    row = "v5e | bfloat16 | train, 512 images | 1.970 | 0.82 | 1.60 (10%) | 10.0 (computing) | 0.97 | 12.0 | 1.16"
    heads, rule, *rows = table.table([program]).splitlines()
    assert rows == [f"| {row} |"]
    assert heads.count("|") == rule.count("|") == rows[0].count("|")
    assert "batch 512: 1.970 TFLOP, 0.82 GB moved, 1.60 GB of memory (10%" in table.line(program)


def test_the_record_is_davidnet_s_and_complete():
    record = json.loads((ROOT / "records" / "tpu-compile.json").read_text())
    places = [(row["recipe"], row["precision"], row["step"], row["chip"]) for row in record["programs"]]
    assert sorted(places) == sorted(
        ("davidnet", precision, step, chip)
        for precision in ("float32", "bfloat16")
        for step in ("train", "evaluation")
        for chip in ("v2", "v5e")
    )
    for row in record["programs"]:
        # 379 million multiply-adds an image forward, three times that with both gradients, two FLOP each
        passes = 3 if row["step"] == "train" else 1
        assert 0.8 < row["flops"] / (379e6 * 2 * passes * row["batch_size"]) < 1.1


@pytest.fixture
def played(monkeypatch):
    """Plays TensorFlow's half and the compiler's environment; a list of the programs that were compiled."""
    texts, compiled = {"train": "one", "evaluation": "another"}, []

    def steps(recipe, names, precision, batch_size):
        for name in names:
            yield name, batch_size or 512, f"{texts[name]} {precision}"

    def ask(python, *arguments):
        compiled.append((Path(arguments[1]).read_text(), arguments[2]))
        return COUNTS

    monkeypatch.setattr(lower, "load", lambda name: Namespace(lower=steps))
    monkeypatch.setattr(lower, "_ask", ask)
    monkeypatch.setattr(lower, "_versions", lambda python: {"libtpu": "1"})
    return Namespace(compiled=compiled, texts=texts)


def test_a_report_holds_what_the_flags_ask_for(tmp_path, capsys, played):
    path = tmp_path / "report.json"
    assert lower.main(["--precisions", "bfloat16", "--batch-size", "64", "--out", str(path)]) == 0
    assert played.compiled == [
        ("one bfloat16", "v2:2x2"),
        ("one bfloat16", "v5e:2x2"),
        ("another bfloat16", "v2:2x2"),
        ("another bfloat16", "v5e:2x2"),
    ]
    report = json.loads(path.read_text())
    assert report["versions"] == {"libtpu": "1"}
    assert [(row["step"], row["chip"], row["batch_size"]) for row in report["programs"]] == [
        ("train", "v2", 64),
        ("train", "v5e", 64),
        ("evaluation", "v2", 64),
        ("evaluation", "v5e", 64),
    ]
    assert capsys.readouterr().out.count("\n") == 5  # the versions, and a line a program


def test_programs_that_a_report_holds_are_not_compiled_again(tmp_path, played):
    path = tmp_path / "report.json"
    assert lower.main(["--out", str(path)]) == 0
    played.compiled.clear()
    assert lower.main(["--known", str(path)]) == 0
    assert played.compiled == []
    played.texts["train"] = "changed"
    assert lower.main(["--known", str(path), "--chips", "v5e", "--precisions", "float32"]) == 0
    assert played.compiled == [("changed float32", "v5e:2x2")]


@pytest.mark.parametrize("content", [None, "[]", '{"versions": {}}', '{"programs": [{"recipe": "davidnet"}]}'])
def test_another_file_than_a_report_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "report.json"
    if content:
        path.write_text(content)
    assert lower.main(["--known", str(path)]) == 2
    error = capsys.readouterr().err
    assert "report.json" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "spedrun"], "speedrun"),
        ([], "/nowhere/python does not run"),
        (["--known", "a.json", "--out", "b.json"], "leave out --known"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_lowered(capsys, arguments, words):
    assert lower.main(["--python", "/nowhere/python", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_an_environment_without_the_compiler_is_told_what_to_install(capsys):
    if importlib.util.find_spec("jax"):
        pytest.skip("jax is installed here")
    assert lower.main(["--python", sys.executable]) == 2
    error = capsys.readouterr().err
    assert "requirements-tpu-compile.txt" in error
    assert error.count("\n") == 1
