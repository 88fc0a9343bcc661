"""Carries a plan out: tensor by tensor, piece by piece, on several threads, each piece written where it belongs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evomerge_common.errors import DiskFull, InvalidInput, NonFiniteWeights
from evomerge_common.runtime.files import new_folder
from evomerge_merging.engine.expression import Evaluation
from evomerge_merging.engine.nodes import Load, needs_statistics, whole_bytes
from evomerge_merging.engine.plan import WHOLE_TENSOR_BYTES, OutputTensor, Plan
from evomerge_merging.io.dtypes import torch_dtype
from evomerge_merging.io.writer import SafetensorsWriter, shard, write_text
from evomerge_models.files import INDEX, SINGLE
from evomerge_models.headers import TensorSpec

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch

PIECE_ELEMENTS = 1 << 18
"""Elements worked on at once by one thread: a float32 piece of 1 MiB, so that a method's few pieces stay in cache."""
TASK_ELEMENTS = 1 << 22
"""Elements of one tensor given to a thread at once, where nothing has to be known of the whole tensor."""
MAX_SHARD_BYTES = 5_000_000_000

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), one call at a time, from any thread."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did."""

    out_dir: Path
    files: tuple[str, ...]
    tensors: int
    parameters: int
    bytes: int
    seconds: float
    notes: tuple[str, ...]


def execute(
    plan: Plan,
    out_dir: Path,
    *,
    threads: int = 2,
    progress: Progress | None = None,
    piece_elements: int = PIECE_ELEMENTS,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    staged: bool = False,
    extras: Callable[[Path], None] | None = None,
) -> MergeReport:
    """Writes the merged model: config.json, model.safetensors (in shards beyond `max_shard_bytes`), tokenizer files.

    The result does not depend on `threads` or `piece_elements`, bit for bit. All is written beside `out_dir` under a
    temporary name and renamed at the end; with `staged`, `out_dir` is the caller's own temporary folder and is
    written directly. `extras` puts further files into the folder before that.

    Raises:
        InvalidInput: `out_dir` exists and is not empty.
        DiskFull: too little room, told before anything is written.
        NonFiniteWeights: NaN or infinity in a source, or a result too large for its type.

    """
    begun = time.monotonic()
    out_dir = Path(out_dir)
    with workplace(out_dir, staged=staged) as folder:
        free = shutil.disk_usage(folder).free
        if plan.disk_bytes > free:
            raise DiskFull(
                f"the model needs {plan.disk_bytes:,} bytes, and {out_dir.parent} has {free:,} left: free some"
            )
        files = _write_weights(plan, folder, threads, progress, piece_elements, max_shard_bytes)
        plan.tokenizer.write(folder)
        plan.companions.write(folder)
        write_text(folder / "config.json", json.dumps(dict(plan.config), indent=2, ensure_ascii=False) + "\n")
        if extras is not None:
            extras(folder)
    size = sum((out_dir / name).stat().st_size for name in files)
    return MergeReport(
        out_dir, tuple(files), len(plan.tensors), plan.parameters, size, time.monotonic() - begun, plan.notes
    )


def merge_in_memory(
    plan: Plan,
    *,
    threads: int = 2,
    progress: Progress | None = None,
    piece_elements: int = PIECE_ELEMENTS,
    without: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """The merged tensors by name (but those of `without`), in memory and bit for bit what `execute` writes."""
    if without:
        plan = replace(plan, tensors=tuple(tensor for tensor in plan.tensors if tensor.name not in without))
    tensors = {tensor.name: torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype)) for tensor in plan.tensors}
    merge_into(plan, tensors, threads=threads, progress=progress, piece_elements=piece_elements)
    return tensors


def merge_into(
    plan: Plan,
    targets: Mapping[str, torch.Tensor],
    *,
    threads: int = 2,
    progress: Progress | None = None,
    piece_elements: int = PIECE_ELEMENTS,
) -> None:
    """Puts merged tensors into memory that is there already: what `execute` writes, in the targets' own types.

    Args:
        plan: what to make.
        targets: contiguous tensors on the CPU, of the plan's names and shapes; other tensors are not made.
        threads, progress, piece_elements: of the merge, as in `execute`.

    """
    flat = {name: tensor.detach().view(-1) for name, tensor in targets.items()}

    chosen = tuple(tensor for tensor in plan.tensors if tensor.name in flat)
    types = {tensor.name: torch_dtype(tensor.dtype) for tensor in chosen}

    def write(name: str, start: int, data: Bytes) -> None:
        values = torch.from_numpy(data).view(types[name])
        flat[name][start : start + values.numel()].copy_(values)

    _run(replace(plan, tensors=chosen), write, threads, progress, piece_elements)


@contextlib.contextmanager
def workplace(out_dir: Path, *, staged: bool) -> Iterator[Path]:
    """A folder to write in that becomes `out_dir` when all went well, and is gone when not."""
    if staged:
        yield out_dir
        return
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise InvalidInput(f"{out_dir} exists and is not empty; give another folder, or remove it first")
    with new_folder(out_dir) as folder:
        yield folder


def _write_weights(
    plan: Plan, folder: Path, threads: int, progress: Progress | None, piece_elements: int, max_shard_bytes: int
) -> list[str]:
    specs: list[TensorSpec] = [(tensor.name, tensor.shape, tensor.dtype) for tensor in plan.tensors]
    shards = shard(specs, max_shard_bytes)
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    writers: list[SafetensorsWriter] = []
    where: dict[str, SafetensorsWriter] = {}
    try:
        for name, part in zip(files, shards, strict=True):
            writers.append(SafetensorsWriter(folder / name, part, {"format": "pt"}))
            where.update({spec[0]: writers[-1] for spec in part})
        _run(
            plan,
            lambda name, start, data: where[name].write_raw(name, start, data),
            threads,
            progress,
            piece_elements,
        )
        for writer in writers:
            writer.close()
    finally:
        for writer in writers:
            writer.abort()
    if count > 1:
        index = {"metadata": {"total_size": plan.bytes}, "weight_map": {n: where[n].path.name for n in sorted(where)}}
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
    return files


Bytes = NDArray[np.uint8]
Write = Callable[[str, int, Bytes], None]


class _Meter:
    """Counts what is done, and stops all threads when one fails."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.stop = threading.Event()
        self._total, self._progress, self._done, self._lock = total, progress, 0, threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress:
                self._progress(self._done, self._total)


class _Room:
    """Memory for whole tensors, shared by all threads: who finds too little waits until another lets go."""

    def __init__(self, size: int) -> None:
        self._size, self._used, self._change = size, 0, threading.Condition()

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Holds `size` bytes for the block; more than there is at all is given to one thread alone."""
        size = min(size, self._size)
        with self._change:
            self._change.wait_for(lambda: self._used + size <= self._size)
            self._used += size
        try:
            yield
        finally:
            with self._change:
                self._used -= size
                self._change.notify_all()


def _run(plan: Plan, write: Write, threads: int, progress: Progress | None, piece_elements: int) -> None:
    """Evaluates every tensor. Each thread runs torch on one core, so that sums do not depend on their number."""
    sources = {key: source.store for key, source in plan.sources.items()}
    meter = _Meter(plan.bytes, progress)
    room = _Room(WHOLE_TENSOR_BYTES)
    before = 0
    tasks: list[tuple[int, Callable[[], None]]] = []

    def task(evaluation: Evaluation, tensor: OutputTensor, ranges: Sequence[tuple[int, int]], *, prepare: bool) -> None:
        one_core = _torch_on_one_core() if evaluation.needs_torch(tensor.dtype) else contextlib.nullcontext()
        with one_core, room.take(whole_bytes(tensor.node)):
            if prepare and not meter.stop.is_set():
                evaluation.prepare()
            for start, stop in ranges:
                if meter.stop.is_set():
                    return
                write(tensor.name, start, _rounded(evaluation, tensor, start, stop))
                meter.add((stop - start) * tensor.dtype.itemsize)
            if prepare:
                evaluation.release()

    for tensor in plan.tensors:
        evaluation = Evaluation(tensor.node, sources, piece_elements=piece_elements)
        if not before and evaluation.needs_torch(tensor.dtype):
            before = torch.get_num_threads()
        ranges = list(evaluation.pieces())
        whole = needs_statistics(tensor.node)
        a_task = len(ranges) if whole else max(1, TASK_ELEMENTS // piece_elements)
        for part in _batched(ranges, a_task):
            tasks.append((tensor.numel, functools.partial(task, evaluation, tensor, part, prepare=whole)))
    tasks.sort(key=lambda item: -item[0])
    try:
        with (
            _freed_memory_kept(),
            ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="merge") as pool,
        ):
            futures: list[Future[None]] = [pool.submit(run) for _, run in tasks]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                meter.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
        for future in done:
            future.result()
    finally:
        if before:
            torch.set_num_threads(before)


@contextlib.contextmanager
def _freed_memory_kept() -> Iterator[None]:
    """Lets glibc keep freed pieces for the next ones: given back each time, their page faults cost half of a merge."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    trim_threshold, mmap_threshold = -1, -3
    library.mallopt(mmap_threshold, 32 << 20)
    library.mallopt(trim_threshold, 256 << 20)
    try:
        yield
    finally:
        library.mallopt(mmap_threshold, 128 << 10)
        library.mallopt(trim_threshold, 128 << 10)
        library.malloc_trim(0)


def _batched(items: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextlib.contextmanager
def _torch_on_one_core() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def _rounded(evaluation: Evaluation, tensor: OutputTensor, start: int, stop: int) -> Bytes:
    """The bytes of a piece in the output's type."""
    node = tensor.node
    if isinstance(node, Load) and not node.dtype.is_floating_point:
        return evaluation.raw(node, start, stop)
    done = evaluation.kernel_piece(start, stop, tensor.dtype)
    if done is not None:
        return done
    values = evaluation.piece(start, stop)
    result = values.to(torch_dtype(tensor.dtype))
    if not _finite(result):
        cause = f"values up to {values.abs().max().item():g} do not fit into {tensor.dtype}" if _finite(values) else (
            "the result is not finite")  # fmt: skip
        raise NonFiniteWeights(
            f"merged tensor {tensor.name!r}: {cause}; check weights and scales, or use a wider out_dtype"
        )
    data: Bytes = result.contiguous().view(torch.uint8).numpy()
    return data


def _finite(values: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    if values.dtype.itemsize == 1:
        values = values.float()
    return bool(torch.isfinite(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())
