"""Writes a data set as compressed TFRecords, to a folder or to storage such as gs://.

    python -m lab convert --data cifar-10-batches-py --to-tfrecord gs://bucket/cifar10

Training reads them with --data; lab/images/tfrecords.py says what the folder holds.
"""

import os
from collections.abc import Sequence
from dataclasses import fields, make_dataclass
from typing import Any

from lab.base.errors import Parser, exits_with_one_line
from lab.images import load, tfrecords
from train_eager import Config, add_flags


def some_fields(kind: Any, names: Sequence[str]) -> Any:
    """A dataclass of these fields of another alone, for train_eager.add_flags."""
    chosen = [(item.name, item.type, item) for item in fields(kind) if item.name in names]
    return make_dataclass("Chosen", chosen)


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are those after the tool's name. Returns the exit code."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--to-tfrecord", metavar="DIR", required=True, help="where they go: a new folder, gs:// too")
    add_flags(parser, some_fields(Config, ("data", "seed")))
    options = parser.parse_args(arguments)
    tfrecords.check_new(os.path.expanduser(options.to_tfrecord))  # before a download
    images = load.load(getattr(options, "data", "") or None, seed=getattr(options, "seed", Config.seed))
    tfrecords.write(options.to_tfrecord, images)
    counts = f"{len(images.train_labels):,} training and {len(images.test_labels):,} test images"
    print(f"wrote {counts} to {options.to_tfrecord}")
    return 0
