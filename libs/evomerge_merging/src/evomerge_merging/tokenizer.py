"""Which tokenizer files a merged model gets, and whether its inputs' vocabularies agree."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge_common.domain.recipe import Recipe
from evomerge_common.errors import ModelError, RecipeError, did_you_mean
from evomerge_merging.io.writer import write_text
from evomerge_merging.source import Source

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json", "generation_config.json",
)  # fmt: skip
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")
MAX_BYTES = 512_000_000
MAX_DIFFERENCE = 0.01
"""Share of token ids that may stand for different tokens (added special tokens, say); more is no one vocabulary."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML}


@dataclass(frozen=True)
class TokenizerPlan:
    """Where the files come from; `template` replaces the chat template when it is not empty."""

    folder: Path
    template: str = ""

    def write(self, out: Path) -> None:
        """Copies the files, and puts the template in."""
        for name in FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, out / name)
        if self.template:
            write_text(out / "chat_template.jinja", self.template)
            config = _json(self.folder / "tokenizer_config.json")
            if config.pop("chat_template", None) is not None:
                write_text(out / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def plan_tokenizer(
    recipe: Recipe, donor: Source, sources: Sequence[Source], named: Source | None
) -> tuple[TokenizerPlan, list[str]]:
    """The tokenizer of a recipe's model, and what is to be said about it.

    Args:
        recipe: its `tokenizer` and `chat_template`.
        donor: whose tokenizer it is by default.
        sources: of all inputs.
        named: the source that `recipe.tokenizer` names, if it names one.

    Raises:
        ModelError: the vocabularies differ.
        RecipeError: no such chat template.

    """
    notes = []
    first = vocabulary(donor.folder)
    for source in sources:
        other = vocabulary(source.folder)
        if source.key == donor.key or other == first:
            continue
        if not first or not other:
            lacking = donor if not first else source
            notes.append(f"{lacking.label} has no tokenizer that can be read: vocabularies are taken to be the same")
            continue
        different = [token for token, row in first.items() if other.get(token) != row]
        share = max(len(different), len([token for token in other if token not in first])) / max(len(first), len(other))
        told = ", ".join(repr(token) for token in different[:3]) or "added tokens"
        if share > MAX_DIFFERENCE:
            raise ModelError(
                f"{donor.label} and {source.label} have different vocabularies ({share:.0%} of the tokens, such as "
                f"{told}); merged row by row, embeddings would mix unrelated tokens: this version merges models of one "
                "vocabulary"
            )
        notes.append(
            f"{donor.label} and {source.label} differ in {max(len(different), 1)} tokens ({told}): their rows are "
            f"merged as they are, and {donor.label}'s tokenizer is kept"
        )
    chosen = named or donor
    return TokenizerPlan(chosen.folder, _template(recipe.chat_template)), notes


def vocabulary(folder: Path) -> dict[str, int]:
    """Token → row, added tokens included; empty when the folder has no vocabulary that can be read."""
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
        data = _json(folder / "tokenizer.json")
        vocab = (data.get("model") or {}).get("vocab")
        found: dict[str, int] = {}
        if isinstance(vocab, dict):
            found = {str(token): row for token, row in vocab.items()}
        elif isinstance(vocab, list):
            found = {str(entry[0]): row for row, entry in enumerate(vocab) if isinstance(entry, list) and entry}
        for entry in data.get("added_tokens") or []:
            if isinstance(entry, dict) and "content" in entry:
                found[str(entry["content"])] = entry.get("id", -1)
        return found
    if (folder / "vocab.json").is_file():
        return {str(token): row for token, row in _json(folder / "vocab.json").items()}
    if (folder / "vocab.txt").is_file() and (folder / "vocab.txt").stat().st_size < MAX_BYTES:
        lines = (folder / "vocab.txt").read_text("utf-8", errors="replace").splitlines()
        return {token: row for row, token in enumerate(lines)}
    return {}


def _template(text: str) -> str:
    if text in {"", "auto"}:
        return ""
    if "{" in text:
        return text
    if text in TEMPLATES:
        return TEMPLATES[text]
    hint = did_you_mean(text, [*TEMPLATES, "auto"])
    raise RecipeError(f"unknown chat template {text!r}; {hint}, or give a Jinja text", ("chat_template",))


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            return {}
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
