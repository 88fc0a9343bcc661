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
from evomerge_merging.export.gguf_tensors import GgufTensors
from evomerge_merging.io.model_folder import TensorStore, open_weights
from evomerge_merging.tokens.files import tokenizer_data
from evomerge_models.files import check_whole, read_json_object
from evomerge_models.gguf import configs_out
from evomerge_models.gguf.lookup import MODEL_TYPE_KEY, of_config
from evomerge_models.gguf.quantizer import check_type, find_quantizer
from evomerge_models.gguf.vocabulary_out import tokenizer_metadata

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
_ALWAYS_F32 = ("position_embd.weight", "token_types.weight", "norm.weight", "ffn_gate_inp.weight", "_inp_shexp.weight",
               "exp_probs_b.bias")  # fmt: skip
"""Few numbers on which much depends: positions, norms, routers of experts."""
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
    of_config(read_json_object(folder / "config.json"), str(folder))
    store = open_weights(folder)
    try:
        model = GgufTensors(folder, store)
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
        len(model.sources),
        sum(math.prod(model.shape(ours)) for ours in model.sources),
        out.stat().st_size,
        time.monotonic() - begun,
        tuple(notes),
    )


def _own_type(store: TensorStore, *, lossless: bool = False) -> str:
    counts: dict[torch.dtype, int] = {}
    for one in store.tensors.values():
        counts[one.dtype] = counts.get(one.dtype, 0) + one.numel
    most = max(counts, key=lambda dtype: counts[dtype])
    if most == torch.bfloat16:
        return "bf16"
    return "f32" if lossless and most != torch.float16 else "f16"


def _types(model: GgufTensors, kind: str) -> tuple[dict[str, Kind], int]:
    """The type of each tensor, and how many could not have the one that was asked for."""
    wanted, _ = PLAIN_TYPES[kind]
    head = "output.weight" if "output.weight" in model.sources else "token_embd.weight"
    found: dict[str, Kind] = {}
    refused = 0
    for name in model.sources:
        shape = model.shape(name)
        if len(shape) == 1 or name.endswith(_ALWAYS_F32):
            found[name] = Kind.F32
        elif wanted not in _WHOLE and shape[-1] % _BLOCK:
            found[name] = Kind.F16
            refused += 1
        elif wanted not in _WHOLE and name == head:
            found[name] = Kind.Q8_0
        else:
            found[name] = wanted
    return found, refused


def _write(model: GgufTensors, path: Path, kind: str, name: str, threads: int, progress: Progress | None) -> list[str]:
    architecture, where = model.architecture, str(model.folder)
    metadata = configs_out.metadata_of(model.config, architecture, where)
    rows = model.shape("token_embd.weight")[0]
    words = tokenizer_metadata(model.folder, model.config, tokenizer_data(model.folder), rows=rows)
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
    sizes = {ours: _stored_bytes(model.shape(ours), types[ours]) for ours in model.sources}
    free = shutil.disk_usage(path.parent).free
    if sum(sizes.values()) > free:
        raise DiskFull(f"the file needs {sum(sizes.values()):,} bytes, and {path.parent} has {free:,} left: free some")
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        for key, value in entries.items():
            _add(writer, key, value)
        for ours, values in extra.items():
            writer.add_tensor_info(ours, values.shape, values.dtype, values.nbytes, Kind.F32)
        for ours in model.sources:
            writer.add_tensor_info(ours, model.shape(ours), np.dtype(np.float32), sizes[ours], types[ours])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in extra.values():
            writer.write_tensor_data(values)
        done = 0
        total = sum(math.prod(model.shape(ours)) for ours in model.sources)
        with ThreadPoolExecutor(max(1, threads), "quantise") as pool:
            for ours in model.sources:
                tensor = model.tensor(ours)
                writer.write_tensor_data(_stored(tensor, types[ours], model.sources[ours][0][1], pool))
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
    return [*notes, *_notes(model, metadata)]


def _notes(model: GgufTensors, metadata: Mapping[str, Any]) -> list[str]:
    """What llama.cpp will do otherwise than transformers, or cannot do, in words."""
    notes = []
    heads = [one for one in model.left_out if "pooler" in one or "cls." in one]
    if heads and model.architecture.model_type == "bert":
        notes.append(
            f"llama.cpp takes BERT for its embeddings: {len(heads)} tensors of pooler and masked-word head are left out"
        )
    if model.apart:
        notes.append(f"the text model alone is written: {len(model.left_out)} tensors of images are left out")
    if model.beyond:
        notes.append(f"{len(model.beyond)} tensors of layers that the config does not count are left out")
    window = model.config.get("sliding_window")
    windowed = not model.architecture.window and model.config.get("use_sliding_window", True)
    if windowed and window and window < metadata["context_length"]:
        notes.append(f"llama.cpp attends to the whole text, not to a window of {window} tokens")
    if model.scale != 1.0:
        notes.append(f"llama.cpp scales queries otherwise: {model.scaled} is multiplied by {model.scale:.6g} for it")
    if metadata.get("rope.scaling.type") == "longrope":
        original = metadata["rope.scaling.original_context_length"]
        notes.append(
            f"llama.cpp takes the rotary factors of long texts for any text when its context (-c) is above {original}"
        )
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


def _larger(model: GgufTensors, kind: str) -> list[str]:
    """A K-quant's blocks have 256 numbers: of tensors that those do not fill, llama-quantize makes something larger."""
    odd = sum(len(shape) == 2 and shape[-1] % _K_BLOCK > 0 for shape in map(model.shape, model.sources))
    return [f"{odd} matrices whose rows are no multiple of {_K_BLOCK} are of a larger type than {kind}"] if odd else []
