"""The README's figures are those of the records."""

import json
from pathlib import Path

import recipes
import tpu_compile

ROOT = Path(__file__).resolve().parent.parent


def test_the_learning_curve_is_the_records_and_near_the_published_one():
    readme = (ROOT / "README.md").read_text()
    record = json.loads((ROOT / "records" / "davidnet-3-of-24-epochs-cpu.json").read_text())
    assert [row["epoch"] for row in record["epochs"]] == [1, 2, 3]
    for row, (loss, deviation, accuracy) in zip(record["epochs"], recipes.LEARNING_CURVE, strict=False):
        line = next(
            line for line in readme.splitlines() if line.startswith(f"| {row['epoch']} | ") and "±" in line
        )
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == f"{loss:.3f} ± {deviation:.3f}" and cells[3] == f"{accuracy:.3f}"
        assert cells[2] == f"{row['train_loss']:.3f}" and cells[4] == f"{row['train_accuracy']:.3f}"
        limit = 0.03 if row["epoch"] == 1 else 0.02
        assert abs(row["train_loss"] / loss - 1) < limit


def test_the_tpu_table_is_the_records_and_complete():
    record = json.loads((ROOT / "records" / "tpu-compile.json").read_text())
    assert tpu_compile.table(record) in (ROOT / "README.md").read_text()
    programs = {(entry["chip"], entry["precision"], entry["step"]) for entry in record["programs"]}
    assert len(programs) == len(record["programs"]) == 8
    train = next(entry for entry in record["programs"] if entry["step"] == "train")
    # 379 million multiply-adds an image forward, three times that with both gradients, 512 images
    assert 0.8 < train["flops"] / (379e6 * 2 * 3 * 512) < 1.1
