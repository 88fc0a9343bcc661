"""A model folder as one GGUF file, the format of llama.cpp.

Tensor names, row order and hyperparameters follow `evomerge_models.gguf`; blocks are quantised by the gguf package, and
K-quants by llama.cpp's own `llama-quantize`.
"""

from __future__ import annotations

import errno
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType as FileKind
from gguf.quants import quantize

from evomerge_common.domain.gguf_types import K_TYPES
from evomerge_common.errors import DiskFull, InvalidInput, ModelError, NonFiniteWeights, WorkFailed
from evomerge_common.runtime.files import replacing
from evomerge_merging.engine.architecture import is_tied
from evomerge_merging.engine.stored import config_as_stored
from evomerge_merging.io.model_folder import TensorStore, open_weights
from evomerge_models.files import check_whole, read_json_object
from evomerge_models.gguf import configs_out
from evomerge_models.gguf.architectures import MODEL_TYPE_KEY, Architecture, of_config
from evomerge_models.gguf.quantizer import check_type, find_quantizer
from evomerge_models.gguf.vocabulary_out import tokenizer_metadata
from evomerge_models.quantised import check_plain

Array = np.ndarray[Any, Any]

PLAIN_TYPES = {
    "f32": (Kind.F32, FileKind.ALL_F32),
    "f16": (Kind.F16, FileKind.MOSTLY_F16),
    "bf16": (Kind.BF16, FileKind.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, FileKind.MOSTLY_Q8_0),
    "q5_0": (Kind.Q5_0, FileKind.MOSTLY_Q5_0),
    "q5_1": (Kind.Q5_1, FileKind.MOSTLY_Q5_1),
    "q4_0": (Kind.Q4_0, FileKind.MOSTLY_Q4_0),
    "q4_1": (Kind.Q4_1, FileKind.MOSTLY_Q4_1),
}
_WHOLE = {Kind.F32, Kind.F16, Kind.BF16}
_ALWAYS_F32 = ("position_embd.weight", "token_types.weight")
_BLOCK, _K_BLOCK = 32, 256
_CHUNK_ELEMENTS = 1 << 21

Progress = Callable[[int, int], None]
"""Called with (elements done, elements in all)."""


@dataclass(frozen=True)
class GgufReport:
    """What was written."""

    path: Path
    type: str
    tensors: int
    parameters: int
    bytes: int
    seconds: float
    notes: tuple[str, ...]


def export_gguf(
    folder: Path, out: Path, kind: str = "auto", *, name: str = "", threads: int = 2, progress: Progress | None = None
) -> GgufReport:
    """Writes a folder's model as GGUF.

    Norms, biases and positions stay float32. With q4 and q5 the head (or the embedding that it is tied to) is q8_0: its
    error would reach every token. Rows that are no multiple of 32 stay f16; K-quants need 256.

    Args:
        folder: config.json, weights, tokenizer.json.
        out: the file; it appears when all of it is written.
        kind: one of `domain.gguf_types.TYPES`.
        name: `general.name`; the folder's own when empty.
        threads: that quantise.
        progress: see `Progress`.

    Raises:
        InvalidInput: no such type; `out` exists.
        ModelError: an architecture, setting, tensor or tokenizer that llama.cpp does not have.
        NonFiniteWeights: NaN or infinity, also by values too large for f16.
        DiskFull, WorkFailed: no room left; llama-quantize failed.

    """
    begun = time.monotonic()
    kind = check_type(kind)
    if out.exists():
        raise InvalidInput(f"{out} exists; give another name, or remove it first")
    check_whole(folder)
    config = read_json_object(folder / "config.json")
    architecture = of_config(config, str(folder))
    store = open_weights(folder)
    try:
        model = _Model(folder, config, architecture, store)
        plain = kind if kind in PLAIN_TYPES else _own_type(store, lossless=kind in K_TYPES)
        with replacing(out) as partial:
            first = partial if kind not in K_TYPES else partial.with_suffix(".whole")
            try:
                notes = _write(model, first, plain, name or folder.name, threads, progress)
                if kind in K_TYPES:
                    _k_quantize(first, partial, kind, threads)
                    notes += _larger(model, kind)
            finally:
                if first != partial:
                    first.unlink(missing_ok=True)
    finally:
        store.close()
    return GgufReport(
        out,
        kind if kind in PLAIN_TYPES or kind in K_TYPES else plain,
        len(model.names),
        sum(store.tensors[theirs].numel for theirs in model.names.values()),
        out.stat().st_size,
        time.monotonic() - begun,
        tuple(notes),
    )


class _Model:
    """A folder's tensors by their GGUF names, in llama.cpp's order of layers."""

    def __init__(self, folder: Path, config: Mapping[str, Any], architecture: Architecture, store: TensorStore) -> None:
        config, _ = config_as_stored(config, store, str(folder))
        self.folder, self.config, self.architecture, self.store = folder, config, architecture, store
        check_plain(config, {name: info.dtype.name for name, info in store.tensors.items()}, str(folder))
        self.names: dict[str, str] = {}
        self.left_out: list[str] = []
        tied = is_tied(config, store.tensors)
        for theirs in store.tensors:
            ours = architecture.to_gguf(theirs.removeprefix("bert.") if architecture.model_type == "bert" else theirs)
            if ours is None:
                if not architecture.is_ignored(theirs):
                    raise ModelError(f"{folder}: llama.cpp's {architecture.name} models have no tensor {theirs!r}")
                self.left_out.append(theirs)
            elif ours != "output.weight" or not tied:
                self.names[ours] = theirs
        if "token_embd.weight" not in self.names:
            raise ModelError(f"{folder} has no token embedding, so it cannot become GGUF")
        if architecture.head and not tied and "output.weight" not in self.names:
            raise ModelError(f"{folder} has no head ({architecture.head}.weight), and its config says it needs one")
        if architecture.model_type == "gemma2" and "output.weight" in self.names:
            raise ModelError(f"{folder} has a head of its own, which llama.cpp's gemma2 does not: export a folder")
        self.names = dict(sorted(self.names.items(), key=lambda item: _order(item[0])))
        self.heads = int(config.get("num_attention_heads") or 1)
        self.kv_heads = int(config.get("num_key_value_heads") or self.heads)

    def shape(self, ours: str) -> tuple[int, ...]:
        """As GGUF has it, rows first."""
        shape = self.store.tensors[self.names[ours]].shape
        return tuple(reversed(shape)) if self.architecture.is_transposed(ours) else shape

    def tensor(self, ours: str) -> torch.Tensor:
        """The tensor as GGUF orders it, in its own type (float32 where something is added)."""
        tensor = self.store.tensor(self.names[ours])
        if self.architecture.is_transposed(ours):
            tensor = tensor.T
        heads = self.architecture.heads_of(ours, self.heads, self.kv_heads)
        if heads:
            if tensor.shape[0] % (2 * heads):
                raise ModelError(f"{self.folder}: {self.names[ours]} has {tensor.shape[0]} rows for {heads} heads")
            tensor = tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        if shift := self.architecture.shift_of(ours):
            tensor = tensor.float() + shift
        return tensor.contiguous()


def _order(name: str) -> tuple[int, int, str]:
    parts = name.split(".")
    return (1, int(parts[1]), name) if parts[0] == "blk" else (0 if parts[0].startswith("tok") else 2, 0, name)


def _own_type(store: TensorStore, *, lossless: bool = False) -> str:
    counts: dict[torch.dtype, int] = {}
    for one in store.tensors.values():
        counts[one.dtype] = counts.get(one.dtype, 0) + one.numel
    most = max(counts, key=lambda dtype: counts[dtype])
    if most == torch.bfloat16:
        return "bf16"
    return "f32" if lossless and most != torch.float16 else "f16"


def _types(model: _Model, kind: str) -> tuple[dict[str, Kind], int]:
    """The type of each tensor, and how many could not have the one that was asked for."""
    wanted, _ = PLAIN_TYPES[kind]
    head = "output.weight" if "output.weight" in model.names else "token_embd.weight"
    found: dict[str, Kind] = {}
    refused = 0
    for name in model.names:
        shape = model.shape(name)
        if len(shape) == 1 or name in _ALWAYS_F32:
            found[name] = Kind.F32
        elif wanted not in _WHOLE and shape[-1] % _BLOCK:
            found[name] = Kind.F16
            refused += 1
        elif wanted not in _WHOLE and name == head:
            found[name] = Kind.Q8_0
        else:
            found[name] = wanted
    return found, refused


def _write(model: _Model, path: Path, kind: str, name: str, threads: int, progress: Progress | None) -> list[str]:
    architecture, where = model.architecture, str(model.folder)
    metadata = configs_out.metadata_of(model.config, architecture, where)
    rows = model.shape("token_embd.weight")[0]
    words = tokenizer_metadata(model.folder, model.config, rows=rows)
    types, refused = _types(model, kind)
    extra = configs_out.rope_tensors(model.config, architecture, where)
    entries: dict[str, Any] = {
        "general.type": "model", "general.name": name, "general.quantization_version": 2,
        "general.file_type": int(PLAIN_TYPES[kind][1]), MODEL_TYPE_KEY: architecture.model_type,
        **{f"{architecture.name}.{key}": value for key, value in metadata.items()},
        f"{architecture.name}.vocab_size": rows, **words.entries,
    }  # fmt: skip
    if architecture.model_type == "bert":
        entries["tokenizer.ggml.token_type_count"] = int(model.config.get("type_vocab_size", 2))
    sizes = {ours: _stored_bytes(model.shape(ours), types[ours]) for ours in model.names}
    free = shutil.disk_usage(path.parent).free
    if sum(sizes.values()) > free:
        raise DiskFull(f"the file needs {sum(sizes.values()):,} bytes, and {path.parent} has {free:,} left: free some")
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        for key, value in entries.items():
            _add(writer, key, value)
        for ours, values in extra.items():
            writer.add_tensor_info(ours, values.shape, values.dtype, values.nbytes, Kind.F32)
        for ours in model.names:
            writer.add_tensor_info(ours, model.shape(ours), np.dtype(np.float32), sizes[ours], types[ours])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in extra.values():
            writer.write_tensor_data(values)
        done = 0
        total = sum(math.prod(model.shape(ours)) for ours in model.names)
        with ThreadPoolExecutor(max(1, threads), "quantise") as pool:
            for ours in model.names:
                tensor = model.tensor(ours)
                writer.write_tensor_data(_stored(tensor, types[ours], model.names[ours], pool))
                done += tensor.numel()
                if progress is not None:
                    progress(done, total)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"no room left for {path.parent}: free some space, or write to another disk") from error
        raise
    finally:
        writer.close()
    notes = list(words.notes)
    if refused:
        notes.append(f"{refused} tensors whose rows are no multiple of {_BLOCK} are f16, not {kind}")
    heads = [one for one in model.left_out if "pooler" in one or "cls." in one]
    if heads:
        notes.append(
            f"llama.cpp takes BERT for its embeddings: {len(heads)} tensors of pooler and masked-word head are left out"
        )
    window = model.config.get("sliding_window")
    windowed = architecture.name in {"llama", "qwen2", "qwen3"} and model.config.get("use_sliding_window", True)
    if windowed and window and window < metadata["context_length"]:
        notes.append(f"llama.cpp attends to the whole text, not to a window of {window} tokens")
    return notes


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _stored_bytes(shape: Sequence[int], kind: Kind) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks: int = math.prod(shape) // block
    return blocks * int(size)


def _stored(tensor: torch.Tensor, kind: Kind, name: str, pool: ThreadPoolExecutor) -> Array:
    """A tensor's bytes in its GGUF type, uint8 (or the type's own)."""
    if not tensor.is_floating_point():
        raise ModelError(f"tensor {name!r} holds integers ({tensor.dtype}), which GGUF's models do not have")
    if kind in _WHOLE:
        target = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}[kind]
        converted = tensor.to(target)
        _check_finite(converted, tensor, name)
        found: Array = (converted.view(torch.int16) if kind == Kind.BF16 else converted).numpy()
        return found
    _check_finite(tensor, tensor, name)
    rows = tensor.reshape(-1, tensor.shape[-1])
    step = max(1, _CHUNK_ELEMENTS // rows.shape[1])
    pieces = [rows[start : start + step] for start in range(0, len(rows), step)]
    return np.concatenate(list(pool.map(lambda piece: quantize(piece.float().numpy(), kind), pieces)))


def _check_finite(converted: torch.Tensor, tensor: torch.Tensor, name: str) -> None:
    if bool(torch.isfinite(converted.float().sum(dtype=torch.float64))):
        return
    if bool(torch.isfinite(tensor.float()).all()):
        most = tensor.float().abs().max().item()
        raise NonFiniteWeights(f"tensor {name!r} has values up to {most:g}, too large for f16; choose bf16 or f32")
    raise NonFiniteWeights(f"tensor {name!r} holds NaN or infinity")


def _k_quantize(source: Path, target: Path, kind: str, threads: int) -> None:
    done = subprocess.run(
        [find_quantizer(kind), str(source), str(target), kind.upper(), str(threads)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or not target.is_file():
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise WorkFailed(f"llama-quantize could not make {kind}: {' / '.join(last) or 'no word'}")


def _larger(model: _Model, kind: str) -> list[str]:
    """A K-quant's blocks have 256 numbers: of tensors that those do not fill, llama-quantize makes something larger."""
    odd = sum(len(shape) == 2 and shape[-1] % _K_BLOCK > 0 for shape in map(model.shape, model.names))
    return [f"{odd} matrices whose rows are no multiple of {_K_BLOCK} are of a larger type than {kind}"] if odd else []
