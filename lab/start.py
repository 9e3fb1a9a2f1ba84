"""How the programs start: the flags are read before TensorFlow loads, so that -h and a mistake are answered at once."""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from lab.base.errors import Parser, UserError, debugging, exits_with_one_line
from lab.base.quiet import held_back
from lab.machine import memory
from lab.options import GROUPS, HELPS, flag

PACKAGES = ("numpy", "tensorflow", "keras", "tqdm")  # of requirements.txt


@exits_with_one_line
def main(config: Any, add_flags: Callable[[Any, Any], None], arguments: list[str] | None = None) -> int:
    """train_eager.py's command line in the repository: its own flags and those of lab/options.py.

    Args:
        config: train_eager.Config.
        add_flags: train_eager.add_flags.
        arguments: sys.argv's without the program.

    Returns the exit code.
    """
    parser = flags(config, add_flags)
    changes = vars(parser.parse_args(arguments))
    memory.restart_with_huge_pages()  # before the slow imports
    load("lab.command").train(**changes)
    return 0


def flags(config: Any, add_flags: Callable[[Any, Any], None]) -> Parser:
    """The parser of all flags, in groups, DavidNet's first."""
    parser = Parser(
        description="Trains DavidNet, or another recipe, on CIFAR-10. A value edited at the top of train_eager.py "
        "counts like its flag.",
        conflict_handler="resolve",  # flip is wider in lab/options.py, and HELPS are of flags that are there already
    )
    for kind in (config, *GROUPS):
        title, _, _ = (kind.__doc__ or "").partition("\n")
        group = parser.add_argument_group(title)
        add_flags(group, kind)
        if kind is config:
            for name, about in HELPS.items():
                default = f"(default: {getattr(config, name)!r})"
                group.add_argument(flag(name), default=argparse.SUPPRESS, help=f"{about} {default}")
    return parser


def load(name: str, log_level: str = "2") -> Any:
    """A module of the lab by its name: imported only now, since it needs TensorFlow and its caller does not.

    Raises UserError if a package is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", log_level)  # TensorFlow's start-up chatter; errors still show
    with contextlib.nullcontext() if debugging() else held_back():
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "lab").partition(".")[0] not in PACKAGES:
                raise
            raise UserError(f"{error.name} is not installed; pip install -r requirements.txt") from None
        # Here CUDA says what it misses. Not of several workers: SLURM says first which GPUs each of them sees.
        if "tensorflow" in sys.modules and not any(
            os.environ.get(name) for name in ("TF_CONFIG", "SLURM_STEP_NUM_TASKS")
        ):
            sys.modules["tensorflow"].config.list_physical_devices()
    return module
