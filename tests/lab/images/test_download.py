"""lab/images/download.py against a real HTTP server on loopback."""

import hashlib
import io
import random
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import data
from lab.base.errors import UserError
from lab.images import download, formats

CONTENT = random.Random(0).randbytes(200_000)
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Server(ThreadingHTTPServer):
    """What it does is the first part of the path; `seen` has (path, Range header) of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None]] = []
        self.closing = threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def start(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_GET(self) -> None:
        name = self.path.strip("/")
        wanted = self.headers.get("Range")
        self.server.seen.append((name, wanted))
        getattr(self, f"do_{name}")(int(wanted[6:-1]) if wanted else 0)

    def send(self, content: bytes, offset: int, count: int | None = None) -> None:
        """The rest of `content` from `offset`, of which only `count` bytes are really sent."""
        if offset:
            span = f"bytes {offset}-{len(content) - 1}/{len(content)}"
            self.start(206, len(content) - offset, Content_Range=span)
        else:
            self.start(200, len(content))
        self.wfile.write(content[offset:][:count])

    def do_good(self, offset: int) -> None:
        self.send(CONTENT, offset)

    def do_cut(self, offset: int) -> None:
        self.send(CONTENT, offset, 70_000)

    def do_empty(self, offset: int) -> None:
        self.send(CONTENT, offset, 0)

    def do_norange(self, offset: int) -> None:
        self.send(CONTENT, 0)

    def do_cutnorange(self, offset: int) -> None:
        self.send(CONTENT, 0, 70_000 if len(self.server.seen) < 3 else None)

    def do_corrupt(self, offset: int) -> None:
        self.send(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), offset)

    def do_short(self, offset: int) -> None:
        self.send(CONTENT[:-5], offset)

    def do_endless(self, offset: int) -> None:
        self.start(200, None)
        for _ in range(100):
            self.wfile.write(CONTENT)

    def do_refuserange(self, offset: int) -> None:
        if offset:
            self.start(416, 0)
        else:
            self.send(CONTENT, 0)

    def do_wrongrange(self, offset: int) -> None:
        self.start(206, len(CONTENT) - 1, Content_Range=f"bytes 1-{len(CONTENT) - 1}/{len(CONTENT)}")

    def do_stalled(self, offset: int) -> None:
        self.send(CONTENT, offset, 1000)
        self.server.closing.wait(20)

    def do_silent(self, offset: int) -> None:
        self.server.closing.wait(20)

    def do_slow(self, offset: int) -> None:
        self.start(200, len(CONTENT))
        for byte in CONTENT[:100]:
            self.wfile.write(bytes([byte]))
            if self.server.closing.wait(0.02):
                return

    def do_steady(self, offset: int) -> None:
        self.start(200, len(CONTENT))
        for start in range(0, len(CONTENT), 20_000):
            self.wfile.write(CONTENT[start : start + 20_000])
            time.sleep(0.05)

    def do_missing(self, offset: int) -> None:
        self.start(404, 0)

    def do_toplain(self, offset: int) -> None:
        self.start(302, 0, Location="http://mirror.invalid/cifar-10-python.tar.gz")

    def do_togood(self, offset: int) -> None:
        self.start(302, 0, Location=self.server.url("good"))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


def fetch(server: Server, target: Path, *names: str, **options: float) -> Path:
    urls = [server.url(name) for name in names]
    settings = {"limit_seconds": 60.0, "grace_seconds": 0.3, "stall_seconds": 0.4, **options}
    return download.fetch(urls, target, md5=MD5, size=len(CONTENT), **settings)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_good_file_gets_its_name_and_leaves_nothing_else(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "file.tar.gz"
    assert fetch(server, target, "good", "missing") == target
    assert target.read_bytes() == CONTENT
    assert leftovers(target.parent) == ["file.tar.gz"]
    assert server.seen == [("good", None)]


def test_a_cut_transfer_is_resumed_where_it_stopped(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path / "file", "cut")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.seen == [("cut", None), ("cut", "bytes=70000-"), ("cut", "bytes=140000-")]


def test_a_part_left_by_an_earlier_run_is_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:123_456])
    fetch(server, tmp_path / "file", "good")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.seen == [("good", "bytes=123456-")]
    assert leftovers(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["norange", "cutnorange", "refuserange"])
def test_a_server_without_ranges_sends_the_file_whole(server: Server, tmp_path: Path, name: str) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    fetch(server, tmp_path / "file", name)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * len(CONTENT), CONTENT + b"x"])
def test_a_wrong_part_is_replaced_by_the_same_source(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "file.part").write_bytes(part)
    fetch(server, tmp_path / "file", "good")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "bad, why",
    [
        ("corrupt", "corrupt, md5"),
        ("short", "199995 bytes instead of 200000"),
        ("endless", "more than 200000 bytes"),
        ("empty", "cut 5 times, 0 of 200000 bytes"),
        ("stalled", "stalled at 1000 of 200000 bytes"),
        ("silent", "no answer within 0.4 s"),
        ("missing", "HTTP 404"),
        ("wrongrange", "Content-Range"),
        ("toplain", "http://mirror.invalid/cifar-10-python.tar.gz is refused, only https"),
    ],
)
def test_a_bad_source_is_named_and_the_next_one_used(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str, why: str
) -> None:
    fetch(server, tmp_path / "file", bad, "good")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["file"]
    line = capsys.readouterr().err
    assert server.url(bad) in line and why in line and line.count("\n") == 1


def test_a_server_too_slow_to_finish_is_given_up_early(server: Server, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"too slow: .* kB/s would take .* minutes, the limit is 1.0"):
        fetch(server, tmp_path / "file", "slow")
    assert 0.3 <= time.monotonic() - began < 3
    # What it did send is right, and the next run goes on from there.
    assert CONTENT.startswith((tmp_path / "file.part").read_bytes())


@pytest.mark.parametrize(("names", "limit"), [(("steady", "missing"), 20), (("missing", "steady"), 0.3)])
def test_a_slow_server_is_kept_if_it_will_finish_in_time_which_is_more_for_the_last(
    server: Server, tmp_path: Path, names: tuple[str, str], limit: float
) -> None:
    fetch(server, tmp_path / "file", *names, grace_seconds=0.1, limit_seconds=limit)
    assert (tmp_path / "file").read_bytes() == CONTENT and server.seen[-1] == ("steady", None)


def test_when_all_fail_one_line_names_each_source_and_both_remedies(server: Server, tmp_path: Path) -> None:
    with socket.socket() as bound, pytest.raises(UserError) as caught:
        bound.bind(("127.0.0.1", 0))  # but not listening, so it refuses connections
        dead = f"http://127.0.0.1:{bound.getsockname()[1]}/x"
        urls = [server.url("missing"), server.url("corrupt"), dead]
        download.fetch(urls, tmp_path / "file", md5=MD5, size=len(CONTENT), stall_seconds=1)
    message = str(caught.value)
    for text in (*urls, "HTTP 404", "md5", "no connection", "--data PATH", "--data synthetic"):
        assert text in message
    assert "\n" not in message and caught.value.exit_code == 2
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x",
        "http://127.0.0.1@example.com/x",
        "ftp://127.0.0.1/x",
        "file:///etc/hostname",
        "http://localhost.example.com/x",
        "",
    ],
)
def test_only_https_is_accepted(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="only https is accepted"):
        download.fetch([url], tmp_path / "file", md5=MD5, size=len(CONTENT), stall_seconds=0.5)


def test_a_redirect_on_loopback_is_followed(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path / "file", "togood")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_https_is_never_led_back_to_plain_http() -> None:
    request = download.urllib.request.Request("https://example.com/x")
    with pytest.raises(download._SourceFailed, match="only https"):
        download._SafeRedirects().redirect_request(request, io.BytesIO(), 302, "", None, "http://127.0.0.1/x")


def test_a_folder_that_cannot_be_written_is_a_users_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cannot write .*give --data PATH"):
        fetch(server, tmp_path / "data" / "file", "good")
    with pytest.raises(UserError, match=r"cannot write .*give --data PATH"), download.alone(tmp_path / "data"):
        pytest.fail("it went on")


def test_the_bar_is_drawn_on_a_terminal_only(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal in (False, True):
        stream = io.StringIO()
        stream.isatty = lambda answer=is_terminal: answer  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(download.tqdm, "monitor_interval", 0)  # no thread left behind
        fetch(server, tmp_path / f"file{is_terminal}", "good")
        assert ("100%" in stream.getvalue()) is is_terminal


def test_the_published_sources() -> None:
    assert [url for url in download.CIFAR10_URLS if url in data.MIRRORS] == list(data.MIRRORS)  # in the core's order
    assert "cs.toronto.edu" in download.CIFAR10_URLS[-1]  # the slowest
    assert download.CIFAR10_BYTES == 170498071
    for url in download.CIFAR10_URLS:
        assert url.startswith("https://") and url.endswith("/cifar-10-python.tar.gz")


# --- unpacking -----------------------------------------------------------------------------------------


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def pack(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


GOOD = (member("set", type=tarfile.DIRTYPE), member("set/a", b"A" * 5000), member("./set/b", b"B"))


def extract(archive: Path, directory: Path) -> Path:
    return download.safe_extract(archive, directory, folder="set", files=("a", "b"))


def test_unpacking_takes_the_expected_files_and_no_others(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar.gz", *GOOD, member("set/readme.html", b"!"), member("other/a", b"!"))
    folder = extract(archive, tmp_path / "out")
    assert folder == tmp_path / "out" / "set"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"A" * 5000, "b": b"B"}
    assert leftovers(tmp_path / "out") == ["set"]


def test_unpacking_completes_a_folder_left_half_done(tmp_path: Path) -> None:
    (tmp_path / "out" / "set").mkdir(parents=True)
    (tmp_path / "out" / "set" / "a").write_bytes(b"half")
    folder = extract(pack(tmp_path / "x.tar.gz", *GOOD), tmp_path / "out")
    assert (folder / "a").read_bytes() == b"A" * 5000 and (folder / "b").read_bytes() == b"B"


@pytest.mark.parametrize(
    "bad, why",
    [
        (member("/etc/passwd", b"x"), "leads out"),
        (member("set/../../evil", b"x"), "leads out"),
        (member("..\\evil", b"x"), "leads out"),
        (member("C:/evil", b"x"), "leads out"),
        (member("set/link", type=tarfile.SYMTYPE, linkname="/etc"), "no regular file"),
        (member("set/hard", type=tarfile.LNKTYPE, linkname="/etc/passwd"), "no regular file"),
        (member("set/pipe", type=tarfile.FIFOTYPE), "no regular file"),
        (member("set/device", type=tarfile.CHRTYPE), "no regular file"),
        (member("set/a", b"again"), "is there twice"),
    ],
)
def test_unpacking_refuses_what_escapes(tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes], why: str) -> None:
    archive = pack(tmp_path / "x.tar.gz", *GOOD, bad)
    with pytest.raises(UserError, match=why):
        extract(archive, tmp_path / "out")
    assert leftovers(tmp_path / "out") == []
    assert leftovers(tmp_path) == ["out", "x.tar.gz"]


def test_unpacking_names_what_is_missing_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"lacks b; delete it"):
        extract(pack(tmp_path / "x.tar.gz", GOOD[1]), tmp_path / "out")
    monkeypatch.setattr(formats, "MAX_FILE_BYTES", 4999)
    with pytest.raises(UserError, match="has 5000 bytes, limit 4999"):
        extract(pack(tmp_path / "y.tar.gz", *GOOD), tmp_path / "out")


def test_unpacking_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    noise = member("set/a", random.Random(1).randbytes(30_000))
    whole = pack(tmp_path / "x.tar.gz", noise, GOOD[2]).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for i, damaged in enumerate((b"", b"no archive", whole[:100], whole[: len(whole) // 2], flipped[1:])):
        archive = tmp_path / f"{i}.tar.gz"
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match=r"download it again|check the archive"):
            extract(archive, tmp_path / "out")
        assert leftovers(tmp_path / "out") == []
