"""How long recipes train on this machine, one beside another: the median seconds of a step, times its steps.

    python -m lab pace speedrun speedrun-lowres --out pace.json    # minutes; nothing else should run
    python -m lab pace davidnet eager-tutorial --rounds 3 --precision float32

Each recipe's step is compiled for each side of its training images. Then come the rounds, in each of which all these
steps have a turn: one step that does not count, since the others have had its memory and caches, and one that does.
A recipe's seconds of a round are those of its steps times how many of them it trains; compiling and evaluation are not
in them. A share is taken within each round. The other flags are those of python train_eager.py.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from lab import start
from lab.base.console import say
from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.base.files import write_whole
from lab.bench.bench import check_writable, noise, ratios, summary
from lab.bench.tables import DOUBTFUL, conditions, interval
from lab.machine import memory
from lab.options import Runs, flag
from lab.report.tables import Table
from lab.runs import record

ROUNDS = 5


def measure(trainings: Mapping[str, Any], rounds: int) -> list[dict[str, Any]]:
    """For each recipe its stages: the side of the images, how many steps are trained with it, seconds by round.

    Args:
        trainings: LabTrainings by recipe, compiled and warm; their weights move on.
        rounds: how many turns each side has.
    """
    rows: list[dict[str, Any]] = [
        {
            "recipe": name,
            "precision": training.precision,
            "batch_size": training.config.batch_size,
            "stages": [
                {"side": stage.side, "epoch": stage.start + 1, "steps": steps, "seconds": []}
                for stage, steps in training.stages(training.config.epochs)
            ],
        }
        for name, training in trainings.items()
    ]
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for row, training in zip(rows, trainings.values(), strict=True):
            for stage in row["stages"]:
                step_seconds(training, stage["epoch"])
                stage["seconds"].append(step_seconds(training, stage["epoch"]))
    return rows


def step_seconds(training: Any, epoch: int) -> float:
    """Seconds of one step, of that epoch's first batch; with a proxy the mean of so many that it learns in one."""
    count = training.proxy.every if training.proxy else 1
    opened, once = [training.batches.open(epoch) for _ in range(count)], np.array(1, np.int32)
    start = time.perf_counter()
    for batches in opened:
        training.train_steps(batches, once)
    training.fetch()  # waits
    return (time.perf_counter() - start) / count


def conclude(rows: Sequence[dict[str, Any]], load: float) -> list[dict[str, Any]]:
    """The rows with what they say together: seconds of training, their share of the first recipe's, and doubts.

    Args:
        rows: from `measure`.
        load: the load average over the minute before the start.
    """
    totals = [
        [sum(of_round) for of_round in zip(*(scaled(stage) for stage in row["stages"]), strict=True)] for row in rows
    ]
    return [
        {
            **row,
            "train_seconds": summary(total),
            "share_of_first": summary(ratios(total, totals[0])),
            "noisy": noise(total, load),
        }
        for row, total in zip(rows, totals, strict=True)
    ]


def scaled(stage: Mapping[str, Any]) -> list[float]:
    """Seconds of all steps of this side, by round."""
    return [stage["steps"] * seconds for seconds in stage["seconds"]]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """What `conclude` returns, for a terminal or a document."""
    lines = []
    for row in rows:
        steps = [
            f"{stage['steps']} x {summary(stage['seconds'])['median']:.2f} s at {stage['side']}"
            for stage in row["stages"]
        ]
        lines.append(
            (
                f"`{row['recipe']}`",
                row["precision"],
                f"{row['batch_size']:,}",
                ", ".join(steps),
                interval(row["train_seconds"], ",.0f") + (" †" if row["noisy"] else ""),
                interval(row["share_of_first"], ".2f"),
            )
        )
    heads = ("recipe", "computed in", "batch", "steps, median, side", "training s, median", f"of {lines[0][0]}'s")
    return Table(heads, lines, words=(0, 1, 3))


def as_markdown(result: Mapping[str, Any]) -> str:
    """What --out holds, as a table and what it was measured under."""
    load = f"load average before the start: {result['load_average'][0]:.2f}."
    said = f"{conditions(result)}, {result['rounds']} rounds; {load}"
    if any(row["noisy"] for row in result["recipes"]):
        said += f" {DOUBTFUL}"
    return f"{table(result['recipes']).as_markdown()}\n\n{said}"


def pace(names: Sequence[str], rounds: int, changes: Mapping[str, Any], load: Sequence[float]) -> dict[str, Any]:
    """Measures, prints the table and returns what --out holds.

    Args:
        names: of recipes, the one that the others are compared with first.
        rounds: from 1.
        changes: hyperparameters that differ from the recipes', by name.
        load: the machine's load averages before the start.

    Raises UserError for a hyperparameter that is not known, wrong, or only for whole runs.
    """
    for name in changes:
        if name == "recipe" or name in {item.name for item in fields(Runs)}:
            raise UserError(f"{flag(name)} says nothing about the seconds of a step; leave it out")
    assemble, drive, devices = (start.load(f"lab.{name}") for name in ("assemble", "drive", "machine.devices"))
    start.load("tensorflow").get_logger().setLevel("ERROR")  # it warns of as many compiled steps as there are here
    options = [assemble.configure({**changes, "recipe": name}) for name in dict.fromkeys(names)]
    placement, images, trainings = assemble.place(options[0]), None, {}
    for own in options:
        say(f"preparing {own.recipe}")
        trainings[own.recipe] = assemble.make(own, placement, images)
        images = trainings[own.recipe].images
        drive.warm_up(trainings[own.recipe])
    rows = conclude(measure(trainings, rounds), load[0])
    result = {
        "rounds": rounds,
        "changes": {name: value for name, value in changes.items() if name not in drive.PLACES},
        "recipes": rows,
        "hardware": record.hardware(devices.accelerators(placement.kind)),
        "versions": record.versions(),
        "load_average": list(load),
    }
    say(f"\n{table(rows).as_text()}")
    for row in rows:
        if row["noisy"]:
            say(f"NOT FIT TO BE QUOTED: {row['recipe']}: {row['noisy']}")
    return result


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are those after the tool's name. Returns the exit code."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RECIPE [RECIPE ...] [--rounds N] [--out FILE] [the flags of python train_eager.py]",
    )
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help="the others are compared with the first")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each step (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="file for everything as JSON")
    own, rest = parser.parse_known_args(arguments)
    if own.rounds < 1:
        raise UserError(f"--rounds {own.rounds} is below 1; give at least 1")
    if own.out is not None:
        check_writable(own.out)  # now, and not when all is measured
    load = os.getloadavg()
    memory.restart_with_huge_pages()  # before the slow imports
    core = start.load("train_eager")
    changes = vars(start.flags(core.Config, core.add_flags).parse_args(rest))
    result = pace(own.recipes, own.rounds, changes, load)
    if own.out is not None:
        write_whole(own.out, json.dumps(result, indent=2, allow_nan=False) + "\n")
        say(f"wrote {own.out}")
    return 0
