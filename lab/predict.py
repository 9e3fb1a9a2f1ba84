"""What a finished run's network says: of image files, of its test set, or elsewhere, exported.

    python -m lab predict runs/NAME photo.jpg more/            # class, probability, top 3 of files and folders
    python -m lab predict runs/NAME --evaluate                 # accuracy of each class, confusion matrix
    python -m lab predict runs/NAME --export model             # as a SavedModel and as model.keras

A probability is the softmax of the logits' mean over the run's views of the image (--tta for others). Files may be of
any size and of any kind that Pillow reads: lab/images/photos.py says how they become 32x32 pixels. An image of a
folder that cannot be read is reported, and the others are classified.

Exit: 0; 1 if --evaluate misses what the run recorded; 2 if an image could not be read, or for another mistake; 5 if a
file cannot be written.
"""

import argparse
from pathlib import Path

from lab.base.errors import Parser, UserError, exits_with_one_line
from lab.options import VIEWS
from lab.start import load


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Raises UserError for arguments that are unknown, or leave nothing to do."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="image file of any kind, or a folder")
    parser.add_argument("--tta", choices=VIEWS, default="", help="views of an image (default: the run's)")
    parser.add_argument("--json", action="store_true", help="the images' classes as JSON")
    parser.add_argument("--evaluate", action="store_true", help="classify the run's test set")
    parser.add_argument("--data", metavar="PATH", help="with --evaluate: where it is (default: find or download)")
    parser.add_argument("--export", metavar="DIR", type=Path, help="write a SavedModel and a .keras file there")
    options = parser.parse_intermixed_args(arguments)
    if options.data is not None and not options.evaluate:
        raise UserError("--data is the test set's place; add --evaluate")
    if options.json and (options.evaluate or options.export or not options.images):
        raise UserError("--json is for images alone; give some, and leave out --evaluate and --export")
    if not (options.images or options.evaluate or options.export):
        raise UserError("there is nothing to do; give images, --evaluate or --export DIR")
    return options


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    options = parse(arguments)
    answered: int = load("lab.classify").answer(options)
    return answered
