"""Several seeds in one process: each as if it were alone, going on where it stopped, and their statistics."""

import json
import shutil
import weakref

import numpy as np
import pytest

from lab import assemble, command, series
from lab.base import files
from lab.base.errors import Exit, UserError
from lab.drive import Drive
from lab.machine import fastest
from lab.runs import record


def weights(folder):
    with np.load(folder / "weights.npz") as arrays:
        return {name: arrays[name].tobytes() for name in arrays}


@pytest.fixture(scope="module")
def options(small_data):
    """A recipe with all that a seed decides: weights, order, alternating flips, an average, two optimizers."""
    return {
        "data": small_data, "device": "cpu", "width": 4, "batch_size": 16, "epochs": 2, "learning_rate": 0.05,
        "recipe": "speedrun", "tta": "flip", "ema_every": 2, "ema_keeps": 0.9, "jit": False,
        "sides": "24x1 32",
    }  # fmt: skip


@pytest.fixture(scope="module")
def done(options, tmp_path_factory):
    """A series of the seeds 5 to 7: its folder, what train() returned, how often its step was traced."""
    folder = tmp_path_factory.mktemp("series") / "three"
    made, make = [], assemble.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "make", lambda *parts: made.append(make(*parts)) or made[-1])
        found = command.train(**options, seed=5, runs=3, out=str(folder))
    (training,) = made
    return folder, found, training.train_steps.experimental_get_tracing_count()


def test_each_run_is_the_one_that_its_seed_gives_alone(done, options, tmp_path):
    folder, found, traces = done
    assert traces == 2  # of each side
    assert [result["seed"] for result in found["runs"]] == [5, 6, 7]
    for seed in (5, 7):
        alone = command.train(**options, seed=seed, out=str(tmp_path / str(seed)))
        assert weights(folder / f"seed-{seed}") == weights(tmp_path / str(seed))
        for name in ("test_accuracy", "test_accuracy_tta"):
            assert found["runs"][seed - 5][name] == alone[name]
    assert weights(folder / "seed-5") != weights(folder / "seed-6")
    assert found["runs"][0]["compile_seconds"] > 0 == found["runs"][1]["compile_seconds"]


def test_the_table_is_scipys(done, options, capsys):
    stats = pytest.importorskip("scipy.stats")
    folder, found, _ = done
    assert command.train(resume=str(folder))  # nothing is left to train
    text = capsys.readouterr().out
    assert text.count("finished before: accuracy") == 3
    values = [result["test_accuracy_tta"] for result in found["runs"]]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    line = next(line for line in text.splitlines() if line.startswith("with TTA, flip views"))
    for number in (np.mean(values), np.std(values, ddof=1), low, high):
        assert f"{100 * number:.3f}" in line or f"{100 * number:.2f}" in line, (number, line)


@pytest.mark.long
def test_an_interrupted_series_goes_on_and_can_be_longer(done, options, tmp_path, monkeypatch):
    folder, found, _ = done
    own = tmp_path / "series"
    save = Drive._save

    def stop(run):
        save(run)
        if run.options.seed == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Drive, "_save", stop)
        with pytest.raises(UserError, match=r"^interrupted; --resume") as ended:
            command.train(**options, seed=5, runs=2, out=str(own))
        assert ended.value.exit_code == Exit.INTERRUPTED
    assert not record.read_result(own / "seed-6")["finished"]
    shutil.rmtree(own / "seed-6" / "checkpoints")  # as if killed before the first checkpoint
    again = command.train(resume=str(own), runs=3)
    assert [result["test_accuracy"] for result in again["runs"]] == [
        result["test_accuracy"] for result in found["runs"]
    ]
    for seed in (5, 6, 7):
        assert weights(own / f"seed-{seed}") == weights(folder / f"seed-{seed}")


@pytest.mark.long
def test_a_run_goes_on_from_its_checkpoint_within_a_series(done, options, tmp_path, monkeypatch):
    folder = done[0]
    own, save = tmp_path / "series", Drive._save

    def stop(run):
        save(run)
        if run.options.seed == 6:
            raise UserError("stopped by a test", exit_code=143)

    with monkeypatch.context() as patch:
        patch.setattr(Drive, "_save", stop)
        with pytest.raises(UserError, match=f"of the whole series: --resume {own}"):
            command.train(**options, seed=5, runs=2, out=str(own))
    command.train(resume=str(own))
    assert weights(own / "seed-6") == weights(folder / "seed-6")


def test_a_series_may_end_later_and_not_earlier_than_its_seeds_have(options, tmp_path):
    own, alone = tmp_path / "series", tmp_path / "alone"
    short = {name: value for name, value in options.items() if name not in ("sides", "ema_every", "ema_keeps")}
    command.train(**short, seed=5, runs=2, stop_after=1, out=str(own))
    found = command.train(resume=str(own), stop_after=2)
    command.train(**short, seed=6, out=str(alone))
    assert [len(result["epochs"]) for result in found["runs"]] == [2, 2]
    assert weights(own / "seed-6") == weights(alone)
    with pytest.raises(UserError, match=r"--stop-after 1: the run in .*seed-5 has made 2 epochs; give at least 2"):
        command.train(resume=str(own), stop_after=1)
    assert len(command.train(resume=str(own))["runs"]) == 2  # what was refused has left no trace
    (own / "seed-5" / "weights.npz").unlink()  # as if it had been killed as it ended
    with pytest.raises(UserError, match=r"--stop-after 1: the run in .*seed-5 has made 2 epochs; give at least 2"):
        command.train(resume=str(own), stop_after=1)


def test_a_series_keeps_the_precision_and_the_checkpoints_that_its_seeds_have(options, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    own, made = tmp_path / "series", []
    monkeypatch.setattr(fastest, "fastest", lambda *, jit: ("bfloat16", "a test"))
    command.train(**options, seed=5, runs=2, stop_after=1, out=str(own), checkpoint_dir="~/kept")
    monkeypatch.setattr(fastest, "fastest", lambda *, jit: ("float32", "a test"))
    run = Drive.run
    monkeypatch.setattr(Drive, "run", lambda drive, **how: made.append(drive.saved.about["step"]) or run(drive, **how))
    found = command.train(resume=str(own), stop_after=2, runs=2)
    assert [result["precision"] for result in found["runs"]] == ["bfloat16", "bfloat16"] and made == [5, 5]


def test_a_seed_with_images_of_its_own_is_made_when_the_one_before_is_gone(options, tmp_path, monkeypatch):
    made, make = [], assemble.make

    def alone(*parts):
        assert not [one for one in made if one() is not None]
        made.append(weakref.ref(training := make(*parts)))
        return training

    monkeypatch.setattr(assemble, "make", alone)
    command.train(**options, seed=5, runs=2, holdout=16, stop_after=1, out=str(tmp_path / "series"))
    assert len(made) == 2


def test_auto_finds_the_newest_unfinished_series(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, runs in (("speedrun-5x2-old", 2), ("speedrun-5x2-new", 2), ("davidnet-5x2", 2)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        about = {"hyperparameters": {"seed": 5, "runs": runs}}
        (folder / series.SERIES).write_text(files.encode(about))
    wanted = {"recipe": "speedrun", "seed": 5, "runs": 2, "resume": "auto"}
    assert series.find(assemble.configure(wanted)) == "runs/speedrun-5x2-new"
    assert series.find(assemble.configure(wanted | {"seed": 1})) == ""
    assert series.find(assemble.configure(wanted | {"resume": ""})) == ""


def test_what_does_not_go_is_one_line(done, options, tmp_path, monkeypatch):
    folder = done[0]
    with pytest.raises(UserError, match="holds a series"):
        command.train(**options, seed=5, runs=3, out=str(folder))
    with pytest.raises(UserError, match="goes on in its own folder; leave --out away"):
        command.train(resume=str(folder), out=str(tmp_path / "new"))
    with pytest.raises(UserError, match="--width 4, not 8"):
        command.train(resume=str(folder), width=8)
    with pytest.raises(UserError, match="holds no series"):
        command.train(resume=str(folder / "seed-5"), runs=2)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / series.SERIES).write_text((copy / series.SERIES).read_text().replace('"seed": 5', '"seed": 6'))
    with pytest.raises(UserError, match=r"series\.json.*checksum"):
        command.train(resume=str(copy))
    (tmp_path / "mine" / "seed-6").mkdir(parents=True)
    with pytest.raises(UserError, match="holds seed-6"):
        command.train(**options, seed=5, runs=2, out=str(tmp_path / "mine"))
    with pytest.raises(UserError, match="nowhere") as error:
        command.train(**options | {"data": str(tmp_path / "nowhere")}, runs=2, out=str(tmp_path / "new"))
    assert "--resume" not in str(error.value) and not (tmp_path / "new").exists()
    workers = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(workers))
    with pytest.raises(UserError, match="--runs 2 is for one process"):
        command.train(**options, runs=2, out=str(tmp_path / "none"))


@pytest.mark.long
def test_images_drawn_by_the_seed_are_drawn_anew(tmp_path):
    found = command.train(
        data="synthetic", limit_train=64, limit_test=16, device="cpu", width=2, batch_size=32, epochs=1,
        jit=False, runs=2, out=str(tmp_path / "series"), checkpoint_every=0,
    )  # fmt: skip
    one, other = (result["data"]["sha256"] for result in found["runs"])
    assert one != other
