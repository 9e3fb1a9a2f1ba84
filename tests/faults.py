"""Kills trainings at random moments, resumes them, and compares what they leave with an undisturbed one.

    python tests/faults.py --kills 20 --seed 1

Each case is a run of train_eager.py on small made-up images, killed with SIGKILL during a step, while a checkpoint
is written or while a result is, and resumed until it ends. Two cases at a time share a parent folder.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MOMENTS = ("step", "checkpoint", "result")
EPOCHS, STEPS = 4, 5


def make_data(path):
    """80 training and 24 test images of 4 classes that differ in colour."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 80), ("test", 24)):
        labels = np.arange(count) % 4
        images = generator.integers(0, 80, (count, 32, 32, 3)) + 40 * labels[:, None, None, None]
        arrays |= {f"x_{part}": images.astype(np.uint8), f"y_{part}": labels}
    np.savez(path, **arrays)


def command(data, out, *more):
    flags = [
        "--data",
        data,
        "--out",
        out,
        "--epochs",
        EPOCHS,
        "--batch-size",
        16,
        "--width",
        4,
        "--precision",
        "float32",  # a timing could choose otherwise for the twin
        "--device",
        "cpu",
    ]
    flags += ["--ema-every", 2, "--no-jit", *more]
    return [sys.executable, "train_eager.py", *map(str, flags)]


def resume_command(out, *more):
    return [sys.executable, "train_eager.py", "--resume", str(out), *map(str, more)]


def start(arguments, log):
    return subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def run(arguments):
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def left(out):
    """What must be equal: the weights' bytes, and the rows less their times."""
    rows = json.loads((out / "result.json").read_text())["epochs"]
    return (out / "weights.npz").read_bytes(), [
        {key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows
    ]


def sizes(folder):
    """Names and times of all files, temporary ones included."""
    found = {}
    for path in folder.rglob("*"):
        try:
            found[str(path)] = path.stat().st_mtime_ns
        except OSError:
            continue  # gone meanwhile
    return found


def kill_at(process, out, moment, generator):
    """Kills the process at a random moment of the kind; False if it ended before."""
    pattern = {"step": "", "checkpoint": "checkpoints/step", "result": "result.json"}[moment]
    before = sizes(out) if out.exists() else {}
    writes = int(generator.integers(1, 4))  # the first, second or third change seen
    while process.poll() is None:
        after = sizes(out) if out.exists() else {}
        changed = [path for path in after if after[path] != before.get(path) and pattern in path]
        before = after
        if changed:
            writes -= 1
        if changed and writes <= 0:
            time.sleep(generator.uniform(0, 0.4 if moment == "step" else 0.01))
            break
        time.sleep(0.001)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def case(folder, data, moment, generator, name="run"):
    """Trains in folder/name, is killed, resumes; returns what is left and how often it was killed (0 to 2)."""
    out, kills = folder / name, 0
    arguments = command(data, out)
    with open(folder / f"{name}.log", "w") as log:
        for _ in range(2):
            process = start(arguments, log)
            kills += kill_at(process, out, moment, generator)
            if process.returncode == 0:
                break
            whole = list((out / "checkpoints").glob("step-*.json")) if out.exists() else []
            arguments = resume_command(out) if whole else command(data, out := folder / f"{name}{kills}")
    if process.returncode != 0:
        code, _, error = run(arguments)
        assert code == 0, error
    return left(out), kills


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import tempfile

    print(f"seed {options.seed}")
    generator, kills, number = np.random.default_rng(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder / "data.npz")
        code, _, error = run(command(folder / "data.npz", folder / "undisturbed"))
        assert code == 0, error
        expected = left(folder / "undisturbed")
        while kills < options.kills:
            (here := folder / str(number)).mkdir()
            moments = [MOMENTS[(number + other) % len(MOMENTS)] for other in range(2)]
            with ThreadPoolExecutor(2) as pool:
                ends = pool.map(
                    lambda name, moment, own, here=here: case(here, folder / "data.npz", moment, own, name),
                    ("a", "b"),
                    moments,
                    generator.spawn(2),
                )
                for moment, (found, killed) in zip(moments, ends, strict=True):
                    number, kills = number + 1, kills + killed
                    same = "equal" if found == expected else "DIFFERENT"
                    print(f"case {number}, {moment}: killed {killed} times, {same}", flush=True)
                    if found != expected:
                        return 1
    print(f"{kills} kills in {number} runs; all ended with the undisturbed run's weights and rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
