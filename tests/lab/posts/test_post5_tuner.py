"""The tuner's way back, on a made-up hill: the trace and the grid beside DavidNet's values, the verdict by hand."""

import pytest

from lab.posts import post5_tuner as experiment
from lab.posts import training as tools
from lab.tune.tuner import Tuner

TINY = {**experiment.SMALL, "limit_train": 48, "holdout": 8, "width": 4, "batch_size": 16, "epochs": 1, "runs": 2}


@pytest.fixture
def measured(small_data, monkeypatch, tmp_path):
    """Of runs whose loss is lowest at twice DavidNet's rate of 0.05 and at its momentum of 0.9, at any decay."""

    made = []

    def run(tuner, options):
        made.append(options)
        rate, left = options.learning_rate / 0.1, (1 - options.momentum) / 0.1
        loss = 1 + max(rate, 1 / rate) / 10 + max(left, 1 / left) / 4 + options.seed / 100
        return {"accuracy": 0.5, "loss": loss, "train_loss": 1.0, "seconds": 2.0}

    monkeypatch.setattr(Tuner, "_run", run)
    monkeypatch.chdir(tmp_path)
    images = tools.read_images(TINY, small_data, seed=0)
    return {"sizes": TINY, "images": images, "made": made, **experiment.measure(TINY, images, 0)}


def test_trace_and_grid_are_told_beside_davidnets_values(measured):
    first, davidnets = measured["trace"][0], measured["grid"][0]
    assert first["point"] == [-2, 2, 2]  # a quarter of 0.05 * 5e-4 / 0.1, at a momentum of 0.6 and four times the decay
    assert first["values"] == {"learning_rate": 0.0125, "momentum": 0.6, "weight_decay": 0.002}
    assert davidnets["point"] == [0, 0, 0]
    assert davidnets["values"] == {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    assert davidnets["scores"] == pytest.approx([-1.45, -1.46])  # half of the best rate: 0.2 + 0.25
    assert len(measured["grid"]) == 1 + 3 * 2 * 3


def test_the_verdict_by_hand(measured):
    """The rate goes to its best; 1 - momentum is halved twice and takes it along; the decay, halved, brings it back."""
    product, momentum, decay, start, davidnets, best = experiment.judge(measured)
    assert (product.measured, product.holds) == ("2 times, from 0.25 times", True)  # rate 0.1
    assert (momentum.measured, momentum.holds) == ("1 times, from 4 times", True)
    assert (decay.measured, decay.holds) == ("1 times, from 4 times", True)
    assert (start.measured, start.holds) == ("+1.450 ± 0.000", True)  # 0.8 + 1 less 0.1 + 0.25
    assert (davidnets.measured, davidnets.holds) == ("+0.100 ± 0.000", True)
    assert (best.measured, best.holds) == ("+0.100 ± 0.000", True)  # DavidNet's: the grid has no rate of 0.1


def test_once_more_it_costs_nothing_but_says_what_it_has_cost_and_another_code_begins_anew(measured, monkeypatch):
    count = len(measured["made"])
    assert measured["seconds"] == 2.0 * count
    again = experiment.measure(TINY, measured["images"], 0)
    assert again == {name: measured[name] for name in ("trace", "grid", "seconds")} and len(measured["made"]) == count
    monkeypatch.setattr(experiment.records, "code", lambda: {"sha256": 64 * "0"})
    assert experiment.measure(TINY, measured["images"], 0) == again and len(measured["made"]) == 2 * count
