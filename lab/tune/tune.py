"""Tunes hyperparameters on a held-out part of the training set, by coordinate descent with several seeds a point.

    python -m lab tune --epochs 10                             # Page's coordinates, around DavidNet's values
    python -m lab tune --label-smoothing 0.1 --tune label_smoothing,cutout --finer 1 --runs 5 --out runs/smoothing
    python -m lab tune --recipe speedrun --tune learning_rate,head_rate,bias_rate --holdout 10000

Each hyperparameter is doubled until it gets worse, or else halved, one after another, until no change helps. momentum
and weight_decay take the learning rate along, so that rate * decay / (1 - momentum) stays (Page's post 5), unless the
optimizer is lars or muon. A point is better if the mean of its differences to the best so far, seed by seed, exceeds
the mean's standard error. All flags of python train_eager.py pass: --holdout images judge (default 5000), --runs seeds
a point (default 3). The same command goes on where it stopped: each finished run is in --out (default
runs/tune-<recipe>).
"""

import argparse

from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.machine import memory
from lab.start import load
from lab.tune.descent import PAGES

JUDGES = ("accuracy", "loss")
FINEST = 8  # factors of 1.003


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are those after the tool's name. Returns the exit code."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--tune NAMES] [--finer N] [--by WHAT] [the flags of python train_eager.py]",
    )
    names = ",".join(PAGES)
    parser.add_argument(
        "--tune", metavar="NAMES", default=names, help="hyperparameters, by comma (default: %(default)s)"
    )
    about = "how often to go on with a finer step: 1: factors of 1.41, 2: of 1.19 too (default: 0, factors of 2 alone)"
    parser.add_argument("--finer", type=int, default=0, metavar="N", help=about)
    about = "what the held-out images judge by, after the last epoch (default: %(default)s)"
    parser.add_argument("--by", choices=JUDGES, default=JUDGES[0], help=about)
    own, rest = parser.parse_known_args(arguments)
    if not 0 <= own.finer <= FINEST:
        raise UserError(f"--finer {own.finer} is out of range; give 0 to {FINEST}")
    memory.restart_with_huge_pages()  # before the slow imports
    load("lab.tune.tuner").command(own.tune.split(","), own.finer, own.by, rest)
    return 0
