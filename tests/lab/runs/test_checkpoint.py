"""A checkpoint counts when it is complete, and only then."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lab.base import files
from lab.base.errors import Exit, UserError
from lab.runs import checkpoint
from lab.runs.checkpoint import Checkpoints
from model import DavidNet
from train_eager import Nesterov


def made(folder, *, width=2, keep=2, seed=0):
    """A network with its optimizer and checkpoints; every variable has a value of its own."""
    network = DavidNet(4, width=width, seed=seed)
    network(tf.zeros([1, 32, 32, 3]))
    optimizer = Nesterov(0.1)
    optimizer.build(network.trainable_variables)
    variables = [*network.variables, *optimizer.variables]
    generator = np.random.default_rng(seed + 100)
    for variable in variables:
        variable.assign(tf.cast(generator.uniform(0, 9, variable.shape), variable.dtype))
    return Checkpoints(str(folder), keep, variables), variables


def values(variables):
    return [np.array(tf.convert_to_tensor(variable)) for variable in variables]


def test_every_variable_comes_back_the_batch_norms_averages_and_slots_included(tmp_path):
    saver, variables = made(tmp_path)
    saver.save(7, {"epoch": 1})
    before = values(variables)
    other, restored = made(tmp_path, seed=5)
    saved, damaged = checkpoint.newest(str(tmp_path))
    assert saved.about["epoch"] == 1 and saved.about["step"] == 7 and not damaged
    other.restore(saved)
    for one, two in zip(before, values(restored), strict=True):
        np.testing.assert_array_equal(one, two)


def test_only_so_many_are_kept_and_the_newest_counts(tmp_path):
    saver, _ = made(tmp_path)
    for step in (9, 97, 100, 5):
        saver.save(step, {})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert {name.partition(".")[0] for name in names} == {"step-97", "step-100"}
    assert checkpoint.newest(str(tmp_path))[0].about["step"] == 100


def test_what_a_killed_run_left_of_a_checkpoint_goes_with_the_next_and_nothing_else(tmp_path):
    saver, _ = made(tmp_path)
    saver.save(1, {})
    folder = tmp_path / "checkpoints"
    (folder / "step-7.npz").mkdir()  # a user's
    kept = {
        "step-1.json",
        "step-1.npz",
        "step-2.json",
        "step-one.npz",
        "step-03.npz",
        "step-7.npz",
        "notes.txt",
        ".probe",
    }
    for name in (
        "step-2.json",
        "step-one.npz",
        "notes.txt",
        ".probe",
        "step-3.npz",
        ".step-4.npz.ab12",
        ".step-10.json.x",
        "step-03.npz",
    ):
        (folder / name).write_bytes(b"?")
    saver.save(5, {})
    assert {path.name for path in folder.iterdir()} == kept | {"step-5.json", "step-5.npz"}


def test_another_network_is_refused_in_one_line(tmp_path):
    made(tmp_path)[0].save(1, {})
    saved, _ = checkpoint.newest(str(tmp_path))
    with pytest.raises(UserError, match="another network, optimizer or --precision"):
        made(tmp_path, width=3)[0].restore(saved)


def test_a_checkpoint_that_lacks_a_variable_is_refused(tmp_path):
    saver, variables = made(tmp_path)
    Checkpoints(str(tmp_path), 2, variables[:-1]).save(1, {})
    with pytest.raises(UserError, match="another network, optimizer or --precision"):
        saver.restore(checkpoint.newest(str(tmp_path))[0])


def test_a_service_that_does_not_answer_is_not_a_folder_without_checkpoints(monkeypatch):
    def unreachable(path):
        raise tf.errors.UnavailableError(None, None, "no network")

    monkeypatch.setattr(tf.io.gfile, "exists", unreachable)  # as TensorFlow's; its listdir would say "not found"
    with pytest.raises(UserError, match="cannot reach gs://b/run/checkpoints: no network"):
        checkpoint.newest("gs://b/run")


def test_a_folder_that_may_not_be_read_is_said(monkeypatch, tmp_path):
    made(tmp_path)[0].save(1, {})

    def denied(path):
        raise tf.errors.PermissionDeniedError(None, None, "Permission denied")

    monkeypatch.setattr(tf.io.gfile, "listdir", denied)
    with pytest.raises(UserError, match=r"cannot reach .*/checkpoints: Permission denied; check the path"):
        checkpoint.newest(str(tmp_path))


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert checkpoint.newest(str(tmp_path)) == (None, [])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "notes.json").write_text("{}")
    (tmp_path / "checkpoints" / "step-x.json").write_text("{}")
    assert checkpoint.newest(str(tmp_path)) == (None, [])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    saver, _ = made(folder)
    saver.save(1, {"epoch": 1})
    saver.save(2, {"epoch": 2})
    return folder


SEED = 20190


@pytest.mark.parametrize("kind", ["flip", "cut", "empty", "gone"])
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_damaged_newest_one_is_reported_and_the_one_before_it_taken(two, tmp_path, kind, suffix):
    generator = np.random.default_rng([SEED, len(kind), len(suffix)])
    for case in range(20 if kind in ("flip", "cut") else 1):
        folder = tmp_path / str(case)
        shutil.copytree(two, folder)
        path = folder / "checkpoints" / f"step-2{suffix}"
        content = bytearray(path.read_bytes())
        if kind == "flip":
            content[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
        elif kind == "cut":
            del content[int(generator.integers(len(content))) :]
        path.write_bytes(b"" if kind == "empty" else content)
        if kind == "gone":
            path.unlink()
        saved, damaged = checkpoint.newest(str(folder))
        if suffix == ".json" and kind == "gone":  # never finished, so it never counted
            assert saved.about["step"] == 1 and not damaged
        else:
            assert saved.about["step"] == 1 and len(damaged) == 1 and "step-2" in damaged[0]


def test_a_manifest_of_another_step_does_not_count(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    path = folder / "checkpoints" / "step-2.json"
    path.write_text(files.encode(files.decode(path.read_text()) | {"step": 1}))
    saved, damaged = checkpoint.newest(str(folder))
    assert saved.about["step"] == 1 and len(damaged) == 1 and "another's" in damaged[0]


def test_the_arrays_of_another_run_do_not_count(two, tmp_path):
    """They are whole and of the right shapes: only the sum tells."""
    folder = shutil.copytree(two, tmp_path / "run")
    made(tmp_path / "other", seed=5)[0].save(2, {"epoch": 2})
    shutil.copy(tmp_path / "other" / "checkpoints" / "step-2.npz", folder / "checkpoints")
    saved, damaged = checkpoint.newest(str(folder))
    assert saved.about["step"] == 1 and len(damaged) == 1 and "not what was written" in damaged[0]


def test_a_folder_that_cannot_be_written_is_said_with_a_code_of_its_own(tmp_path):
    saver, _ = made(tmp_path / "run")
    Path(tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write the checkpoint") as refusal:
        saver.save(1, {})
    assert refusal.value.exit_code == Exit.CANNOT_WRITE


def test_checkpoints_may_live_on_another_file_system():
    saver, variables = made("ram://run")
    saver.save(3, {"epoch": 1})
    saved, _ = checkpoint.newest("ram://run")
    before = values(variables)
    other, restored = made("ram://run", seed=5)
    other.restore(saved)
    for one, two in zip(before, values(restored), strict=True):
        np.testing.assert_array_equal(one, two)
