"""A checkpoint counts when it is whole, and only then."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lab.base.errors import UserError
from lab.ladder import networks as model
from lab.ladder.averaging import WeightAverage
from lab.ladder.layers import Style
from lab.ladder.optimizers import Nesterov
from lab.runs import checkpoint
from lab.runs.checkpoint import Checkpoints


def made(folder, *, width=2, keep=2, seed=0):
    """A network with its optimizer, average and checkpoints; every variable has a value of its own."""
    network = model.make("davidnet", 4, Style(seed=seed), width=width)
    optimizer = Nesterov(0.1)
    optimizer.build(network.trainable_variables)
    average = WeightAverage(model.averaged_variables(network), 0.9, 2)
    variables = [*network.variables, *optimizer.variables, *average.averages]
    generator = np.random.default_rng(seed + 100)
    for variable in variables:
        if "seed" not in variable.name:
            variable.assign(tf.cast(generator.uniform(0, 9, variable.shape), variable.dtype))
    parts = {"model": network, "optimizer": optimizer, "average": average}
    return Checkpoints(str(folder), keep, parts, variables), variables


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


def test_another_network_is_refused_in_one_line(tmp_path):
    made(tmp_path)[0].save(1, {})
    saved, _ = checkpoint.newest(str(tmp_path))
    with pytest.raises(UserError, match="another network or optimizer"):
        made(tmp_path, width=3)[0].restore(saved)


def test_a_variable_that_the_checkpoint_lost_is_noticed(tmp_path):
    """What TensorFlow does not see: layers in a plain list are not saved, and nothing says so."""
    saver, _ = made(tmp_path)
    saver.state = tf.train.Checkpoint(model=saver.state.model)  # without the optimizer and the average
    saver.save(1, {})
    other, _ = made(tmp_path, seed=5)
    other.state = tf.train.Checkpoint(model=other.state.model)
    with pytest.raises(UserError, match="does not hold every variable"):
        other.restore(checkpoint.newest(str(tmp_path))[0])


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
@pytest.mark.parametrize("suffix", [".json", ".index", ".data-00000-of-00001"])
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


def test_a_manifest_cannot_name_files_elsewhere(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    secret = tmp_path / "secret"
    secret.write_text("x")
    path = folder / "checkpoints" / "step-2.json"
    text = path.read_text().partition("\n")[2].strip().replace("step-2.index", "../../secret")
    path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
    saved, damaged = checkpoint.newest(str(folder))
    assert saved.about["step"] == 1 and len(damaged) == 1


def test_a_folder_that_cannot_be_written_is_said_with_a_code_of_its_own(tmp_path):
    saver, _ = made(tmp_path / "run")
    Path(tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write the checkpoint") as refusal:
        saver.save(1, {})
    assert refusal.value.exit_code == checkpoint.CANNOT_WRITE


def test_checkpoints_may_live_on_another_file_system():
    saver, variables = made("ram://run")
    saver.save(3, {"epoch": 1})
    saved, _ = checkpoint.newest("ram://run")
    before = values(variables)
    other, restored = made("ram://run", seed=5)
    other.restore(saved)
    for one, two in zip(before, values(restored), strict=True):
        np.testing.assert_array_equal(one, two)
