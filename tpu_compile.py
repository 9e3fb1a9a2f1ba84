"""Compiles the complete training and evaluation steps with Google's TPU compiler, on a machine without a TPU.

    python3 -m venv .tpu && .tpu/bin/pip install -r requirements-tpu-compile.txt
    python tpu_compile.py --python .tpu/bin/python --out records/tpu-compile.json
    python tpu_compile.py --python .tpu/bin/python --chips v5e --precisions bfloat16 --steps train
    python tpu_compile.py --python .tpu/bin/python --recipe all --out report.json     # takes hours
    python tpu_compile.py --table records/tpu-compile.json      # the README's table of a report

TensorFlow lowers the steps to StableHLO in this process: augmentation, forward, backward, weight decay,
update, batch-norm statistics and counters, everything but the sum over replicas. The other environment's
Python, which brings the TPU compiler, compiles them and counts operations, bytes and memory. The times
printed are roofline predictions from those counts and the chips' published peaks: a bound, not a measurement.

Exit: 0 if all compiled, 1 with the compiler's message if one did not, 2 for a wrong argument.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter; read at its import

from errors import Parser, UserError, ends_in_a_line

TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000  # CIFAR-10's
PRECISIONS, STEPS = ("float32", "bfloat16"), ("train", "evaluation")
REFUSED = 1  # exit code if the compiler does not take a program
COMPILE_LIMIT = 3600  # seconds; one program takes two or three minutes on two cores


@dataclass(frozen=True)
class Chip:
    """A TPU chip: its name for the compiler and its published peaks.

    `flops` are a second, in bfloat16, in which the matrix units also take float32 by default; `bandwidth` and
    `memory` are the HBM's, in bytes (a second). The compiler's devices are cores, each with its share.
    """

    topology: str
    cores: int
    flops: float
    bandwidth: float
    memory: float


CHIPS = {
    # N. P. Jouppi et al., "A Domain-Specific Supercomputer for Training Deep Neural Networks", CACM 63(7),
    # 2020: from the paper only, which is its designers' own
    "v2": Chip("v2:2x2", cores=2, flops=46e12, bandwidth=700e9, memory=16e9),
    # docs.cloud.google.com/tpu/docs/v5e
    "v5e": Chip("v5e:2x2", cores=1, flops=197e12, bandwidth=819e9, memory=16e9),
}


@dataclass(frozen=True)
class Program:
    """A compiled step on one core, by the compiler's own count, and what its peaks would allow."""

    recipe: str
    chip: str
    step: str
    precision: str
    batch_size: int
    device: str
    compile_seconds: float
    flops: float
    bytes_accessed: float
    argument_bytes: int
    temporary_bytes: int
    memory_share: float
    bound_by: str
    predicted_step_seconds: float
    predicted_epoch_seconds: float


def predict(
    recipe: str, name: str, step: str, precision: str, batch_size: int, counts: dict[str, Any]
) -> Program:
    """The roofline of one core: the longer of computing and of moving the bytes, each at the published peak.

    An epoch of training has as many steps as whole batches; evaluation sees every image of the test set.
    """
    chip = CHIPS[name]
    computing = counts["flops"] / (chip.flops / chip.cores)
    moving = counts["bytes_accessed"] / (chip.bandwidth / chip.cores)
    seconds = max(computing, moving)
    steps = TRAIN_IMAGES // batch_size if step == "train" else -(-TEST_IMAGES // batch_size)
    used = counts["argument_bytes"] + counts["temporary_bytes"]
    return Program(
        recipe=recipe,
        chip=name,
        step=step,
        precision=precision,
        batch_size=batch_size,
        memory_share=used / (chip.memory / chip.cores),
        bound_by="computing" if computing > moving else "memory",
        predicted_step_seconds=seconds,
        predicted_epoch_seconds=seconds * steps,
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
    data: Path, recipe: str, steps: Sequence[str], precision: str, batch_size: int | None, folder: Path
) -> dict[str, tuple[Path, int]]:
    """Writes some of a recipe's STEPS as StableHLO into `folder`; returns each one's file and batch size.

    Args:
        data: the .npz with the images.
        batch_size: of the training step; None takes the recipe's own.
    """
    import tensorflow as tf

    import recipes
    import settings
    import train_eager

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
    files = {}
    for name in steps:
        step, inputs = examples[name]
        path = folder / f"{name}.stablehlo"
        path.write_text(_stablehlo(run.placement.strategy, step, inputs), encoding="utf-8")
        files[name] = path, batch_size if name == "train" else batch
    return files


def _stablehlo(strategy: Any, step: Any, inputs: Any) -> str:
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def replicated(*inputs: tf.Tensor) -> None:
        strategy.run(step, inputs)

    ir = replicated.experimental_get_compiler_ir(*inputs)
    return str(ir(stage="stablehlo", platform_name="CPU"))


# ---- the TPU compiler's half, which runs in its own environment --------------------------------------------


def compile_for_tpu(path: str, topology: str) -> dict[str, Any]:
    """Compiles a StableHLO file for one core; returns the compiler's counts. Needs jax[tpu], no TPU."""
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # its lock guards a chip, and here is none
    import numpy as np
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    with mlir.make_ir_context():
        module = ir.Module.parse(Path(path).read_text(encoding="utf-8"))
        _drop_copies(module, ir)
        options = compiler.get_compile_options(
            num_replicas=1, num_partitions=1, device_assignment=np.array([[device.id]])
        )
        start = time.perf_counter()
        program = device.client.compile(module, xla_client.DeviceList((device,)), options)
    cost, memory = program.cost_analysis(), program.get_compiled_memory_stats()
    return {
        "device": device.device_kind,
        "compile_seconds": round(time.perf_counter() - start, 1),
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def _drop_copies(module: Any, ir: Any) -> None:
    """Takes out mhlo.copy, which TensorFlow puts before each result and StableHLO does not have."""
    copies = []

    def visit(operation: Any) -> Any:
        if operation.name == "mhlo.copy":
            copies.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    for copy in copies:
        copy.results[0].replace_all_uses_with(copy.operands[0])
        copy.erase()


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
    import record

    names = ("jax", "jaxlib", "libtpu")
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    return record.versions() | _ask(python, "-c", code)


def line(program: Program) -> str:
    """A compiled program for people."""
    return (
        f"{program.recipe:18} {program.chip:4} {program.step:10} {program.precision:8} batch {program.batch_size}: "
        f"{program.flops / 1e12:.3f} TFLOP, {program.bytes_accessed / 1e9:.2f} GB moved, "
        f"{(program.argument_bytes + program.temporary_bytes) / 1e9:.2f} GB of memory "
        f"({program.memory_share:.0%} of a core's); predicted, on one core: "
        f"{1000 * program.predicted_step_seconds:.2f} ms a step, "
        f"{program.predicted_epoch_seconds:.2f} s an epoch, bound by {program.bound_by}"
    )


def table(result: dict[str, Any]) -> str:
    """A report as the README's table; `result` is what --out writes."""
    head = "| chip | precision | step | TFLOP | GB moved | GB of memory | predicted ms a step | s an epoch |"
    rule = "|---|---|---|---|---|---|---|---|"
    several = len({program["recipe"] for program in result["programs"]}) > 1
    lines = [f"| recipe {head}", f"|---{rule}"] if several else [head, rule]
    for program in result["programs"]:
        memory = program["argument_bytes"] + program["temporary_bytes"]
        cells = (
            *([program["recipe"]] if several else []),
            program["chip"],
            program["precision"],
            f"{program['step']}, {program['batch_size']} images",
            f"{program['flops'] / 1e12:.3f}",
            f"{program['bytes_accessed'] / 1e9:.2f}",
            f"{memory / 1e9:.2f} ({program['memory_share']:.0%})",
            f"{1000 * program['predicted_step_seconds']:.1f} ({program['bound_by']})",
            f"{program['predicted_epoch_seconds']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(options: argparse.Namespace) -> None:
    """Lowers and compiles all that was asked for; a line each, and --out written anew after each.

    Raises:
        UserError: for an unknown recipe, before anything else; if a program cannot be compiled.
    """
    import recipes
    import record

    names = list(recipes.RECIPES) if "all" in options.recipe else options.recipe
    for name in names:
        recipes.known(name)
    versions = _versions(options.python)  # first, since it finds out whether the other environment is there
    print(", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    result: dict[str, Any] = {
        "what": "compiled for a TPU without one; seconds are roofline predictions for one core, not measured",
        "versions": versions,
        "chips": {name: asdict(CHIPS[name]) for name in options.chips},
        "programs": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for program in _programs(names, options, Path(folder)):
            print(line(program), flush=True)
            result["programs"].append(asdict(program))
            if options.out:
                record.write_whole(Path(options.out), json.dumps(result, indent=2) + "\n")


def _programs(names: list[str], options: argparse.Namespace, folder: Path) -> Iterator[Program]:
    noise = folder / "noise.npz"
    make_noise(noise)
    for recipe in names:
        for precision in options.precisions:
            files = lower(noise, recipe, options.steps, precision, options.batch_size, folder)
            for step, (path, batch) in files.items():
                for chip in options.chips:
                    arguments = [__file__, "--compile", str(path), "--topology", CHIPS[chip].topology]
                    yield predict(recipe, chip, step, precision, batch, _ask(options.python, *arguments))


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
        "--recipe", nargs="+", default=["davidnet"], metavar="NAME", help="of recipes.py, or all (davidnet)"
    )
    parser.add_argument("--batch-size", type=int, help="images a training step on one core (the recipe's)")
    parser.add_argument("--out", default="", metavar="FILE", help="write the report there, as JSON")
    parser.add_argument(
        "--table", default="", metavar="FILE", help="only print a report's table, as Markdown"
    )
    parser.add_argument("--compile", default="", help=argparse.SUPPRESS)
    parser.add_argument("--topology", default="", help=argparse.SUPPRESS)
    return parser


@ends_in_a_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.compile:
        print(json.dumps(compile_for_tpu(options.compile, options.topology)))
        return 0
    if options.table:
        import results

        print(table(results.load(Path(options.table))))
        return 0
    report(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
