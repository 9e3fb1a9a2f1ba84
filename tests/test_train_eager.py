"""The core's loop: its update, loss and rows against NumPy, its hyperparameters, and going on after an interruption."""

import argparse
import ast
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import data
import train_eager
from data import UserError
from schedule import triangle
from train_eager import Config, EpochRate, LossScale, Nesterov, Training

CORE = Path(train_eager.__file__).resolve().parent
FILES = ("train_eager.py", "model.py", "data.py", "schedule.py")
PLAIN = {"pad": 0, "cutout": 0, "flip": "none"}  # images as they are, so that a batch is made by hand in a line


@pytest.fixture(autouse=True)
def restored_settings():
    policy = tf.keras.config.dtype_policy()
    yield
    tf.keras.config.set_dtype_policy(policy)
    tf.config.run_functions_eagerly(False)


@pytest.fixture(autouse=True)
def no_notebook(monkeypatch):
    """The tests of the notebook load ipykernel, where a bar would be drawn."""
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


@pytest.fixture(scope="module")
def small(small_data):
    """Hyperparameters of a training that takes seconds: five steps an epoch."""
    return {
        "data": small_data, "device": "cpu", "width": 4, "batch_size": 16, "epochs": 2, "warmup_epochs": 0.5,
        "learning_rate": 0.1, "jit": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(small):
    """A training of them that nothing disturbed, and its rows; only to be looked at."""
    training, rows = train_eager.train(**small)
    return training, rows


def make(options, **changes):
    return Training(Config(**{**options, **changes}))


def values(variables):
    return [np.asarray(tf.convert_to_tensor(v)) for v in variables]


def step(training, epoch=1, count=1, done=0):
    training.train_steps(training.batches.open(epoch, done), tf.constant(count))


def standardised(images, pixels):
    scaled = images.train_images / 255
    return ((pixels / 255 - scaled.mean((0, 1, 2))) / scaled.std((0, 1, 2))).astype(np.float32)


def cross_entropies(logits, labels, smoothing=0.0):
    """Each image's, in float64."""
    logits = np.asarray(logits, np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(1 - smoothing) * logs[np.arange(len(labels)), labels] - smoothing * logs.mean(1)


def gradients_of(training, batches):
    """Of the summed loss at the network's weights, by TensorFlow's tape, float64; one term for each batch."""
    total = [0.0] * len(training.weights)
    for images, labels in batches:
        with tf.GradientTape() as tape:
            logits = training.network(tf.constant(images), training=True)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        parts = tape.gradient(loss, training.weights)
        total = [t + g.numpy().astype(np.float64) for t, g in zip(total, parts, strict=True)]
    return total


def batch_of(training, epoch, number):
    """A batch of a training without augmentation: standardised images and labels."""
    chosen = data.plan(training.config, epoch, 80)[number, :, 0]
    images = training.images
    return standardised(images, images.train_images[chosen]), images.train_labels[chosen]


# ---- the update --------------------------------------------------------------------------------------------


def test_two_updates_by_hand_decay_every_variable(small):
    """a <- 0.9 a + (g + 0.1 w); w <- w - rate (g + 0.1 w + 0.9 a), of the summed loss: 16 times, a sixteenth."""
    options = {**small, **PLAIN, "epochs": 24, "warmup_epochs": 5, "learning_rate": 0.4, "weight_decay": 0.1}
    by_hand, training = make(options), make(options)
    weights = [w.astype(np.float64) for w in values(by_hand.weights)]
    accumulators = [0.0] * 25
    for k in (1, 2):
        for variable, value in zip(by_hand.weights, weights, strict=True):
            variable.assign(value)
        rate = np.interp(k / 5, [0, 5, 24], [0, 0.4, 0]) / 16
        for i, gradient in enumerate(gradients_of(by_hand, [batch_of(by_hand, 1, k - 1)])):
            gradient = gradient + 0.1 * 16 * weights[i]
            accumulators[i] = 0.9 * accumulators[i] + gradient
            weights[i] = weights[i] - rate * (gradient + 0.9 * accumulators[i])
    step(training, count=2)
    for value, expected in zip(values(training.weights), weights, strict=True):
        np.testing.assert_allclose(value, expected, atol=2e-5 * np.abs(expected).max())


def test_without_gradients_only_the_decay_is_left(small):
    """One step shrinks every weight, batch norm's too, by rate x decay x (1 + momentum) of itself."""
    plain, decayed = make(small, weight_decay=0.0), make(small, weight_decay=0.5)
    start = values(plain.weights)
    step(plain)
    step(decayed)
    rate = np.interp(1 / 5, [0, 0.5, 2], [0, 0.1, 0])
    for with_it, without, before in zip(values(decayed.weights), values(plain.weights), start, strict=True):
        expected = -rate * 0.5 * 1.9 * before
        np.testing.assert_allclose(with_it - without, expected, atol=3e-6 + 1e-4 * np.abs(expected).max())


def test_momentum_and_rate_reach_the_optimizer(small):
    training = make(small, momentum=0.25)
    assert training.optimizer.momentum == 0.25
    rates = [training.optimizer._learning_rate(k) for k in range(10)]
    np.testing.assert_allclose(rates, np.interp(np.arange(1, 11) / 5, [0, 0.5, 2], [0, 0.1, 0]) / 16, atol=1e-9)


def test_update_k_reads_the_schedule_at_k_over_97():
    rate = EpochRate(triangle(24, 5, 0.4), 24, 97, 512)
    steps = np.arange(97 * 24)
    expected = np.interp((steps + 1) / 97, [0, 5, 24], [0, 0.4, 0]) / 512
    np.testing.assert_allclose(tf.map_fn(rate, tf.constant(steps), tf.float32), expected, atol=1e-9)
    assert float(rate(97 * 5 - 1)) == pytest.approx(0.4 / 512) and float(rate(0)) > 0
    assert float(rate(97 * 24)) == 0.0  # one more than planned, as a benchmark makes


class Rising(tf.keras.optimizers.schedules.LearningRateSchedule):
    """0.1, 0.2, 0.3, ... as the steps go by."""

    def __call__(self, step):
        return 0.1 * (tf.cast(step, tf.float32) + 1)


def test_the_rate_stands_outside_the_accumulator():
    """With a rising rate the two forms part: inside, an old gradient keeps the lower rate of its own step."""
    gradients = [np.array([1.0, -2.0]), np.array([0.5, 3.0]), np.array([-1.0, 0.25])]
    outside = inside = np.array([1.0, 1.0])
    a = v = 0.0
    for k, g in enumerate(gradients):
        rate = 0.1 * (k + 1)
        a = 0.9 * a + g
        outside = outside - rate * (g + 0.9 * a)
        v = 0.9 * v + rate * g
        inside = inside - (rate * g + 0.9 * v)
    weight, optimizer = tf.keras.Variable(np.ones(2, np.float32)), Nesterov(Rising(), 0.9)
    optimizer.build([weight])
    for g in gradients:
        optimizer.apply([tf.constant(g, tf.float32)], [weight])
    np.testing.assert_allclose(weight, outside, rtol=1e-6)
    assert np.abs(inside - outside).min() > 0.02


# ---- float16 -----------------------------------------------------------------------------------------------


def test_the_loss_scale_skips_what_overflows_and_halves():
    weight, optimizer = tf.keras.Variable(np.ones(1, np.float32)), LossScale(Nesterov(0.1), initial_scale=64.0)
    optimizer.build([weight])
    by_hand, accumulator, scales = 1.0, 0.0, []
    for gradient in (1.0, np.inf, -2.0, np.nan, -np.inf, 0.5):
        optimizer.apply([optimizer.scale_loss(tf.constant([gradient]))], [weight])
        if np.isfinite(gradient):
            accumulator = 0.9 * accumulator + gradient
            by_hand -= 0.1 * (gradient + 0.9 * accumulator)
        scales.append(float(optimizer.dynamic_scale.numpy()))
        assert float(weight.numpy()[0]) == pytest.approx(by_hand, rel=1e-5)
    assert scales == [64, 32, 32, 16, 8, 8]


def test_float16_updates_as_float32_and_skips_a_step_that_overflows(small):
    options = {**small, **PLAIN, "weight_decay": 0.1, "precision": "float32"}
    single = make(options)
    start = values(single.weights)
    step(single)
    half = make(options, precision="float16")  # last: the policy is the process's
    assert half.precision == "float16" and half.network.prep.conv.compute_dtype == "float16"
    half.optimizer.dynamic_scale.assign(2.0**60)
    before = float(half.optimizer.dynamic_scale.numpy())
    step(half)
    for value, same in zip(values(half.weights), start, strict=True):
        np.testing.assert_array_equal(value, same)
    assert float(half.optimizer.dynamic_scale.numpy()) == before / 2
    half.optimizer.dynamic_scale.assign(64.0)
    half.fetch()
    step(half)  # the first that counts: the rate of step 1, no accumulator
    moved = lost = 0.0
    for value, expected, old in zip(values(half.weights), values(single.weights), start, strict=True):
        moved, lost = moved + ((expected - old) ** 2).sum(), lost + ((value - expected) ** 2).sum()
    assert 0 < lost < 0.05**2 * moved
    assert float(half.optimizer.dynamic_scale.numpy()) == 64


@pytest.mark.parametrize(
    ("asked", "kind", "capabilities", "precision"),
    [
        ("auto", "CPU", [(9, 0)], "float32"),
        ("float16", "CPU", [], "float16"),
        ("float32", "GPU", [(9, 0)], "float32"),
        ("auto", "GPU", [(8, 0)], "bfloat16"),
        ("auto", "GPU", [(12, 0)], "bfloat16"),
        ("auto", "GPU", [(7, 5)], "float16"),
        ("auto", "GPU", [(9, 0), (7, 0)], "float16"),  # the oldest decides
        ("auto", "GPU", [None], "float16"),  # a card that does not say
        ("auto", "TPU", [], "bfloat16"),
    ],
)
def test_the_precision_follows_the_device(monkeypatch, asked, kind, capabilities, precision):
    details = [{} if found is None else {"compute_capability": found} for found in capabilities]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: range(len(details)) if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details[gpu])
    assert train_eager.choose_precision(asked, kind) == precision


def test_the_strategy_is_all_gpus_or_one_or_the_cpu(monkeypatch):
    names = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [SimpleNamespace(name=n) for n in names])
    for strategy in ("OneDeviceStrategy", "MirroredStrategy"):
        monkeypatch.setattr(tf.distribute, strategy, lambda where, strategy=strategy: (strategy, where))
    monkeypatch.setattr(train_eager, "STRATEGIES", {})
    choose = train_eager.choose_strategy
    assert choose("auto") == choose("cpu") == ("OneDeviceStrategy", "/cpu:0")
    with pytest.raises(UserError, match=r"--device gpu.*install tensorflow\[and-cuda\]"):
        choose("gpu")
    names.append("/gpu:0")
    assert choose("auto") == choose("gpu") == ("OneDeviceStrategy", "/gpu:0")
    names.append("/gpu:1")
    assert choose("auto") == ("MirroredStrategy", ["/gpu:0", "/gpu:1"])
    assert choose("gpu") is choose("auto")  # all trainings of a process share it
    assert choose("cpu") == ("OneDeviceStrategy", "/cpu:0")


def test_a_cell_that_is_run_again_takes_the_first_ones_strategies():
    source = Path(train_eager.__file__).read_text()
    (line,) = [line for line in source.splitlines() if line.startswith("STRATEGIES")]
    kept = {"tf": tf, "STRATEGIES": {"gpus": "the first one"}}
    exec(line, kept)
    assert kept["STRATEGIES"] == {"gpus": "the first one"}


def test_a_training_leaves_keras_precision_as_it_was(small):
    before = tf.keras.config.dtype_policy().name
    training = make(small | {"precision": "bfloat16"})
    assert training.network.prep.conv.compute_dtype == "bfloat16"
    assert tf.keras.config.dtype_policy().name == before == "float32"


# ---- the loss and the rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_numpys_sum_and_filler_counts_for_nothing(smoothing):
    logits = np.random.default_rng(0).standard_normal((7, 5)) * 3
    labels = np.array([0, 4, 2, 2, 1, 3, 0], np.int32)
    loss = train_eager.cross_entropy_sum
    single = tf.constant(logits, tf.float32)
    expected = cross_entropies(logits, labels, smoothing)
    assert float(loss(single, tf.constant(labels), smoothing)) == pytest.approx(expected.sum(), rel=1e-5)
    filled = np.where([1, 0, 1, 1, 0, 1, 1], labels, np.int32(-1))
    kept = expected[filled >= 0].sum()
    assert float(loss(single, tf.constant(filled), smoothing)) == pytest.approx(kept, rel=1e-5)
    hits = (logits.argmax(1) == labels) & (filled >= 0)
    assert float(train_eager.count_correct(single, tf.constant(filled))) == hits.sum()


def test_a_row_is_the_mean_over_the_images_seen(small, monkeypatch):
    """At a rate of 0 the weights stay, so an epoch's sums can be made again, batch by batch."""
    monkeypatch.setattr(data.Batches.test, "__defaults__", (7,))  # 24 is no multiple of 7
    options = {**small, **PLAIN, "epochs": 1, "learning_rate": 0.0, "batch_size": 24}
    training = make(options, label_smoothing=0.25, logit_scale=0.5, weight_decay=0.1)
    start = values(training.weights)
    moments = list(training.run())
    assert [(m.epoch, m.step) for m in moments] == [(1, 1), (1, 2), (1, 3), (1, 3)]
    assert [m.row is None for m in moments] == [True, True, True, False]
    row, images = moments[-1].row, training.images
    for value, same in zip(values(training.weights), start, strict=True):
        np.testing.assert_array_equal(value, same)
    logits = training.network(tf.constant(standardised(images, images.test_images))).numpy()
    assert row["test_loss"] == pytest.approx(cross_entropies(logits, images.test_labels).mean(), rel=1e-5)
    assert row["test_accuracy"] == pytest.approx((logits.argmax(1) == images.test_labels).mean())
    losses, hits = [], []
    for number in range(3):  # 80 // 24
        pixels, labels = batch_of(training, 1, number)
        logits = training.network(tf.constant(pixels), training=True).numpy()
        losses += list(cross_entropies(logits, labels, 0.25))
        hits += list(logits.argmax(1) == labels)
    assert len(losses) == 72
    assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert row["train_accuracy"] == pytest.approx(np.mean(hits))
    assert row["epoch"] == 1 and row["train_seconds"] > 0
    assert list(row) == ["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "train_seconds"]


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "train_seconds"} for row in rows]


def test_it_learns_repeatably_tracing_once(small, trained, capsys):
    training, rows = trained
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["train_loss"] < rows[0]["train_loss"] < 2.0
    assert training.train_steps.experimental_get_tracing_count() == 1
    assert training.train_step.experimental_get_tracing_count() == 1
    again, same = train_eager.train(**small)
    assert without_times(same) == without_times(rows)
    assert_equal_to_the_bit(again, training)
    shown = capsys.readouterr()
    assert "1 x CPU, float32" in shown.out and "\r" not in shown.out + shown.err  # no bar, but on a terminal
    assert f"test_loss {rows[1]['test_loss']:.4g}" in shown.out + shown.err


def test_another_seed_and_an_early_end_on_the_same_schedule(small, trained):
    (first,) = train_eager.train(**small, stop_after=1)[1]
    (other,) = train_eager.train(**small, stop_after=1, seed=1)[1]
    assert without_times([first]) == without_times(trained[1])[:1]
    assert other["train_loss"] != first["train_loss"] and other["test_loss"] != first["test_loss"]


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
def test_operation_by_operation_it_computes_the_same(small):
    options = {**small, "epochs": 1, "learning_rate": 0.02, "batch_size": 40}
    (graph,), (eager,) = (train_eager.train(**options, eager=eager)[1] for eager in (False, True))
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert eager[name] == pytest.approx(graph[name], rel=1e-3)


def test_another_recipe_hands_in_its_own_network_optimizer_and_batches(small):
    calls = []

    class Negative(data.Batches):
        def decode(self, images, labels):
            return -images, labels

    def network(config, images):
        calls.append(("network", config, images, tf.distribute.has_strategy()))
        return train_eager.make_network(config, images)

    def optimizer(config, network, steps):
        calls.append(("optimizer", config, network, steps))
        return Nesterov(0.0), list(range(25))

    config = Config(**{**small, **PLAIN})
    training = Training(config, network=network, optimizer=optimizer, batches=Negative)
    assert calls == [
        ("network", config, training.images, True), ("optimizer", config, training.network, 5)
    ]  # fmt: skip
    assert training.decays == list(range(25)) and len(training.weights) == 25
    step(training)
    pixels, labels = batch_of(training, 1, 0)
    loss = cross_entropies(training.network(tf.constant(-pixels), training=True), labels).sum()
    assert training.fetch()[0] == pytest.approx(loss, rel=1e-4)
    assert training.fetch() == (0.0, 0.0)  # since the last fetch


def test_a_loss_that_is_not_finite_ends_in_one_line(small, capsys):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in small.items() if name != "jit"]
    assert train_eager.main([*flags, "--no-jit", "--learning-rate=1e6", "--weight-decay=1e3"]) == 2
    error = capsys.readouterr().err
    assert "epoch" in error and "--learning-rate" in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 81}, "--batch-size 81 .*80.* try 80"),
        ({"data": "/no/such/folder"}, "/no/such/folder"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": "3"}, "epochs"),
        ({"epochs": None}, "epochs"),
        ({"batchsize": 16}, "batchsize"),
        ({"stop_after": 3}, "stop_after 3 is above epochs 2"),
        ({"warmup_epochs": 2.0}, "warmup_epochs 2 is not below epochs 2"),
    ],
)
def test_a_wrong_call_is_a_users_error_of_one_line(small, changes, words):
    with pytest.raises(UserError, match=words) as error:
        train_eager.train(**{**small, **changes})
    assert "\n" not in str(error.value)


# ---- hyperparameters ---------------------------------------------------------------------------------------

LIMITS = {
    "epochs": (1, 100_000), "batch_size": (1, 1_000_000), "learning_rate": (0, 1e6), "warmup_epochs": (0, 1e5),
    "momentum": (0, 0.9999), "weight_decay": (0, 1e3), "label_smoothing": (0, 0.9999), "width": (1, 4096),
    "logit_scale": (0, 1e6), "pad": (0, 31), "cutout": (0, 32), "seed": (0, 2**31 - 1), "stop_after": (0, 100_000),
}  # fmt: skip
CHOICES = {
    "flip": ["none", "random"], "device": ["auto", "cpu", "gpu", "tpu"],
    "precision": ["auto", "float32", "bfloat16", "float16"],
}  # fmt: skip


def test_the_defaults_are_davidnets():
    """dawn.py and torch_backend.py of cifar10-fast, 2019."""
    published = {
        "epochs": 24, "batch_size": 512, "learning_rate": 0.4, "warmup_epochs": 5, "momentum": 0.9,
        "weight_decay": 5e-4, "label_smoothing": 0, "width": 64, "logit_scale": 0.125, "pad": 4, "flip": "random",
        "cutout": 8,
    }  # fmt: skip
    assert {name: getattr(Config(), name) for name in published} == published


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_is_allowed_and_nothing_beyond_it(name):
    low, high = LIMITS[name]
    room = {"epochs": 100_000, "warmup_epochs": 0.5}
    whole = isinstance(getattr(Config(), name), int)
    for value in (low, high):
        if name == "warmup_epochs" and value == high:
            continue  # always below the epochs
        assert getattr(Config(**{**room, name: value}), name) == value
    for value in (low - 1 if whole else low - 1e-9, high + 1 if whole else high * (1 + 1e-9)):
        with pytest.raises(ValueError, match=rf"^{name} .* out of range; give {low:g} to {re.escape(f'{high:.10g}')}$"):
            Config(**{**room, name: value})
    wrong = ["3", None, True, [3], float("nan")] + ([1.5, 2.0] if whole else [float("inf")])
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{name} ") as error:
            Config(**{**room, name: value})
        assert "\n" not in str(error.value)


def test_words_and_switches_are_checked_too():
    for name, choices in CHOICES.items():
        assert [getattr(Config(**{name: choice}), name) for choice in choices] == choices
        for wrong in ("", "AUTO", "alternating ", 1, None):
            with pytest.raises(ValueError, match=name):
                Config(**{name: wrong})
    for name in ("jit", "eager"):
        for wrong in (0, 1, "yes", None):
            with pytest.raises(ValueError, match=name):
                Config(**{name: wrong})
    with pytest.raises(ValueError, match="data"):
        Config(data=7)
    with pytest.raises(AttributeError):
        Config().epochs = 3  # frozen


def form():
    """What the top of the file says: name -> (text of the value, Colab's comment)."""
    lines = (CORE / "train_eager.py").read_text().splitlines()
    matches = (re.fullmatch(r"([A-Z_]+) = (.*?)  #@param (.*)", line) for line in lines)
    return {m[1]: (m[2], m[3]) for m in matches if m}


def test_each_constant_is_a_field_and_a_flag_with_its_choices():
    names = [field.name for field in fields(Config)]
    assert [name.lower() for name in form()] == names
    assert set(LIMITS) | set(CHOICES) | {"data", "jit", "eager", "checkpoint_dir"} == set(names)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    train_eager.add_flags(parser, Config)
    flags = {action.dest: action for action in parser._actions if action.dest != "help"}
    assert list(flags) == names
    colab = {int: "integer", float: "number", bool: "boolean", str: "string"}
    for field in fields(Config):
        constant, (text, comment) = field.name.upper(), form()[field.name.upper()]
        assert getattr(train_eager, constant) == field.default == getattr(Config(), field.name)
        assert type(field.default) is field.type
        flag = flags[field.name]
        assert flag.option_strings[0] == "--" + field.name.replace("_", "-")
        assert f"(default: {field.default!r})" in flag.help and field.metadata["about"] in flag.help.replace("%%", "%")
        if field.name in CHOICES:
            assert ast.literal_eval(comment) == CHOICES[field.name] == list(field.metadata["choices"])
            assert list(flag.choices) == CHOICES[field.name]
        elif comment == '{type:"raw"}':
            assert constant in ("WARMUP_EPOCHS",), text  # an expression
        else:
            assert comment == f'{{type:"{colab[field.type]}"}}'
            ast.literal_eval(text)
        if field.name in LIMITS:
            assert (field.metadata["low"], field.metadata["high"]) == LIMITS[field.name]
    assert " ".join(parser.format_help().split()).count("(default: ") == len(names) == 20


class Captured(Exception):
    """Raised in place of a training: what it would have trained."""


def config_of(module, monkeypatch, call):
    def capture(config, **more):
        raise Captured(config)

    monkeypatch.setattr(module, "Training", capture)
    with pytest.raises(Captured) as captured:
        call()
    return asdict(captured.value.args[0])


def test_the_warm_up_keeps_its_share_when_the_epochs_alone_are_given(monkeypatch):
    def config(**changes):
        return config_of(train_eager, monkeypatch, lambda: train_eager.train(**changes))

    assert config()["warmup_epochs"] == pytest.approx(5)
    assert config(epochs=2)["warmup_epochs"] == pytest.approx(5 / 12)
    assert config(epochs=2, warmup_epochs=1.5)["warmup_epochs"] == 1.5
    assert config(warmup_epochs=3)["warmup_epochs"] == 3


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ("", {}),
        ("--epochs 12 --batch-size=256", {"epochs": 12, "batch_size": 256, "warmup_epochs": 2.5}),
        ("--learning-rate 1 --weight-decay 0 --pad 2", {"learning_rate": 1.0, "weight_decay": 0.0, "pad": 2}),
        ("--no-jit --eager --flip none", {"jit": False, "eager": True, "flip": "none"}),
        ("--data x --checkpoint-dir y --stop-after 3", {"data": "x", "checkpoint_dir": "y", "stop_after": 3}),
    ],
)
def test_flags_change_what_they_name_alone(monkeypatch, flags, changes):
    found = config_of(train_eager, monkeypatch, lambda: train_eager.main(flags.split()))
    assert found == pytest.approx(asdict(Config()) | changes)


@pytest.mark.parametrize(
    "flags", ["--epochs three", "--epoch 3", "--zzz", "stray", "--flip sideways", "--jit=maybe", "--pad 2.5"]
)
def test_flags_that_are_none_end_in_exit_code_2(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        train_eager.main(flags.split())
    assert ended.value.code == 2 and flags.split()[-1].split("=")[-1] in capsys.readouterr().err


def edited(folder, **constants):
    """train_eager.py with other constants at its top, as a user edits them, imported from `folder`."""
    source = (CORE / "train_eager.py").read_text()
    for name, value in constants.items():
        source, count = re.subn(rf"^{name} = .*?(?=  #@param)", f"{name} = {value}", source, flags=re.MULTILINE)
        assert count == 1
    path = folder / "edited.py"
    path.write_text(source)
    return path


def imported(path):
    spec = importlib.util.spec_from_file_location("edited", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["edited"] = module  # where dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["edited"]
    return module


@pytest.mark.parametrize(
    "constants",
    [
        {"EPOCHS": "3"},
        {"EPOCHS": "48", "BATCH_SIZE": "256"},
        {"LEARNING_RATE": "0.2", "LABEL_SMOOTHING": "0.1", "WEIGHT_DECAY": "1e-3", "MOMENTUM": "0.5"},
        {"FLIP": '"none"', "CUTOUT": "0", "PAD": "2", "SEED": "7", "WIDTH": "8", "LOGIT_SCALE": "0.25"},
        {"DATA": '"x.npz"', "DEVICE": '"cpu"', "PRECISION": '"bfloat16"', "JIT": "False", "EAGER": "True"},
        {"STOP_AFTER": "2", "CHECKPOINT_DIR": '"kept"', "WARMUP_EPOCHS": "2.5"},
        {"EPOCHS": "10", "WARMUP_EPOCHS": "2.0"},
        {"WARMUP_EPOCHS": "4"},  # whole numbers, where fractions are allowed too
        {"LEARNING_RATE": "1", "WEIGHT_DECAY": "0", "LOGIT_SCALE": "1", "MOMENTUM": "0"},
    ],
    ids=lambda constants: ", ".join(constants),
)
def test_an_edited_constant_counts_like_its_flag(tmp_path, monkeypatch, constants):
    module = imported(edited(tmp_path, **constants))
    changes = {name.lower(): ast.literal_eval(value) for name, value in constants.items()}
    by_flag = config_of(train_eager, monkeypatch, lambda: train_eager.train(**changes))
    assert config_of(module, monkeypatch, module.train) == pytest.approx(by_flag)
    assert config_of(module, monkeypatch, lambda: module.main([])) == pytest.approx(by_flag)
    # and a flag beside it counts as ever
    given = {"learning_rate": 0.125, "weight_decay": 0.5, "momentum": 0.75, "warmup_epochs": 0.25}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert config_of(module, monkeypatch, lambda: module.main(flags)) == pytest.approx(by_flag | given)


def test_an_edited_warm_up_keeps_its_share_of_another_number_of_epochs(tmp_path, monkeypatch):
    module = imported(edited(tmp_path, WARMUP_EPOCHS="1", EPOCHS="2"))
    config = config_of(module, monkeypatch, lambda: module.main(["--epochs=4"]))
    assert (config["epochs"], config["warmup_epochs"]) == (4, 2)


@pytest.mark.parametrize("constants", [{"EPOCHS": "0"}, {"BATCH_SIZE": '"many"'}, {"PAD": "32"}, {"FLIP": '"both"'}])
def test_a_wrong_constant_is_refused_in_one_line(tmp_path, capsys, constants):
    module = imported(edited(tmp_path, **constants))
    assert module.main([]) == 2
    error = capsys.readouterr().err
    (name,) = constants
    assert name.lower() in error and len(error.strip().splitlines()) == 1
    assert error.count("many") <= 1  # the wrong value is not recommended too


def test_in_a_notebook_it_trains_what_its_constants_say(tmp_path, small_data, monkeypatch):
    """The arguments are the kernel's own there; `training` and `rows` are left for the next cell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    constants = {"EPOCHS": 1, "BATCH_SIZE": 16, "WIDTH": 4, "JIT": False, "DATA": small_data, "DEVICE": "cpu"}
    path = edited(tmp_path, **{name: repr(value) for name, value in constants.items()})
    left = runpy.run_path(str(path), init_globals={"get_ipython": lambda: None}, run_name="__main__")
    assert len(left["rows"]) == 1 and left["training"].config.width == 4
    assert [file.name for file in tmp_path.iterdir()] == ["edited.py"]


# ---- going on after an interruption ------------------------------------------------------------------------


def assert_equal_to_the_bit(training, other):
    for value, same in zip(values(training.network.variables), values(other.network.variables), strict=True):
        np.testing.assert_array_equal(value, same)
    for value, same in zip(values(training.optimizer.variables), values(other.optimizer.variables), strict=True):
        np.testing.assert_array_equal(value, same)


def test_interrupted_and_gone_on_with_it_ends_as_undisturbed(small, trained, tmp_path, monkeypatch):
    undisturbed, rows = trained
    options = {**small, "checkpoint_dir": str(tmp_path / "kept")}
    run = Training.run

    def interrupted(self, *start):
        for moment in run(self, *start):
            if (moment.epoch, moment.step) == (2, 3):
                raise KeyboardInterrupt
            yield moment

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Training, "run", interrupted)
        train_eager.train(**options)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["last.npz"]
    resumed, all_rows = train_eager.train(**options)
    assert without_times(all_rows) == without_times(rows)
    assert_equal_to_the_bit(resumed, undisturbed)
    finished, same_rows = train_eager.train(**options)  # nothing left to do
    assert same_rows == all_rows
    assert_equal_to_the_bit(finished, undisturbed)


def test_checkpoints_in_a_folder_that_is_not_mounted_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(train_eager, "Training", lambda *_: pytest.fail("it trains"))
    with pytest.raises(train_eager.UserError, match=r"No such file.*MyDrive/davidnet.*make or mount"):
        train_eager.train(checkpoint_dir=str(tmp_path / "MyDrive" / "davidnet"))
    assert not any(tmp_path.iterdir())
    (tmp_path / "a file").touch()
    with pytest.raises(train_eager.UserError, match=r"File exists.*a file.*or take another"):
        train_eager.train(checkpoint_dir=str(tmp_path / "a file"))


def test_a_training_goes_on_from_within_an_epoch(small, trained, tmp_path):
    """What another loop around `run` does: it may save after any step."""
    first, second = make(small), make(small)
    for moment in first.run():
        if moment[:2] == (2, 3):
            first.save(tmp_path / "state.npz", [])
            break
    assert second.restore(tmp_path / "state.npz") == []
    assert [(m.epoch, m.step) for m in second.run(2, 3)] == [(2, 4), (2, 5), (2, 5)]
    assert_equal_to_the_bit(second, trained[0])
    (last,) = second.run(2, 5)  # saved after an epoch's last step: only its row is left to make
    assert last[:2] == (2, 5) and last.row["test_loss"] == trained[1][1]["test_loss"]


def test_the_rate_is_read_by_one_compiled_program_for_all_updates():
    """A program that held the number of the update would be compiled again for each."""
    rate, step = train_eager.EpochRate(train_eager.triangle(4, 1, 0.4), 4, 5, 16), tf.Variable(0, dtype=tf.int64)
    read = tf.function(lambda: rate(step), jit_compile=True)
    programs = set()
    for update in (0, 3, 11):
        step.assign(update)
        assert float(read()) == pytest.approx(np.interp((update + 1) / 5, [0, 1, 4], [0, 0.4, 0]) / 16)
        programs.add(read.experimental_get_compiler_ir()(stage="hlo"))
    assert len(programs) == 1


@pytest.mark.parametrize(("before", "after"), [("float16", "float32"), ("float32", "float16"), ("float16", "float16")])
def test_a_checkpoint_goes_on_in_another_precision(small, tmp_path, before, after):
    """A notebook may come back on another card. The loss scale starts again; all else is there to the bit."""
    first, second = make(small, precision=before), make(small, precision=after)
    step(first, count=2)
    first.save(tmp_path / "state.npz", [])
    second.restore(tmp_path / "state.npz")
    assert len(first.variables) == len(second.variables) > 40
    for variable, other in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), np.asarray(other))


def test_evaluating_within_an_epoch_leaves_its_sums(small):
    training = make(small)
    whole = [moment.row for moment in make(small).run() if moment.row]
    rows = []
    for moment in training.run():
        if moment.row is None and moment.step == 2:
            loss, accuracy = training.evaluate()
            assert 0 < loss < 100 and 0 <= accuracy <= 1
        rows += [moment.row] if moment.row else []
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in whole]


def test_a_checkpoint_of_other_hyperparameters_is_refused(small, tmp_path, capsys):
    training, path = make(small), tmp_path / "last.npz"
    training.save(path, [{"epoch": 1}])
    state = path.read_bytes()
    where = {"data": "x", "device": "auto", "precision": "bfloat16", "jit": True, "eager": True, "stop_after": 1}
    what = {
        "epochs": 3, "batch_size": 8, "learning_rate": 0.2, "warmup_epochs": 1.0, "momentum": 0.5, "weight_decay": 0.1,
        "label_smoothing": 0.1, "width": 5, "logit_scale": 1.0, "pad": 3, "flip": "none", "cutout": 4, "seed": 1,
    }  # fmt: skip
    assert {*where, *what, "checkpoint_dir"} == {field.name for field in fields(Config)}
    assert set(training.identity) == {*what, "images"}
    assert training.restore(path) == [{"epoch": 1}]
    identity = training.identity
    for name, value in what.items():
        training.identity = identity | {name: value}
        with pytest.raises(UserError, match=r"last\.npz") as error:
            training.restore(path)
        assert "\n" not in str(error.value)
    flags = ["--learning-rate=0.2", f"--checkpoint-dir={tmp_path}", "--no-jit", "--warmup-epochs=0.5", "--device=cpu"]
    flags += [f"--{name.replace('_', '-')}={small[name]}" for name in ("data", "width", "batch_size", "epochs")]
    assert train_eager.main(flags) == 2
    error = capsys.readouterr().err
    assert "last.npz" in error and len(error.strip().splitlines()) == 1
    assert path.read_bytes() == state


def test_an_interrupted_write_leaves_the_checkpoint_before_it(small, tmp_path, monkeypatch):
    training, path = make(small), tmp_path / "last.npz"
    training.save(path, [{"epoch": 1}])
    state = path.read_bytes()

    def interrupted(file, *arrays, **more):
        file.write(b"PK half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(np, "savez", interrupted)
        training.save(path, [{"epoch": 1}, {"epoch": 2}])
    assert path.read_bytes() == state and training.restore(path) == [{"epoch": 1}]
    training.save(path, [{"epoch": 1}, {"epoch": 2}])  # over what the interruption left
    assert len(training.restore(path)) == 2
    assert [file.name for file in path.parent.iterdir()] == ["last.npz"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK"])
def test_a_checkpoint_that_cannot_be_read_is_refused_in_one_line(small, tmp_path, content):
    path = tmp_path / "last.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.npz") as error:
        make(small).restore(path)
    assert "\n" not in str(error.value)


# ---- handing over, and two devices ---------------------------------------------------------------------------


def test_with_the_repository_around_it_the_script_hands_over_before_tensorflow_loads(tmp_path):
    """A lab of one line that says what it was given; its code is the exit code."""
    source = (CORE / "train_eager.py").read_text()
    (module,) = re.findall(r"from lab\.(\w+) import main as", source)
    shutil.copy(CORE / "train_eager.py", tmp_path)
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / f"{module}.py").write_text(
        "import sys\n"
        "def main(kind, add_flags):\n"
        "    assert 'tensorflow' not in sys.modules and 'numpy' not in sys.modules\n"
        "    print(kind.__name__, kind().epochs, add_flags.__name__, *sys.argv[1:])\n"
        "    return 5\n"
    )
    command = [sys.executable, "train_eager.py", "--recipe", "speedrun"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (5, "Config 24 add_flags --recipe speedrun\n"), done.stderr


TWO = """
import json, sys
import numpy as np, tensorflow as tf
from train_eager import Config, LossScale, Nesterov, Training, UserError
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
options = json.loads(sys.argv[1])
training = Training(Config(**options), strategy=strategy)
training.train_steps(training.batches.open(1), tf.constant(1))
found = {"sums": training.fetch(), "test": training.evaluate(), "replicas": training.replicas}
local = strategy.experimental_local_results
for number, variable in enumerate(training.network.variables):
    found[f"v{number}"] = tf.convert_to_tensor(variable)
    copies = local(variable.value)
    assert (copies[0].numpy() == copies[1].numpy()).all(), variable.path
try:
    Training(Config(**options | {"batch_size": 15}), strategy=strategy)
except UserError as error:
    found["refusal"] = str(error)
with strategy.scope():
    weight = tf.keras.Variable(np.ones(1, np.float32))
    optimizer = LossScale(Nesterov(0.1), initial_scale=64.0)
    optimizer.build([weight])
@tf.function
def step(sick):
    replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
    gradient = tf.where(sick == replica, np.float32(np.inf), optimizer.scale_loss(0.5))
    optimizer.apply([gradient[None], tf.ones([3])][:1], [weight])
for sick in (-1, 1, -1, 0):
    tf.function(lambda: strategy.run(step, (tf.constant(sick),)))()
found["weights"] = [float(v[0]) for v in local(weight.value)]
found["scales"] = [float(v) for v in local(optimizer.dynamic_scale.value)]
np.savez(sys.argv[2], **found)
"""


def test_two_replicas_make_one_update_of_the_two_halves(small, tmp_path):
    """Gradients summed, the decay once, each half normalised by itself, and the running statistics their mean."""
    options = {**small, **PLAIN, "weight_decay": 0.1}
    environment = os.environ | {"PYTHONPATH": str(CORE)}
    command = [sys.executable, "-c", TWO, json.dumps(options), str(tmp_path / "two.npz")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two, training = np.load(tmp_path / "two.npz"), make(options)
    assert int(two["replicas"]) == 2
    pixels, labels = batch_of(training, 1, 0)
    halves = [(pixels[:8], labels[:8]), (pixels[8:], labels[8:])]
    losses, hits, running = [], [], []
    start, network = values(training.network.variables), training.network
    for images, numbers in halves:
        for variable, value in zip(network.variables, start, strict=True):
            variable.assign(value)
        logits = network(tf.constant(images), training=True).numpy()
        losses += list(cross_entropies(logits, numbers))
        hits += list(logits.argmax(1) == numbers)
        running.append(values(network.non_trainable_variables))
    assert two["sums"] == pytest.approx([np.sum(losses), np.sum(hits)], rel=1e-5)
    for variable, value in zip(network.variables, start, strict=True):
        variable.assign(value)
    rate = np.interp(1 / 5, [0, 0.5, 2], [0, 0.1, 0]) / 16
    before = [w.astype(np.float64) for w in values(training.weights)]
    gradients = [g + 0.1 * 16 * w for g, w in zip(gradients_of(training, halves), before, strict=True)]
    expected = {id(v): w - rate * 1.9 * g for v, w, g in zip(training.weights, before, gradients, strict=True)}
    means = (np.mean(pair, 0) for pair in zip(*running, strict=True))
    expected |= {id(v): mean for v, mean in zip(network.non_trainable_variables, means, strict=True)}
    for number, variable in enumerate(network.variables):
        value = expected[id(variable)]
        np.testing.assert_allclose(two[f"v{number}"], value, atol=2e-5 * np.abs(value).max(), err_msg=variable.path)
        variable.assign(two[f"v{number}"])
    assert two["test"] == pytest.approx(training.evaluate(), rel=1e-4)
    assert "15" in str(two["refusal"]) and "2 replicas" in str(two["refusal"]) and "try 14" in str(two["refusal"])
    # Steps 2 and 4 overflow, on the second replica and on the first: two are left, of gradient 0.5 + 0.5.
    assert list(two["weights"]) == pytest.approx([1 - 0.1 * 1.9 - 0.1 * (1 + 0.9 * 1.9)] * 2, rel=1e-5)
    assert list(two["scales"]) == [16, 16]
