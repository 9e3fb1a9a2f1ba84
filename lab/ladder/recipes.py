"""Every rung of "How to train your ResNet" and its successors as a named set of hyperparameters.

    python train_eager.py --recipe bag-of-tricks
    python -m lab recipes                          # a table of them all

Each recipe states what it changes in the one below it; at the bottom is `davidnet`, as published: the constants at
the top of train_eager.py, unless somebody has edited them. No TensorFlow here.
"""

from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from typing import Any

from lab.base.errors import UserError, nearest
from lab.ladder.speedruns import SPEEDRUNS, Claim, Recipe
from lab.machine import sides
from lab.options import NEEDS, OF_A_RECIPE, WITH, Ladder, flag, run_length

ROOT = "davidnet"
TRICKS = "cifar10-fast, bag_of_tricks.ipynb and new_dawn.py"
POST3 = 'D. C. Page, "How to train your ResNet", the text of post 3; cifar10-fast has no such run'
BASENET = "B. Johnson, github.com/bkj/basenet, examples/cifar/cifar10.py; his DAWNBench entry of April 2018"
AVERAGE = (
    "In the original the count of steps between updates of the average starts anew in each epoch, and evaluation reads "
    "the averaged statistics of one ghost batch in sixteen."
)
LAST_BATCH = (
    "The original trains on an epoch's last, partial batch too, with the full rate and decay, so that its rates add up "
    "to more: by 0.3 % at batch 128, 1.0 % at 512, 1.5 % at 768. Here it is left out: batch norm would see what fills "
    "it up, and a batch of another size would be compiled apart. The run behind the figure read the schedule one step "
    "earlier."
)


RECIPES: dict[str, Recipe] = {
    "post0-dawnbench": Recipe(
        "davidnet",
        "Before post 1: the winner of DAWNBench in 2018 by B. Johnson, a pre-activation ResNet-18. Crop and flip. 6 of "
        "his 7 runs reached 94 %. The rate rises for 15 epochs and falls for 20; five more are spent at 0.0005.",
        Claim(94.0, 0, 341),
        BASENET,
        {
            "network": "dawnbench",
            "epochs": 40,
            "batch_size": 128,
            "learning_rate": 0.1,
            "warmup_epochs": 15.0,
            "cutout": 0,
        },
        knots=((0, 0, 0), (15 / 40, 0, 1), (30 / 40, 0, 0.05), (35 / 40, 0, 0), (35 / 40, 0.001, 0.005), (1, 0, 0.005)),
        differs="There the rate jumps from 0.1 to 0.105 as it begins to fall, here it falls from 0.1. There the last "
        f"ten epochs are apart, and --epochs leaves them alone; here it stretches them with the rest. {LAST_BATCH}",
    ),
    "post1-baseline": Recipe(
        "post0-dawnbench",
        "Post 1: less the first batch norm and ReLU, each skip starts after its block's first batch norm and ReLU, and "
        "the epochs at the end are left out. The images are prepared once.",
        Claim(94.1, 1, 297),
        changes={"network": "dawn", "epochs": 35},
        knots=((0, 0, 0), (15 / 35, 0, 1), (30 / 35, 0, 0.05), (1, 0, 0)),
        differs=LAST_BATCH,
    ),
    "post2-batch512": Recipe(
        "post1-baseline",
        "Post 2: batches four times as large, with a rate about as much higher: the large batch costs nothing while "
        "the training is limited by forgetting, not by curvature.",
        Claim(94.1, 0, 256),
        changes={"batch_size": 512, "learning_rate": 0.44},
        knots=((0, 0, 0), (15 / 35, 0, 1), (30 / 35, 0, 0.005 / 0.44), (1, 0, 0)),
        differs=LAST_BATCH,
    ),
    "post3-fp32-bn": Recipe(
        "post2-batch512",
        "Post 3: half precision, but batch norm in float32, where the library was faster. Here it always is in float32,"
        " so nothing changes. Published: 93.7 to 94.1 %; the notebook's logs of October and December 2018 end at 94.03 "
        "and 93.70 %.",
        Claim(94.1, 0, 186),
        differs=LAST_BATCH,
    ),
    "post3-cutout-35": Recipe(
        "post3-fp32-bn",
        "Post 3: 8x8 cutout.",
        Claim(94.3, 0, of_runs="median"),
        POST3,
        changes={"cutout": 8},
        differs=LAST_BATCH,
    ),
    "post3-simple-35": Recipe(
        "post3-cutout-35",
        "Post 3: a simpler schedule, up and straight down.",
        Claim(94.5),
        POST3,
        changes={"learning_rate": 0.4, "warmup_epochs": 8.0},
        knots=(),
        differs=f"Where this one's rate has its peak is not published; here after 8 epochs, as with 30. {LAST_BATCH}",
    ),
    "post3-cutout": Recipe(
        "post3-simple-35",
        "Post 3: 30 epochs. The figure is the post's; the notebook's logs of October and December 2018 end at 94.15 "
        "and 94.14 %.",
        Claim(94.13, 0, 161),
        changes={"epochs": 30},
        differs=LAST_BATCH,
    ),
    "post3-batch768": Recipe(
        "post3-cutout",
        "Post 3: batch 768. The figure is the median of the post's runs; the notebook's logs of October and December "
        "2018 end at 94.23 and 93.60 %.",
        Claim(94.06, 0, 154, of_runs="median"),
        changes={"batch_size": 768, "learning_rate": 0.6},
        differs=LAST_BATCH,
    ),
    "post4-backbone": Recipe(
        "post3-cutout",
        "Post 4: what is left of the network without its long branches: 1x1 convolutions with stride 2. How good is "
        "the shortest path through it?",
        Claim(55.9, 0, 36),
        changes={"network": "shortcuts", "epochs": 20, "warmup_epochs": 4.0},
        differs=LAST_BATCH,
    ),
    "post4-no-repeat": Recipe(
        "post4-backbone",
        "Post 4: without the repeated batch norm and ReLU: one conv-BN-ReLU each time the image is halved, and one at "
        "the start.",
        Claim(56.0, 0, 32),
        changes={"network": "conv1"},
        differs=LAST_BATCH,
    ),
    "post4-conv3": Recipe(
        "post4-no-repeat",
        "Post 4: 3x3 convolutions, which see every pixel.",
        Claim(85.6, 0, 36),
        changes={"network": "conv3"},
        differs=LAST_BATCH,
    ),
    "post4-maxpool": Recipe(
        "post4-conv3",
        "Post 4: stride 1 and a max-pool instead of stride 2.",
        Claim(89.7, 0, 43),
        changes={"network": "maxpool"},
        differs=LAST_BATCH,
    ),
    "post4-global-pool": Recipe(
        "post4-maxpool",
        "Post 4: 512 filters at the end, and a max-pool alone instead of maximum and average.",
        Claim(90.7, 0, 47),
        changes={"network": "globalpool"},
        differs=LAST_BATCH,
    ),
    "post4-bn-scale1": Recipe(
        "post4-global-pool",
        "Post 4: batch norm's scales start at 1 instead of uniformly in 0 to 1, and the logits are multiplied by 0.125 "
        "to make up for it. DavidNet without residuals.",
        Claim(91.1, 0, 47),
        changes={"network": "davidnet", "blocks": "nothing,nothing,nothing"},
        differs=LAST_BATCH,
    ),
    "post4-wide": Recipe(
        "post4-bn-scale1",
        "Post 4: that backbone, twice as wide and three times as long.",
        Claim(93.5, 0, 321),
        changes={"width": 128, "epochs": 60, "warmup_epochs": 12.0},
        differs=LAST_BATCH,
    ),
    "post4-extra": Recipe(
        "post4-bn-scale1",
        "Post 4: that backbone with one more conv-BN-ReLU after each pool, three times as long, 12x12 cutout.",
        Claim(95.0, 0, 180),
        changes={"blocks": "extra,extra,extra", "epochs": 60, "warmup_epochs": 12.0, "cutout": 12},
        differs=LAST_BATCH,
    ),
    "post4-davidnet20": Recipe(
        "post4-bn-scale1",
        "Post 4: residuals of two convolutions in the first and third layer: the nine-layer network. The post tries "
        "nothing, an extra convolution or a residual in each of the three layers: --blocks extra,nothing,residual.",
        Claim(93.8, 0, 66),
        changes={"blocks": "residual,nothing,residual"},
        differs=LAST_BATCH,
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
        differs="The 50 runs behind 94.08 % (October 2018) had an epoch's last, partial batch, and read the schedule "
        "one step earlier. dawn.py has left that batch out from its first version (November 2018) on, and reads the "
        "schedule as here since December 2018, when the runs of the published curve were made.",
    ),
    "davidnet-flip": Recipe(
        "davidnet",
        "Post 8, before its tricks: with the mean of the logits of an image and its mirror image, 19 epochs are enough "
        "for 94 %.",
        Claim(94.0, 0, 60),
        TRICKS,
        {"epochs": 19, "tta": "flip"},
        differs="That its warm-up is 5 epochs follows dawn.py, whose schedule is [0, 5, epochs]; for the 19 it is not "
        "published apart.",
    ),
    "lars": Recipe(
        "davidnet",
        "Post 6: the filters by LARS, each at its rate times |w| / (|g| + 1e-2), and the rest as in davidnet. The post "
        "says that with batch norm plain SGD with decay behaves like it; it gives no run. Their peak here turns a "
        "filter as far a step as SGD's does at its own peak once growth and decay of the filter's norm are in balance: "
        "512 sqrt(2 x 0.4 x 5e-4 x (1 - 0.9)).",
        Claim(0.0),
        "cifar10-fast, torch_backend.py",
        {"optimizer": "lars"},
    ),
    "tricks-gpu-data": Recipe(
        "davidnet",
        "Post 8: augmentation on the device, drawn for equal groups of an epoch's images. The update has the learning "
        "rate inside the accumulator from here on.",
        Claim(94.1, 0, 70),
        TRICKS,
        {"rate_inside": True, "draws": "grouped", "pipeline": "device"},
        warmup_stays=True,
    ),
    "tricks-pool-first": Recipe(
        "tricks-gpu-data",
        "Post 8: max-pool before batch norm, which has a quarter of the work then. 94.0 % (50 runs) at 24 epochs.",
        Claim(94.1, 0, 64),
        TRICKS,
        {"pool_first": True, "epochs": 25},
        warmup_stays=True,
    ),
    "tricks-smoothing": Recipe(
        "tricks-pool-first",
        "Post 8: label smoothing 0.2. 94.2 % (50 runs) at 25 epochs. The warm-up is a fifth of the run from here on.",
        Claim(94.1, 0, 59),
        TRICKS,
        {"label_smoothing": 0.2, "epochs": 23, "warmup_epochs": 4.6},
    ),
    "tricks-celu": Recipe(
        "tricks-smoothing",
        "Post 8: CELU, a ReLU without its corner. 94.3 % (50 runs) at 23 epochs.",
        Claim(94.1, 0, 52),
        TRICKS,
        {"activation": "celu", "celu_alpha": 0.075, "epochs": 20, "warmup_epochs": 4.0},
    ),
    "tricks-ghost": Recipe(
        "tricks-celu",
        "Post 8: ghost batch norm over 32 images, whose noise regularises, and a higher rate. 94.2 % (50 runs) at 20 "
        "epochs and 0.4.",
        Claim(94.1, 0, 46),
        TRICKS,
        {"ghost_groups": 16, "epochs": 18, "warmup_epochs": 3.6, "learning_rate": 0.6},
    ),
    "tricks-frozen": Recipe(
        "tricks-ghost",
        "Post 8: batch norm's scales frozen at 1, its shifts learn 64 times as fast with a decay as much smaller. With "
        "16 times, the post's first step, 94.2 % (50 runs) at 18 epochs; 64 times, it says, is slightly better.",
        Claim(94.1, 0, 43),
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
        "94.4 % (50 runs) at 17 epochs; then a higher rate and a smaller cutout.",
        Claim(94.1, 0, 36),
        TRICKS,
        {"whiten": True, "epochs": 14, "warmup_epochs": 2.8, "learning_rate": 1.0, "cutout": 5},
    ),
    "tricks-ema": Recipe(
        "tricks-whiten",
        "Post 8: evaluation on a moving average of the weights, while the rate stays up for the last two epochs.",
        Claim(94.1, 0, 34),
        TRICKS,
        {"ema_every": 5, "epochs": 13, "warmup_epochs": 2.6},
        knots=((0, 0, 0), (0.2, 0, 1), (1, -2, 0.1), (1, 0, 0.1)),
        differs=AVERAGE,
    ),
    "bag-of-tricks": Recipe(
        "tricks-ema",
        "Post 8: the mean of the logits of an image and its mirror image. 94.6 % (50 runs) at 13 epochs.",
        Claim(94.1, 0, 26),
        TRICKS,
        {"tta": "flip", "cutout": 0, "epochs": 10, "warmup_epochs": 2.0},
        differs=AVERAGE,
    ),
    "bag-of-tricks-80": Recipe(
        "bag-of-tricks",
        "Post 8, trained on: 80 epochs at lower rates, 12x12 cutout.",
        Claim(96.1, 5),
        TRICKS,
        {"cutout": 12, "epochs": 80, "warmup_epochs": 16.0, "learning_rate": 0.4},
        differs=AVERAGE,
    ),
    "eager-tutorial": Recipe(
        "davidnet",
        "The tutorial that carried DavidNet to TensorFlow's eager mode: no cutout. Its loop computes a weight decay "
        "that never happens, so there is none. With the loop repaired (--weight-decay 5e-4) it ended at 93.72 % (one "
        "run), its twin in PyTorch at 93.98 %. A widely copied version has dropout too, --dropout 0.05, without a "
        "figure.",
        Claim(93.19, 1, hardware=""),
        "the DavidNet TF eager tutorial, 2019",
        {"cutout": 0, "weight_decay": 0.0},
        differs=f"There the warm-up is (epochs + 1) // 5, here 5/24 of the run at any length. {LAST_BATCH}",
    ),
    "fenwicks": Recipe(
        "davidnet",
        "The tutorial for TPUs: each of eight cores adds its decay of 1.25e-4 before a sum over them, which acts as "
        "1e-3, and normalises its own 64 images. The tutorial on a T4, at batch 128, ended at 93.98 % (one run).",
        Claim(94.24, 1, 0, "TPUv2-8"),
        "the Fenwicks tutorial, 2019",
        {"weight_decay": 1e-3, "ghost_groups": 8},
    ),
    **SPEEDRUNS,
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
        merged = {**values(recipe.below), **recipe.changes}
    else:
        defaults = {item.name: item.default for item in fields(Ladder) if item.name in OF_A_RECIPE}
        merged = {**defaults, **recipe.changes}
    return merged | {"knots": _knots(name, run_length(merged["epochs"], merged["last_epoch"]), merged["learning_rate"])}


def epochs_of(name: str) -> str:
    """A recipe's epochs as tables show them: 24, or 7.594 where the last one is a part."""
    recipe = values(name)
    return f"{run_length(recipe['epochs'], recipe['last_epoch']):.4g}"


def _knots(name: str, epochs: float, peak: float) -> str:
    """The knots of a recipe trained for so many epochs, as --knots has them; "" where it has none.

    Raises UserError if they would not rise: if what stays in epochs takes the whole run.
    """
    recipe = RECIPES[name]
    while recipe.knots is None and recipe.below:
        recipe = RECIPES[recipe.below]
    rows = recipe.knots or ()

    def rises(count: float) -> bool:
        places = [share * count + more for share, more, _ in rows]
        return all(before < after for before, after in pairwise([-1e-9, *places]))

    if not rises(epochs):
        least = next(count for count in range(1, 10**6) if rises(count))
        raise UserError(
            f"--epochs {epochs:g} is too short for the schedule of {name}; give --epochs {least} or --knots"
        )
    return " ".join(f"{share * epochs + more:.10g},{level * peak:.10g}" for share, more, level in rows)


def change(name: str, recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's hyperparameters with those that a user gave.

    When the epochs change, the warm-up keeps its share of the run unless it is given too or the recipe says that its
    epochs stay; the knots of the learning rate follow epochs and peak rate as the recipe says; sides keep their share
    of the epochs. Epochs that are given are whole, the last one too, unless its share is given as well.

    Args:
        name: of the recipe.
        recipe: its hyperparameters, or those of a run that is to go on.
        given: by the user.

    Raises:
        UserError: for a given one that has no effect beside the others, or epochs too few for the schedule.
    """
    changed = {**recipe, **given}
    if "epochs" in given and "last_epoch" not in given:
        changed["last_epoch"] = 1.0
    if all(_is_number(changed[key]) for key in ("epochs", "last_epoch", "learning_rate")):
        epochs, before = (run_length(each["epochs"], each["last_epoch"]) for each in (changed, recipe))
        if "warmup_epochs" not in given:
            stays = known(name).warmup_stays and recipe["warmup_epochs"] < epochs
            changed["warmup_epochs"] = recipe["warmup_epochs"] * (1.0 if stays else epochs / before)
        moved = (epochs, changed["learning_rate"]) != (before, recipe["learning_rate"])
        if moved and recipe["knots"] and "knots" not in given:
            changed["knots"] = _knots(name, epochs, changed["learning_rate"])
        if changed["sides"] and "sides" not in given and changed["epochs"] != recipe["epochs"]:
            changed["sides"] = sides.stretched(recipe["sides"], recipe["epochs"], changed["epochs"])
    for name in given:
        for other, values_needed in NEEDS.get(name, {}).items():
            if given[name] != recipe[name] and changed[other] not in values_needed:
                raise UserError(
                    f"{flag(name)} {given[name]} has no effect with {flag(other)} {changed[other]}; leave it out, "
                    f"or give {flag(other)} {' or '.join(map(str, values_needed))}"
                )
    # Knots that are given say the peak too, those of a recipe follow it.
    for name in ("warmup_epochs", "learning_rate") if "knots" in given else ("warmup_epochs",):
        if changed["knots"] and name in given and given[name] != recipe[name]:
            raise UserError(
                f"{flag(name)} {given[name]} has no effect with --knots {changed['knots']!r}, which say the rate of "
                "every epoch; leave it out"
            )
    for name, other in WITH.items():
        if name in given and not changed[other]:
            raise UserError(f"{flag(name)} {given[name]} has no effect without {flag(other)}; give both")
    return changed


def _is_number(value: Any) -> bool:
    """Whether it can be computed with; what is not is refused later, with its limits."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The hyperparameters of a recipe in which two sets differ, by name, with both values."""
    both = {name: (first[name], second[name]) for name in OF_A_RECIPE}
    return {name: (one, other) for name, (one, other) in both.items() if one != other}
