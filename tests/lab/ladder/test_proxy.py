"""The small network that chooses a part of each batch, against NumPy and the original's form with a mask."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from lab import assemble
from lab.base.errors import UserError
from lab.ladder import adjust, networks
from lab.ladder.proxy import Proxy

CLASSES, BATCH = 5, 12


def losses(logits, labels, smoothing):
    logits = np.asarray(logits, np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(1 - smoothing) * logs[np.arange(len(labels)), labels] - smoothing * logs.mean(1)


def rate(step):
    """airbench96_faster's, for the mean loss, at a step of its 2,160."""
    return 9 / (1 + 1 / 0.15) * (0.2 + 0.8 * step / 216 if step < 216 else (2160 - step) / 1944)


def test_it_takes_the_largest_losses_and_learns_from_those_of_every_fourth_batch():
    options = assemble.configure({"recipe": "speedrun96-proxy", "width": 8, "batch_size": BATCH})
    proxy = Proxy(options, networks.proxy(options, CLASSES, fast=False), 48, loss_scale=0.0)
    twin = networks.proxy(options, CLASSES, fast=False)
    assert [w.shape[-1] for w in twin.trainable_variables if len(w.shape) == 4] == [2, 2, 4, 4, 4, 4]
    assert not [w for w in twin.trainable_variables if "bias" in w.path]  # the whitening's stays 0
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal(proxy.network.whiten.kernel.shape)
    for network in (proxy.network, twin):
        network.whiten.kernel.assign(kernel)
    accumulated = [np.zeros(w.shape) for w in twin.trainable_variables]
    step_of = tf.function(proxy)
    for step in range(6):
        images = generator.standard_normal((BATCH, 32, 32, 3)).astype(np.float32)
        labels = generator.integers(0, CLASSES, BATCH).astype(np.int32)
        found, found_labels = step_of(tf.constant(images), tf.constant(labels))
        with tf.GradientTape() as tape:
            logits = twin(images, training=True)
            mask = np.zeros(BATCH, np.float32)
            mask[np.argsort(losses(logits, labels, 0.2))[-BATCH // 2 :]] = 1
            each = tf.keras.losses.categorical_crossentropy(
                np.eye(CLASSES)[labels], logits, from_logits=True, label_smoothing=0.2
            )
            loss = tf.reduce_sum(each * mask)
        np.testing.assert_array_equal(found, images[mask > 0])
        np.testing.assert_array_equal(found_labels, labels[mask > 0])
        gradients = tape.gradient(loss, twin.trainable_variables) if step % 4 == 0 else []
        for place, (weight, gradient) in enumerate(zip(twin.trainable_variables, gradients, strict=False)):
            factor = 64 if weight.path.endswith("shift") else 1  # in units of the summed loss:
            total = gradient.numpy() + 0.012 / 9 * BATCH / factor * weight.numpy()
            accumulated[place] = 0.85 * accumulated[place] + total
            move = factor * rate(step) / BATCH * (total + 0.85 * accumulated[place])
            weight.assign(weight.numpy() - move)
        for ours, theirs in zip(proxy.network.variables, twin.variables, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4, err_msg=f"{step} {ours.path}")
            theirs.assign(ours)  # so that rounding does not add up


@pytest.mark.parametrize("pipeline", ["host", "device"])
def test_the_main_network_sees_what_is_chosen_and_its_row_is_of_that(pipeline, small_data):
    """At a rate of 0 both networks stay as they are, so the epoch can be made again."""
    changes = {"data": small_data, "device": "cpu", "width": 8, "batch_size": 16, "epochs": 1, "jit": False}
    changes |= {"hardest": 0.25, "learning_rate": 0.0, "pad": 0, "cutout": 0, "flip": "none", "pipeline": pipeline}
    training = assemble.make(assemble.configure(changes))
    row = [moment.row for moment in training.run()][-1]
    pixels, labels = training.images.train_images / 255, training.images.train_labels
    images = ((pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))).astype(np.float32)
    seen, hits = [], []
    for numbers in training.batches.rows(1)[..., 0]:
        small = losses(training.proxy.network(images[numbers], training=True), labels[numbers], 0.0)
        chosen = numbers[np.argsort(small)[-4:]]
        logits = training.network(images[chosen], training=True).numpy()
        seen += list(losses(logits, labels[chosen], 0.0))
        hits += list(logits.argmax(1) == labels[chosen])
    assert row["train_loss"] == pytest.approx(np.mean(seen), rel=1e-4)
    assert row["train_accuracy"] == pytest.approx(np.mean(hits))
    assert all(any(v is own for v in assemble.variables(training)) for own in training.proxy.variables)
    assert int(training.proxy.seen) == training.steps_per_epoch
    assert not adjust.adjust(training, training.config)  # which would leave the small network's rates as they are


def test_several_replicas_are_refused():
    with pytest.raises(UserError, match="--hardest chooses from a whole batch, of which 2 replicas have parts"):
        options = assemble.configure({"hardest": 0.5, "batch_size": 16})
        images = SimpleNamespace(train_labels=np.zeros(80, np.int32))
        assemble.make(options, SimpleNamespace(replicas=2), images)
