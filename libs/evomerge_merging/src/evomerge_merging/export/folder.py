"""What stands beside a finished model's weights: its recipe, and a model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge_common.domain.licences import LicencePlan, by_source, combine
from evomerge_common.domain.recipe import Recipe
from evomerge_merging.engine.plan import Plan
from evomerge_merging.io.writer import write_text
from evomerge_merging.recipes.to_yaml import recipe_to_mergekit
from evomerge_models import card as cards
from evomerge_models.store import licence_at

MERGEKIT_FILE = "mergekit_config.yml"


def write_card(recipe: Recipe, plan: Plan, folder: Path, card: str = "") -> None:
    """Writes recipe.json, mergekit_config.yml where mergekit has words for it, and README.md (`card`, or one made)."""
    write_text(folder / "recipe.json", json.dumps(recipe.to_dict(), indent=2, sort_keys=True) + "\n")
    if config := recipe_to_mergekit(recipe):
        write_text(folder / MERGEKIT_FILE, config)
    if not card:
        notes = [plan.public(note) for note in plan.notes]
        licences = licences_of(plan)
        card = model_card(recipe, metadata_of(recipe, plan, folder).under(licences), licences, notes)
    write_text(folder / cards.CARD, card)


def licences_of(plan: Plan) -> LicencePlan:
    """What the licences of a merge's sources mean for its result."""
    return combine(by_source((plan.public(label), licence_at(folder)) for label, folder in plan.folders.items()))


def metadata_of(recipe: Recipe, plan: Plan, folder: Path) -> cards.Metadata:
    """The head of the card of a finished model's folder, but for the licence."""
    library, task = cards.of_folder(folder)
    head = cards.Metadata(
        base_models=cards.hub_ids(recipe.sources()),
        library=library,
        pipeline_tag=task,
        tags=("merge", "evomerge", *(["mergekit"] if (folder / MERGEKIT_FILE).exists() else [])),
    )
    return head.drawn_from(cards_of(plan))


def cards_of(plan: Plan) -> dict[str, dict[str, Any]]:
    """Source (see `by_source`) → metadata of the card in its folder."""
    return by_source((plan.public(label), cards.metadata_of_source(folder)) for label, folder in plan.folders.items())


def model_card(recipe: Recipe, metadata: cards.Metadata, licences: LicencePlan, notes: Sequence[str] = ()) -> str:
    """README.md of a model made by a recipe: front matter as the Hub reads it, what went in, and how.

    `notes` say what was kept, adapted or left out.
    """
    public = recipe.public
    config = recipe_to_mergekit(public)
    language, text = ("yaml", config) if config else ("json", json.dumps(public.to_dict(), indent=2) + "\n")
    lines = [
        metadata.front_matter(),
        "# Merged model",
        "",
        f"Made by EvoMerge with the method `{recipe.method}` from:",
        "",
        *(f"* {source}" + (f" (`{source.digest}`)" if source.digest else "") for source in public.sources()),
        "",
        *(["What was kept, adapted or left out:", "", *(f"* {note}" for note in notes), ""] if notes else []),
        *cards.licence_section(licences),
        "## Recipe",
        "",
        f"The recipe below is the model's identity (digest `{recipe.digest}`): it makes the same weights again.",
        "",
        f"```{language}",
        text.rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)
