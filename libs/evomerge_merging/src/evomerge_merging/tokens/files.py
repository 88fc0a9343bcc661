"""A tokenizer's files: what they say, and writing those of a merged model."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge_common.errors import ModelError
from evomerge_merging.engine.source import Source
from evomerge_merging.io.writer import write_text
from evomerge_models.files import MAX_SMALL_BYTES, read_json_or_nothing

_SLOW = (
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", *_SLOW, "chat_template.jinja",
    "chat_template.json", "generation_config.json",
)  # fmt: skip
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class TokenizerPlan:
    """Where the files come from, and what is put in their place.

    Attributes:
        folder: of the source whose files are copied.
        template: the chat template, where it is not the folder's own.
        tokenizer: content of tokenizer.json, where it is not the folder's own; files of older formats are left out.
        config: fields of the model's config that follow the vocabulary.
        generation: content of generation_config.json, where it is not the folder's own.
        end: the tokenizer's end token, where it is not the folder's own.
        kept: what stays of an instruction-tuned source, in words.
        default: nothing speaks for another source than the one that gives the config.

    """

    folder: Path
    template: str = ""
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    end: str = ""
    kept: tuple[str, ...] = ()
    default: bool = False

    def write(self, out: Path) -> None:
        """Copies the files, and puts in what differs."""
        for name in FILES:
            if (self.folder / name).is_file() and not (self.tokenizer and name in _SLOW):
                shutil.copyfile(self.folder / name, out / name)
        config = read_json_or_nothing(self.folder / "tokenizer_config.json")
        before = json.dumps(config)
        if self.template:
            write_text(out / "chat_template.jinja", self.template)
            (out / "chat_template.json").unlink(missing_ok=True)
            config.pop("chat_template", None)
        if self.generation:
            write_text(out / "generation_config.json", json.dumps(dict(self.generation), indent=2) + "\n")
        if self.end:
            config["eos_token"] = self.end
            (out / "special_tokens_map.json").unlink(missing_ok=True)  # it would say otherwise
        if self.tokenizer:
            write_text(out / "tokenizer.json", json.dumps(self.tokenizer, ensure_ascii=False) + "\n")
            if "added_tokens_decoder" in config:
                config["added_tokens_decoder"] = {
                    str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
                    for entry in self.tokenizer["added_tokens"]
                }
        if json.dumps(config) != before:
            write_text(out / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def tokenizer_json(source: Source) -> dict[str, Any]:
    """Reads a source's tokenizer.json.

    Raises:
        ModelError: it has none, or one without a vocabulary.

    """
    data = read_json_or_nothing(source.folder / "tokenizer.json")
    if not isinstance(data.get("model"), dict) or "vocab" not in data["model"]:
        raise ModelError(
            f"{source.label} has no tokenizer.json, so its tokenizer cannot be extended or united; load and save it "
            "once with the tokenizers library"
        )
    return data


def added_tokens(folder: Path) -> list[str]:
    """Reads the texts of the tokens that a tokenizer.json adds to its vocabulary."""
    entries = read_json_or_nothing(folder / "tokenizer.json").get("added_tokens") or []
    return [str(entry["content"]) for entry in entries if isinstance(entry, dict) and "content" in entry]


def vocabulary(folder: Path) -> dict[str, int]:
    """Reads token → row, added tokens included; empty when the folder has no vocabulary that can be read."""
    stamps = tuple(
        (name, (folder / name).stat().st_mtime_ns, (folder / name).stat().st_size)
        for name in _VOCABULARIES
        if (folder / name).is_file()
    )
    return _vocabulary(folder.resolve(), stamps)


@functools.lru_cache(maxsize=16)
def _vocabulary(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> dict[str, int]:
    """`stamps` make a changed file another one: a service plans thousands of merges of the same few models."""
    if (folder / "tokenizer.json").is_file():
        data = read_json_or_nothing(folder / "tokenizer.json")
        model = data.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        found: dict[str, int] = {}
        if isinstance(vocab, dict):
            found = {str(token): row for token, row in vocab.items() if type(row) is int}
        elif isinstance(vocab, list):
            found = {str(entry[0]): row for row, entry in enumerate(vocab) if isinstance(entry, list) and entry}
        for entry in data.get("added_tokens") or []:
            if isinstance(entry, dict) and "content" in entry and type(entry.get("id")) is int:
                found[str(entry["content"])] = entry["id"]
        return found
    if (folder / "vocab.json").is_file():
        return {
            str(token): row for token, row in read_json_or_nothing(folder / "vocab.json").items() if type(row) is int
        }
    if (folder / "vocab.txt").is_file() and (folder / "vocab.txt").stat().st_size < MAX_SMALL_BYTES:
        lines = (folder / "vocab.txt").read_text("utf-8", errors="replace").splitlines()
        return {token: row for row, token in enumerate(lines)}
    return {}
