"""Data made by an enemy: pickles, archives, .npz files, paths, and a server on loopback, each read in its own process.

    python tests/hostile.py            # all cases, some minutes
    python tests/hostile.py pickle     # those whose name begins so

Each case has a bound on memory and time. It holds if reading ends in one printable line of at most 1000 letters, or
reads images; it falls short with a traceback, a hang, several lines or more memory.
"""

import contextlib
import gzip
import io
import multiprocessing
import os
import resource
import socket
import struct
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab.base import paths as lookup
from lab.base.errors import UserError
from lab.images import download, formats

SECONDS, MEMORY = 20, 3 << 30  # of a case; the address space, of which NumPy's threads take a part
LETTERS = 1000
STALL_SECONDS = 0.3


# ---- pickles -----------------------------------------------------------------------------------------------


def shared(levels):
    """A tuple of the one before it twice, again and again: 2^levels leaves."""
    return b"K\x01q\x00" + b"".join(
        bytes((0x68, k)) + bytes((0x68, k)) + b"\x86" + bytes((0x71, k + 1)) for k in range(levels)
    )


def array(shape=b"K\x01K\x01\x86", dtype=b"U\x02u1", pixels=b"U\x01x"):
    """An array's opcodes, with any part replaced."""
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return start + b"(K\x01" + shape + b"cnumpy\ndtype\n" + dtype + b"K\x00K\x01\x87R\x89" + pixels + b"tb"


def pickles():
    def whole(data=None, labels=b"]", key=b"U\x04data"):
        return b"\x80\x02}(" + b"U\x06labels" + labels + key + (data or array()) + b"u."

    for levels in (2, 8, 20, 30, 40, 100, 250):
        tree = shared(levels)
        yield f"tree in the shape, {levels}", whole(array(shape=tree))
        yield f"tree in the dtype, {levels}", whole(array(dtype=tree))
        yield f"tree as a key, {levels}", whole(key=tree)
        yield f"tree as labels, {levels}", whole(labels=tree)
        yield f"tree as pixels, {levels}", whole(array(pixels=tree))
        yield f"tree as the whole, {levels}", b"\x80\x02" + tree + b"."
    for count in (1000, 10_000, 200_000, 5_000_000, 20_000_000):
        yield f"{count} lists in a list", whole(labels=b"](" + b"]" * count + b"e")
        yield f"{count} lists in one another", b"\x80\x02" + b"]" * count + b"a" * (count - 1) + b"."
        yield f"{count} dictionaries", b"\x80\x02](" + b"}" * count + b"e."
        yield f"{count} tuples in one another", b"\x80\x02)" + b"\x85" * count + b"."
        yield f"{count} marks", b"\x80\x02" + b"(" * count + b"."
        yield f"{count} nothings", whole(labels=b"](" + b"N" * count + b"e")
        yield f"a tuple {count} wide", whole(array(shape=b"(" + b"K\x01" * count + b"t"))
        yield f"a tuple {count} wide as a key", whole(key=b"(" + b"K\x01" * count + b"t")
    wide = b"(" + b"K\x01" * 30_000 + b"tq\x00" + b"".join(
        bytes((0x68, k)) * 3 + b"\x87" + bytes((0x71, k + 1)) for k in range(10)
    )  # fmt: skip
    yield "a wide leaf in a tree as a key", whole(key=wide)
    text = b"T" + struct.pack("<i", 1 << 22) + b"\x1b" * (1 << 22)
    for name, code in (("key", whole(key=text)), ("dtype", whole(array(dtype=text))), ("shape", whole(array(text)))):
        yield f"four megabytes of control characters as {name}", code
    yield "a long string shared in a shape", whole(array(shape=text + b"q\x00(" + b"h\x00" * 31 + b"t"))
    encode = (
        b"c_codecs\nencode\nq\x05X" + struct.pack("<i", 1 << 24) + b"a" * (1 << 24) + b"q\x06X\x06\0\0\0latin1q\x07"
    )
    yield "text encoded many times", b"\x80\x02](" + encode + b"\x86R" + b"h\x05h\x06h\x07\x86R" * 15 + b"e."
    yield "a class name of a megabyte", b"\x80\x02c" + b"a\x1b" * (1 << 19) + b"\nb\n."
    yield "a class name of many lines", b"\x80\x02ca\rb\nc\x0bd\n)R."
    yield "an encoding that is a tree", b"\x80\x02c_codecs\nencode\nU\x01a" + shared(20) + b"\x86R."
    yield "a number of a million digits", b"\x80\x02I" + b"9" * (1 << 20) + b"\n."
    yield "a long number of a million digits", b"\x80\x02L" + b"9" * (1 << 20) + b"L\n."
    yield "a long of a megabyte", b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20) + b"."
    yield "a float of a million digits", b"\x80\x02F" + b"1" * (1 << 20) + b"\n."
    yield "no stop", b"\x80\x02}"
    yield "a frame of 2^60 bytes", b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}."
    for protocol in (0, 5, 6, 255):
        yield f"protocol {protocol}", b"\x80" + bytes([protocol]) + whole()[2:]
    for code in b"RbueastJ\x85\x86\x87d0120PQ\x8fo\x81\x93ij\x82":
        yield f"opcode {code:#x} first", b"\x80\x02" + bytes([code]) + b"."
        yield f"opcode {code:#x} in a dictionary", b"\x80\x02}(U\x04data" + bytes([code]) + b"u."
    for shape in (b"K\x01", b"N", b"]", b"}", b"J\xff\xff\xff\xffM\x00\x0c\x86", b"\x88\x88\x86", b"U\x01aU\x01b\x86"):
        yield f"shape {shape!r}", whole(array(shape=shape))


def read_pickle(content, folder):
    formats.decode(formats.PYTHON, content, "data_batch_1")


# ---- archives ----------------------------------------------------------------------------------------------


def header(name=b"x", size=b"00000000000\0", kind=b"0", magic=b"ustar\x0000"):
    """A tar header with its sum, whatever its fields say."""
    block = bytearray(512)
    block[: len(name)] = name[:100]
    block[100:124], block[124:136], block[136:148] = b"0000644\x00" * 3, size[:12].ljust(12, b"\0"), b"00000000000\0"
    block[148:156], block[156:157], block[257:265] = b" " * 8, kind, magic
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def binary(number):
    return (256**12 + number).to_bytes(13, "big")[1:] if number < 0 else b"\x80" + number.to_bytes(11, "big")


def pax(content, kind=b"x"):
    size = b"%011o\0" % len(content)
    return header(b"pax", size, kind) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def archives():
    end = bytes(1024)
    for number in (-1, -512, -513, -1024, -(1 << 40), 1 << 27, 1 << 40, 1 << 62, 1 << 80):
        for kind in (b"0", b"5", b"L", b"K", b"x", b"g", b"S", b"V", b"X"):
            yield f"size {number}, type {kind!r}", header(size=binary(number), kind=kind) + end
        yield f"pax size {number}", pax(b"%d size=%d\n" % (9 + len(str(number)), number)) + header() + end
    for count in (3, 5, 500, 5000, 100_000):
        for kind in (b"L", b"K"):
            yield f"{count} long names, type {kind!r}", pax(b"name\0", kind) * count + header() + end
        for kind in (b"x", b"g"):
            yield f"{count} pax headers, type {kind!r}", pax(b"12 path=abc\n", kind) * count + header() + end
        yield f"{count} empty members", header() * count + end
        yield f"{count} sparse members", header(kind=b"S") * count + end
    for record in (b"0 a=b\n", b"1\n", b"-5 a=b\n", b"9" * 5000 + b" a=b\n", b"99999999999 a=b\n", b"a=b\n", b"6 =\n\n",
                   b"20 GNU.sparse.map=1\n", b"22 GNU.sparse.major=1\n", b"18 mtime=nan-nan-\n", b"13 path=\x00\xff\n",
                   b"19 hdrcharset=BINA\n", b"16 path=\x1b]0;x\x07\n", b"14 uid=1e9999\n"):  # fmt: skip
        yield f"pax record {record[:20]!r}", pax(record) + header() + end
    yield "a pax header of 40 MB", pax(b"6 a=b\n" * (40 << 20 >> 3)) + header() + end
    yield "a long name of 40 MB", pax(b"a" * (40 << 20), b"L") + header() + end
    yield "a name of control characters", header(b"\x1b[2J\x1b]0;owned\x07\r\nx", kind=b"2") + end
    for size in (b"-0000000001\0", b"99999999999\0", b"zzzzzzzzzzz\0", b"            ", b"\0" * 12, b"\xff" * 12):
        yield f"size field {size!r}", header(size=size) + end
    yield "nothing", b""
    yield "zeros", end
    yield "a sparse map without end", header(kind=b"S", magic=b"ustar  \0")[:482] + b"\x01" * 30 + b"\x01" * 51200
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for k in range(2000):
            info = tarfile.TarInfo(f"cifar-10-batches-py/{k}")
            tar.addfile(info)
    yield "2000 files", whole.getvalue()


def streams():
    """What is wrong with the compression itself: not packed by the reader."""
    yield "many empty streams", gzip.compress(b"") * 500_000
    yield "two streams", gzip.compress(header()) + gzip.compress(bytes(1024))
    yield "300 MB of zeros", gzip.compress(bytes(300 << 20), 1)
    yield "no gzip", b"x" * 100_000
    yield "an endless name", b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 5_000_000
    yield "an extra field", b"\x1f\x8b\x08\x04" + bytes(6) + b"\xff\xff" + b"a" * 100
    yield "cut", gzip.compress(header() + bytes(1024))[:-3]
    yield "a wrong sum", gzip.compress(header() + bytes(1024))[:-6] + b"\0\0\0\0\0\0"


def read_archive(content, folder):
    path = folder / "x.tar.gz"
    path.write_bytes(content if content[:2] == b"\x1f\x8b" or content[:1] == b"x" else gzip.compress(content, 1))
    formats.read(path)


# ---- .npz --------------------------------------------------------------------------------------------------


def npy(header_text, body=b""):
    text = header_text if isinstance(header_text, bytes) else header_text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", min(len(text), 65535)) + text[:65535] + body


def npzs():
    good = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 32, 32, 3)}\n"
    for name, text in (
        ("deep brackets", "(" * 5000), ("deep lists", "[" * 60_000 + "]" * 5000), ("a power", "9**9**9"),
        ("minus signs", "-" * 60_000 + "1"), ("many digits", good.replace("1,", "9" * 5000 + ",")),
        ("a negative shape", good.replace("(1,", "(-1,")), ("a boolean shape", good.replace("(1,", "(True,")),
        ("a float shape", good.replace("(1,", "(1.5,")), ("a huge shape", good.replace("(1,", "(10**30,")),
        ("a huge number", good.replace("(1,", f"({10**30},")), ("no dictionary", "[]"), ("empty", ""),
        ("control characters", good.replace("|u1", "\x1b[2J\x07")), ("an object", good.replace("|u1", "|O")),
        ("a record", good.replace("'|u1'", "[('a','u1')]")), ("records in records", good.replace("'|u1'", "[" * 90)),
        ("extra keys", good.replace("{", "{'x': 1, ")), ("two shapes", good.replace("}", ", 'shape': ()}")),
        ("a void of nothing", good.replace("|u1", "|V0")), ("text of nothing", good.replace("|u1", "|S0")),
        ("a void of everything", good.replace("|u1", "|V2000000000")), ("NUL", good.replace("u1", "u\x001")),
    ):  # fmt: skip
        for array in ("x_train", "y_train"):
            yield f"{name} in {array}", {f"{array}.npy": npy(text, bytes(3072))}
    for version in (b"\x00\x00", b"\x02\x00", b"\x03\x00", b"\xff\xff"):
        yield f"version {version!r}", {"x_train.npy": b"\x93NUMPY" + version + b"\xff" * 100}
    yield "many members", {f"{k}.npy": b"" for k in range(20_000)}
    yield "hostile names", {"../../x_train.npy": b"", "\x1b[2J.npy": b""}
    yield "zeros that unpack to a gigabyte", {"x_train.npy": npy(good) + bytes(1 << 28)}


def read_npz(members, folder):
    images, labels = np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.uint8)
    with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            content = io.BytesIO()
            np.save(content, images if name[0] == "x" else labels)
            if f"{name}.npy" not in members:
                file.writestr(f"{name}.npy", content.getvalue())
        for name, value in members.items():
            file.writestr(name, value)
    formats.read(folder / "x.npz")


# ---- paths -------------------------------------------------------------------------------------------------


def paths():
    yield from ((f"{name}", name) for name in (
        "a" * 5000, "a/" * 5000, "\udcff", "a\0b", "\n", "\x1b[2J", "fifo", "fifo.npz", "fifo.tar.gz", "loop", "device",
        "device.npz", "circle", "circle/" * 30, "socket", "file/below", "fifos", "/proc/self/mem", "/dev/zero", "..",
        "/dev/stdin", "link.npz", "empty", "", "~nobody-here/x", "folder.npz", "folder.tar.gz", "denied",
    ))  # fmt: skip


def read_path(name, folder):
    os.chdir(folder)
    for fifo in ("fifo", "fifo.npz", "fifo.tar.gz"):
        os.mkfifo(fifo)
    for link, target in (
        ("loop", "loop"), ("device", "/dev/zero"),
        ("device.npz", "/dev/zero"), ("link.npz", "nowhere"), ("circle", "."),
    ):  # fmt: skip
        os.symlink(target, link)
    socket.socket(socket.AF_UNIX).bind("socket")
    Path("file").write_text("x")
    for below in ("fifos", "empty", "folder.npz", "folder.tar.gz"):
        Path(below).mkdir()
    for file in formats.PYTHON.files:
        os.mkfifo(f"fifos/{file}")
    lookup.check("--data", name)  # as load.load does, which needs TensorFlow
    formats.read(name)


# ---- a server ----------------------------------------------------------------------------------------------


def servers():
    """Names and what is sent: bytes, or a list whose last item is repeated every tenth of a second for ever."""
    ok = b"HTTP/1.1 200 OK\r\n"
    drips = {
        "its first line": [b"H"], "the status": [b"HTTP/1.1 2", b"0"], "a header": [ok + b"A: ", b"a"],
        "headers": [ok, b"A: b\r\n"], "100 Continue": [b"HTTP/1.1 100 Continue\r\n\r\n"],
        "a chunk's length": [ok + b"Transfer-Encoding: chunked\r\n\r\n", b"0"],
        "a chunk's extension": [ok + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a"],
        "a trailer": [ok + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n"],
        "a chunk's end": [ok + b"Transfer-Encoding: chunked\r\n\r\n1\r\na", b" "],
        "a body": [ok + b"\r\n", b"a"], "a body of a length": [ok + b"Content-Length: 1000\r\n\r\n", b"a"],
        "an error's body": [b"HTTP/1.1 500 x\r\nContent-Length: 1000\r\n\r\n", b"a"],
        "nothing": [b""], "a redirect's body": [b"HTTP/1.1 302 x\r\nLocation: /\r\nContent-Length: 9999\r\n\r\n", b"a"],
    }  # fmt: skip
    yield from ((f"drips {name}", answer) for name, answer in drips.items())
    for place in (
        "http://[", "http://[::1", "https://", "http://127.0.0.1:99999/", "http://127.0.0.1:-1/", "http://127.0.0.1:x/",
        "//", "///", "?", "#", "/\xe9", "/\x80\xff", "ftp://127.0.0.1/", "file:///etc/passwd", "gopher://x", "/ /",
        "http://127.0.0.1:" + "9" * 5000, "https://" + "a" * 5000, "http://a@b@c/", "https://\xe9.invalid/", "data:,x",
        "http://127.0.0.1:\x1b[2J/", "https://[::1]:0/", "http://0/", "http://127.1/", "/" * 3000, "javascript:x", ":",
    ):  # fmt: skip
        yield f"redirect {place[:30]!r}", b"HTTP/1.1 302 x\r\nLocation: " + place.encode("latin1") + b"\r\n\r\n"
    for status in (b"200 \x1b[2J\x07", b"404 \x1b]0;owned\x07\x08\x9b", b"500 " + b"x" * 50_000, b"99 x", b"1000 x",
                   b"-1",
                   b"", b"404 a\x0bb\x0cc\x85d", b"206 x", b"416 x", b"301 x", b"304 x", b"401 x", b"407 x", b"204 x",
                   b"101 x", b"9" * 5000):  # fmt: skip
        yield f"status {status[:30]!r}", b"HTTP/1.1 " + status + b"\r\nContent-Length: 3\r\n\r\nabc"
    for line in (
        b"Content-Length: " + b"9" * 5000, b"Content-Length: -1", b"Content-Length: \x1b[2J", b"Content-Length: 1, 2",
        b"Transfer-Encoding: \x1b", b"A: " + b"x" * 70_000, b"A: b\r\n" * 500, b"no colon", b"\x00: \x00",
        b"Content-Encoding: gzip", b"Content-Length: 1e3", b"Set-Cookie: \x1b[2J",
    ):  # fmt: skip
        yield f"header {line[:30]!r}", ok + line + b"\r\n\r\nabc"
    for length in (b"-1", b"f" * 5000, b"zz", b"", b"ffffffffffffffff", b"1;" + b"a" * 70_000, b"0x5", b"\x1b"):
        yield f"chunk {length[:20]!r}", ok + b"Transfer-Encoding: chunked\r\n\r\n" + length + b"\r\nabc\r\n"
    for line in (b"bytes 0-1/2", b"bytes " + b"9" * 5000 + b"-1/2", b"bytes \xb2-\xb3/*", b"\x1b[2J", b""):
        yield f"range {line[:20]!r}", b"HTTP/1.1 206 x\r\nContent-Range: " + line + b"\r\n\r\nabc"
    yield "HTTP/0.9", b"hello"
    yield "HTTP/9.9", b"HTTP/9.9 200 OK\r\n\r\nabc"
    yield "an error's page of 50 MB", b"HTTP/1.1 503 x\r\n\r\n" + b"x" * (50 << 20)


def read_server(answer, folder):
    listener = socket.create_server(("127.0.0.1", 0))

    def speak(connection):
        with contextlib.suppress(OSError):
            connection.recv(65536)
            for part in [answer] if isinstance(answer, bytes) else answer:
                connection.sendall(part)
            while not isinstance(answer, bytes):
                time.sleep(0.1)
                connection.sendall(answer[-1])
            connection.shutdown(socket.SHUT_WR)
            connection.recv(65536)

    def serve():
        while True:
            threading.Thread(target=speak, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
    settings = {"limit_seconds": 5.0, "grace_seconds": 0.5, "stall_seconds": STALL_SECONDS}
    try:
        with download.alone(folder / "new"):
            download.fetch([url], folder / "new" / "file", md5="0" * 32, size=1000, **settings)
    finally:
        left = folder / "new"
        assert not left.exists() or any(path.stat().st_size for path in left.iterdir()), "an empty folder is left"


# ---- the cases ---------------------------------------------------------------------------------------------

KINDS = {
    "pickle": (pickles, read_pickle),
    "archive": (archives, read_archive),
    "gzip": (streams, read_archive),
    "npz": (npzs, read_npz),
    "path": (paths, read_path),
    "server": (servers, read_server),
}


def child(read, content, folder, answers):
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    errors = io.StringIO()
    formats.IMAGES_PER_FILE = 20
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            read(content, folder)
        said = ["read"]
    except UserError as error:
        said = [str(error), *errors.getvalue().splitlines()]
    except BaseException as error:
        said = [f"FELL {type(error).__name__}: {str(error)[:150]}"]
    for line in said:
        if not line.isprintable() or len(line) > LETTERS:
            said[0] = f"FELL {len(line)} letters: {line[:150]!a}"
    answers.send(said[0])


def outcome(read, content):
    """What reading this says, in a process of its own; "FELL ..." for what no user should see."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = context.Pipe(False)
        process = context.Process(target=child, args=(read, content, Path(name), theirs))
        process.start()
        theirs.close()
        try:
            said = ours.recv() if ours.poll(SECONDS) else f"FELL more than {SECONDS} s"
        except EOFError:
            said = "FELL the process died"
        process.kill()
        process.join()
    return said


def cases(beginning="", report=print):
    """Tries all; returns {kind: (tried, held)}."""
    counts = {}
    for kind, (make, read) in KINDS.items():
        if not kind.startswith(beginning):
            continue
        tried = fell = 0
        for name, content in make():
            said = outcome(read, content)
            tried += 1
            if said.startswith("FELL"):
                fell += 1
                report(f"{kind}, {name[:60]!a}: {said}")
        counts[kind] = tried, tried - fell
    return counts


if __name__ == "__main__":
    counts = cases(*sys.argv[1:2])
    for kind, (tried, held) in counts.items():
        print(f"{kind:8} {tried:4} tried, {held:4} held, {tried - held} fell short")
    sys.exit(any(tried != held for tried, held in counts.values()))
