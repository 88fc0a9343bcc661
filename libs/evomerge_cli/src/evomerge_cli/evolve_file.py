"""mergekit-evolve's file as a run spec: its genome, its tasks, and its search.

    genome: {models, merge_method, base_model, layer_granularity, …}
    tasks: [{name, weight, metric}]          # of lm-evaluation-harness

The search is theirs: CMA-ES over the weights (and densities) of the one method, a hundred candidates unless told
otherwise. What of the file has no counterpart here is told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge_common.domain.fields import Fields
from evomerge_common.domain.methods import searchable_methods, traits_of
from evomerge_common.errors import SpecError, did_you_mean
from evomerge_scoring.kinds.lm_eval import PERPLEXITIES

KEYS = (
    "genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init", "apply_chat_template", "fewshot_as_multiturn",
)  # fmt: skip
GENOME_KEYS = (
    "models", "merge_method", "base_model", "tokenizer_source", "layer_granularity", "normalize",
    "allow_negative_weights", "filters", "smooth",
)  # fmt: skip
TASK_KEYS = ("name", "weight", "metric")
EVALUATIONS = 100
"""mergekit-evolve's own default (--max-fevals)."""
_NOT_SEARCHED = {
    "tokenizer_source": "candidates have the base's tokenizer, else the first model's",
    "allow_negative_weights": "weights lie between 0 and 1.5",
    "filters": "all tensors of a layer group have one weight",
    "smooth": "a layer group has one weight",
}
_NOT_DONE = {
    "random_init": "the search begins at equal weights",
    "shuffle": "an item belongs to its split by its content, not by its place",
}


def is_evolve_file(data: Any) -> bool:
    """Tells whether a document is mergekit-evolve's."""
    return isinstance(data, Mapping) and "genome" in data and "models" not in data


def read_evolve(data: Mapping[str, Any], notes: list[str], task_folders: Sequence[Path] = ()) -> dict[str, Any]:
    """Reads the run spec that the file means, as data, with its suite (whose places in the file are the same).

    Args:
        data: the file's.
        notes: gets what people should know of the reading.
        task_folders: of task files of one's own; a task that is in none of them is the harness's.

    Raises:
        SpecError: unknown keys, no models, a method that cannot be searched; with its place in the file.

    """
    own = Fields.of(data, KEYS)
    genome = Fields.of(data["genome"], GENOME_KEYS, own.at("genome"))
    method = _method(genome)
    granularity = genome.integer("layer_granularity", 0)
    spec: dict[str, Any] = {
        "models": list(genome.texts("models", "must be a list of models: hub ids or folders")),
        "search": {
            "strategy": "cmaes",
            "methods": [method],
            "evaluations": EVALUATIONS,
            "genes": [],
            **({"layer_granularity": granularity} if granularity > 0 else {"layer_groups": 1}),
        },
        "suite": {"tasks": [_placed(task, task_folders) for task in _tasks(own, notes)]},
    }
    if "base_model" in genome:
        spec["base"] = genome.text("base_model")
    notes.append(
        f"mergekit-evolve's file: CMA-ES over the weights of {method}, {EVALUATIONS} evaluations unless --evaluations "
        "says otherwise, as there; 30% of the items are held out to prove the champion"
    )
    for fields, reasons in ((genome, _NOT_SEARCHED), (own, _NOT_DONE)):
        notes += [f"{key} has no effect: {reason}" for key, reason in reasons.items() if fields.data.get(key)]
    settings = traits_of(method).settings
    normalize = genome.optional_flag("normalize")
    if normalize is not None and normalize != settings.get("normalize", normalize):
        notes.append(f"normalize: {str(normalize).lower()} has no effect: the search has {method} the other way")
    return spec


def _method(genome: Fields) -> str:
    method = genome.text("merge_method")
    known = [name for name in searchable_methods() if traits_of(name).weights]
    if method not in known:
        raise genome.wrong(f"CMA-ES searches weights, and {method!r} has none; {did_you_mean(method, known)}",
                           "merge_method")  # fmt: skip
    return method


def _tasks(own: Fields, notes: list[str]) -> list[dict[str, Any]]:
    chat = own.optional_flag("apply_chat_template")
    if chat is None:
        notes.append(
            "apply_chat_template is not given: prompts are put as they are (mergekit-evolve 0.1.5 applies the "
            "template; say `true` for that)"
        )
    if chat and own.optional_flag("fewshot_as_multiturn") is False:
        notes.append("fewshot_as_multiturn: false has no effect: with a chat template examples are turns of their own")
    shared: dict[str, Any] = {"kind": "lm_eval", "chat": bool(chat)}
    shared |= {key: own.integer(key, 0) for key in ("limit", "num_fewshot") if key in own}
    entries = [Fields.of(one, TASK_KEYS, (*own.at("tasks"), i)) for i, one in enumerate(own.entries("tasks"))]
    counts = Counter(entry.text("name") for entry in entries)
    return [{**_task(entry, counts, notes), **shared} for entry in entries]


def _task(entry: Fields, counts: Counter[str], notes: list[str]) -> dict[str, Any]:
    name = entry.text("name")
    if not name:
        raise entry.wrong("a task needs the name of one of lm-evaluation-harness's tasks", "name")
    metric, _, chosen = entry.text("metric", "acc,none").partition(",")
    weight = entry.number("weight", 1.0)
    if weight < 0 and metric in PERPLEXITIES:
        weight = -weight
        notes.append(f"{name}: {metric} is scored so that more is better, so its weight counts as {weight:g}")
    if weight < 0:
        raise SpecError(
            f"a weight below zero asks for less of {metric!r}; give a metric of which more is better",
            entry.at("weight"),
        )
    return {
        "name": name if counts[name] == 1 else f"{name} {metric}", "task": name, "weight": weight, "metric": metric,
        **({"filter": chosen} if chosen and chosen != "none" else {}),
    }  # fmt: skip


def _placed(task: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """The task with the folder whose files define it."""
    named = re.compile(rf"^(task|group|tag):\s*['\"]?{re.escape(task['task'])}['\"]?\s*$", re.MULTILINE)
    for folder in folders:
        if not folder.is_dir():
            raise SpecError(f"{folder} is no folder of task files; give one to --task-search-path")
        for path in sorted((*folder.rglob("*.yaml"), *folder.rglob("*.yml"))):
            if named.search(path.read_text("utf-8", "replace")):
                return {**task, "folder": str(folder.resolve())}
    return task
