"""The merge engine of EvoMerge.

    report = merge_recipe(read_recipe_file(Path("recipe.yml")), {}, Path("out"))

or in steps: `read_recipe_file` or `read_recipe_text` (EvoMerge's or mergekit's YAML) → `plan_merge` (headers only) →
`execute` (writes a model folder) or `merge_in_memory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evomerge_common.domain.recipe import Recipe
from evomerge_merging.engine.execute import MAX_SHARD_BYTES, MergeReport, Progress, execute, merge_in_memory, merge_into
from evomerge_merging.engine.plan import Plan, plan_merge
from evomerge_merging.export.folder import write_card
from evomerge_merging.lora.extract import AdapterReport, export_adapter, extract_lora
from evomerge_merging.recipes.check import check_recipe
from evomerge_merging.recipes.from_yaml import read_recipe_file, read_recipe_text
from evomerge_merging.recipes.to_yaml import recipe_to_mergekit
from evomerge_merging.state_dicts.masking import mask_input_with_mask_rate, mask_model_weights, mask_task_vector
from evomerge_merging.state_dicts.task_vector import TaskVector

__all__ = [
    "AdapterReport",
    "MergeReport",
    "Plan",
    "TaskVector",
    "check_recipe",
    "execute",
    "export_adapter",
    "extract_lora",
    "mask_input_with_mask_rate",
    "mask_model_weights",
    "mask_task_vector",
    "merge_in_memory",
    "merge_into",
    "merge_recipe",
    "plan_merge",
    "read_recipe_file",
    "read_recipe_text",
    "recipe_to_mergekit",
    "write_card",
]


def merge_recipe(
    recipe: Recipe,
    models: Mapping[str, Path],
    out_dir: Path,
    *,
    threads: int = 2,
    progress: Progress | None = None,
    card: str = "",
    staged: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> MergeReport:
    """One merge from recipe to folder, with recipe.json, mergekit_config.yml where it can be said so, and a model card.

    Args:
        recipe: what to make.
        models: folder of each source by `ModelReference.key`; what is not in it is taken as a local folder.
        out_dir: must not exist, or be empty.
        threads: of the merge.
        progress: called with (bytes done, bytes in all).
        card: text of README.md; empty: one is made from the recipe.
        staged: `out_dir` is the caller's own temporary folder (see `execute`).
        max_shard_bytes: of one weight file, where no single tensor is larger.

    Raises:
        InvalidInput, ResourceExhausted: see `plan_merge` and `execute`; nothing is left under `out_dir`.

    """
    with plan_merge(recipe, models) as plan:
        return execute(
            plan,
            out_dir,
            threads=threads,
            progress=progress,
            staged=staged,
            max_shard_bytes=max_shard_bytes,
            extras=lambda folder: write_card(recipe, plan, folder, card),
        )
