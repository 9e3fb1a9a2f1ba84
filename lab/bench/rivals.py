"""What lab/bench/bench.py measures: our step, what it is compared against, and the machine's ceilings. All on the CPU.

Every candidate is a function of a `Task` that builds it and returns (run, units): `run(count)` does the work
`count` times and returns when it is over; `units` says how much one of them is (images, GFLOP, GB). PROCESSES
says who shares a process: no rival has another's thread pools, nor the allocator's setting of lab/machine/memory.py
unless its name says so. So frameworks are imported inside the functions.

The training rivals get one ready float32 batch, so their input costs nothing; ours make each batch. They have
neither dropout nor other extras that DavidNet has not.
"""

import functools
import importlib.util
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab.base.errors import UserError
from lab.bench import rival_speedrun
from lab.machine import memory

Run = Callable[[int], None]
Built = tuple[Run, float]

RATE, MOMENTUM, WEIGHT_DECAY = 0.001, 0.9, 5e-4  # low: the steps are timed, not the learning
SGEMM_SIDE = 2048
COPY_BYTES = 2**28  # well beyond the caches
MAPPED_IMAGES = 5120  # the per-image map is slow; a pass over so many is enough
_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
# GNU's OpenMP threads spin for a while after each operation; idle, they must not take a core from others.
_PYTORCH = {"OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "-1"}
_HUGE_PAGES = {"GLIBC_TUNABLES": f"{memory.TUNABLE}=1"}  # as train_eager.py restarts with
PROCESSES: dict[str, dict[str, str]] = {  # the environment of each
    "numpy": {},
    "ours": _TENSORFLOW | _HUGE_PAGES,
    "tensorflow": _TENSORFLOW,
    "pytorch": _PYTORCH,
    "pytorch-hugepages": _PYTORCH | _HUGE_PAGES,  # so that the allocator's setting is told from the framework
}


@dataclass(frozen=True)
class Task:
    """How large the work is: images a step, filters of the first convolution, the .npz with the images."""

    batch_size: int
    width: int
    data: Path


@dataclass(frozen=True)
class Candidate:
    """One thing to measure.

    Args:
        section: the part of the table it is in: ceilings, steps, input or evaluation.
        process: one of PROCESSES.
        about: one line for the table's reader.
        module: imported first, so that its seconds are told apart from building; without it, left out.
        build: see the module's docstring.
        unit: of what `build` counts.
        beside: the candidate whose rate is divided by this one's, '' for none.
        usual: measured unless --only says otherwise.
    """

    section: str
    process: str
    about: str
    module: str
    build: Callable[[Task], Built]
    unit: str = "images"
    beside: str = ""
    usual: bool = True


@dataclass(frozen=True)
class Network:
    """A network to train: its usual size, GFLOP of a training step per image at a width, who trains it."""

    batch_size: int
    width: int
    gflop: Callable[[int], float]
    ours: tuple[str, ...]  # the first one is measured in the scaling tables
    candidates: Mapping[str, Candidate]


def missing(candidate: Candidate) -> str:
    """Why the candidate cannot be measured here, '' if it can."""
    if importlib.util.find_spec(candidate.module) is None:
        return f"{candidate.module} is not installed (pip install {candidate.module})"
    return ""


def make_images(path: Path, train: int, test: int) -> None:
    """Writes an .npz of noise with ten classes: the speed does not depend on what the images show."""
    images = np.random.default_rng(0).integers(0, 256, (train + test, 32, 32, 3), np.uint8)
    labels = np.arange(train + test) % 10
    np.savez(
        path, x_train=images[:train], y_train=labels[:train], x_test=images[train:], y_test=labels[train:]
    )


def davidnet_gflop(width: int) -> float:
    """GFLOP an image of a training step: forward and two gradients, two for a multiply-add; 2.28 at width 64.

    It counts direct convolutions. Batch norm, pools and the update are left out, as is usual.
    """
    c = width
    convolutions = (  # (side, inputs, outputs)
        [(32, 3, c), (32, c, 2 * c)]
        + 2 * [(16, 2 * c, 2 * c)]
        + [(16, 2 * c, 4 * c), (8, 4 * c, 8 * c)]
        + 2 * [(4, 8 * c, 8 * c)]
    )
    multiply_adds = sum(9 * side**2 * inputs * outputs for side, inputs, outputs in convolutions) + 10 * 8 * c
    return 6 * multiply_adds / 1e9


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ready_batch(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """float32 (B, 32, 32, 3) of unit deviation, int32 (B,)."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((task.batch_size, 32, 32, 3), np.float32)
    return images, generator.integers(0, 10, task.batch_size, np.int32)


# ---- ours --------------------------------------------------------------------------------------------------


@functools.cache
def _our_run(task: Task, pipeline: str, recipe: str = "davidnet") -> Any:
    """A training that is ready to go, with the batches by `pipeline`: host or device."""
    import train_eager
    from lab import options as settings
    from lab.ladder import recipes

    changes = {
        "data": str(task.data),
        "batch_size": task.batch_size,
        "width": task.width,
        "pipeline": pipeline,
        "device": "cpu",
        "precision": "float32",
        "out": tempfile.mkdtemp(prefix=f"run-{pipeline}-", dir=task.data.parent),  # each run wants its own
    }
    return train_eager.Run(settings.change(recipes.resolve(recipe, train_eager.constants()), changes))


def _our_steps(pipeline: str, recipe: str = "davidnet") -> Callable[[Task], Built]:
    """The step as a training runs it, a call each; nothing is fetched before the last."""

    def build(task: Task) -> Built:
        import tensorflow as tf

        run = _our_run(task, pipeline, recipe)
        done, source = 0, None

        def steps(count: int) -> None:
            nonlocal done, source
            for _ in range(count):
                epoch, step = divmod(done, run.steps_per_epoch)
                if step == 0:
                    source = run.pipeline.open(epoch + 1)
                run.train_steps(source, tf.constant(step), tf.constant(1))
                done += 1
            run.counters.fetch()

        return steps, task.batch_size

    return build


def _our_evaluation(task: Task) -> Built:
    run = _our_run(task, "device")

    def evaluate(count: int) -> None:
        for _ in range(count):
            float(run.evaluate()[0])  # waits

    return evaluate, len(run.images.test_labels)


# ---- the input ---------------------------------------------------------------------------------------------


def _read_images(task: Task) -> Any:
    from lab.images import load as data

    return data.load(str(task.data), seed=0)


def _our_pipeline(task: Task, *, on_host: bool) -> Any:
    """The training's pipeline over all images of the task, with DavidNet's augmentation."""
    from lab.images import load as data
    from lab.machine import pipeline
    from lab.machine.augment import Augmentation

    images = _read_images(task)
    augmentation = Augmentation(4, True, 8, *data.mean_std(images.train_images))
    kind = pipeline.HostPipeline if on_host else pipeline.DevicePipeline
    return kind(images.train_images, images.train_labels, augmentation, task.batch_size, 0, jit=True)


def _host_pipeline(task: Task) -> Built:
    """An epoch of the host's batches, from opening it to the last one."""
    source = _our_pipeline(task, on_host=True)
    epoch = 0

    def epochs(count: int) -> None:
        nonlocal epoch
        for _ in range(count):
            epoch += 1
            for images, _labels in source.open(epoch):
                images[0, 0, 0, 0].numpy()

    steps = source.count // task.batch_size
    return epochs, steps * task.batch_size


def _device_augmentation(task: Task) -> Built:
    """The device path's gather, crop, flip and cutout, compiled by themselves."""
    import tensorflow as tf

    source = _our_pipeline(task, on_host=False)
    opened = source.open(1)

    @tf.function(jit_compile=True)
    def batch(rows: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return source.decode(rows, seed)

    repeats = source.count // task.batch_size  # an epoch: one alone would be over in some milliseconds

    def batches(count: int) -> None:
        for _ in range(count):
            for step in range(repeats):
                batch(*source.take(opened, tf.constant(step)))[0][0, 0, 0, 0].numpy()

    return batches, repeats * task.batch_size


def _per_image_map(*, parallel: bool) -> Callable[[Task], Built]:
    """The tutorials' input: each image cropped, flipped and cut out by itself, batched after that."""

    def build(task: Task) -> Built:
        import tensorflow as tf

        from lab.images import load as data

        images = _read_images(task)
        mean, std = data.mean_std(images.train_images)
        count = min(MAPPED_IMAGES, len(images.train_labels))
        padded = data.reflect_pad(data.standardise(images.train_images[:count], mean, std), 4)

        def augment(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = tf.image.random_flip_left_right(tf.image.random_crop(image, [32, 32, 3]))
            top, left = (tf.random.uniform([], 0, 25, tf.int32) for _ in range(2))
            hole = tf.pad(tf.ones([8, 8, 1]), [[top, 24 - top], [left, 24 - left], [0, 0]])
            return image * (1.0 - hole), label

        mapped = tf.data.Dataset.from_tensor_slices((padded, images.train_labels[:count])).map(
            augment, num_parallel_calls=tf.data.AUTOTUNE if parallel else None
        )
        batches = mapped.shuffle(count).batch(task.batch_size, drop_remainder=True).prefetch(1)

        def passes(count: int) -> None:
            for _ in range(count):
                for images, _labels in batches:
                    images[0, 0, 0, 0].numpy()

        return passes, count // task.batch_size * task.batch_size

    return build


# ---- the eager tutorial ------------------------------------------------------------------------------------


def _pytorch_init(shape: Any, dtype: Any = None) -> Any:
    import tensorflow as tf

    bound = 1.0 / np.sqrt(np.prod(shape[:-1]))
    return tf.random.uniform(shape, -bound, bound, dtype or tf.float32)


def _tutorial_model(width: int) -> Any:
    """The tutorial's network of Keras layers: called with images and labels, it gives loss sum and hits."""
    import tensorflow as tf

    class ConvBN(tf.keras.Model):
        def __init__(self, filters: int) -> None:
            super().__init__()
            self.conv = tf.keras.layers.Conv2D(
                filters, 3, padding="same", kernel_initializer=_pytorch_init, use_bias=False
            )
            self.norm = tf.keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)

        def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
            return tf.nn.relu(self.norm(self.conv(inputs), training=training))

    class ResBlk(tf.keras.Model):
        def __init__(self, filters: int, pool: Any, res: bool = False) -> None:
            super().__init__()
            self.conv_bn, self.pool, self.res = ConvBN(filters), pool, res
            if res:
                self.res1, self.res2 = ConvBN(filters), ConvBN(filters)

        def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
            h = self.pool(self.conv_bn(inputs, training=training))
            if self.res:
                h = h + self.res2(self.res1(h, training=training), training=training)
            return h

    class DavidNet(tf.keras.Model):
        def __init__(self, c: int) -> None:
            super().__init__()
            pool = tf.keras.layers.MaxPooling2D()
            self.init_conv_bn = ConvBN(c)
            self.blk1 = ResBlk(2 * c, pool, res=True)
            self.blk2 = ResBlk(4 * c, pool)
            self.blk3 = ResBlk(8 * c, pool, res=True)
            self.pool = tf.keras.layers.GlobalMaxPool2D()
            self.linear = tf.keras.layers.Dense(10, kernel_initializer=_pytorch_init, use_bias=False)

        def call(self, x: tf.Tensor, y: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
            h = self.init_conv_bn(x, training=training)
            for block in (self.blk1, self.blk2, self.blk3):
                h = block(h, training=training)
            h = self.linear(self.pool(h)) * 0.125
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=h))
            hits = tf.equal(tf.argmax(h, axis=1, output_type=tf.int32), y)
            return loss, tf.reduce_sum(tf.cast(hits, tf.float32))

    return DavidNet(width)


def _tutorial(*, function: bool) -> Callable[[Task], Built]:
    """The loop of the DavidNet TF eager tutorial, ported to TensorFlow 2.

    Its fault stays: `g += ...` rebinds a name, so the weight decay is computed and never happens. `.numpy()`
    fetches loss and hits at every step. With `function`, the step is one tf.function, without XLA.
    """

    def build(task: Task) -> Built:
        import tensorflow as tf

        x, y = map(tf.constant, _ready_batch(task))
        model = _tutorial_model(task.width)
        opt = tf.keras.optimizers.SGD(RATE / task.batch_size, momentum=MOMENTUM, nesterov=True)
        model(x[:1], y[:1])  # makes the variables
        opt.build(model.trainable_variables)

        def step(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.GradientTape() as tape:
                loss, correct = model(x, y, training=True)
            var = model.trainable_variables
            grads = tape.gradient(loss, var)
            for g, v in zip(grads, var, strict=True):
                g += v * WEIGHT_DECAY * task.batch_size
            opt.apply_gradients(zip(grads, var, strict=True))
            return loss, correct

        run = tf.function(step) if function else step
        totals = [0.0, 0.0]

        def steps(count: int) -> None:
            for _ in range(count):
                loss, correct = run(x, y)
                totals[0] += loss.numpy()
                totals[1] += correct.numpy()

        return steps, task.batch_size

    return build


# ---- Keras -------------------------------------------------------------------------------------------------


def _keras_model(width: int) -> Any:
    """DavidNet of standard Keras layers, functional."""
    import tensorflow as tf

    layers = tf.keras.layers

    def conv_bn(x: Any, filters: int) -> Any:
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x))

    def block(x: Any, filters: int, residual: bool) -> Any:
        x = layers.MaxPooling2D()(conv_bn(x, filters))
        return layers.Add()([x, conv_bn(conv_bn(x, filters), filters)]) if residual else x

    images = tf.keras.Input((32, 32, 3))
    x = conv_bn(images, width)
    for factor, residual in ((2, True), (4, False), (8, True)):
        x = block(x, factor * width, residual)
    logits = layers.Dense(10, use_bias=False)(layers.GlobalMaxPooling2D()(x))
    return tf.keras.Model(images, layers.Rescaling(0.125)(logits))


def _keras_fit(jit_compile: Any) -> Callable[[Task], Built]:
    """`fit` over `count` batches of a tf.data set, silent.

    `train_on_batch` would fetch its metrics at every step; `fit` does so once an epoch.
    """

    def build(task: Task) -> Built:
        import tensorflow as tf

        batches = tf.data.Dataset.from_tensors(_ready_batch(task)).repeat()
        model = _keras_model(task.width)
        model.compile(
            tf.keras.optimizers.SGD(RATE, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY),
            tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=jit_compile,
        )

        def steps(count: int) -> None:
            model.fit(batches, steps_per_epoch=count, verbose=0)

        return steps, task.batch_size

    return build


# ---- PyTorch -----------------------------------------------------------------------------------------------


def _pytorch(*, compiled: bool) -> Callable[[Task], Built]:
    """cifar10-fast's network and update (torch.optim.SGD), float32, channels_last."""

    def build(task: Task) -> Built:
        import torch
        from torch import nn

        def conv_bn(inputs: int, outputs: int) -> nn.Module:
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

        class Residual(nn.Module):
            def __init__(self, channels: int) -> None:
                super().__init__()
                self.body = nn.Sequential(conv_bn(channels, channels), conv_bn(channels, channels))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + self.body(x)

        torch.set_num_threads(_processors())  # its own default may be the cores without their second threads
        c = task.width
        network = nn.Sequential(
            conv_bn(3, c),
            *(conv_bn(c, 2 * c), nn.MaxPool2d(2), Residual(2 * c)),
            *(conv_bn(2 * c, 4 * c), nn.MaxPool2d(2)),
            *(conv_bn(4 * c, 8 * c), nn.MaxPool2d(2), Residual(8 * c)),
            *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8 * c, 10, bias=False)),
        ).to(memory_format=torch.channels_last)

        def losses(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = network(images) * 0.125
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            return loss, (logits.detach().argmax(1) == labels).sum()

        forward = torch.compile(losses) if compiled else losses
        update = torch.optim.SGD(
            network.parameters(),
            lr=RATE / task.batch_size,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=WEIGHT_DECAY * task.batch_size,
        )
        arrays = _ready_batch(task)
        images = torch.from_numpy(arrays[0]).permute(0, 3, 1, 2)  # (B, 3, 32, 32) over channels-last memory
        labels = torch.from_numpy(arrays[1]).long()

        def steps(count: int) -> None:
            loss_sum, hits = torch.zeros(()), torch.zeros((), dtype=torch.long)
            for _ in range(count):
                update.zero_grad(set_to_none=True)
                loss, correct = forward(images, labels)
                loss.backward()
                update.step()
                loss_sum += loss.detach()
                hits += correct
            loss_sum.item(), hits.item()

        return steps, task.batch_size

    return build


# ---- the speedrun ------------------------------------------------------------------------------------------


def _pytorch_speedrun(task: Task) -> Built:
    """airbench94_muon's step, float32."""
    steps = rival_speedrun.pytorch(*_ready_batch(task), task.width, _processors())
    return steps, task.batch_size


def _newton_schulz(*, batched: bool) -> Callable[[Task], Built]:
    """Muon's orthogonalisation of all filters of the speedrun: one by one, or padded to one shape and stacked."""

    def build(task: Task) -> Built:
        import tensorflow as tf

        from lab.ladder.optimizers import orthogonalise

        c, generator = task.width, np.random.default_rng(0)
        shapes = [(c, 9 * rival_speedrun.WHITENED), (c, 9 * c), (4 * c, 9 * c), *[(4 * c, 36 * c)] * 3]
        matrices = [tf.constant(generator.standard_normal(shape), tf.float32) for shape in shapes]

        def together() -> list[tf.Tensor]:
            rows, columns = np.max(shapes, 0)
            padded = [tf.pad(m, [[0, rows - m.shape[0]], [0, columns - m.shape[1]]]) for m in matrices]
            x = tf.stack(padded)
            x = x / (tf.norm(x, axis=(1, 2), keepdims=True) + 1e-7)
            for _ in range(3):
                square = tf.matmul(x, x, transpose_b=True)
                x = 3.4445 * x + tf.matmul(-4.7750 * square + 2.0315 * tf.matmul(square, square), x)
            return [part[: m.shape[0], : m.shape[1]] for part, m in zip(tf.unstack(x), matrices, strict=True)]

        def one_by_one() -> list[tf.Tensor]:
            return [orthogonalise(matrix) for matrix in matrices]

        update = tf.function(together if batched else one_by_one, jit_compile=True)

        def updates(count: int) -> None:
            for _ in range(20 * count):
                update()[0][0, 0].numpy()

        return updates, 20

    return build


# ---- ceilings ----------------------------------------------------------------------------------------------

SGEMM_REPEATS, COPY_REPEATS = 10, 16  # about a second each on two cores


def _sgemm_matrices() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    shape = (2, SGEMM_SIDE, SGEMM_SIDE)
    left, right = generator.standard_normal(shape, np.float32)
    return left, right


def _sgemm_tensorflow(*, jit: bool) -> Callable[[Task], Built]:
    def build(task: Task) -> Built:
        import tensorflow as tf

        left, right = map(tf.constant, _sgemm_matrices())
        product = tf.function(tf.matmul, jit_compile=jit)

        def products(count: int) -> None:
            for _ in range(SGEMM_REPEATS * count):
                product(left, right)[0, 0].numpy()

        return products, SGEMM_REPEATS * 2 * SGEMM_SIDE**3 / 1e9

    return build


def _sgemm_numpy(task: Task) -> Built:
    left, right = _sgemm_matrices()
    result = np.empty_like(left)

    def products(count: int) -> None:
        for _ in range(SGEMM_REPEATS * count):
            np.matmul(left, right, out=result)

    return products, SGEMM_REPEATS * 2 * SGEMM_SIDE**3 / 1e9


def _copy(task: Task) -> Built:
    """A copy by all threads, a share each; read and written bytes both count, as in STREAM."""
    threads = _processors()
    source, target = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    shares = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    pool = ThreadPoolExecutor(threads)

    def copies(count: int) -> None:
        for _ in range(COPY_REPEATS * count):
            list(pool.map(lambda share: np.copyto(*share), shares))  # NumPy lets go of the lock

    return copies, COPY_REPEATS * 2 * COPY_BYTES / 1e9


# ---- the tables --------------------------------------------------------------------------------------------


def _ceiling(process: str, about: str, build: Callable[[Task], Built], unit: str) -> Candidate:
    return Candidate("ceilings", process, about, process, build, unit)


def _input(
    process: str, about: str, module: str, build: Callable[[Task], Built], beside: str = ""
) -> Candidate:
    return Candidate("input", process, about, module, build, beside=beside)


def _rival(
    about: str, module: str, build: Callable[[Task], Built], usual: bool = True, process: str = ""
) -> Candidate:
    process = process or {"train_eager": "ours", "torch": "pytorch"}.get(module, module)
    return Candidate("steps", process, about, module, build, beside="ours-device", usual=usual)


COMMON: dict[str, Candidate] = {
    "sgemm-numpy": _ceiling("numpy", "2048 x 2048 matrices, NumPy", _sgemm_numpy, "GFLOP"),
    "sgemm-tensorflow": _ceiling("tensorflow", "the same, tf.matmul", _sgemm_tensorflow(jit=False), "GFLOP"),
    "sgemm-xla": _ceiling("tensorflow", "the same, XLA", _sgemm_tensorflow(jit=True), "GFLOP"),
    "copy": _ceiling("numpy", "256 MiB, all threads", _copy, "GB"),
    "pipeline": _input("ours", "ours on the host, whole batches", "pipeline", _host_pipeline),
    "augmentation": _input("ours", "ours in the step, compiled alone", "pipeline", _device_augmentation),
    "map": _input(
        *("tensorflow", "per-image map, as the tutorials", "tensorflow", _per_image_map(parallel=False)),
        "pipeline",
    ),
    "map-parallel": _input(
        *("tensorflow", "that, in parallel (AUTOTUNE)", "tensorflow", _per_image_map(parallel=True)),
        "pipeline",
    ),
}

DAVIDNET: dict[str, Candidate] = {
    "ours-device": Candidate("steps", "ours", "batches in the step", "train_eager", _our_steps("device")),
    "ours-host": _rival("batches by tf.data", "train_eager", _our_steps("host")),
    "tutorial": _rival("the eager tutorial's loop", "tensorflow", _tutorial(function=False)),
    "tutorial-function": _rival("that, under tf.function", "tensorflow", _tutorial(function=True)),
    "keras-fit": _rival("fit, jit_compile='auto': no XLA on a CPU", "tensorflow", _keras_fit("auto")),
    "keras-fit-xla": _rival("fit, jit_compile=True", "tensorflow", _keras_fit(True), usual=False),
    "pytorch": _rival("PyTorch eager, channels_last", "torch", _pytorch(compiled=False)),
    "pytorch-hugepages": _rival(
        "that, with our allocator's setting", "torch", _pytorch(compiled=False), process="pytorch-hugepages"
    ),
    "pytorch-compile": _rival("torch.compile, channels_last", "torch", _pytorch(compiled=True)),
    "evaluation": Candidate(
        "evaluation", "ours", "loss and accuracy of a set", "train_eager", _our_evaluation
    ),
}

SPEEDRUN: dict[str, Candidate] = {
    "ours-device": Candidate(
        "steps", "ours", "batches in the step", "train_eager", _our_steps("device", "speedrun")
    ),
    "pytorch": _rival("PyTorch eager, channels_last", "torch", _pytorch_speedrun),
    "pytorch-hugepages": _rival(
        "that, with our allocator's setting", "torch", _pytorch_speedrun, process="pytorch-hugepages"
    ),
    "newton-schulz": Candidate(
        "update",
        "ours",
        "filter by filter",
        "lab.ladder.optimizers",
        _newton_schulz(batched=False),
        unit="update",
    ),
    "newton-schulz-batched": Candidate(
        *(
            "update",
            "ours",
            "padded and stacked",
            "lab.ladder.optimizers",
            _newton_schulz(batched=True),
            "update",
        ),
        beside="newton-schulz",
    ),
}

NETWORKS: dict[str, Network] = {
    "davidnet": Network(512, 64, davidnet_gflop, ("ours-device", "ours-host"), DAVIDNET),
    "speedrun": Network(2000, 64, rival_speedrun.gflop, ("ours-device",), SPEEDRUN),
}


def candidates(network: str) -> dict[str, Candidate]:
    """All candidates for a network, by name, in the order in which they take turns.

    Raises: UserError for a network that is not there.
    """
    if network not in NETWORKS:
        raise UserError(f"--network {network!r} is not known; choose from {', '.join(NETWORKS)}")
    return COMMON | dict(NETWORKS[network].candidates)
