"""lab/report/figures.py: the pictures show the numbers they are made from."""

import dataclasses
import os
import sys
import xml.etree.ElementTree as tree
from pathlib import Path

import numpy as np
import pytest

from lab.base.errors import UserError
from lab.base.files import encode
from lab.ladder import published, recipes
from lab.report import figures
from lab.report import predictions as predictions_of_runs
from lab.report.predictions import Predictions
from lab.runs import results

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


@pytest.fixture
def made(made_result, leave, tmp_path):
    """A run of two epochs, read from its folder: made("davidnet", seed=4); `hyperparameters` besides its recipe's."""
    count = 0

    def make(recipe="davidnet", hyperparameters=None, synthetic=False, **changes):
        nonlocal count
        count += 1
        rows = made_result(accuracies=(0.5, 0.5))["epochs"]
        for index, row in enumerate(rows):
            row |= {"train_loss": 2.0 - index, "test_loss": 3.0, "train_accuracy": 0.1 * index}
        known = {"epochs": recipes.values(recipe)["epochs"]} | (hyperparameters or {})
        data = made_result()["data"] | {"synthetic": synthetic}
        changes = {"seed": 4, "epochs": rows, "hyperparameters": known, "data": data} | changes
        return results.read(leave(tmp_path / f"run{count}", recipe=recipe, **changes))

    return make


def lines(panel):
    """A panel's lines by label: their x and y."""
    return {line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()}


def legends(figure):
    """The texts of each set's legend, without the blanks that fill a column."""
    texts = [[text.get_text() for text in part.legends[0].get_texts()] for part in figure.subfigs]
    return [[text for text in part if text] for part in texts]


# ---- of a run ----------------------------------------------------------------------------------------------


def test_all_pictures_of_a_run(run_folder, predictions, capsys):
    predictions_of_runs.write(run_folder, predictions)
    assert figures.main([str(run_folder)]) == 0
    names = "learning-rate curves filters confusion mistakes"
    expected = [run_folder / "pictures" / f"{name}.png" for name in names.split()]
    assert capsys.readouterr().out.splitlines() == [f"wrote {path}" for path in expected]
    for path in expected:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000


def test_what_a_record_alone_allows_and_why_not_more(tmp_path, made_result, capsys):
    path = tmp_path / "record.json"
    path.write_text(encode(made_result(hyperparameters={"epochs": 24, "knots": "0,0 5,0.4 24,0"})))
    assert figures.main([str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said[2:]] == ["no filters.png", "no confusion.png", "no mistakes.png"]
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["curves.png", "learning-rate.png"]


def test_the_learning_rate_is_the_runs(made):
    assert figures.learning_rate(made(hyperparameters={"knots": "0,0 5,0.4 24,0"}))(2.5) == pytest.approx(0.2)
    run = made(hyperparameters={"epochs": 10, "warmup_epochs": 4.0, "learning_rate": 0.8, "knots": ""})
    np.testing.assert_allclose(figures.learning_rate(run)(np.array([0, 1, 4, 7, 10])), [0, 0.2, 0.8, 0.4, 0])
    older = made()  # without any: as published, 0.4 at the end of five epochs of 24
    np.testing.assert_allclose(figures.learning_rate(older)(np.array([5, 14.5])), [0.4, 0.2])


def test_curves_are_the_results_and_the_published_one_is_behind_davidnets(made):
    both = [made("davidnet"), made("speedrun", hyperparameters={"holdout": 9}, test_accuracy_tta=0.6)]
    loss, accuracy = figures.curves(both).axes
    assert lines(loss)["davidnet, seed 4: training"] == [[1, 2.0], [2, 1.0]]
    assert lines(accuracy)["speedrun, seed 4: training"] == [[1, 0.0], [2, 0.1]]
    assert lines(accuracy)["speedrun, seed 4: validation, averaged over views"] == [[2, 0.6]]
    behind = lines(accuracy)[figures.PUBLISHED]
    assert behind == [[i + 1, row[2]] for i, row in enumerate(published.LEARNING_CURVE)]
    assert behind[0][1] == 0.41724
    made_up = lines(figures.curves([made("speedrun", synthetic=True)]).axes[1])
    assert list(made_up) == [f"speedrun, seed 4, synthetic images: {part}" for part in ("training", "test")]


@pytest.mark.parametrize(
    "change",
    [{"hyperparameters": {"epochs": 12}}, {"hyperparameters": {"limit_train": 9}}, {"synthetic": True}],
)
def test_the_published_curve_is_behind_no_changed_davidnet(made, change):
    loss, accuracy = figures.curves([made(**change)]).axes
    assert figures.PUBLISHED not in lines(accuracy) and not loss.collections


def test_a_solid_line_is_the_test_set_and_each_run_is_named_once(made):
    figure = figures.curves([made("speedrun", hyperparameters={"label_smoothing": 0.2}), made("lars", seed=1)])
    for panel in figure.axes:
        styles = {line.get_label().rpartition(": ")[2]: line.get_linestyle() for line in panel.get_lines()}
        assert styles == {"training": "--", "test": "-"}
    assert legends(figure) == [
        [
            "speedrun, seed 4 (training loss with labels smoothed by 0.2)",
            "lars, seed 1",
            "solid: test set",
            "dashed: training",
        ]
    ]


def test_runs_of_one_title_are_told_apart(made):
    assert figures.names([made(), made(seed=5)]) == ["davidnet, seed 4", "davidnet, seed 5"]
    assert figures.names([made(), made(hyperparameters={"width": 8})]) == [
        "davidnet, seed 4",
        "davidnet, seed 4, width 8",
    ]
    assert figures.names([made(), made()]) == ["davidnet, seed 4, run5", "davidnet, seed 4, run6"]


def test_the_same_file_is_drawn_once(made, tmp_path, monkeypatch):
    run, drawn = made(), []
    monkeypatch.setattr(figures, "curves", lambda runs: drawn.append(runs) or figures.new_figure(1, 1))
    figures.draw(run.path, tmp_path / "out", [run.path.parent, made().path])
    assert [[shown.path.parent.name for shown in runs] for runs in drawn] == [["run1", "run2"]]


def test_a_name_with_dollars_is_no_formula(made, tmp_path):
    run = dataclasses.replace(made(), recipe="$\\nonsense{$")
    assert legends(figures.curves([run]))[0][0] == "$\\nonsense{$, seed 4"
    figures.write(figures.curves([run]), tmp_path / "curves.png")


@pytest.mark.parametrize("count", [6, 7])
def test_each_run_has_a_colour_of_its_own_or_they_are_counted(made, count):
    figure = figures.curves([made(seed=seed, hyperparameters={"epochs": 9}) for seed in range(count)])
    drawn = figure.axes[0].get_lines()
    assert len(drawn) == 2 * count
    if count == 6:
        assert len({line.get_color() for line in drawn}) == 6 and legends(figure)[0][5] == "davidnet, seed 5"
    else:
        assert legends(figure)[0][0] == "7 runs"


def test_several_sets_stand_one_under_the_other_in_small_svg(made):
    sets = [[made(seed=1), made(seed=2)], [made("speedrun", test_accuracy_tta=0.6)]]
    figure = figures.curves(*sets)
    assert [next(iter(lines(panel))) for panel in figure.axes[::2]] == [
        "davidnet, seed 1: training",
        "speedrun, seed 4: training",
    ]
    text = figures.as_svg(figure, "of <these> numbers")
    assert text == figures.as_svg(figures.curves(*sets), "of <these> numbers")
    assert len(text) < 40_000 and "of &lt;these&gt; numbers" in text
    root = tree.fromstring(text)
    style = next(root.iter("{http://www.w3.org/2000/svg}style")).text
    used = {name for element in root.iter() if (name := element.get("class"))}
    assert used and all(f".{name}{{" in style for name in used)
    assert "davidnet, seed 2" in {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}


@pytest.fixture
def read(predictions, leave, tmp_path):
    predictions_of_runs.write(leave(tmp_path / "run").parent, predictions)
    return predictions_of_runs.read(tmp_path / "run")


def test_the_confusion_matrix_shows_the_counts(read):
    figure = figures.confusion_matrix(read, "speedrun, seed 4, six views")
    axes = figure.axes[0]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {
        (0, 0): "7", (1, 0): "", (2, 0): "2",
        (0, 1): "1", (1, 1): "9", (2, 1): "",
        (0, 2): "", (1, 2): "", (2, 2): "4",
    }  # fmt: skip
    assert figure.get_suptitle() == "speedrun, seed 4, six views: 20 of 23 right (86.96%)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "$b_", "c"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 0, 2], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("count", [2, 10, 30, 31, 100])
def test_the_confusion_matrix_of_any_number_of_classes_has_a_bounded_size(count, tmp_path):
    counts = tuple(tuple(9 * (i == j) + 1 for j in range(count)) for i in range(count))
    classes = tuple(f"class {index} of a name with many letters" for index in range(count))
    figure = figures.confusion_matrix(Predictions(classes, counts, ()), "davidnet, seed 4, one view")
    figures.write(figure, tmp_path / "confusion.png")
    width, height = (int.from_bytes((tmp_path / "confusion.png").read_bytes()[at : at + 4], "big") for at in (16, 20))
    assert 400 < width <= 2_000 and 300 < height <= 2_000
    named = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert named[0] == "class 0 of a name wit..." and len(named) == (count if count <= 40 else 34)
    assert len(figure.axes[0].texts) == (count**2 if count <= 30 else 0)


def test_mistakes_show_image_classes_and_probability(read):
    panel = figures.mistakes(read, "").axes[0]
    assert panel.get_title() == "a, taken for\nc, 0.875" and panel.images[0].get_array().shape[:2] == (1, 1)


def test_filters_are_shown_each_over_its_own_largest_weight():
    kernel = np.random.default_rng(0).standard_normal((2, 2, 3, 24)).astype(np.float32)
    panels = figures.filters(kernel).axes
    assert len(panels) == 24
    shown = panels[5].images[0].get_array()
    np.testing.assert_allclose(2 * np.asarray(shown) - 1, kernel[..., 5] / np.abs(kernel[..., 5]).max(), atol=1e-6)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"classes": ["a"], "confusion": [[1, 2]], "mistakes": []}', "3"])
def test_a_damaged_file_is_one_line(tmp_path, made_result, content, capsys):
    (tmp_path / "result.json").write_text(encode(made_result(hyperparameters={"knots": "0,1"})))
    (tmp_path / "predictions.json").write_text(content)
    assert figures.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and str(tmp_path) in error


def test_a_mistake_whose_image_is_none(tmp_path, made_result, predictions, capsys):
    predictions["mistakes"][1] = predictions["mistakes"][1] | {"png": "AAAA"}
    (tmp_path / "result.json").write_text(encode(made_result(hyperparameters={"knots": "0,1"})))
    predictions_of_runs.write(tmp_path, predictions)
    assert figures.main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_weights_of_another_run_draw_no_filters(run_folder, capsys):
    with np.load(run_folder / "weights.npz") as archive:
        arrays = {name: archive[name] + np.float32(1) for name in archive.files}
    np.savez(run_folder / "weights.npz", **arrays)
    assert figures.main([str(run_folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "another run's weights" in line and not (run_folder / "pictures" / "filters.png").exists()


def test_predictions_of_another_run_draw_nothing(run_folder, tmp_path, leave, predictions, capsys):
    other = leave(tmp_path / "other").parent
    predictions_of_runs.write(other, predictions)
    (run_folder / "predictions.json").write_bytes((other / "predictions.json").read_bytes())
    assert figures.main([str(run_folder)]) == 0
    said = capsys.readouterr().out
    assert "no confusion.png: predictions.json is of another run" in said and "no mistakes.png" in said
    assert not (run_folder / "pictures" / "confusion.png").exists()


def test_damaged_weights_are_one_line(run_folder, capsys):
    os.truncate(run_folder / "weights.npz", 3_000)
    assert figures.main([str(run_folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_matplotlib_there_is_a_remedy(run_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert figures.main([str(run_folder)]) == 2
    assert capsys.readouterr().err == "pictures need matplotlib; try: pip install matplotlib\n"
    assert not (run_folder / "pictures").exists()


def test_a_figure_is_refused_where_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        figures.write(figures.new_figure(1, 1), tmp_path / "file" / "a.png")
