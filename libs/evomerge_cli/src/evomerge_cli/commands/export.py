"""`evomerge export`: a run's champion, a recipe, or a model folder as a finished Hugging Face folder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

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
