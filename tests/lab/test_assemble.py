"""The hyperparameters: flags made from one list, edited constants, recipes, and what is refused in one line."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train_eager
from lab import assemble, command, options, start
from lab.base.errors import UserError
from lab.ladder import recipes

ROOT = Path(__file__).resolve().parents[2]


def edit(monkeypatch, **constants):
    """As if somebody had edited the constants at the top of train_eager.py."""
    written = dataclasses.replace(train_eager.Config(), **constants)
    monkeypatch.setattr(assemble, "Config", lambda: written)


def test_the_constants_are_the_published_recipe():
    assert assemble.edited() == {}
    written, published = train_eager.Config(), recipes.values("davidnet")
    assert {name: getattr(written, name) for name in options.OF_DAVIDNET} == {
        name: published[name] for name in options.OF_DAVIDNET
    }
    values = assemble.configure({})
    assert (values.epochs, values.batch_size, values.learning_rate, values.warmup_epochs) == (24, 512, 0.4, 5)
    assert (values.momentum, values.weight_decay, values.pad, values.cutout, values.width) == (0.9, 5e-4, 4, 8, 64)


def test_every_hyperparameter_is_a_flag_once_in_its_group():
    parser = start.flags(train_eager.Config, train_eager.add_flags)
    text = parser.format_help()
    for item in dataclasses.fields(assemble.Options):
        assert len(re.findall(rf"^  {options.flag(item.name)}[ ,]", text, re.MULTILINE)) == 1, item.name
    assert text.index("--epochs") < text.index("--network") < text.index("--holdout") < text.index("--resume")
    assert "{none,random,alternating}" in text
    words = " ".join(text.split())
    for name, about in options.HELPS.items():
        assert f"{about} (default: {getattr(train_eager.Config, name)!r})" in words, name


def test_flags_are_parsed_with_their_types():
    parser = start.flags(train_eager.Config, train_eager.add_flags)
    known = parser.parse_args(["--epochs", "3", "--learning-rate=.2", "--no-jit", "--data", "x", "--whiten"])
    assert vars(known) == {"epochs": 3, "learning_rate": 0.2, "jit": False, "data": "x", "whiten": True}


def test_the_warm_up_keeps_its_share_unless_given():
    assert assemble.configure({"epochs": 12}).warmup_epochs == 2.5
    assert assemble.configure({"epochs": 12, "warmup_epochs": 3.0}).warmup_epochs == 3.0
    assert assemble.configure({"recipe": "tricks-ghost", "epochs": 9}).warmup_epochs == pytest.approx(1.8)


def test_knots_follow_the_epochs_and_rise_with_the_rate():
    assert assemble.configure({"recipe": "bag-of-tricks", "epochs": 20, "learning_rate": 0.5}).knots == (
        "0,0 4,0.5 18,0.05 20,0.05"
    )
    assert assemble.configure({"recipe": "bag-of-tricks", "epochs": 20, "knots": "0,1"}).knots == "0,1"


def test_an_edited_constant_counts_like_its_flag(monkeypatch):
    edit(monkeypatch, epochs=3, warmup_epochs=5 / 24 * 3, cutout=4)
    assert assemble.edited() == {"epochs": 3, "cutout": 4}
    values = assemble.configure({})
    assert (values.epochs, values.warmup_epochs, values.cutout) == (3, 0.625, 4)
    assert assemble.configure({"cutout": 6}).cutout == 6  # a flag goes before it
    speedrun = assemble.configure({"recipe": "speedrun"})
    assert (speedrun.epochs, speedrun.cutout, speedrun.batch_size) == (3, 4, 2000)
    assert speedrun.warmup_epochs == 0  # it follows the edited epochs, so it was not edited


def test_an_edited_warm_up_counts_too(monkeypatch):
    edit(monkeypatch, warmup_epochs=2.0)
    assert assemble.edited() == {"warmup_epochs": 2.0}
    assert assemble.configure({"epochs": 48}).warmup_epochs == 4.0  # it keeps its share, as by train(epochs=48)
    assert assemble.configure({"epochs": 48, "warmup_epochs": 3.0}).warmup_epochs == 3.0
    with pytest.raises(UserError, match=r"--warmup-epochs 2\.0 has no effect with --knots"):
        assemble.configure({"recipe": "speedrun"})


def test_an_edited_script_trains_the_edited_recipe(small_data, tmp_path):
    for name in ("train_eager.py", "model.py", "data.py", "schedule.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "lab", tmp_path / "lab")
    script = tmp_path / "train_eager.py"
    script.write_text(script.read_text().replace("\nEPOCHS = 24 ", "\nEPOCHS = 2 "))
    flags = ["--recipe", "speedrun", "--data", small_data, "--width", "4", "--batch-size", "16", "--no-jit"]
    command = [sys.executable, "train_eager.py", *flags, "--device", "cpu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "speedrun, 2 epochs, batch 16" in result.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--epochs 0", "--epochs 0 is out of range; give 1 to 100000"),
        ("--epochs three", "--epochs: invalid int value: 'three'"),
        ("--batch-size -5", "--batch-size -5 is out of range"),
        ("--momentum 1", "--momentum 1.0 is out of range"),
        ("--learning-rate nan", "--learning-rate nan is out of range"),
        ("--learning-rate inf", "--learning-rate inf is out of range"),
        ("--cutout 40", "--cutout 40 is out of range; give 0 to 32"),
        ("--pad 32", "--pad 32 is out of range; give 0 to 31"),
        ("--dropout 1.5", "--dropout 1.5 is out of range"),
        ("--seed -1", "--seed -1 is out of range"),
        ("--epochs 99999999999999999999", "out of range"),
        ("--device gpus", "choose from"),
        ("--precision fp8", "choose from"),
        ("--epoch 3", "did you mean --epochs?"),
        ("--lr 0.1", "did you mean --learning-rate?"),
        ("--zzz", "-h lists the flags"),
        ("stray", "unknown argument stray"),
        ("--warmup-epochs 24", "--warmup-epochs 24 is not below epochs 24"),
        ("--stop-after 30", "--stop-after 30 is above epochs 24"),
        ("--data /no/such/folder", "/no/such/folder"),
        ("--data synthetic --batch-size 999999", "is more than the 10000 training images"),
        ("--data synthetic --limit-train 999999", "999999"),
        ("--head-rate 0.5", "--head-rate 0.5 has no effect with --optimizer nesterov"),
        ("--celu-alpha 0.3", "--celu-alpha 0.3 has no effect with --activation relu"),
        ("--recipe speedrun --whiten", "--whiten True has no effect with --network speednet"),
        ("--ema-keeps 0.9", "has no effect without --ema-every"),
        ("--recipe bag-of-tricks --warmup-epochs 1", "has no effect with --knots"),
        ("--knots 0,1 --learning-rate 0.8", "--learning-rate 0.8 has no effect with --knots '0,1'"),
        ("--network conv3 --pool-first", "--pool-first True has no effect with --network conv3"),
        ("--recipe speedrun --learning-rate 1e-310 --data synthetic", "inf) is not finite and from 0"),
        ("--recipe speedrun --epochs 0", "--epochs 0 is out of range"),
        ("--recipe speedrun --learning-rate -1", "--learning-rate -1.0 is out of range"),
        ("--recipe nothing", "--recipe 'nothing' is not known"),
        ("--recipe tricks-ema --epochs 2", "--epochs 2 is too short for the schedule of tricks-ema; give --epochs 3"),
        ("--blocks residual,nothing", "--blocks 'residual,nothing' is not 3 of residual, extra, nothing"),
        ("--blocks nothing,nothing,more", "try --blocks residual,nothing,residual"),
        ("--recipe speedrun --blocks nothing,nothing,extra", "has no effect with --network speednet"),
        ("--filter-rate 1", "--filter-rate 1.0 has no effect with --optimizer nesterov"),
        ("--ghost-groups 7", "--batch-size 512 is not divisible by --ghost-groups 7; try 511"),
    ],
)
def test_a_bad_input_gets_one_line_and_exit_2(flags, words, capsys, tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    assert command_line([*flags.split(), *(["--device", "cpu"] if "--device" not in flags else [])]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 3}, "did you mean epochs"),
        ({"epochs": 2.5}, "--epochs is 2.5; give int"),
        ({"epochs": True}, "--epochs is True; give int"),
        ({"jit": 1}, "--jit is 1; give bool"),
        ({"learning_rate": "0.1"}, "--learning-rate is '0.1'; give float"),
        ({"knots": "0,0 a,1"}, "--knots '0,0 a,1' is not pairs"),
    ],
)
def test_train_refuses_what_the_flags_refuse(changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        command.train(**changes)


def test_the_choices_of_the_network_are_the_networks():
    from lab.ladder import networks

    assert set(networks.NETWORKS) == set(options.NETWORKS)


def test_needs_name_hyperparameters_and_their_values():
    defaults = {item.name: item for item in dataclasses.fields(assemble.Options)}
    for name, needed in options.NEEDS.items():
        for other, values in needed.items():
            limits = defaults[other].metadata
            known = limits["choices"] or (limits["low"], limits["high"])
            assert name in defaults and set(values) <= set(known)
    assert options.WITH.keys() | set(options.WITH.values()) <= defaults.keys()


def test_importing_and_helping_load_no_tensorflow():
    code = "import sys; sys.argv = ['train_eager.py', '-h']; import runpy\n"
    code += "try: runpy.run_path('train_eager.py', run_name='__main__')\n"
    code += "except SystemExit: print('loaded', 'tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "loaded False" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("flag", "path"),
    [
        *((flag, 300 * "x") for flag in ("--data", "--resume", "--out", "--checkpoint-dir", "--profile")),
        *((flag, "s3://bucket/x") for flag in ("--data", "--resume", "--out", "--checkpoint-dir", "--profile")),
        *((flag, os.fsdecode(b"\xff")) for flag in ("--data", "--resume", "--out", "--checkpoint-dir", "--profile")),
        *((flag, "FIFO") for flag in ("--data", "--resume", "--out", "--checkpoint-dir", "--profile")),
        ("--out", "gs://bucket/run"),
        ("--profile", "/proc/no/such"),
    ],
)
def test_a_path_that_cannot_be_is_refused_before_anything_is_made(
    flag, path, short, command_line, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("FIFO")
    arguments = [*(word for name in ("data", "width", "batch_size") for word in (options.flag(name), short[name]))]
    assert command_line([*arguments, "--device", "cpu", flag, path]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and flag in error and len(error) < 300
    assert [entry.name for entry in tmp_path.iterdir()] == ["FIFO"]
