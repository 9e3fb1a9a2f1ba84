"""Compiles the training and evaluation steps with Google's TPU compiler, on a machine without a TPU.

    python3 -m venv .tpu && .tpu/bin/pip install -r requirements-tpu-compile.txt
    python -m lab tpu --python .tpu/bin/python --chips v5e --precisions bfloat16 --steps train
    python -m lab tpu --python .tpu/bin/python --out records/tpu-compile.json      # DavidNet's eight programs
    python -m lab tpu --recipe speedrun --python .tpu/bin/python
    python -m lab tpu --known records/tpu-compile.json      # compiles only what has changed since that report

TensorFlow lowers the steps to StableHLO in this process (lab/tpu/steps.py). The other environment's Python, which
brings the TPU compiler, runs lab/tpu/compiler.py on them: operations, bytes, memory and cycles by the compiler's
count. The times printed are predictions, not measurements: the roofline, which is a bound, from the chips'
published peaks; and the compiler's own estimate.

Exit: 0 if all compiled, 1 with the compiler's message if one did not, 2 for a wrong argument.
"""

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.base.errors import Exit, Parser, UserError, exits_with_one_line
from lab.base.files import write_whole
from lab.ladder import recipes
from lab.runs import record, results
from lab.start import load
from lab.tpu import table

TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000  # CIFAR-10's
PRECISIONS, STEPS = ("float32", "bfloat16"), ("train", "evaluation")
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

    An epoch of training, all of it at the step's side, has as many steps as whole batches; evaluation sees every image
    of the test set.
    """
    chip, size = CHIPS[name], lowered.batch_size
    computing = counts["flops"] / (chip.flops / chip.cores)
    moving = counts["bytes_accessed"] / (chip.bandwidth / chip.cores)
    seconds, estimated = max(computing, moving), counts["estimated_cycles"] / chip.clock
    steps = -(-TEST_IMAGES // size) if lowered.step == "evaluation" else TRAIN_IMAGES // size
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


# ---- compiling ---------------------------------------------------------------------------------------------


def _ask(python: str, *arguments: str) -> Any:
    """Runs the other environment's Python and returns the JSON of its last line."""
    try:
        done = subprocess.run([python, *arguments], capture_output=True, text=True, timeout=COMPILE_LIMIT, check=False)
    except OSError as error:
        raise UserError(f"--python {python} does not run ({error.strerror}); make it as -h says") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"the compiler took more than {COMPILE_LIMIT} s", exit_code=Exit.NO) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if "No module named" in last or "No package metadata" in last:
            raise UserError(f"--python {python}: {last}; {python} -m pip install -r requirements-tpu-compile.txt")
        raise UserError(f"the TPU compiler refused: {done.stderr.strip()[-2000:]}", exit_code=Exit.NO)
    return json.loads(done.stdout.strip().splitlines()[-1])


def _versions(python: str) -> dict[str, str]:
    names = ("jax", "jaxlib", "libtpu")
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    return record.versions() | _ask(python, "-c", code)


def _compile(text: str, chip: str, python: str) -> dict[str, Any]:
    """What the compiler counts in a program: a value for each of COUNTS."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.stablehlo"
        path.write_text(text, encoding="utf-8")
        counts: dict[str, Any] = _ask(python, str(COMPILER), str(path), CHIPS[chip].topology)
        return counts


def programs(options: argparse.Namespace, known: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Program]:
    """Lowers and compiles all that was asked for.

    Args:
        known: the compiler's counts by digest and chip, of programs that need no compiling.

    Raises:
        UserError: for an unknown recipe, or if a program cannot be compiled.
    """
    lower = load("lab.tpu.steps").lower  # TensorFlow loads now, when the flags are known to be right
    for precision in options.precisions:
        for step, size, text in lower(options.recipe, options.steps, precision, options.batch_size):
            digest = hashlib.sha256(text.encode()).hexdigest()
            for chip in options.chips:
                counts = known.get((digest, chip)) or _compile(text, chip, options.python)
                yield predict(Lowered(options.recipe, step, precision, size, digest), chip, counts)


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The compiler's counts in a report, by digest and chip. Raises UserError if it is something else."""
    report = results.load(path)
    try:
        return {(row["digest"], row["chip"]): {key: row[key] for key in COUNTS} for row in report["programs"]}
    except (TypeError, KeyError):
        raise UserError(f"{path} is no report of this tool; give another") from None


# ---- the command -------------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(
        prog="python -m lab tpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--python",
        default=os.environ.get("TPU_COMPILE_PYTHON", ".tpu/bin/python"),
        help="Python of an environment with jax[tpu] (default: $TPU_COMPILE_PYTHON, or %(default)s)",
    )
    parser.add_argument("--chips", nargs="+", choices=tuple(CHIPS), default=list(CHIPS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--recipe", default="davidnet", help="of python -m lab recipes (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="images a training step on one core (the recipe's)")
    parser.add_argument("--known", type=Path, metavar="FILE", help="a report, whose programs are not compiled again")
    parser.add_argument("--out", type=Path, metavar="FILE", help="for the report, as JSON")
    return parser


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = _parser().parse_args(arguments)
    recipes.known(options.recipe)
    if options.known and options.out:
        raise UserError("--out is a report of one compiler; leave out --known, so that all is compiled by it")
    known, versions = {}, {}
    if options.known:
        known = read(options.known)
    else:
        versions = _versions(options.python)  # first, since it finds out whether the other environment is there
        print(", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    compiled = []
    for program in programs(options, known):
        compiled.append(asdict(program))
        print(table.line(compiled[-1]), flush=True)
    if options.out:
        report = {
            "what": "compiled for a TPU without one; all but compile_seconds is predicted for one core, not measured",
            "versions": versions,
            "chips": {name: asdict(chip) for name, chip in CHIPS.items()},
            "programs": compiled,
        }
        write_whole(options.out, json.dumps(report, indent=2) + "\n")
    return Exit.DONE
