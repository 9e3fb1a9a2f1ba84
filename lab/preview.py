"""A sheet of training images as the network sees them, epoch by epoch.

    python -m lab preview sheet.png
    python -m lab preview sheet.png --recipe speedrun --seed 3 --data PATH

What is shown are the very images that a training with the same flags trains on.
"""

import argparse
from pathlib import Path

from lab.base.errors import Parser, exits_with_one_line
from lab.options import flag
from lab.start import load

# What decides which images a training sees; their limits are checked with all other hyperparameters'.
FLAGS = {
    "recipe": str,
    "data": str,
    "holdout": int,
    "limit_train": int,
    "seed": int,
    "batch_size": int,
    "pad": int,
    "flip": str,
    "cutout": int,
    "brightness": float,
    "contrast": float,
    "sides": str,
}


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are those after the tool's name. Returns the exit code."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", metavar="FILE", type=Path, help="the picture, .png, .svg or .pdf")
    for name, kind in FLAGS.items():
        parser.add_argument(flag(name), type=kind, default=argparse.SUPPRESS, help="as of train_eager.py")
    changes = vars(parser.parse_args(arguments))
    path = changes.pop("file")
    load("lab.sheet").draw(path, changes)
    print(f"wrote {path}")
    return 0
