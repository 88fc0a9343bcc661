"""`evomerge export`: a run's champion, a recipe, or a model folder as a finished Hugging Face folder; or, of adapters
over one base, as one adapter.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from evomerge_cli.byte_progress import bytes_bar
from evomerge_cli.commands.extract_lora import tell
from evomerge_cli.commands.merge import fetch
from evomerge_cli.console import Console
from evomerge_cli.progress import stages
from evomerge_common.domain.recipe import ModelReference, Recipe
from evomerge_common.errors import InvalidInput


def run(args: argparse.Namespace, console: Console) -> int:
    """See the module's text."""
    from evomerge_merging import merge_recipe, read_recipe_yaml

    if args.gguf:
        raise InvalidInput("GGUF is not written yet; export a Hugging Face folder and convert it with llama.cpp")
    if args.adapter:
        return _adapter(args, console)
    if args.rank:
        raise InvalidInput("--rank belongs to --adapter")
    path = Path(args.model).expanduser()
    recipe = read_recipe_yaml(path) if path.is_file() else Recipe.of_source(ModelReference.parse(args.model))
    if args.dtype:
        recipe = replace(recipe, out_dtype=args.dtype)
    out = Path(args.out).expanduser()
    models = fetch(recipe.sources(), console, recipe.base)
    with stages(console, "exporting") as progress:
        report = merge_recipe(
            recipe, models, out, progress=lambda done, total: progress("exporting", done / max(1, total))
        )
    if not console.data({"out": str(out), "bytes": report.bytes, "parameters": report.parameters}):
        console.out(f"{out}: {report.parameters:,} parameters, {report.bytes:,} bytes")
    return 0


def _adapter(args: argparse.Namespace, console: Console) -> int:
    from evomerge_merging import export_adapter, read_recipe_yaml

    if args.dtype:
        raise InvalidInput("--dtype does not go with --adapter: its factors are float32")
    path = Path(args.model).expanduser()
    places = (path / "model" / "recipe.json", path / "recipe.json")
    found = next((place for place in places if place.is_file()), path)
    if not found.is_file():
        raise InvalidInput(f"{path} has no recipe.json; give a run's folder, a merged model's, or a recipe file")
    text = found.read_text("utf-8")
    recipe = Recipe.from_json(text) if found.suffix == ".json" else read_recipe_yaml(found)
    models = fetch(recipe.sources(), console, recipe.base)
    with bytes_bar(console, "exporting") as progress:
        report = export_adapter(recipe, Path(args.out).expanduser(), rank=args.rank, models=models, progress=progress)
    tell(report, console)
    return 0
