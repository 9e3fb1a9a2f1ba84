"""What TensorBoard gets, read back with its own reader."""

import sys

import pytest
import tensorflow as tf

from lab import command
from lab.base.errors import UserError
from lab.runs import results
from lab.runs.tensorboard import FOLDER, Board

loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def events(folder):
    accumulator = loader.EventAccumulator(str(folder / FOLDER), size_guidance={"tensors": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }


def test_each_row_is_there_as_soon_as_it_is_written(made_result, tmp_path):
    rows = made_result(accuracies=(0.5, 0.75))["epochs"]
    board = Board(tmp_path)
    for number, row in enumerate(rows, start=1):
        board.write(row)
        written = events(tmp_path)
        assert set(written) == {
            "learning_rate",
            "train_loss",
            "train_accuracy",
            "test_loss",
            "test_accuracy",
            "train_seconds",
        }
        for name, points in written.items():
            assert [step for step, _ in points] == [1, 2][:number]
            assert [value for _, value in points] == pytest.approx([row[name] for row in rows[:number]], rel=1e-6)


def test_a_training_writes_its_rows_and_says_which_code_made_them(short, tmp_path):
    result = command.train(**short, tensorboard=True)
    for name, points in events(tmp_path / "run").items():
        assert [step for step, _ in points] == [1, 2]
        assert [value for _, value in points] == pytest.approx([row[name] for row in result["epochs"]], rel=1e-6)
    read = results.read(tmp_path / "run" / "result.json")
    assert set(read.code) == {"commit", "changed", "sha256"} and read.random_stream == "numpy-plan"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / FOLDER).write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*try another --out"):
        Board(tmp_path)


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match="--tensorboard needs tensorboard; try: pip install tensorboard"):
        Board(tmp_path)
