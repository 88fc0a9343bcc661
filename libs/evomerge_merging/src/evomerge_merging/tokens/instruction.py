"""Which sources are instruction-tuned, and what makes the merged model go on behaving so.

A chat template alone does not tell: some base models bring one along. A model that was trained to take turns also ends
them: one of its end tokens is written by its template.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge_merging.engine.architecture import text_config
from evomerge_merging.engine.source import Source
from evomerge_merging.tokens.chat_templates import template_of
from evomerge_merging.tokens.files import tokenizer_data, tokenizer_files
from evomerge_models.files import read_json_or_nothing

_QUOTED = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,30}\]")


@dataclass(frozen=True)
class Instruction:
    """What an instruction-tuned source has beyond a base model.

    Attributes:
        source: it.
        template: its chat template.
        ends: tokens that end its turns.
        tokens: its special tokens that have a row, ends among them, in order of their rows.
        generation: its generation_config.json.

    """

    source: Source
    template: str
    ends: tuple[str, ...]
    tokens: tuple[str, ...]
    generation: Mapping[str, Any]

    def signs(self) -> str:
        """How it was recognised, in words."""
        return f"it has a chat template and ends its turns with {', '.join(map(repr, self.ends))}"


def instruction_of(source: Source, vocabulary: Mapping[str, int], rows: int) -> Instruction | None:
    """What makes a source instruction-tuned; None when it is not.

    Args:
        source: a source, its config and folder read.
        vocabulary: token → row of its tokenizer.
        rows: of its embedding.

    """
    template = template_of(source.folder)
    if not template or not vocabulary:
        return None
    names = {row: token for token, row in vocabulary.items()}
    generation = read_json_or_nothing(source.folder / "generation_config.json")
    settings = read_json_or_nothing(source.folder / "tokenizer_config.json")
    special = special_tokens(source.folder)
    ids = [
        *_ids(generation.get("eos_token_id")),
        *_ids(text_config(source.config).get("eos_token_id")),
    ]
    ends = [names[row] for row in ids if row in names]
    own_end = _text(settings.get("eos_token")) or _text(
        read_json_or_nothing(source.folder / "special_tokens_map.json").get("eos_token")
    )
    ends += [own_end] if own_end else []
    written = set(_QUOTED.findall(template))
    ends = [
        end
        for end in dict.fromkeys(ends)
        if (end in template and (end in special or end in written)) or (end == own_end and "eos_token" in template)
    ]
    if not ends:
        return None
    tokens = [token for token in vocabulary if token in special or token in ends or token in written]
    tokens = [token for token in tokens if 0 <= vocabulary[token] < rows]
    return Instruction(
        source, template, tuple(ends), tuple(sorted(tokens, key=lambda token: vocabulary[token])), generation
    )


def renumbered(settings: Mapping[str, Any], before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """The same settings, where `*_token_id` fields name rows of another vocabulary; ids without a row are left out."""
    names = {row: token for token, row in before.items()}
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if not key.endswith("_token_id") or value is None:
            result[key] = value
            continue
        rows = [after[names[row]] for row in _ids(value) if names.get(row) in after]
        if rows:
            result[key] = rows if isinstance(value, list) else rows[0]
    return result


def special_tokens(folder: Path) -> frozenset[str]:
    """Tokens that a folder's tokenizer calls special."""
    paths = [path for name in ("tokenizer.json", "tokenizer_config.json") if (path := folder / name).is_file()]
    of_files = _special(tuple((path.resolve(), path.stat().st_mtime_ns, path.stat().st_size) for path in paths))
    if (folder / "tokenizer.json").is_file() or not tokenizer_files(folder):
        return of_files
    entries = tokenizer_data(folder).get("added_tokens") or []
    return of_files | {str(one["content"]) for one in entries if one.get("special")}


@functools.lru_cache(maxsize=16)
def _special(files: tuple[tuple[Path, int, int], ...]) -> frozenset[str]:
    """Cached, since a service plans thousands of merges of the same few models; a changed file is another one."""
    told: set[str] = set()
    for path, _, _ in files:
        data = read_json_or_nothing(path)
        decoder = data.get("added_tokens_decoder")
        entries = [*(data.get("added_tokens") or []), *(decoder.values() if isinstance(decoder, dict) else [])]
        told |= {
            str(one["content"]) for one in entries if isinstance(one, dict) and one.get("special") and "content" in one
        }
    return frozenset(told)


def _ids(value: Any) -> list[int]:
    return [row for row in (value if isinstance(value, list) else [value]) if type(row) is int]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
