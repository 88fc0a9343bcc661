"""The native kernels over the sources of one tensor: what they are given is read from the files piece by piece."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evomerge_merging.engine.nodes import Load
from evomerge_merging.io.model_folder import TensorStore, place_in_file, raw_elements
from evomerge_merging.methods.forms import Form, TaskVectorSum, WeightedSum
from evomerge_merging.native import library
from evomerge_merging.native.structures import (
    BFLOAT16,
    CUT_SHORT,
    ERROR_SHIFT,
    FLOAT16,
    FLOAT32,
    KEEP_BAND,
    KEEP_BITS,
    KEEP_CUT,
    KEEP_DRAWN,
    KEEP_EVERYTHING,
    MOST_INPUTS,
    NO_MEMORY,
    Elements,
)
from evomerge_merging.native.structures import Keep as KeepStructure
from evomerge_merging.numerics.folds import CELL
from evomerge_merging.numerics.random_words import MaskKey, key_parts, word_limit
from evomerge_merging.numerics.selection import Band, Bits, Cut, Drawn, Keep
from evomerge_models.dtypes import BF16, F16, F32, ElementType

Array = np.ndarray[Any, Any]
_LONG_PIECE = 256 * CELL
_TYPES = {BF16: BFLOAT16, F16: FLOAT16, F32: FLOAT32}


class NotFinite(Exception):
    """A kernel met NaN or infinity."""


def readable(loads: Sequence[Load]) -> bool:
    """Whether the kernels can work on these sources: 16 or 32-bit floats that no recipe rounds first."""
    return (
        library() is not None
        and 0 < len(loads) <= MOST_INPUTS
        and all(load.dtype in (BF16, F16, F32) and load.cast in (None, F32, load.dtype) for load in loads)
    )


class Reader:
    """The inputs and the base of one tensor; each call reads its piece from the files. For any number of threads."""

    def __init__(self, inputs: Sequence[Load], base: Load | None, sources: Mapping[str, TensorStore]) -> None:
        self._inputs, self._base, self._sources = list(inputs), base, sources
        kernels = library()
        assert kernels is not None
        self._kernels: Any = kernels

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return len(self._inputs)

    @staticmethod
    def long_pieces(size: int) -> Iterator[tuple[int, int]]:
        """Ranges for what returns sums alone: long ones, since nothing but a cell has to stay in the cache."""
        for start in range(0, size, _LONG_PIECE):
            yield start, min(start + _LONG_PIECE, size)

    # ---- statistics ----

    def magnitudes(self, start: int, stop: int) -> list[Array]:
        """|input - base| of each input, float32."""
        inputs, base, _held = self._piece(start, stop)
        result = []
        for given in inputs:
            out = np.empty(stop - start, np.float32)
            status = self._kernels.evomerge_magnitudes(ctypes.byref(given), base, stop - start, out.ctypes.data)
            self._check(status, start, stop)
            result.append(out)
        return result

    def scan(
        self, start: int, stop: int, input_of: Sequence[int], low: Sequence[float], high: Sequence[float]
    ) -> tuple[Array, list[Array]]:
        """For each cut, of its input's magnitudes: how many lie above `high`, and those from `low` to `high`."""
        inputs, base, _held = self._piece(start, stop)
        count, cuts = stop - start, len(input_of)
        above, number = np.zeros(cuts, np.int64), np.zeros(cuts, np.int64)
        inside = [np.empty(count, np.float32) for _ in range(cuts)]
        places = (ctypes.c_void_p * cuts)(*[found.ctypes.data for found in inside])
        which = np.asarray(input_of, np.int64)
        bounds = np.asarray(low, np.float32), np.asarray(high, np.float32)
        status = self._kernels.evomerge_scan(
            inputs, base, len(inputs), cuts, which.ctypes.data, bounds[0].ctypes.data, bounds[1].ctypes.data,
            count, above.ctypes.data, places, number.ctypes.data,
        )  # fmt: skip
        self._check(status, start, stop)
        return above, [found[:many] for found, many in zip(inside, number.tolist(), strict=True)]

    def thinned_sums(self, start: int, stop: int, keeps: Sequence[Keep | None]) -> Array:
        """Sums of magnitudes, all and kept: cells × inputs × 2, float64. Starts at a multiple of CELL."""
        inputs, base, _held = self._piece(start, stop)
        sums = np.empty((-(-(stop - start) // CELL), len(inputs), 2))
        what, _bits = _keeps(keeps, start)
        status = self._kernels.evomerge_thinned_sums(
            inputs, base, len(inputs), what, start, stop - start, sums.ctypes.data
        )  # fmt: skip
        self._check(status, start, stop)
        return sums

    def rank_flags(
        self, start: int, stop: int, row: int, wanted: Sequence[tuple[int, MaskKey, int, int]]
    ) -> list[tuple[Array, float, float]]:
        """DELLA's choice for whole rows, a byte an element, and the sums of magnitudes, all and kept.

        `wanted`: input, key of its words, and their limits for the smallest and the largest of a row.
        """
        held: list[Array] = []
        inputs = [_in_memory(self._sources, load, start, stop, held) for load in self._inputs]
        base = self._base and _in_memory(self._sources, self._base, start, stop, held)
        scratch = np.empty(2 * row, np.float32)
        result = []
        for i, key, low, high in wanted:
            flags, sums = np.empty(stop - start, np.uint8), np.empty(2)
            status = self._kernels.evomerge_rank_flags(
                ctypes.byref(inputs[i]), base, (stop - start) // row, row, (ctypes.c_uint32 * 4)(*key_parts(key)),
                start, low, high, scratch.ctypes.data, flags.ctypes.data, sums.ctypes.data,
            )  # fmt: skip
            self._check(status, start, stop)
            result.append((flags, float(sums[0]), float(sums[1])))
        return result

    def inner_products(self, start: int, stop: int) -> Array:
        """Sums of bb, ii and bi for base b and input i: cells × 3, float64. Starts at a multiple of CELL."""
        inputs, base, _held = self._piece(start, stop)
        sums = np.empty((-(-(stop - start) // CELL), 3))
        self._check(self._kernels.evomerge_inner_products(base, inputs, stop - start, sums.ctypes.data), start, stop)
        return sums

    # ---- results ----

    def piece(self, form: Form, start: int, stop: int, dtype: ElementType) -> Array:
        """Makes a piece of the result, in bytes of that type.

        Raises:
            NotFinite: a source has NaN or infinity, or the result is too large for the type.

        """
        if isinstance(form, WeightedSum):
            return self._weighted_sum(form, start, stop, dtype)
        return self._task_vector_sum(form, start, stop, dtype)

    def _weighted_sum(self, form: WeightedSum, start: int, stop: int, dtype: ElementType) -> Array:
        inputs, base, _held = self._piece(start, stop)
        everyone = [*([base] if base is not None else []), *inputs]
        given = (Elements * len(everyone))(*everyone)
        factors = np.asarray(form.weights, np.float32)
        out, place = _output(stop - start, dtype)
        status = self._kernels.evomerge_weighted_sum(
            given, len(everyone), factors.ctypes.data, stop - start, ctypes.byref(place)
        )  # fmt: skip
        self._check(status, start, stop)
        return _bytes(out, dtype)

    def _task_vector_sum(self, form: TaskVectorSum, start: int, stop: int, dtype: ElementType) -> Array:
        inputs, base, _held = self._piece(start, stop)
        what, _bits = _keeps(form.keeps, start)
        numbers = np.asarray(form.factors, np.float32), np.asarray(form.weight, np.float32)
        out, place = _output(stop - start, dtype)
        status = self._kernels.evomerge_task_vectors(
            inputs, base, len(inputs), what, numbers[0].ctypes.data, numbers[1].ctypes.data, form.scale, form.divide,
            form.elect, form.normalize, start, stop - start, ctypes.byref(place),
        )  # fmt: skip
        self._check(status, start, stop)
        return _bytes(out, dtype)

    def _piece(self, start: int, stop: int) -> tuple[Any, Any, list[Array]]:
        """Inputs and base as the kernels read them, and the arrays that they point into, to be held meanwhile."""
        held: list[Array] = []
        inputs = (Elements * len(self._inputs))(*[self._elements(load, start, stop, held) for load in self._inputs])
        return inputs, self._base and self._elements(self._base, start, stop, held), held

    def _elements(self, load: Load, start: int, stop: int, held: list[Array]) -> Elements:
        place = place_in_file(self._sources[load.source], load.name)
        if place is not None:
            return Elements(None, _TYPES[load.dtype], place[0], place[1] + start * load.dtype.itemsize)
        return _in_memory(self._sources, load, start, stop, held)

    def _check(self, status: int, start: int, stop: int) -> None:
        """Tells what went wrong."""
        if status >= CUT_SHORT:
            if status & NO_MEMORY:
                raise MemoryError
            for load in [*self._inputs, *([self._base] if self._base else [])]:
                raw_elements(self._sources[load.source], load.name, start, stop)
            raise OSError(status >> ERROR_SHIFT, "a source could not be read")
        if status:
            raise NotFinite


def _in_memory(sources: Mapping[str, TensorStore], load: Load, start: int, stop: int, held: list[Array]) -> Elements:
    data, dtype = raw_elements(sources[load.source], load.name, start, stop)
    held.append(data)
    return Elements(data.ctypes.data, _TYPES[dtype])


def _output(count: int, dtype: ElementType) -> tuple[Array, Elements]:
    out: Array = np.empty(count, np.uint16 if dtype == BF16 else np.float32)
    return out, Elements(out.ctypes.data, BFLOAT16 if dtype == BF16 else FLOAT32)


def _bytes(out: Array, dtype: ElementType) -> Array:
    if dtype == F16:
        with np.errstate(over="ignore"):
            out = out.astype(np.float16)
        if not np.isfinite(out).all():
            raise NotFinite
    return out.view(np.uint8)


def _keeps(keeps: Sequence[Keep | None], start: int) -> tuple[Any, list[Any]]:
    """What is kept, from element `start` on, and what it points into."""
    result = (KeepStructure * len(keeps))()
    for place, given in zip(result, keeps, strict=True):
        place.kind = KEEP_EVERYTHING
        if isinstance(given, Cut):
            place.kind, place.outer, place.outer_last = KEEP_CUT, given.threshold, given.last
        elif isinstance(given, Bits):
            place.kind, place.bits = KEEP_BITS, given.packed.ctypes.data + start // 8
        elif isinstance(given, Drawn):
            place.kind, place.key, place.limit = KEEP_DRAWN, key_parts(given.key), word_limit(given.density, 16)
        elif isinstance(given, Band):
            place.kind, place.outer, place.outer_last = KEEP_BAND, given.outer.threshold, given.outer.last
            place.inner, place.inner_last = given.inner.threshold, given.inner.last
    return result, list(keeps)
