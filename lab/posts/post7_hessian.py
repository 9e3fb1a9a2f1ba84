"""What limits the rate without batch norm is a few directions of high curvature, which move the outputs' means.

Two networks of eight layers, with batch norm and without, are trained half-way. Then, for the first with batch norm
active (each batch's statistics), the same frozen (the running statistics) and the second: the leading eigenvalues of
the loss' Hessian by the weights; the share of each eigenvector in the span of the ten gradients of the outputs' means;
and what the network answers after a step along such a gradient, as long as a share of the weights' norm |w|.

The loss is cross-entropy plus half the mean of -log p over the classes, which keeps the outputs small; since that is
1.5 times a cross-entropy smoothed by 1/3, the core trains it with 1.5 times the rate and 1/1.5 of the decay. Softplus
stands for ReLU. Gradient descent on the mean loss is stable up to a rate of 2 / (largest eigenvalue).

Source: D. C. Page, "How to train your ResNet", post 7 (cifar10-fast, batch_norm_post.ipynb: eigenvalues 128, 2,246 and
3,486 of the loss summed over 256 images, so 0.50, 8.8 and 13.6 of its mean; n = 1). It is refuted if freezing
batch norm does not raise the largest eigenvalue, or the leading eigenvectors lie outside that span. Needs SciPy.

Small form: width 16, 5,120 images in batches of 128 for 10 epochs, Hessian on 512; five minutes on two cores.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from lab.images.imageset import ImageSet
from lab.posts import hessian
from lab.posts.eight_layers import make_training
from lab.posts.frame import Finding
from lab.posts.hessian import Derivatives
from lab.posts.training import batches as batches_of
from lab.report.figures import COLOURS, GREY
from train_eager import Training, cross_entropy_sum

ORIGINAL = {"width": 64, "batch_size": 512, "epochs": 20, "stop_after": 10, "part": 256, "parts": 80, "eigenpairs": 25}
SMALL = {"width": 16, "batch_size": 128, "epochs": 20, "stop_after": 10, "limit_train": 5120, "limit_test": 100,
         "part": 128, "parts": 4, "eigenpairs": 10}  # fmt: skip
PEAKS = {True: 5.0, False: 0.2}  # of the rate, with and without batch norm
FACTOR, SMOOTHING = 1.5, 1 / 3  # the loss is FACTOR times a smoothed cross-entropy, see above
STEPS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)  # of |w|
STATES = {"batch norm": "batch norm", "frozen": "batch norm, frozen", "none": "no batch norm"}
PAGE = {"batch norm": 127.87 / 256, "frozen": 2245.98 / 256, "none": 3486.07 / 256}
HIGHER, GAP = 5, 1.5  # times, that the largest eigenvalue without batch norm and the last outlier are above the others
OUTLIERS = 9  # eigenvalues: the means of ten outputs, but for their sum, which changes no answer


def measure(sizes: Mapping[str, Any], images: ImageSet, seed: int) -> dict[str, Any]:
    """Of each state: eigenvalues, shares in the span, answers by length of step, and how the training went."""
    measured: dict[str, Any] = {}
    for norm in (True, False):
        knots = f"0,0 4,{FACTOR * PEAKS[norm]} {sizes['epochs']},0"
        changes = {"knots": knots, "label_smoothing": SMOOTHING, "weight_decay": 1e-4 / FACTOR}
        training = make_training(sizes, images, seed, norm=norm, smooth=True, **changes)
        rows = [moment.row for moment in training.run() if moment.row]
        first = sizes["stop_after"] * training.steps_per_epoch
        if norm:  # the running statistics follow the last weights
            for pixels, _ in batches_of(training, first, training.steps_per_epoch):
                training.network(pixels, training=True)
        part = sizes["part"]
        parts = [(pixels[:part], labels[:part]) for pixels, labels in batches_of(training, first, sizes["parts"])]
        for name in ("frozen", "batch norm") if norm else ("none",):  # frozen first: active ones move the statistics
            measured[name] = of_state(training, parts, sizes["eigenpairs"], seed, active=name == "batch norm")
            measured[name]["train_accuracy"] = rows[-1]["train_accuracy"]
    return {"states": measured, "steps": list(STEPS)}


def of_state(training: Training, parts: list[Any], eigenpairs: int, seed: int, *, active: bool) -> dict[str, Any]:
    """Eigenvalues, shares and answers of a network as it is; `active`: with the batches' own statistics."""
    network, weights = training.network, training.weights

    def loss_mean(pixels: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        loss_sum = cross_entropy_sum(network(pixels, training=active), labels, SMOOTHING)
        return FACTOR * loss_sum / pixels.shape[0]

    def means(pixels: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(network(pixels, training=active), 0)

    of_loss, of_means = Derivatives(loss_mean, weights, parts), Derivatives(means, weights, parts)
    classes = network.head.units
    gradients = [of_means.gradient(one) for one in np.eye(classes, dtype=np.float32)]
    norm = float(np.linalg.norm(hessian.flat(weights).numpy()))
    values, vectors = hessian.leading(of_loss.product, gradients[0].size, eigenpairs, seed, 1e-2)
    random = np.random.default_rng([seed, 7]).standard_normal(gradients[0].size).astype(np.float32)

    def share_answering(label: int, direction: hessian.Vector, length: float) -> float:
        step = direction * (length * norm / np.linalg.norm(direction))
        with hessian.moved(network, step.astype(np.float32)):
            answers = network(parts[0][0], training=active).numpy().argmax(1)
        return float(np.mean(answers == label))

    return {
        "eigenvalues": values.tolist(),
        "share_in_span": [hessian.share_in_span(vector, gradients) for vector in vectors],
        "answers": [[share_answering(k, gradients[k], step) for k in range(classes)] for step in STEPS],
        "answers_random": [[share_answering(k, random, step) for k in range(classes)] for step in STEPS],
        "weights_norm": norm,
        "gradient_norms": [float(np.linalg.norm(gradient)) for gradient in gradients],
    }


def judge(record: Mapping[str, Any]) -> list[Finding]:
    """The largest eigenvalues, the shares of the outliers, and the answers after a step of 1 %."""
    states = record["states"]
    largest = {name: states[name]["eigenvalues"][0] for name in STATES}
    at = record["steps"].index(0.01)
    found = []
    for name, about in STATES.items():
        higher = largest[name] / largest["batch norm"]
        expected, text = f"Page: {PAGE[name]:.2g}", f"{largest[name]:.2g}"
        if name != "batch norm":
            times = PAGE[name] / PAGE["batch norm"]
            expected = f"above {HIGHER} times batch norm's ({expected}, {times:.0f} times)"
            text += f", {higher:.1f} times"
        holds = None if name == "batch norm" else higher > HIGHER
        found.append(Finding(f"largest eigenvalue, {about}", expected, text, holds))
    shares = states["frozen"]["share_in_span"][:OUTLIERS]
    text = f"{min(shares):.2f} to {max(shares):.2f}, mean {np.mean(shares):.2f}"
    found.append(
        Finding(
            f"frozen: share of the {OUTLIERS} leading eigenvectors in the span",
            "above 0.5 in the mean (Page: 0.80 to 0.86)",
            text,
            bool(np.mean(shares) > 0.5),
        )
    )
    values = states["frozen"]["eigenvalues"]
    text = f"{values[OUTLIERS - 1]:.2g}, then {values[OUTLIERS]:.2g}"
    found.append(
        Finding(
            f"frozen: eigenvalue {OUTLIERS} and the next",
            f"a gap, {GAP:g} times",
            text,
            values[OUTLIERS - 1] > GAP * values[OUTLIERS],
        )
    )
    for name, about in STATES.items():
        answers = float(np.mean(states[name]["answers"][at]))
        expected = "over half" if name != "batch norm" else "fewer than the others"
        others = min(np.mean(states[other]["answers"][at]) for other in ("frozen", "none"))
        holds = answers > 0.5 if name != "batch norm" else answers < others
        found.append(
            Finding(
                f"images answered with the class after a step of 1 %, {about}", expected, f"{answers:.0%}", bool(holds)
            )
        )
    return found


def draw(record: Mapping[str, Any], figure: Any) -> None:
    """Eigenvalues, shares in the span, and answers by the step's length."""
    figure.set_size_inches(11, 4)
    values, shares, answers = figure.subplots(1, 3)
    for (name, about), colour in zip(STATES.items(), COLOURS, strict=False):
        state = record["states"][name]
        index = np.arange(1, len(state["eigenvalues"]) + 1)
        values.plot(index, np.abs(state["eigenvalues"]), "o-", color=colour, label=about)
        values.axhline(PAGE[name], color=colour, linestyle="--", linewidth=1)
        shares.plot(index, state["share_in_span"], "o-", color=colour)
        percent = 100 * np.array(record["steps"])
        answers.plot(percent, np.mean(state["answers"], 1), "o-", color=colour)
        answers.plot(percent, np.mean(state["answers_random"], 1), ":", color=colour)
    values.plot([], [], "--", color=GREY, linewidth=1, label="largest, Page")
    values.set(yscale="log", xlabel="number of the eigenvalue", ylabel="eigenvalue of the mean loss' Hessian, size")
    shares.set(xlabel="number of the eigenvector", ylabel="share in the span of the means' gradients", ylim=(0, 1))
    answers.plot([], [], ":", color=GREY, label="a random direction")
    answers.axvline(1, color=GREY, linewidth=1)
    answers.set(xscale="log", xlabel="step (% of |w|)", ylabel="images answered with the chosen class", ylim=(0, 1))
    answers.set_xticks(percent, [f"{value:g}" for value in percent])
    answers.minorticks_off()
    for axes in (values, answers):
        axes.legend(fontsize="small")
