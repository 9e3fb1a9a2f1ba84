"""lab/preview.py and sheet.py: the sheet shows crops, mirror images and holes of the images; a search finds which."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import plan
from lab import assemble, preview, sheet
from lab.images import load

ROOT = Path(__file__).resolve().parents[2]


def seen(small_data, rows=4, epochs=3, **changes):
    """Originals and what is seen of them, (rows, H, W, 3) and (rows, epochs, H, W, 3), and the training set."""
    options = assemble.configure({"batch_size": 16, "seed": 2, "data": small_data, "device": "cpu", **changes})
    images = load.load(small_data, seed=2)
    chosen, pixels = sheet.augmented(sheet.make_batches(images, options), rows, epochs)
    assert images.train_labels[chosen].tolist() == [i % 4 for i in range(rows)]
    return images.train_images[chosen], pixels, images


def test_without_augmentation_the_sheet_shows_the_images_themselves(small_data):
    originals, pixels, _ = seen(small_data, rows=6, pad=0, flip="none", cutout=0)
    np.testing.assert_array_equal(pixels, originals[:, None].repeat(3, 1))


@pytest.mark.parametrize("pipeline", ["device", "host"])
def test_smaller_images_are_shown_as_they_are_in_a_corner(small_data, pipeline):
    originals, pixels, _ = seen(small_data, pad=0, flip="none", cutout=0, sides="16x2 32", pipeline=pipeline)
    halved = originals.reshape(4, 16, 2, 16, 2, 3).mean((2, 4))  # between two pixels is their mean
    np.testing.assert_allclose(pixels[:, 0, :16, :16], halved, atol=0.51)
    assert (pixels[:, :2, 16:] == 255).all() and (pixels[:, :2, :, 16:] == 255).all()
    np.testing.assert_array_equal(pixels[:, 2], originals)


@pytest.mark.parametrize("pipeline", ["device", "host"])
def test_each_view_is_a_crop_of_the_reflected_image_or_its_mirror_image(small_data, pipeline):
    originals, pixels, _ = seen(small_data, pad=2, cutout=0, pipeline=pipeline)
    places = set()
    for original, views in zip(originals, pixels, strict=True):
        wider = np.pad(original, [(2, 2), (2, 2), (0, 0)], "reflect")
        crops = {(i, j): wider[i : i + 32, j : j + 32] for i in range(5) for j in range(5)}
        for view in views:
            same = [
                (place, turned)
                for place, crop in crops.items()
                for turned in (1, -1)
                if (crop[:, ::turned] == view).all()
            ]
            assert len(same) == 1
            places.update(same)
    assert len(places) > 6  # of 12 draws from 50


def test_alternating_flips_turn_each_image_in_every_second_epoch(small_data):
    originals, pixels, _ = seen(small_data, pad=0, cutout=0, flip="alternating")
    for original, views in zip(originals, pixels, strict=True):
        turned = [(view == original[:, ::-1]).all() for view in views]
        straight = [(view == original).all() for view in views]
        assert turned in ([True, False, True], [False, True, False]) and straight == [not t for t in turned]


def test_cutout_shows_the_mean_colour(small_data):
    originals, pixels, images = seen(small_data, pad=0, flip="none", cutout=8)
    mean = np.rint(images.train_images.reshape(-1, 3).mean(0))
    for original, views in zip(originals, pixels, strict=True):
        for view in views:
            rows, columns = np.nonzero((view != original).any(-1))
            hole = view[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert hole.shape == (8, 8, 3) and (hole == mean).all()


def test_what_is_shown_is_what_the_compiled_step_gets(small_data):
    """The views are in the training's own batches of the epoch, at the places where the plan has the images."""
    options = assemble.configure({"batch_size": 16, "seed": 2, "data": small_data, "device": "cpu", "jit": False})
    images = load.of(options)
    chosen, pixels = sheet.augmented(sheet.make_batches(images, options), 4, 2)
    batches = assemble.make(options, images=images).batches
    mean, std = images.train_images.mean((0, 1, 2)), images.train_images.std((0, 1, 2))
    for column, epoch in enumerate((1, 2)):
        batch = [batches.decode(*element)[0].numpy() for element in batches.open(epoch)]
        order = plan(options, epoch, 80)[..., 0].reshape(-1)
        trained_on = np.concatenate(batch)[[np.argwhere(order == image)[0, 0] for image in chosen]]
        np.testing.assert_allclose(trained_on * std + mean, pixels[:, column], atol=0.51)


def test_the_command_writes_the_sheet(small_data, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    command = [str(out), "--data", small_data, "--recipe", "speedrun"]
    assert preview.main(command) == 2
    assert "--batch-size 2000 is above the 80 training images; lower it" in capsys.readouterr().err
    assert preview.main([*command, "--batch-size", "20", "--cutout", "12", "--seed", "1"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and capsys.readouterr().out == f"wrote {out}\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--data", "synthetic"], "required: FILE"),
        (["x.png", "--pad", "40"], "--pad 40"),
        (["x.png", "--flip", "sometimes"], "none, random, alternating"),
        (["x.png", "--recipe", "davidnett"], "davidnet"),
        (["x.png", "--width", "8"], "unknown argument --width"),
        (["x.docx"], "name it x.png"),
        (["x"], "name it x.png"),
    ],
)
def test_wrong_flags_of_the_sheet(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert preview.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool", ["preview", "convert"])
@pytest.mark.parametrize("arguments", [["-h"], ["--no-such-flag"]])
def test_help_and_mistakes_need_no_tensorflow(tool, arguments):
    program = (
        f"import sys; from lab import {tool}\n"
        f"try: code = {tool}.main({arguments!r})\n"
        "except SystemExit as end: code = end.code\n"
        "assert 'tensorflow' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == (0 if arguments == ["-h"] else 2), done.stderr
