"""Hostile contents of folders that are resumed or written to: each is refused, reported or ignored in a line.

    python tests/folders.py --cases 600 --seed 1

Checkpoints whose manifest is something else, or whose .npz is, though the sums are right; names that only look like
checkpoints, files that are none, series.json and run.json of any kind; and what is kept when checkpoints are damaged
while a run goes on.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
import tensorflow as tf

from lab import assemble, command, series
from lab.base import console, files
from lab.base.errors import UserError
from lab.runs import checkpoint
from lab.runs.claim import Claim
from lab.runs.progress import Progress

ODD = [None, "x", "", -1, 0.5, 1e300, True, [], {}, [[1]], {"a": 1}, 2**70, "\x1b[31m\n" * 9, [None] * 3, "é" * 5000]
NAMES = ["step-².json", "step-03.json", "step--1.json", "step-1e5.json", "step-٣.json", f"step-{'9' * 200}.json"]
NAMES += ["step-.json", "step-9.json.part", "Step-9.json", "step-9.JSON", ".step-9.json", "step-9", "step-+9.json"]


def about(step):
    """What the manifest of a whole checkpoint says after `step` epochs."""
    row = {name: 0.5 for name, _, _ in console.COLUMNS}
    rows = [{**row, "epoch": number} for number in range(1, step + 1)]
    options = asdict(assemble.configure({}))
    return asdict(Progress(epoch=step + 1, rows=rows)) | {"hyperparameters": options, "data_sha256": "ab" * 32}


def variables():
    return [tf.Variable(tf.random.normal([3, 2])), tf.Variable(7, dtype=tf.int64)]


def make(folder, keep=9):
    saver = checkpoint.Checkpoints(str(folder), keep, variables())
    for step in (1, 2):
        saver.save(step, about(step))
    return saver


def write(folder, content, step=2):
    """A manifest of any content, with the right sums."""
    place = folder / "checkpoints" / f"step-{step}"
    sha = files.sum_of(f"{place}.npz")
    place.with_suffix(".json").write_text(files.encode({"step": step, "sha256_npz": sha, "about": content}))


def check_newest(folder):
    saved, damaged = checkpoint.newest(str(folder))
    assert saved is not None and saved.about["step"] == 1, damaged
    assert len(damaged) == 1 and "\n" not in damaged[0] and "\x1b" not in damaged[0]
    return "reported"


def manifest(folder, generator):
    """The manifest is something else altogether, or too deep to be read."""
    make(folder)
    path = folder / "checkpoints" / "step-2.json"
    deep = int(generator.integers(900, 200_000))
    texts = ["[" * deep, '{"a":' * deep, "[]", "3", '"x"', "null", "{}", "NaN", "\ufeff{}", " " * 1000, '{"step": 2}']
    choice = int(generator.integers(len(texts) + 3))
    if choice < len(texts):
        path.write_text(texts[choice])
    else:
        content = {"step": [2, "2", True][choice - len(texts)], "about": 3}
        path.write_text(files.encode(content))
    return check_newest(folder)


def arrays(folder, generator):
    make(folder)
    path = folder / "checkpoints" / "step-2.npz"
    a = np.zeros(3)
    contents = [
        {"a": a},
        {"arr_0": a, "arr_2": a},
        {"arr_0": np.array(["x"])},
        {"arr_00": a},
        {"arr_0": np.array([{}])},
    ]
    choice = int(generator.integers(len(contents) + 3))
    if choice < len(contents):
        np.savez(path, **contents[choice])
    else:
        path.write_bytes([b"", b"PK\x05\x06", np.random.default_rng(0).bytes(999)][choice - len(contents)])
    write(folder, about(2))
    saved, damaged = checkpoint.newest(str(folder))
    assert saved.about["step"] == 2 and not damaged
    try:
        checkpoint.Checkpoints(str(folder), 9, variables()).restore(saved)
    except UserError as error:
        assert "\n" not in str(error)
        return "refused"
    raise AssertionError("restored")


def stray(folder, generator):
    """Names that only look like checkpoints, and things that are no files."""
    saver = make(folder, keep=2)
    inside = folder / "checkpoints"
    for _ in range(1 + int(generator.integers(3))):
        kind, name = int(generator.integers(5)), NAMES[int(generator.integers(len(NAMES)))]
        if kind == 0:
            (inside / name).write_text("{}")
        elif kind == 1:
            (inside / "step-3.json").exists() or (inside / "step-3.json").mkdir()
        elif kind == 2:
            (inside / "step-4.json").is_symlink() or (inside / "step-4.json").symlink_to("nowhere")
        elif kind == 3:
            (inside / "step-5.json").is_symlink() or (inside / "step-5.json").symlink_to("step-5.json")
        elif not (inside / "step-6.json").exists():
            os.mkfifo(inside / "step-6.json")
    saved, damaged = checkpoint.newest(str(folder))
    assert saved.about["step"] == 2 and all("\n" not in line for line in damaged)
    saver.save(7, about(7))
    assert checkpoint.newest(str(folder))[0].about["step"] == 7
    return "reported" if damaged else "ignored"


def kept(folder, generator):
    """Saves and damages in turn: a whole one stays, and never more than `keep`."""
    keep, step, spoilt = 1 + int(generator.integers(3)), 2, set()
    make(folder, keep)
    for _ in range(6):
        saver = checkpoint.Checkpoints(str(folder), keep, variables())  # as if resumed
        saved, _ = checkpoint.newest(str(folder))
        assert saved is not None
        here = {path.stem for path in (folder / "checkpoints").glob("*.json")} - spoilt
        if len(here) > 1 and generator.integers(2):
            spoilt.add(name := sorted(here, key=lambda stem: int(stem[5:]))[-1])
            path = folder / "checkpoints" / f"{name}{['.json', '.npz'][int(generator.integers(2))]}"
            path.write_bytes(path.read_bytes()[: int(generator.integers(50))])
            step = int(name[5:]) - 1  # goes on from before, and is interrupted before it comes to it again
        else:
            step += 2
        saver.save(step, about(step))
        spoilt.discard(f"step-{step}")
        whole = {path.stem for path in (folder / "checkpoints").glob("*.json")} - spoilt
        assert f"step-{step}" in whole or len(whole) == keep, (step, whole)
        assert 1 <= len(whole) <= keep
    return "kept"


def series_file(folder, generator):
    choice, odd = int(generator.integers(5)), ODD[int(generator.integers(len(ODD)))]
    path = folder / series.SERIES
    if choice == 0:
        path.mkdir()
    elif choice == 1:
        os.mkfifo(path)
    elif choice == 2:
        path.write_text("[" * 100_000)
    elif choice == 3:
        path.write_text(files.encode({"hyperparameters": odd}))
    else:
        whole = files.encode({"hyperparameters": asdict(assemble.configure({"runs": 3}))})
        path.write_text(whole[: int(generator.integers(len(whole) - 2))])
    try:
        command.resumed_options(str(folder), series.hyperparameters(folder), {}, series.KEPT)
    except UserError as error:
        assert "\n" not in str(error)
        return "refused"
    raise AssertionError("taken")


def written(folder, generator):
    """A folder that holds something is refused for every kind of run, and stays as it is."""
    names = ["result.json", "run.json", "weights.npz", "dawnbench.tsv", "series.json", "checkpoints", "seed-0", "x\ny"]
    for _ in range(1 + int(generator.integers(3))):
        path, kind = folder / names[int(generator.integers(len(names)))], int(generator.integers(4))
        if path.exists() or path.is_symlink():
            continue
        if kind == 0:
            path.mkdir()
        elif kind == 1:
            path.symlink_to("nowhere")
        else:
            path.write_bytes([b"{}", files.encode({"name": "other"}).encode()][kind - 2])
    if all(path.name == "run.json" for path in folder.iterdir()):  # alone and of nobody, it may be left by a kill
        (folder / "weights.npz").write_bytes(b"")
    before = {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()}
    scheme = "file://" if generator.integers(2) else ""
    try:
        with Claim("mine") as own:
            own.take("--checkpoint-dir" if scheme else "--out", f"{scheme}{folder}")
    except UserError as error:
        assert "\n" not in str(error)
        assert {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()} == before
        return "refused"
    raise AssertionError(f"taken: {sorted(before)}")


KINDS = (manifest, arrays, stray, kept, series_file, written)


def cases(folder, count, generator, report=print):
    """Makes `count` cases, one of each kind in turn; returns how each kind came out."""
    found = {}
    for number in range(count):
        kind, here = KINDS[number % len(KINDS)], folder / str(number)
        here.mkdir()
        try:
            found.setdefault(kind.__name__, Counter())[kind(here, generator)] += 1
        except BaseException:
            report(f"case {number}: {kind.__name__}, {sorted(map(str, here.rglob('*')))}")
            raise
        shutil.rmtree(here)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as name:
        found = cases(Path(name), options.cases, np.random.default_rng(options.seed))
    for kind, outcomes in found.items():
        print(f"{kind:16} {sum(outcomes.values()):4}: {', '.join(f'{n} {what}' for what, n in outcomes.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
