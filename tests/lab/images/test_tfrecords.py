"""TFRecords: what is written is read, damage is named, and training from them is training from the arrays."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import train_eager
from lab import options as settings
from lab.base import storage
from lab.base.errors import UserError
from lab.images import imagefile, tfrecords
from lab.images import load as data
from lab.machine import pipeline
from lab.runs import record

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(tfrecords, "IMAGES_A_SHARD", 25)
    monkeypatch.setattr(tfrecords, "RECORDS_A_BATCH", 8)  # 20 images a shard: a last batch of 4


@pytest.fixture
def folder(small_data, tmp_path):
    """The 80 and 24 images of `small_data` as four shards and one."""
    path = tmp_path / "records"
    assert data.main(["--data", small_data, "--to-tfrecord", str(path)]) == 0
    return path


def same(one, other):
    return all(
        np.array_equal(getattr(one, name)[:], getattr(other, name)[:])
        for name in ("train_images", "train_labels", "test_images", "test_labels")
    )


# ---- round trip --------------------------------------------------------------------------------------------


def test_what_is_written_is_read(folder, small_data, tmp_path, capsys):
    arrays = data.load(small_data, seed=0)
    for scratch in (None, str(tmp_path)):
        read = data.load(str(folder), seed=0, scratch=scratch)
        assert same(read, arrays) and read.sha256() == arrays.sha256()
        assert read.classes == arrays.classes and read.train_labels.dtype == np.int32
        assert read.source == "small.npz, from TFRecords" and not read.synthetic
        for one, other in zip(
            data.mean_std(read.train_images), data.mean_std(arrays.train_images), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["records"]  # the scratch file has no name


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
    assert manifest["images_sha256"] == data.load(small_data, seed=0).sha256()
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
    data.to_tfrecord(data.load(small_data, seed=0), str(tmp_path / "again"))
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_subsets_are_those_of_the_arrays(folder, small_data, tmp_path):
    options = {"seed": 3, "holdout": 16, "limit_train": 40, "limit_test": 8}
    arrays = data.load(small_data, **options)
    for scratch in (None, str(tmp_path)):
        read = data.load(str(folder), scratch=scratch, **options)
        assert same(read, arrays) and read.sha256() == arrays.sha256()
    assert isinstance(read.train_images, imagefile.ImageFile)


def test_a_folder_that_holds_something_is_not_written_to(folder, small_data, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert data.main(["--data", small_data, "--to-tfrecord", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "holds test-00000-of-00001.tfrecord.gz and 5 more" in error and len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert data.main(["--data", small_data, "--to-tfrecord", small_data]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert data.main(["--data", small_data]) == 2
    assert "--to-tfrecord is required" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_has_the_exit_code_of_files(
    small_data, monkeypatch, capsys, tmp_path
):
    def refuse(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.io, "TFRecordWriter", refuse)
    assert data.main(["--data", small_data, "--to-tfrecord", str(tmp_path / "full")]) == 5
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
    manifest = record.decode(path.with_name("tfrecords.json").read_text())
    one, other = manifest["train"][2:]
    content = path.read_bytes()
    path.write_bytes(path.with_name(other["file"]).read_bytes())
    path.with_name(other["file"]).write_bytes(content)
    one["bytes"], other["bytes"] = other["bytes"], one["bytes"]
    path.with_name("tfrecords.json").write_text(record.encode(manifest))


def seal(path, text):
    """Writes a manifest with another content but a right checksum of it."""
    content = json.loads(text)
    del content["sha256"]
    path.write_text(record.encode(content))


def write_anew(path, change):
    """The shard again, compressed and with its sums, but with other records, and its new size in the manifest."""
    records = list(tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator())
    before = path.stat().st_size
    with tf.io.TFRecordWriter(str(path), "GZIP") as file:
        for text in change(records):
            file.write(text)
    manifest = path.with_name("tfrecords.json")
    seal(manifest, manifest.read_text().replace(f'"bytes": {before}', f'"bytes": {path.stat().st_size}'))


def leave_one_out(path):
    write_anew(path, lambda records: records[:-1])


def repeat_one(path):
    write_anew(path, lambda records: [*records, records[0]])


def change_a_pixel(path):
    write_anew(path, lambda records: [records[0].replace(b"\x30", b"\x31", 1), *records[1:]])


def no_example(path):
    write_anew(path, lambda records: [b"other", *records[1:]])


def other_label(path):
    example = tf.train.Example()
    example.features.feature["image"].bytes_list.value.append(bytes(3072))
    example.features.feature["label"].int64_list.value.append(4)
    write_anew(path, lambda records: [example.SerializeToString(), *records[1:]])


def small_image(path):
    example = tf.train.Example()
    example.features.feature["image"].bytes_list.value.append(bytes(3071))
    example.features.feature["label"].int64_list.value.append(1)
    write_anew(path, lambda records: [example.SerializeToString(), *records[1:]])


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
def test_a_damaged_shard_is_named_in_one_line(damage, words, folder, tmp_path, capsys):
    path = folder / "train-00002-of-00004.tfrecord.gz"
    before = path.read_bytes()
    damage(path)
    assert not path.exists() or path.read_bytes() != before
    for more in ([], ["--scratch", str(tmp_path)]):
        flags = ["--data", str(folder), "--device", "cpu", "--out", str(tmp_path / "run"), *more]
        assert train_eager.main(flags) == 2
        error = capsys.readouterr().err
        assert f"{path} " in error and words in error and error.endswith("or copy it again\n"), error
        assert len(error.splitlines()) == 1 and len(error) < 500
    assert not (tmp_path / "run").exists()


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
        data.load(str(folder), seed=0)
    if words:
        assert path.read_bytes() != before
        seal(path, text)
        with pytest.raises(UserError, match=words):
            data.load(str(folder), seed=0)


def test_shards_in_another_order_are_another_set(folder):
    path = folder / "tfrecords.json"
    content = record.decode(path.read_text())
    content["train"].reverse()
    path.write_text(record.encode(content))
    with pytest.raises(UserError, match=r"does not hold the images that tfrecords.json says"):
        data.load(str(folder), seed=0)


def test_without_a_manifest_a_folder_is_not_tfrecords(folder):
    (folder / "tfrecords.json").unlink()  # as after a conversion that was killed
    with pytest.raises(UserError, match="holds neither"):
        data.load(str(folder), seed=0)


def test_too_little_memory_or_disk_is_said_before_reading(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecords.memory, "available_gib", lambda: 1e-4)
    with pytest.raises(UserError, match=r"104 images need 0.00 GiB of memory.*--scratch"):
        data.load(str(folder), seed=0)
    monkeypatch.undo()
    usage = shutil.disk_usage(tmp_path)._replace(free=80 * 3072 - 1)
    monkeypatch.setattr(imagefile.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"has 0.00 GiB free") as caught:
        data.load(str(folder), seed=0, scratch=str(tmp_path))
    assert caught.value.exit_code == 5
    monkeypatch.undo()
    with pytest.raises(UserError, match="No such file or directory; give a folder"):
        data.load(str(folder), seed=0, scratch=str(tmp_path / "nowhere"))


def test_scratch_without_tfrecords_is_refused(small_data, tmp_path):
    with pytest.raises(UserError, match=r"--scratch .* is for TFRecords"):
        data.load(small_data, seed=0, scratch=str(tmp_path))


# ---- a file of images --------------------------------------------------------------------------------------


def test_an_image_file_reads_as_the_array_does(tmp_path):
    generator = np.random.default_rng(0)
    array = generator.integers(0, 256, (50, 32, 32, 3)).astype(np.uint8)
    file = imagefile.ImageFile(str(tmp_path), 50)
    for start in (30, 0, 10):  # in any order
        file[start : start + 20] = array[start : start + 20]
    some = generator.permutation(50)[:30]
    for which in (slice(None), slice(7, 9), slice(40, 60), slice(3, 3), some, np.array([], np.int32)):
        np.testing.assert_array_equal(file[which], array[which])
    part, rows = file.only(some), np.array([5, 5, 6, 7, 0, 29])
    assert len(part) == 30 and part.shape == (30, 32, 32, 3)
    np.testing.assert_array_equal(part[rows], array[some][rows])
    np.testing.assert_array_equal(part.only(rows)[1:4], array[some][rows][1:4])


# ---- storage -----------------------------------------------------------------------------------------------


def test_a_storage_path_takes_and_gives_the_same(small_data, request):
    folder = f"ram://{request.node.name}/set"
    assert data.main(["--data", small_data, "--to-tfrecord", f"{folder}/"]) == 0
    assert same(data.load(folder, seed=0), data.load(small_data, seed=0))
    assert data.main(["--data", small_data, "--to-tfrecord", folder]) == 2
    with pytest.raises(UserError, match=r"holds no tfrecords.json"):
        data.load(f"{folder}/nothing", seed=0)
    tf.io.gfile.remove(f"{folder}/train-00001-of-00004.tfrecord.gz")
    with pytest.raises(UserError, match=f"{folder}/train-00001-of-00004.tfrecord.gz is missing"):
        data.load(folder, seed=0)


def test_a_storage_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(storage, "ANSWER_SECONDS", 0.1)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"gs://b does not answer within 0.1 s.*credentials"):
        storage.with_timeout("gs://b", lambda _: time.sleep(1))
    assert time.monotonic() - start < 0.9


def test_an_unknown_scheme_is_a_users_error():
    with pytest.raises(UserError, match=r"cannot reach nope://x/tfrecords.json.*scheme"):
        data.load("nope://x", seed=0)


def test_google_storage_without_network_or_credentials_is_given_up_in_one_line(tmp_path):
    """The service's host is one that nobody has, and there are no credentials."""
    command = [
        sys.executable,
        "-m",
        "lab.images.load",
        "--data",
        "synthetic",
        "--to-tfrecord",
        "gs://nobodys-bucket/set",
    ]
    environment = os.environ | {"https_proxy": "http://nowhere.invalid:9", "NO_GCE_CHECK": "true"}
    environment |= {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")}
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert time.monotonic() - start < 60
    lines = [line for line in done.stderr.splitlines() if "gs://nobodys-bucket/set" in line]
    assert done.returncode == 2 and len(lines) == 1 and "check the path, the network and the cred" in lines[0]
    assert "Traceback" not in done.stderr


# ---- training ----------------------------------------------------------------------------------------------


def left(out):
    """What a training leaves: the sum of its weights' bytes, its rows less their times, the sum of its images."""
    result = json.loads((out / "result.json").read_text())
    assert result["hyperparameters"].keys().isdisjoint(train_eager.PLACES)
    rows = [{key: row[key] for key in row if not key.endswith("seconds")} for row in result["epochs"]]
    return hashlib.sha256((out / "weights.npz").read_bytes()).hexdigest(), rows, result["data"]["sha256"]


def train(short, data_path, name, **changes):
    out = f"{short['out']}-{name}"
    train_eager.train(**short | changes | {"data": str(data_path), "out": out})
    return left(Path(out))


def test_training_from_records_is_training_from_arrays(short, folder, tmp_path, capsys):
    """From a file it is stopped between, and goes on."""
    short |= {"flip": "alternating"}
    expected = train(short, short["data"], "arrays")
    assert train(short, folder, "memory") == expected
    assert "scratch" not in capsys.readouterr().out
    train(short, folder, "file", scratch=str(tmp_path), stop_after=1)
    assert f"are in --scratch {tmp_path}; the host makes the batches" in capsys.readouterr().out
    train_eager.train(resume=f"{short['out']}-file", stop_after=0)
    assert left(Path(f"{short['out']}-file")) == expected


def test_compiled_batches_of_a_file_are_those_of_the_array(folder, tmp_path):
    whole = data.load(str(folder), seed=0)
    in_file = data.load(str(folder), seed=0, scratch=str(tmp_path))
    options = settings.change(train_eager.constants(), {"batch_size": 16, "pipeline": "host"})
    mean, std = data.mean_std(whole.train_images)
    one, other = (pipeline.make_pipeline(options, images, mean, std, jit=True) for images in (whole, in_file))
    for done in (0, 3):  # from the middle of an epoch too
        batches = [list(made.open(2, done)) for made in (one, other)]
        assert len(batches[0]) == len(batches[1]) == 5 - done
        for (images, labels), (images_, labels_) in zip(*batches, strict=True):
            np.testing.assert_array_equal(images, images_)
            np.testing.assert_array_equal(labels, labels_)


def test_the_device_cannot_make_batches_of_a_file(short, folder, tmp_path):
    with pytest.raises(UserError, match="--pipeline device needs all images on the device"):
        train(short, folder, "device", scratch=str(tmp_path), pipeline="device")


PEAKS = """\
import json, sys
import train_eager
from lab import options as settings
from lab.machine import memory
small, large, folder = sys.argv[1:]
peaks, rows = [], []
for number, (path, scratch) in enumerate([(small, folder), (large, folder), (large, "")]):
    changes = dict(
        data=path, scratch=scratch, out=f"{folder}/{number}", device="cpu", jit=False, width=1, batch_size=100,
        epochs=1, warmup_epochs=0.5, checkpoint_every=0, pipeline="host",
    )
    run = train_eager.Run(settings.change(train_eager.constants(), changes))
    run.steps_per_epoch = 20  # of the epoch's random batches; the rest is read below
    (row,) = run.train()["epochs"]
    for _ in run.pipeline.open(1):
        pass
    rows.append([row[key] for key in row if not key.endswith("seconds")])
    peaks.append(memory.proc_gib("/proc/self/status", "VmHWM:") * 2**30 / 1e6)
print(json.dumps({"peaks": peaks, "rows": rows}))
"""
LARGE = 60_000  # images, of 3072 bytes: 184 MB


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux' /proc"
)
def test_a_set_is_trained_on_in_less_memory_than_it_has(tmp_path, monkeypatch):
    """The most memory a process has held: after a small set, after the large one from a file, and from memory."""
    monkeypatch.setattr(tfrecords, "IMAGES_A_SHARD", 5_000)
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(LARGE, 32, 32, 3))
    labels = (np.arange(LARGE) % 10).astype(np.int32)
    images[:] = (25 * labels)[:, None, None, None]
    images[:, 7] = np.random.default_rng(0).integers(0, 256, (LARGE, 32, 3), np.uint8)
    names = tuple("abcdefghij")
    for name, count in (("small", 2_000), ("large", LARGE)):
        part = (images[:count], labels[:count], images[:1000], labels[:1000])
        data.to_tfrecord(data.ImageSet(*part, names, name, True), str(tmp_path / name))
    command = [sys.executable, "-c", PEAKS, str(tmp_path / "small"), str(tmp_path / "large"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    small, file, memory = found["peaks"]  # MB
    size = images.nbytes / 1e6
    assert file - small < 0.75 * size and memory - small > size, found["peaks"]
    assert found["rows"][1] == found["rows"][2] != found["rows"][0]
