"""The machine's ceilings, by NumPy: products of matrices, and copies of memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lab.bench.rivals import Built, Task, processors

SGEMM_SIDE, COPY_BYTES = 2048, 2**28  # well beyond the caches
SGEMM_REPEATS, COPY_REPEATS = 10, 16  # about a second each on two cores
SGEMM_GFLOP = SGEMM_REPEATS * 2 * SGEMM_SIDE**3 / 1e9


def matrices() -> tuple[np.ndarray, np.ndarray]:
    """Two float32 (SGEMM_SIDE, SGEMM_SIDE)."""
    shape = (2, SGEMM_SIDE, SGEMM_SIDE)
    left, right = np.random.default_rng(0).standard_normal(shape, np.float32)
    return left, right


def sgemm(task: Task) -> Built:
    left, right = matrices()
    result = np.empty_like(left)

    def products(count: int) -> None:
        for _ in range(SGEMM_REPEATS * count):
            np.matmul(left, right, out=result)

    return products, SGEMM_GFLOP


def copy(task: Task) -> Built:
    """A copy by all threads, a share each; read and written bytes both count, as in STREAM."""
    threads = processors()
    source, target = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    shares = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    pool = ThreadPoolExecutor(threads)

    def copies(count: int) -> None:
        for _ in range(COPY_REPEATS * count):
            list(pool.map(lambda share: np.copyto(*share), shares))  # NumPy lets go of the lock

    return copies, COPY_REPEATS * 2 * COPY_BYTES / 1e9
