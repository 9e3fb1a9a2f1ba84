"""The processes of the bench: each builds and runs its candidates, and sleeps until it is asked.

python -m lab.bench.worker NETWORK BATCH_SIZE WIDTH DATA PRECISION    # as Worker starts it; on stdin and stdout
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.base.errors import UserError
from lab.bench import rivals
from lab.machine import memory

ROOT = Path(__file__).resolve().parents[2]

# ---- the asking side ---------------------------------------------------------------------------------------


class WorkerFailedError(Exception):
    """A candidate could not be built or run; the message says why in one line."""


def default_precision() -> str:
    """In what a run on this CPU computes by default: timed as when a run starts, in a process of its own."""
    code = "from lab.machine import fastest; print(fastest.choose('auto', jit=True).precision)"
    environment = os.environ | rivals.PROCESSES["ours"]
    command = [sys.executable, "-c", code]
    timed = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return timed.stdout.strip()


class Worker:
    """A process that builds and runs candidates.

    Args:
        process: which one of rivals.PROCESSES.
        task: whose candidates, and the sizes.
        threads: processors it may use; 0 for all.
    """

    def __init__(self, process: str, task: rivals.Task, threads: int = 0) -> None:
        sizes = (task.network, str(task.batch_size), str(task.width), str(task.data.absolute()), task.precision)
        # Closed by `close`: it lives as long as the process that writes to it.
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.started = time.monotonic()
        with processors(threads):
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lab.bench.worker", *sizes],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                env=os.environ | rivals.PROCESSES[process],
            )

    def ask(self, name: str, count: int = 0) -> dict[str, Any]:
        """Has the candidate do its work `count` times, or be built if 0; what `serve` answers.

        Raises: WorkerFailedError if it cannot.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the lines below find out why it has ended
            self.process.stdin.write(f"{name} {count}\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            last = [text.strip() for text in self.errors if text.strip()][-1:] or ["no message"]
            raise WorkerFailedError(f"its process ended with code {self.process.wait()}: {last[0]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailedError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process and waits for its memory to be free again."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


@contextlib.contextmanager
def processors(threads: int) -> Iterator[None]:
    """Within it, this process and those it starts may use so many processors; 0 for all."""
    if not threads:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("this system cannot hold a process to some processors; run on Linux")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def prepare(worker: Worker, name: str) -> dict[str, Any]:
    """Has the candidate built, and do the two steps that do not count.

    Returns:
        Seconds of each part; `units` of one step; `peak_gib`, the memory until now; and `given_back_gib`, the
        memory that it will ask for again at its turn.
    """
    ready = worker.ask(name)
    first = worker.ask(name, 1)
    until_first = time.monotonic() - worker.started
    second = worker.ask(name, 1)
    return {
        "units": ready["units"],
        "import_seconds": ready["import_seconds"],
        "build_seconds": ready["seconds"] - ready["import_seconds"],
        "first_step_seconds": first["seconds"],
        "start_to_first_step_seconds": until_first,
        "peak_gib": highest([ready, first, second]),
        "given_back_gib": second["peak_gib"] - second["resident_gib"] if second["peak_gib"] else 0.0,
    }


def turn(worker: Worker, name: str, steps: int, least: float) -> dict[str, Any]:
    """What the worker answers of `steps` steps, repeated until they have taken `least` seconds.

    `seconds` are of one repetition, `repeats` says how many there were, and `settling_seconds` is the uncounted
    step's before them.
    """
    first = worker.ask(name, 1)
    repeats = max(1, math.ceil(least / (steps * first["seconds"])))
    answer = worker.ask(name, steps * repeats)
    return answer | {
        "seconds": answer["seconds"] / repeats,
        "repeats": repeats,
        "settling_seconds": first["seconds"],
        "idle_processor_seconds": first["idle_processor_seconds"],  # the second question followed at once
        "peak_gib": highest([first, answer]),
    }


def highest(answers: Sequence[dict[str, Any]]) -> float | None:
    """The peak of memory over these answers, GiB; None where the system is silent."""
    return max((answer["peak_gib"] for answer in answers if answer["peak_gib"] is not None), default=None)


# ---- the worker's side -------------------------------------------------------------------------------------


def serve(task: rivals.Task) -> None:
    """Answers each line 'CANDIDATE COUNT' with a line of JSON. Ends with its input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print does not get between the answers
    table = rivals.candidates(task.network)
    runs: dict[str, rivals.Run] = {}
    processor = time.process_time()
    for line in sys.stdin:
        name, count = line.split()
        idle = time.process_time() - processor
        try:
            answer: dict[str, Any] = {}
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")  # resets the peak of memory (man 5 proc)
            start = time.perf_counter()
            if int(count):
                runs[name](int(count))
            else:
                build = rivals.load(table[name])
                answer["import_seconds"] = time.perf_counter() - start
                runs[name], answer["units"] = build(task)
            answer |= {"seconds": time.perf_counter() - start, "idle_processor_seconds": idle, **_memory()}
        except Exception as error:  # whatever it is, the others go on and the table says it
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        processor = time.process_time()
        print(json.dumps(answer), file=answers, flush=True)


def _memory() -> dict[str, float | None]:
    """GiB that this process has held at most in this turn, and holds; None where the system is silent."""
    path = "/proc/self/status"
    return {"peak_gib": memory.proc_gib(path, "VmHWM:"), "resident_gib": memory.proc_gib(path, "VmRSS:")}


if __name__ == "__main__":
    network, batch_size, width, data, precision = sys.argv[1:]
    serve(rivals.Task(network, int(batch_size), int(width), Path(data), precision))
