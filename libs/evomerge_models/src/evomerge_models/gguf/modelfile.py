"""Ollama's Modelfile beside a GGUF file: its template, where words stop, how long a conversation may be."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from evomerge_common.runtime.files import write_atomically
from evomerge_models.gguf.chat import ChatForm, chat_form
from evomerge_models.gguf.file import GgufFile

NAME = "Modelfile"
MAX_CONTEXT = 8192
"""Ollama keeps room for the whole context, and a model's own may be a million tokens; `num_ctx` is a setting."""
_MARK = "# Made by EvoMerge"
_CONTROL = 3
"""The type of a token that is no text, in `tokenizer.ggml.token_type`."""


def write_modelfile(path: Path, *, licence: str = "") -> Path | None:
    """Writes the Modelfile of a GGUF file into its folder; returns its path, or None where somebody else's is there.

    Args:
        path: the GGUF file.
        licence: of the model; "": nothing is said of it.

    Raises:
        UnsafeFile, ModelError: it is no sound GGUF file.

    """
    out = path.with_name(NAME)
    if out.exists() and not out.read_text("utf-8", errors="replace").startswith(_MARK):
        return None
    with GgufFile(path) as file:
        write_atomically(out, modelfile(path.name, file.metadata, licence))
    return out


def is_ours(path: Path, files: Collection[str]) -> bool:
    """Tells whether a Modelfile is of ours, and for one of these files beside it: anyone else's may name folders."""
    text = path.read_text("utf-8", errors="replace")
    return text.startswith(_MARK) and any(f"\nFROM ./{name}\n" in text for name in files)


def modelfile(name: str, metadata: dict[str, Any], licence: str = "") -> str:
    """Writes the text of a Modelfile, from the file's metadata.

    Without a TEMPLATE line Ollama goes by the chat template in the file itself, as far as it knows it.
    """
    form = _form(metadata)
    lines = [f"{_MARK}: ollama create NAME -f {NAME}", f"FROM ./{name}"]
    if form is not None:
        lines.append(f'TEMPLATE """{form.go_template()}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in _stops(metadata, form) if '"' not in stop]
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if isinstance(context, int) and context > 0:
        lines.append(f"PARAMETER num_ctx {min(context, MAX_CONTEXT)}")
    if licence and '"""' not in licence:
        lines.append(f'LICENSE """{licence}"""')
    return "\n".join(lines) + "\n"


def _form(metadata: dict[str, Any]) -> ChatForm | None:
    template = metadata.get("tokenizer.chat_template")
    ids = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
    tokens = {name: text for name, key in ids.items() if (text := _token(metadata, key))}
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token") is not False
    return chat_form(template, tokens, adds_bos=adds_bos) if isinstance(template, str) else None


def _token(metadata: dict[str, Any], key: str) -> str:
    """The text of a token that the metadata name by its id; "" where there is none."""
    tokens: Any = metadata.get("tokenizer.ggml.tokens")
    index: Any = metadata.get(f"tokenizer.ggml.{key}")
    found = isinstance(tokens, list) and isinstance(index, int) and 0 <= index < len(tokens)
    return str(tokens[index]) if found else ""


def _stops(metadata: dict[str, Any], form: ChatForm | None) -> list[str]:
    """The tokens that end an answer: of text, of a turn, and what the chat template has after the assistant's words."""
    ends = [_token(metadata, f"{kind}_token_id") for kind in ("eos", "eot", "eom")]
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if form is not None and isinstance(tokens, list) and isinstance(types, list):
        control = (str(token) for token, kind in zip(tokens, types, strict=False) if kind == _CONTROL)
        ends.append(max((one for one in control if one and form.again.startswith(one)), key=len, default=""))
    return list(dict.fromkeys(end for end in ends if end))
