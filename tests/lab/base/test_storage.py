"""Files on any path of tf.io.gfile, here file://, and questions that end in time."""

import threading

import pytest
import tensorflow as tf

from lab.base import storage
from lab.base.errors import UserError


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_is_written_and_read(tmp_path, scheme):
    path = f"{scheme}{tmp_path}/file"
    assert storage.is_remote(path) == bool(scheme)
    for content in ("σ\n", b"\x00\xff" * 10):
        storage.write_whole(path, content)
        written = (tmp_path / "file").read_bytes()
        assert written == (content.encode() if isinstance(content, str) else content)
        assert storage.read(path) == written
        assert [file.name for file in tmp_path.iterdir()] == ["file"]
    for question in (
        lambda: storage.write_whole(f"{scheme}{tmp_path}/no/file", ""),
        lambda: storage.read(f"{path}s"),
    ):
        with pytest.raises(storage.FILE_ERRORS):
            question()


def test_an_answer_comes_back_and_a_missing_file_is_the_callers():
    assert storage.with_timeout("gs://b", lambda path: [path]) == ["gs://b"]

    def missing(path):
        raise tf.errors.NotFoundError(None, None, "not there")

    with pytest.raises(tf.errors.NotFoundError):
        storage.with_timeout("gs://b", missing)


def test_a_path_that_cannot_be_reached_is_one_line():
    def refuse(path):
        raise tf.errors.PermissionDeniedError(None, None, "no\ncredentials")

    with pytest.raises(UserError, match="cannot reach gs://b: no credentials; check the path, the network"):
        storage.with_timeout("gs://b", refuse)


def test_no_answer_is_one_line(monkeypatch):
    monkeypatch.setattr(storage, "ANSWER_SECONDS", 0.05)
    over = threading.Event()
    try:
        with pytest.raises(UserError, match=r"gs://b does not answer within 0\.05 s; check the path"):
            storage.with_timeout("gs://b", lambda _: over.wait(10))
    finally:
        over.set()
