"""Compiles the complete training and evaluation steps with Google's TPU compiler, on a machine without a TPU.

    python3 -m venv .tpu && .tpu/bin/pip install -r requirements-tpu-compile.txt
    python -m lab.tpu.lower --python .tpu/bin/python --chips v5e --precisions bfloat16 --steps train
    python -m lab.tpu.lower --python .tpu/bin/python --recipe all --out report.json     # takes two hours
    python -m lab.tpu.lower --table records/tpu-compile.json --chips v5e      # a report's rows, as Markdown

A report is written after each program and goes on where it stopped: a program of the same text is not compiled
again by the same compiler, neither for another recipe nor by a later call.

TensorFlow lowers the steps to StableHLO in this process: augmentation, forward, backward, weight decay,
update, batch-norm statistics and counters, everything but the sum over replicas. The other environment's
Python, which brings the TPU compiler, runs lab/tpu/compiler.py on them: operations, bytes, memory and cycles by the
compiler's count. The times printed are predictions, not measurements: the roofline, which is a bound, from the
chips' published peaks; and the compiler's own estimate.

Exit: 0 if all compiled, 1 with the compiler's message if one did not, 2 for a wrong argument.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter; read at its import

from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.ladder import recipes
from lab.runs import results
from lab.tpu import table as tputables

TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000  # CIFAR-10's
PRECISIONS, STEPS = ("float32", "bfloat16"), ("train", "evaluation")
REFUSED = 1  # exit code if the compiler does not take a program
COUNTS = (  # what the compiler says of a program
    "device",
    "compile_seconds",
    "flops",
    "bytes_accessed",
    "argument_bytes",
    "temporary_bytes",
    "estimated_cycles",
)
COMPILER = Path(__file__).with_name("compiler.py")
COMPILE_LIMIT = 3600  # seconds; the slowest of the records took four minutes, on two busy cores


@dataclass(frozen=True)
class Chip:
    """A TPU chip: its name for the compiler and its published peaks.

    `flops` are a second, in bfloat16, in which the matrix units also take float32 by default; `bandwidth` and
    `memory` are the HBM's, in bytes (a second); `clock` is the cores', in Hz. The compiler's devices are cores,
    each with its share.
    """

    topology: str
    cores: int
    flops: float
    bandwidth: float
    memory: float
    clock: float


CHIPS = {
    # N. P. Jouppi et al., "A Domain-Specific Supercomputer for Training Deep Neural Networks", CACM 63(7),
    # 2020: from the paper only, which is its designers' own
    "v2": Chip("v2:2x2", cores=2, flops=46e12, bandwidth=700e9, memory=16e9, clock=700e6),
    # docs.cloud.google.com/tpu/docs/v5e; the clock: of four units of 128 x 128 multiply-adds for the peak
    "v5e": Chip("v5e:2x2", cores=1, flops=197e12, bandwidth=819e9, memory=16e9, clock=1.5e9),
}


@dataclass(frozen=True)
class Lowered:
    """A step of a recipe as StableHLO; `digest` is the SHA-256 of the program's text."""

    recipe: str
    step: str
    precision: str
    batch_size: int
    digest: str


@dataclass(frozen=True)
class Program(Lowered):
    """A compiled step on one core, by the compiler's own count, and what its peaks would allow.

    `predicted` is the roofline, `estimated` what the compiler expects of its instructions, one after another.
    """

    chip: str
    device: str
    compile_seconds: float
    flops: float
    bytes_accessed: float
    argument_bytes: int
    temporary_bytes: int
    estimated_cycles: int
    memory_share: float
    bound_by: str
    predicted_step_seconds: float
    predicted_epoch_seconds: float
    estimated_step_seconds: float
    estimated_epoch_seconds: float


def predict(lowered: Lowered, name: str, counts: dict[str, Any]) -> Program:
    """The roofline of one core: the longer of computing and of moving the bytes, each at the published peak.

    An epoch of training has as many steps as whole batches; evaluation sees every image of the test set.
    """
    chip, size = CHIPS[name], lowered.batch_size
    computing = counts["flops"] / (chip.flops / chip.cores)
    moving = counts["bytes_accessed"] / (chip.bandwidth / chip.cores)
    seconds, estimated = max(computing, moving), counts["estimated_cycles"] / chip.clock
    steps = TRAIN_IMAGES // size if lowered.step == "train" else -(-TEST_IMAGES // size)
    used = counts["argument_bytes"] + counts["temporary_bytes"]
    return Program(
        **asdict(lowered),
        chip=name,
        memory_share=used / (chip.memory / chip.cores),
        bound_by="computing" if computing > moving else "memory",
        predicted_step_seconds=seconds,
        predicted_epoch_seconds=seconds * steps,
        estimated_step_seconds=estimated,
        estimated_epoch_seconds=estimated * steps,
        **counts,
    )


# ---- TensorFlow's half -------------------------------------------------------------------------------------


def make_noise(path: Path) -> None:
    """Writes an .npz of CIFAR-10's shape; only the shapes of the images enter the programs."""
    import numpy as np

    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        arrays[f"x_{part}"] = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 10
    np.savez(path, **arrays)


def lower(
    data: Path, recipe: str, steps: Sequence[str], precision: str, batch_size: int | None
) -> Iterator[tuple[Lowered, str]]:
    """Lowers some of a recipe's STEPS; yields each and its text.

    Args:
        data: the .npz with the images.
        batch_size: of the training step; None takes the recipe's own.
    """
    import tensorflow as tf

    import train_eager
    from lab import options as settings

    tf.keras.backend.clear_session()  # counts the layers' names from 1 again: equal programs, equal texts
    values = recipes.resolve(recipe, train_eager.constants())
    batch_size = batch_size or values.batch_size
    changes = {
        "data": str(data),
        "out": "",
        "device": "cpu",  # the platform to lower for: stock TensorFlow has no TPU kernels
        "precision": precision,
        "batch_size": batch_size,
        "pipeline": "device",
        "operations": "plain",
    }
    run = train_eager.Run(settings.change(values, changes))
    batch = train_eager.EVALUATION_BATCH
    examples = {
        "train": (run.train_step, run.pipeline.take(run.pipeline.open(1), tf.constant(0))),
        "evaluation": (
            run.evaluate.step,
            (tf.zeros([batch, 32, 32, 3], tf.uint8), tf.zeros([batch], tf.int32)),
        ),
    }
    for name in steps:
        step, inputs = examples[name]
        text = _stablehlo(run.placement.strategy, step, inputs)
        digest = hashlib.sha256(text.encode()).hexdigest()
        yield Lowered(recipe, name, precision, batch_size if name == "train" else batch, digest), text


def _stablehlo(strategy: Any, step: Any, inputs: Any) -> str:
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def replicated(*inputs: tf.Tensor) -> None:
        strategy.run(step, inputs)

    ir = replicated.experimental_get_compiler_ir(*inputs)
    text = str(ir(stage="stablehlo", platform_name="CPU"))
    text = re.sub(r"^module @\S+", "module @step", text, flags=re.MULTILINE)  # its name counts functions
    return re.sub(r'loc\("[^"]*":\d+:\d+\)', "loc(unknown)", text)  # a line of a file on this machine


# ---- both --------------------------------------------------------------------------------------------------


def _ask(python: str, *arguments: str) -> Any:
    """Runs the other environment's Python and returns the JSON of its last line."""
    try:
        done = subprocess.run(
            [python, *arguments], capture_output=True, text=True, timeout=COMPILE_LIMIT, check=False
        )
    except OSError as error:
        raise UserError(f"--python {python} does not run ({error.strerror}); make it as -h says") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"the compiler took more than {COMPILE_LIMIT} s", exit_code=REFUSED) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if "No module named" in last or "No package metadata" in last:
            raise UserError(
                f"--python {python}: {last}; {python} -m pip install -r requirements-tpu-compile.txt"
            )
        raise UserError(f"the TPU compiler refused: {done.stderr.strip()[-2000:]}", exit_code=REFUSED)
    return json.loads(done.stdout.strip().splitlines()[-1])


def _versions(python: str) -> dict[str, str]:
    from lab.runs import record

    names = ("jax", "jaxlib", "libtpu")
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    return record.versions() | _ask(python, "-c", code)


def report(options: argparse.Namespace) -> None:
    """Lowers and compiles all that was asked for; a line each, and --out written anew after each.

    Raises:
        UserError: for an unknown recipe, before anything else; if --out holds something else; if a program
            cannot be compiled.
    """
    from lab.runs import record

    names = _recipes(options)
    versions = _versions(options.python)  # first, since it finds out whether the other environment is there
    print(", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    programs = {_place(program): program for program in _earlier(options.out, versions)}
    counted = {(program.digest, program.chip): program for program in programs.values()}
    with tempfile.TemporaryDirectory() as folder:
        for lowered, text in _lowered(names, options, Path(folder)):
            for chip in options.chips:
                equal = counted.get((lowered.digest, chip))
                counts = _counts(equal) if equal else _compile(text, chip, options.python, Path(folder))
                program = predict(lowered, chip, counts)
                print(tputables.line(asdict(program)), flush=True)
                counted[lowered.digest, chip] = programs[_place(program)] = program
                if options.out:
                    record.write_whole(Path(options.out), _written(versions, programs))


def _recipes(options: argparse.Namespace) -> list[str]:
    names = list(recipes.RECIPES) if "all" in options.recipe else options.recipe
    for name in names:
        recipes.known(name)
    return names


def _lowered(names: list[str], options: argparse.Namespace, folder: Path) -> Iterator[tuple[Lowered, str]]:
    noise = folder / "noise.npz"
    make_noise(noise)
    for recipe in names:
        for precision in options.precisions:
            yield from lower(noise, recipe, options.steps, precision, options.batch_size)


def _compile(text: str, chip: str, python: str, folder: Path) -> Any:
    path = folder / "step.stablehlo"
    path.write_text(text, encoding="utf-8")
    return _ask(python, str(COMPILER), str(path), CHIPS[chip].topology)


def _counts(program: Program) -> dict[str, Any]:
    return {name: getattr(program, name) for name in COUNTS}


def _place(program: Program) -> tuple[Any, ...]:
    """Where a program stands in a report, which has one at each place."""
    return (
        list(recipes.RECIPES).index(program.recipe),
        PRECISIONS.index(program.precision),
        STEPS.index(program.step),
        list(CHIPS).index(program.chip),
        program.batch_size,
    )


def read(path: Path) -> tuple[dict[str, str], list[Program]]:
    """The versions and the programs of a report, without those of recipes that are no more.

    Raises UserError if it cannot be read or is something else.
    """
    report = results.load(path)
    try:
        rows = [row for row in report["programs"] if row["recipe"] in recipes.RECIPES]
        return dict(report["versions"]), [_again(row) for row in rows]
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{path} is no report of this script; give another, or move it away") from None


def _again(row: dict[str, Any]) -> Program:
    lowered = Lowered(**{field.name: row[field.name] for field in fields(Lowered)})
    return predict(lowered, row["chip"], {name: row[name] for name in COUNTS})


def _earlier(path: str, versions: dict[str, str]) -> list[Program]:
    """The programs of the report that stands at `path`, if it was made by the same versions."""
    if not path or not Path(path).exists():
        return []
    earlier, programs = read(Path(path))
    return programs if earlier == versions else []


def select(programs: Sequence[Program], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Those programs of a report that the flags ask for, as rows of tputables."""
    names = _recipes(options)
    return [
        asdict(program)
        for program in programs
        if program.recipe in names
        and program.chip in options.chips
        and program.precision in options.precisions
        and program.step in options.steps
    ]


def _written(versions: dict[str, str], programs: dict[tuple[Any, ...], Program]) -> str:
    report = {
        "what": "compiled for a TPU without one; all but compile_seconds is predicted for one core, not measured",
        "versions": versions,
        "chips": {name: asdict(chip) for name, chip in CHIPS.items()},
        "programs": [asdict(programs[place]) for place in sorted(programs)],
    }
    return json.dumps(report, indent=2) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--python",
        default=os.environ.get("TPU_COMPILE_PYTHON", ".tpu/bin/python"),
        help="Python of an environment with jax[tpu] (default: $TPU_COMPILE_PYTHON, or %(default)s)",
    )
    parser.add_argument("--chips", nargs="+", choices=tuple(CHIPS), default=list(CHIPS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument(
        "--recipe",
        nargs="+",
        default=["davidnet"],
        metavar="NAME",
        help="of lab/ladder/recipes.py, or all (davidnet)",
    )
    parser.add_argument("--batch-size", type=int, help="images a training step on one core (the recipe's)")
    parser.add_argument(
        "--out", default="", metavar="FILE", help="the report, as JSON; goes on with one there"
    )
    parser.add_argument("--table", default="", metavar="FILE", help="only print a report's rows, as Markdown")
    return parser


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.table:
        print(tputables.table(select(read(Path(options.table))[1], options)))
        return 0
    report(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
