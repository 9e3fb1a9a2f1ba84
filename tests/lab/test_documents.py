"""The README's figures are those of the records."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest

from lab import documents as readme
from lab.base.errors import UserError
from lab.ladder import recipes
from lab.ladder.recipes import RECIPES
from lab.report import report
from lab.runs import record
from lab.tpu import lower as tpu_compile
from lab.tpu import table as tputables

ROOT = Path(__file__).resolve().parents[2]


def test_the_learning_curve_is_the_records_and_near_the_published_one():
    text = (ROOT / "README.md").read_text()
    rows = record.read_result(ROOT / "records" / "davidnet-3-of-24-epochs-cpu.json")["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row, (loss, deviation, accuracy) in zip(rows, recipes.LEARNING_CURVE, strict=False):
        line = next(
            line for line in text.splitlines() if line.startswith(f"| {row['epoch']} | ") and "±" in line
        )
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == f"{loss:.3f} ± {deviation:.3f}" and cells[3] == f"{accuracy:.3f}"
        assert cells[2] == f"{row['train_loss']:.3f}" and cells[4] == f"{row['train_accuracy']:.3f}"
        limit = 0.03 if row["epoch"] == 1 else 0.02
        assert abs(row["train_loss"] / loss - 1) < limit


def test_the_tables_and_the_plot_are_those_of_the_records():
    """If not: python -m lab.report.report --records."""
    assert readme.stale(ROOT) == []


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the README, its plot and the records, which lab/report/report.py takes for its own."""
    shutil.copytree(ROOT / "records", tmp_path / "records")
    shutil.copytree(ROOT / "figures", tmp_path / "figures")
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    return tmp_path


def test_an_edited_table_or_another_record_is_stale(copy, capsys):
    assert report.main(["--check"]) == 0
    text = (copy / "README.md").read_text()
    (copy / "README.md").write_text(text.replace("93.9", "94.9"))
    assert report.main(["--check"]) == 1
    assert "README.md; run python -m lab.report.report --records" in capsys.readouterr().err
    (copy / "README.md").write_text(text)
    (copy / "records" / "speedrun-seed1-cpu.json").unlink()
    assert report.main(["--check"]) == 1
    assert "README.md, figures/learning-curves.svg" in capsys.readouterr().err


def test_what_is_written_follows_the_records(copy):
    pytest.importorskip("matplotlib", reason="drawing is optional")
    (copy / "records" / "speedrun-seed2-cpu.json").unlink()
    path = copy / "records" / "speedrun-seed1-cpu.json"
    path.write_text(record.encode(record.read_result(path) | {"test_accuracy_tta": 0.9437}))
    short = record.read_result(copy / "records" / "davidnet-3-of-24-epochs-cpu.json")
    short["epochs"][0]["train_loss"] += 0.1
    (copy / "records" / "another.json").write_text(record.encode(short | {"seed": 1}))
    assert report.main(["--check"]) == 1
    assert report.main(["--records"]) == 0
    assert report.main(["--check"]) == 0
    text = (copy / "README.md").read_text()
    assert "94.170 ± 0.283 % with six views" in text  # of 93.97 and 94.37
    assert re.search(r"\| 1 \| 1\.613 ± 0\.008 \| 1\.675 ± 0\.071 \|.*\| 2 \|", text)  # of 1.625 and 1.725
    assert "| `davidnet` | 24 | 94.08 % (median of 50 runs, one V100;" in text
    row = next(line for line in text.splitlines() if line.startswith("| `davidnet`"))
    assert row.endswith("| not measured yet |")  # three epochs of 24 measure no accuracy
    again = (copy / "README.md").read_bytes(), (copy / "figures" / "learning-curves.svg").read_bytes()
    assert report.main(["--records"]) == 0
    assert again == (
        (copy / "README.md").read_bytes(),
        (copy / "figures" / "learning-curves.svg").read_bytes(),
    )


def test_a_table_whose_marks_are_gone_is_refused(copy):
    text = (copy / "README.md").read_text()
    (copy / "README.md").write_text(text.replace("<!-- records: recipes -->\n", ""))
    with pytest.raises(UserError, match="<!-- records: recipes -->"):
        readme.stale(copy)


def test_the_tpu_tables_are_the_record_s_and_it_is_complete():
    record = json.loads((ROOT / "records" / "tpu-compile.json").read_text())
    text = (ROOT / "README.md").read_text()
    assert readme.davidnet_on_tpus(record) in text
    assert tputables.epochs(record["programs"]) in text
    programs = [(row["recipe"], row["chip"], row["precision"], row["step"]) for row in record["programs"]]
    everything = itertools.product(RECIPES, tpu_compile.CHIPS, tpu_compile.PRECISIONS, tpu_compile.STEPS)
    assert sorted(programs) == sorted(everything)
    train = next(row for row in record["programs"] if (row["recipe"], row["step"]) == ("davidnet", "train"))
    # 379 million multiply-adds an image forward, three times that with both gradients, 512 images
    assert 0.8 < train["flops"] / (379e6 * 2 * 3 * 512) < 1.1
