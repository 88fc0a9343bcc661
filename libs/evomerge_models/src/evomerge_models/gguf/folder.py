"""A GGUF file's model as a Hugging Face folder: config.json, model.safetensors, tokenizer."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from evomerge_common.errors import DiskFull, InvalidInput, ModelError, NonFiniteWeights, UnsafeFile
from evomerge_common.runtime.files import new_folder
from evomerge_models.dtypes import BF16, F16, F32, F64, ElementType
from evomerge_models.gguf import configs_in, hyperparameters
from evomerge_models.gguf.architectures import EXPERTS, Architecture
from evomerge_models.gguf.file import GgufFile, GgufTensor
from evomerge_models.gguf.lookup import of_gguf
from evomerge_models.gguf.vocabulary_in import write_tokenizer
from evomerge_models.headers import header_bytes

CONVERTER = "gguf-2"
"""Changes when the same file becomes another folder: what was converted before is converted again."""
CHUNK_ELEMENTS = 1 << 21
"""Elements dequantised at once: temporaries of a few of these stay small and near the cache."""
_STORED = {
    GGMLQuantizationType.F32: F32,
    GGMLQuantizationType.F16: F16,
    GGMLQuantizationType.BF16: BF16,
    GGMLQuantizationType.F64: F64,
}
_ROPE_TENSORS = (hyperparameters.ROPE_FREQS, hyperparameters.ROPE_LONG, hyperparameters.ROPE_SHORT)

Progress = Callable[[int, int], None]
"""Called with (elements done, elements in all)."""


@dataclass(frozen=True)
class Weights:
    """One tensor of the folder.

    Attributes:
        name: Hugging Face's.
        shape, dtype: in the folder.
        pieces: where it comes from: GGUF tensors, of each the rows from one to another, one after the other.

    """

    name: str
    shape: tuple[int, ...]
    dtype: ElementType
    pieces: tuple[tuple[GgufTensor, int, int], ...]

    @property
    def source(self) -> GgufTensor:
        """The first GGUF tensor."""
        return self.pieces[0][0]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in the folder."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class GgufModel:
    """A file's model, described by its header alone."""

    architecture: Architecture
    config: dict[str, Any]
    weights: tuple[Weights, ...]


def read_model(file: GgufFile) -> GgufModel:
    """Which tensors and config a file's folder will have.

    Raises:
        ModelError: an architecture that is not read, a tensor that it should not have, or a bias that would be lost.
        UnsafeFile: shapes and hyperparameters do not agree.

    """
    where = str(file.path)
    architecture = of_gguf(file.metadata, where)
    weights: list[Weights] = []
    halves: dict[str, dict[int, GgufTensor]] = {}
    for source in file.tensors.values():
        if source.name in _ROPE_TENSORS:
            continue
        place = architecture.to_hf(source.name)
        if place is None:
            raise ModelError(
                f"{where}: {architecture.name} models have no tensor {source.name!r}; is it a model's file?"
            )
        if place.half < 0:
            weights += _unstacked(where, architecture, place.name, source)
        else:
            halves.setdefault(place.name, {})[place.half] = source
    weights += [_joined(where, name, found) for name, found in halves.items()]
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UnsafeFile(f"{where} has no token embedding (token_embd.weight): it is no model, or only a part of one")
    config = _config(file, architecture, weights, embedding)
    for name in file.tensors:
        if architecture.loses(name, config):
            raise ModelError(
                f"{where}: transformers' {architecture.hf_class} of its config has no place for the bias {name!r}; its "
                "folder would be another model: give the model's own folder"
            )
    _check_shapes(where, architecture, config, weights)
    return GgufModel(architecture, config, tuple(weights))


def _element(where: str, source: GgufTensor) -> ElementType:
    dtype = F32 if source.is_quantised else _STORED.get(source.type)
    if dtype is None:
        raise ModelError(f"{where}: tensor {source.name!r} holds integers ({source.type.name})")
    return dtype


def _unstacked(where: str, architecture: Architecture, name: str, source: GgufTensor) -> list[Weights]:
    """A tensor, or one for each expert that is in it."""
    dtype = _element(where, source)
    rows = source.numel // source.shape[-1]
    if EXPERTS not in name:
        shape = tuple(reversed(source.shape)) if architecture.is_transposed(source.name) else source.shape
        return [Weights(name, shape, dtype, ((source, 0, rows),))]
    if len(source.shape) != 3:
        raise UnsafeFile(f"{where}: {source.name} has the shape {source.shape}, which is not that of stacked experts")
    count, each = source.shape[0], source.shape[1]
    return [
        Weights(
            name.replace(EXPERTS, str(expert)), source.shape[1:], dtype, ((source, expert * each, (expert + 1) * each),)
        )
        for expert in range(count)
    ]


def _joined(where: str, name: str, halves: dict[int, GgufTensor]) -> Weights:
    """A tensor whose rows are those of two, for each expert."""
    if len(halves) != 2 or halves[0].shape != halves[1].shape or halves[0].type != halves[1].type:
        raise UnsafeFile(f"{where}: {name} has two halves in GGUF, and {halves[min(halves)].name} has no equal one")
    *outer, each, width = halves[0].shape
    pieces = tuple(
        (halves[half], number * each, (number + 1) * each) for number in range(math.prod(outer)) for half in (0, 1)
    )
    return Weights(name, (*outer, 2 * each, width), _element(where, halves[0]), pieces)


def _config(
    file: GgufFile, architecture: Architecture, weights: list[Weights], embedding: GgufTensor
) -> dict[str, Any]:
    counts: dict[ElementType, int] = {}
    for one in weights:
        counts[one.dtype] = counts.get(one.dtype, 0) + one.numel
    where = str(file.path)
    config = configs_in.config_of(
        file.metadata,
        architecture,
        where,
        vocabulary=embedding.shape[0],
        tensors=file.tensors,
        dtype=max(counts, key=lambda dtype: counts[dtype]).word,
    )
    rotary = {
        name: file.values(name) for name in _ROPE_TENSORS if name in file.tensors and file.tensors[name].numel < 65_536
    }
    return configs_in.with_rope_tensors(config, rotary, where)


def _check_shapes(where: str, architecture: Architecture, config: dict[str, Any], weights: list[Weights]) -> None:
    """Reordering rows needs the heads to fit; the rest is for whoever loads the model to check."""
    depth = config.get("num_hidden_layers", config.get("n_layer", 0))
    width = config.get("hidden_size", config.get("n_embd"))
    found = set()
    for one in weights:
        parts = one.source.name.split(".")
        if parts[0] == "blk":
            if int(parts[1]) >= depth:
                raise UnsafeFile(f"{where}: {one.source.name} is beyond the model's {depth} layers")
            found.add(int(parts[1]))
        _row_order(where, architecture, config, one)
    if len(found) != depth:
        raise UnsafeFile(
            f"{where} has {len(found)} of its {depth} layers; fetch it again (split files: join them first)"
        )
    embedding = next(one for one in weights if one.source.name == "token_embd.weight")
    if embedding.shape[1] != width:
        raise UnsafeFile(f"{where}: its embedding is {embedding.shape[1]} wide, its metadata says {width}")


def _row_order(
    where: str, architecture: Architecture, config: dict[str, Any], one: Weights
) -> np.ndarray[Any, Any] | None:
    heads = config.get("num_attention_heads", 1)
    kv_heads, rows = config.get("num_key_value_heads", heads), one.source.shape[0]
    try:
        return architecture.row_order(one.source.name, rows, heads, kv_heads)
    except ValueError:
        raise UnsafeFile(
            f"{where}: {one.source.name} has {rows} rows, which {heads} heads ({kv_heads} of keys) do not share"
        ) from None


def write_model_folder(path: Path, out: Path, *, threads: int = 2, progress: Progress | None = None) -> None:
    """Writes the model of a GGUF file into `out`, a new or empty folder; nothing is left there when it fails.

    Quantised tensors become float32, which holds their values exactly; the others keep their type and bits.

    Raises:
        InvalidInput: `out` is not empty.
        UnsafeFile, ModelError: the file lies, or is of a kind that is not read.
        DiskFull: too little room, told before anything is written.
        NonFiniteWeights: NaN or infinity in the file.

    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"{out} exists and is not empty; give another folder, or remove it first")
    with GgufFile(path) as file:
        model = read_model(file)
        out.parent.mkdir(parents=True, exist_ok=True)
        needed, free = sum(one.bytes for one in model.weights), shutil.disk_usage(out.parent).free
        if needed > free:
            raise DiskFull(f"{path} needs {needed:,} bytes as a folder, and {out.parent} has {free:,} left: free some")
        with new_folder(out) as staged:
            write_tokenizer(file.metadata, model.architecture.name, staged, str(path))
            text = json.dumps(model.config, indent=2, ensure_ascii=False) + "\n"
            (staged / "config.json").write_text(text, "utf-8")
            _write_weights(file, model, staged / "model.safetensors", threads, progress)


def _write_weights(file: GgufFile, model: GgufModel, path: Path, threads: int, progress: Progress | None) -> None:
    """A safetensors file written in place, by several threads."""
    names = [one.name for one in model.weights]
    if len({*names}) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UnsafeFile(f"{file.path}: two tensors become {twice!r}")
    header, starts = header_bytes([(one.name, one.shape, one.dtype) for one in model.weights], {"format": "pt"})
    total, done = sum(one.numel for one in model.weights), 0
    with _disk_errors(path), path.open("xb") as out:
        out.write(header)
        out.flush()
        os.truncate(path, len(header) + sum(one.bytes for one in model.weights))

        def work(one: Weights) -> int:
            offset = starts[one.name]
            for values in _converted(file, model, one):
                os.pwrite(out.fileno(), values.data.cast("B"), offset)
                offset += values.nbytes
            return one.numel

        with ThreadPoolExecutor(max(1, threads), "dequantise") as pool:
            try:
                for count in pool.map(work, model.weights):
                    done += count
                    if progress is not None:
                        progress(done, total)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        os.fsync(out.fileno())


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskFull(f"{path} cannot be written ({error.strerror}): free some space") from error


def _converted(file: GgufFile, model: GgufModel, one: Weights) -> Iterator[np.ndarray[Any, Any]]:
    """A tensor in pieces of whole rows, as the folder has it; in one piece where rows change places."""
    architecture = model.architecture
    order = _row_order(str(file.path), architecture, model.config, one)
    whole = order is not None or architecture.is_transposed(one.source.name)
    for source, first, last in one.pieces:
        step = last - first if whole else max(1, CHUNK_ELEMENTS // source.shape[-1])
        shift = architecture.shift_of(source.name)
        for start in range(first, last, step):
            with np.errstate(all="ignore"):  # what is not finite is told by its tensor's name
                values = file.values(source.name, start, min(last, start + step))
                _check_finite(file, source, values)
            if order is not None:
                values = values.reshape(source.shape)[np.argsort(order)]
            if architecture.is_transposed(source.name):
                values = values.reshape(source.shape).T
            if shift:
                if source.type == GGMLQuantizationType.BF16:
                    raise ModelError(
                        f"{file.path}: {source.name} is stored as BF16, which norms of this kind never are"
                    )
                values = (values.astype(np.float32) - np.float32(shift)).astype(values.dtype)
            yield np.ascontiguousarray(values)


def _check_finite(file: GgufFile, source: GgufTensor, values: np.ndarray[Any, Any]) -> None:
    if source.type == GGMLQuantizationType.BF16:
        sound = not bool(((values & 0x7F80) == 0x7F80).any())
    else:
        sound = bool(np.isfinite(values.sum(dtype=np.float64))) or bool(np.isfinite(values).all())
    if not sound:
        raise NonFiniteWeights(f"{file.path}: tensor {source.name!r} holds NaN or infinity; fetch the file again")
