"""What TensorBoard gets, read back with its own reader."""

import sys

import pytest
import tensorflow as tf

import train_eager
from lab.base.errors import UserError
from lab.runs import record, summaries

loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_rows_and_pictures(short, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures are optional")
    folder = tmp_path / "run"
    result = train_eager.train(**(short | {"out": str(folder), "epochs": 2, "tensorboard": True}))
    found = loader.EventAccumulator(str(folder / summaries.FOLDER), size_guidance={"tensors": 0})
    found.Reload()
    tags = found.Tags()["tensors"]
    for name in summaries.SCALARS:
        values = [float(tf.make_ndarray(event.tensor_proto)) for event in found.Tensors(name)]
        assert values == pytest.approx([row[name] for row in result["epochs"]], rel=1e-6)
        assert [event.step for event in found.Tensors(name)] == [1, 2]
    assert {"curves", "learning-rate", "confusion", "mistakes", "augmented"} <= set(tags)
    image = tf.make_ndarray(found.Tensors("confusion")[0].tensor_proto)[2]
    assert image.startswith(b"\x89PNG") and (folder / "pictures" / "confusion.png").exists()


def test_without_its_packages(short, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorboard", None)
        with pytest.raises(UserError, match="pip install tensorboard"):
            train_eager.train(**(short | {"out": str(tmp_path / "none"), "tensorboard": True}))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    train_eager.train(**(short | {"out": str(tmp_path / "run"), "tensorboard": True}))
    assert "no pictures: " in capsys.readouterr().out
    assert record.read_result(tmp_path / "run")["finished"]
