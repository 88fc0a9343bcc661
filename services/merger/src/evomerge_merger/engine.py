"""What runs in the merger's child process: the only code of this service that touches torch."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from evomerge_common.domain.recipe import Recipe
from evomerge_common.runtime.spans import span
from evomerge_models.gguf.quantizer import check_type

MAX_NOTES = 50
GGUF_NAME = "champion"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads: no spinning beside the evaluator


_warm = False
_importing: threading.Thread | None = None


def initialise(warm: bool) -> None:
    """Prepares the process. With `warm`, torch is imported beside the first merges, which mostly need none."""
    global _warm  # noqa: PLW0603 - one process, one engine
    _warm = warm


def _import_beside() -> None:
    global _importing  # noqa: PLW0603
    if _warm and _importing is None:
        from evomerge_merging.torch_later import torch

        _importing = threading.Thread(target=getattr, args=(torch, "Tensor"), daemon=True)
        _importing.start()


def merge(recipe_json: str, models: Mapping[str, str], out: str, threads: int) -> tuple[int, tuple[str, ...]]:
    """Writes a candidate's weights into `out`, an empty folder; returns their bytes and what there is to say."""
    from evomerge_merging import execute, plan_merge

    with ExitStack() as stack:
        with span("plan"):  # reads headers
            plan = stack.enter_context(plan_merge(Recipe.from_json(recipe_json), _paths(models)))
        with span("execute", threads=threads):  # reads and writes, tensor by tensor
            result = execute(plan, Path(out), threads=threads, staged=True).bytes, plan.notes[:MAX_NOTES]
    _import_beside()
    return result


def export(
    recipe_json: str, models: Mapping[str, str], out: str, threads: int, card: str
) -> tuple[int, tuple[str, ...]]:
    """Writes a finished model with its recipe and card into `out`; returns its bytes, and what is to be said of it."""
    from evomerge_merging import merge_recipe

    recipe = Recipe.from_json(recipe_json)
    report = merge_recipe(recipe, _paths(models), Path(out), threads=threads, card=card, staged=True)
    return report.bytes, report.notes[:MAX_NOTES]


def export_gguf(
    recipe_json: str, models: Mapping[str, str], out: str, threads: int, kind: str
) -> tuple[int, tuple[str, ...]]:
    """Writes one GGUF file into `out`, named by its type, and a Modelfile; returns its bytes, and what is to be said.

    The weights are merged anew, into a folder beside it: the finished folder may be another worker's, and the same
    recipe makes the same weights.
    """
    from evomerge_merging import merge_recipe
    from evomerge_merging.export.gguf import export_gguf
    from evomerge_models.card import licence_of_folder
    from evomerge_models.gguf.modelfile import write_modelfile

    kind = check_type(kind or "auto")
    with tempfile.TemporaryDirectory(prefix="merged-", dir=out) as work:
        whole = Path(work) / GGUF_NAME
        merge_recipe(Recipe.from_json(recipe_json), _paths(models), whole, threads=threads)
        report = export_gguf(whole, Path(out) / f"{GGUF_NAME}.gguf", kind, name=GGUF_NAME, threads=threads)
        licence = licence_of_folder(whole)
    write_modelfile(report.path.rename(report.path.with_stem(f"{GGUF_NAME}-{report.type.upper()}")), licence=licence)
    return report.bytes, report.notes[:MAX_NOTES]


def validate(text: str) -> tuple[str, str, list[str], list[str]]:
    """Checks a client's recipe, EvoMerge's or mergekit's, against the registry; returns (JSON, digest, models, notes).

    Raises:
        RecipeError: it means nothing.

    """
    from evomerge_merging import read_recipe_text

    recipe = read_recipe_text(text)
    return recipe.to_json(), recipe.digest, [str(source) for source in recipe.sources()], list(recipe.notes)


def list_methods() -> list[tuple[str, str, list[tuple[str, str, str, bool]]]]:
    """Lists (name, summary, [(parameter, type, default, per model)]) of every merge method."""
    from evomerge_merging.methods import methods

    return [
        (
            one.name,
            one.summary,
            [
                (p.name, p.kind.__name__, "" if p.required else str(p.default), p.per_model)
                for p in one.parameters.values()
            ],
        )
        for one in methods().values()
    ]


def _paths(models: Mapping[str, str]) -> dict[str, Path]:
    return {key: Path(path) for key, path in models.items()}
