"""Writes a data set as compressed TFRecords, to a folder or to storage such as gs://.

    python -m lab convert --data cifar-10-batches-py --to-tfrecord gs://bucket/cifar10

Training reads them with --data; lab/images/tfrecords.py says what the folder holds.
"""

import os

from lab.base.errors import Parser, exits_with_one_line
from lab.start import load


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are those after the tool's name. Returns the exit code."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to-tfrecord", metavar="DIR", required=True, help="where they go: a new folder, gs:// too")
    parser.add_argument("--data", metavar="PATH", help="as of train_eager.py (default: find or download CIFAR-10)")
    parser.add_argument("--seed", type=int, default=0, help="of --data synthetic (default: %(default)s)")
    options = parser.parse_args(arguments)
    tfrecords = load("lab.images.tfrecords")
    load("lab.assemble").configure({"seed": options.seed})  # which tells a seed that cannot be one
    tfrecords.check_new(os.path.expanduser(options.to_tfrecord))  # before a download
    images = load("lab.images.load").load(options.data or None, seed=options.seed)
    tfrecords.write(options.to_tfrecord, images)
    counts = f"{len(images.train_labels):,} training and {len(images.test_labels):,} test images"
    print(f"wrote {counts} to {options.to_tfrecord}")
    return 0
