"""What no file system can hold, or nothing should be read from, is refused by name; what might be there passes."""

import os
import socket

import pytest

from lab.base import paths
from lab.base.errors import UserError

LONG = 300 * "x"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (LONG, "File name too long"),
        ("/".join(50 * [100 * "x"]), "File name too long"),
        (f"a/{LONG}/b", "File name too long"),
        (os.fsdecode(b"caf\xe9"), "not UTF-8"),
        ("a\0b", "not UTF-8"),
        ("s3://bucket/x", "give a local path or gs://"),
        ("https://host/x", "cannot be reached"),
        ("://x", "cannot be reached"),
        ("gs://", "cannot be reached"),
        ("GS://bucket/x", "cannot be reached"),
        ("~no-such-user/x", "no such user"),
        ("/etc/hostname/x", "Not a directory"),
        ("/dev/zero", "is a FIFO, a socket or a device"),
    ],
)
def test_it_cannot_be_one(path, said):
    with pytest.raises(UserError, match=said) as caught:
        paths.check("--data", path)
    line = str(caught.value)
    assert line.startswith("--data ") and len(line) < 300 and line.isprintable()


def test_a_fifo_a_socket_and_a_circle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path may be 107 bytes long
    os.mkfifo("fifo")
    os.symlink("circle", "circle")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name, said in (("fifo", "a FIFO"), ("socket", "a socket"), ("circle", "symbolic links"), ("fifo/x", "Not")):
            with pytest.raises(UserError, match=said):
                paths.check("--resume", name)


def test_what_may_be_there_passes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    os.symlink("nowhere", tmp_path / "dangling")
    for path in (
        "",
        "auto",
        "synthetic",
        "a b",
        "caf\u00e9",
        "gs://bucket/x",
        str(tmp_path),
        str(tmp_path / "dangling"),
    ):
        assert paths.check("--data", path) == path
    assert paths.check("--data", "~/file") == str(tmp_path / "file")
    assert paths.check("--data", 250 * "x") == 250 * "x"


def test_a_folder_to_write_is_none_that_is_a_file_or_leaves_no_room(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        paths.check("--out", str(tmp_path / "file"), folder=True)
    with pytest.raises(UserError, match=r"give a local path$"):
        paths.check("--out", "gs://bucket/x", schemes=(), folder=True)
    room = os.pathconf("/", "PC_PATH_MAX") - len(str(tmp_path)) - 50  # for the path, but not for what goes in it
    deep = str(tmp_path) + "/" + "/".join([99 * "x"] * (room // 100))
    assert paths.check("--data", deep) == deep
    with pytest.raises(UserError, match="too long"):
        paths.check("--out", deep + "/" + (room - len(deep) + len(str(tmp_path)) - 1) * "y", folder=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    paths.check_writable("--profile", str(tmp_path / "new" / "one"))
    with pytest.raises(UserError, match=r"cannot write --profile .*: Not a directory; give another folder"):
        paths.check_writable("--profile", str(tmp_path / "file" / "x"))
