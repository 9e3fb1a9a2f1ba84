"""Holds back what TensorFlow's libraries write to the file descriptor of stderr as they start, if they do start.

These lines (oneDNN is on, no CUDA driver, cuInit failed) come on healthy machines too, before any level of logging is
set. What else is written meanwhile, and all of it if the process fails or dies, is shown.

Run as a program, this file is who holds: it reads stdin to its end, which the death of the other process is too, and
then writes to stderr what nobody has told it to forget.
"""

import atexit
import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator

STARTED = b"\0"  # the last byte if all went well
# A line of TensorFlow's logging, before and after it is set up, but for a fatal one; and what stands above the first.
CHATTER = re.compile(
    rb"^(?:[IWE]\d{4} |\d{4}-\d\d-\d\d [\d:.]+: [IWE] |WARNING: All log messages before absl).*\n|"
    rb"^To enable the following instructions: .*\n",
    re.MULTILINE,
)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Within it, what is written to stderr by others than Python is held back, as the top of this file says.

    Nothing happens where Python's stderr is another file descriptor, or none: in a notebook, in tests.
    """
    try:
        stderr = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        stderr = -1
    if stderr != 2:
        yield
        return
    command = [sys.executable, "-I", "-S", __file__]
    # A session of its own: Ctrl-C is for the process that it watches.
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    assert holder.stdin is not None
    before, pythons = os.dup(2), sys.stderr
    os.dup2(holder.stdin.fileno(), 2)
    holder.stdin.close()
    shown = open(before, "w", encoding=pythons.encoding, errors="backslashreplace", buffering=1)  # noqa: SIM115
    atexit.register(shown.close)  # not before: TensorFlow's logging, loaded within, goes on writing to it
    sys.stderr = shown  # Python's own warnings and errors are seen at once
    try:
        yield
        os.write(2, STARTED)
    except KeyboardInterrupt:
        os.write(2, STARTED)
        raise
    finally:
        sys.stderr = pythons
        os.dup2(shown.fileno(), 2)
        holder.wait()


def main() -> None:
    held = sys.stdin.buffer.read()
    if held.endswith(STARTED):
        held = CHATTER.sub(b"", held.removesuffix(STARTED))
    sys.stderr.buffer.write(held)


if __name__ == "__main__":
    main()
