"""lab/report/figures.py and lab/preview.py: the pictures show the numbers they are made from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import train_eager
from lab import options as settings
from lab.base.errors import UserError
from lab.images import load as data
from lab.ladder import recipes
from lab.report import figures as pictures
from lab.runs import record

ROOT = Path(__file__).resolve().parents[3]
matplotlib = pytest.importorskip("matplotlib", reason="pictures are optional")


@pytest.fixture
def predictions():
    pixel = (  # a PNG of one white pixel
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAG7buVgAAAABJRU5ErkJggg=="
    )
    mistake = {"index": 5, "label": 0, "predicted": 2, "probability": 0.875, "png": pixel}
    return {
        "classes": ["a", "$b_", "c"],
        "confusion": [[7, 0, 2], [1, 9, 0], [0, 0, 4]],
        "mistakes": [mistake] * 2,
    }


def result_of(recipe, **changes):
    rows = [
        {
            "epoch": i + 1,
            "train_loss": 2.0 - i,
            "test_loss": 3.0,
            "train_accuracy": 0.1 * i,
            "test_accuracy": 0.5,
        }
        for i in range(2)
    ]
    return {"recipe": recipe, "seed": 4, "hyperparameters": {}, "data": {}, "epochs": rows} | changes


def lines(panel):
    """A panel's lines by label: their x and y."""
    return {line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()}


# ---- of a run ----------------------------------------------------------------------------------------------


def test_all_pictures_of_a_run(run_folder, small_data, predictions, capsys):
    (run_folder / "predictions.json").write_text(json.dumps(predictions))
    assert pictures.main([str(run_folder), "--data", small_data]) == 0
    names = "learning-rate curves filters confusion mistakes augmented"
    expected = [run_folder / "pictures" / f"{name}.png" for name in names.split()]
    assert capsys.readouterr().out.splitlines() == [f"wrote {path}" for path in expected]
    for path in expected:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000


def test_what_a_record_alone_allows_and_why_not_more(tmp_path, capsys):
    path = tmp_path / "record.json"
    path.write_text(record.encode(result_of("davidnet", hyperparameters={"knots": "0,0 5,0.4 24,0"})))
    assert pictures.main([str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said[2:]] == [
        "no filters.png", "no confusion.png", "no mistakes.png", "no augmented.png"
    ]  # fmt: skip
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["curves.png", "learning-rate.png"]


def test_curves_are_the_results_and_the_published_one_is_behind_davidnets():
    both = [
        result_of("davidnet"),
        result_of("speedrun", hyperparameters={"holdout": 9}, test_accuracy_tta=0.6),
    ]
    loss, accuracy = pictures.curves(both).axes
    assert lines(loss)["davidnet, seed 4: training"] == [[1, 2.0], [2, 1.0]]
    assert lines(accuracy)["speedrun, seed 4: training"] == [[1, 0.0], [2, 0.1]]
    assert lines(accuracy)["speedrun, seed 4: validation, averaged over views"] == [[2, 0.6]]
    published = lines(accuracy)[pictures.PUBLISHED]
    assert published == [[i + 1, row[2]] for i, row in enumerate(recipes.LEARNING_CURVE)]
    assert published[0][1] == 0.417
    made_up = lines(pictures.curves([result_of("speedrun", data={"synthetic": True})]).axes[1])
    assert list(made_up) == [f"speedrun, seed 4, synthetic images: {part}" for part in ("training", "test")]


@pytest.fixture
def read(predictions, tmp_path):
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    return pictures.read_predictions(tmp_path)


def test_the_confusion_matrix_shows_the_counts(read):
    axes = pictures.confusion_matrix(read, "speedrun, seed 4, six views").axes[0]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {
        (0, 0): "7", (1, 0): "", (2, 0): "2",
        (0, 1): "1", (1, 1): "9", (2, 1): "",
        (0, 2): "", (1, 2): "", (2, 2): "4",
    }  # fmt: skip
    assert axes.get_title() == "speedrun, seed 4, six views: 20 of 23 right (86.96%)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "$b_", "c"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 0, 2], [1, 0, 0], [0, 0, 0]])


def test_mistakes_show_image_classes_and_probability(read):
    panel = pictures.mistakes(read, "").axes[0]
    assert panel.get_title() == "a, taken for\nc, 0.875" and panel.images[0].get_array().shape[:2] == (1, 1)


def test_filters_are_shown_each_over_its_own_largest_weight():
    kernel = np.random.default_rng(0).standard_normal((2, 2, 3, 24)).astype(np.float32)
    panels = pictures.filters(kernel).axes
    assert len(panels) == 24
    shown = panels[5].images[0].get_array()
    np.testing.assert_allclose(
        2 * np.asarray(shown) - 1, kernel[..., 5] / np.abs(kernel[..., 5]).max(), atol=1e-6
    )


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"classes": ["a"], "confusion": [[1, 2]], "mistakes": []}', "3"]
)
def test_a_damaged_file_is_one_line(tmp_path, content, capsys):
    (tmp_path / "result.json").write_text(
        record.encode(result_of("davidnet", hyperparameters={"knots": "0,1"}))
    )
    (tmp_path / "predictions.json").write_text(content)
    assert pictures.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and str(tmp_path) in error


def test_a_mistake_whose_image_is_none(tmp_path, predictions, capsys):
    predictions["mistakes"][1] = predictions["mistakes"][1] | {"png": "AAAA"}
    (tmp_path / "result.json").write_text(
        record.encode(result_of("davidnet", hyperparameters={"knots": "0,1"}))
    )
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    assert pictures.main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_damaged_weights_are_one_line(run_folder, capsys):
    os.truncate(run_folder / "weights.npz", 3_000)
    assert pictures.main([str(run_folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_sheet_of_other_images_is_refused(run_folder, small_data, capsys):
    result = record.read_result(run_folder)
    result["data"]["sha256"] = "0" * 64
    (run_folder / "result.json").write_text(record.encode(result))
    assert pictures.main([str(run_folder), "--data", small_data]) == 2
    assert "it had 000000000000...)" in capsys.readouterr().err


def test_without_matplotlib_there_is_a_remedy(run_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert pictures.main([str(run_folder)]) == 2
    assert capsys.readouterr().err == "pictures need matplotlib; try: pip install matplotlib\n"
    assert not (run_folder / "pictures").exists()


# ---- the sheet of training images --------------------------------------------------------------------------


def seen(small_data, rows=4, epochs=3, **changes):
    """Originals and what is seen of them, (rows, H, W, 3) and (rows, epochs, H, W, 3), and the training set."""
    from lab import preview

    options = settings.change(train_eager.constants(), {"batch_size": 16, "seed": 2, **changes})
    images = data.load(small_data, seed=2)
    chosen, pixels = preview.augmented(images, options, rows, epochs)
    assert images.train_labels[chosen].tolist() == [i % 4 for i in range(rows)]
    return images.train_images[chosen], pixels, images


def test_without_augmentation_the_sheet_shows_the_images_themselves(small_data):
    originals, pixels, _ = seen(small_data, rows=6, pad=0, flip="none", cutout=0)
    np.testing.assert_array_equal(pixels, originals[:, None].repeat(3, 1))


def test_each_view_is_a_crop_of_the_reflected_image_or_its_mirror_image(small_data):
    originals, pixels, _ = seen(small_data, pad=2, cutout=0)
    found = set()
    for original, views in zip(originals, pixels, strict=True):
        wider = np.pad(original, [(2, 2), (2, 2), (0, 0)], "reflect")
        crops = {(i, j): wider[i : i + 32, j : j + 32] for i in range(5) for j in range(5)}
        for view in views:
            same = [
                (place, turned)
                for place, crop in crops.items()
                for turned in (1, -1)
                if (crop[:, ::turned] == view).all()
            ]
            assert len(same) == 1
            found.update(same)
    assert len(found) > 6  # of 12 draws from 50


def test_alternating_flips_turn_each_image_in_every_second_epoch(small_data):
    originals, pixels, _ = seen(small_data, pad=0, cutout=0, flip="alternating")
    for original, views in zip(originals, pixels, strict=True):
        turned = [(view == original[:, ::-1]).all() for view in views]
        straight = [(view == original).all() for view in views]
        assert turned in ([True, False, True], [False, True, False]) and straight == [not t for t in turned]


def test_cutout_shows_the_mean_colour(small_data):
    originals, pixels, images = seen(small_data, pad=0, flip="none", cutout=8)
    mean = np.rint(images.train_images.reshape(-1, 3).mean(0))
    for original, views in zip(originals, pixels, strict=True):
        for view in views:
            rows, columns = np.nonzero((view != original).any(-1))
            hole = view[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert hole.shape == (8, 8, 3) and (hole == mean).all()


def test_the_command_writes_the_sheet(small_data, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    command = ["--preview", str(out), "--data", small_data, "--recipe", "speedrun"]
    assert data.main(command) == 2
    assert "--batch-size 2000 is above the 80 training images; lower it" in capsys.readouterr().err
    assert data.main([*command, "--batch-size", "20", "--cutout", "12", "--seed", "1"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and capsys.readouterr().out == f"wrote {out}\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--data", "synthetic"], "--preview"),
        (["--preview", "x.png", "--pad", "40"], "--pad 40"),
        (["--preview", "x.png", "--recipe", "davidnett"], "davidnet"),
        (["--preview", "x.docx"], "name it x.png"),
        (["--preview", "x"], "name it x.png"),
    ],
)
def test_wrong_flags_of_the_sheet(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert data.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_data_and_pictures_need_no_tensorflow():
    code = "import sys, lab.images.load, lab.report.figures, lab.report.confusion\n"
    code += "sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_figure_is_refused_where_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        pictures.write(pictures.new_figure(1, 1), tmp_path / "file" / "a.png")
