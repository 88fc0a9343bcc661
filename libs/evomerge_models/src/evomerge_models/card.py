"""The metadata of a model card, as the Hub reads it: YAML at its head, written and read by the hub's own client.

The client is imported on first use, so that an idle service stays small.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evomerge_common.domain.licence_names import OTHER, UNKNOWN, licence_of_metadata, licence_of_text
from evomerge_common.domain.reference import ModelReference
from evomerge_models.files import CONFIG, names_in, read_json_or_nothing

CARD = "README.md"
_MAX_CARD_BYTES = 1_000_000
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_LICENCE_FILE = re.compile(r"(?i)(licen[sc]e|copying)([._-]?(txt|md|rst))?")
LICENCE_BYTES = 4096
"""Of a licence's text: its heading is in them."""
UNTOLD = frozenset({"", OTHER, UNKNOWN})
"""Words of a card that say nothing of its licence."""
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_OTHER_LANGUAGES = frozenset({"code", "multilingual"})
_TASKS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "Model": "feature-extraction",
}
"""End of a class's name → the Hub's word for what it does; the first that fits."""


@dataclass(frozen=True)
class HeldOutScore:
    """One task's score on items that no selection saw.

    Attributes:
        suite: name of the suite; `suite_digest` is its identity.
        metric: such as acc; `value` is in its own unit.
        note: what else there is to say of the value, such as its interval.

    """

    suite: str
    suite_digest: str
    task: str
    items: int
    metric: str
    value: float
    note: str = ""


@dataclass(frozen=True)
class Metadata:
    """What the head of a card says.

    Attributes:
        base_models: hub ids; what lies on a disk alone is not among them.
        relation: the Hub's word for what is made of base_models: merge, adapter, quantized; "": it has none.
        name: of the model, beside its scores.

    """

    base_models: tuple[str, ...] = ()
    relation: str = "merge"
    library: str = "transformers"
    pipeline_tag: str = ""
    tags: tuple[str, ...] = ("merge", "evomerge")
    licence: str = ""
    languages: tuple[str, ...] = ()
    name: str = ""
    scores: tuple[HeldOutScore, ...] = ()

    def front_matter(self) -> str:
        """Writes the block between dashes that a card begins with."""
        from huggingface_hub import ModelCardData

        data = ModelCardData(
            base_model=list(self.base_models) or None,
            base_model_relation=(self.relation or None) if self.base_models else None,
            language=list(self.languages) or None,
            license=self.licence or None,
            library_name=self.library,
            pipeline_tag=self.pipeline_tag or None,
            tags=list(self.tags),
            model_name=(self.name or "merged model") if self.scores else None,
            eval_results=[_result(score, self.pipeline_tag) for score in self.scores] or None,
        )
        return f"---\n{data.to_yaml()}\n---\n"


def hub_ids(sources: Iterable[ModelReference]) -> tuple[str, ...]:
    """Returns the hub ids among sources, each once: what a card's `base_model` may name."""
    return tuple(dict.fromkeys(name for source in sources for name in source.hub_ids))


def pipeline_tag(config: Mapping[str, Any], names: Collection[str] = ()) -> str:
    """Returns the Hub's word for what a model does, by its class and files; "" where the Hub has none for it."""
    if "modules.json" in names:
        return "sentence-similarity"
    architectures = config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if name.endswith("ForConditionalGeneration"):
        return "image-text-to-text" if "vision_config" in config else ""
    return next((task for ending, task in _TASKS.items() if name.endswith(ending)), "")


def of_folder(folder: Path) -> tuple[str, str]:
    """Returns (library, pipeline tag) of a finished model's folder."""
    names = names_in(folder)
    library = "sentence-transformers" if "modules.json" in names else "transformers"
    return library, pipeline_tag(read_json_or_nothing(folder / CONFIG), names)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Reads the metadata of a folder's card; empty where there is none that can be read."""
    path = folder / CARD
    if not path.is_file() or path.stat().st_size >= _MAX_CARD_BYTES:
        return {}
    return parse_metadata(path.read_text("utf-8", errors="replace"))[0]


def parse_metadata(text: str) -> tuple[dict[str, Any], str]:
    """Parts a card into its metadata, empty where it cannot be read, and the rest of its text."""
    match = _FRONT_MATTER.match(text)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        data = {}
    return (data if isinstance(data, dict) else {}), text[match.end() :] if match else text


def licence_file_among(names: Collection[str]) -> str:
    """Returns the name of the file that holds a licence's text; "" where there is none."""
    return next((name for name in sorted(names) if _LICENCE_FILE.fullmatch(name)), "")


def licence_of_folder(folder: Path) -> str:
    """Tells a model's licence by its card, else by the text beside it, as `licence_names` writes it; "" for unknown."""
    told = licence_of_metadata(read_metadata(folder))
    if told not in UNTOLD:
        return told
    name = licence_file_among(names_in(folder))
    if not name:
        return told
    with (folder / name).open("rb") as file:
        return licence_of_text(file.read(LICENCE_BYTES).decode("utf-8", "replace")) or told


def languages_of(cards: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns the languages that cards name, as the Hub takes them: ISO 639 codes, `code`, `multilingual`."""
    found: list[str] = []
    for card in cards:
        value = card.get("language")
        found += [str(one).lower() for one in (value if isinstance(value, list) else [value]) if one]
    return tuple(dict.fromkeys(one for one in found if _LANGUAGE.fullmatch(one) or one in _OTHER_LANGUAGES))


def licence_of(cards: Sequence[Mapping[str, Any]]) -> str:
    """Returns the licence that all the cards name; "" where one names none or another."""
    found = {str(card.get("license") or "") for card in cards}
    return found.pop() if len(found) == 1 else ""


def _result(score: HeldOutScore, task_type: str) -> Any:
    """A score in the terms of `model-index`.

    The newer `.eval_results/` has no place for it: there a dataset is a benchmark of the Hub's, and a suite is none.
    """
    from huggingface_hub import EvalResult

    suite = score.suite or "suite"
    return EvalResult(
        task_type=task_type or "text-generation",
        task_name=score.task,
        dataset_type=re.sub(r"[^\w.-]+", "-", suite),
        dataset_name=f"{suite}: {score.task}, {score.items} held-out items",
        dataset_config=score.task,
        dataset_split="holdout",
        dataset_args={"suite_digest": score.suite_digest, "items": score.items},
        metric_type=score.metric,
        metric_name=f"{score.metric}{f' ({score.note})' if score.note else ''}",
        metric_value=score.value,
    )
