"""From the name of a device to a distribution strategy and a precision, decided when a run starts."""

from dataclasses import dataclass

import tensorflow as tf

from errors import UserError


@dataclass(frozen=True)
class Placement:
    """Where a run trains: the strategy, the kind of device (cpu, gpu or tpu), and why it was chosen."""

    strategy: tf.distribute.Strategy
    kind: str
    reason: str

    @property
    def replicas(self) -> int:
        return int(self.strategy.num_replicas_in_sync)


def choose(device: str) -> Placement:
    """The strategy for `device`: auto, cpu, gpu or tpu. Auto takes a TPU, else GPUs, else the CPU.

    Raises:
        UserError: if the device asked for is not there.
    """
    if device in ("auto", "tpu"):
        tpu = _tpu()
        if tpu is not None:
            return Placement(tpu, "tpu", f"{tpu.num_replicas_in_sync} TPU cores found")
        if device == "tpu":
            raise UserError(
                "--device tpu: TensorFlow finds no TPU; on a TPU machine install tensorflow-tpu (plain tensorflow "
                "has no TPU kernels), elsewhere try --device auto"
            )
    gpus = tf.config.list_logical_devices("GPU") if device in ("auto", "gpu") else []
    if gpus:
        names = [gpu.name for gpu in gpus]
        single = len(gpus) == 1
        strategy = (
            tf.distribute.OneDeviceStrategy(names[0]) if single else tf.distribute.MirroredStrategy(names)
        )
        return Placement(strategy, "gpu", f"{len(gpus)} GPU{'' if single else 's'} found")
    if device == "gpu":
        raise UserError(
            "--device gpu: TensorFlow finds no GPU; install tensorflow[and-cuda] and check nvidia-smi, or try "
            "--device cpu"
        )
    reason = "no TPU or GPU found" if device == "auto" else "asked for"
    return Placement(tf.distribute.OneDeviceStrategy("/cpu:0"), "cpu", reason)


def _tpu() -> tf.distribute.Strategy | None:
    """A strategy over the local TPU, or None where there is none."""
    if not tf.config.list_physical_devices("TPU"):
        return None
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


def choose_precision(precision: str, kind: str) -> str:
    """`precision`, with auto resolved: bfloat16 on a TPU and on GPUs of compute capability 8 or more."""
    if precision != "auto":
        return precision
    if kind == "gpu":
        details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
        modern = all(entry.get("compute_capability", (0, 0))[0] >= 8 for entry in details)
        return "bfloat16" if modern else "float32"
    return "bfloat16" if kind == "tpu" else "float32"
