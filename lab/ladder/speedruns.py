"""What a recipe is; and the speedruns, K. Jordan's airbench and its successors, each with what it changes in another.

The rungs that lead to them, and what is done with a recipe, stand in lab/ladder/recipes.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXPERIMENTS = "cifar10-fast, experiments.ipynb"
KILOSTEP = 1 + 1 / (1 - 0.85)  # airbench95 and 96 give rates times what Nesterov momentum makes of a steady gradient


@dataclass(frozen=True)
class Claim:
    """A published result: test accuracy in percent, number of runs (0: not stated), seconds, hardware.

    `of_runs` says what the accuracy is of several runs: their mean or their median.
    """

    accuracy: float  # 0: no figure
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
        changes: the hyperparameters that differ from the one below, but `knots`.
        knots: of the learning rate, as rows (share of the epochs, epochs after it, share of the peak), so that
            `--epochs 20` keeps what the source has in epochs; () for the warm-up and straight down, None for those
            of the one below.
        warmup_stays: `--epochs` keeps the epochs of the warm-up, if they fit, and not its share of the run.
        differs: what is known to be otherwise than in the source.
    """

    below: str
    about: str
    claim: Claim
    source: str = EXPERIMENTS
    changes: Mapping[str, Any] = field(default_factory=dict)
    knots: tuple[tuple[float, float, float], ...] | None = None
    warmup_stays: bool = False
    differs: str = ""


SPEEDRUNS: dict[str, Recipe] = {
    "speedrun": Recipe(
        "davidnet",
        "airbench94_muon: whitening, identity starts, alternating flips and Muon, eight epochs, six views of each test "
        "image at the end. A rate is read before its update, hence the knots' shift by a step of 1/25 epoch. GELU is "
        "the exact one, by the error function, as there. Muon's Newton-Schulz steps are in float32, the original's in "
        "bfloat16.",
        Claim(94.01, 200, 2.59, "A100"),
        "K. Jordan, cifar10-airbench, airbench94_muon.py; arXiv 2404.00498",
        {
            "network": "speednet",
            "epochs": 8,
            "batch_size": 2000,
            "learning_rate": 0.24,
            "warmup_epochs": 0.0,
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
        knots=((0, 1 / 25, 1), (1, 1 / 25, 0)),
    ),
    "speedrun-hiverge": Recipe(
        "speedrun",
        "hiverge's: 243 steps of 1536 images, SiLU in the groups, jitter of brightness and contrast, filters that "
        "decay and are scaled to their norm ever less often, other coefficients of Newton-Schulz, whitening from 960 "
        "images, its bias trained for 7 steps; six views only of the quarter of the test images that the network is "
        "least sure of.",
        Claim(94.008, 2000, 2.015, "A100"),
        "hiverge/cifar10-speedrun, cifar10_speedrun.py",
        {
            "network": "hivenet",
            "last_epoch": 19 / 32,
            "batch_size": 1536,
            "learning_rate": 0.205,
            "momentum": 0.825,
            "weight_decay": 1.0418e-6,
            "label_smoothing": 0.09,
            "brightness": 0.1399,
            "contrast": 0.1308,
            "filter_momentum": 0.655,
            "filter_decay": 1.0418e-6 * 1536,
            "newton_schulz": "hiverge",
            "rescale_growth": 15.0,
            "bias_rate": 0.0573,
            "head_rate": 0.5415,
            "whiten_bias_epochs": 7 / 32,
            "activation": "silu",
            "tta": "unsure",
        },
        knots=((0, 1 / 32, 1), (1, 1 / 32, 0)),
        differs="The original computes in half precision, Muon's momentum and Newton-Schulz steps too; its quarter of "
        "unsure images is the whole test set's, here it is each test batch's (1,000 images).",
    ),
    "speedrun-lowres": Recipe(
        "speedrun-hiverge",
        "Small images first, Fulcrum's E1 of July 2026: three epochs of 24 x 24 pixels and three of 28 x 28, of which "
        "one costs a half and three quarters of the full size; 284 steps. The rates fall as if to 0, twelve steps "
        "before the end, but not below a twentieth of their start; in the last twenty steps lookahead. Six views of "
        "every test image. The claimed 94.046 % is of the last 8,000 of them (by its files 94.057 % of all 10,000), "
        "the 1.828 s are without the views; hiverge by the same clock takes 1.978 s.",
        Claim(94.046, 200, 1.828, "A100"),
        "fulcrumresearch/cifar-10-speedrun, recipe E1; a claim of its authors",
        {
            "network": "e1net",
            "epochs": 9,
            "last_epoch": 28 / 32,
            "learning_rate": 0.2255,
            "sides": "24x3 28x3 32",
            "rescale_growth": 15 * 284 / 272,  # E1 counts to its decay's end, twelve steps before the run's
            "lookahead_every": 4,
            "lookahead_epochs": 20 / 32,
            "tta": "six",
        },
        knots=((0, 1 / 32, 1), (0.95, (1 - 0.95 * 12) / 32, 0.05), (1, 0, 0.05)),
        differs="The original computes in half precision, Muon's momentum and Newton-Schulz steps too.",
    ),
    "speedrun95": Recipe(
        "speedrun",
        "airbench95: wider, the whitening's bias from 0, Nesterov momentum for all, and lookahead.",
        Claim(95.01, 200, 10.4, "A100"),
        "K. Jordan, cifar10-airbench, legacy/airbench95.py; arXiv 2404.00498",
        {
            "network": "speednet95",
            "width": 128,
            "epochs": 15,
            "batch_size": 1024,
            "learning_rate": 10 / KILOSTEP,
            "weight_decay": 0.0153 / 10,
            "optimizer": "nesterov",
            "bias_factor": 64.0,
            "lookahead_every": 5,
            "lookahead_keeps": 0.95**5,
            "lookahead_power": 3.0,
        },
        knots=((0, 1 / 48, 0.2), (165 / 720, 1 / 48, 1), (1, 1 / 48, 0.07)),
    ),
    "speedrun96": Recipe(
        "speedrun95",
        "airbench96_faster without its small network that chooses half of each batch: three convolutions a group, with "
        "a skip over two, larger translations, cutout, and batches that run across the epochs' ends. Of it alone "
        "nothing is published; its elder airbench96, the same for 37 epochs with the images left over dropped and the "
        "whitening's bias frozen after 3, reached 96.03 % (400 runs).",
        Claim(0.0),
        "K. Jordan, cifar10-airbench, airbench96_faster.py",
        {
            "network": "speednet96",
            "epochs": 45,
            "learning_rate": 9 / KILOSTEP,
            "weight_decay": 0.012 / 9,
            "pad": 4,
            "cutout": 12,
            "across_epochs": True,
            "whiten_bias_epochs": 0.0,
        },
        knots=((0, 1 / 48, 0.2), (0.1, 1 / 48, 1), (1, 1 / 48, 0)),
    ),
    "speedrun96-proxy": Recipe(
        "speedrun96",
        "airbench96_faster: of each 1,024 images the network is trained on the 512 of which a small one, trained on "
        "every fourth batch, has the largest losses.",
        Claim(96.0, 200, 27.3, "A100"),
        "K. Jordan, cifar10-airbench, airbench96_faster.py",
        {"hardest": 0.5},
        differs="The original trains the small network beforehand; here, to the same end, both learn side by side.",
    ),
}
