"""What a GGUF file holds, from its header, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from evomerge_common.errors import EvoMergeException
from evomerge_models.gguf.file import GgufFile
from evomerge_models.gguf.folder import read_model

_LONG = 80


def inspect_gguf(path: Path) -> dict[str, Any]:
    """Everything about a file as plain data: metadata, tensors, sizes by type, and whether EvoMerge can read it.

    Raises:
        UnsafeFile, ModelError: it is no sound GGUF file.

    """
    with GgufFile(path) as file:
        types: dict[str, dict[str, int]] = {}
        for one in file.tensors.values():
            total = types.setdefault(one.type.name, {"tensors": 0, "parameters": 0, "bytes": 0})
            total["tensors"] += 1
            total["parameters"] += one.numel
            total["bytes"] += one.bytes
        reason = ""
        try:
            read_model(file)
        except EvoMergeException as error:
            reason = str(error)
        parameters = sum(one.numel for one in file.tensors.values())
        stored = sum(one.bytes for one in file.tensors.values())
        return {
            "file": str(path),
            "version": file.version,
            "architecture": file.architecture,
            "name": file.metadata.get("general.name", ""),
            "file_type": _file_type(file.metadata.get("general.file_type")),
            "parameters": parameters,
            "bytes": file.size,
            "bits_per_weight": round(8 * stored / parameters, 2) if parameters else 0.0,
            "readable": not reason,
            "reason": reason,
            "types": types,
            "metadata": {key: shortened(key, value) for key, value in file.metadata.items()},
            "tensors": [
                {"name": one.name, "shape": list(one.shape), "type": one.type.name, "bytes": one.bytes}
                for one in file.tensors.values()
            ],
        }


def _file_type(value: Any) -> str:
    try:
        return str(LlamaFileType(value).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return ""


def shortened(key: str, value: Any) -> Any:
    """A list of a vocabulary's length by its number of entries and the first few; others as they are."""
    if isinstance(value, list) and len(value) > 8:
        return {"length": len(value), "first": value[:5]}
    return value


def in_words(facts: Mapping[str, Any]) -> list[str]:
    """The most important of it as sentences."""
    each = f"{facts['bits_per_weight']} bits each"
    kinds = ", ".join(f"{one['tensors']} {name}" for name, one in sorted(facts["types"].items()))
    architecture = facts["architecture"] or "unknown"
    lines = [
        f"{facts['file']}: {facts['name'] or 'a model without a name'}, architecture {architecture}",
        f"{facts['parameters']:,} parameters in {len(facts['tensors'])} tensors ({kinds}), {each}",
    ]
    meta = facts["metadata"]
    words = meta.get("tokenizer.ggml.tokens")
    if isinstance(words, Mapping):
        template = "with" if "tokenizer.chat_template" in meta else "without"
        lines.append(
            f"tokenizer: {meta.get('tokenizer.ggml.model')}, {words['length']:,} tokens, {template} a chat template"
        )
    lines.append(
        "EvoMerge reads it as a source model" if facts["readable"] else f"EvoMerge cannot read it: {facts['reason']}"
    )
    return lines


def one_line(value: Any) -> str:
    """A metadata value on one short line."""
    if isinstance(value, Mapping):
        value = f"{value['length']:,} entries: {', '.join(repr(one) for one in value['first'])}, …"
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"
