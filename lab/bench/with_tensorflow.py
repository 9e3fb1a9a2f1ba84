"""Rivals written with TensorFlow: the eager tutorial's loop, Keras' `fit`, the tutorials' input; and its products."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

import data
from lab.bench.rivals import MOMENTUM, RATE, WEIGHT_DECAY, Built, Task, ready_batch
from lab.bench.with_numpy import SGEMM_GFLOP, SGEMM_REPEATS, matrices

MAPPED_IMAGES = 5120  # the per-image map is slow; a pass over so many is enough

# ---- the eager tutorial ------------------------------------------------------------------------------------


def _pytorch_init(shape: Any, dtype: Any = None) -> tf.Tensor:
    bound = 1.0 / np.sqrt(np.prod(shape[:-1]))
    return tf.random.uniform(shape, -bound, bound, dtype or tf.float32)


class ConvBN(tf.keras.Model):
    def __init__(self, filters: int) -> None:
        super().__init__()
        self.conv = tf.keras.layers.Conv2D(filters, 3, padding="same", kernel_initializer=_pytorch_init, use_bias=False)
        self.norm = tf.keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.nn.relu(self.norm(self.conv(inputs), training=training))


class ResBlk(tf.keras.Model):
    def __init__(self, filters: int, pool: Any, res: bool = False) -> None:
        super().__init__()
        self.conv_bn, self.pool, self.res = ConvBN(filters), pool, res
        if res:
            self.res1, self.res2 = ConvBN(filters), ConvBN(filters)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        h = self.pool(self.conv_bn(inputs, training=training))
        if self.res:
            h = h + self.res2(self.res1(h, training=training), training=training)
        return h


class TutorialNet(tf.keras.Model):
    """The tutorial's DavidNet of Keras layers, of width c: images to logits."""

    def __init__(self, c: int) -> None:
        super().__init__()
        pool = tf.keras.layers.MaxPooling2D()
        self.init_conv_bn = ConvBN(c)
        self.blk1 = ResBlk(2 * c, pool, res=True)
        self.blk2 = ResBlk(4 * c, pool)
        self.blk3 = ResBlk(8 * c, pool, res=True)
        self.pool = tf.keras.layers.GlobalMaxPool2D()
        self.linear = tf.keras.layers.Dense(10, kernel_initializer=_pytorch_init, use_bias=False)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        h = self.init_conv_bn(x, training=training)
        for block in (self.blk1, self.blk2, self.blk3):
            h = block(h, training=training)
        return self.linear(self.pool(h)) * 0.125


@contextlib.contextmanager
def policy(half: bool) -> Iterator[None]:
    """Within it, if `half`, Keras makes layers that compute in bfloat16 and keep their weights in float32."""
    tf.keras.config.set_dtype_policy("mixed_bfloat16" if half else "float32")
    try:
        yield
    finally:
        tf.keras.config.set_dtype_policy("float32")


def tutorial(task: Task, *, half: bool = False, compiled: bool = False) -> Built:
    """The loop of the DavidNet TF eager tutorial, ported to TensorFlow 2.

    Its fault stays: `g += ...` rebinds a name, so the weight decay is computed and never happens. `.numpy()`
    fetches loss and hits at every step.

    Args:
        half: compute in bfloat16, by Keras' policy.
        compiled: the step as one tf.function, without XLA.
    """
    x, y = map(tf.constant, ready_batch(task))
    with policy(half):
        model = TutorialNet(task.width)
    opt = tf.keras.optimizers.SGD(RATE / task.batch_size, momentum=MOMENTUM, nesterov=True)
    model(x[:1])  # makes the variables
    opt.build(model.trainable_variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = tf.cast(model(x, training=True), tf.float32)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))
        correct = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), y)
        var = model.trainable_variables
        grads = tape.gradient(loss, var)
        for g, v in zip(grads, var, strict=True):
            g += v * WEIGHT_DECAY * task.batch_size
        opt.apply_gradients(zip(grads, var, strict=True))
        return loss, tf.reduce_sum(tf.cast(correct, tf.float32))

    run = tf.function(step) if compiled else step
    totals = [0.0, 0.0]

    def steps(count: int) -> None:
        for _ in range(count):
            loss, correct = run(x, y)
            totals[0] += loss.numpy()
            totals[1] += correct.numpy()

    return steps, task.batch_size


# ---- Keras -------------------------------------------------------------------------------------------------


def keras_davidnet(width: int) -> tf.keras.Model:
    """DavidNet of standard Keras layers, functional: images to logits."""
    layers = tf.keras.layers

    def conv_bn(x: Any, filters: int) -> Any:
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x))

    def block(x: Any, filters: int, residual: bool) -> Any:
        x = layers.MaxPooling2D()(conv_bn(x, filters))
        return layers.Add()([x, conv_bn(conv_bn(x, filters), filters)]) if residual else x

    images = tf.keras.Input((32, 32, 3))
    x = conv_bn(images, width)
    for factor, residual in ((2, True), (4, False), (8, True)):
        x = block(x, factor * width, residual)
    logits = layers.Dense(10, use_bias=False)(layers.GlobalMaxPooling2D()(x))
    return tf.keras.Model(images, layers.Rescaling(0.125, dtype="float32")(logits))


def fit(task: Task, *, half: bool = False, jit_compile: bool | str = "auto") -> Built:
    """`fit` over `count` batches of a tf.data set, silent; `half` as in tutorial.

    `train_on_batch` would fetch its metrics at every step; `fit` does so once an epoch.
    """
    batches = tf.data.Dataset.from_tensors(ready_batch(task)).repeat()
    with policy(half):
        model = keras_davidnet(task.width)
    model.compile(
        tf.keras.optimizers.SGD(RATE, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )

    def steps(count: int) -> None:
        model.fit(batches, steps_per_epoch=count, verbose=0)

    return steps, task.batch_size


# ---- the input ---------------------------------------------------------------------------------------------


def map_parallel(task: Task) -> Built:
    """The tutorials' input: each image cropped, flipped and cut out by itself, batched after that."""
    images = data.load(str(task.data))
    count = min(MAPPED_IMAGES, len(images.train_labels))
    pixels = data.standardise(images.train_images[:count], *data.mean_std(images.train_images))

    def augment(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.image.random_flip_left_right(tf.image.random_crop(image, [32, 32, 3]))
        top, left = (tf.random.uniform([], 0, 25, tf.int32) for _ in range(2))
        hole = tf.pad(tf.ones([8, 8, 1]), [[top, 24 - top], [left, 24 - left], [0, 0]])
        return image * (1.0 - hole), label

    padded = tf.data.Dataset.from_tensor_slices((data.reflect_pad(pixels, 4), images.train_labels[:count]))
    mapped = padded.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    batches = mapped.shuffle(count).batch(task.batch_size, drop_remainder=True).prefetch(1)

    def passes(count: int) -> None:
        for _ in range(count):
            for images, _labels in batches:
                images[0, 0, 0, 0].numpy()

    return passes, count // task.batch_size * task.batch_size


# ---- the ceiling -------------------------------------------------------------------------------------------


def sgemm(task: Task, *, half: bool = False, jit_compile: bool = False) -> Built:
    left, right = (tf.constant(matrix, tf.bfloat16 if half else tf.float32) for matrix in matrices())
    product = tf.function(tf.matmul, jit_compile=jit_compile)

    def products(count: int) -> None:
        for _ in range(SGEMM_REPEATS * count):
            product(left, right)[0, 0].numpy()

    return products, SGEMM_GFLOP
