"""Mistakes end in one line, an exit code and, where it can be told, what was meant."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.base.errors import Exit, Parser, UserError, brief, exits_with_one_line, nearest, reported_in

ROOT = Path(__file__).resolve().parents[3]

NAMES = "batch-size data device ema-every epochs label-smoothing learning-rate momentum seed tta weight-decay"
FLAGS = [f"--{name}" for name in NAMES.split()]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--lr", "--learning-rate"),
        ("--bs", "--batch-size"),
        ("--batch", "--batch-size"),
        ("--batchsize", "--batch-size"),
        ("--batch_size", "--batch-size"),
        ("-lr", "--learning-rate"),
        ("--epoch", "--epochs"),
        ("--decay", "--weight-decay"),
        ("--smoothing", "--label-smoothing"),
        ("--momentun", "--momentum"),
        ("--Seed", "--seed"),
    ],
)
def test_the_flag_that_was_meant(given, meant):
    assert nearest(given, FLAGS) == f"did you mean {meant}?"


@pytest.mark.parametrize("given", ["--zzz", "--", "", "-b", "0.4"])
def test_no_hint_rather_than_a_wrong_one(given):
    assert nearest(given, FLAGS) == ""


def test_names_are_given_as_they_are_known():
    assert nearest("lr", ["learning_rate", "epochs"]) == "did you mean learning_rate?"
    assert nearest("speed-run", ["davidnet", "speedrun"]) == "did you mean speedrun?"


def parser():
    made = Parser(prog="tool")
    made.add_argument("path", nargs="?")
    made.add_argument("--batch-size", type=int)
    made.add_argument_group("more").add_argument("--learning-rate", type=float, choices=[0.1, 0.2])
    return made


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--lr=0.1"], "unknown argument --lr; did you mean --learning-rate?"),
        (["--lr", "0.1"], "unknown argument --lr; did you mean --learning-rate?"),
        (["--batch", "8"], "unknown argument --batch; did you mean --batch-size?"),
        (["--zzz=1"], "unknown argument --zzz=1; tool -h lists the flags"),
        (["a", "b"], "unknown argument b; tool -h lists the flags"),
        (["--batch-size"], "argument --batch-size: expected one argument; tool -h lists the flags"),
        (["--batch-size", "x"], "argument --batch-size: invalid int value: 'x'; tool -h lists the flags"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, line):
    with pytest.raises(UserError) as caught:
        parser().parse_args(arguments)
    assert (str(caught.value), caught.value.exit_code) == (line, 2)


def test_a_right_command_line_and_the_help(capsys):
    options = parser().parse_args(["here", "--batch-size", "8"])
    assert (options.path, options.batch_size, options.learning_rate) == ("here", 8, None)
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["-h"])
    assert ended.value.code == 0 and "--learning-rate" in capsys.readouterr().out


def test_a_main_ends_in_a_line_and_its_code(capsys):
    @exits_with_one_line
    def main(error):
        """Its own docstring."""
        if error:
            raise error
        return 0

    assert main(None) == 0 and main.__doc__ == "Its own docstring."
    assert main(UserError("two\nlines")) == 2 and capsys.readouterr().err == "two lines\n"
    assert main(UserError("full", exit_code=Exit.CANNOT_WRITE)) == 5 and capsys.readouterr().err == "full\n"
    assert main(KeyboardInterrupt()) == 130 and capsys.readouterr().err.count("\n") == 1
    assert main(MemoryError()) == 6 and capsys.readouterr().err.startswith("out of memory: MemoryError; ")


def fails(error, folder=None):
    """The exit code of a program in which this error comes, from within a run's folder."""

    @exits_with_one_line
    def main():
        with reported_in(folder):
            raise error

    return main()


def test_what_nobody_foresaw_is_one_line_that_names_its_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "run").mkdir()
    for folder, place in ((None, "temporary"), (tmp_path / "run", "run"), (tmp_path / "gone", "temporary")):
        assert fails(ZeroDivisionError("by \x1b[2J\nzero"), folder) == 7
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith(r"unforeseen ZeroDivisionError: by \x1b[2J zero; ")
        path = Path(re.search(r"its traceback is in (\S+),", error)[1])
        assert path.parent == tmp_path / place
        assert "in main" in path.read_text() and "ZeroDivisionError" in path.read_text().splitlines()[-2]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert fails(ZeroDivisionError("zero")) == 7
    assert "Traceback" in capsys.readouterr().err  # there is nowhere to write it: nothing is swallowed


def test_the_debug_switch_shows_tracebacks(monkeypatch, capsys):
    monkeypatch.setenv("DAVIDNET_DEBUG", "1")
    assert fails(ZeroDivisionError("zero")) == 7
    assert re.search(r"^Traceback .*^ZeroDivisionError: zero$.*^unforeseen Z", capsys.readouterr().err, re.M | re.S)
    assert fails(UserError("wrong")) == 2 and capsys.readouterr().err == "wrong\n"


def test_who_reads_no_further_sees_no_traceback():
    command = [sys.executable, "-m", "lab", "report", "records"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as tool:
        tool.stdout.close()
        assert tool.stderr.read() == b""
    assert tool.returncode == 141


def test_what_a_terminal_might_obey_is_written_out():
    assert str(UserError("a\x1b[31m\x00\udcff\nb")) == r"a\x1b[31m\x00\udcff b"
    assert str(UserError("gr\u00fc\u00df \u4f60")) == "gr\u00fc\u00df \u4f60"


def test_the_exit_codes_that_scripts_rely_on():
    assert {code.name: int(code) for code in Exit} == {
        "DONE": 0,
        "NO": 1,
        "USAGE": 2,
        "NOT_FINITE": 3,
        "LOST_WORKER": 4,
        "CANNOT_WRITE": 5,
        "EXHAUSTED": 6,
        "UNFORESEEN": 7,
        "INTERRUPTED": 130,
        "UNREAD": 141,
    }


def test_an_error_in_a_few_words():
    assert brief(OSError(28, "No space left on device")) == "No space left on device"
    assert brief(ValueError()) == "ValueError"
    assert brief(ValueError("{{node Cast}} bad\n shape [Op:Cast] name: ")) == "bad shape"
    long = brief(ValueError("a" * 500 + "the cause"))
    assert len(long) == 200 and long.startswith("aaa") and long.endswith("the cause")
