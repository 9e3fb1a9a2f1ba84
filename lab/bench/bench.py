"""Measures a training step beside its rivals on this machine's CPU, in one run, taking turns.

    python -m lab bench --out bench.json              # about 16 minutes on two cores; nothing else should run
    python -m lab bench --sections steps --rounds 5
    python -m lab bench --only ours-host,pytorch      # two candidates
    python -m lab bench --scaling --out scaling.json  # images, batch, threads; time to the first step
    python -m lab bench --network speedrun --sections steps,update --rounds 10
    python -m lab bench --quick                       # tiny sizes, to see that it works; a minute or two

The candidates (lab/bench/rivals.py) wait in processes of their own for their turns. First each does two steps that do
not count: compiling and warming up. Then come the rounds, in each of which every candidate has one turn. A
turn begins with a step that does not count either: the others have had its memory and caches. Short steps are
repeated until a turn takes three seconds.
Rates are medians over the rounds, with the lowest and highest. A ratio is taken within each round, and so is
the share of the limit: the best product of matrices of the same run and precision over the step's GFLOP an image (of
direct convolutions; Winograd's need fewer, so the share may pass 100 %).
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.base.console import say
from lab.base.errors import Exit, Parser, UserError, exits_with_one_line
from lab.base.files import write_whole
from lab.bench import rivals, tables
from lab.bench.worker import Worker, WorkerFailedError, default_precision, highest, prepare, turn
from lab.machine import memory
from lab.runs import record

GEMMS = {"float32": "sgemm", "bfloat16": "bgemm"}  # how the ceilings' names begin, by precision
NOISY_SPREAD = 0.25  # (highest - lowest) / median
NOISY_LOAD = 0.5  # processes running before the start
IMAGES, TEST_IMAGES = 50_000, 1_000
QUICK = {"rounds": 2, "batch_size": 32, "width": 8, "images": 256, "test_images": 64}
SCALED_IMAGES, SCALED_BATCHES, SCALED_THREADS = (2_000, 10_000, 50_000), (128, 256, 512, 1024, 2048), (1, 2)
TURN_SECONDS = 3.0  # a turn takes at least so long, unless --quick
SPARE_GIB = 1.0  # of memory, to be left beside the workers


# ---- statistics --------------------------------------------------------------------------------------------


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spread(values: Sequence[float]) -> float:
    """(highest - lowest) / median."""
    return (max(values) - min(values)) / statistics.median(values)


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """values / others, round by round."""
    return [value / other for value, other in zip(values, others, strict=True)]


def noise(seconds: Sequence[float], load: float) -> str:
    """Why a candidate's figure is not to be quoted, '' if it is.

    Args:
        seconds: of each round.
        load: the machine's load average over the minute before the start.
    """
    reasons = []
    if len(seconds) < 2:
        reasons.append("one round only")
    if spread(seconds) > NOISY_SPREAD:
        reasons.append(f"spread {spread(seconds):.0%}, limit {NOISY_SPREAD:.0%}")
    if load > NOISY_LOAD:
        reasons.append(f"load {load:.2f} before the start, limit {NOISY_LOAD}")
    return "; ".join(reasons)


# ---- measuring ---------------------------------------------------------------------------------------------


def measure(
    names: Sequence[str], task: rivals.Task, rounds: int, steps: int, least: float
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Measures the candidates in turns.

    Args:
        names: in the order of their turns.
        task: what is trained, and the sizes.
        rounds: how many turns each has.
        steps: how often a candidate does its work in one turn.
        least: seconds; where the steps take less, they are repeated.

    Returns:
        What each candidate answered, `samples` being its turns; and why others are left out.

    Raises:
        UserError: if the memory does not suffice for all at once.
    """
    measured: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    left_out: dict[str, str] = {}
    table = rivals.candidates(task.network, task.precision)
    with contextlib.ExitStack() as stack:
        for name in names:
            process = table[name].process
            if reason := rivals.missing(table[name]):
                left_out[name] = reason
                continue
            say(f"preparing {name}: {table[name].about}")
            if process not in workers:
                workers[process] = stack.enter_context(contextlib.closing(Worker(process, task)))
            try:
                measured[name] = prepare(workers[process], name) | {"samples": []}
            except WorkerFailedError as failure:
                left_out[name] = str(failure)
            check_memory(measured)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for name in list(measured):
                try:
                    worker = workers[table[name].process]
                    measured[name]["samples"].append(turn(worker, name, steps, least))
                except WorkerFailedError as failure:
                    left_out[name] = str(failure)
                    del measured[name]
    return measured, left_out


def check_memory(measured: dict[str, dict[str, Any]]) -> None:
    """Raises UserError if the candidates would not have the memory for their turns."""
    free = memory.available_gib()
    needed = SPARE_GIB + max((values["given_back_gib"] for values in measured.values()), default=0.0)
    if free is not None and free < needed:
        raise UserError(
            f"{free:.1f} GiB of memory are left beside {', '.join(measured)}, and {needed:.1f} are needed; "
            "measure fewer at once with --only"
        )


def rows(measured: dict[str, dict[str, Any]], task: rivals.Task, steps: int, load: float) -> list[dict[str, Any]]:
    """The table: one row a candidate, with every sample.

    Args:
        measured: from `measure`.
        task, steps: what was measured.
        load: load average before the start.
    """
    table = rivals.candidates(task.network, task.precision)
    rates = {
        name: [steps * values["units"] / sample["seconds"] for sample in values["samples"]]
        for name, values in measured.items()
    }
    gflop = rivals.NETWORKS[task.network].gflop(task.width)
    limits = {name: limit_rates(rates, product, gflop) for name, product in GEMMS.items()}
    result = []
    for name, values in measured.items():
        candidate, samples = table[name], values["samples"]
        seconds, beside = [sample["seconds"] for sample in samples], rates.get(candidate.beside)
        limit = limits[candidate.precision] if candidate.section == "steps" else []
        row = {
            "name": name,
            "section": candidate.section,
            "about": candidate.about,
            "unit": candidate.unit,
            "precision": candidate.precision,
            "units_per_step": values["units"],
            "rate": summary(rates[name]),
            "times_as_fast": {candidate.beside: summary(ratios(beside, rates[name]))} if beside else {},
            "share_of_limit": summary(ratios(rates[name], limit)) if limit else None,
            "noisy": noise(seconds, load),
            "build_seconds": values["build_seconds"],
            "compile_seconds": max(0.0, values["first_step_seconds"] - statistics.median(seconds) / steps),
            "peak_gib": highest(samples),
            "process": candidate.process,
            "environment": rivals.PROCESSES[candidate.process],
            "seconds": seconds,
        }
        for key in ("repeats", "settling_seconds", "idle_processor_seconds"):
            row[key] = [sample[key] for sample in samples]
        result.append(row)
    return result


def limit_rates(rates: dict[str, list[float]], product: str, gflop: float) -> list[float]:
    """Images/s in each round at the speed of the best product of matrices (by median); [] if none was measured.

    Args:
        rates: of every candidate and round; GFLOP/s for the products.
        product: how their names begin: one of GEMMS' values.
        gflop: of a training step, an image.
    """
    products = [values for name, values in rates.items() if name.startswith(product)]
    best = max(products, key=statistics.median, default=[])
    return [value / gflop for value in best]


def scaling_sizes(batch_size: int, cores: int, *, quick: bool) -> list[tuple[str, int, int, int]]:
    """(way, images, batch size, threads) of each row: one of the four varies at a time.

    Args:
        batch_size: the network's.
        cores: the machine's.
        quick: two tiny sizes instead.
    """
    if quick:
        tiny = QUICK["images"], QUICK["batch_size"]
        return [(way, *tiny, cores) for way in rivals.WAYS]
    sizes = [(rivals.OURS, images, batch_size, cores) for images in SCALED_IMAGES if images >= batch_size]
    sizes += [(way, SCALED_IMAGES[-1], batch_size, cores) for way in rivals.WAYS if way != rivals.OURS]
    small = rivals.OURS, SCALED_IMAGES[1]
    sizes += [(*small, batch, cores) for batch in SCALED_BATCHES if batch != batch_size]
    return sizes + [(*small, batch_size, threads) for threads in SCALED_THREADS if threads < cores]


def scale(task: rivals.Task, rounds: int, load: float, *, quick: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The scaling table, of our step: one process after another, `rounds` single steps each; and why a row is missing.

    Args:
        task: what is trained, its batch size where another number varies; the images are made beside its own.
        rounds: steps that count.
        load: load average before the start.
        quick: tiny sizes.
    """
    sizes = scaling_sizes(task.batch_size, record.hardware()["cores"], quick=quick)
    result, left_out = [], {}
    for way, images, batch_size, threads in sizes:
        size = f"{images} images, batch {batch_size}, threads {threads}"
        say(f"starting {way}: {size}")
        own = replace(task, batch_size=batch_size, data=task.data.with_name(f"images-{images}.npz"))
        if not own.data.exists():
            rivals.make_images(own.data, images, TEST_IMAGES)
        with contextlib.closing(Worker("ours", own, threads)) as worker:
            try:
                prepared = prepare(worker, way)
                samples = [worker.ask(way, 1) for _ in range(rounds)]
            except WorkerFailedError as failure:
                left_out[f"{way}, {size}"] = str(failure)
                continue
        seconds = [sample["seconds"] for sample in samples]
        kept = ("import_seconds", "build_seconds", "first_step_seconds", "start_to_first_step_seconds")
        row = {
            "name": f"{way}, {size}",
            "way": way,
            "images": images,
            "batch_size": batch_size,
            "threads": threads,
            "step_seconds": summary(seconds),
            "images_per_second": batch_size / statistics.median(seconds),
            "peak_gib": highest([prepared, *samples]),
            "noisy": noise(seconds, load),
            **{key: prepared[key] for key in kept},
            "seconds": seconds,
        }
        result.append(row)
    return result, left_out


# ---- reporting ---------------------------------------------------------------------------------------------


def remarks(result: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Figures that join rows: the device path's augmentation as a share of its step; the idle workers' work.

    Args:
        result: from `rows`.
    """
    by_name = {row["name"]: row for row in result}
    values = {}
    if {"augmentation", rivals.OURS} <= by_name.keys():
        step, alone = by_name[rivals.OURS]["rate"], by_name["augmentation"]["rate"]
        values["augmentation_share_of_step"] = step["median"] / alone["median"]
    busy = sum(
        seconds * repeats for row in result for seconds, repeats in zip(row["seconds"], row["repeats"], strict=True)
    )
    idle = sum(sum(row["idle_processor_seconds"]) for row in result)
    values["idle_processor_seconds_per_second"] = idle / busy
    return values


def verdict(
    result: Sequence[dict[str, Any]], load: float, failed: Sequence[str] = (), *, quick: bool = False
) -> list[str]:
    """Why the figures are not fit to be quoted, one reason an entry; none if they are.

    Args:
        result: from `rows` or `scale`.
        load: load average before the start.
        failed: candidates that should have run and did not.
        quick: whether the sizes are --quick's.
    """
    reasons = ["the sizes are --quick's"] if quick else []
    if load > NOISY_LOAD:
        reasons.append(f"the load average before the start was {load:.2f}, above {NOISY_LOAD}")
    if failed:
        reasons.append(f"failed: {', '.join(failed)}")
    noisy = [row["name"] for row in result if noise(row["seconds"], 0.0)]
    if noisy:
        reasons.append(f"noisy: {', '.join(noisy)}")
    return reasons if result else [*reasons, "nothing was measured"]


# ---- the command -------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m lab bench", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--network", default="davidnet", help=f"one of {', '.join(rivals.NETWORKS)} (default: %(default)s)")
    add(
        "--sections",
        default=",".join(tables.SECTIONS),
        help="which tables, with commas (default: %(default)s)",
    )
    add("--only", default="", help="which candidates, with commas (default: the usual ones of the sections)")
    add("--rounds", type=int, help="turns of each candidate (default: 3)")
    add("--steps", type=int, default=1, help="steps in a turn (default: %(default)s)")
    add("--batch-size", type=int, help="images a step (default: the network's)")
    add("--width", type=int, help="filters of the first convolution (default: the network's)")
    add("--scaling", action="store_true", help="the scaling table instead; about 20 minutes")
    add("--quick", action="store_true", help="tiny sizes, to see that it works")
    add("--out", type=Path, help="file for everything as JSON")
    options: argparse.Namespace = parser.parse_args(arguments)
    for name in ("rounds", "steps", "batch_size", "width"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} is below 1; give at least 1")
    if options.batch_size is not None and options.batch_size > IMAGES:
        raise UserError(f"--batch-size {options.batch_size} is above the {IMAGES} images; lower it")
    for name in ("sections", "only", "steps"):
        if options.scaling and getattr(options, name) != parser.get_default(name):
            raise UserError(f"--{name} says nothing to --scaling, which has its own rows of single steps; leave it out")
    return options


def choose(network: str, sections: str, only: str) -> list[str]:
    """The candidates' names, in order. `sections` and `only` are lists with commas; `only` goes first.

    Raises: UserError for a name that is not there.
    """
    table = rivals.candidates(network)
    for given, known, flag in ((sections, tables.SECTIONS, "--sections"), (only, tuple(table), "--only")):
        for name in filter(None, given.split(",")):
            if name not in known:
                raise UserError(f"{flag} {name!r} is not known; choose from {', '.join(known)}")
    if only:
        return [name for name in table if name in only.split(",")]
    wanted = sections.split(",")
    return [name for name, candidate in table.items() if candidate.usual and candidate.section in wanted]


def check_writable(out: Path) -> None:
    """Raises UserError if --out could not be written."""
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write --out {out}: {error.strerror}; try another file") from None
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give a file")


def _versions() -> dict[str, str]:
    versions = record.versions()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["torch"] = importlib.metadata.version("torch")
    return versions


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the tables and returns what --out holds."""
    names = choose(options.network, options.sections, options.only)
    network = rivals.NETWORKS[options.network]
    sizes = {"rounds": 3, "batch_size": network.batch_size, "width": network.width}
    sizes |= {"images": IMAGES, "test_images": TEST_IMAGES} | (QUICK if options.quick else {})
    sizes |= {name: value for name, value in vars(options).items() if name in sizes and value is not None}
    hardware, versions, load = record.hardware(), _versions(), os.getloadavg()
    precision = default_precision()
    say(f"{hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB")
    say(", ".join(f"{name} {version}" for name, version in versions.items()))
    say(f"load average before the start: {load[0]:.2f} (1 minute), {load[1]:.2f} (5), {load[2]:.2f} (15)")
    result: dict[str, Any] = {
        "network": options.network,
        "quick": options.quick,
        "steps_per_turn": options.steps,
        **sizes,
        "gflop_per_image": network.gflop(sizes["width"]),
        "precision": precision,  # of our default
        "hardware": hardware,
        "versions": versions,
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "images.npz"
        task = rivals.Task(options.network, sizes["batch_size"], sizes["width"], path, precision)
        if options.scaling:
            result["scaling"], left_out = scale(task, sizes["rounds"], load[0], quick=options.quick)
            result["failed"] = list(left_out)
            if not result["scaling"]:
                raise UserError("no row could be measured; " + ": ".join(next(iter(left_out.items()))))
            say("\n" + tables.scaling(result["scaling"]).as_text())
            if any(row["noisy"] for row in result["scaling"]):
                say(tables.DOUBTFUL)
        else:
            rivals.make_images(task.data, max(sizes["images"], task.batch_size), sizes["test_images"])
            least = 0.0 if options.quick else TURN_SECONDS
            measured, left_out = measure(names, task, sizes["rounds"], options.steps, least)
            table = rivals.candidates(options.network)
            result["failed"] = [name for name in left_out if not rivals.missing(table[name])]
            result["rows"] = rows(measured, task, options.steps, load[0])
            say(tables.rows(result["rows"]))
        result["left_out"] = left_out
        for name, reason in left_out.items():
            say(f"{name:<18} left out: {reason}")
    return result | _conclude(result, load)


def _conclude(result: dict[str, Any], load: Sequence[float]) -> dict[str, Any]:
    """Prints the last lines; returns what they say."""
    table = result.get("rows", [])
    values = remarks(table) if table else {}
    say()
    if "augmentation_share_of_step" in values:
        say(f"augmentation on the device: {values['augmentation_share_of_step']:.2%} of {rivals.OURS}'s step")
    if table:
        idle = values["idle_processor_seconds_per_second"]
        setting = f"OMP_WAIT_POLICY={rivals.PROCESSES['pytorch']['OMP_WAIT_POLICY']}"
        say(f"the workers that waited took {idle:.2%} of a core (PyTorch's have {setting})")
    end = os.getloadavg()
    say(f"load average at the end, with this run's own work: {end[0]:.2f}")
    reasons = verdict(result.get("scaling", table), load[0], result.get("failed", ()), quick=result["quick"])
    if reasons:
        say(f"NOT FIT TO BE QUOTED: {'; '.join(reasons)}")
    averages = {"start": list(load), "end": list(end)}
    return {"remarks": values, "load_average": averages, "fit_to_quote": not reasons, "reasons": reasons}


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = _parse(arguments)
    if options.out is not None:
        check_writable(options.out)  # now, and not when all is measured
    result = bench(options)
    if options.out is not None:
        write_whole(options.out, json.dumps(result, indent=2, allow_nan=False) + "\n")
        say(f"wrote {options.out}")
    return Exit.DONE
