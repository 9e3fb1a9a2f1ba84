"""Loss scaling and the finite check: against NumPy, on two replicas, compiled or not, and in the loop."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import train_eager
from lab import options as settings
from lab.ladder import finite
from lab.ladder.optimizers import Nesterov

ROOT = Path(__file__).resolve().parents[3]


def nesterov(gradients, rate=0.1):
    """The weight after steps of the recipe's update from 1, in float64."""
    weight, velocity = 1.0, 0.0
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient
        weight -= rate * (gradient + 0.9 * velocity)
    return weight


@pytest.mark.parametrize("jit", [False, True])
def test_the_scale_rises_falls_and_cancels(jit):
    weight = tf.Variable([1.0])
    optimizer = finite.LossScale(Nesterov(0.1, 0.9), initial_scale=64.0, dynamic_growth_steps=2)
    optimizer.build([weight])

    @tf.function(jit_compile=jit)
    def step(gradient):
        optimizer.apply([optimizer.scale_loss(gradient)], [weight])

    scales, sound = [], []
    for gradient in (1.0, -2.0, 0.5, np.inf, 3.0, np.nan, -np.inf, 1.0, 1.0):
        step(tf.constant([gradient], tf.float32))
        scales.append(float(optimizer.dynamic_scale.value))
        sound += [gradient] if np.isfinite(gradient) else []
        assert float(weight[0]) == pytest.approx(nesterov(sound), rel=1e-5)
    assert scales == [64, 128, 128, 64, 64, 32, 16, 16, 32]
    assert int(optimizer.iterations.value) == 6


def test_the_scale_and_the_state_are_checkpointed(tmp_path):
    def trained(gradients, path=None):
        weight = tf.Variable([1.0])
        optimizer = finite.LossScale(Nesterov(0.1, 0.9))
        optimizer.build([weight])
        state = tf.train.Checkpoint(weight=weight, optimizer=optimizer)
        if path:
            state.read(path).assert_consumed()
        for gradient in gradients:
            optimizer.apply([optimizer.scale_loss(tf.constant([gradient]))], [weight])
        return state, float(weight[0]), [float(np.squeeze(v.numpy())) for v in optimizer.variables]

    path = trained([1.0, np.inf, 2.0])[0].write(str(tmp_path / "state"))
    resumed, whole = trained([-1.0], path), trained([1.0, np.inf, 2.0, -1.0])
    assert resumed[1:] == whole[1:]
    assert finite.LOSS_SCALE / 2 in whole[2]


TWO = """
import sys
import numpy as np, tensorflow as tf
from lab.ladder import finite
from lab.machine import devices
from lab.ladder.optimizers import Nesterov
strategy = devices.choose("cpu", logical_devices=2).strategy
with strategy.scope():
    weight = tf.keras.Variable(np.ones(1, np.float32))
    optimizer = finite.LossScale(Nesterov(0.1, 0.9), initial_scale=64.0)
    optimizer.build([weight])
    steps = finite.BadSteps()
@tf.function
def step(sick):
    number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
    gradient = tf.where(sick == number, np.float32(np.inf), optimizer.scale_loss(0.5))
    steps.add(finite.finite_on_all([gradient[None], tf.ones([3])]))
    optimizer.apply([gradient[None]], [weight])
for sick in (-1, -1, 1, -1, 0):
    tf.function(lambda: strategy.run(step, (tf.constant(sick),)))()
values = [float(v[0]) for v in strategy.experimental_local_results(weight.value)]
scales = [float(v) for v in strategy.experimental_local_results(optimizer.dynamic_scale.value)]
print(*values, *scales, *steps.fetch())
"""


def test_what_overflows_on_any_replica_is_skipped_on_all():
    """Steps 3 and 5 of 5 overflow, on the second replica and on the first."""
    done = subprocess.run([sys.executable, "-c", TWO], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, *scales, bad, first_bad = map(float, done.stdout.split())
    assert first == second == pytest.approx(nesterov([1.0] * 3), rel=1e-5)
    assert scales == [16, 16]
    assert (bad, first_bad) == (2, 3)


# ---- the loop ----------------------------------------------------------------------------------------------


def make_run(options, name, **changes):
    changes = {**options, **changes, "out": f"{options['out']}-{name}"}
    return train_eager.Run(settings.change(train_eager.constants(), changes))


def weights_after(run, steps):
    run.train_steps(run.pipeline.open(1), tf.constant(0), tf.constant(steps))
    return [v.numpy() for v in run.model.variables if "seed" not in v.path]


@pytest.mark.parametrize("jit", [False, True])
def test_float16_trains_as_float32_to_its_rounding(short, jit):
    short |= {"learning_rate": 0.02, "jit": jit}
    runs = {name: make_run(short, name, precision=name) for name in ("float32", "float16")}
    half = runs["float16"]
    assert half.model.layer1.entry.conv.compute_dtype == "float16"
    kept = [*half.model.trainable_variables, *half.optimizer.inner_optimizer.accumulators]
    assert {v.dtype for v in kept} == {"float32"}
    start = [v.numpy() for v in half.model.variables if "seed" not in v.path]
    full, halved = (weights_after(run, 1) for run in runs.values())
    errors = [
        np.linalg.norm(other - value) / np.linalg.norm(value - before)
        for before, value, other in zip(start, full, halved, strict=True)
    ]  # of each update; a rounding that decides a tie in a pool is felt in all of them
    assert max(errors) < 0.3 and np.median(errors) < 0.1
    for run in runs.values():
        weights_after(run, 3)
    losses = [run.counters.fetch()[0] for run in runs.values()]
    assert losses[1] == pytest.approx(losses[0], rel=3e-3)
    assert losses[1] != losses[0]  # it did compute in float16
    assert half.bad_steps.fetch() == (0, 0)


def test_the_decay_is_scaled_as_the_loss_is(short):
    """One step shrinks every weight by eta lambda (1 + mu) of itself, in float16 too."""
    runs = [make_run(short, f"{decay}", precision="float16", weight_decay=decay) for decay in (0.0, 0.5)]
    assert len(runs[0].model.trainable_variables) == 25
    start = [v.numpy() for v in runs[0].model.variables if "seed" not in v.path]
    rate = float(runs[0].schedule(1 / 5)) / 16
    plain, decayed = (weights_after(run, 1) for run in runs)
    trainable = [v.trainable for v in runs[0].model.variables if "seed" not in v.path]
    for index in np.flatnonzero(trainable):
        expected = -rate * 0.5 * 16 * 1.9 * start[index]
        atol = 1e-5 + 1e-3 * np.abs(expected).max()
        np.testing.assert_allclose(decayed[index] - plain[index], expected, atol=atol)


def result_of(short, capsys, *flags):
    given = {key: value for key, value in short.items() if key != "jit"}
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    code = train_eager.main([*arguments, "--no-jit", *flags])
    return code, capsys.readouterr()


def test_float16_skips_steps_until_the_scale_fits(short, capsys, monkeypatch):
    monkeypatch.setattr(finite, "LOSS_SCALE", 2.0**18)
    code, shown = result_of(short, capsys, "--precision=float16", "--epochs=1", "--learning-rate=0.02")
    assert code == 0, shown.err
    assert "of 5 steps of epoch 1; they were skipped" in shown.out
    loss = json.loads((Path(short["out"]) / "result.json").read_text())["epochs"][0]["train_loss"]
    assert 1.0 < loss < 2.0


def test_an_epoch_of_skipped_steps_ends_the_run(short, capsys, monkeypatch):
    monkeypatch.setattr(finite, "LOSS_SCALE", 2.0**60)
    code, shown = result_of(short, capsys, "--precision=float16")
    assert code == 3
    assert "5 of 5 steps of epoch 1; try --precision float32" in shown.err
    assert len(shown.err.strip().splitlines()) == 1


def test_the_first_bad_step_is_named_with_its_rate(short, capsys):
    """The first update at a huge rate ruins the weights, so the second step's gradient is not finite."""
    code, shown = result_of(short, capsys, "--learning-rate=1e30")
    assert code == 3
    rate = np.interp(2 / 5, [0, 10 / 24, 2], [0, 1e30, 0])
    assert f"epoch 1, step 2 of 5, at learning rate {rate:.4g}; try" in shown.err
    assert len(shown.err.strip().splitlines()) == 1
