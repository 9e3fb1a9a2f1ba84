"""The loop: its update against NumPy, one trace a run, repeatable numbers, and what a run leaves behind."""

import json
import runpy
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import train_eager
from lab import options as settings
from lab.runs import record

ROOT = Path(__file__).resolve().parent.parent


def make_run(options, **changes):
    return train_eager.Run(settings.change(train_eager.constants(), {**options, **changes}))


def weights_of(run):
    return [np.array(tf.convert_to_tensor(weight)) for weight in run.model.trainable_variables]


def train_steps(run, epoch, count):
    run.train_steps(run.pipeline.open(epoch), tf.constant(0), tf.constant(count))


def test_two_updates_are_facts_and_the_decay_reaches_every_variable(short):
    """a <- mu a + (g + lambda w); w <- w - eta (g + lambda w + mu a), both for the summed loss."""
    run = make_run(short, epochs=24, pad=0, cutout=0, flip="none", weight_decay=0.1, operations="plain")
    batch, steps = 16, 5
    weights, velocity = [w.astype(np.float64) for w in weights_of(run)], [0.0] * 25
    order = [run.pipeline._plan(1)[0].numpy()[k] for k in range(2)]
    mean, std = run.images.train_images.mean((0, 1, 2)), run.images.train_images.std((0, 1, 2))
    for k in (1, 2):
        for variable, value in zip(run.model.trainable_variables, weights, strict=True):
            variable.assign(value)
        images = (run.images.train_images[order[k - 1]] - mean) / std
        labels = run.images.train_labels[order[k - 1]]
        with tf.GradientTape() as tape:
            logits = run.model(tf.constant(images, tf.float32), training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_sum(losses)
        gradients = [g.numpy().astype(np.float64) for g in tape.gradient(loss, run.model.trainable_variables)]
        rate = np.interp(k / steps, [0, 5, 24], [0, 0.4, 0]) / batch
        for index, gradient in enumerate(gradients):
            decayed = gradient + 0.1 * batch * weights[index]
            velocity[index] = 0.9 * velocity[index] + decayed
            weights[index] = weights[index] - rate * (decayed + 0.9 * velocity[index])
    fresh = make_run(short, epochs=24, pad=0, cutout=0, flip="none", weight_decay=0.1, out=short["out"] + "2")
    train_steps(fresh, 1, 2)
    for value, expected in zip(weights_of(fresh), weights, strict=True):
        np.testing.assert_allclose(value, expected, atol=2e-5 * np.abs(expected).max())


def test_without_gradients_only_the_decay_is_left(short):
    """One step shrinks every weight by eta lambda (1 + mu) of itself, which the tutorial's loop forgot."""
    runs = [make_run(short, weight_decay=decay, out=f"{short['out']}{decay}") for decay in (0.0, 0.5)]
    start = weights_of(runs[0])
    for run in runs:
        train_steps(run, 1, 1)
    rate = float(runs[0].schedule(1 / 5)) / 16
    for plain, decayed, before in zip(*map(weights_of, runs), start, strict=True):
        expected = -rate * 0.5 * 16 * 1.9 * before
        np.testing.assert_allclose(decayed - plain, expected, atol=3e-6 + 1e-4 * np.abs(expected).max())
    assert rate > 0


def test_a_run_leaves_its_result(short, capsys):
    result = train_eager.train(**short)
    folder = Path(short["out"])
    left = ["checkpoints", "dawnbench.tsv", "result.json", "weights.npz"]
    assert sorted(path.name for path in folder.iterdir()) == left
    assert record.read_result(folder / "result.json") == result
    promised = "recipe seed hyperparameters data versions hardware precision replicas epochs test_accuracy"
    promised += " test_accuracy_tta train_seconds total_seconds images_per_second"
    assert set(promised.split()) <= set(result)
    assert [row["epoch"] for row in result["epochs"]] == [1, 2]
    assert set(result["epochs"][0]) == {
        "epoch", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
        "train_seconds", "total_seconds",
    }  # fmt: skip
    assert result["data"]["train_images"] == 80 and result["data"]["test_images"] == 24
    assert result["data"]["synthetic"] is False and len(result["data"]["sha256"]) == 64
    assert result["test_accuracy"] == result["epochs"][-1]["test_accuracy"] and result["finished"]
    assert result["images_per_second"] == pytest.approx(160 / result["train_seconds"])
    lines = [line.split("\t") for line in (folder / "dawnbench.tsv").read_text().splitlines()]
    assert lines[0] == ["epoch", "hours", "top1Accuracy"]
    assert float(lines[2][1]) == pytest.approx(result["train_seconds"] / 3600, abs=1e-7)
    assert float(lines[2][2]) == pytest.approx(100 * result["test_accuracy"], abs=0.01)
    shown = capsys.readouterr()
    assert "test accuracy" in shown.out
    assert "%|" not in shown.out + shown.err  # no bar where stdout is no terminal
    # An earlier result is never overwritten.
    assert train_eager.main(["--data", short["data"], "--batch-size", "16", "--out", short["out"]]) == 2
    assert record.read_result(folder / "result.json") == result


def test_it_learns_and_evaluation_counts_every_image_once(short):
    run = make_run(short, epochs=4, learning_rate=0.1)
    result = run.train()
    losses = [row["train_loss"] for row in result["epochs"]]
    assert losses[-1] < losses[0] < 2.0
    pixels = run.images.train_images
    images = (run.images.test_images - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    logits = run.model(tf.constant(images, tf.float32)).numpy()
    exact = (logits.argmax(1) == run.images.test_labels).mean()
    losses = -np.log(np.exp(logits)[np.arange(24), run.images.test_labels] / np.exp(logits).sum(1))
    train_eager.EVALUATION_BATCH, before = 7, train_eager.EVALUATION_BATCH  # 24 is no multiple of 7
    try:
        partial = make_run(short, out=short["out"] + "b")
    finally:
        train_eager.EVALUATION_BATCH = before
    for mine, theirs in zip(partial.model.variables, run.model.variables, strict=True):
        mine.assign(theirs)
    assert partial.evaluate() == pytest.approx((losses.mean(), exact), rel=1e-5)
    assert result["test_accuracy"] == pytest.approx(exact)


def losses_of(short, name, **changes):
    result = train_eager.train(**{**short, **changes, "out": f"{short['out']}-{name}"})
    return [row["train_loss"] for row in result["epochs"]] + [row["test_loss"] for row in result["epochs"]]


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(short):
    first = losses_of(short, "a")
    assert losses_of(short, "b") == first
    assert losses_of(short, "c", seed=1) != first


def test_every_way_to_compute_gives_the_same_losses(short):
    # Few steps at a low rate: rounding that decides a tie in a pool grows a thousandfold with each step.
    short |= {"learning_rate": 0.02, "batch_size": 40, "epochs": 1}
    first = losses_of(short, "graph")
    for name, changes in {
        "host pipeline": {"pipeline": "host"},
        "compiled": {"jit": True},
        "eager": {"eager": True},
        "fast operations": {"jit": True, "pipeline": "device", "operations": "fast"},
        "plain operations": {"jit": True, "operations": "plain"},
    }.items():
        assert losses_of(short, name, **changes) == pytest.approx(first, rel=1e-3), name


def test_one_trace_a_run(short):
    run = make_run(short, epochs=3)
    run.train()
    assert run.train_steps.experimental_get_tracing_count() == 1
    assert run.train_step.experimental_get_tracing_count() == 1


def test_stop_after_ends_early_on_the_same_schedule(short):
    result = train_eager.train(**short, stop_after=1)
    assert len(result["epochs"]) == 1
    assert result["epochs"][0]["learning_rate"] == pytest.approx(np.interp(1, [0, 10 / 24, 2], [0, 0.4, 0]))


def test_a_loss_that_is_not_finite_ends_the_run_with_what_to_try(short, capsys):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in short.items() if key != "jit"]
    assert train_eager.main([*flags, "--no-jit", "--learning-rate", "1e30"]) == 3
    error = capsys.readouterr().err
    assert "epoch 1" in error and "--learning-rate" in error and len(error.strip().splitlines()) == 1


def test_it_runs_pasted_into_a_notebook_cell(small_data, tmp_path, monkeypatch):
    """A kernel's own arguments are not ours, and the constants of the cell decide."""
    monkeypatch.setitem(
        sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=1))
    )
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    source = (ROOT / "train_eager.py").read_text()
    for name, value in {
        "EPOCHS": 1, "BATCH_SIZE": 16, "WIDTH": 4, "WARMUP_EPOCHS": 0.5, "JIT": False, "DATA": small_data,
        "OUT": str(tmp_path / "cell"),
    }.items():  # fmt: skip
        lines = [
            f"{name} = {value!r}" if line.startswith(f"{name} = ") else line for line in source.splitlines()
        ]
        source = "\n".join(lines)
    cell = tmp_path / "cell.py"
    cell.write_text(source)
    runpy.run_path(str(cell), run_name="__main__")
    assert json.loads((tmp_path / "cell" / "result.json").read_text())["hyperparameters"]["width"] == 4


def test_ctrl_c_ends_cleanly_and_keeps_the_epochs_that_had_ended(short):
    flags = [
        f"--{key.replace('_', '-')}={value}" for key, value in short.items() if key not in ("jit", "epochs")
    ]
    code = (
        "import sys, train_eager\n"
        "row = train_eager.console.row\n"
        "def interrupt(values):\n"
        "    if values['epoch'] == 2: raise KeyboardInterrupt\n"
        "    return row(values)\n"
        "train_eager.console.row = interrupt\n"
        f"sys.exit(train_eager.main({[*flags, '--no-jit', '--epochs=5']!r}))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 130, result.stderr
    assert "interrupted" in result.stderr and "Traceback" not in result.stderr
    saved = json.loads((Path(short["out"]) / "result.json").read_text())
    assert len(saved["epochs"]) == 1 and not saved["finished"]
