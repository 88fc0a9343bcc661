"""What stands beside a finished model's weights: its recipe, and a model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_merging.io.writer import write_text
from evomerge_merging.recipes.to_yaml import recipe_to_mergekit


def model_card(recipe: Recipe, notes: Sequence[str] = ()) -> str:
    """README.md of a model made by a recipe: front matter as the Hub reads it, what went in, and how.

    `notes` say what was kept, adapted or left out.
    """
    sources = recipe.sources()
    front = {
        "base_model": [public_name(source) for source in sources],
        "library_name": "transformers",
        "tags": ["merge", "evomerge"],
    }
    spoken = recipe_to_mergekit(recipe)
    language, text = ("yaml", spoken) if spoken else ("json", json.dumps(recipe.to_dict(), indent=2) + "\n")
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        "# Merged model",
        "",
        f"Made by EvoMerge with the method `{recipe.method}` from:",
        "",
        *(f"* {public_name(source)}" + (f" (`{source.digest}`)" if source.digest else "") for source in sources),
        "",
        *(["What was kept, adapted or left out:", "", *(f"* {note}" for note in notes), ""] if notes else []),
        f"The recipe below is the model's identity (digest `{recipe.digest}`): it makes the same weights again.",
        "",
        f"```{language}",
        text.rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def public_name(source: ModelReference) -> str:
    """A hub id as it is; of a local folder its own name, which is all that means something elsewhere."""
    local = source.name.startswith((".", "/", "~")) or source.name.count("/") > 1
    return Path(source.name).name if local else source.name


def write_card(recipe: Recipe, folder: Path, card: str = "", notes: Sequence[str] = ()) -> None:
    """Writes recipe.json, mergekit_config.yml where mergekit has words for it, and README.md (`card`, or one made)."""
    write_text(folder / "recipe.json", json.dumps(recipe.to_dict(), indent=2, sort_keys=True) + "\n")
    spoken = recipe_to_mergekit(recipe)
    if spoken:
        write_text(folder / "mergekit_config.yml", spoken)
    write_text(folder / "README.md", card or model_card(recipe, notes))
