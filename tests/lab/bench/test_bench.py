"""The statistics and tables by hand-worked numbers, and the command at tiny sizes."""

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lab.base.errors import UserError
from lab.bench import bench, rivals, tables, worker
from lab.machine import processor

TASK = rivals.Task("davidnet", 512, 64, Path("images.npz"))


def answered(units, seconds, *, first=9.0):
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
    gflop = rivals.davidnet_gflop(64)
    measured = {
        "sgemm-numpy": answered(100 * gflop, [2.0, 1.0, 1.0]),  # 50, 100, 100 images/s: the best one
        "sgemm-xla": answered(90 * gflop, [1.0, 2.0, 1.0]),  # 90, 45, 90
        "bgemm-tensorflow": answered(200 * gflop, [1.0, 1.0, 1.0]),
        "ours-device": answered(512, [10.24, 5.12, 10.24], first=30.0),  # 50, 100, 50 images/s
        "ours-xla": answered(512, [10.24, 5.12, 10.24]),
        "ours-host": answered(512, [10.24, 10.24, 10.24]),  # 50
        "pytorch": answered(512, [20.48, 20.48, 10.24]),  # 25, 25, 50
        "pytorch-bf16": answered(512, [5.12, 5.12, 5.12]),  # 100
        "augmentation": answered(5120, [1.0, 2.0, 1.0]),  # median 5120 images/s
    }
    table = {row["name"]: row for row in bench.rows(measured, TASK, 1, 0.1)}
    ours, pytorch = table["ours-device"], table["pytorch"]
    assert ours["rate"] == pytest.approx({"median": 50, "min": 50, "max": 100})
    assert table["ours-xla"]["share_of_limit"] == pytest.approx({"median": 1.0, "min": 0.5, "max": 1.0})
    assert table["pytorch-bf16"]["share_of_limit"]["median"] == pytest.approx(0.5)  # of the products in its precision
    assert ours["compile_seconds"] == pytest.approx(30 - 10.24)
    assert ours["times_as_fast"] == {}
    assert pytorch["times_as_fast"]["ours-device"] == pytest.approx({"median": 2, "min": 1, "max": 4})
    assert table["ours-host"]["noisy"] == ""
    assert "spread" in ours["noisy"]
    assert table["sgemm-numpy"]["share_of_limit"] is None
    joined = bench.remarks(list(table.values()))
    assert joined["augmentation_share_of_step"] == pytest.approx(50 / 5120)
    busy = 4 + 4 + 3 + 25.6 + 25.6 + 30.72 + 51.2 + 15.36 + 4
    assert joined["idle_processor_seconds_per_second"] == pytest.approx(9 * 3 * 0.5 / busy)


def conditions(**values):
    """What a record of lab/bench/bench.py says beside its rows."""
    return {
        "network": "davidnet",
        "hardware": {"processor": "Z80", "cores": 2, "processor_flags": ["avx9"]},
        "versions": {"tensorflow": "2.21.0", "torch": "2.13.0"},
        "rounds": 3,
        "steps_per_turn": 2,
        "load_average": {"start": [0.25, 0.0, 0.0]},
        "remarks": {"augmentation_share_of_step": 0.00123},
    } | values


def test_the_document_s_table_by_hand():
    measured = {
        "ours-device": answered(512, [10.24, 5.12, 10.24]),  # 50, 100, 50 images/s
        "pytorch": answered(512, [102.4, 102.4, 102.4]),  # 5
    }
    record = conditions(rows=bench.rows(measured, TASK, 1, 0.25))
    assert tables.rows_in_markdown(record).splitlines()[2:] == [
        "| steps: a run's default, float32 (`ours-device`) | 50 (50–100) images/s † |  |  |",
        "| steps: PyTorch eager, channels_last, float32 (`pytorch`) | 5.0 (5.0–5.0) images/s "
        "| 10.00 (10.00–20.00) |  |",
        "",
        "Z80 (avx9), 2 cores, TensorFlow 2.21.0, PyTorch 2.13.0, 3 rounds of 2 steps. Load average before "
        "the start: 0.25. †: the rounds spread by more than a quarter, or the machine was not idle; not fit to be "
        "quoted. Augmentation is 0.12% of the default step. Not in this record, but measured by the command: "
        "`ours-xla`, `ours-graph`, `ours-host`, `tutorial`, `tutorial-bf16`, `tutorial-function`, "
        "`tutorial-function-bf16`, `keras-fit`, `keras-fit-bf16`, `pytorch-hugepages`, `pytorch-compile`, "
        "`pytorch-bf16`, `pytorch-hugepages-bf16`, `pytorch-compile-bf16`.",
    ]


@pytest.mark.parametrize(("precision", "share"), [("float32", 0.5), ("bfloat16", 0.25)])
def test_our_default_is_held_against_the_limit_of_the_precision_that_this_cpu_takes(precision, share):
    gflop = rivals.NETWORKS["davidnet"].gflop(64)
    measured = {
        "sgemm-numpy": answered(gflop, [1.0, 1.0]),  # of an image a second
        "bgemm-tensorflow": answered(gflop, [0.5, 0.5]),
        "ours-device": answered(512, [1024.0, 1024.0]),
    }
    row = bench.rows(measured, replace(TASK, precision=precision), 1, 0.1)[-1]
    assert (row["precision"], row["about"]) == (precision, f"a run's default, {precision}")
    assert row["share_of_limit"]["median"] == pytest.approx(share)


def test_the_default_precision_is_asked_of_a_process_that_times_it():
    assert worker.default_precision() in {"float32", *["bfloat16"] * processor.multiplies_bfloat16()}


def test_the_document_s_scaling_table_by_hand():
    row = {
        "way": "ours-xla",
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
    assert tables.scaling_in_markdown(conditions(scaling=[row], precision="bfloat16")).splitlines()[2:] == [
        "| ours-xla | 2,000 | 1,024 | 1 | 10.00 (9.50–11.00) | 102 | ? | 46 | 5 | 33 |",
        "",
        "Z80 (avx9), 2 cores, `ours-device` in bfloat16, the others in float32, TensorFlow 2.21.0; median "
        "(lowest–highest) of 3 steps. Load average before the start: 0.25.",
    ]


def test_several_steps_in_a_turn():
    measured = {"ours-device": answered(512, [10.0, 10.0], first=9.0)}
    (row,) = bench.rows(measured, TASK, 4, 0.0)
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

    fake = Fake()
    answer = worker.turn(fake, "copy", 2, 3.0)
    assert fake.asked == [1, 6]  # two steps of 0.5 s are thrice in 3 s
    assert answer["seconds"] == pytest.approx(0.4)  # of two steps
    assert (answer["repeats"], answer["settling_seconds"], answer["peak_gib"]) == (3, 0.5, 3.0)
    assert answer["idle_processor_seconds"] == 0.7
    assert worker.turn(Fake(), "copy", 2, 0.0)["repeats"] == 1


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


@pytest.mark.long
def test_the_command_at_tiny_sizes(tmp_path, capsys):
    out = tmp_path / "bench.json"
    flags = ["--quick", "--only", "copy,pipeline", "--rounds", "3", "--out", str(out)]
    assert bench.main(flags) == 0
    assert "NOT FIT TO BE QUOTED: the sizes are --quick's" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert {"network", "rounds", "batch_size", "width", "hardware", "versions", "left_out"} <= result.keys()
    assert result["fit_to_quote"] is False
    assert result["failed"] == []
    assert len(result["load_average"]["start"]) == len(result["load_average"]["end"]) == 3
    assert [row["name"] for row in result["rows"]] == ["copy", "pipeline"]
    for row in result["rows"]:
        assert len(row["seconds"]) == 3
        rates = sorted(row["units_per_step"] / value for value in row["seconds"])
        assert row["rate"] == pytest.approx(dict(zip(("min", "median", "max"), rates, strict=True)))


def test_scaling_sizes():
    sizes = bench.scaling_sizes(512, 2, quick=False)
    assert len(sizes) == len(set(sizes)) == 10  # three numbers of images, two other ways, four batches, one thread
    assert [row[2:] for row in sizes[:5]] == [(512, 2)] * 5
    assert sizes[2:5] == [(way, 50_000, 512, 2) for way in ("ours-device", "ours-xla", "ours-graph")]
    assert sizes[-1] == ("ours-device", 10_000, 512, 1)
    assert bench.scaling_sizes(512, 1, quick=True)[1] == ("ours-xla", 256, 32, 1)


def test_the_scaling_rows_by_hand(tmp_path, monkeypatch):
    class Fake:
        started = 0.0

        def __init__(self, process, task, threads):
            ways = ("ours-device", "ours-xla", "ours-graph")
            asked.append((ways[len(asked)], process, task.batch_size, task.width, task.data.exists(), threads))
            self.seconds = [2.0, 9.0, 1.0, 4.0, 2.0, 3.0]  # building, two uncounted steps, three that count

        def ask(self, name, count=0):
            assert name == asked[-1][0] and count == (len(self.seconds) < 6)
            made = {"units": 32, "import_seconds": 0.5, "peak_gib": 8.0 - len(self.seconds), "resident_gib": 1.0}
            return made | {"seconds": self.seconds.pop(0)}

        def close(self):
            assert not self.seconds

    asked = []
    monkeypatch.setattr(bench, "Worker", Fake)
    monkeypatch.setattr(bench.record, "hardware", lambda: {"cores": 2})
    rows, left_out = bench.scale(rivals.Task("davidnet", 16, 8, tmp_path / "images.npz"), 3, 0.1, quick=True)
    assert left_out == {}
    assert [row["way"] for row in rows] == [way for way, *_ in asked] == ["ours-device", "ours-xla", "ours-graph"]
    assert [tuple(rest) for _, *rest in asked] == [("ours", 32, 8, True, 2)] * 3
    for row in rows:
        assert row["step_seconds"] == {"median": 3.0, "min": 2.0, "max": 4.0}
        assert row["images_per_second"] == pytest.approx(32 / 3)
        assert (row["import_seconds"], row["build_seconds"], row["first_step_seconds"]) == (0.5, 1.5, 9.0)
        assert row["peak_gib"] == 7.0  # after the last of the six
        assert "spread 67%" in row["noisy"]
    assert tables.scaling(rows).rows[-1][:4] == ("ours-graph", "256", "32", "2")
    assert tables.scaling(rows).rows[-1][4:7] == ("3.00 (2.00–4.00) †", "11", "7.0")


def test_a_row_that_does_not_fit_does_not_take_the_others_along(tmp_path, monkeypatch):
    class Small:
        started = 0.0

        def __init__(self, process, task, threads):
            self.batch_size = task.batch_size
            asked.append(task.batch_size)

        def ask(self, name, count=0):
            if self.batch_size > 64:
                raise bench.WorkerFailedError("killed by signal 9")
            return dict.fromkeys(("units", "import_seconds", "peak_gib", "resident_gib", "seconds"), 1.0)

        def close(self):
            pass

    asked = []
    monkeypatch.setattr(bench, "Worker", Small)
    monkeypatch.setattr(bench.rivals, "make_images", lambda *sizes: None)
    rows, left_out = bench.scale(rivals.Task("davidnet", 64, 8, tmp_path / "images.npz"), 2, 0.1, quick=False)
    assert asked.count(64) == len(rows) >= 5  # the task's own size, where another number varies
    assert left_out and set(left_out.values()) == {"killed by signal 9"}
    assert len(rows) + len(left_out) == len(asked)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds 0 is below 1"),
        (["--rounds", "x"], "--rounds"),
        (["--fast"], "--fast"),
        (["--only", "ours"], "'ours' is not known"),
        (["--out", "/no/such/folder/bench.json"], "cannot write --out"),
        (["--scaling", "--only", "ours-device"], "--only says nothing to --scaling"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, words, capsys):
    assert bench.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err


def test_a_worker_says_why_it_fails(tmp_path):
    task = rivals.Task("davidnet", 4, 2, tmp_path / "images.npz")
    with contextlib.closing(worker.Worker("numpy", task)) as numpy:
        with pytest.raises(worker.WorkerFailedError, match="KeyError: 'sgemm-numpy'"):
            numpy.ask("sgemm-numpy", 1)  # before it is built
        assert numpy.ask("sgemm-numpy")["units"] > 0  # the process goes on
        numpy.process.kill()
        with pytest.raises(worker.WorkerFailedError, match="ended with code -9"):
            numpy.ask("sgemm-numpy", 1)


def test_memory_that_does_not_suffice(monkeypatch):
    monkeypatch.setattr(bench.memory, "available_gib", lambda: 3.0)
    bench.check_memory({"a": {"given_back_gib": 2.0}})
    with pytest.raises(UserError, match=r"3\.0 GiB of memory are left beside a, b, and 3\.1 are needed"):
        bench.check_memory({"a": {"given_back_gib": 0.0}, "b": {"given_back_gib": 2.1}})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no processor affinity")
def test_processors_are_given_back():
    before = os.sched_getaffinity(0)
    with worker.processors(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
