"""The metadata of a model card, as the Hub reads it: YAML at its head, written and read by the hub's own client.

The client is imported on first use, so that an idle service stays small.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from evomerge_common.domain.licence_names import AND, OTHER, UNKNOWN, licence_of_metadata, licence_of_text
from evomerge_common.domain.licences import NO_ADVICE, LicencePlan, combine
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import InvalidInput
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
        licence: the Hub's identifier; `licence_name` and `licence_link` say more where it is `other`.
        name: of the model, beside its scores.

    """

    base_models: tuple[str, ...] = ()
    relation: str = "merge"
    library: str = "transformers"
    pipeline_tag: str = ""
    tags: tuple[str, ...] = ("merge", "evomerge")
    licence: str = ""
    licence_name: str = ""
    licence_link: str = ""
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
            license_name=self.licence_name or None,
            license_link=self.licence_link or None,
            library_name=self.library,
            pipeline_tag=self.pipeline_tag or None,
            tags=list(self.tags),
            model_name=(self.name or "merged model") if self.scores else None,
            eval_results=[_result(score, self.pipeline_tag) for score in self.scores] or None,
        )
        return f"---\n{data.to_yaml()}\n---\n"

    def drawn_from(self, sources: Mapping[str, Mapping[str, Any]]) -> Metadata:
        """Returns it with what follows from the sources' cards: languages, and the licence where each names one.

        `sources` is source, as readers know it → metadata of its card, empty where there is none.
        """
        plan = combine({name: licence_of_metadata(card) for name, card in sources.items()})
        return replace(self.under(plan), languages=_languages(sources.values()))

    def under(self, plan: LicencePlan) -> Metadata:
        """Returns it with the licence that the sources' licences leave; none where one of them is not known."""
        if not plan.licences or plan.licence == UNKNOWN:
            return replace(self, licence="", licence_name="", licence_link="")
        return replace(self, licence=plan.licence, licence_name=plan.name, licence_link=plan.link)


def hub_ids(sources: Iterable[ModelReference]) -> tuple[str, ...]:
    """Returns the hub ids among sources, each once: what a card's `base_model` may name."""
    return tuple(dict.fromkeys(name for source in sources for name in source.hub_ids))


def parts_of(sources: Iterable[ModelReference]) -> list[ModelReference]:
    """Returns the models whose cards count: of an adapter on its base both."""
    parts = [part for source in sources for part in (source.whole, source.adapter_alone) if part is not None]
    return list(dict.fromkeys(parts))


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


def metadata_of_source(folder: Path) -> dict[str, Any]:
    """Reads the metadata of the card in a source's folder, its licence also from the text beside it; empty for none."""
    licence = licence_of_folder(folder) if folder.is_dir() else ""
    return {**read_metadata(folder), **({"license": licence.split(AND)} if licence else {})}


def completed(card: str, head: Metadata) -> str:
    """Returns a card's text whose own metadata lack licence or languages with those of `head`.

    Raises:
        InvalidInput: the card's metadata cannot be read.

    """
    from huggingface_hub import ModelCard

    own, _ = parse_metadata(card)
    given: dict[str, Any] = {}
    if "license" not in own and head.licence:
        given |= {"license": head.licence, "license_name": head.licence_name, "license_link": head.licence_link}
    if "language" not in own and head.languages:
        given["language"] = list(head.languages)
    if not given:
        return card
    try:
        made = ModelCard(card, ignore_metadata_errors=True)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise InvalidInput(f"{CARD}: its metadata cannot be read: {error}") from error
    for key, value in given.items():
        setattr(made.data, key, value or None)
    return str(made)


def _languages(cards: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The languages that cards name, as the Hub takes them: ISO 639 codes, `code`, `multilingual`."""
    found: list[str] = []
    for card in cards:
        value = card.get("language")
        found += [str(one).lower() for one in (value if isinstance(value, list) else [value]) if one]
    return tuple(dict.fromkeys(one for one in found if _LANGUAGE.fullmatch(one) or one in _OTHER_LANGUAGES))


def licence_section(plan: LicencePlan) -> list[str]:
    """Writes the part of a card on licences, as lines; empty where there are no sources."""
    if not plan.licences:
        return []
    rows = [f"| {_cell(name)} | {_cell(licence)} |" for name, licence in plan.licences.items()]
    conflicts = [f"* **Conflict, accepted by whoever made this model:** {text}" for text in plan.conflicts]
    lines = [*conflicts, *(f"* {text}" for text in (*plan.obligations, *plan.notes))]
    title = f"This model: {plan.title}." if plan.licence != UNKNOWN else "This model's licence is not known."
    return ["## Licences", "", "| source | licence |", "|---|---|", *rows, "", title, "", *lines, "", NO_ADVICE, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


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
