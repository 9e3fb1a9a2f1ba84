"""How the programs start: the flags are read before TensorFlow loads, so that -h and a mistake are answered at once."""

import importlib
import os
from collections.abc import Callable
from typing import Any

from lab.base.errors import Parser, exits_with_one_line
from lab.machine import memory
from lab.options import GROUPS


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
        allow_abbrev=False,
        conflict_handler="resolve",  # flip is wider in lab/options.py
    )
    for kind in (config, *GROUPS):
        title, _, _ = (kind.__doc__ or "").partition("\n")
        add_flags(parser.add_argument_group(title), kind)
    return parser


def load(name: str, log_level: str = "2") -> Any:
    """A module of the lab by its name: imported only now, since it needs TensorFlow and its caller does not."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", log_level)  # TensorFlow's start-up chatter; errors still show
    return importlib.import_module(name)
