"""Work on the data that is done once, and in batches, is nearly free; done image by image it costs several times more.

DavidNet's step is timed in the core's loop with its batches ready beforehand, made in batches by tf.data while the step
before runs, and made image by image, each standardised, padded, cropped, mirrored and cut out alone. Besides, the share
of the machine's peak that a step reaches: its products and sums over what the best product of matrices does in a
second. At 100 % the whole training would take the time that is printed, and no work on the data could make it shorter.

Source: D. C. Page, "How to train your ResNet", post 1. Batches made one by one at no cost would refute it; so would,
for the other half, batches made at once that cost as much as the step.

Small form: 3 to 10 minutes on two cores, on which nothing else may run; 2,048 images, widths 16 and 64.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from data import crop, cut_out, standardise
from lab.assemble import LabTraining
from lab.images.imageset import ImageSet
from lab.machine.resident import HostBatches
from lab.posts import training as tools
from lab.posts.frame import Finding, Record
from lab.report.figures import COLOURS

SMALL: Mapping[str, Any] = {
    "limit_train": 2_048,
    "limit_test": 500,  # of which nothing is used
    "batch_size": 128,
    "epochs": 3,  # of which the first, which compiles, does not count
    "widths": [16, 64],
    "product": 2_048,  # rows and columns of the matrices whose product is timed
}
ORIGINAL = {**SMALL, "limit_train": 0, "limit_test": 0, "batch_size": 512, "widths": [64], "product": 8_192}
WHOLE = 24 * 50_000  # images of DavidNet's training
FREE, SEVERAL = 1.1, 2.0  # times the step with its batches ready; times the data work in batches
REPEATS = 10
OPTIONS = tf.data.Options()
OPTIONS.autotune.enabled = False  # as the core's batches, see data.each_replica


class ReadyBatches(HostBatches):
    """The first epoch's batches, made beforehand, in every epoch."""

    def prepare(self) -> None:
        super().prepare()
        pixels, labels = zip(*super().open(1), strict=True)
        self.ready = (
            tf.data.Dataset.from_tensor_slices((tf.stack(pixels), tf.stack(labels))).prefetch(2).with_options(OPTIONS)
        )

    def open(self, epoch: int, done: int = 0) -> Iterator[Any]:
        return iter(self.ready)


class SingleBatches(HostBatches):
    """The same batches, each image made alone from its bytes."""

    def open(self, epoch: int, done: int = 0) -> Iterator[Any]:
        rows = self.rows(epoch)[done:]
        single = tf.data.Dataset.from_tensor_slices(rows.reshape(-1, rows.shape[-1])).map(self.one, tf.data.AUTOTUNE)
        return iter(single.batch(rows.shape[1], drop_remainder=True).prefetch(2).with_options(OPTIONS))

    def one(self, row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The image of a row (6,) of the plan, (32, 32, 3) float32, and its label, scalar int32."""
        number, top, left, mirrored, cut_top, cut_left = (value[None] for value in tf.unstack(row))
        image = standardise(tf.cast(tf.gather(self.images.train_images, number), tf.float32), self.mean, self.std)
        pad = [[self.config.pad] * 2] * 2
        image = crop(tf.pad(image, [[0, 0], *pad, [0, 0]], "REFLECT"), top, left, mirrored)
        return cut_out(image, cut_top, cut_left, self.config.cutout)[0], tf.gather(self.images.train_labels, number)[0]


WAYS = {"ready": ReadyBatches, "in batches": HostBatches, "one by one": SingleBatches}


def measure(sizes: tools.Sizes, images: ImageSet, seed: int) -> dict[str, Any]:
    """Seconds of `steps` by width and way, and of a `batch` alone by way; GFLOP a step by width; the peak, GFLOP/s."""
    steps, gflop = [], []
    for width in sizes["widths"]:
        training = tools.make(sizes, images, seed, width=width, pipeline="host")
        gflop.append(6 * training.multiply_adds(1) * training.config.batch_size / 1e9)
        ways = {way: kind(training.config, training.images, training.strategy) for way, kind in WAYS.items()}
        steps.append({way: seconds_a_step(training, batches) for way, batches in ways.items()})
    data = {way: seconds_a_batch(batches) for way, batches in ways.items()}
    return {"steps": steps, "batch": data, "gflop": gflop, "peak_gflops": peak(sizes["product"])}


def seconds_a_step(training: LabTraining, batches: HostBatches) -> float:
    """Of a training with these batches: seconds a step in the middle half of an epoch, the median of all but the first.

    Before it lie the opening of the pipeline and the batches that it made ahead; at the end none is left to make. An
    epoch has three steps at least.
    """
    training.batches, once, seconds = batches, tf.constant(1), []
    first = max(1, training.steps_per_epoch // 4)
    last = training.steps_per_epoch - first
    for epoch in range(1, training.config.epochs + 1):
        opened, marks = batches.open(epoch), []
        for step in range(1, training.steps_per_epoch + 1):
            training.train_steps(opened, once)
            if step in (first, last):
                training.fetch()  # waits
                marks.append(time.perf_counter())
        seconds.append((marks[1] - marks[0]) / (last - first))
    return statistics.median(seconds[1:])


def seconds_a_batch(batches: HostBatches) -> float:
    """Of making a batch while nothing else is done: the mean over an epoch after its first."""
    made = batches.open(1)
    next(made)
    start, count = time.perf_counter(), 0
    for pixels, _ in made:
        pixels.numpy()
        count += 1
    return (time.perf_counter() - start) / count


def peak(side: int) -> float:
    """GFLOP/s of the best of several products of float32 matrices (side, side)."""
    matrix = tf.random.stateless_normal([side, side], [0, 0])
    multiply = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    multiply()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        multiply().numpy()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e9


def judge(record: Record) -> list[Finding]:
    sizes, found = record["sizes"], []
    for width, steps, gflop in zip(sizes["widths"], record["steps"], record["gflop"], strict=True):
        ready, at_peak = steps["ready"], gflop / record["peak_gflops"]  # seconds a step
        times = steps["in batches"] / ready
        what = f"width {width}: a step with batches made by tf.data beside one with them ready"
        found.append(Finding(what, f"below {FREE:g} times", f"{times:.2f} times", times < FREE))
        times = steps["one by one"] / ready
        found.append(
            Finding(
                f"width {width}: and with images made one by one",
                f"above {FREE:g} times",
                f"{times:.2f} times",
                times > FREE,
            )
        )
        hours = at_peak / sizes["batch_size"] * WHOLE / 3600
        share = f"{at_peak / ready:.0%} of {record['peak_gflops']:.0f} GFLOP/s; {hours:.1f} hours at 100 %"
        what = f"width {width}: share of the peak, and DavidNet's 24 epochs"
        found.append(Finding(what, "below 100 %", share, at_peak < ready))
    times = record["batch"]["one by one"] / record["batch"]["in batches"]
    what = "making the images of a batch one by one, beside at once"
    found.append(Finding(what, f"more than {SEVERAL:g} times", f"{times:.1f} times", times > SEVERAL))
    return found


def draw(record: Record, figure: Any) -> None:
    widths = record["sizes"]["widths"]
    panels = figure.subplots(1, len(widths) + 1)
    for axes, width, steps, gflop in zip(panels, widths, record["steps"], record["gflop"], strict=False):
        axes.bar(range(len(WAYS)), [1000 * steps[way] for way in WAYS], color=COLOURS[0])
        limit = 1000 * gflop / record["peak_gflops"]
        axes.axhline(limit, color="black", ls="--", lw=1, label="at the machine's peak")
        axes.set(title=f"a step, width {width}", ylabel="milliseconds")
        axes.margins(y=0.15)
        axes.legend(fontsize=8, loc="upper left")
    panels[-1].bar(range(len(WAYS)), [1000 * record["batch"][way] for way in WAYS], color=COLOURS[1])
    panels[-1].set(title="the batch alone", ylabel="milliseconds")
    for axes in panels:
        axes.set_xticks(range(len(WAYS)), WAYS, fontsize=8)
