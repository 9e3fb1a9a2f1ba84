"""Mistakes end in one line, an exit code and, where it can be told, what was meant."""

import pytest

from lab.base.errors import Exit, Parser, UserError, brief, exits_with_one_line, nearest

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
    made = Parser(prog="tool", allow_abbrev=False)
    made.add_argument("path", nargs="?")
    made.add_argument("--batch-size", type=int)
    made.add_argument_group("more").add_argument("--learning-rate", type=float, choices=[0.1, 0.2])
    return made


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--lr=0.1"], "unknown argument --lr; did you mean --learning-rate?"),
        (["--lr", "0.1"], "unknown argument --lr; did you mean --learning-rate?"),
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
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        main(ZeroDivisionError())


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
    }


def test_an_error_in_a_few_words():
    assert brief(OSError(28, "No space left on device")) == "No space left on device"
    assert brief(ValueError()) == "ValueError"
    assert brief(ValueError("{{node Cast}} bad\n shape [Op:Cast] name: ")) == "bad shape"
    long = brief(ValueError("a" * 500 + "the cause"))
    assert len(long) == 200 and long.startswith("aaa") and long.endswith("the cause")
