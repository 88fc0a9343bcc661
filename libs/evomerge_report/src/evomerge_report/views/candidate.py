"""A candidate: its recipe, what each source gives to each layer, and its answers beside those of the sources."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge_common.domain.methods import find_traits
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import NotFound, RecipeError
from evomerge_report.items import shown
from evomerge_report.queries import Queries
from evomerge_report.recipe_words import recipe_words, recipe_yaml
from evomerge_report.rows import CandidateRow, RunRow
from evomerge_report.shares import shares_of
from evomerge_report.views.numbers import HALF_WIDTH, rounded

SPLITS = ("search", "holdout")
MOST_ITEMS = 2000
"""Of a task so many items are shown."""
MOST_RELATIVES = 60
Scores = Mapping[str, Mapping[int, float]]
"""Task → place in the split → score."""


def candidate_view(queries: Queries, run_id: str, digest: str) -> dict[str, Any]:
    """Gathers one candidate; `items_view` has the texts that go with it.

    Returns:
        `run`: `run_id`, `name`, `ended`, `champion`.
        `candidate`: `index`, `digest`, `name`, `operator`, `method`, `generation`, `state`, `rank` (null: no fitness),
        `fitness`, `estimate`, `holdout`, `items` (of a race).
        `recipe`: `words`, `yaml`, `shares` (`sources`, `rows` of `name`, `origin` and `shares`; `exact`; `sums`:
        whether they are factors of changes); null where the recipe cannot be read.
        `models`: name and digest of this candidate, then of each source.
        `tasks`: `task`, and of each split `score` with `low` and `high` (95%, by the items' variance) and `items`.
        `scores`: split → task → `places` and, for each of `models`, the `scores` at these places (null: not scored).
        `against`: of each split and source `wins`, `losses`, `ties`, `difference`, `low`, `high` by task.
        `answers`: `split`, `task`, `place`, `texts` (of each of `models`; null: not recorded).
        `parents`, `children`: `digest`, `name`, `operator`, `fitness`.
        What is of the holdout is there once the run has ended.

    Raises:
        NotFound: the log has no such run or candidate.

    """
    run = queries.run(run_id)
    own = queries.candidate(run_id, digest)
    if own is None:
        raise NotFound(f"run {run_id} has no candidate {digest[:80]!r}; `evomerge runs events` names them all")
    sources = [one for one in queries.sources(run_id) if one.digest != digest]
    models = [own, *sources]
    splits = SPLITS if run.has_ended else SPLITS[:1]
    scores = {split: [queries.placed_items(run_id, one.digest, split) for one in models] for split in splits}
    return {
        "run": {"run_id": run_id, "name": run.name, "ended": run.has_ended,
                "champion": run.champion},
        "candidate": {
            "index": own.index, "digest": own.digest, "name": own.name, "operator": own.operator, "method": own.method,
            "generation": own.generation, "state": own.state, "rank": queries.rank(run_id, own),
            "fitness": rounded(own.fitness), "estimate": rounded(own.estimate), "items": own.items,
            "holdout": rounded(own.holdout) if run.has_ended else None,
        },
        "recipe": _recipe(queries, run_id, digest),
        "models": [{"digest": one.digest, "name": one.name} for one in models],
        "tasks": [
            {"task": task, **{split: _interval([*one[0].get(task, {}).values()]) for split, one in scores.items()}}
            for task in _tasks(run, scores)
        ],
        "scores": {split: _table(found) for split, found in scores.items()},
        "against": {
            split: [
                {"digest": source.digest, "name": source.name,
                 "tasks": {task: _compared(found[0].get(task, {}), found[place].get(task, {}))
                           for task in _tasks(run, scores)}}
                for place, source in enumerate(sources, start=1)
            ]
            for split, found in scores.items()
        },
        "answers": _answers(queries, run_id, [one.digest for one in models], splits),
        "parents": [_relative(one) for one in (queries.candidate(run_id, key) for key in own.parents) if one],
        "children": [_relative(one) for one in queries.children(run_id, digest, limit=MOST_RELATIVES)],
    }  # fmt: skip


def items_view(suite: Suite, *, ended: bool) -> dict[str, dict[str, list[list[str]]]]:
    """Gathers the texts of a suite's items: split → task → [id, text, right answer] in the split's order.

    Args:
        suite: of the run.
        ended: whether the run has; only then the texts of held-out items are there, for what people see they may
            act on.

    """
    splits = SPLITS if ended else SPLITS[:1]
    return {
        split: {
            task.name: [[one.id, *shown(one)] for one in suite.items(task, split)[:MOST_ITEMS]] for task in suite.tasks
        }
        for split in splits
    }


def _recipe(queries: Queries, run_id: str, digest: str) -> dict[str, Any] | None:
    try:
        recipe = Recipe.from_json(queries.recipe(run_id, digest))
    except RecipeError:
        return None  # of another version
    layers = max((model["num_layers"] for model in queries.models(run_id).values()), default=0)
    table = shares_of(recipe, layers)
    traits = find_traits(recipe.method)
    return {
        "words": recipe_words(recipe, table),
        "yaml": recipe_yaml(recipe),
        "shares": {
            "sources": table.sources,
            "rows": [{"name": row.name, "origin": row.origin, "shares": row.shares} for row in table.rows],
            "exact": table.is_exact,
            "sums": traits is not None and traits.is_sum,
        },
    }


def _tasks(run: RunRow, scores: Mapping[str, Sequence[Scores]]) -> list[str]:
    """The suite's tasks in its order; of an old log those that anything has a score of."""
    known = [one[0] for one in json.loads(run.tasks_json)]
    return known or list(dict.fromkeys(task for found in scores.values() for one in found for task in one))


def _interval(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean of item scores with a normal 95% interval."""
    if not values:
        return None
    mean = sum(values) / len(values)
    error = _error(values, mean)
    return {"score": rounded(mean), "low": rounded(None if error is None else mean - HALF_WIDTH * error),
            "high": rounded(None if error is None else mean + HALF_WIDTH * error), "items": len(values)}  # fmt: skip


def _error(values: Sequence[float], mean: float) -> float | None:
    if len(values) < 2:
        return None
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _compared(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any] | None:
    """Wins, losses and ties over the items that both have scores of, and the paired difference."""
    both = [(ours[place], theirs[place]) for place in ours if place in theirs]
    if not both:
        return None
    apart = _interval([a - b for a, b in both])
    assert apart is not None, "there are items"
    return {
        "wins": sum(a > b for a, b in both), "losses": sum(a < b for a, b in both),
        "ties": sum(a == b for a, b in both), "difference": apart["score"], "low": apart["low"], "high": apart["high"],
    }  # fmt: skip


def _table(found: Sequence[Scores]) -> dict[str, Any]:
    """Item scores in rows: those that this candidate has, or where it has none of a task, all of the sources'."""
    tasks = dict.fromkeys(task for one in found for task in one)
    table = {}
    for task in tasks:
        places = sorted(found[0].get(task) or {place for one in found for place in one.get(task, {})})[:MOST_ITEMS]
        table[task] = {
            "places": places,
            "scores": [[rounded(one.get(task, {}).get(place)) for place in places] for one in found],
        }
    return table


def _answers(queries: Queries, run_id: str, digests: Sequence[str], splits: Sequence[str]) -> list[dict[str, Any]]:
    found = queries.answers(run_id, digests)
    rows = sorted({key[1:] for key in found if key[1] in splits}, key=lambda key: (splits.index(key[0]), *key[1:]))
    return [
        {"split": split, "task": task, "place": place,
         "texts": [found.get((digest, split, task, place)) for digest in digests]}
        for split, task, place in rows
    ]  # fmt: skip


def _relative(one: CandidateRow) -> dict[str, Any]:
    return {"digest": one.digest, "name": one.name, "operator": one.operator, "fitness": rounded(one.fitness)}
