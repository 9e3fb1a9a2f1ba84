"""The hyperparameters beyond DavidNet's: of other recipes, of the data, of the machine, of the run.

DavidNet's own stand at the top of train_eager.py; lab/assemble.py puts both together. No TensorFlow here, so that a
command line is answered at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

NETWORKS = (
    "davidnet",
    "dawnbench",
    "dawn",
    "shortcuts",
    "conv1",
    "conv3",
    "maxpool",
    "globalpool",
    "speednet",
    "hivenet",
    "e1net",
    "speednet95",
    "speednet96",
)
VIEWS = ("none", "flip", "six", "unsure")
LOGICAL_DEVICES = 8  # at most; each compiles the step again and takes its own memory


def option(default: Any, about: str, low: Any = None, high: Any = None, choices: Sequence[str] = ()) -> Any:
    """A field, as train_eager.option: its default, what it is, and the values it may take, low and high included."""
    return field(default=default, metadata={"about": about, "low": low, "high": high, "choices": choices})


# fmt: off
@dataclass(frozen=True)
class Ladder:
    """Other recipes: what the rungs of "How to train your ResNet" and the speedrun turn on."""

    recipe: str = option("davidnet", "its values apply first, then the other flags; python -m lab recipes lists them")
    network: str = option("davidnet", "which network", choices=NETWORKS)
    blocks: str = option("residual,nothing,residual",
                         "what follows each of davidnet's three pools: residual, extra (one conv-BN-ReLU) or nothing")
    knots: str = option("", "rate as epoch,rate pairs, '0,0 5,0.4 24,0'; empty: the warm-up, then straight down")
    last_epoch: float = option(1.0, "share of the last epoch that is trained, in steps rounded up", 1e-3, 1)
    flip: str = option("random", "mirror a random half, or each image in every second epoch",
                       choices=("none", "random", "alternating"))
    across_epochs: bool = option(False, "images that an epoch's batches leave over are the next one's first")
    draws: str = option("each", "crops, flips, cutouts: for each image alone, or in equal groups as post 8",
                        choices=("each", "grouped"))
    brightness: float = option(0.0, "add to each training image a number drawn from +- this, in deviations", 0, 10)
    contrast: float = option(0.0, "then multiply it by a number drawn from 1 +- this", 0, 1)
    optimizer: str = option("nesterov", "of the filters; lars and muon take nesterov for the rest",
                            choices=("nesterov", "lars", "muon"))
    rate_inside: bool = option(False, "Nesterov's rate inside the accumulator, as in post 8 and Keras")
    bias_factor: float = option(1.0, "times the rate of batch norm's shifts; divides their decay", 1, 1e6)
    filter_rate: float = option(3.24, "lars: peak rate of the filters; over the batch size, a step's share of a "
                                "filter's norm", 0, 1e6)
    filter_momentum: float = option(0.6, "muon: momentum of the filters", 0, 0.9999)
    filter_decay: float = option(0.0, "muon: share of the filters taken off in a step, over the rate", 0, 1e3)
    newton_schulz: str = option("airbench", "muon: which published coefficients of the Newton-Schulz iteration",
                                choices=("airbench", "hiverge"))
    rescale_growth: float = option(0.0, "muon: scale the filters to their norm only every 2 + int(this x progress) "
                                   "steps; 0: in each", 0, 10_000)
    bias_rate: float = option(0.053, "muon: peak rate of biases and shifts, for the summed loss", 0, 1e6)
    head_rate: float = option(0.67, "muon: peak rate of the last layer, for the summed loss", 0, 1e6)
    whiten_bias_epochs: float = option(3.0, "epochs after which the whitening's bias is frozen; 0: never", 0, 1e5)
    dropout: float = option(0.0, "share of a convolution's outputs set to 0 before batch norm", 0, 0.9999)
    activation: str = option("relu", "between the layers", choices=("relu", "celu", "gelu", "silu"))
    celu_alpha: float = option(1.0, "where a CELU levels off: at minus this", 1e-3, 1e3)
    pool_first: bool = option(False, "pool before batch norm and activation instead of after them")
    ghost_groups: int = option(0, "parts of the batch with batch statistics of their own; 0: a replica's", 0, 100_000)
    frozen_scales: bool = option(False, "batch norm's scales stay as they start")
    whiten: bool = option(False, "whitening filters, fitted to the training images, as first convolution")
    hardest: float = option(0.0, "share of each batch to train on, of a small network's largest losses; 0: all", 0, 1)
    ema_every: int = option(0, "steps between updates of the weights' moving average; 0: none", 0, 1_000_000)
    ema_keeps: float = option(0.99, "share of the average that a step keeps; evaluation uses the average", 0, 0.999999)
    lookahead_every: int = option(0, "steps after which an average takes the weights' place; 0: none", 0, 1_000_000)
    lookahead_keeps: float = option(0.7, "share of that average that it keeps each time", 0, 0.999999)
    lookahead_power: float = option(0.0, "that share grows from 0 as this power of the run's; 0: constant", 0, 100)
    lookahead_epochs: float = option(0.0, "lookahead in so many last epochs only; 0: all along", 0, 1e5)
    sides: str = option("", "training images' side x epochs, the last one to the end: '24x3 28x3 32'; empty: 32")
    tta: str = option("none", "views of a test image at the end, whose logits are averaged; unsure: six views for the "
                      "quarter of the images on which the network is least confident, one for the rest", choices=VIEWS)


@dataclass(frozen=True)
class Selection:
    """Which images."""

    holdout: int = option(0, "training images to validate on in place of the test set; 0: none", 0, 10_000_000)
    limit_train: int = option(0, "use only so many training images, the classes as even as possible; 0: all",
                              0, 10_000_000)
    limit_test: int = option(0, "use only so many test images, the classes as even as possible; 0: all", 0, 10_000_000)


@dataclass(frozen=True)
class Machine:
    """Where and how: for the speed; the result stays the same to rounding, but each replica has its own batch norm."""

    tpu: str = option("", "name or address of a TPU; empty: this machine's own")
    pipeline: str = option("auto", "who makes the batches; auto: the device", choices=("auto", "host", "device"))
    operations: str = option("auto", "forms of the layers; auto: fast on a CPU, else plain",
                             choices=("auto", "plain", "fast"))
    logical_devices: int = option(0, "split the CPU into so many, to try replicas; 0: do not", 0, LOGICAL_DEVICES)
    deterministic: bool = option(False, "the same numbers in every run on a GPU, at some cost; a CPU's are anyway")


@dataclass(frozen=True)
class Runs:
    """What a run leaves, and how it goes on."""

    runs: int = option(1, "seeds to train one after another, from --seed up, and their statistics", 1, 100_000)
    out: str = option("", "folder for the results; empty: runs/<recipe>-<seed>-<time>")
    resume: str = option("", "folder of the run to resume; auto: the newest of this recipe and seed, if any")
    checkpoint_every: int = option(1, "epochs between checkpoints; 0: none", 0, 100_000)
    keep: int = option(2, "checkpoints to keep", 1, 100_000)
    profile: str = option("", "folder for a TensorFlow profile of ten steps; empty: none")
    tensorboard: bool = option(False, "write the rows for TensorBoard, in the results' folder")
# fmt: on


GROUPS = (Ladder, Selection, Machine, Runs)
# Of train_eager.py's own flags, those that do more here.
HELPS = {
    "data": "CIFAR-10's folder or archive, an .npz, a folder of images by class, one of TFRecords (gs://... too), or "
    "the word synthetic; empty: ./data, downloaded if missing",
    "checkpoint_dir": "folder or gs://... for the checkpoints, in place of the run's folder; --resume goes on",
}
# DavidNet's own that make a recipe; the rest of train_eager.py's say which run, where and how.
OF_DAVIDNET = (
    "epochs",
    "batch_size",
    "learning_rate",
    "warmup_epochs",
    "momentum",
    "weight_decay",
    "label_smoothing",
    "width",
    "logit_scale",
    "pad",
    "flip",
    "cutout",
)
OF_A_RECIPE = (
    *OF_DAVIDNET,
    *(item.name for item in fields(Ladder) if item.name not in ("recipe", *OF_DAVIDNET)),
)
# What decides which training a run is.
IDENTITY = ("recipe", *OF_A_RECIPE, "seed", *(item.name for item in fields(Selection)))

_SPEEDNETS = ("speednet", "hivenet", "e1net", "speednet95", "speednet96")
_DAVIDNETS = {"network": ("davidnet",)}
_STYLED = {"network": tuple(name for name in NETWORKS if name not in ("dawnbench", "dawn", "shortcuts"))}
# Which value another hyperparameter must have for one to have any effect.
NEEDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "blocks": _DAVIDNETS,
    "filter_rate": {"optimizer": ("lars",)},
    "filter_momentum": {"optimizer": ("muon",)},
    "filter_decay": {"optimizer": ("muon",)},
    "newton_schulz": {"optimizer": ("muon",)},
    "rescale_growth": {"optimizer": ("muon",)},
    "bias_rate": {"optimizer": ("muon",)},
    "head_rate": {"optimizer": ("muon",)},
    "whiten_bias_epochs": {"network": _SPEEDNETS},
    "bias_factor": {"optimizer": ("nesterov", "lars")},
    "celu_alpha": {"activation": ("celu",)},
    "whiten": _DAVIDNETS,
    "logit_scale": _DAVIDNETS,
    "pool_first": {
        "network": tuple(name for name in _STYLED["network"] if name not in (*_SPEEDNETS, "conv1", "conv3"))
    },
    "dropout": _STYLED,
    "hardest": {"ghost_groups": (0,)},
    "ghost_groups": {"hardest": (0,)},
    "ema_every": {"lookahead_every": (0,)},
    "lookahead_every": {"ema_every": (0,)},
}
# Which have an effect only beside one that is not 0.
WITH: dict[str, str] = {
    "ema_keeps": "ema_every",
    "lookahead_keeps": "lookahead_every",
    "lookahead_power": "lookahead_every",
    "lookahead_epochs": "lookahead_every",
}


def flag(name: str) -> str:
    """The command-line flag of a hyperparameter: --batch-size for batch_size."""
    return "--" + name.replace("_", "-")


def run_length(epochs: float, last_epoch: float) -> float:
    """The epochs of a whole run, of which the last counts by the share that is trained."""
    return epochs - 1 + last_epoch


def run_steps(epochs: float, steps_per_epoch: int) -> int:
    """The steps of so many epochs; a fraction of a step is made whole, but not one that is mere rounding."""
    return math.ceil(epochs * steps_per_epoch - 1e-6)
