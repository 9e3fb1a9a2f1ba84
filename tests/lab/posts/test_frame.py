"""lab/posts/frame.py: an experiment is found, run, recorded, judged and drawn; every record on file too."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab import __main__ as lab
from lab import documents
from lab.base.errors import UserError
from lab.ladder import recipes
from lab.machine import memory
from lab.posts import frame
from lab.posts.frame import Finding
from lab.report import figures
from lab.runs import record
from lab.start import load

ROOT = Path(__file__).resolve().parents[3]
RECORDS = documents.of_posts(ROOT / "records")


def measure(sizes, images, seed):
    return {"count": len(images.train_labels), "held_out": len(images.test_labels), "doubled": 2 * sizes["factor"]}


def judge(record):
    return [Finding("twice the factor", "6", str(record["doubled"]), record["doubled"] == 6)]


def draw(record, figure):
    figure.add_subplot().plot([0, record["doubled"]])


@pytest.fixture
def toy(monkeypatch):
    """An experiment of the fifth post, named toy."""
    module = SimpleNamespace(
        SMALL={"limit_train": 40, "holdout": 8, "factor": 3}, measure=measure, judge=judge, draw=draw
    )
    module.ORIGINAL = {"factor": 4}
    monkeypatch.setattr(frame, "load", lambda name: module if name == "lab.posts.post5_toy" else load(name))
    experiment = frame.Experiment("lab.posts.post5_toy", "Doubling doubles.", "a moment")
    monkeypatch.setattr(frame, "experiments", lambda: {"post5 toy": experiment, "post7 more": experiment})
    monkeypatch.setattr(memory, "restart_with_huge_pages", lambda: None)


def test_an_experiment_leaves_its_record_verdict_and_picture(toy, small_data, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="drawing is optional")
    arguments = ["post5", "toy", "--data", small_data, "--seed", "4", "--out", str(tmp_path / "out")]
    assert lab.main(arguments) == 0
    written = record.read_result(tmp_path / "out" / "record.json")
    assert {name: written[name] for name in ("count", "held_out", "doubled")} == {
        "count": 40,
        "held_out": 8,
        "doubled": 6,
    }
    assert (written["experiment"], written["seed"], written["original"]) == ("post5 toy", 4, False)
    assert written["sizes"] == {"limit_train": 40, "holdout": 8, "factor": 3}
    assert set(frame.ABOUT) <= written.keys() and written["versions"]["tensorflow"] and written["hardware"]["cores"]
    assert not record.is_result(tmp_path / "out" / "record.json")
    said = capsys.readouterr().out
    assert "twice the factor  6         6         yes" in said and "Small form, seed 4, n = 1: limit train 40," in said
    assert (tmp_path / "out" / "picture.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "out" / "record.json").read_bytes()
    assert lab.main(arguments) == 2  # it may have taken hours
    assert "holds an experiment's record; give another --out" in capsys.readouterr().err
    assert (tmp_path / "out" / "record.json").read_bytes() == before


def test_the_form_is_in_the_folders_name_and_the_seeds_are_counted(toy, small_data, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="drawing is optional")
    monkeypatch.chdir(tmp_path)
    module = frame.load("lab.posts.post5_toy")
    monkeypatch.setattr(module, "SMALL", {**module.SMALL, "seeds": 3})
    for form in ([], ["--original"]):
        assert lab.main(["post5", "toy", "--data", small_data, *form]) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"post5-toy-seed0", "post5-toy-original-seed0"}
    said = capsys.readouterr().out
    assert (
        "Small form, seed 0, n = 3: limit train 40," in said and "The original's sizes, seed 0, n = 1: factor" in said
    )


def test_the_originals_sizes_are_behind_a_flag(toy, small_data):
    whole = frame.run("post5 toy", original=True, data=small_data)
    assert (whole["doubled"], whole["count"], whole["sizes"]) == (8, 80, {"factor": 4})
    assert frame.judge(whole)[0].holds is False
    assert "| twice the factor | 6 | 8 | no |" in frame.as_markdown(whole)
    assert "The original's sizes, seed 0, n = 1: factor 4. " in frame.as_markdown(whole)


def test_a_loss_that_is_not_finite_is_one_line(toy, small_data, monkeypatch):
    def diverge(sizes, images, seed):
        raise FloatingPointError("the loss is not finite in epoch 3")

    monkeypatch.setattr(frame.load("lab.posts.post5_toy"), "measure", diverge)
    with pytest.raises(UserError, match="epoch 3") as caught:
        frame.run("post5 toy", data=small_data)
    assert caught.value.exit_code == 3


def test_unknown_experiments_are_refused_with_the_nearest(toy, capsys):
    for arguments, answer in (
        (["post5", "toi"], "no experiment post5 toi; did you mean post5 toy?"),
        (["post5", "zzzzzzzzzz"], "no experiment post5 zzzzzzzzzz; python -m lab posts lists them"),
        (["post6"], "post6 has no experiments; post5, post7 have"),
        (["post5", "toy", "--sed", "1"], "unknown argument --sed; did you mean --seed?"),
    ):
        assert lab.main(arguments) == 2
        assert capsys.readouterr().err == answer + "\n"


def test_the_lists_name_claim_and_cost(toy, capsys):
    assert lab.main(["posts"]) == 0
    assert "post5 toy\n    Doubling doubles.\n    a moment\npost7 more\n" in capsys.readouterr().out
    assert lab.main(["post7"]) == 0
    said = capsys.readouterr().out
    assert "post7 more" in said and "post5" not in said


# ---- the experiments themselves ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", frame.experiments())
def test_an_experiment_says_what_it_claims_and_takes_and_has_two_sizes(name):
    about = frame.experiments()[name]
    module = load(about.module)
    assert about.claim.endswith(".") and 20 < len(about.claim) < 400
    assert "Source:" in module.__doc__ and "refute" in module.__doc__ and "\n\nSmall form: " in module.__doc__
    assert module.SMALL != module.ORIGINAL or "the original's sizes" in about.small
    assert (ROOT / "docs" / "posts" / f"{name[:5]}.md").is_file(), "a page for the post"
    assert not set(recipes.RECIPES) & set(module.SMALL)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_on_file_can_be_judged_and_drawn(name):
    pytest.importorskip("matplotlib", reason="drawing is optional")
    written = record.read_result(RECORDS[name])
    assert name.startswith(written["experiment"]) and not written["data"]["synthetic"]
    json.dumps(written, allow_nan=False)
    found = frame.judge(written)
    assert found and all(isinstance(one.holds, bool | None) and one.what and one.measured for one in found)
    assert len(figures.as_svg(frame.draw(written), "")) < 40_000
