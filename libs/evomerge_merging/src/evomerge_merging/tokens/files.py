"""A tokenizer's files: what they say, and writing those of a merged model."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge_common.errors import ModelError
from evomerge_merging.engine.source import Source
from evomerge_merging.io.writer import write_text
from evomerge_models.files import MAX_SMALL_BYTES, TOKENIZER_FILES, read_json_or_nothing

_SLOW = (
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", *_SLOW, "chat_template.jinja",
    "chat_template.json", "generation_config.json",
)  # fmt: skip


_MADE_UP = 8
"""Tokens besides special ones that transformers puts into a tokenizer whose file it does not find, at most."""


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
        for path in [] if self.tokenizer else tokenizer_files(self.folder):
            shutil.copyfile(path, out / path.name)
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
    """Reads a source's tokenizer.json, or what transformers makes of its files of older formats.

    Raises:
        ModelError: it has none, or one without a vocabulary.

    """
    data = tokenizer_data(source.folder)
    if not isinstance(data.get("model"), dict) or "vocab" not in data["model"]:
        raise ModelError(
            f"{source.label} has no tokenizer.json, so its tokenizer cannot be extended or united"
            f"{'; ' + why if (why := unread(source.folder)) else ''}: load and save it once with transformers"
        )
    return data


def tokenizer_data(folder: Path) -> dict[str, Any]:
    """Reads tokenizer.json, or without one what transformers makes of the folder; {} when that is nothing."""
    if (folder / "tokenizer.json").is_file():
        return read_json_or_nothing(folder / "tokenizer.json")
    return dict(json.loads(converted(folder).json or "{}"))


def added_tokens(folder: Path) -> list[str]:
    """Reads the texts of the tokens that a tokenizer adds to its vocabulary."""
    entries = tokenizer_data(folder).get("added_tokens") or []
    return [str(entry["content"]) for entry in entries if isinstance(entry, dict) and "content" in entry]


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that hold a folder's vocabulary, of whatever format, sorted."""
    names = {*TOKENIZER_FILES, "merges.txt", "added_tokens.json", "tekken.json"}
    return sorted(path for path in folder.iterdir() if path.name in names or path.suffix == ".tiktoken")


def unread(folder: Path) -> str:
    """Why the vocabulary of a folder that has one cannot be read; "" when it can, or when it has none."""
    if vocabulary(folder) or not tokenizer_files(folder):
        return ""
    names = ", ".join(path.name for path in tokenizer_files(folder))
    why = converted(folder).reason if not (folder / "tokenizer.json").is_file() else ""
    return f"its vocabulary ({names}) cannot be read{': ' + why if why else ''}"


def same_tokenizer(first: Path, other: Path) -> bool:
    """Whether two folders hold a vocabulary by the same bytes."""

    def content(folder: Path) -> tuple[dict[str, str], Any]:
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tokenizer_files(folder)}
        return digests, read_json_or_nothing(folder / "tokenizer_config.json").get("added_tokens_decoder")

    return content(first) == content(other)


def vocabulary(folder: Path) -> dict[str, int]:
    """Reads token → row, added tokens included; empty when the folder has no vocabulary that can be read."""
    return _vocabulary(folder.resolve(), _stamps(folder))


Stamps = tuple[tuple[str, int, int], ...]


def _stamps(folder: Path) -> Stamps:
    """What makes a changed file another one: a service plans thousands of merges of the same few models."""
    paths = [*tokenizer_files(folder), folder / "tokenizer_config.json"]
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in paths if path.is_file())


@functools.lru_cache(maxsize=16)
def _vocabulary(folder: Path, _: Stamps) -> dict[str, int]:
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
        told = read_json_or_nothing(folder / "vocab.json") | _added_beside(folder)
        return {str(token): row for token, row in told.items() if type(row) is int}
    if (folder / "vocab.txt").is_file() and (folder / "vocab.txt").stat().st_size < MAX_SMALL_BYTES:
        # Cut at line feeds alone, as transformers does: a token may be a separator that splitlines() takes for one.
        lines = (folder / "vocab.txt").read_text("utf-8", errors="replace").removesuffix("\n").split("\n")
        return {token: row for row, token in enumerate(lines)} | _added_beside(folder)
    return dict(converted(folder).vocabulary) if tokenizer_files(folder) else {}


def _added_beside(folder: Path) -> dict[str, int]:
    """Tokens that files of older formats add: added_tokens.json, and what tokenizer_config.json says of them."""
    decoder = read_json_or_nothing(folder / "tokenizer_config.json").get("added_tokens_decoder")
    entries = decoder.items() if isinstance(decoder, dict) else ()
    later = {str(one["content"]): int(row) for row, one in entries if isinstance(one, dict) and "content" in one}
    return {**read_json_or_nothing(folder / "added_tokens.json"), **later}


@dataclass(frozen=True)
class Converted:
    """What transformers makes of a folder's tokenizer files.

    Attributes:
        vocabulary: token → row.
        json: text of the tokenizer.json that stands for them; "" where it has none.
        reason: why it cannot load them.

    """

    vocabulary: Mapping[str, int] = field(default_factory=dict)
    json: str = ""
    reason: str = ""


def converted(folder: Path) -> Converted:
    """Loads a tokenizer that is not in tokenizer.json (SentencePiece, tiktoken, …) as transformers does."""
    return _converted(folder.resolve(), _stamps(folder))


@functools.lru_cache(maxsize=16)
def _converted(folder: Path, _: Stamps) -> Converted:
    from transformers import AutoTokenizer  # it takes seconds, and few folders need it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a file of strangers makes the library raise
        return Converted(
            reason=f"transformers says {str(error).strip().splitlines()[0][:160] if str(error) else error!r}"
        )
    found = tokenizer.get_vocab()
    if len(found.keys() - set(tokenizer.all_special_tokens)) <= _MADE_UP:
        return Converted(reason="transformers finds no vocabulary in it for the tokenizer class of the folder")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return Converted(found, backend.to_str() if backend is not None else "")
