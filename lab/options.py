"""The hyperparameters' names, units and limits; their values stand at the top of train_eager.py.

`Settings` is the one list: the command line, the check of a value and the record of a run are made from it.
"""

import argparse
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lab import schedules as schedule
from lab.base.errors import Parser, UserError


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

    recipe: str = option(
        "name of a recipe (python -m lab.ladder.recipes lists them); the other flags override it"
    )
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
    network: str = option("name of a network (lab/ladder/networks.py lists them)")
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
