"""Files are written complete or not at all, and tell when they were damaged."""

import hashlib
import json
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from lab.base import files
from lab.base.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.replace(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_whole(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(UserError, match=r"result\.json: No space left on device; free the disk") as refusal:
                files.write_whole(path, "new")
            assert refusal.value.exit_code == 5
        assert path.read_text() == "old"
        assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    files.write_whole(path, "new")
    assert path.read_text() == "new"


def test_bytes_text_and_rights(tmp_path):
    files.write_whole(tmp_path / "bytes", b"\x00\xff")
    files.write_whole(str(tmp_path / "text"), "σ\n")
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "text").read_bytes() == "σ\n".encode()
    assert stat.S_IMODE((tmp_path / "text").stat().st_mode) == 0o644
    with pytest.raises(UserError, match="cannot write"):
        files.write_whole(tmp_path / "no folder" / "text", "")


def test_a_mount_without_modes_takes_files(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refused)
    files.write_whole(tmp_path / "file", "words")
    assert (tmp_path / "file").read_text() == "words"


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path, contents = tmp_path / "file", {"a" * 300_000, "b" * 200_000}
    files.write_whole(path, "a" * 300_000)
    ended, seen = threading.Event(), set()

    def read():
        while not ended.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(40):
            files.write_whole(path, sorted(contents)[number % 2])
    finally:
        ended.set()
        reader.join()
    assert seen and seen <= contents


def test_sums_are_those_of_the_commands(tmp_path):
    content = bytes(range(256)) * 9000  # over two MiB
    path = tmp_path / "file"
    path.write_bytes(content)
    assert files.sum_of(path) == hashlib.sha256(content).hexdigest()
    assert files.sum_of(str(path), "md5") == hashlib.md5(content, usedforsecurity=False).hexdigest()
    path.write_bytes(b"")
    assert files.sum_of(path, "md5") == "d41d8cd98f00b204e9800998ecf8427e"
    with pytest.raises(FileNotFoundError):
        files.sum_of(tmp_path / "none")


CONTENT = {"a": [1, 2.5, None, True], "b": {"c": "σ\n"}, "d": []}


def test_the_last_key_is_the_sum_of_the_rest():
    text = files.encode(CONTENT)
    written = re.fullmatch(r'(.*),\n  "sha256": "([0-9a-f]{64})"(\n}\n)', text, re.DOTALL)
    assert written is not None
    rest = written[1] + written[3]
    assert json.loads(rest) == CONTENT and written[2] == hashlib.sha256(rest.encode()).hexdigest()
    assert files.decode(text) == CONTENT


def test_any_other_letter_is_damage():
    text = files.encode(CONTENT)
    for index, letter in enumerate(text):
        if not letter.isspace():  # between values, spaces say nothing
            with pytest.raises(ValueError, match=r"it cannot be parsed|its checksum differs"):
                files.decode(text[:index] + ("7" if letter != "7" else "8") + text[index + 1 :])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 200_000, '{"a": NaN, "sha256": ""}'])
def test_what_encode_did_not_write_is_refused(text):
    with pytest.raises(ValueError, match="it cannot be parsed, or has no checksum"):
        files.decode(text)


def test_a_number_that_is_not_finite_is_not_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.encode({"loss": float("nan")})
