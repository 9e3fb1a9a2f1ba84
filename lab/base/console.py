"""What a run prints: the header, a bar inside each epoch, a row after it."""

import sys
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


class EpochBar:
    """A bar over the images of an epoch, on stderr: images/s and the time left in the run.

    There is none where stdout is no terminal. The time left counts training only.
    """

    def __init__(self, epoch: int, epochs: int, images: int) -> None:
        self.later = (epochs - epoch) * images  # images of the epochs to come
        self.bar = tqdm(
            total=images,
            desc=f"epoch {epoch}/{epochs}",
            unit="images",
            unit_scale=True,
            leave=False,
            disable=not sys.stdout.isatty() and not in_kernel(),
            bar_format="{desc} {percentage:3.0f}%|{bar:24}| {rate_fmt}{postfix}",
        )

    def advance(self, images: int) -> None:
        self.bar.update(images)
        rate = self.bar.format_dict["rate"]
        if rate:
            left = (self.bar.total - self.bar.n + self.later) / rate
            self.bar.set_postfix_str(f"{tqdm.format_interval(left)} left", refresh=False)

    def close(self) -> None:
        self.bar.close()
