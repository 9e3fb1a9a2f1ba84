"""Results read back: what is found where, and damage that ends in one line."""

import os

import pytest

from lab.base.errors import UserError
from lab.base.files import encode
from lab.runs import record, results


def test_a_run_is_what_was_written(leave, tmp_path):
    path = leave(tmp_path / "run", seed=3, accuracies=(0.5, 0.75, 0.9), test_accuracy_tta=0.92, airbench_seconds=28.5)
    run = results.read(path)
    assert (run.seed, run.finished, run.is_full, run.scheduled_epochs) == (3, True, True, 3)
    assert [epoch.test_accuracy for epoch in run.epochs] == [0.5, 0.75, 0.9]
    assert (run.test_accuracy, run.accuracy, run.airbench_seconds) == (0.9, 0.92, 28.5)
    assert run.forward_gflop_per_image is None  # an older result
    assert run.folder == tmp_path / "run"


def test_code_and_stream_are_told_apart_from_those_not_recorded(leave, tmp_path):
    older = results.read(leave(tmp_path / "older"))
    assert (older.code, older.random_stream) == ({}, None)
    code = {"commit": "ab" * 20, "changed": False, "sha256": "cd" * 32}
    newer = results.read(leave(tmp_path / "newer", code=code, random_stream="numpy-plan"))
    assert (newer.code, newer.random_stream) == (code, "numpy-plan")
    unknown = results.read(leave(tmp_path / "unknown", code={"commit": None, "changed": None, "sha256": "ef" * 32}))
    assert (unknown.code["commit"], unknown.code["changed"], unknown.code["sha256"]) == (None, None, "ef" * 32)


def test_folders_are_searched_and_other_files_passed_over(leave, made_result, tmp_path):
    leave(tmp_path / "b" / "deep" / "run", seed=1)
    leave(tmp_path / "a", seed=0)
    leave(tmp_path / "a" / "checkpoints", seed=8)
    leave(tmp_path / ".hidden", seed=9)
    (tmp_path / "record.json").write_text(encode(made_result(seed=2)))
    (tmp_path / "bench.json").write_text('{"recipe": "davidnet", "rows": []}')
    (tmp_path / "a" / "predictions.json").write_text("[]")
    (tmp_path / "notes.txt").write_text("{")
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    assert [run.seed for run in results.find(tmp_path)] == [0, 1, 2]


def test_the_records_here_are_read(request):
    runs = results.find(request.config.rootpath / "records")
    assert {run.recipe for run in runs} >= {"davidnet", "speedrun"}
    assert all(run.folder is None for run in runs)


def test_an_older_result_counts_a_float32_of_the_target():
    assert results.reaches(0.9399999976158142, 0.94) and not results.reaches(0.9399, 0.94)


def change(value, path, new):
    *way, last = path
    for key in way:
        value = value[key]
    value[last] = new


@pytest.mark.parametrize(
    ("path", "new", "words"),
    [
        (["test_accuracy"], "0.94", "test_accuracy is '0.94', not a number from 0 to 1"),
        (["test_accuracy"], 94, "test_accuracy is 94, not a number from 0 to 1"),
        (["test_accuracy"], True, "test_accuracy is True"),
        (["test_accuracy_tta"], [], "test_accuracy_tta"),
        (["epochs"], [], "list of 1 to 2 epochs"),
        (["epochs"], {}, "epochs is {}, not a list"),
        (["epochs", 1], None, "epochs[1] is None, not an object"),
        (["epochs", 1, "epoch"], 3, "epochs[1].epoch is 3"),
        (["epochs", 0, "train_loss"], -1, "epochs[0].train_loss is -1"),
        (["epochs", 0, "train_seconds"], 10**400, "epochs[0].train_seconds is 1000"),
        (["hyperparameters", "epochs"], 1, "list of 1 to 1 epochs"),
        (["hyperparameters", "epochs"], None, "hyperparameters.epochs is None"),
        (["hyperparameters", "width"], [64], "hyperparameters.width is [64]"),
        (["hyperparameters"], [], "hyperparameters is [], not an object"),
        (["data", "synthetic"], "no", "data.synthetic is 'no', not true or false"),
        (["hardware", "accelerators"], [1], "hardware.accelerators is [1], not a list of texts"),
        (["seed"], 0.5, "seed is 0.5, not a whole number"),
        (["code"], "new", "code is 'new', not an object"),
        (["code"], {"commit": []}, "code.commit is []"),
        (["random_stream"], 7, "random_stream is 7, not a text"),
        (["finished"], 1, "finished is 1, not true or false"),
        (["recipe"], 7, "recipe is 7, not a text"),
        (["images_per_second"], None, "images_per_second is None"),
        (["compile_seconds"], "\u001b[2J\n", "compile_seconds is "),
    ],
)
def test_a_wrong_field_is_named_in_one_line(made_result, tmp_path, path, new, words):
    value = made_result()
    change(value, path, new)
    file = tmp_path / "result.json"
    file.write_text(encode(value))
    with pytest.raises(UserError) as caught:
        results.find(tmp_path)
    message = str(caught.value)
    assert words in message and str(file) in message and message.isprintable() and len(message) < 400


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "nonsense",
        '{"test_accuracy": NaN}',
        "[" * 200_000,
        '{"a": ' + "1" * 10_000 + "}",
        "{}",
    ],
    ids=["empty", "torn", "a list", "null", "no JSON", "NaN", "deep", "long number", "no fields"],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, text):
    file = tmp_path / "result.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        results.find(tmp_path)
    assert str(file) in str(caught.value) and len(str(caught.value)) < 400


def test_an_edited_result_is_refused(made_result, tmp_path):
    file = tmp_path / "result.json"
    file.write_text(encode(made_result()).replace("0.9", "0.95"))
    with pytest.raises(UserError, match="not what was written"):
        results.find(tmp_path)


def test_nan_infinity_wrong_bytes_and_size(made_result, tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    whole = encode(made_result())
    for text in (whole.replace("0.9", "NaN", 1), whole.replace("0.9", "1e999", 1)):
        file.write_text(text)
        with pytest.raises(UserError, match=r"result\.json"):
            results.read(file)
    file.write_bytes(b"\xff\xfe" + whole.encode())
    with pytest.raises(UserError, match="utf-8"):
        results.read(file)
    file.write_text(whole)
    monkeypatch.setattr(record, "LARGEST", 100)
    with pytest.raises(UserError, match="at most 100"):
        results.read(file)


def test_a_search_passes_over_what_is_too_large_and_tells_what_it_may_not_enter(leave, tmp_path, monkeypatch):
    leave(tmp_path / "run")
    (tmp_path / "huge.json").write_text('{"test_accuracy": 1, "about": "' + "x" * 100_000 + '"}')
    monkeypatch.setattr(record, "LARGEST", 50_000)
    assert len(results.search(tmp_path)) == 1

    def is_dir(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(results.Path, "is_dir", is_dir)
    with pytest.raises(UserError, match=r"^cannot read the folder .*: Permission denied"):
        results.search(tmp_path)


def test_what_does_not_print_is_replaced(made_result, tmp_path):
    file = tmp_path / "result.json"
    hostile = made_result(recipe="a\u001b[31m\nb\ud800", hyperparameters={"network": "x\u202ey"})
    file.write_text(encode(hostile))
    run = results.read(file)
    assert run.recipe == "a?[31m?b?" and run.hyperparameters["network"] == "x?y"


def test_a_path_without_results_is_refused(tmp_path):
    for path, words in ((tmp_path, "holds no result"), (tmp_path / "absent", "does not exist")):
        with pytest.raises(UserError, match=words):
            results.find(path)
    with pytest.raises(UserError, match="does not exist"):
        results.find(tmp_path / ("x" * 5000))
    bench = tmp_path / "bench.json"
    bench.write_text('{"rows": []}')
    with pytest.raises(UserError, match="is no result of a run"):
        results.find(bench)


def test_a_fifo_is_refused_rather_than_waited_for(tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("result.json", "other.json"):
        os.mkfifo(tmp_path / "runs" / name)
        for path in (tmp_path / "runs" / name, tmp_path / "runs"):
            with pytest.raises(UserError, match=rf"{name} is a FIFO"):
                results.find(path)
        (tmp_path / "runs" / name).unlink()
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(UserError, match="is a FIFO"):
        record.read_result(tmp_path)
