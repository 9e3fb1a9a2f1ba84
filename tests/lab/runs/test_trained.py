"""lab/runs/trained.py: a run's network comes back from its folder, and out of its exports, as it was evaluated."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import mean_std
from lab.base.errors import UserError
from lab.images import load as data
from lab.runs import record, trained

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def run(finished):
    return trained.load(finished)


@pytest.fixture(scope="module")
def images(small_data):
    return data.load(small_data, seed=3)


def change_result(folder, **changes):
    """Changes entries of result.json; `data` and `hyperparameters` entry by entry."""
    path = folder / "result.json"
    result = record.read_result(path)
    for name, value in changes.items():
        result[name] = result[name] | value if isinstance(value, dict) else value
    path.write_text(record.encode(result))


def change_weights(folder, change):
    """Writes weights.npz anew after change(arrays)."""
    with np.load(folder / "weights.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(folder / "weights.npz", **arrays)


def shuffled(arrays):
    """As another seed's: the same shapes, other numbers."""
    for array in arrays.values():
        array[:] = np.random.default_rng(0).permutation(array.ravel()).reshape(array.shape)


def test_result_json_has_what_a_prediction_needs_to_the_last_bit(finished, images):
    found = json.loads((finished / "result.json").read_text())["data"]
    pixels = images.train_images.reshape(-1, 3)
    np.testing.assert_allclose(found["mean"], pixels.mean(0) / 255, rtol=1e-12)
    np.testing.assert_allclose(found["std"], pixels.std(0) / 255, rtol=1e-12)
    mean, std = mean_std(images.train_images)
    assert found["mean"] == mean.tolist() and found["std"] == std.tolist()
    assert found["classes"] == ["0", "1", "2", "3"]


def test_it_has_the_loss_and_accuracies_that_the_run_recorded(run, images):
    labels = images.test_labels
    logits = run.logits(images.test_images, "none").astype(np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    assert losses.mean() == pytest.approx(run.result["epochs"][-1]["test_loss"], rel=1e-5)
    assert (logits.argmax(1) == labels).mean() == pytest.approx(run.result["test_accuracy"])
    viewed = run.logits(images.test_images)
    assert (viewed.argmax(1) == labels).mean() == pytest.approx(run.result["test_accuracy_tta"])
    mirrored = run.logits(images.test_images[:, :, ::-1], "none")
    np.testing.assert_allclose(viewed, (logits + mirrored) / 2, atol=1e-5)
    assert np.abs(viewed - logits).max() > 1e-3  # they are other logits


def test_the_logits_of_an_image_do_not_depend_on_the_others(run, images, monkeypatch):
    alone = run.logits(images.test_images[:7])
    monkeypatch.setattr(trained, "BATCH", 3)
    np.testing.assert_allclose(run.logits(images.test_images[:7]), alone, atol=1e-5)
    assert run.logits(images.test_images[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: (folder / "result.json").unlink(), "cannot read"),
        (lambda folder: (folder / "result.json").write_text("[" * 100_000), "damaged"),
        (lambda folder: (folder / "result.json").write_text("{}"), "is no result of a run"),
        (lambda folder: (folder / "result.json").write_bytes(b"\xff\xfe"), "damaged"),
        (lambda folder: change_result(folder, finished=False), "--resume"),
        (lambda folder: change_result(folder, hyperparameters={"network": "resnet"}), "network 'resnet' is not known"),
        (lambda folder: change_result(folder, hyperparameters={"tta": "all"}), "tta 'all' is not known"),
        (lambda folder: change_result(folder, hyperparameters={"width": 8}), r"is \(.*\) instead of \("),
        (lambda folder: change_result(folder, hyperparameters={"whiten": False}), "not of this network"),
        (lambda folder: change_result(folder, data={"classes": ["a"]}), "head/kernel"),
        (lambda folder: (folder / "weights.npz").unlink(), "cannot read"),
        (lambda folder: os.truncate(folder / "weights.npz", 5_000), "another run's"),
        (lambda folder: change_weights(folder, lambda a: a["head/kernel"].flat.__setitem__(3, 0.5)), "another run's"),
        (lambda folder: change_weights(folder, shuffled), "another run's"),
        (lambda folder: change_result(folder, weights_sha256="0" * 64), "another run's"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(run_folder, spoil, words):
    spoil(run_folder)
    with pytest.raises(UserError, match=words) as caught:
        trained.load(run_folder)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_the_result_names_the_weights_that_were_written(finished):
    found = json.loads((finished / "result.json").read_text())["weights_sha256"]
    assert found == hashlib.sha256((finished / "weights.npz").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda arrays: None, ""),
        (lambda arrays: arrays.pop("head/kernel"), "head/kernel is missing; it is of an older version"),
        (lambda arrays: arrays.update(more=np.zeros(2)), "more is not of this"),
        (lambda arrays: arrays.update({"head/kernel": arrays["head/kernel"].T}), r"head/kernel is \("),
        (lambda arrays: arrays.update({"head/kernel": np.array([print] * 9)}), "allow_pickle"),
    ],
)
def test_weights_of_an_older_run_are_read_without_their_sum(run_folder, change, words):
    path = run_folder / "result.json"
    result = record.read_result(path)
    del result["weights_sha256"]
    path.write_text(record.encode(result))
    change_weights(run_folder, change)
    if not words:
        assert trained.load(path).folder == run_folder  # by the file's name as well
        return
    with pytest.raises(UserError, match=words):
        trained.load(run_folder)
    os.truncate(run_folder / "weights.npz", 5_000)
    with pytest.raises(UserError, match="copy the run's folder again"):
        trained.load(run_folder)


def test_a_series_is_answered_by_its_name(run_folder, tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    (series / "series.json").write_text("{}")
    with pytest.raises(UserError, match="is the folder of a series; none of its runs has a result yet"):
        trained.load(series)
    shutil.copytree(run_folder, series / "seed-3")
    with pytest.raises(UserError, match=r"is the folder of a series; give one of its 1 runs, such as .*seed-3$"):
        trained.load(series)


def test_a_record_of_something_else_is_no_run_that_could_go_on(tmp_path):
    for name in ("post6-norms-cpu.json", "bench-cpu.json"):
        with pytest.raises(UserError, match=f"{name} is no result of a run; give a finished run's folder"):
            trained.load(ROOT / "records" / name)


def test_an_older_result_is_told_from_a_damaged_one(run_folder):
    path = run_folder / "result.json"
    result = record.read_result(path)
    del result["data"]["classes"], result["data"]["mean"]
    path.write_text(record.encode(result))
    with pytest.raises(UserError, match="lacks the data's classes, mean; an older version"):
        trained.load(run_folder)


FRESH = """
import json, sys
import numpy as np, tensorflow as tf
folder, root = sys.argv[1:]
images = np.load(f"{folder}/images.npy")
served = tf.saved_model.load(f"{folder}/saved_model").signatures["serving_default"]
answers = [served(images=tf.constant(images[:count])) for count in (1, 5)]
assert not {"lab.runs.trained", "lab.ladder.networks", "lab.ladder.layers"} & sys.modules.keys()
sys.path.insert(0, root)
from lab.runs import trained
model = tf.keras.models.load_model(f"{folder}/model.keras")
np.savez(
    f"{folder}/answers.npz",
    one=answers[0]["logits"], five=answers[1]["logits"], probabilities=answers[1]["probabilities"],
    keras=model(images), predicted=model.predict(images, verbose=0),
)
print(json.dumps(model.description.classes))
"""


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' variables, NumPy 2
def test_both_exports_give_the_same_logits_in_a_fresh_process(run, images, tmp_path):
    folder = tmp_path / "model"
    trained.export(run.classifier, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["classes.json", "model.keras", "saved_model"]
    np.save(folder / "images.npy", images.test_images[:5])
    command = [sys.executable, "-c", FRESH, str(folder), str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((folder / "classes.json").read_text()) == ["0", "1", "2", "3"]
    expected = run.logits(images.test_images[:5])
    with np.load(folder / "answers.npz") as answers:
        for name in ("five", "keras", "predicted"):
            np.testing.assert_allclose(answers[name], expected, atol=1e-5)
        np.testing.assert_allclose(answers["one"], expected[:1], atol=1e-5)
        powers = np.exp(expected.astype(np.float64))
        np.testing.assert_allclose(answers["probabilities"], powers / powers.sum(1, keepdims=True), atol=1e-6)


def test_an_export_is_whole_or_not_there_and_never_overwritten(run, tmp_path, monkeypatch):
    def fails(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.classifier, "save", fails)
    with pytest.raises(UserError, match=r"No space left") as caught:
        trained.export(run.classifier, tmp_path / "model")
    assert caught.value.exit_code == 5 and list((tmp_path / "model").iterdir()) == []
    (tmp_path / "model" / "model.keras").write_text("mine")
    with pytest.raises(UserError, match=r"holds model\.keras already"):
        trained.export(run.classifier, tmp_path / "model")
    assert (tmp_path / "model" / "model.keras").read_text() == "mine"
