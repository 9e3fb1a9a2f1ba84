"""lab/predict.py, lab/images/photos.py, lab/report/confusion.py: pixels, probabilities and counts by NumPy and hand."""

import base64
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lab import predict
from lab.base.errors import UserError
from lab.base.files import encode
from lab.images import load, photos
from lab.report import confusion
from lab.runs import record, trained

ROOT = Path(__file__).resolve().parents[2]


def png(image, *, size=None):
    """A PNG file of uint8 (H, W, 3) or (H, W), by the format's own description; `size`: what its header says."""
    height, width = image.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in image)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", *(size or (width, height)), 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bmp(image, *, bits=24, compression=0):
    """A BMP file of uint8 (H, W, 3), 24 bits a pixel, rows from the bottom; W a multiple of four."""
    height, width = image.shape[:2]
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    pixels = image[::-1, :, ::-1].tobytes()
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + header + pixels


def gif(colours):
    """A GIF file with a frame of 2x1 pixels for each pair of palette indices (0 to 3)."""
    palette = bytes([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    parts = [b"GIF89a", struct.pack("<HHBBB", 2, 1, 0b10000001, 0, 0), palette]
    for first, second in colours:
        # LZW codes of 3 bits, the first in the lowest: clear (4), two pixels, end (5)
        bits = 4 | first << 3 | second << 6 | 5 << 9
        parts += [b",", struct.pack("<HHHHB", 0, 0, 2, 1, 0), b"\x02\x02", struct.pack("<H", bits), b"\0"]
    return b"".join([*parts, b";"])


def noise(*shape):
    return np.random.default_rng(8).integers(0, 256, shape, np.uint8)


# ---- pixels ------------------------------------------------------------------------------------------------


def test_files_of_32x32_pass_unchanged(tmp_path):
    image = noise(32, 32, 3)
    for name, content in (("a.png", png(image)), ("b.bmp", bmp(image)), ("wrong.gif", png(image))):
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(photos.read(tmp_path / name), image)
    np.testing.assert_array_equal(photos.decode(png(image[..., 0])), image[..., :1].repeat(3, 2))  # grey


def test_of_a_gif_the_first_frame_counts():
    np.testing.assert_array_equal(photos.decode(gif([(1, 2), (3, 3)])), [[[255, 0, 0], [0, 255, 0]]])


def bicubic(image, side):
    """Antialiased Keys cubic (a = -1/2) in float64: the kernel is stretched where pixels are joined."""
    size = len(image)
    scale = size / side
    stretch = max(scale, 1.0)
    centres = (np.arange(side) + 0.5) * scale
    x = np.abs((np.arange(size) + 0.5 - centres[:, None]) / stretch)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("ih,jw,hwc->ijc", weights, weights, image.astype(np.float64))


@pytest.mark.parametrize("height, width", [(96, 70), (33, 45), (20, 20)])
def test_others_are_cut_to_the_middle_square_and_resized(height, width):
    image = noise(height, width, 3)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    expected = np.clip(bicubic(image[top : top + side, left : left + side], 32), 0, 255)
    assert np.abs(photos.fit(image) - expected).max() < 0.51  # rounded to whole numbers


def test_a_strip_is_cut_only():
    image = noise(32, 100, 3)
    np.testing.assert_array_equal(photos.fit(image), image[:, 34:66])


@pytest.mark.parametrize("order", ["<", ">"])
def test_photographs_are_turned_as_their_exif_says(order):
    picture = tf.io.encode_jpeg(np.kron(noise(3, 5, 1), np.ones((8, 8, 3), np.uint8)), quality=98).numpy()
    plain = photos.decode(picture)
    turned = {  # what EXIF's rows and columns 0 are
        1: plain,
        2: plain[:, ::-1],
        3: np.rot90(plain, 2),
        4: plain[::-1],
        5: plain.transpose(1, 0, 2),
        6: np.rot90(plain, -1),  # clockwise
        7: np.rot90(plain, 2).transpose(1, 0, 2),
        8: np.rot90(plain, 1),
        9: plain,  # there is no 9
    }
    for orientation, expected in turned.items():
        mark = b"II" if order == "<" else b"MM"
        entries = struct.pack(f"{order}HHIHH", 0x010F, 3, 1, 7, 0) + struct.pack(
            f"{order}HHIHH", 0x0112, 3, 1, orientation, 0
        )
        tiff = mark + struct.pack(f"{order}HIH", 42, 8, 2) + entries + bytes(4)
        segment = b"Exif\0\0" + tiff
        marked = picture[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + picture[2:]
        np.testing.assert_array_equal(photos.decode(marked), expected, err_msg=str(orientation))


def hostile(folder):
    """Files that are no whole images, by name."""
    image = noise(40, 40, 3)
    jpeg = tf.io.encode_jpeg(image).numpy()
    damaged = bytearray(png(image))
    damaged[60] ^= 255
    return {
        "missing.png": None,
        "empty.png": b"",
        "text.jpg": b"not an image at all\n" * 9,
        "cut.png": png(image)[:900],
        "flipped.png": bytes(damaged),
        "signature.png": b"\x89PNG\r\n\x1a\n",
        "huge.png": png(image, size=(2**31 - 1, 2**31 - 1)),
        "large.png": png(image, size=(9_000, 9_000)),
        "tall.png": png(image, size=(40, 41)),
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "header.jpg": jpeg[:20],
        "cut.bmp": bmp(image)[:500],
        "header.bmp": bmp(image)[:30],
        "palette.bmp": bmp(image, bits=8),
        "packed.bmp": bmp(image, compression=1),
        "cut.gif": gif([(1, 2)])[:25],
        "webp.png": b"RIFF\x10\0\0\0WEBPVP8 ",
        "line\nbreak.png": b"x",
    }


def test_hostile_files_end_with_one_line_and_nothing_else(finished, tmp_path, capsys):
    (tmp_path / "good.png").write_bytes(png(noise(32, 32, 3)))
    for name, content in hostile(tmp_path).items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            photos.read(path)
        message = str(caught.value)
        assert "\n" not in message and name.split("\n")[0] in message and "give" in message, name
        assert len(message) < 400 and "{{" not in message, message
        if name in ("huge.png", "large.png"):  # refused by their header, before memory is taken
            assert "pixels, the limit is" in message
    out = tmp_path / "exported"
    arguments = [str(finished), str(tmp_path / "good.png"), str(tmp_path / "text.jpg"), "--export", str(out)]
    assert predict.main(arguments) == 2
    written = capsys.readouterr()
    assert written.out == "" and len(written.err.splitlines()) == 1 and not out.exists()


def test_a_damaged_photograph_makes_tensorflow_print_nothing(tmp_path):
    jpeg = tf.io.encode_jpeg(noise(40, 40, 3)).numpy()
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    code = "import sys, lab.predict; from lab.images import photos\n"
    code += "from pathlib import Path; photos.read(Path(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-c", code, str(tmp_path / "cut.jpg")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert "UserError" in done.stderr and "Premature end" not in done.stderr


def test_a_folder_gives_all_its_images_in_order(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "below/c.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in photos.find([tmp_path])]
    assert found == ["a.JPG", "b.png", "below/c.gif"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        photos.find([tmp_path / "none"])


# ---- classes -----------------------------------------------------------------------------------------------


def test_what_is_printed_is_the_softmax_of_the_logits(finished, small_data, tmp_path, capsys):
    images = load.load(small_data, seed=0).test_images[:3]
    for index, image in enumerate(images):
        (tmp_path / f"{index}.png").write_bytes(png(image))
    run = trained.load(finished)

    def expected(views):
        powers = np.exp(run.logits(images, views).astype(np.float64))
        return powers / powers.sum(1, keepdims=True)

    assert predict.main([str(finished), "--json", str(tmp_path), "--tta", "none"]) == 0
    found = json.loads(capsys.readouterr().out)
    for index, (row, shares) in enumerate(zip(found, expected("none"), strict=True)):
        best = np.argsort(-shares)[:3]
        assert row["path"] == str(tmp_path / f"{index}.png")
        assert [item["class"] for item in row["top"]] == [str(label) for label in best]
        np.testing.assert_allclose([item["probability"] for item in row["top"]], shares[best], 1e-5)
        assert (row["class"], row["probability"]) == tuple(row["top"][0].values())
    assert predict.main([str(finished), str(tmp_path / "1.png")]) == 0
    line, shares = capsys.readouterr().out.rstrip("\n"), expected("flip")[1]
    best = np.argsort(-shares)
    then = ", ".join(f"{label} {shares[label]:.4f}" for label in best[1:3])
    assert line == f"{tmp_path / '1.png'}  {best[0]}  {shares[best[0]]:.4f}  then {then}"


def test_probabilities_do_not_overflow():
    found = confusion.probabilities(np.array([[1e4, 0.0], [-1e4, -1e4]], np.float32))
    np.testing.assert_array_equal(found, [[1, 0], [0.5, 0.5]])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "nothing to do"),
        (["--data", "x"], "add --evaluate"),
        (["--json", "--evaluate"], "for images alone"),
        (["--tta", "nine", "x.png"], "nine"),
        (["--export"], "--export"),
    ],
)
def test_wrong_arguments(arguments, words, capsys):
    assert predict.main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_help_and_mistakes_need_no_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('hidden')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for arguments, code in ((["-h"], 0), (["run"], 2)):
        command = [sys.executable, "-m", "lab", "predict", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr


# ---- the test set ------------------------------------------------------------------------------------------


def test_counts_by_hand():
    plain = np.array([[3, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 3], [9, 0, 0]], np.float32)
    viewed = np.array([[3, 0, 0], [2, 0, 0], [0, 3, 0], [0, 9, 0], [0, 0, 5]], np.float32)
    found = confusion.judge(plain, viewed, np.array([0, 0, 1, 2, 0], np.int32))
    assert (found.plain, found.viewed) == (0.8, 0.6)
    np.testing.assert_array_equal(found.confusion, [[2, 0, 1], [0, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(found.correct_plain, [2, 1, 1])
    assert found.worst.tolist() == [3, 4]  # 3 with e^9 / (e^9 + 2), 4 with e^5 / (e^5 + 2)
    assert found.certainty[3] == pytest.approx(np.exp(9) / (np.exp(9) + 2))


def test_evaluation_reports_what_the_run_recorded_and_leaves_its_mistakes(run_folder, small_data, capsys):
    assert predict.main([str(run_folder), "--evaluate", "--data", small_data]) == 0
    text = capsys.readouterr().out
    result = record.read_result(run_folder)
    for views, known in (("one view", result["test_accuracy"]), ("two views", result["test_accuracy_tta"])):
        assert f"accuracy {known:.4f} with {views} (the run recorded {known:.4f})" in text
    images = load.load(small_data, seed=3)
    logits = trained.load(run_folder).logits(images.test_images).astype(np.float64)
    predicted, labels = logits.argmax(1), images.test_labels
    content = json.loads((run_folder / "predictions.json").read_text())
    assert set(content) == {"classes", "confusion", "mistakes"} and content["classes"] == ["0", "1", "2", "3"]
    expected = [[int(((labels == i) & (predicted == j)).sum()) for j in range(4)] for i in range(4)]
    assert content["confusion"] == expected
    for row in expected:
        assert "".join(f"{number:>7}" for number in row) in text
    assert len(content["mistakes"]) == min(24, (predicted != labels).sum()) > 0
    certainty = [mistake["probability"] for mistake in content["mistakes"]]
    assert certainty == sorted(certainty, reverse=True)
    for mistake in content["mistakes"]:
        index = mistake["index"]
        assert set(mistake) == {"index", "label", "predicted", "probability", "png"}
        assert mistake["label"] == labels[index] != mistake["predicted"] == predicted[index]
        powers = np.exp(logits[index])
        assert mistake["probability"] == pytest.approx(powers.max() / powers.sum(), rel=1e-5)
        pixels = tf.io.decode_png(base64.b64decode(mistake["png"])).numpy()
        np.testing.assert_array_equal(pixels, images.test_images[index])


def test_other_views_leave_the_runs_predictions_alone(run_folder, small_data, capsys):
    assert predict.main([str(run_folder), "--evaluate", "--data", small_data, "--tta", "none"]) == 0
    assert "with two views" not in capsys.readouterr().out
    assert predict.main([str(run_folder), "--evaluate", "--data", small_data, "--tta", "six"]) == 0
    assert "with six views (not recorded)" in capsys.readouterr().out
    assert not (run_folder / "predictions.json").exists()


def test_other_images_or_classes_are_refused(run_folder, small_data, tmp_path, capsys):
    with np.load(small_data) as archive:
        arrays = dict(archive)
    arrays["x_test"] = arrays["x_test"] ^ 1
    np.savez(tmp_path / "others.npz", **arrays)
    assert predict.main([str(run_folder), "--evaluate", "--data", str(tmp_path / "others.npz")]) == 2
    assert "the images are not those of the run (sha256" in capsys.readouterr().err
    result = record.read_result(run_folder)
    result["data"]["classes"] = ["0", "1", "2", "three"]
    (run_folder / "result.json").write_text(encode(result))
    assert predict.main([str(run_folder), "--evaluate", "--data", small_data]) == 2
    error = capsys.readouterr().err
    assert "has the classes 0, 1, 2, 3, the run had 0, 1, 2, three" in error and len(error.splitlines()) == 1
    assert not (run_folder / "predictions.json").exists()
