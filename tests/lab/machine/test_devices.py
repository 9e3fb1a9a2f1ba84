"""The choice of device, precision and batch; remedies on made-up facts; real refusals on a CPU."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf

import train_eager
from lab.base.errors import UserError
from lab.machine import devices, preflight
from lab.machine.preflight import Facts, Gpu

ROOT = Path(__file__).resolve().parents[3]
KERNELS = ("sm_60", "sm_70", "sm_80", "sm_89", "compute_90")  # of the tensorflow 2.21.0 wheel
PLAIN = {"tensorflow": "2.21.0", "keras": "3.15.1"}
TPU = {"tensorflow-tpu": "2.20.0", "libtpu": preflight.LIBTPU}
H100, T4 = Gpu("H100", (9, 0)), Gpu("T4", (7, 5))

needs_no_accelerator = pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")) or preflight.has_tpu(), reason="there is an accelerator here"
)


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python, since devices and workers can be set up only before TensorFlow starts."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") and k != "TF_CONFIG"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**clean, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


# ---- batch -----------------------------------------------------------------------------------


def test_a_batch_that_does_not_divide_names_the_nearest_that_do():
    with pytest.raises(UserError) as error:
        devices.check_batch(500, 8)
    assert str(error.value) == "--batch-size 500 is not divisible by 8 replicas; try 496 or 504"
    with pytest.raises(UserError, match=r"try 8$"):  # not 0
        devices.check_batch(3, 8)
    devices.check_batch(512, 8)
    devices.check_batch(500, 1)


# ---- choice ------------------------------------------------------------------------------------------------


@needs_no_accelerator
def test_auto_takes_the_cpu_where_there_is_nothing_else(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    placement = devices.choose("auto")
    assert (placement.kind, placement.replicas, placement.workers) == ("cpu", 1, 1)
    assert placement.reason == "no TPU or GPU found"
    assert devices.choose("cpu").reason == "asked for"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cpu", "tpu": "mine"}, "use --device tpu"),
        ({"device": "gpu", "logical_devices": 2}, "splits a CPU"),
        ({"device": "tpu", "logical_devices": 2}, "splits a CPU"),
        ({"device": "cpu", "logical_devices": -1}, "-1 is out of range; give 0 to 8"),
        ({"device": "cpu", "logical_devices": 9}, "9 is out of range; give 0 to 8"),
    ],
)
def test_wishes_that_do_not_go_together_are_refused(monkeypatch, arguments, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match=message):
        devices.choose(**arguments)


def test_logical_devices_come_too_late_once_tensorflow_has_started():
    there = len(tf.config.list_logical_devices("CPU"))
    with pytest.raises(UserError, match=rf"--logical-devices {there + 1} comes too late"):
        devices.choose("cpu", logical_devices=there + 1)


CLUSTER = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{x", "no JSON"),
        ("[]", "no cluster and task"),
        ('{"cluster": 3}', "no cluster and task"),
        (json.dumps({"cluster": {"worker": "a:1"}}), "no list of host:port"),
        (json.dumps({"cluster": {"worker": ["a"]}}), "no list of host:port"),
        (json.dumps({"cluster": {**CLUSTER, "ps": ["a:1"]}}), "only workers train here"),
        (json.dumps({"cluster": CLUSTER}), "not one of its cluster"),
        (json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}), "not one of its cluster"),
        (
            json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": "0"}}),
            "not one of its cluster",
        ),
        (json.dumps({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}), "not one of its cluster"),
    ],
)
def test_a_wrong_tf_config_is_told_in_a_line(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match=message) as error:
        devices.choose("auto")
    assert "\n" not in str(error.value)


def test_a_tf_config_of_one_worker_is_no_cluster():
    one = {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}
    assert not devices.check_tf_config(json.dumps(one))
    assert not devices.check_tf_config("{}")
    two = {"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "chief", "index": 0}}
    assert devices.check_tf_config(json.dumps(two))


def test_slurm_without_its_variables_is_told_in_a_line(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(UserError, match=r"SLURM_PROCID not found.*srun"):
        devices.choose("cpu")


SUM = """
import sys, tensorflow as tf
from lab.machine import devices
placement = devices.choose("cpu", logical_devices=int(sys.argv[1]))
@tf.function
def total():
    def own():
        context = tf.distribute.get_replica_context()
        return context.all_reduce("sum", 1.0 + tf.cast(context.replica_id_in_sync_group, tf.float32))
    return placement.strategy.experimental_local_results(placement.strategy.run(own))[0]
print(placement.kind, placement.replicas, placement.workers, float(total()))
"""


def test_logical_devices_are_replicas_that_add_up():
    done = python("-c", SUM, "4")
    assert last_line(done.stdout) == "cpu 4 1 10.0", done.stderr  # 1 + 2 + 3 + 4


@pytest.mark.long
def test_two_processes_of_slurm_are_two_workers():
    """TensorFlow's resolver takes ports 8888 and 8889. By TF_CONFIG: tests/lab/machine/test_workers.py."""
    of_both = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
    environments = [
        {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **of_both, "SLURM_PROCID": str(index)} for index in range(2)
    ]
    workers = [
        subprocess.Popen([sys.executable, "-c", SUM, "0"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for environment in environments
    ]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [last_line(output) for output in outputs] == ["cpu 2 2 3.0"] * 2  # 1 + 2


# ---- the preflight -----------------------------------------------------------------------------------------


def finding(facts: Facts, kind: str, **how) -> str:
    return " | ".join(preflight.findings(facts, kind, **how))


def test_a_sound_machine_has_no_findings():
    assert finding(Facts(PLAIN | {"nvidia-cudnn-cu12": "9.24.0.43"}, kernels=KERNELS, gpus=(H100,)), "gpu") == ""
    assert finding(Facts(TPU, tpus=8, has_tpu=True), "tpu") == ""


def test_accelerators_have_their_makers_names(monkeypatch):
    cpu, gpu, tpu = (
        SimpleNamespace(device_type=kind, name=f"/physical_device:{kind}:0") for kind in ("CPU", "GPU", "TPU")
    )
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda: [cpu, gpu, gpu, tpu])
    known = {"device_name": "NVIDIA H100 PCIe", "compute_capability": (9, 0)}
    # As TensorFlow's, which knows no TPU's.
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: known if device is gpu else {})
    assert devices.accelerators("gpu") == ["NVIDIA H100 PCIe"] * 2
    assert devices.accelerators("tpu") == ["/physical_device:TPU:0"]
    assert devices.accelerators("cpu") == []
    assert devices.accelerators() == ["NVIDIA H100 PCIe"] * 2 + ["/physical_device:TPU:0"]


@pytest.mark.parametrize(
    ("facts", "kind", "parts"),
    [
        (Facts(PLAIN), "cpu", ["no accelerator found"]),
        (Facts(PLAIN, colab=True), "cpu", ["no accelerator found", "choose a GPU or TPU runtime"]),
        (Facts(PLAIN, has_tpu=True), "cpu", ["ConfigureDistributedTPU", "requirements-tpu.txt"]),
        (Facts(PLAIN | TPU, tpus=8), "tpu", ["pip uninstall -y tensorflow tensorflow-tpu"]),
        (Facts({"tensorflow-tpu": "2.20.0"}, has_tpu=True), "cpu", ["without libtpu"]),
        (Facts(TPU | {"libtpu": "0.0.51"}, tpus=8), "tpu", ["0.0.51 may not find the TPU", "0.0.14"]),
        (Facts(PLAIN, has_nvidia=True), "cpu", ["built without CUDA", "requirements-gpu.txt"]),
        (Facts(PLAIN, cuda="12.5.1", has_nvidia=True), "cpu", ["CUDA's libraries", "requirements-gpu.txt"]),
        (
            Facts(PLAIN | {"nvidia-cudnn-cu12": "9.24.0.43"}, cuda="12.5.1", has_nvidia=True),
            "cpu",
            ["nvidia-smi", "driver 525"],
        ),
        (Facts(PLAIN, gpus=(H100,)), "cpu", ["--device gpu"]),
        (
            Facts(PLAIN | {"nvidia-cudnn-cu12": "9.5.1.17"}, gpus=(T4,)),
            "gpu",
            ["9.5.1.17", ">=9.24", "--no-jit"],
        ),
        (Facts(PLAIN, kernels=KERNELS, gpus=(Gpu("GTX 980", (5, 2)),)), "gpu", ["GTX 980", "no kernels"]),
        (Facts(PLAIN, kernels=KERNELS, gpus=(Gpu("RTX 5090", (12, 0)),)), "gpu", ["12.0", "Blackwell"]),
    ],
)
def test_each_known_failure_has_its_remedy(facts, kind, parts):
    found = finding(facts, kind)
    assert all(part in found for part in parts), found


def test_an_old_cudnn_harms_only_xla_on_the_versions_that_need_it():
    old = {"nvidia-cudnn-cu12": "9.3.0.75"}
    assert finding(Facts(PLAIN | old, gpus=(T4,)), "gpu", jit=False) == ""
    assert finding(Facts({"tensorflow": "2.20.0"} | old, gpus=(T4,)), "gpu") == ""
    colab = {"nvidia-cudnn-cu12": "9.19.0.56"}  # as of August 2026
    assert finding(Facts({"tensorflow": "2.20.0"} | colab, kernels=KERNELS, gpus=(T4,)), "gpu") == ""
    newer = finding(Facts({"tensorflow": "2.21.0"} | colab, kernels=KERNELS, gpus=(T4,)), "gpu")
    assert newer.startswith("should a step fail") and "nvidia-cudnn-cu12>=9.24,<10" in newer


@pytest.mark.parametrize(
    ("capability", "fits"),
    [
        ((6, 1), True),  # by sm_60
        ((7, 5), True),  # by sm_70
        ((8, 6), True),  # by sm_80
        ((9, 0), True),  # by compute_90
        ((5, 2), False),
        ((12, 0), False),  # by compute_90, with a note
        ((0, 0), True),  # not known
    ],
)
def test_kernels_fit_their_own_generation_and_newer_drivers(capability, fits):
    assert (preflight.kernels_remedy(Gpu("GPU", capability), KERNELS) == "") == fits


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({"dev/accel0": ""}, True),
        ({"dev/vfio/0": ""}, False),  # some other device
        ({"dev/vfio/0": "", "sys/bus/pci/devices/a/vendor": "0x1ae0\n"}, False),
        (
            {"dev/vfio/0": "", **{f"sys/bus/pci/devices/a/{k}": "0x1ae0\n" for k in ("vendor", "device")}},
            False,
        ),
        (
            {
                "dev/vfio/0": "",
                "sys/bus/pci/devices/a/vendor": "0x1ae0\n",
                "sys/bus/pci/devices/a/device": "0x0063\n",
            },
            True,
        ),
        ({"sys/bus/pci/devices/a/vendor": "0x1ae0\n", "sys/bus/pci/devices/a/device": "0x0063\n"}, False),
    ],
)
def test_a_tpu_machine_is_known_by_its_files(monkeypatch, tmp_path, files, expected):
    for name in ("TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR", "COLAB_TPU_1VM"):
        monkeypatch.delenv(name, raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert preflight.has_tpu(str(tmp_path)) == expected


def test_a_tpu_that_was_asked_for_says_why_it_is_not_there():
    assert "no TPU found" in preflight.tpu_remedy(Facts(PLAIN))
    assert "no TPU kernels" in preflight.tpu_remedy(Facts(PLAIN, has_tpu=True))
    assert "finds no TPU" in preflight.tpu_remedy(Facts(TPU), "No matching devices found for TPU_SYSTEM")
    assert "does not start" in preflight.tpu_remedy(Facts(TPU, has_tpu=True), "lockfile")


# ---- python -m lab.machine.devices -------------------------------------------------------------------------


@needs_no_accelerator
def test_the_preflight_reports_this_machine_and_then_refuses_in_one_line():
    done = python("-m", "lab", "devices", "--logical-devices", "4", "--batch-size", "510")
    for part in (f"tensorflow {tf.__version__}", "replicas", "precision", "float32", "XLA", "no accelerator"):
        assert part in done.stdout
    assert done.returncode == 2
    assert "try 508 or 512" in last_line(done.stderr)
    assert "Traceback" not in done.stderr


@needs_no_accelerator
def test_a_sound_machine_ends_it_with_0(capsys, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert devices.main([]) == 0
    assert "no accelerator" in capsys.readouterr().out


@needs_no_accelerator
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "gpu"], "--device gpu: TensorFlow sees no GPU"),
        (["--device", "tpu"], "--device tpu: no TPU found"),
        (["--device", "npu"], "invalid choice"),
        (["--batch", "3"], "did you mean --batch-size?"),
    ],
)
def test_a_wrong_wish_is_one_line_on_stderr(capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert devices.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_tpu_is_set_up_once_in_a_process(monkeypatch):
    """Set up anew it forgets its variables. This machine's is the core's; a named one is kept by its name."""
    set_up = []
    resolvers = tf.distribute.cluster_resolver
    monkeypatch.setattr(resolvers, "TPUClusterResolver", lambda tpu: tpu)
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", lambda resolver: None)
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", set_up.append)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", lambda resolver: SimpleNamespace(num_replicas_in_sync=8))
    monkeypatch.setattr(train_eager, "STRATEGIES", {})
    monkeypatch.delenv("TF_CONFIG", raising=False)
    devices._connect.cache_clear()
    for _ in range(2):
        own, named = devices.choose("tpu"), devices.choose("tpu", tpu="mine")
        assert (own.kind, own.reason) == (named.kind, named.reason) == ("tpu", "8 TPU cores found")
        assert own.strategy is train_eager.choose_strategy("tpu") is not named.strategy
    devices._connect.cache_clear()  # of made-up strategies
    assert sorted(set_up) == ["local", "mine"]


def test_why_a_tpu_does_not_start_is_told_in_tensorflows_words(monkeypatch):
    def fails(tpu):
        raise ValueError("No matching devices found for TPU_SYSTEM")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", fails)
    monkeypatch.setattr(preflight, "gather", lambda: Facts(TPU))
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, words in (("", "TPU runtime or machine, or --device cpu (No matching"), ("mine", "answers (No matching")):
        with pytest.raises(UserError, match=re.escape(words)):
            devices.choose("tpu", tpu=name)


def test_a_tpu_that_never_answers_is_waited_for_in_bounds():
    """An address that takes connections and says nothing; in a process of its own, whose TensorFlow waits on."""
    program = """
import sys
from lab.machine import devices
devices.TPU_SECONDS = 1.0
sys.exit(devices.main(["--device", "tpu", "--tpu", sys.argv[1]]))
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"grpc://127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-c", program, address]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"--tpu {address} does not answer within 1 s; check the address, and the TPU"
