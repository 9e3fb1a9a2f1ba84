"""SIGTERM and Ctrl-C are noted, for the loop to stop at the end of a step."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Within it, SIGTERM and the first Ctrl-C set `signal` instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where signals cannot be caught,
    nothing changes.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        self.listen()
        return self

    def listen(self) -> None:
        """Notes signals from now on; to be called again when workers have joined, for TensorFlow then sets its own."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before.setdefault(number, signal.signal(number, self._note))

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as the shell has it: 143 after SIGTERM, 130 after Ctrl-C."""
        return 128 + int(self.signal or 0)
