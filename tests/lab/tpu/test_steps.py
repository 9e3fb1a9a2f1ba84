"""The lowered steps: those that a TPU would run, and equal texts for equal programs."""

from pathlib import Path

import pytest
import tensorflow as tf

from lab.tpu import steps

pytestmark = pytest.mark.long


def lowered(recipe, step, precision="bfloat16", batch_size=None):
    ((name, size, text),) = steps.lower(recipe, [step], precision, batch_size)
    assert name == step
    assert "stablehlo.convolution" in text and str(Path(tf.__file__).parent) not in text
    return size, text


def test_equal_steps_of_two_recipes_are_equal_texts():
    """Both evaluate one network; the names of layers and functions, which TensorFlow counts, must not differ."""
    first = lowered("tricks-pool-first", "evaluation")
    assert first[0] == 1000
    assert lowered("tricks-smoothing", "evaluation") == first
    assert lowered("post4-conv3", "evaluation") != first


def test_each_side_of_small_images_has_a_step():
    found = list(steps.lower("speedrun-lowres", ["train"], "bfloat16", 8))
    assert [name for name, *_ in found] == ["train, 24 pixels", "train, 28 pixels", "train, 32 pixels"]
    for (_, _, text), side in zip(found, (24, 28, 32), strict=True):
        smaller = [other for other in (24, 28) if f"tensor<8x{other}x{other}x3x" in text]
        assert smaller == [side] * (side < 32)


def test_a_training_step_chooses_its_pixels_by_products_and_takes_only_the_plan():
    size, text = lowered("davidnet", "train", batch_size=16)
    assert size == 16
    assert "tensor<16x6xi32>" in text  # six numbers an image, and no images
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    # rows of 32 x 32 and columns of 96 x 96 values, for each image
    assert any("tensor<16x32x32xbf16>" in line and "tensor<16x32x96xbf16>" in line for line in lines)
    assert any("tensor<16x96x96xbf16>" in line for line in lines)
