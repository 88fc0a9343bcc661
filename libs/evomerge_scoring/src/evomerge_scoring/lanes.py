"""Batches side by side, each by one thread: threads that share an operation meet after each one, lanes never meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def in_lanes(work: Callable[[Batch], Result], batches: Sequence[Batch], lanes: int) -> Iterator[Result]:
    """Gives the result of each batch, in order; `lanes` batches are computed at once, each by one thread.

    One lane is the caller itself, with all of torch's threads. What a batch comes to does not depend on the others, so
    the number of lanes shows in no result.
    """
    if lanes < 2:
        yield from map(work, batches)
        return
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(lanes, "lane", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, batches)
    finally:
        torch.set_num_threads(threads)  # a thread that starts later begins with what any thread set last
