"""What a run prints: the header, a bar inside each epoch, a row after it."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

COLUMNS = (  # key of a row, heading, format
    ("epoch", "epoch", "{:5d}"),
    ("learning_rate", "rate", "{:8.5f}"),
    ("train_loss", "train loss", "{:10.4f}"),
    ("train_accuracy", "train acc", "{:9.4f}"),
    ("test_loss", "test loss", "{:9.4f}"),
    ("test_accuracy", "test acc", "{:8.4f}"),
    ("train_seconds", "train s", "{:8.1f}"),
    ("total_seconds", "total s", "{:8.1f}"),
)


def in_kernel() -> bool:
    """Whether this is a notebook's kernel, and not a program that merely has a part of Jupyter loaded."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def say(text: str = "") -> None:
    """A line on stdout, above any bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def header(lines: dict[str, str]) -> None:
    """Prints names and values, aligned."""
    longest = max(map(len, lines))
    for name, value in lines.items():
        say(f"{name:<{longest}}  {value}")


def heading() -> str:
    """The line above the rows."""
    return "  ".join(name.rjust(len(form.format(0))) for _, name, form in COLUMNS)


def row(values: dict[str, Any]) -> str:
    """One epoch as a line; `values` as in result.json."""
    return "  ".join(form.format(values[key]) for key, _, form in COLUMNS)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Says what takes so long, on stderr with the seconds that have passed if that is a terminal, else in a line.

    The seconds go when it is over. A notebook gets the line, since its output may be read elsewhere.
    """
    if not sys.stderr.isatty() or not sys.stdout.isatty():
        say(text)
        yield
        return
    over, start = threading.Event(), time.perf_counter()

    def count() -> None:
        while not over.wait(0.25):
            sys.stderr.write(f"\r{text}: {time.perf_counter() - start:.0f} s ")
            sys.stderr.flush()

    # A daemon: one that still writes does not keep the process from ending.
    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    try:
        yield
    finally:
        over.set()
        counter.join()
        sys.stderr.write("\r\x1b[K")  # the line is empty again
        sys.stderr.flush()


class EpochBar:
    """A bar over the images of each epoch, on stderr: images/s and the time left in the run. A context manager.

    Not shown unless stdout is a terminal or a notebook's. The time left counts training only.

    Args:
        ends: how many images have been seen in all at the run's start, 0, and at the end of each epoch.
    """

    def __init__(self, ends: Sequence[int]) -> None:
        self.ends, self.epoch = ends, 0
        self.bar = tqdm(
            total=ends[1],
            unit="images",
            unit_scale=True,
            leave=False,
            disable=not sys.stdout.isatty() and not in_kernel(),
            bar_format="{desc} {percentage:3.0f}%|{bar:24}| {rate_fmt}{postfix}",
        )

    def __enter__(self) -> "EpochBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, epoch: int, images: int) -> None:
        """So many images of that epoch have been seen."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.bar.reset(self.ends[epoch] - self.ends[epoch - 1])
            self.bar.n = self.bar.last_print_n = images  # of a resumed epoch, seen before: not for the rate
            self.bar.set_description_str(f"epoch {epoch}/{len(self.ends) - 1}", refresh=False)
        self.bar.update(images - self.bar.n)
        rate = self.bar.format_dict["rate"]
        if rate:
            left = (self.ends[-1] - self.ends[epoch - 1] - images) / rate
            self.bar.set_postfix_str(f"{tqdm.format_interval(left)} left", refresh=False)
