"""Every rung of "How to train your ResNet" and its successors as a named set of hyperparameters.

    python train_eager.py --recipe bag-of-tricks
    python -m lab recipes                          # a table of them all

Each recipe states what it changes in the one below it; at the bottom is `davidnet`, as published: the constants at
the top of train_eager.py, unless somebody has edited them. No TensorFlow here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lab.base.errors import UserError, nearest
from lab.ladder import schedules
from lab.options import NEEDS, OF_A_RECIPE, Ladder, flag

ROOT = "davidnet"
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
        below: the recipe that it changes; "" for none.
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
        {
            "epochs": 24,
            "batch_size": 512,
            "learning_rate": 0.4,
            "warmup_epochs": 5.0,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "label_smoothing": 0.0,
            "width": 64,
            "logit_scale": 0.125,
            "pad": 4,
            "flip": "random",
            "cutout": 8,
        },
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
        "image at the end. A rate is read before its update, hence the knots' shift by a step of 1/25 epoch. Muon's "
        "Newton-Schulz steps are in float32, the original's in bfloat16.",
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
        near = nearest(name, RECIPES)
        raise UserError(f"--recipe {name!r} is not known; {near or 'python -m lab recipes lists them'}")
    return RECIPES[name]


def values(name: str) -> dict[str, Any]:
    """A recipe's hyperparameters, by name, all of OF_A_RECIPE. Raises UserError for a name that is not there."""
    recipe = known(name)
    if recipe.below:
        return {**values(recipe.below), **recipe.changes}
    defaults = {item.name: item.default for item in fields(Ladder) if item.name in OF_A_RECIPE}
    return {**defaults, **recipe.changes}


def change(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's hyperparameters with those that a user gave.

    When the epochs change, the warm-up keeps its share of the run unless it is given too, and the knots of the
    learning rate stretch; when the peak rate changes, their rates do.

    Raises:
        UserError: for a given one that has no effect beside the others.
    """
    changed = {**recipe, **given}
    longer = changed["epochs"] / recipe["epochs"] if _is_number(changed["epochs"]) else 1.0
    if "warmup_epochs" not in given:
        changed["warmup_epochs"] = longer * recipe["warmup_epochs"]
    if recipe["knots"] and "knots" not in given and {"epochs", "learning_rate"} & given.keys():
        knots = schedules.parse(recipe["knots"])
        rate = changed["learning_rate"] / (knots.peak or 1.0) if _is_number(changed["learning_rate"]) else 1.0
        changed["knots"] = str(knots.times(rate, longer))
    for name in given:
        for other, values_needed in NEEDS.get(name, {}).items():
            if given[name] != recipe[name] and changed[other] not in values_needed:
                raise UserError(
                    f"{flag(name)} {given[name]} has no effect with {flag(other)} {changed[other]}; leave it out, "
                    f"or give {flag(other)} {' or '.join(map(str, values_needed))}"
                )
    if changed["knots"] and "warmup_epochs" in given and given["warmup_epochs"] != recipe["warmup_epochs"]:
        raise UserError(
            f"--warmup-epochs {given['warmup_epochs']} has no effect with --knots {changed['knots']!r}, which say the "
            "rate of every epoch; leave it out"
        )
    if not changed["ema_every"] and "ema_keeps" in given:
        raise UserError(f"--ema-keeps {given['ema_keeps']} has no effect without --ema-every; give both")
    return changed


def _is_number(value: Any) -> bool:
    """Whether it can be computed with; what is not is refused later, with its limits."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The hyperparameters of a recipe in which two sets differ, by name, with both values."""
    both = {name: (first[name], second[name]) for name in OF_A_RECIPE}
    return {name: (one, other) for name, (one, other) in both.items() if one != other}
