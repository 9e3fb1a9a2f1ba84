"""How long iterators of a data set take to end."""

import time


def seconds_to_end(batches, count):
    """Opens so many iterators of `batches`, takes one batch of each, and two seconds later drops them."""
    iterators = [iter(batches) for _ in range(count)]
    for iterator in iterators:
        next(iterator)
    del iterator
    time.sleep(2)
    start = time.perf_counter()
    while iterators:
        iterators.pop()
    return time.perf_counter() - start
