"""Times by both rules and rates, by hand."""

import pytest

from lab.base.files import encode
from lab.report import times
from lab.runs import results


@pytest.fixture
def run(made_result, tmp_path):
    def make(**values):
        file = tmp_path / "result.json"
        file.write_text(encode(made_result(**values)))
        return results.read(file)

    return make


def test_dawnbench_counts_training_up_to_the_first_epoch_that_reaches_it(run):
    made = run(accuracies=(0.5, 0.93, 0.94, 0.93, 0.95), test_accuracy_tta=0.96)
    assert times.seconds_to(made, 0.94) == 30.0  # three epochs of 10 s
    assert times.seconds_to(made, 0.95) == 50.0
    assert times.seconds_to(made, 0.955) is None  # the accuracy with TTA does not count


def test_rates_by_hand(run):
    """0.76 GFLOP forward, three passes, 5,000 images/s: 11.4 TFLOP/s; of a T4's 65 that is 17.5 %."""
    made = run(
        precision="float16",
        forward_gflop_per_image=0.76,
        airbench_seconds=21.0,
        hardware={"processor": "x", "cores": 2, "accelerators": ["Tesla T4"]},
    )
    found = times.of(made, 0.94)
    assert (found.train, found.total, found.compiling, found.airbench) == (20.0, 24.0, 3.0, 21.0)
    assert found.tflops == pytest.approx(11.4)
    assert found.peak_tflops == 65.0 and found.share == pytest.approx(11.4 / 65)
    assert found.seconds_at_peak == pytest.approx(20 * 11.4 / 65)
    assert times.of(made, 0.94, peak_tflops=114.0).share == pytest.approx(0.1)


def test_medians_are_none_where_half_of_the_runs_have_no_time(run):
    slow, fast = run(accuracies=(0.5, 0.6)), run(accuracies=(0.95, 0.96), airbench_seconds=21.0)
    assert times.medians([fast, fast, slow], 0.94)["DAWNBench"] == 10.0
    assert times.medians([fast, slow], 0.94)["DAWNBench"] is None
    assert times.medians([fast, fast], 0.94)["airbench"] == 21.0
    assert times.medians([fast, slow], 0.94)["airbench"] is None
    assert times.medians([fast, slow], 0.94)["train"] == 20.0


def test_what_is_not_recorded_is_none(run):
    found = times.of(run(), 0.94, peak_tflops=100.0)
    assert (found.airbench, found.tflops, found.share, found.seconds_at_peak) == (None, None, None, None)


@pytest.mark.parametrize(
    ("names", "precision", "replicas", "peak"),
    [
        (["NVIDIA A100-SXM4-40GB"], "bfloat16", 1, 312.0),
        (["NVIDIA A100-SXM4-40GB"] * 2, "float32", 2, 312.0),
        (["NVIDIA H100 80GB HBM3"], "bfloat16", 1, 989.5),
        (["NVIDIA H100 PCIe"], "bfloat16", 1, 756.5),
        (["NVIDIA H200"], "float32", 1, 494.5),
        (["NVIDIA L4"], "bfloat16", 1, 121.0),
        (["NVIDIA L40S"], "bfloat16", 1, None),
        (["Tesla V100-SXM2-16GB"], "float16", 1, 125.0),
        (["Tesla T4", "NVIDIA L4"], "float16", 2, None),
        (["/physical_device:GPU:0"], "bfloat16", 1, None),
        ([], "float32", 1, None),
    ],
)
def test_a_chips_peak_is_found_by_its_name(run, names, precision, replicas, peak):
    made = run(precision=precision, replicas=replicas, hardware={"processor": "x", "cores": 2, "accelerators": names})
    assert times.peak_of(made) == peak
