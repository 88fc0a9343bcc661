"""The champion to look at, as result.json and the card have it: its recipe in words, and some answers."""

from __future__ import annotations

from typing import Any

from evomerge_common.domain.suite import Suite
from evomerge_report.history import Candidate, History, short_name
from evomerge_report.items import shown
from evomerge_report.recipe_words import recipe_words
from evomerge_report.shares import shares_of
from evomerge_report.specialists import answers_of

MOST_SAMPLES = 4


def recipe_of(champion: Candidate, history: History) -> dict[str, Any]:
    """Tells the recipe in `words`, and in `shares` what each source gives to each layer; see `shares.Table`."""
    if champion.recipe is None:
        return {"words": [], "shares": None}
    layers = max((model.num_layers for model in history.models.values()), default=0)
    table = shares_of(champion.recipe, layers)
    rows = [{"name": row.name, "origin": row.origin, "shares": list(row.shares)} for row in table.rows]
    return {
        "words": recipe_words(champion.recipe, table),
        "shares": {"sources": list(table.sources), "rows": rows, "exact": table.is_exact},
    }


def samples_of(history: History, suite: Suite) -> list[dict[str, Any]]:
    """Tells what champion and sources wrote to the first search item of each task that generates."""
    champion = history.champion
    if champion is None:
        return []
    models = [("champion", champion)] + [(short_name(history.model_of(one).reference), one) for one in history.sources]
    found: list[dict[str, Any]] = []
    for task in suite.tasks:
        written = {name: answers_of(one, task) for name, one in models}
        place = next(iter(written["champion"]), None)
        items = suite.items(task, "search")
        if place is None or place >= len(items) or len(found) == MOST_SAMPLES:
            continue
        asked, right = shown(items[place])
        answers = {name: texts[place] for name, texts in written.items() if place in texts}
        found.append({"task": task.name, "item": items[place].id, "asked": asked, "right": right, "answers": answers})
    return found
