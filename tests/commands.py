"""Hostile command lines, and what each of them comes to: one line and an exit code of the README's, or a training.

    python tests/commands.py                         # all of them, in this process
    python tests/commands.py --seconds 60 --seed 1   # as many as that time allows, in another order

No case may end in a traceback, in another exit code, in several lines, or take longer than PATIENCE; none leaves a
folder. What trains is ended as its first step would be prepared.
"""

import argparse
import contextlib
import io
import itertools
import os
import random
import sys
import tempfile
import time
import warnings
from dataclasses import fields
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import faults
import train_eager
from lab import __main__ as tools
from lab import assemble, drive, start
from lab.base.errors import Exit
from lab.machine import devices, memory
from lab.options import flag

PATIENCE = 30.0  # seconds a case may take on a busy machine
HUGE = ("-1", "-0", "1e999", "nan", "inf", "-inf", "0x10", "", "1_000", str(2**31), str(2**63), str(10**30), "9" * 5000)
WHOLE = [item.name for item in fields(assemble.Options) if item.type is int]
REAL = [item.name for item in fields(assemble.Options) if item.type is float]
PATHS = ("data", "out", "resume", "checkpoint_dir", "profile")
BAD_PATHS = (
    "x" * 300,
    "/".join(["x" * 200] * 30),
    os.fsdecode(b"a\xff"),
    "FIFO",
    "circle",
    "s3://bucket/x",
    "http://[",
    "gs://",
    "~nobody-here/x",
    "FIFO/x",
    "/dev/zero",
    "a\x1b[31mred\n/\x07",
    "/proc/1/x",
)
COMBINATIONS = (
    "--network shortcuts --whiten",
    "--network dawn --dropout 0.1",
    "--network conv1 --logit-scale 2",
    "--filter-momentum 0.5",
    "--head-rate 0.1 --optimizer lars",
    "--bias-rate 0.1",
    "--whiten-bias-epochs 1",
    "--celu-alpha 0.2",
    "--recipe speedrun --bias-factor 2",
    "--recipe speedrun --whiten",
    "--recipe speedrun --pool-first",
    "--recipe speedrun --logit-scale 2",
    "--network dawn --pool-first",
    "--ema-keeps 0.5",
    "--lookahead-epochs 1",
    "--lookahead-every 2 --ema-every 2",
    "--tpu x --device cpu",
    "--tpu x --device gpu",
    "--tpu nowhere.invalid",
    "--tpu grpc://127.0.0.1:1 --device cpu",
    "--device tpu",
    "--device gpu",
    "--device tpu --logical-devices 2",
    "--device gpu --logical-devices 2",
    "--stop-after 3 --epochs 2",
    "--warmup-epochs 2 --epochs 2",
    "--knots 0,1",
    "--knots 0,0_1,1",
    "--knots nonsense",
    "--knots 0,1e300",
    "--knots 1,0;0,1",
    "--sides nonsense",
    "--sides 24x2",
    "--sides 40",
    "--sides 7",
    "--recipe nothing",
    "--recipe davidnet\x1b[31m",
    "--runs 2 --resume nowhere",
    "--resume nowhere",
    "--optimizer lars --rate-inside --ghost-groups 7",
    "--holdout 80",
    "--limit-train 3",
    "--limit-test 1",
    "--batch-size 81",
    "--tta six --recipe speedrun --batch-size 7 --limit-test 3",
    "--momentum 0.9 --optimizer muon --momentum 2",
    "--lr 1",
    "--batch 8",
    "--help-me",
    "-x",
    "positional",
    "--no-epochs",
    "--jit=maybe",
    "--flip sideways",
    "--width 4096",
    "--width 3000",
    "--epochs 100000 --batch-size 1",
    "--batch-size 4 --logical-devices 3",
    "--precision float64",
)
TOOLS = (
    "devices --logical-devices 1000000000000000000000",
    "devices --logical-devices 9",
    "devices --logical-devices -1",
    "devices --batch-size 99999999999999999999999999",
    "devices --batch-size 0",
    "devices --batch-size -5",
    "devices --tpu x --device cpu",
    "devices --device quantum",
    "recipes --diff davidnet nothing",
    "recipes --describe nothing",
    "recipes --svg x.svg",
    "report",
    "report nowhere",
    "report FIFO",
    "report --target nan records",
    "report --target 9" + "9" * 400,
    "report /dev/null",
    "schedule nothing",
    "preview nowhere/x.png --batch-size 1000000000000000000000",
    "preview x.txt",
    "preview x.png --data nowhere",
    "preview x.png --data FIFO",
    "preview x.png --limit-train -1",
    "convert --to-tfrecord FIFO --data synthetic",
    "convert --to-tfrecord nope://x --data synthetic",
    "convert --data nowhere --to-tfrecord x",
    "convert",
    "predict nowhere x.png",
    "predict nowhere",
    "predict FIFO --evaluate",
    "pictures nowhere",
    "bench --width -1",
    "bench --steps 0",
    "bench --batch-size 99999999999999999999",
    "pace",
    "pace nothing",
    "pace davidnet --rounds 0",
    "pace davidnet --resume auto",
    "tpu --batch-size 0",
    "tpu --python nowhere",
    "unknown",
    "recipe",
    "--version",
)


class Trains(BaseException):
    """A case that is a training after all."""


def cases():
    """Command lines: (program, arguments)."""
    for name, value in itertools.product(WHOLE, HUGE):
        yield "train", [flag(name), value]
    for name, value in itertools.product(REAL, (*HUGE[:7], "1e308", "-1e-300", "1e-320")):
        yield "train", [f"{flag(name)}={value}"]
    for name, path in itertools.product(PATHS, BAD_PATHS):
        yield "train", [flag(name), path]
    for line in COMBINATIONS:
        yield "train", line.split()
    for line in TOOLS:
        yield "tool", line.split()


def outcome(program, arguments, data):
    """ "refused", "answered" or "trains"; AssertionError, with what was wrong, for anything else."""
    out, error, began = io.StringIO(), io.StringIO(), time.perf_counter()
    if program == "train":
        given = {word.partition("=")[0] for word in arguments}
        usual = {"--data": data, "--device": "cpu", "--width": "4", "--batch-size": "16", "--epochs": "2"}
        arguments = [word for pair in usual.items() if pair[0] not in given for word in pair] + arguments
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), warnings.catch_warnings():
        warnings.simplefilter("always")
        try:
            if program == "train":
                code = start.main(train_eager.Config, train_eager.add_flags, arguments)
            else:
                code = tools.main(arguments)
        except Trains:
            return "trains"
        except SystemExit as ended:
            code = ended.code or 0
    said, seconds = error.getvalue(), time.perf_counter() - began
    assert seconds < PATIENCE, f"took {seconds:.0f} s"
    assert code in (Exit.DONE, Exit.USAGE, Exit.CANNOT_WRITE, Exit.EXHAUSTED), f"exit {code}: {said[-600:]}"
    if code == Exit.DONE:
        return "answered"
    assert said.count("\n") == 1 and said.endswith("\n"), f"{said.count(chr(10))} lines: {said[-600:]}"
    assert len(said) < 700 and said[:-1].isprintable(), f"not to be shown: {said[:300]!r}"
    return "refused"


def trains(_):
    raise Trains


def run(seconds, seed=0, report=print):
    """Tries the cases in an empty folder, in an order of the seed's (0: as they stand).

    Returns how many there were by outcome, and the failures.
    """
    found, failures, end = {}, [], time.perf_counter() + seconds
    memory.restart_with_huge_pages = lambda: None
    devices.TPU_SECONDS = 2.0
    drive.warm_up = trains
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as back:
        back.callback(os.chdir, os.getcwd())
        os.chdir(name)
        faults.make_data(Path("small.npz"))
        os.mkfifo("FIFO")
        os.symlink("circle", "circle")
        all_cases = list(cases())
        if seed:
            random.Random(seed).shuffle(all_cases)
        for program, arguments in all_cases:
            if time.perf_counter() > end:
                break
            try:
                came_out = outcome(program, arguments, "small.npz")
            except Exception as error:  # an AssertionError, or what should have been a line
                came_out = "fell short"
                failures.append((program, arguments, error))
                report(f"{program} {' '.join(arguments)[:120]!r}: {type(error).__name__} {str(error)[:700]}")
            found[came_out] = found.get(came_out, 0) + 1
    return found, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found, failures = run(options.seconds, options.seed)
    print(f"{sum(found.values())} cases: {', '.join(f'{count} {what}' for what, count in found.items())}")
    return len(failures) > 0


if __name__ == "__main__":
    sys.exit(main())
