"""The statistics by hand-worked numbers, the networks' sizes, and the command at tiny sizes."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lab.base.errors import UserError
from lab.bench import bench, rival_speedrun, rivals
from lab.bench import tables as benchtables

ROOT = Path(__file__).resolve().parents[3]


def found(units, seconds, *, first=9.0):
    """What `bench.measure` returns of a candidate."""
    memory = {"peak_gib": 2.0, "resident_gib": 1.5}
    rest = {"idle_processor_seconds": 0.5, "settling_seconds": 3.0, "repeats": 1, **memory}
    answers = [{"seconds": value, **rest} for value in seconds]
    return {
        "units": units,
        "samples": answers,
        "import_seconds": 1.0,
        "build_seconds": 2.0,
        "first_step_seconds": first,
    }


def test_summary_and_spread():
    assert bench.summary([3.0, 1.0, 2.0, 8.0]) == {"median": 2.5, "min": 1.0, "max": 8.0}
    assert bench.spread([3.0, 1.0, 2.0, 8.0]) == pytest.approx(7.0 / 2.5)


def test_a_ratio_is_taken_within_its_round():
    ours, theirs = [60.0, 30.0, 50.0], [20.0, 15.0, 50.0]
    assert bench.ratios(ours, theirs) == [3.0, 2.0, 1.0]
    # the ratio of the medians would be 50 / 20
    assert bench.summary(bench.ratios(ours, theirs))["median"] == 2.0
    with pytest.raises(ValueError, match="zip"):
        bench.ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("seconds", "load", "words"),
    [
        ([10.0, 11.0, 12.0], 0.5, []),
        ([10.0, 10.0, 12.5], 0.0, []),  # 0.25 exactly
        ([10.0, 10.0, 12.6], 0.0, ["spread 26%"]),
        ([10.0, 10.0, 10.0], 0.51, ["load 0.51"]),
        ([10.0, 20.0], 3.0, ["spread 67%", "load 3.00"]),
        ([10.0], 0.0, ["one round only"]),
    ],
)
def test_noise(seconds, load, words):
    reasons = bench.noise(seconds, load)
    assert bool(reasons) == bool(words)
    assert all(word in reasons for word in words)


def test_verdict():
    quiet = [{"name": "a", "seconds": [1.0, 1.1]}]
    assert bench.verdict(quiet, 0.5) == []
    assert bench.verdict([], 0.0) == ["nothing was measured"]
    reasons = bench.verdict([*quiet, {"name": "b", "seconds": [1.0, 2.0]}], 0.7, ["c"], quick=True)
    assert len(reasons) == 4
    assert "0.70" in reasons[1]
    assert reasons[2:] == ["failed: c", "noisy: b"]


def test_rows_by_hand():
    network = rivals.NETWORKS["davidnet"]
    task = rivals.Task(512, 64, Path("images.npz"))
    gflop = rivals.davidnet_gflop(64)
    measured = {
        "sgemm-numpy": found(100 * gflop, [2.0, 1.0, 1.0]),  # 50, 100, 100 images/s: the best one
        "sgemm-xla": found(90 * gflop, [1.0, 2.0, 1.0]),  # 90, 45, 90
        "ours-device": found(512, [10.24, 5.12, 10.24], first=30.0),  # 50, 100, 50 images/s
        "ours-host": found(512, [10.24, 10.24, 10.24]),  # 50
        "pytorch": found(512, [20.48, 20.48, 10.24]),  # 25, 25, 50
        "augmentation": found(5120, [1.0, 2.0, 1.0]),  # median 5120 images/s
    }
    table = {row["name"]: row for row in bench.rows(measured, network, task, 1, 0.1)}
    ours, pytorch = table["ours-device"], table["pytorch"]
    assert ours["rate"] == pytest.approx({"median": 50, "min": 50, "max": 100})
    assert ours["share_of_limit"] == pytest.approx({"median": 1.0, "min": 0.5, "max": 1.0})
    assert ours["compile_seconds"] == pytest.approx(30 - 10.24)
    assert ours["times_as_fast"] == {}
    assert pytorch["times_as_fast"]["ours-device"] == pytest.approx({"median": 2, "min": 1, "max": 4})
    assert table["ours-host"]["noisy"] == ""
    assert "spread" in ours["noisy"]
    assert table["sgemm-numpy"]["share_of_limit"] is None
    joined = bench.remarks(list(table.values()))
    assert joined["augmentation_share_of_step"] == pytest.approx(50 / 5120)
    busy = 4 + 4 + 25.6 + 30.72 + 51.2 + 4
    assert joined["idle_processor_seconds_per_second"] == pytest.approx(6 * 3 * 0.5 / busy)


def conditions(**values):
    """What a record of lab/bench/bench.py says beside its rows."""
    return {
        "hardware": {"processor": "Z80", "cores": 2},
        "versions": {"tensorflow": "2.21.0", "torch": "2.13.0"},
        "rounds": 3,
        "steps_per_turn": 2,
        "load_average": {"start": [0.25, 0.0, 0.0]},
        "remarks": {"augmentation_share_of_step": 0.00123},
    } | values


def test_the_readme_s_table_by_hand():
    measured = {
        "ours-device": found(512, [10.24, 5.12, 10.24]),  # 50, 100, 50 images/s
        "pytorch": found(512, [102.4, 102.4, 102.4]),  # 5
    }
    task = rivals.Task(512, 64, Path("images.npz"))
    record = conditions(rows=bench.rows(measured, rivals.NETWORKS["davidnet"], task, 1, 0.25))
    assert benchtables.rows_in_markdown(record).splitlines()[2:] == [
        "| steps: batches in the step (`ours-device`) | 50 (50–100) images/s † |  |  |",
        "| steps: PyTorch eager, channels_last (`pytorch`) | 5.0 (5.0–5.0) images/s | 10.00 (10.00–20.00) |  |",
        "",
        "Z80, 2 cores, float32, TensorFlow 2.21.0, PyTorch 2.13.0, 3 rounds of 2 steps. Load average before "
        "the start: 0.25. †: the rounds spread by more than a quarter, or the machine was not idle; not fit to be "
        "quoted. Augmentation is 0.12% of the default step.",
    ]


def test_the_readme_s_scaling_table_by_hand():
    row = {
        "images": 2000,
        "batch_size": 1024,
        "threads": 1,
        "step_seconds": {"median": 10.0, "min": 9.5, "max": 11.0},
        "images_per_second": 102.4,
        "peak_gib": None,
        "noisy": "",
        "import_seconds": 5.4,
        "first_step_seconds": 33.0,
        "start_to_first_step_seconds": 45.6,
    }
    assert benchtables.scaling_in_markdown(conditions(scaling=[row])).splitlines()[2:] == [
        "| 2,000 | 1,024 | 1 | 10.00 (9.50–11.00) | 102 | ? | 46 | 5 | 33 |",
        "",
        "Z80, 2 cores, float32, TensorFlow 2.21.0; median (lowest–highest) of 3 steps. Load average before the start: "
        "0.25.",
    ]


def test_several_steps_in_a_turn():
    measured = {"ours-device": found(512, [10.0, 10.0], first=9.0)}
    task = rivals.Task(512, 64, Path("images.npz"))
    (row,) = bench.rows(measured, rivals.NETWORKS["davidnet"], task, 4, 0.0)
    assert row["rate"]["median"] == pytest.approx(204.8)
    assert row["compile_seconds"] == pytest.approx(9.0 - 2.5)
    assert row["share_of_limit"] is None  # no sgemm was measured


def test_a_short_step_is_repeated_and_the_first_one_does_not_count():
    class Fake:
        def __init__(self):
            self.asked = []

        def ask(self, name, count):
            self.asked.append(count)
            waited = 0.7 if len(self.asked) == 1 else 0.0
            seconds = 0.5 if len(self.asked) == 1 else 0.2 * count
            return {"seconds": seconds, "idle_processor_seconds": waited, "peak_gib": 1.0 + len(self.asked)}

    worker = Fake()
    answer = bench._turn(worker, "copy", 2, 3.0)
    assert worker.asked == [1, 6]  # two steps of 0.5 s are thrice in 3 s
    assert answer["seconds"] == pytest.approx(0.4)  # of two steps
    assert (answer["repeats"], answer["settling_seconds"], answer["peak_gib"]) == (3, 0.5, 3.0)
    assert answer["idle_processor_seconds"] == 0.7
    assert bench._turn(Fake(), "copy", 2, 0.0)["repeats"] == 1


def test_gflop_of_davidnet():
    # 379 M multiply-adds an image forward at width 64, three times two FLOP each
    assert rivals.davidnet_gflop(64) == pytest.approx(6 * 0.3793, rel=1e-3)


def test_gflop_of_the_speedrun():
    # 118,147,360 multiply-adds an image forward, by the layers' shapes; 0.29 PFLOP for 8 epochs, as published
    assert rival_speedrun.gflop(64) == pytest.approx(6 * 0.11814736, rel=1e-6)
    assert rival_speedrun.gflop(64) * 1e9 * 8 * 50_000 == pytest.approx(0.29e15, rel=0.03)


def test_choice_of_candidates():
    assert bench.choose("davidnet", "ceilings", "")[0] == "sgemm-numpy"
    assert "keras-fit-xla" not in bench.choose("davidnet", "steps", "")
    assert bench.choose("davidnet", "steps", "copy,keras-fit-xla") == ["copy", "keras-fit-xla"]
    for arguments, word in (
        (("davidnet", "step", ""), "--sections 'step'"),
        (("davidnet", "steps", "our"), "--only 'our'"),
        (("resnet", "steps", ""), "--network 'resnet'"),
    ):
        with pytest.raises(UserError, match=word):
            bench.choose(*arguments)


@pytest.mark.parametrize("network", rivals.NETWORKS)
def test_every_candidate_stands_beside_one_of_its_unit(network):
    table = rivals.candidates(network)
    for candidate in table.values():
        assert candidate.section in benchtables.SECTIONS
        assert candidate.process in rivals.PROCESSES
        assert not candidate.beside or table[candidate.beside].unit == candidate.unit
    assert set(rivals.NETWORKS[network].ours) <= table.keys()


def test_both_ways_to_orthogonalise_give_the_same():
    made = []
    for batched in (False, True):
        function = rivals._newton_schulz(batched=batched)
        run, units = function(rivals.Task(8, 4, Path("images.npz")))
        run(1)
        assert units == 20
        made.append(run.__closure__)
    updates = [
        next(cell.cell_contents for cell in cells if hasattr(cell.cell_contents, "get_concrete_function"))
        for cells in made
    ]
    for one, other in zip(updates[0](), updates[1](), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_our_step_as_the_bench_drives_it(tmp_path):
    import tensorflow as tf

    task = rivals.Task(4, 2, tmp_path / "images.npz")
    rivals.make_images(task.data, 10, 10)
    tf.config.run_functions_eagerly(True)  # compiling takes long, and is not what is tested
    try:
        steps, images = rivals.candidates("davidnet")["ours-device"].build(task)
        steps(3)  # one and a half epochs
    finally:
        tf.config.run_functions_eagerly(False)
    assert images == 4


def test_the_rivals_networks_are_davidnet():
    import tensorflow as tf

    keras = rivals._keras_model(64)
    assert sum(int(np.prod(weight.shape)) for weight in keras.trainable_variables) == 6_573_120
    tutorial = rivals._tutorial_model(64)
    tutorial(tf.zeros([1, 32, 32, 3]), tf.zeros([1], tf.int32))
    assert sum(int(np.prod(weight.shape)) for weight in tutorial.trainable_variables) == 6_573_120


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-B", "-m", "lab.bench.bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_at_tiny_sizes(tmp_path):
    out = tmp_path / "bench.json"
    done = command("--quick", "--only", "sgemm-numpy,pipeline", "--rounds", "3", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "NOT FIT TO BE QUOTED: the sizes are --quick's" in done.stdout
    result = json.loads(out.read_text())
    assert {"network", "rounds", "batch_size", "width", "hardware", "versions", "left_out"} <= result.keys()
    assert result["fit_to_quote"] is False
    assert len(result["load_average"]["start"]) == len(result["load_average"]["end"]) == 3
    assert [row["name"] for row in result["rows"]] == ["sgemm-numpy", "pipeline"]
    for row in result["rows"]:
        assert len(row["seconds"]) == 3
        rates = sorted(row["units_per_step"] / value for value in row["seconds"])
        assert row["rate"] == pytest.approx(dict(zip(("min", "median", "max"), rates, strict=True)))


def test_scaling_sizes():
    sizes = bench.scaling_sizes(512, 2, quick=False)
    assert len(sizes) == len(set(sizes)) == 8  # three numbers of images, four other batches, one thread
    assert [(batch, threads) for _, batch, threads in sizes[:3]] == [(512, 2)] * 3
    assert sizes[-1] == (10_000, 512, 1)
    assert bench.scaling_sizes(512, 1, quick=True) == [(256, 32, 1)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no processor affinity")
def test_the_scaling_tables_at_tiny_sizes(tmp_path):
    out = tmp_path / "scaling.json"
    done = command("--quick", "--scaling", "--width", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["scaling"]
    assert {(row["images"], row["batch_size"]) for row in rows} == {(256, 32)}
    assert rows[0]["threads"] == 1
    for row in rows:
        assert len(row["seconds"]) == 2
        assert row["start_to_first_step_seconds"] > row["first_step_seconds"] > row["step_seconds"]["min"]
        assert row["peak_gib"] is None or row["peak_gib"] > 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds 0 is below 1"),
        (["--rounds", "x"], "--rounds"),
        (["--fast"], "--fast"),
        (["--only", "ours"], "'ours' is not known"),
        (["--out", "/no/such/folder/bench.json"], "cannot write --out"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, words, capsys):
    assert bench.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err


def test_a_worker_says_why_it_fails(tmp_path):
    task = rivals.Task(4, 2, tmp_path / "images.npz")
    with contextlib.closing(bench.Worker("numpy", "davidnet", task)) as worker:
        with pytest.raises(bench.WorkerFailedError, match="KeyError: 'sgemm-numpy'"):
            worker.ask("sgemm-numpy", 1)  # before it is built
        assert worker.ask("sgemm-numpy")["units"] > 0  # the process goes on
        worker.process.kill()
        with pytest.raises(bench.WorkerFailedError, match="ended with code -9"):
            worker.ask("sgemm-numpy", 1)


def test_memory_that_does_not_suffice(monkeypatch):
    monkeypatch.setattr(bench.memory, "available_gib", lambda: 3.0)
    bench._check_memory({"a": {"given_back_gib": 2.0}})
    with pytest.raises(UserError, match=r"3\.0 GiB of memory are left beside a, b, and 3\.1 are needed"):
        bench._check_memory({"a": {"given_back_gib": 0.0}, "b": {"given_back_gib": 2.1}})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no processor affinity")
def test_processors_are_given_back():
    before = os.sched_getaffinity(0)
    with bench._processors(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
