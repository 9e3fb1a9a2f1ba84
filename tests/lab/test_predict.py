"""lab/predict.py, lab/images/photos.py, lab/report/confusion.py: pixels, probabilities and counts by NumPy and hand."""

import base64
import dataclasses
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

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


def tiff(image, *, kind=1, claimed=None):
    """An uncompressed TIFF file of (H, W) or (H, W, 3), little-endian; `kind`: 1 whole numbers, 3 floating point."""
    height, width = claimed or image.shape[:2]
    channels = 1 if image.ndim == 2 else 3
    bits = image.dtype.itemsize * 8
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, channels // 2 + 1)),
        *((273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, image.nbytes), (339, 3, 1, kind)),
    ]
    if channels == 3:
        entries[2] = (258, 3, 3, 8 + image.nbytes)  # where its three values are
    pixels = image.tobytes() + struct.pack("<HHH", bits, bits, bits)
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory + bytes(4)


def noise(*shape):
    return np.random.default_rng(8).integers(0, 256, shape, np.uint8)


# ---- pixels ------------------------------------------------------------------------------------------------


def test_files_of_32x32_pass_unchanged(tmp_path):
    image = noise(32, 32, 3)
    for name, content in (("a.png", png(image)), ("b.bmp", bmp(image)), ("wrong.gif", png(image))):
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(photos.read(tmp_path / name), image)
    np.testing.assert_array_equal(photos.decode(png(image[..., 0])), image[..., :1].repeat(3, 2))  # grey


def test_kinds_that_people_have_are_read_as_their_formats_say():
    """16 bits are scaled, 65,535 to 255; the palette's colours are by hand."""
    image = noise(6, 8, 3)
    grey16 = np.array([[0, 257 * 9, 65_535], [128, 129, 257 * 200 + 128]], np.uint16)
    grey8 = np.array([[0, 9, 255], [0, 1, 200]], np.uint8)[..., None].repeat(3, 2)
    np.testing.assert_array_equal(photos.decode(tiff(image)), image)
    np.testing.assert_array_equal(photos.decode(tiff(grey16)), grey8)
    np.testing.assert_array_equal(photos.decode(b"P5 3 2 65535\n" + grey16.astype(">u2").tobytes()), grey8)
    palette = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 8, 0, 0, 0, 0, 2, 0) + bytes([1, 2, 3, 0, 7, 8, 9, 0])
    content = b"BM" + struct.pack("<IHHI", 66, 0, 0, 62) + palette + bytes([0, 1, 1, 0])
    expected = np.array([[[3, 2, 1], [9, 8, 7], [9, 8, 7], [3, 2, 1]]])  # blue comes first in a BMP
    np.testing.assert_array_equal(photos.decode(content), expected)


@pytest.mark.parametrize(
    "mode, kind, settings, tolerance",
    [
        *(("RGB", kind, {}, 0) for kind in ("PNG", "BMP", "TIFF", "PPM")),
        ("RGB", "WEBP", {"lossless": True}, 0),
        ("RGB", "WEBP", {"quality": 95}, 12),
        ("RGB", "JPEG", {"quality": 95, "progressive": True}, 10),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}, 0),
        ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}, 0),
        ("RGBA", "PNG", {}, 0),
        ("RGBA", "WEBP", {"lossless": True}, 0),
        ("L", "PNG", {}, 0),
        ("L", "JPEG", {"quality": 95}, 10),
        ("CMYK", "TIFF", {}, 1),
        ("CMYK", "JPEG", {"quality": 95}, 12),
        ("P", "PNG", {"transparency": 3}, 24),
        ("P", "GIF", {}, 24),
        ("P", "TIFF", {}, 24),
    ],
)
def test_what_pillow_writes_is_read_as_the_picture_that_it_was(mode, kind, settings, tolerance):
    rows, columns = np.mgrid[0:40, 0:48]
    picture = np.stack([5 * columns, 6 * rows, 120 + 0 * rows], -1).astype(np.uint8)
    if mode == "L":
        picture = picture[..., :1].repeat(3, 2)
    inked = np.dstack([255 - picture, np.zeros((40, 48), np.uint8)])
    image = {
        "RGB": Image.fromarray(picture),
        "RGBA": Image.fromarray(np.dstack([picture, np.full((40, 48), 200, np.uint8)])),
        "L": Image.fromarray(picture[..., 0]),
        "CMYK": Image.frombytes("CMYK", (48, 40), inked.tobytes()),
        "P": Image.fromarray(picture).quantize(256),
    }[mode]
    image.save(file := io.BytesIO(), kind, **settings)
    found = photos.decode(file.getvalue()).astype(int)
    assert found.shape == picture.shape and np.abs(found - picture).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_other_kinds_are_turned_as_well(kind):
    picture = noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    settings = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(picture).save(file := io.BytesIO(), kind, exif=exif, **settings)
    np.testing.assert_array_equal(photos.decode(file.getvalue()), np.rot90(picture, -1))


def test_heic_is_read_where_the_plugin_is():
    plugin = pytest.importorskip("pillow_heif", reason="HEIC needs a plugin of Pillow's")
    plugin.register_heif_opener()
    rows, columns = np.mgrid[0:64, 0:64]
    picture = np.stack([3 * columns, 3 * rows, 90 + 0 * rows], -1).astype(np.uint8)
    Image.fromarray(picture).save(file := io.BytesIO(), "HEIF", quality=95)
    assert np.abs(photos.decode(file.getvalue()).astype(int) - picture).max() <= 16


def test_heic_without_the_plugin_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(ValueError, match="it is HEIC, which needs a plugin: pip install pillow-heif"):
        photos.decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def test_without_pillow_one_line_says_what_to_install(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.png").write_bytes(png(noise(32, 32, 3)))
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert predict.main([str(finished), str(tmp_path)]) == 2
    assert capsys.readouterr().err == "images need Pillow; try: pip install Pillow\n"


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
        "nobits.bmp": bmp(image, bits=7),
        "bomb.gif": b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + gif([(1, 2)])[10:],
        "beyond.gif": gif([(1, 2)]).replace(struct.pack("<HHHH", 0, 0, 2, 1), struct.pack("<HHHH", 0, 0, 9_000, 9_000)),
        "large.tif": tiff(image, claimed=(9_000, 9_000)),
        "bomb.ppm": b"P6 1000000000 1000000000 255 ",
        "float.tif": tiff(image[..., 0].astype("<f4"), kind=3),
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n",
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
        if name in (
            "huge.png",
            "large.png",
            "bomb.gif",
            "beyond.gif",
            "strips.tif",
            "bomb.ppm",
        ):  # refused by their header, before memory is taken
            assert "pixels, the limit is" in message
    out = tmp_path / "exported"
    arguments = [str(finished), str(tmp_path / "good.png"), str(tmp_path / "text.jpg"), "--export", str(out)]
    assert predict.main(arguments) == 2
    written = capsys.readouterr()
    assert written.out == "" and len(written.err.splitlines()) == 1 and not out.exists()


def test_damaged_images_make_no_library_print(tmp_path):
    jpeg = tf.io.encode_jpeg(noise(40, 40, 3)).numpy()
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    Image.fromarray(noise(40, 40, 3)).save(file := io.BytesIO(), "TIFF", compression="tiff_adobe_deflate")
    (tmp_path / "damaged.tif").write_bytes(file.getvalue()[:20] + bytes(80) + file.getvalue()[100:])
    code = "import sys; from lab.images import photos; from lab.base.errors import UserError\n"
    code += "from pathlib import Path\n"
    code += "for name in sys.argv[1:]:\n  try: photos.read(Path(name))\n  except UserError as error: print(error)"
    command = [sys.executable, "-c", code, str(tmp_path / "cut.jpg"), str(tmp_path / "damaged.tif")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 2


def test_a_folder_gives_all_its_images_in_order(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "below/c.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in photos.find([tmp_path])]
    assert found == ["a.JPG", "b.png", "below/c.gif"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        photos.find([tmp_path / "none"])


def test_a_bad_image_of_a_folder_is_reported_and_the_others_are_classified(finished, tmp_path, capsys):
    folder = tmp_path / "many"
    folder.mkdir()
    for name in ("a.png", "c.webp"):
        (folder / name).write_bytes(png(noise(32, 32, 3)))
    for number in range(12):
        (folder / f"b{number:02}.jpg").write_bytes(b"no image")
    assert predict.main([str(finished), str(folder)]) == 2
    written = capsys.readouterr()
    assert [line.split()[0] for line in written.out.splitlines()] == [str(folder / "a.png"), str(folder / "c.webp")]
    *lines, last = written.err.splitlines()
    assert last == "left out: 2 more images" and len(lines) == 10
    assert all(line.startswith(f"left out: {folder / f'b{k:02}.jpg'}: it is no image") for k, line in enumerate(lines))
    (folder / "a.png").write_bytes(b"")
    (folder / "c.webp").write_bytes(b"")
    assert predict.main([str(finished), str(folder), "--json"]) == 2
    written = capsys.readouterr()
    assert written.out == "" and written.err.startswith("none of 14 images can be read; the first: ")


@pytest.mark.parametrize("address", ["https://example.org/cat.jpg", "http://[", "ftp://x/y.png", "gs://bucket/a.png"])
def test_addresses_are_not_fetched(address):
    with pytest.raises(UserError, match="is an address, and nothing is fetched; download it"):
        photos.find([address])


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
    assert set(content) == {"classes", "confusion", "mistakes", "result_sha256", "sha256"}
    assert content["classes"] == ["0", "1", "2", "3"]
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


def test_what_misses_the_recorded_accuracy_is_said_loudly(run_folder, small_data, capsys):
    """Another accuracy on record, everything else as it was; one image of the 24 is rounding."""
    result = record.read_result(run_folder)
    for images, code in ((1, 0), (3, 1)):
        changed = result | {"test_accuracy": result["test_accuracy"] + images / 24}
        (run_folder / "result.json").write_text(encode(changed))
        assert predict.main([str(run_folder), "--evaluate", "--data", small_data]) == code
        error = capsys.readouterr().err
        assert error.startswith("\nWARNING: accuracy ") == bool(code) and ("by more than rounding" in error) == bool(
            code
        )
        assert (run_folder / "predictions.json").exists() == (not code)
        (run_folder / "predictions.json").unlink(missing_ok=True)


def test_of_many_classes_the_most_frequent_confusions_are_listed(run_folder):
    run = trained.load(run_folder)
    names = tuple(f"class {k}\x1b[2J" for k in range(100))
    many = dataclasses.replace(run.classifier.description, classes=names)
    classifier = SimpleNamespace(description=many)
    counts = np.diag(np.full(100, 5))
    counts[3, 7], counts[9, 1] = 4, 2
    text = confusion._confusion_text(dataclasses.replace(run, classifier=classifier), counts)
    lines = [line.split() for line in text.splitlines()]
    assert len(lines) == 3 and max(map(len, text.splitlines())) < 100 and "\x1b" not in text
    assert lines[1][-2:] == ["4", "9"] and lines[2][-2:] == ["2", "7"] and lines[1][:2] == ["class", "3?[2J"]


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
