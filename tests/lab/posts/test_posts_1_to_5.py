"""The arithmetic of the experiments of posts 1, 2 and 5, on made-up numbers and tiny data."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from data import plan
from lab.posts import frame
from lab.posts import post1_efficiency as efficiency
from lab.posts import post2_batch_size as batch_size
from lab.posts import post2_forgetting as forgetting
from lab.posts import post5_flat as flat
from lab.posts import training as tools
from train_eager import Moment

TINY = {"limit_train": 48, "holdout": 8, "width": 4, "batch_size": 16, "epochs": 2}


@pytest.fixture(scope="module")
def images(small_data):
    return tools.read_images(TINY, small_data, seed=1)


# ---- post 1 ------------------------------------------------------------------------------------------------


def test_images_made_one_by_one_or_beforehand_are_those_of_the_batches(images):
    training = tools.make(TINY, images, 1, pipeline="host")
    made = {}
    for way, kind in efficiency.WAYS.items():
        batches = kind(training.config, training.images, training.strategy)
        made[way] = [(np.array(pixels), np.array(labels)) for pixels, labels in batches.open(1)]
        assert len(made[way]) == 3 and efficiency.seconds_a_batch(batches) > 0
    # By NumPy, the first batch: padded by reflection, cropped, mirrored, standardised, cut out.
    mean, std = images.train_images.mean((0, 1, 2)), images.train_images.std((0, 1, 2))
    for index, (number, top, left, mirrored, cut_top, cut_left) in enumerate(plan(training.config, 1, 48)[0]):
        image = np.pad(images.train_images[number], [(4, 4), (4, 4), (0, 0)], "reflect")[top:, left:][:32, :32]
        image = (image[:, ::-1] if mirrored else image).astype(float)
        image = (image - mean) / std
        image[cut_top : cut_top + 8, cut_left : cut_left + 8] = 0
        for way in efficiency.WAYS:
            np.testing.assert_allclose(made[way][0][0][index], image, atol=1e-4)
            assert made[way][0][1][index] == images.train_labels[number]


def test_a_step_is_timed_without_the_opening_of_the_pipeline_and_without_its_ends(monkeypatch):
    """By a clock that goes on by 100 s as a pipeline opens, by 7 s in the first and last step, and by 2 s in others."""
    now = [0.0]

    def goes_on(seconds):
        now[0] += seconds

    def step(opened, count):
        goes_on(7.0 if (number := next(opened)) in (1, 8) else 2.0 * int(count))
        return number

    def opened(epoch):
        goes_on(100.0)
        return iter(range(1, 9))

    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: now[0])
    config, fetch = SimpleNamespace(epochs=3), lambda: None
    training = SimpleNamespace(config=config, steps_per_epoch=8, train_steps=step, fetch=fetch)
    assert efficiency.seconds_a_step(training, SimpleNamespace(open=opened)) == 2.0


def test_the_whole_experiment_runs_at_tiny_sizes(small_data, monkeypatch):
    monkeypatch.setattr(efficiency, "SMALL", {**TINY, "widths": [4], "product": 16})
    record = frame.run("post1 efficiency", data=str(small_data))
    assert set(frame.ABOUT) < set(record) and record["data"]["sha256"] and record["sizes"]["widths"] == [4]
    assert [set(record["steps"][0]), set(record["batch"])] == [set(efficiency.WAYS)] * 2
    assert len(frame.judge(record)) == 4


def test_the_share_of_the_peak_is_worked_out(images):
    """64 filters: 379 million multiply-adds an image forward, three times that with both gradients (docs/speed.md)."""
    steps = {"ready": 2.0, "in batches": 2.1, "one by one": 5.0}
    record = {
        "sizes": {"widths": [64], "batch_size": 512},
        "steps": [steps],
        "batch": {"in batches": 0.1, "one by one": 0.15},
        "gflop": [379e6 * 6 * 512 / 1e9],  # 1,164
        "peak_gflops": 1000.0,
    }
    once, single, share, data = efficiency.judge(record)
    assert (once.measured, once.holds) == ("1.05 times", True)
    assert (single.measured, single.holds) == ("2.50 times", True)
    assert share.measured == "58% of 1000 GFLOP/s; 0.8 hours at 100 %"  # 1.164 s of 2; 1.2 M images at 2.274 GFLOP
    assert (data.measured, data.holds) == ("1.5 times", False)
    training = tools.make({**TINY, "width": 64}, images, 1, pipeline="host")
    gflop = 6 * training.multiply_adds(1) / 1e9
    assert math.isclose(gflop, 379e6 * 6 / 1e9, rel_tol=0.01)


def test_the_peak_is_counted_and_timed(monkeypatch):
    """A clock that moves by a second at each look: 2 n^3 operations a second."""
    ticks = iter(range(100))
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: float(next(ticks)))
    assert efficiency.peak(50) == pytest.approx(2 * 50**3 / 1e9)


# ---- post 2 ------------------------------------------------------------------------------------------------


def test_the_fit_finds_a_memory_that_was_put_in():
    steps = np.arange(200)
    noise = np.random.default_rng(0).normal(0, 0.01, 200)
    level, depth, memory = forgetting.fit(0.9 - 0.3 * np.exp(-steps / 30) + noise)
    assert abs(level - 0.9) < 0.01 and abs(depth - 0.3) < 0.02 and abs(memory / 30 - 1) < 0.1


def test_forgetting_is_judged_by_the_gap_and_by_the_order_of_the_memories():
    def curve(rate, memory, depth):
        losses = 1 - depth * np.exp(-np.arange(200) / memory) + np.random.default_rng(1).normal(0, 0.05, 200)
        return {"rate": rate, "losses": losses.tolist(), "to_come": [0.95, 1.05] * 25}

    found = forgetting.judge({"curves": [curve(0.1, 60, 0.3), curve(0.2, 30, 0.3)]})
    assert [one.holds for one in found] == [True, True, True] and found[0].measured.startswith("0.2")
    found = forgetting.judge({"curves": [curve(0.1, 30, 0.3), curve(0.2, 60, 0.3)]})
    assert [one.holds for one in found] == [True, True, False]
    assert forgetting.judge({"curves": [curve(0.1, 30, 0.01)]})[0].holds is None
    assert forgetting.judge({"curves": [curve(0.1, 30, -0.3)]})[0].holds is False  # the latest are the worst


def test_forgetting_measures_the_latest_batch_first(images):
    """At rate 0 the weights are those of the start: each batch's loss can be asked of a training that has done none."""
    sizes = {**TINY, "rates": [0.0], "batches": 3}
    (curve,) = forgetting.measure(sizes, images, 1)["curves"]
    training = tools.make(sizes, images, 1)
    probe = tools.Probe(training)
    losses = [float(probe.loss(*batch)) / 16 for batch in tools.batches(training, 3, 4)]
    np.testing.assert_allclose(curve["losses"], losses[2::-1], rtol=1e-5)
    assert len(curve["to_come"]) == 0  # a quarter of 3


def test_the_batch_size_scales_the_rate_and_the_last_losses_are_compared(images, monkeypatch):
    made, make = [], tools.make

    def noted(*arguments, **changes):
        made.append(changes)
        return make(*arguments, **changes)

    monkeypatch.setattr(tools, "make", noted)
    sizes = {**TINY, "rate_at_512": 0.4, "batch_sizes": [8, 16]}
    curves = batch_size.measure(sizes, images, 1)["curves"]
    assert made == [{"batch_size": 8, "learning_rate": 0.00625}, {"batch_size": 16, "learning_rate": 0.0125}]
    assert [len(curve[key]) for curve in curves for key in ("train_loss", "held_out_loss")] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("losses", "verdict", "parting"),
    [
        ({128: 1.0, 512: 1.04, 1024: 1.08, 4096: 1.5}, [True, True, True], "4096"),
        ({128: 1.0, 512: 1.2, 1024: 1.3, 4096: 1.5}, [False, True, False], "512"),
        ({128: 1.0, 512: 0.99, 1024: 1.3, 4096: 1.05}, [True, False, False], "none"),
    ],
)
def test_where_the_curves_part(losses, verdict, parting):
    record = {"curves": [{"batch_size": size, "train_loss": [9.0, loss]} for size, loss in losses.items()]}
    found = batch_size.judge(record)
    assert [one.holds for one in found] == verdict and found[2].measured == parting


# ---- post 5 ------------------------------------------------------------------------------------------------


def test_movements_along_and_across_are_told_apart():
    rows, columns = np.mgrid[0:4, 0:4]
    assert flat.movements((rows - columns).astype(float)) == (0.0, 2.0)
    assert flat.movements((rows + columns).astype(float)) == (2.0, 0.0)
    holed = (3.0 * rows - 2 * columns) + np.where((rows == 1) & (columns == 2), np.nan, 0)
    np.testing.assert_allclose(flat.movements(holed), (1.0, 5.0))


def test_the_axes_run_so_that_the_diagonal_keeps_what_is_to_be_kept():
    keeps = {"rate / batch": np.divide, "rate / (1 - momentum)": np.divide, "rate * decay": np.multiply}
    for sizes in (flat.SMALL, flat.ORIGINAL):
        for kept, rates, others, _ in flat.PLANES:
            values = keeps[kept](np.array(sizes[rates], float), np.array(sizes[others], float))
            np.testing.assert_allclose(values, values[0])


class Stub:
    """A training that ends at a held-out loss of 1.25, or loses it where the momentum was changed."""

    def __init__(self, changes):
        self.changes = changes

    def run(self):
        if "momentum" in self.changes:
            raise FloatingPointError("the loss is not finite")
        yield Moment(1, 1, None)
        yield Moment(1, 2, {"test_loss": 1.25})


def test_a_point_is_trained_with_its_values_and_a_lost_one_is_none(monkeypatch):
    made = []
    monkeypatch.setattr(tools, "make", lambda *_, **changes: made.append(changes) or Stub(changes))
    sizes = {"rates": [0.2], "rates_by_decay": [0.4], "batch_sizes": [32], "one_less_momentum": [0.1]}
    planes = flat.measure(sizes | {"weight_decays": [0.01, 0.02]}, None, 1)["planes"]
    assert [plane["losses"] for plane in planes] == [[[1.25]], [[None]], [[1.25, 1.25]]]
    assert made == [
        {"learning_rate": 0.2, "batch_size": 32},
        {"learning_rate": 0.2, "momentum": 0.9},
        {"learning_rate": 0.4, "weight_decay": 0.01},
        {"learning_rate": 0.4, "weight_decay": 0.02},
    ]
