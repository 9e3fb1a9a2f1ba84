"""Trains DavidNet on CIFAR-10 with a GradientTape loop: 24 epochs to about 94 %.

    python train_eager.py                        # the recipe below, on a TPU, else on GPUs, else on the CPU
    python train_eager.py --epochs 10 --seed 3   # each hyperparameter is a flag; -h lists them

    >>> from train_eager import train
    >>> training, rows = train(epochs=10)

Recipe and numbers: D. C. Page's cifar10-fast (dawn.py before October 2019). Start reading at Training._train_step.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

# fmt: off
# ---- Hyperparameters: edit here, or give the flag of the same name (--batch-size 256). ---------------------
EPOCHS = 24  #@param {type:"integer"}
BATCH_SIZE = 512  #@param {type:"integer"}
LEARNING_RATE = 0.4  #@param {type:"number"}
WARMUP_EPOCHS = 5 / 24 * EPOCHS  #@param {type:"raw"}
MOMENTUM = 0.9  #@param {type:"number"}
WEIGHT_DECAY = 5e-4  #@param {type:"number"}
LABEL_SMOOTHING = 0.0  #@param {type:"number"}
WIDTH = 64  #@param {type:"integer"}
LOGIT_SCALE = 0.125  #@param {type:"number"}
PAD = 4  #@param {type:"integer"}
FLIP = "random"  #@param ["none", "random"]
CUTOUT = 8  #@param {type:"integer"}
SEED = 0  #@param {type:"integer"}
DATA = ""  #@param {type:"string"}
DEVICE = "auto"  #@param ["auto", "cpu", "gpu", "tpu"]
PRECISION = "auto"  #@param ["auto", "float32", "bfloat16", "float16"]
JIT = True  #@param {type:"boolean"}
EAGER = False  #@param {type:"boolean"}
STOP_AFTER = 0  #@param {type:"integer"}
CHECKPOINT_DIR = ""  #@param {type:"string"}


def option(default: Any, about: str, low: Any = None, high: Any = None, choices: Sequence[str] = ()) -> Any:
    """A field of Config: its default, what it is, and the values that it may take (low and high included)."""
    return field(default=default, metadata={"about": about, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Config:
    """DavidNet's hyperparameters."""

    epochs: int = option(EPOCHS, "passes over the training set", 1, 100_000)
    batch_size: int = option(BATCH_SIZE, "images per step, over all replicas together", 1, 1_000_000)
    learning_rate: float = option(LEARNING_RATE, "its peak, for the mean loss", 0, 1e6)
    warmup_epochs: float = option(WARMUP_EPOCHS, "in which the rate rises; keeps its share of --epochs", 0, 1e5)
    momentum: float = option(MOMENTUM, "Nesterov's, with the rate outside the accumulator", 0, 0.9999)
    weight_decay: float = option(WEIGHT_DECAY, "times the weights, added to the mean loss' gradient", 0, 1e3)
    label_smoothing: float = option(LABEL_SMOOTHING, "share of the target spread over all classes", 0, 0.9999)
    width: int = option(WIDTH, "filters of the first convolution; the others have 2, 4, 8 times as many", 1, 4096)
    logit_scale: float = option(LOGIT_SCALE, "factor on the last layer's outputs", 0, 1e6)
    pad: int = option(PAD, "pixels of reflection around an image, before its random crop", 0, 31)
    flip: str = option(FLIP, "mirror a random half of the images, or none", choices=("none", "random"))
    cutout: int = option(CUTOUT, "side of the square of zeros in a training image, pixels", 0, 32)
    seed: int = option(SEED, "for the first weights, the order of the images and their augmentation", 0, 2**31 - 1)
    data: str = option(DATA, "folder cifar-10-batches-py, or an .npz; empty: ./data, downloaded if missing")
    device: str = option(DEVICE, "auto: TPU, else GPUs, else CPU", choices=("auto", "cpu", "gpu", "tpu"))
    precision: str = option(PRECISION, "auto: 16 bits where faster", choices=("auto", "float32", "bfloat16", "float16"))
    jit: bool = option(JIT, "compile the step with XLA where that is faster; --no-jit if that fails (cuDNN 9.3 to 9.5)")
    eager: bool = option(EAGER, "run operation by operation, for debugging; slow")
    stop_after: int = option(STOP_AFTER, "end after this many epochs, the schedule as it is; 0: do all", 0, 100_000)
    checkpoint_dir: str = option(CHECKPOINT_DIR, "folder for a checkpoint after each epoch, from which to go on")

    def __post_init__(self) -> None:
        """Raises ValueError for a value of a wrong type or out of range."""
        for item in fields(self):
            name, value, limits = item.name, getattr(self, item.name), item.metadata
            kinds: tuple[Any, ...] = (float, int) if item.type is float else (item.type,)
            if type(value) not in kinds:
                raise ValueError(f"{name} is {value!r}; give {' or '.join(kind.__name__ for kind in kinds)}")
            if limits["choices"] and value not in limits["choices"]:
                raise ValueError(f"{name} {value!r} is not known; choose from {', '.join(limits['choices'])}")
            if limits["low"] is not None and not limits["low"] <= value <= limits["high"]:
                raise ValueError(f"{name} {value} is out of range; give {limits['low']:g} to {limits['high']:.10g}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} is not below epochs {self.epochs}; lower it")
        if self.stop_after > self.epochs:
            raise ValueError(f"stop_after {self.stop_after} is above epochs {self.epochs}; lower it")
# fmt: on


def add_flags(parser: Any, options: Any) -> None:
    """A flag for each field of a dataclass such as Config: --batch-size for batch_size."""
    for item in fields(options):
        limits = item.metadata
        about = limits["about"] + (f"; {limits['low']:g} to {limits['high']:.10g}" if limits["high"] else "")
        how: dict[str, Any] = {"type": item.type, "choices": limits["choices"] or None}
        if item.type is bool:
            how = {"action": argparse.BooleanOptionalAction}
        about = f"{about} (default: {item.default!r})".replace("%", "%%")
        parser.add_argument("--" + item.name.replace("_", "-"), default=argparse.SUPPRESS, help=about, **how)


if __name__ == "__main__" and Path(__file__).with_name("lab").is_dir():
    from lab.start import main as lab_main  # more flags and the same Training, but not `train` and `main` below

    sys.exit(lab_main(Config, add_flags))  # here, before TensorFlow loads, so that -h answers at once

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # less of TensorFlow's start-up chatter

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from data import Batches, Images, UserError, load
from model import DavidNet
from schedule import PiecewiseLinear, triangle

# ---- device and precision ----------------------------------------------------------------------------------


# One of a kind for all trainings, also where a notebook runs its cell again: TensorFlow confuses the sums of two.
STRATEGIES: dict[str, tf.distribute.Strategy] = globals().get("STRATEGIES", {})


def choose_strategy(device: str) -> tf.distribute.Strategy:
    """This machine's TPU, else all its GPUs, else its CPU; or what `device` names: UserError if that is not there."""
    if device == "tpu" or (device == "auto" and tf.config.list_physical_devices("TPU")):
        if "tpu" not in STRATEGIES:  # if it is set up anew, it forgets its variables
            try:
                resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
                tf.config.experimental_connect_to_cluster(resolver)
                tf.tpu.experimental.initialize_tpu_system(resolver)
                STRATEGIES["tpu"] = tf.distribute.TPUStrategy(resolver)
            except (tf.errors.OpError, RuntimeError, ValueError) as error:
                why = str(error).partition("\n")[0][:150]
                raise UserError(f"--device tpu: none answers ({why}); install tensorflow-tpu") from None
        return STRATEGIES["tpu"]
    gpus = [gpu.name for gpu in tf.config.list_logical_devices("GPU")] if device != "cpu" else []
    if device == "gpu" and not gpus:
        raise UserError("--device gpu: TensorFlow sees none; install tensorflow[and-cuda]")
    if len(gpus) > 1:
        STRATEGIES["gpus"] = STRATEGIES.get("gpus") or tf.distribute.MirroredStrategy(gpus)
        return STRATEGIES["gpus"]
    return tf.distribute.OneDeviceStrategy(gpus[0] if gpus else "/cpu:0")


def choose_precision(precision: str, kind: str) -> str:
    """`precision`, with auto resolved for a kind of device, "CPU", "GPU" or "TPU".

    float32 on CPUs; bfloat16 on TPUs and on GPUs since Ampere, compute capability 8; float16 on older ones.
    """
    if precision != "auto":
        return precision
    if kind == "CPU":
        return "float32"
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    oldest = min((gpu.get("compute_capability", (7, 0)) for gpu in details), default=(8, 0))  # none: a TPU
    return "bfloat16" if oldest >= (8, 0) else "float16"


# ---- the loss and the update -------------------------------------------------------------------------------


class EpochRate(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Of update k = 1, 2, ...: the schedule at epoch k / steps_per_epoch, over the batch size (see make_optimizer)."""

    def __init__(self, schedule: PiecewiseLinear, epochs: int, steps_per_epoch: int, batch_size: int) -> None:
        epoch = np.arange(1, epochs * steps_per_epoch + 1) / steps_per_epoch  # as in dawn.py
        self.rates = tf.constant(schedule(epoch) / batch_size, tf.float32)  # one per update

    def __call__(self, step: Any) -> tf.Tensor:
        # gather, not self.rates[...]: to a slice XLA wants a constant, and would compile again at every step.
        return tf.gather(self.rates, tf.minimum(tf.cast(step, tf.int32), self.rates.shape[0] - 1))


class Nesterov(tf.keras.optimizers.Optimizer):
    """Nesterov momentum in the form of PyTorch and TensorFlow 1, with which DavidNet's results were made:

        a <- momentum a + g
        w <- w - rate (g + momentum a)

    Keras' SGD(nesterov=True), and cifar10-fast since October 2019, have the rate inside a: it lags a rise by 9 steps.
    Keras sums the gradients over the replicas before it calls `update_step`.
    """

    def __init__(self, learning_rate: Any, momentum: float = 0.9, name: str = "nesterov") -> None:
        super().__init__(learning_rate=learning_rate, name=name)
        self.momentum = momentum
        self.accumulators: list[Any] = []

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            super().build(variables)
            self.accumulators = [self.add_variable_from_reference(v, name="accumulator") for v in variables]

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        accumulator = self.accumulators[self._get_variable_index(variable)]
        moved = self.momentum * tf.convert_to_tensor(accumulator) + gradient
        self.assign(accumulator, moved)
        self.assign_sub(variable, learning_rate * (gradient + self.momentum * moved))


class LossScale(tf.keras.optimizers.LossScaleOptimizer):
    """Keras' loss scaling, for float16, in which small gradients would round to zero.

    A step whose gradients are not finite is skipped, on all replicas; Keras would ask the first one only.
    """

    def check_finite(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        own = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        replica = tf.distribute.get_replica_context()
        finite = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(own, tf.int32))
        return tf.equal(finite, replica.num_replicas_in_sync)


def cross_entropy_sum(logits: tf.Tensor, labels: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Softmax cross-entropy of logits (N, classes) float32, summed over the batch: float32 scalar.

    A label (N,) int32 of -1 fills up a batch and adds 0. `smoothing`: share of the target for all classes alike.
    """
    classes = logits.shape[-1]
    counted = tf.cast(labels >= 0, tf.float32)[:, None]
    targets = (1.0 - smoothing) * tf.one_hot(labels, classes) + smoothing / classes * counted
    return -tf.reduce_sum(targets * tf.nn.log_softmax(logits))


def count_correct(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """How many images have their largest logit at their label: float32 scalar."""
    return tf.reduce_sum(tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32))


# ---- the loop ----------------------------------------------------------------------------------------------


def make_network(config: Config, images: Images) -> tf.keras.Model:
    """A new network, with its initial weights."""
    network = DavidNet(len(images.classes), width=config.width, logit_scale=config.logit_scale, seed=config.seed)
    network(tf.zeros([1, 32, 32, 3]))  # Keras makes the variables in the first call
    return network


def make_optimizer(config: Config, network: Any, steps_per_epoch: int) -> tuple[Any, list[float]]:
    """The optimizer and each weight's decay.

    The loss is summed, not averaged, so that replicas' gradients just add up; they are batch_size times the mean's.
    So the rate is divided by batch_size and the decay multiplied by it, which makes the update of the mean loss.
    """
    schedule = triangle(config.epochs, config.warmup_epochs, config.learning_rate)
    rate = EpochRate(schedule, config.epochs, steps_per_epoch, config.batch_size)
    decay = config.weight_decay * config.batch_size  # batch norm's scales and shifts decay too
    return Nesterov(rate, config.momentum), [decay] * len(network.trainable_variables)


class Moment(NamedTuple):
    """How far a training is: the epoch, its steps done so far and, once it is over, its row of results."""

    epoch: int
    step: int
    row: dict[str, float] | None = None


class Training:
    """Devices, data, network and optimizer, made once; and `run`, the loop.

    Args:
        config: the hyperparameters.
        strategy, images: devices and data set; by default what config.device and config.data say.
        network, optimizer, batches: what makes them; skip these at a first reading. Hand in your own for another
            recipe, with the arguments of make_network, make_optimizer and data.Batches.
        xla_on_cpu: compile with XLA on a CPU too. TensorFlow's own kernels are faster there for these layers.

    Raises UserError if the device or the data is not there, or the batch size does not fit.
    """

    def __init__(
        self,
        config: Config,
        *,
        strategy: tf.distribute.Strategy | None = None,
        images: Images | None = None,
        network: Callable[[Any, Images], tf.keras.Model] = make_network,
        optimizer: Callable[[Any, Any, int], tuple[Any, list[float]]] = make_optimizer,
        batches: Callable[[Any, Images, Any], Any] = Batches,
        xla_on_cpu: bool = False,
    ) -> None:
        self.config = config
        self.strategy = strategy or choose_strategy(config.device)
        self.images = images or load(config.data)
        self.replicas = self.strategy.num_replicas_in_sync
        self.kind = tf.DeviceSpec.from_string(self.strategy.extended.worker_devices[0]).device_type
        self.precision = choose_precision(config.precision, self.kind)
        # What a checkpoint must agree in: not where, how or how long a training runs.
        free = ("data", "device", "precision", "jit", "eager", "stop_after", "checkpoint_dir")
        self.identity = {name: value for name, value in asdict(config).items() if name not in free}
        self.identity["images"] = [len(self.images.train_labels), len(self.images.classes)]
        count = len(self.images.train_labels)
        self.steps_per_epoch = count // config.batch_size  # the last, partial batch is dropped
        if config.batch_size > count or config.batch_size % self.replicas:
            raise UserError(
                f"--batch-size {config.batch_size} is more than the {count} training images or not divisible by "
                f"{self.replicas} replicas; try {min(config.batch_size, count) // self.replicas * self.replicas}"
            )
        # XLA compiles for one device, and the sum over replicas is in the step; a TPU's strategy compiles by itself.
        is_faster = self.kind == "GPU" or (self.kind == "CPU" and xla_on_cpu)
        self.jit = config.jit and is_faster and self.replicas == 1 and not config.eager
        tf.config.run_functions_eagerly(config.eager)
        # Activations and convolutions are in this precision; weights, statistics, loss and update in float32.
        before = tf.keras.config.dtype_policy()
        tf.keras.config.set_dtype_policy("float32" if self.precision == "float32" else f"mixed_{self.precision}")
        with self.strategy.scope():
            self.network = network(config, self.images)
            self.weights = self.network.trainable_variables
            self.optimizer, self.decays = optimizer(config, self.network, self.steps_per_epoch)
            if self.precision == "float16":
                self.optimizer = LossScale(self.optimizer, initial_scale=2.0**6)  # Keras' 2**15, over 512 summed images
            self.optimizer.build(self.weights)
            inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)  # no loss scale in a checkpoint:
            self.variables = (*self.network.variables, *inner.variables)  # a card of another precision can go on
            self.batches = batches(config, self.images, self.strategy)
            self.test_batches, self.steps_per_test = self.batches.test()
            # Summed loss and count of correct answers: each replica adds to its own copy, a read sums the copies.
            on_read, total = tf.VariableSynchronization.ON_READ, tf.VariableAggregation.SUM
            self.sums = tf.Variable([0.0, 0.0], trainable=False, synchronization=on_read, aggregation=total)
        tf.keras.config.set_dtype_policy(before)  # each layer keeps its own
        self.train_step = tf.function(self._train_step, jit_compile=self.jit)
        self.test_step = tf.function(self._test_step, jit_compile=self.jit)

    def _train_step(self, *batch: tf.Tensor) -> None:
        """One update, on each replica with its part of the batch."""
        images, labels = self.batches.decode(*batch)  # (b, 32, 32, 3), (b,)
        scale = self.optimizer.scale_loss(1.0)  # 1, except in float16
        with tf.GradientTape() as tape:
            logits = self.network(images, training=True)  # (b, classes)
            loss_sum = cross_entropy_sum(logits, labels, self.config.label_smoothing)
            scaled_loss = scale * loss_sum
        gradients = tape.gradient(scaled_loss, self.weights)
        # A new list: `g += decay * w` in a loop would rebind a name, and the decay would never happen.
        # Each replica adds its share of it, since the optimizer sums the gradients over the replicas.
        decays = [scale * decay / self.replicas for decay in self.decays]
        gradients = [g + d * tf.convert_to_tensor(w) for g, d, w in zip(gradients, decays, self.weights, strict=True)]
        self.optimizer.apply(gradients, self.weights)
        self.sums.assign_add([loss_sum, count_correct(logits, labels)])

    def _test_step(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        logits = self.network(images, training=False)
        self.sums.assign_add([cross_entropy_sum(logits, labels), count_correct(logits, labels)])

    @tf.function
    def train_steps(self, batches: Iterator[Any], count: tf.Tensor) -> None:
        """`count` steps in one call to the device; a tensor, since each Python number would be traced anew."""
        for _ in tf.range(count):
            self.strategy.run(self.train_step, next(batches))

    @tf.function
    def test_steps(self, batches: Iterator[Any], count: tf.Tensor) -> None:
        for _ in tf.range(count):
            self.strategy.run(self.test_step, next(batches))

    def fetch(self) -> tuple[float, float]:
        """Summed loss and count of correct answers since the last fetch. Waits for the device."""
        loss_sum, correct = tf.convert_to_tensor(self.sums).numpy()
        self.sums.assign(tf.zeros([2]))
        return float(loss_sum), float(correct)

    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy, 0 to 1, on the test set."""
        unfinished = self.fetch()  # of an epoch under way
        self.test_steps(iter(self.test_batches), tf.constant(self.steps_per_test))
        loss_sum, correct = self.fetch()
        self.sums.assign(tf.constant(unfinished))
        return loss_sum / len(self.images.test_labels), correct / len(self.images.test_labels)

    def run(self, first: int = 1, step: int = 0) -> Iterator[Moment]:
        """Trains from epoch `first` on, after its first `step` steps. Yields after each call, and each epoch's row.

        Between two yields the caller may show, save or stop; the loop itself fetches nothing from the device within
        an epoch. Who starts at step > 0 restores `sums` too. Raises FloatingPointError when the loss is not finite.
        """
        steps_a_call = 1 if self.kind == "CPU" else 10  # an accelerator's step is short beside a call from Python
        for epoch in range(first, (self.config.stop_after or self.config.epochs) + 1):
            start, batches = time.perf_counter(), self.batches.open(epoch, step)
            while step < self.steps_per_epoch:
                count = min(steps_a_call, self.steps_per_epoch - step)
                self.train_steps(batches, tf.constant(count))
                step += count
                yield Moment(epoch, step)
            loss_sum, correct = self.fetch()  # waits for the device, so that the clock is right
            seconds = time.perf_counter() - start
            test_loss, test_accuracy = self.evaluate()
            seen = self.steps_per_epoch * self.config.batch_size
            row = {"epoch": epoch, "train_loss": loss_sum / seen, "train_accuracy": correct / seen}
            row |= {"test_loss": test_loss, "test_accuracy": test_accuracy, "train_seconds": seconds}
            if not np.isfinite(loss_sum + test_loss):
                raise FloatingPointError(f"the loss is not finite in epoch {epoch}; lower --learning-rate")
            yield Moment(epoch, step, row)
            step = 0

    def save(self, path: Path, rows: list[dict[str, float]]) -> None:
        """Writes the weights, the optimizer's state and the rows; if interrupted, the file before remains."""
        about = json.dumps({"config": self.identity, "rows": rows})
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, *map(np.asarray, self.variables), about=about)
        path.with_suffix(".part").replace(path)

    def restore(self, path: Path) -> list[dict[str, float]]:
        """Loads what `save` wrote and returns the rows. Raises UserError if it is of another training."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            about = json.loads(str(arrays["about"]))
        except Exception as error:  # zipfile's, NumPy's
            raise UserError(f"cannot read {path} ({error}); remove it to begin again") from None
        if about["config"] != self.identity:
            differ = ", ".join(f"{k} {v}" for k, v in about["config"].items() if v != self.identity.get(k))
            raise UserError(f"{path} is of another training ({differ}); take another folder")
        for number, v in enumerate(self.variables):
            v.assign(arrays[f"arr_{number}"])
        return list(about["rows"])


def train(**changes: Any) -> tuple[Training, list[dict[str, float]]]:
    """Trains with a bar and a line for each epoch: train(epochs=10, width=32).

    `changes` are hyperparameters that differ from the constants at the top, by their names in lower case. Returns the
    training, whose `network` is trained, and the rows. Raises UserError for a wrong value, missing data or device.
    """
    try:
        config = Config(**{"warmup_epochs": 0.0, **changes})  # 0: any number of epochs passes
        if "warmup_epochs" not in changes:  # it keeps its share of the epochs
            config = replace(config, warmup_epochs=WARMUP_EPOCHS / EPOCHS * config.epochs)
        Path(config.checkpoint_dir).mkdir(exist_ok=True)
    except OSError as error:  # in Colab a Drive that is not mounted
        raise UserError(f"--checkpoint-dir: {error}; make or mount the folder above it, or take another") from None
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    training = Training(config)
    checkpoint = Path(config.checkpoint_dir) / "last.npz" if config.checkpoint_dir else None
    rows = training.restore(checkpoint) if checkpoint and checkpoint.exists() else []
    print(f"{training.replicas} x {training.kind}, {training.precision}; {len(rows)} epochs done; now it compiles")
    images = training.steps_per_epoch * config.batch_size
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules  # by a person, at a terminal or in a notebook
    with tqdm(total=images, unit="images", unit_scale=True, leave=False, disable=not watched) as bar:
        for moment in training.run(len(rows) + 1):
            bar.update(moment.step * config.batch_size - bar.n)
            if moment.row:
                rows.append(moment.row)
                bar.write("  ".join(f"{name} {value:.4g}" for name, value in moment.row.items()))
                bar.reset()
                if checkpoint:
                    training.save(checkpoint, rows)
    return training, rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of these four files alone. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    add_flags(parser, Config)
    try:
        train(**vars(parser.parse_args(arguments)))
    except (UserError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    if "get_ipython" in globals():  # pasted into a notebook (colab_cell.py), where sys.argv is the kernel's
        training, rows = train()
    else:
        sys.exit(main())
