"""TFRecords: what is written is read, damage is named, and training from them is training from the arrays."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from data import mean_std
from lab import command, convert
from lab.base import storage
from lab.base.errors import UserError
from lab.base.files import decode, encode
from lab.images import load, tfrecords
from lab.images.imageset import ImageSet


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(tfrecords, "IMAGES_A_SHARD", 25)
    monkeypatch.setattr(tfrecords, "RECORDS_A_BATCH", 8)  # 20 images a shard: a last batch of 4


@pytest.fixture
def folder(small_data, tmp_path):
    """The 80 and 24 images of `small_data` as four shards and one."""
    path = tmp_path / "records"
    assert convert.main(["--data", small_data, "--to-tfrecord", str(path)]) == 0
    return path


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("train_images", "train_labels", "test_images", "test_labels")
    )


# ---- round trip --------------------------------------------------------------------------------------------


def test_what_is_written_is_read(folder, small_data, capsys):
    arrays, read = load.load(small_data, seed=0), load.load(str(folder), seed=0)
    assert same(read, arrays) and read.sha256 == arrays.sha256
    assert read.classes == arrays.classes and read.train_labels.dtype == np.int32
    assert read.source == "small.npz, from TFRecords" and not read.synthetic
    for one, other in zip(mean_std(read.train_images), mean_std(arrays.train_images), strict=True):
        np.testing.assert_array_equal(one, other)


def test_shards_of_the_usual_size(tmp_path, monkeypatch):
    """As many as there are readers and one more, so that their batches come in any order."""
    monkeypatch.undo()
    assert (tfrecords.IMAGES_A_SHARD, tfrecords.RECORDS_A_BATCH, tfrecords.READERS) == (5_000, 256, 4)
    count = 20_300
    images = np.zeros((count, 32, 32, 3), np.uint8)  # compresses fast
    images[:, 7] = np.random.default_rng(0).integers(0, 256, (count, 32, 3), np.uint8)
    labels = (np.arange(count) % 10).astype(np.int32)
    arrays = ImageSet(images, labels, images[:9], labels[:9], tuple("abcdefghij"), "made", True, "some doubt")
    manifest = tfrecords.write(str(tmp_path / "set"), arrays)
    assert [shard.images for shard in manifest.train] == [4060] * 5
    read = tfrecords.read(str(tmp_path / "set"))
    assert same(read, arrays) and read.synthetic and read.doubt == "some doubt"


def test_the_shards_are_plain_tfrecords_and_the_manifest_says_what_they_hold(folder, small_data):
    manifest = json.loads((folder / "tfrecords.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == [
        "test-00000-of-00001.tfrecord.gz",
        "tfrecords.json",
        *(f"train-0000{i}-of-00004.tfrecord.gz" for i in range(4)),
    ]
    with np.load(small_data) as arrays:
        images, labels = arrays["x_train"], arrays["y_train"]
    assert manifest["train_images"] == 80 and manifest["test_images"] == 24
    assert manifest["images_sha256"] == load.load(small_data, seed=0).sha256
    assert manifest["classes"] == ["0", "1", "2", "3"] and manifest["source"] == "small.npz"
    np.testing.assert_allclose(manifest["mean"], images.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(manifest["std"], images.std((0, 1, 2)) / 255, rtol=1e-12)
    at = 0
    for shard in manifest["train"]:
        path, digest = folder / shard["file"], hashlib.sha256()
        assert path.stat().st_size == shard["bytes"] and shard["images"] == 20
        for text in tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator():
            features = tf.train.Example.FromString(text).features.feature
            (image,), (label,) = features["image"].bytes_list.value, features["label"].int64_list.value
            assert image == images[at].tobytes() and label == labels[at]
            digest.update(label.to_bytes(4, "little") + image)
            at += 1
        assert digest.hexdigest() == shard["sha256"]
    assert at == 80


def test_the_same_images_give_the_same_files(folder, small_data, tmp_path):
    tfrecords.write(str(tmp_path / "again"), load.load(small_data, seed=0))
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_subsets_are_those_of_the_arrays(folder, small_data):
    options = {"seed": 3, "holdout": 16, "limit_train": 40, "limit_test": 8}
    arrays, read = load.load(small_data, **options), load.load(str(folder), **options)
    assert same(read, arrays) and read.sha256 == arrays.sha256


def test_a_folder_that_holds_something_is_not_written_to(folder, small_data, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert convert.main(["--data", small_data, "--to-tfrecord", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "holds test-00000-of-00001.tfrecord.gz and 5 more" in error and len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert convert.main(["--data", small_data, "--to-tfrecord", small_data]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert convert.main(["--data", small_data]) == 2
    assert "required: --to-tfrecord" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_has_the_exit_code_of_files(small_data, monkeypatch, capsys, tmp_path):
    def refuse(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.io, "TFRecordWriter", refuse)
    assert convert.main(["--data", small_data, "--to-tfrecord", str(tmp_path / "full")]) == 5
    assert "No space left on device; free the disk" in capsys.readouterr().err


# ---- damage ------------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_the_end(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def swap(path):
    """With another, where their sizes do not tell."""
    manifest = decode(path.with_name("tfrecords.json").read_text())
    one, other = manifest["train"][2:]
    content = path.read_bytes()
    path.write_bytes(path.with_name(other["file"]).read_bytes())
    path.with_name(other["file"]).write_bytes(content)
    one["bytes"], other["bytes"] = other["bytes"], one["bytes"]
    path.with_name("tfrecords.json").write_text(encode(manifest))


def seal(path, text):
    """Writes a manifest with another content but a right checksum of it."""
    content = json.loads(text)
    del content["sha256"]
    path.write_text(encode(content))


def write_again(path, change):
    """The shard again, compressed and with its sums, but with other records, and its new size in the manifest."""
    records = list(tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator())
    before = path.stat().st_size
    with tf.io.TFRecordWriter(str(path), "GZIP") as file:
        for text in change(records):
            file.write(text)
    manifest = path.with_name("tfrecords.json")
    seal(manifest, manifest.read_text().replace(f'"bytes": {before}', f'"bytes": {path.stat().st_size}'))


def leave_one_out(path):
    write_again(path, lambda records: records[:-1])


def repeat_one(path):
    write_again(path, lambda records: [*records, records[0]])


def change_a_pixel(path):
    write_again(path, lambda records: [records[0].replace(b"\x30", b"\x31", 1), *records[1:]])


def no_example(path):
    write_again(path, lambda records: [b"other", *records[1:]])


def other_label(path):
    example = tf.train.Example()
    example.features.feature["image"].bytes_list.value.append(bytes(3072))
    example.features.feature["label"].int64_list.value.append(4)
    write_again(path, lambda records: [example.SerializeToString(), *records[1:]])


def small_image(path):
    example = tf.train.Example()
    example.features.feature["image"].bytes_list.value.append(bytes(3071))
    example.features.feature["label"].int64_list.value.append(1)
    write_again(path, lambda records: [example.SerializeToString(), *records[1:]])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "bytes instead of"),
        (cut_the_end, "bytes instead of"),
        (empty, "has 0 bytes instead of"),
        (remove, "is missing"),
        (flip_a_bit, "cannot be read"),
        (swap, "sha256"),
        (leave_one_out, "holds 19 of its 20 images"),
        (repeat_one, "holds more than its 20 images"),
        (change_a_pixel, "sha256"),
        (no_example, "cannot be read"),
        (small_image, "cannot be read"),
        (other_label, "has a label that is not from 0 to 3"),
    ],
)
def test_a_damaged_shard_is_named_in_one_line(damage, words, folder):
    path = folder / "train-00002-of-00004.tfrecord.gz"
    before = path.read_bytes()
    damage(path)
    assert not path.exists() or path.read_bytes() != before
    with pytest.raises(UserError) as caught:
        load.load(str(folder), seed=0)
    error = str(caught.value)
    assert f"{path} " in error and words in error and error.endswith("or copy it again"), error
    assert len(error.splitlines()) == 1 and len(error) < 500 and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-100], ""),
        (lambda text: text.replace('"version": 1', '"version": 2'), "version 2, this program reads 1"),
        (lambda text: text.replace('"classes"', '"class"'), "'classes' is missing"),
        (lambda text: text.replace('"train_images": 80', '"train_images": 81'), "80 train images"),
        (lambda text: text.replace("train-00001-of", "../train-00001-of"), "is not in the folder"),
        (lambda text: text.replace('"images": 20', '"images": -20'), "-20 images"),
        (lambda text: text.replace('"bytes"', '"size"'), "unexpected keyword argument 'size'"),
        (lambda text: "[" * 100_000, ""),
        (lambda text: "\udcff", ""),
    ],
)
def test_a_damaged_manifest_is_a_users_error(change, words, folder):
    path = folder / "tfrecords.json"
    before, text = path.read_bytes(), change(path.read_text())
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"tfrecords\.json is no manifest or is damaged"):
        load.load(str(folder), seed=0)
    if words:
        assert path.read_bytes() != before
        seal(path, text)
        with pytest.raises(UserError, match=words):
            load.load(str(folder), seed=0)


def test_shards_in_another_order_are_another_set(folder):
    path = folder / "tfrecords.json"
    content = decode(path.read_text())
    content["train"].reverse()
    path.write_text(encode(content))
    with pytest.raises(UserError, match=r"does not hold the images that tfrecords.json says"):
        load.load(str(folder), seed=0)


def test_without_a_manifest_a_folder_is_not_tfrecords(folder):
    (folder / "tfrecords.json").unlink()  # as after a conversion that was killed
    with pytest.raises(UserError, match="holds neither"):
        load.load(str(folder), seed=0)


# ---- storage -----------------------------------------------------------------------------------------------


def test_a_storage_path_takes_and_gives_the_same(small_data, request):
    folder = f"ram://{request.node.name}/set"
    assert convert.main(["--data", small_data, "--to-tfrecord", f"{folder}/"]) == 0
    assert same(load.load(folder, seed=0), load.load(small_data, seed=0))
    assert convert.main(["--data", small_data, "--to-tfrecord", folder]) == 2
    with pytest.raises(UserError, match=r"holds no tfrecords.json"):
        load.load(f"{folder}/nothing", seed=0)
    tf.io.gfile.remove(f"{folder}/train-00001-of-00004.tfrecord.gz")
    with pytest.raises(UserError, match=f"{folder}/train-00001-of-00004.tfrecord.gz is missing"):
        load.load(folder, seed=0)


def test_a_storage_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(storage, "ANSWER_SECONDS", 0.1)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"gs://b does not answer within 0.1 s.*credentials"):
        storage.with_timeout("gs://b", lambda _: time.sleep(1))
    assert time.monotonic() - start < 0.9


def test_an_unknown_scheme_is_a_users_error():
    with pytest.raises(UserError, match=r"--data nope://x cannot be reached; give a local path"):
        load.load("nope://x", seed=0)


def test_google_storage_without_network_or_credentials_is_given_up_in_one_line(tmp_path, monkeypatch, capsys):
    """The service's host is one that nobody has, and there are no credentials."""
    monkeypatch.setattr(storage, "ANSWER_SECONDS", 2)
    monkeypatch.setenv("https_proxy", "http://nowhere.invalid:9")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    start = time.monotonic()
    assert convert.main(["--data", "synthetic", "--to-tfrecord", "gs://nobodys-bucket/set"]) == 2
    assert time.monotonic() - start < 10
    (line,) = capsys.readouterr().err.splitlines()
    assert "gs://nobodys-bucket/set" in line and "check the path, the network and the cred" in line


# ---- training ----------------------------------------------------------------------------------------------


def left(out):
    """What a training leaves: the sum of its weights' bytes, its rows less their times, the sum of its images."""
    result = json.loads((out / "result.json").read_text())
    rows = [{key: row[key] for key in row if not key.endswith("seconds")} for row in result["epochs"]]
    return hashlib.sha256((out / "weights.npz").read_bytes()).hexdigest(), rows, result["data"]["sha256"]


def test_training_from_records_is_training_from_arrays(short, folder):
    outs = [Path(f"{short['out']}-{name}") for name in ("arrays", "records")]
    for data, out in zip((short["data"], str(folder)), outs, strict=True):
        command.train(**short | {"data": data, "out": str(out), "flip": "alternating"})
    assert left(outs[0]) == left(outs[1])


def test_a_training_from_damaged_records_leaves_no_folder(short, folder):
    remove(folder / "train-00002-of-00004.tfrecord.gz")
    with pytest.raises(UserError, match="is missing"):
        command.train(**short | {"data": str(folder)})
    assert not Path(short["out"]).exists()
