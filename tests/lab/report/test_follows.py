"""Whether a run follows its published log: each deviation from the record and the log anew."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from lab import show
from lab.base.files import encode
from lab.ladder import published
from lab.ladder.recipes import RECIPES
from lab.report import follows

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def put(made_result, tmp_path):
    """Writes a record of these (training loss, training accuracy) by epoch; `changes` replace fields."""

    def write(recipe, rows, epochs=20, hyperparameters=None, **changes):
        made = made_result(recipe, accuracies=[0.5] * len(rows), random_stream="numpy-plan")
        made["hyperparameters"] = {"epochs": epochs, "seed": 0, **(hyperparameters or {})}
        for row, (loss, accuracy) in zip(made["epochs"], rows, strict=True):
            row["train_loss"], row["train_accuracy"] = loss, accuracy
        (tmp_path / f"{len(list(tmp_path.iterdir()))}.json").write_text(encode(made | changes))
        return tmp_path

    return write


def test_the_logs_are_of_posts_1_to_4_and_of_davidnet():
    """Two rungs as they are printed in experiments.ipynb, and none that is not a recipe."""
    assert published.LOGS["post4-conv3"] == ((1.7308, 0.3705), (1.3386, 0.5154), (1.1407, 0.5904))
    assert published.LOGS["davidnet"][:2] == ((1.6125, 0.41724), (0.92868, 0.66918))  # demo.ipynb's mean of five runs
    without = {"post0-dawnbench", "post3-cutout-35", "post3-simple-35"}
    expected = {name for name in RECIPES if re.match(r"post[0-4]", name)} - without | {"davidnet"}
    assert set(published.LOGS) == expected and len(expected) == 15
    for log in published.LOGS.values():
        (first, _), (second, _), (third, _) = log[:3]
        assert first > second > third and [accuracy for _, accuracy in log] == sorted(accuracy for _, accuracy in log)


# post4-maxpool's log: 1.6871 .3949, 1.1606 .5894, 0.9527 .6686. By hand:
# 1.7209 / 1.6871 = 1.0200, 1.1374 / 1.1606 = 0.9800, 1.1838 / 1.1606 = 1.0200
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(1.7209, 0.3949), (1.1606, 0.5894)], "yes: 2 epochs, loss +2.0 %, accuracy +0.0 points"),
        ([(1.7377, 0.3900), (1.1606, 0.5894)], "yes: 2 epochs, loss +3.0 %, accuracy -0.5 points"),
        ([(1.7394, 0.3949), (1.1606, 0.5894)], "NO: 2 epochs, loss +3.1 %, accuracy +0.0 points"),
        ([(1.6871, 0.3949), (1.1374, 0.5894)], "yes: 2 epochs, loss -2.0 %, accuracy +0.0 points"),
        ([(1.6871, 0.3949), (1.1861, 0.5894)], "NO: 2 epochs, loss +2.2 %, accuracy +0.0 points"),
        ([(1.6871, 0.3949), (1.1606, 0.6043)], "yes: 2 epochs, loss +0.0 %, accuracy +1.5 points"),
        ([(1.6871, 0.3939), (1.1606, 0.5734)], "NO: 2 epochs, loss +0.0 %, accuracy -1.6 points"),
        ([(1.6871, 0.3949)], "yes: 1 epoch, loss +0.0 %, accuracy +0.0 points"),
        ([(1.6871, 0.3949), (1.1606, 0.5894), (0.9813, 0.66)], "NO: 3 epochs, loss +3.0 %, accuracy -0.9 points"),
        # What comes after the log's three epochs is not looked at.
        ([(1.6871, 0.3949), (1.1606, 0.5894), (0.9527, 0.6686), (9.0, 0.1)], "yes: 3 epochs, loss +0.0 %, "),
    ],
)
def test_the_worst_epoch_is_told_and_held_against_the_limits(rows, words, put):
    folder = put("post4-maxpool", rows)
    found = follows.of_records(folder)
    assert follows.in_words(found, "post4-maxpool").startswith(words)
    assert follows.in_words(found, "post4-conv3") == "not measured yet"
    assert follows.in_words(found, "speedrun") == "no log"
    (line,) = [line for line in show.listing(folder).splitlines() if line.startswith("post4-maxpool ")]
    assert words in line


def test_of_several_runs_the_farthest_counts(put):
    put("post4-maxpool", [(1.6871, 0.3949), (1.1606, 0.5894)])
    folder = put("post4-maxpool", [(1.6871, 0.3949), (1.1000, 0.5894)], seed=1)
    assert follows.in_words(follows.of_records(folder), "post4-maxpool").startswith("NO: 2 runs, 2 epochs, loss -5.2 %")


@pytest.mark.parametrize(
    "changes",
    [
        {"hyperparameters": {"width": 32}},
        {"hyperparameters": {"limit_train": 5000}},
        {"hyperparameters": {"blocks": "residual,nothing,extra"}},
        {"finished": False},
        {"random_stream": None},  # an older code's
        {"unlike": "another start"},
        {"epochs": 30},
    ],
)
def test_other_trainings_tell_nothing(changes, put):
    folder = put("post4-bn-scale1", [(1.7973, 0.3648)], **changes)
    assert follows.of_records(folder)["post4-bn-scale1"] is None


def test_those_still_to_follow_are_named_one_a_line(put, monkeypatch, capsys):
    monkeypatch.setattr(show, "RECORDS", put("post4-maxpool", [(1.6871, 0.3949)]))
    assert show.main(["--to-follow"]) == 0
    others = [name for name in published.LOGS if name not in ("post4-maxpool", "post3-fp32-bn")]
    assert capsys.readouterr().out.split() == others  # post3-fp32-bn is here the training of post2-batch512
    put("post2-batch512", [(1.7308, 0.357)], epochs=35)
    assert show.main(["--to-follow"]) == 0
    assert capsys.readouterr().out.split() == [name for name in others if name != "post2-batch512"]
    # 1.7308 / 1.7187 = 1.0070
    found = follows.of_records(show.RECORDS)
    assert follows.in_words(found, "post3-fp32-bn") == "yes: 1 epoch, loss +0.7 %, accuracy -0.3 points"


def test_the_loop_of_the_docs_trains_each_once_goes_on_and_makes_its_record(tmp_path):
    """In a shell, with a `python` that stands for tool and training; the second is killed early, then interrupted."""
    docs = (ROOT / "docs" / "recipes.md").read_text()
    (loop,) = [text for text in re.findall(r"```\n(.*?)```", docs, re.DOTALL) if "--to-follow" in text]
    (tmp_path / "bin").mkdir()
    (tmp_path / "records").mkdir()
    stub = tmp_path / "bin" / "python"
    stub.write_text(
        """#!/bin/sh
echo "$@" >> calls
case "$*" in
    *--to-follow*) for name in one two; do [ -e records/$name-2-epochs-cpu.json ] || echo $name; done ;;
    *"--recipe two"*--out*)
        [ -e runs/follow/two ] && mkdir runs/follow/two/checkpoints && touch runs/follow/two/checkpoints/1
        mkdir -p runs/follow/two; exit 130 ;;
    *train_eager.py*) mkdir -p runs/follow/$3; echo result of $3 > runs/follow/$3/result.json ;;
esac
"""
    )
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}"}
    for _ in range(4):
        subprocess.run(["sh", "-c", loop], cwd=tmp_path, env=environment, check=False)
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "train_eager.py" in line]
    assert calls == [
        "train_eager.py --recipe one --stop-after 2 --out runs/follow/one",
        "train_eager.py --recipe two --stop-after 2 --out runs/follow/two",
        "train_eager.py --recipe two --stop-after 2 --out runs/follow/two",
        "train_eager.py --recipe two --stop-after 2 --resume runs/follow/two",
    ]
    for name in ("one", "two"):
        assert (tmp_path / "records" / f"{name}-2-epochs-cpu.json").read_text() == f"result of {name}\n"


def test_each_deviation_on_record_is_that_of_its_record_and_log():
    """Read by json alone; what is told of a recipe is its record that is farthest off."""
    worst = {}
    for path in sorted((ROOT / "records").glob("*.json")):
        made = json.loads(path.read_text())
        name = made.get("recipe")
        if made.get("random_stream") != "numpy-plan" or "unlike" in made or name not in published.LOGS:
            continue
        settings = made["hyperparameters"]
        if (
            settings["limit_train"]
            or settings.get("sides")
            or settings["width"] != (128 if name == "post4-wide" else 64)
        ):
            continue
        twins = ("post2-batch512", "post3-fp32-bn")  # one training here
        for other in twins if name in twins else (name,):
            for row, (loss, accuracy) in zip(made["epochs"], published.LOGS[other], strict=False):
                new = row["train_loss"] / loss - 1, row["train_accuracy"] - accuracy
                before = worst.get(other, (0, 0))
                worst[other] = [max(pair, key=abs) for pair in zip(before, new, strict=True)]
    found = {name: by for name, by in follows.of_records(ROOT / "records").items() if by}
    assert found.keys() == worst.keys()
    for name, by in found.items():
        assert [by.loss, by.accuracy] == pytest.approx(worst[name], abs=1e-12)
        explained = (ROOT / "docs" / "recipes.md").read_text().partition("What does not follow")[2]
        assert by.follows or f"`{name}`" in explained, (
            f"{name} does not follow its log: {by}; say why in docs/recipes.md"
        )
