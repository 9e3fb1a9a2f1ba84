"""What TensorFlow and its packages are here, and the remedy, in a line, for each known way they fail.

`gather` reads this machine into plain `Facts`; the checks are functions of those alone, so they can be tried
on made-up facts for hardware that is not at hand. `python -m lab devices` prints both.
"""

import glob
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field

import tensorflow as tf

from lab.base.errors import DEBUG

PACKAGES = ("tensorflow", "tensorflow-tpu", "keras", "numpy", "nvidia-cudnn-cu12", "libtpu")
# TensorFlow 2.21 with cuDNN 9.3 to 9.5: "Autotuner could not find any supported configs" on T4, A10G and L4,
# gone with 9.24 (aws/deep-learning-containers, pull requests 6417 and 6418).
CUDNN_FLOOR = (9, 24)
CUDNN_UNKNOWN = (9, 6)  # from here up to the floor nobody has said
CUDNN_FAILS_FROM = (2, 21)  # the TensorFlow that needs it; Colab's 2.20 does not, whose cuDNN is 9.19
# PCI vendor Google and the ids of its chips v2/v3 to TPU7x (jax/_src/hardware_utils.py, 0.10.2). The vendor
# alone would not do: Google's virtual network cards have it too.
TPU_VENDOR = "0x1ae0"
TPU_CHIPS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
LIBTPU = "0.0.14"  # as in requirements-tpu.txt, where the reason is


@dataclass(frozen=True)
class Gpu:
    """A GPU that TensorFlow sees: its name and compute capability, (0, 0) where that is not known."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """An installation and its machine, as plain values.

    `packages` has the installed versions by name. `kernels` are the GPU targets TensorFlow was built for, as
    "sm_80" (machine code) or "compute_90" (code that newer drivers compile). `has_nvidia` and `has_tpu`
    tell whether the machine shows such hardware, whether or not TensorFlow can use it; `colab` whether it is Colab's.
    """

    packages: dict[str, str] = field(default_factory=dict)
    python: str = ""
    cuda: str = ""
    cudnn: str = ""
    kernels: tuple[str, ...] = ()
    cpus: int = 1
    gpus: tuple[Gpu, ...] = ()
    tpus: int = 0
    has_nvidia: bool = False
    has_tpu: bool = False
    colab: bool = False


def has_nvidia() -> bool:
    """Whether NVIDIA's driver is loaded, as Linux shows it."""
    return bool(glob.glob("/dev/nvidia[0-9]*")) or os.path.exists("/proc/driver/nvidia/version")


def has_tpu(root: str = "/") -> bool:
    """Whether this is a TPU machine: a chip's device file, or the variables of its image.

    Chips up to v4 are /dev/accel*. Newer ones are /dev/vfio/*, which serves other devices as well, so one of
    them counts where PCI shows a TPU. Untested on a TPU. `root` is where /dev and /sys are.
    """
    variables = ("TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR", "COLAB_TPU_1VM")
    if any(name in os.environ for name in variables) or glob.glob(f"{root}/dev/accel[0-9]*"):
        return True
    return bool(glob.glob(f"{root}/dev/vfio/[0-9]*")) and any(
        _id(device, "vendor") == TPU_VENDOR and _id(device, "device") in TPU_CHIPS
        for device in glob.glob(f"{root}/sys/bus/pci/devices/*")
    )


def _id(device: str, name: str) -> str:
    """A PCI device's id as Linux shows it, "0x1ae0"; "" where it cannot be read."""
    try:
        with open(os.path.join(device, name), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def gather() -> Facts:
    """The facts of this machine. It lists physical devices only, so TensorFlow can still be configured."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    build = tf.sysconfig.get_build_info()
    gpus = []
    for gpu in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        gpus.append(Gpu(details.get("device_name", gpu.name), details.get("compute_capability", (0, 0))))
    return Facts(
        packages=packages,
        python=platform.python_version(),
        cuda=build.get("cuda_version", ""),
        cudnn=build.get("cudnn_version", ""),
        kernels=tuple(build.get("cuda_compute_capabilities", ())),
        cpus=len(tf.config.list_physical_devices("CPU")),
        gpus=tuple(gpus),
        tpus=len(tf.config.list_physical_devices("TPU")),
        has_nvidia=has_nvidia(),
        has_tpu=has_tpu(),
        colab="COLAB_RELEASE_TAG" in os.environ,
    )


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "9.24.0.43" -> (9, 24, 0, 43), "2.21.0rc1" -> (2, 21)."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def describe(facts: Facts) -> dict[str, str]:
    """The facts as names and values for people."""
    packages = facts.packages
    versions = [f"python {facts.python}"]
    versions += [f"{name} {packages[name]}" for name in PACKAGES[:4] if name in packages]
    seen = [f"{facts.cpus} CPU{'s' * (facts.cpus > 1)}"]
    for gpu in facts.gpus:
        seen.append(f"{gpu.name} (compute capability {gpu.capability[0]}.{gpu.capability[1]})")
    if facts.tpus:
        seen.append(f"{facts.tpus} TPU core{'s' * (facts.tpus > 1)}")
    lines = {"versions": ", ".join(versions), "TensorFlow sees": ", ".join(seen)}
    if facts.cuda:
        installed = packages.get("nvidia-cudnn-cu12", "no package of it installed")
        built = f"built for CUDA {facts.cuda} and cuDNN {facts.cudnn}, with {', '.join(facts.kernels)}"
        lines["CUDA"] = f"{built}; nvidia-cudnn-cu12: {installed}"
    if "tensorflow-tpu" in packages or "libtpu" in packages:
        lines["libtpu"] = packages.get("libtpu", "not installed")
    return lines


# ---- the checks --------------------------------------------------------------------------------------------


def packages_remedy(facts: Facts) -> str:
    """What is wrong with the TPU packages, and the remedy; "" if nothing is."""
    packages, install = facts.packages, "pip install -r requirements-tpu.txt"
    if "tensorflow-tpu" not in packages:
        return ""
    if "tensorflow" in packages:
        return (
            "tensorflow and tensorflow-tpu are both installed, and each overwrites the other's files: "
            f"pip uninstall -y tensorflow tensorflow-tpu, then {install}"
        )
    if "libtpu" not in packages:
        return f"tensorflow-tpu {packages['tensorflow-tpu']} is here without libtpu: {install}"
    if packages["libtpu"] != LIBTPU:
        return f"libtpu {packages['libtpu']} may not find the TPU, {LIBTPU} belongs to tensorflow-tpu: {install}"
    return ""


def tpu_remedy(facts: Facts, message: str = "") -> str:
    """Why TensorFlow has no TPU here, and the remedy. `message` is its own, if it was asked for one."""
    if "tensorflow-tpu" not in facts.packages:
        install = "pip uninstall -y tensorflow, then pip install -r requirements-tpu.txt (Python 3.10 to 3.13)"
        if facts.has_tpu:
            return (
                'plain tensorflow has no TPU kernels ("No OpKernel was registered to support Op '
                f"'ConfigureDistributedTPU'\"): {install}"
            )
        return f"no TPU found; on a TPU machine, where plain tensorflow does not do: {install}"
    wrong = packages_remedy(facts)
    if wrong:
        return wrong
    why = f" ({message.splitlines()[0][:150]})" if message else ""
    if not facts.has_tpu:
        return f"tensorflow-tpu finds no TPU: choose a TPU runtime or machine, or --device cpu{why}"
    return f"the TPU does not start: end other processes that hold it, or restart the runtime{why}"


def gpu_remedy(facts: Facts) -> str:
    """Why TensorFlow has no GPU here, and the remedy."""
    if not facts.has_nvidia:
        return "no NVIDIA driver found: choose a machine or Colab runtime with a GPU, or --device cpu"
    if not facts.cuda:
        return "this TensorFlow is built without CUDA: pip install -r requirements-gpu.txt"
    if "nvidia-cudnn-cu12" not in facts.packages:
        return "the driver is here but CUDA's libraries are not: pip install -r requirements-gpu.txt"
    return "driver and CUDA libraries do not work together: see nvidia-smi; CUDA 12 needs driver 525 or above"


def kernels_remedy(gpu: Gpu, kernels: Sequence[str]) -> str:
    """What a GPU's age means for a TensorFlow with those kernels; "" if they fit.

    Machine code runs on its own major version from its minor on; "compute" code on that capability and above
    (CUDA C++ Programming Guide, "Binary compatibility" and "PTX compatibility").
    """
    if gpu.capability == (0, 0) or not kernels:
        return ""
    what = f"{gpu.name} (compute capability {gpu.capability[0]}.{gpu.capability[1]})"
    machine_code = [_target(kernel) for kernel in kernels if kernel.startswith("sm_")]
    if any(target[0] == gpu.capability[0] and target <= gpu.capability for target in machine_code):
        return ""
    newer = [kernel for kernel in kernels if kernel.startswith("compute_") and _target(kernel) <= gpu.capability]
    if not newer:
        return f"{what}: this TensorFlow has no kernels for it, only {', '.join(kernels)}: use --device cpu"
    if gpu.capability >= (10, 0):
        return (
            f"{what} is newer than TensorFlow's kernels: the first start takes minutes, while the driver "
            "compiles them, and XLA has open reports on Blackwell; if a step fails, try --no-jit"
        )
    return ""


def _target(kernel: str) -> tuple[int, int]:
    """The capability of a kernel: "sm_89" -> (8, 9), "compute_120" -> (12, 0)."""
    digits = kernel.partition("_")[2]
    return int(digits[:-1]), int(digits[-1])


def cudnn_remedy(facts: Facts) -> str:
    """Whether XLA's convolutions will fail for an old cuDNN, and the remedy; "" if not, or not known."""
    installed = facts.packages.get("nvidia-cudnn-cu12", "")
    old = installed and _version(installed) < CUDNN_FLOOR
    if not old or _version(facts.packages.get("tensorflow", "")) < CUDNN_FAILS_FROM:
        return ""
    floor = ".".join(map(str, CUDNN_FLOOR))
    if _version(installed) >= CUDNN_UNKNOWN:
        return (
            f'should a step fail with "Autotuner could not find any supported configs", nvidia-cudnn-cu12 {installed} '
            f"is too old for this TensorFlow: pip install 'nvidia-cudnn-cu12>={floor},<10'"
        )
    return (
        f"nvidia-cudnn-cu12 {installed} is too old for XLA's convolutions (\"Autotuner could not find any "
        f"supported configs\"): pip install 'nvidia-cudnn-cu12>={floor},<10', or --no-jit"
    )


def findings(facts: Facts, kind: str, *, jit: bool = True) -> list[str]:
    """What may go wrong in a run on `kind`, each with its remedy, in a line.

    Args:
        facts: of this machine: gather().
        kind: cpu, gpu or tpu, as chosen.
        jit: whether the step is compiled with XLA.
    """
    lines: list[str] = []
    if kind == "cpu" and facts.gpus:
        lines.append("the GPU is not used: --device gpu would")
    elif kind == "cpu" and facts.has_tpu and not facts.tpus:
        lines.append(f"this machine has a TPU that TensorFlow cannot use: {tpu_remedy(facts)}")
    elif kind == "cpu" and facts.has_nvidia:
        lines.append(f"this machine has a GPU that TensorFlow cannot use: {gpu_remedy(facts)}; {DEBUG}=1 shows why")
    elif kind == "cpu" and not facts.tpus:
        choose = ": choose a GPU or TPU runtime" if facts.colab else ""
        lines.append(f"no accelerator found, so the CPU trains, slowly{choose}")
    if kind == "tpu" or (kind == "cpu" and not facts.has_tpu):
        lines.append(packages_remedy(facts))
    if kind == "gpu":
        lines += [kernels_remedy(gpu, facts.kernels) for gpu in facts.gpus]
        lines.append(cudnn_remedy(facts) if jit else "")
    return [line for line in lines if line]
