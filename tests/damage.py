"""Damages files that are read back, one at a time and at random places, and looks at what reading makes of them.

    python tests/damage.py --cases 240 --seed 1
    python tests/damage.py --cases 60 --data cifar-10-batches-py      # a real folder, copied first

A truncated file or one with a flipped bit must be refused in one line, be said to be doubtful, or be read as if it
were whole (a zip file's dates, say). Anything else, a traceback or other values without a word, is a failure.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "lab" / "images")]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import faults
from lab.base.errors import UserError
from lab.images import formats, tfrecords
from lab.images import load as data
from lab.runs import checkpoint, record


def load_data(path):
    images = data.load(str(path), seed=0)
    return images.sha256, images.classes, images.doubt


def load_checkpoint(folder):
    saved, damaged = checkpoint.newest(str(folder))
    return saved, damaged


def load_result(path):
    return record.read_result(path)


def sources(folder, real=None):
    """What to damage: (kind, where to read it, its files, how to read it)."""
    if real:
        copy = folder / "cifar-10-batches-py"
        shutil.copytree(real, copy)
        return [("python", copy, sorted(copy.iterdir()), load_data)]
    run = folder / "run"
    faults.make_data(folder / "small.npz")
    code, _, error = faults.run(faults.command(folder / "small.npz", run))
    assert code == 0, error
    made = [("npz", folder / "small.npz", [folder / "small.npz"], load_data)]
    import test_formats

    for layout, kind in ((formats.PYTHON, "python"), (formats.BINARY, "binary")):
        batches = test_formats.make_folder(folder / kind, layout)
        made.append((kind, batches, sorted(batches.iterdir()), load_data))
        with tarfile.open(folder / layout.archive, "w:gz") as archive:
            archive.add(batches, layout.folder)
        made.append((f"{kind} archive", folder / layout.archive, [folder / layout.archive], load_data))
    tfrecords.write(str(folder / "records"), data.load(str(folder / "small.npz"), seed=0))
    made.append(("tfrecord", folder / "records", sorted((folder / "records").iterdir()), load_data))
    checkpoints = sorted((run / "checkpoints").iterdir())
    made.append(("checkpoint", run, checkpoints, load_checkpoint))
    made.append(("result", run / "result.json", [run / "result.json"], load_result))
    return made


def publish(folder):
    """Takes the small files for the published ones."""
    for name in formats.PUBLISHED_MD5:
        (path,) = folder.rglob(name)
        formats.PUBLISHED_MD5[name] = hashlib.md5(path.read_bytes()).hexdigest()


def damage(content, generator):
    """The content truncated, or with one bit flipped, and a word for it."""
    place = int(generator.integers(len(content)))
    if generator.integers(2):
        return content[:place], f"cut at {place}"
    flipped = bytearray(content)
    flipped[place] ^= 1 << int(generator.integers(8))
    return bytes(flipped), f"bit flipped at {place}"


def outcome(read, where, whole):
    """ "refused", "doubtful" or "harmless"; AssertionError if other values came without a word."""
    try:
        found = read(where)
    except UserError as error:
        assert "\n" not in str(error), error
        return "refused"
    if found == whole:
        return "harmless"
    if read is load_checkpoint:
        saved, damaged = found
        assert damaged, "another checkpoint, and nothing said"
        assert saved is None or saved.about["step"] < whole[0].about["step"] or saved == whole[0]
        return "refused"
    assert read is load_data and found[2], "other values, and nothing said"
    return "doubtful"


def cases(folder, count, generator, real=None, report=print):
    """Makes `count` cases, one of each kind in turn; returns how each kind came out."""
    found, kinds = {}, sources(folder, real)
    if not real:
        publish(folder)
    whole = {kind: read(where) for kind, where, _, read in kinds}
    for number in range(count):
        kind, where, files, read = kinds[number % len(kinds)]
        path = files[int(generator.integers(len(files)))]
        content = path.read_bytes()
        broken, what = damage(content, generator)
        path.write_bytes(broken)
        try:
            came_out = outcome(read, where, whole[kind])
        except Exception:
            report(f"case {number}: {path.name} {what}")
            raise
        finally:
            path.write_bytes(content)
        found.setdefault(kind, Counter())[came_out] += 1
    assert all(read(where) == whole[kind] for kind, where, _, read in kinds)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=240)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--data", help="a real cifar-10-batches-py to damage a copy of; else small made-up files")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    if not options.data:
        formats.IMAGES_PER_FILE = 20  # test_formats makes so many a file
    with tempfile.TemporaryDirectory() as name:
        found = cases(Path(name), options.cases, np.random.default_rng(options.seed), options.data)
    for kind, results in found.items():
        print(f"{kind:16} {sum(results.values()):4}: {', '.join(f'{n} {what}' for what, n in results.items())}")
    print(f"{sum(sum(results.values()) for results in found.values())} cases, none silently wrong, no traceback")
    return 0


if __name__ == "__main__":
    sys.exit(main())
