"""The flags: made from one list, checked, and refused in one line."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import train_eager
from lab import options as settings
from lab.base.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_every_constant_is_a_hyperparameter_and_the_other_way_round():
    source = (ROOT / "train_eager.py").read_text()
    forms = [line.partition(" = ")[0] for line in source.splitlines() if "#@param" in line]
    assert [name.lower() for name in forms] == list(settings.NAMES)
    settings.check(train_eager.constants())


def test_the_defaults_are_davidnets():
    values = train_eager.constants()
    assert (values.epochs, values.batch_size, values.learning_rate, values.warmup_epochs) == (24, 512, 0.4, 5)
    assert (values.momentum, values.weight_decay, values.pad, values.cutout, values.width) == (
        0.9,
        5e-4,
        4,
        8,
        64,
    )
    assert values.flip == "random" and values.dropout == values.label_smoothing == 0


def test_editing_a_constant_changes_the_run(monkeypatch):
    monkeypatch.setattr(train_eager, "EPOCHS", 7)
    assert train_eager.constants().epochs == 7
    assert settings.parse(train_eager.constants(), [], "") == {}


def test_flags_are_parsed_with_their_types():
    found = settings.parse(
        train_eager.constants(), ["--epochs", "3", "--learning-rate=.2", "--no-jit", "--data", "x"], ""
    )
    assert found == {"epochs": 3, "learning_rate": 0.2, "jit": False, "data": "x"}


def test_the_warm_up_keeps_its_share_unless_given():
    values = train_eager.constants()
    assert settings.change(values, {"epochs": 12}).warmup_epochs == 2.5
    assert settings.change(values, {"epochs": 12, "warmup_epochs": 3}).warmup_epochs == 3.0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--epochs 0", "--epochs 0 is below 1"),
        ("--epochs three", "--epochs: invalid int value: 'three'"),
        ("--batch-size -5", "--batch-size -5 is below 1"),
        ("--momentum 1", "--momentum 1.0 is not below 1"),
        ("--learning-rate nan", "not finite"),
        ("--learning-rate inf", "not finite"),
        ("--cutout 40", "--cutout 40 is above 32"),
        ("--pad 32", "--pad 32 is above 31"),
        ("--dropout 1.5", "not below 1"),
        ("--seed -1", "--seed -1 is below 0"),
        ("--device gpus", "choose from auto, cpu, gpu, tpu"),
        ("--precision fp8", "choose from"),
        ("--epoch 3", "did you mean --epochs?"),
        ("--zzz", "-h lists the flags"),
        ("stray", "unknown argument stray"),
        ("--warmup-epochs 24", "not below --epochs 24"),
        ("--stop-after 30", "--stop-after 30 is above --epochs 24"),
        ("--data /no/such/folder", "/no/such/folder"),
        ("--data synthetic --batch-size 999999", "above the 10000 training images"),
        ("--data synthetic --limit-train 999999", "999999"),
    ],
)
def test_a_bad_input_gets_one_line_and_exit_2(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        train_eager.main([*flags.split(), "--device", "cpu"] if "--device" not in flags else flags.split())
        == 2
    )
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 3}, "did you mean epochs"),
        ({"epochs": 2.5}, "no int"),
        ({"epochs": True}, "no int"),
        ({"jit": 1}, "no bool"),
        ({"learning_rate": "0.1"}, "no float"),
    ],
)
def test_train_refuses_what_the_flags_refuse(changes, words):
    with pytest.raises(UserError, match=words):
        train_eager.train(**changes)


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as leaving:
        settings.parse(train_eager.constants(), ["-h"], "")
    assert leaving.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for item in dataclasses.fields(settings.Settings):
        assert settings.flag(item.name) in shown
    assert "peak rate, for the gradient of the mean loss (muon: of a filter) (default: 0.4)" in shown


def test_importing_does_no_work():
    modules = (
        "lab.machine.augment lab.base.console lab.images.load lab.machine.devices "
        "lab.images.download lab.base.errors lab.ladder.evaluation lab.ladder.finite "
        "lab.images.formats lab.machine.memory lab.ladder.networks lab.machine.kernels "
        "lab.ladder.optimizers lab.images.imagefile lab.machine.pipeline lab.runs.record "
        "schedule lab.options lab.base.files lab.images.tfrecords train_eager"
    )
    code = f"import {', '.join(modules.split())}\nfrom tensorflow.python.eager import context"
    code += "\nassert context.context()._context_handle is None, 'a device was touched'"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
