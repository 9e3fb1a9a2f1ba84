"""From the name of a device to a distribution strategy and a precision, decided when a run starts.

    python -m lab devices                                # what there is, what a run would take, what is wrong
    python -m lab devices --device tpu --batch-size 512  # exit 2 if it is missing or the batch does not divide

Tested: one CPU, several logical CPU devices, two CPU processes on one machine. Written from TensorFlow's
documentation and not yet tried on the hardware: GPUs, TPUs, SLURM.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import tensorflow as tf

import data
from lab.base import console, storage
from lab.base.errors import Exit, Parser, UserError, exits_with_one_line
from lab.machine import fastest, preflight
from lab.options import LOGICAL_DEVICES
from train_eager import Config, choose_precision, choose_strategy

LIMITS = {item.name: item.metadata for item in fields(Config)}
TPU_SECONDS = 180.0  # that a TPU of another machine has to answer and start
# What TensorFlow raises where a TPU is missing: its own errors, and those of the search for one by name.
_TPU_ERRORS = (tf.errors.OpError, ValueError, RuntimeError, OSError, ImportError)
# What the operations between workers raise where one is gone: as its connection breaks, or as it is missed.
_LOST_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


@dataclass(frozen=True)
class Placement:
    """Where a run trains: the strategy, the kind of device (cpu, gpu or tpu), and why it was chosen.

    `workers` is the number of processes that train together; this one is number `worker`, from 0. Number 0
    writes the results.
    """

    strategy: tf.distribute.Strategy
    kind: str
    reason: str
    workers: int = 1
    worker: int = 0

    @property
    def replicas(self) -> int:
        """Copies of the network that each take a share of the batch, over all workers."""
        return int(self.strategy.num_replicas_in_sync)


def choose(device: str, *, tpu: str = "", logical_devices: int = 0) -> Placement:
    """The strategy for `device`: auto, cpu, gpu or tpu.

    Several workers, where TF_CONFIG or SLURM describes them, come first; then auto takes a TPU, else GPUs,
    else the CPU. Call it before anything else that uses TensorFlow's devices: workers and logical devices can
    only be set up before it starts.

    Args:
        device: what to train on.
        tpu: name or address of a TPU, as TPUClusterResolver takes it; "" for this machine's own.
        logical_devices: split the CPU into so many devices, each with a replica; 0 leaves it whole.

    Raises:
        UserError: if the device asked for is not there, TF_CONFIG is wrong, or the values do not go together.
    """
    if tpu and device not in ("auto", "tpu"):
        raise UserError(f"--tpu {tpu} does not go with --device {device}; use --device tpu")
    resolver = _cluster(device)
    if logical_devices:
        return _logical(device, logical_devices, tpu, resolver is not None)
    if resolver is not None:
        return _workers(device, tpu, resolver)
    reason = "asked for"
    if device in ("auto", "tpu"):
        placement_or_reason = _tpu(tpu, wanted=device == "tpu" or bool(tpu))
        if isinstance(placement_or_reason, Placement):
            return placement_or_reason
        reason = placement_or_reason
    try:
        gpus = device != "cpu" and tf.config.list_physical_devices("GPU")
        strategy = choose_strategy("gpu" if gpus or device == "gpu" else "cpu")  # the TPU was tried
    except data.UserError:  # only GPUs that were asked for can be missing here
        raise UserError(f"--device gpu: TensorFlow sees no GPU; {preflight.gpu_remedy(preflight.gather())}") from None
    if "GPU" not in strategy.extended.worker_devices[0]:
        return Placement(strategy, "cpu", reason)
    count = strategy.num_replicas_in_sync
    return Placement(strategy, "gpu", f"{count} GPU{'s' * (count > 1)} found")


def accelerators(*kinds: str) -> list[str]:
    """The names of this machine's devices of these kinds, or of all but the CPU. Starts TensorFlow.

    A GPU's is its maker's, NVIDIA H100 PCIe, others' are TensorFlow's. `kinds` are those of placements; "cpu" has none.
    """
    wanted = {kind.upper() for kind in kinds or ("gpu", "tpu")} - {"CPU"}
    found = [device for device in tf.config.list_physical_devices() if device.device_type in wanted]
    return [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in found]


# ---- TPU ---------------------------------------------------------------------------------------------------


def _tpu(name: str, *, wanted: bool) -> Placement | str:
    """The placement on a TPU, or why there is none. Raises UserError if it was `wanted` and is not there."""
    facts = preflight.gather()
    if not (wanted or facts.tpus or "tensorflow-tpu" in facts.packages):
        return "no TPU or GPU found"
    try:  # an address may never answer
        strategy = storage.answered(lambda: _connect(name), TPU_SECONDS) if name else choose_strategy("tpu")
    except storage.Unanswered:
        raise UserError(
            f"--tpu {name} does not answer within {TPU_SECONDS:g} s; check the address, and the TPU"
        ) from None
    except (data.UserError, *_TPU_ERRORS) as error:
        told = error.__context__ if isinstance(error, data.UserError) else error  # TensorFlow's own words
        remedy = preflight.tpu_remedy(facts, str(told))
        if name and "tensorflow-tpu" in facts.packages:
            remedy = f"no TPU called {name} answers ({str(error)[:150]}); leave --tpu out for this machine's own"
        if wanted:
            raise UserError(f"--device tpu: {remedy}") from None
        return remedy
    cores = strategy.num_replicas_in_sync
    return Placement(strategy, "tpu", f"{cores} TPU core{'s' * (cores > 1)} found")


@functools.cache  # a TPU that is set up anew forgets its variables
def _connect(name: str) -> tf.distribute.Strategy:
    """The strategy on the TPU of this name or address."""
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


# ---- several replicas on a CPU -----------------------------------------------------------------------------


def _logical(device: str, count: int, tpu: str, clustered: bool) -> Placement:
    """`count` replicas on one CPU, for trying out on a laptop what several devices do."""
    if not 0 <= count <= LOGICAL_DEVICES:
        raise UserError(f"--logical-devices {count} is out of range; give 0 to {LOGICAL_DEVICES}")
    if device in ("gpu", "tpu") or tpu:
        raise UserError(f"--logical-devices {count} splits a CPU; use --device cpu")
    if clustered:
        raise UserError(f"--logical-devices {count} is for one process; unset TF_CONFIG, or leave the flag out")
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * count
    try:
        tf.config.set_logical_device_configuration(cpu, parts)
        names = [entry.name for entry in tf.config.list_logical_devices("CPU")]
    except RuntimeError:  # TensorFlow has started; a second run in a notebook may find what it needs
        names = [entry.name for entry in tf.config.list_logical_devices("CPU")]
    if len(names) < count:
        raise UserError(
            f"--logical-devices {count} comes too late: TensorFlow has started with {len(names)}; "
            "restart Python (in a notebook: restart the runtime)"
        )
    strategy = _mirrored(tuple(names[:count])) if count > 1 else tf.distribute.OneDeviceStrategy(names[0])
    return Placement(strategy, "cpu", f"one CPU split into {count}" if count > 1 else "asked for")


@functools.cache  # as choose_strategy
def _mirrored(names: tuple[str, ...]) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(list(names))


# ---- several workers ---------------------------------------------------------------------------------------


def _workers(device: str, tpu: str, resolver: Any) -> Placement:
    """All GPUs of each worker, or each one's CPU."""
    if device == "tpu" or tpu:
        raise UserError("--device tpu does not go with TF_CONFIG or SLURM workers; unset TF_CONFIG, or use srun -n 1")
    gpus = [] if device == "cpu" else tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise UserError(f"--device gpu: this worker sees no GPU; {preflight.gpu_remedy(preflight.gather())}")
    jobs = resolver.cluster_spec().as_dict()
    count = sum(len(hosts) for hosts in jobs.values())
    number = resolver.task_id + (len(jobs.get("chief", ())) if resolver.task_type == "worker" else 0)
    console.say(f"worker {number}, waiting until all {count} are there")
    try:
        if not gpus:  # the strategy would take them of itself
            tf.config.set_visible_devices([], "GPU")
        with reports_lost_workers():
            strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except RuntimeError as error:
        raise UserError(f"the workers cannot be joined: {error}; restart Python and train first of all") from None
    return Placement(strategy, "gpu" if gpus else "cpu", f"worker {number} of {count}", count, number)


@contextlib.contextmanager
def reports_lost_workers() -> Iterator[None]:
    """Within it, TensorFlow's error at the loss of another worker is a UserError with exit code Exit.LOST_WORKER.

    TensorFlow notices a process that is gone at once, by its connection, or within half a minute, by its
    heartbeat. With a single worker nothing changes.
    """
    try:
        yield
    except _LOST_ERRORS as error:
        if not several_workers():
            raise
        gone = re.findall(r"^/job:\w+/replica:\d+/task:(\d+)$", str(error), flags=re.MULTILINE)
        which = f"worker {', '.join(sorted(set(gone)))}" if gone else "another worker"
        raise UserError(
            f"{which} is gone, so this one ends; see what it said last, then start all workers again",
            exit_code=Exit.LOST_WORKER,
        ) from None


def several_workers() -> bool:
    """Whether TF_CONFIG or SLURM describes more than one."""
    if os.environ.get("TF_CONFIG", "").strip():
        return check_tf_config(os.environ["TF_CONFIG"])
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    return tasks.isdigit() and int(tasks) > 1


def _cluster(device: str) -> Any:
    """TensorFlow's resolver of the workers that TF_CONFIG or SLURM describes, or None for a single one."""
    if not several_workers():
        return None
    if os.environ.get("TF_CONFIG", "").strip():
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    tasks = os.environ["SLURM_STEP_NUM_TASKS"]
    # On CPUs the resolver would divide by the number of GPUs: let it count one pretended GPU a task.
    gpus = preflight.has_nvidia() and device != "cpu"
    pretended = {} if gpus else {"gpus_per_node": int(tasks), "gpus_per_task": 1, "auto_set_gpu": False}
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(**pretended)
        resolver.cluster_spec()  # sets task_id, and which GPUs this task sees
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"SLURM's variables do not describe the workers: {error}; start the run with srun") from None
    return resolver


def check_tf_config(text: str) -> bool:
    """Whether a TF_CONFIG describes several workers.

    Raises:
        UserError: if it is no JSON, or not what TensorFlow's guide to multi-worker training asks for.
    """
    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"TF_CONFIG is no JSON ({error}); unset it, or set it like {example}") from None
    cluster = config.get("cluster", {}) if isinstance(config, dict) else None
    task = config.get("task", {}) if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise UserError(f"TF_CONFIG has no cluster and task; unset it, or set it like {example}")
    if not cluster:
        return False
    others = set(cluster) - {"chief", "worker"}
    if others:
        raise UserError(f"TF_CONFIG names {', '.join(sorted(others))}; only workers train here: {example}")
    for hosts in cluster.values():
        if not isinstance(hosts, list) or not all(isinstance(host, str) and ":" in host for host in hosts):
            raise UserError(f"TF_CONFIG lists {hosts!r}, which is no list of host:port; set it like {example}")
    kind, index = task.get("type"), task.get("index")
    if kind not in cluster or type(index) is not int or not 0 <= index < len(cluster[kind]):
        raise UserError(f"TF_CONFIG's task {task!r} is not one of its cluster; set it like {example}")
    return sum(map(len, cluster.values())) > 1


# ---- batch -----------------------------------------------------------------------------------


def check_batch(batch_size: int, replicas: int) -> None:
    """Raises UserError, with the nearest batch sizes that would do, if the batch does not divide."""
    if rest := batch_size % replicas:
        near = [str(size) for size in (batch_size - rest, batch_size - rest + replicas) if size]
        raise UserError(f"--batch-size {batch_size} is not divisible by {replicas} replicas; try {' or '.join(near)}")


def check_groups(groups: int, replicas: int) -> None:
    """Raises UserError if groups of batch norm cannot be spread evenly over the replicas."""
    if groups % replicas:
        near = max(1, round(groups / replicas)) * replicas
        raise UserError(f"--ghost-groups {groups} is not divisible by {replicas} replicas; try {near}")


# ---- python -m lab devices -------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(description="Says what a run would train on, and what is wrong.")
    parser.add_argument("--device", choices=LIMITS["device"]["choices"], default="auto")
    parser.add_argument("--tpu", default="", metavar="NAME", help="name or address of a TPU")
    parser.add_argument("--logical-devices", type=int, default=0, metavar="N", help="split the CPU into N")
    parser.add_argument("--precision", choices=LIMITS["precision"]["choices"], default="auto")
    parser.add_argument("--batch-size", type=int, default=512, metavar="N", help="images a step, over all replicas")
    return parser


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The preflight; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = _parser().parse_args(arguments)
    if not 1 <= options.batch_size <= LIMITS["batch_size"]["high"]:
        raise UserError(f"--batch-size {options.batch_size} is out of range; give 1 to {LIMITS['batch_size']['high']}")
    try:
        placement = choose(options.device, tpu=options.tpu, logical_devices=options.logical_devices)
    finally:  # after it, since SLURM's resolver hides GPUs, which TensorFlow must not have listed before
        facts = preflight.gather()
        console.header(preflight.describe(facts))
    replicas, kind = placement.replicas, placement.kind
    # As in train_eager.py: the sum over replicas does not compile, except with a TPU's strategy.
    jit = tf.test.is_built_with_xla() and (kind == "tpu" or replicas == 1)
    precision, why = choose_precision(options.precision, kind.upper()), ""
    if kind == "cpu":
        precision, xla, why = fastest.choose(options.precision, jit=jit, timing=placement.workers == 1)
        jit = jit and xla
    chosen = {
        "a run takes": f"{kind} ({placement.reason})",
        "replicas": f"{replicas}",
        "precision": precision + (why and f" ({why})"),
        "XLA": "yes" if jit else "no",
    }
    console.header(chosen)
    for line in preflight.findings(facts, kind, jit=jit):
        console.say(f"note: {line}")
    check_batch(options.batch_size, replicas)
    return 0
