"""A run: all its candidates, the champion beside the best source of each task, drift, work."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

from evomerge_common.domain.history import mean_curve
from evomerge_report.history import short_name
from evomerge_report.queries import Queries
from evomerge_report.rows import RunRow
from evomerge_report.specialists import NOTE, bounds, difference
from evomerge_report.styles import looks
from evomerge_report.views.numbers import HALF_WIDTH, rounded, standard_error
from evomerge_report.views.runs import run_summary

COLUMNS = ("index", "digest", "name", "operator", "method", "generation", "state", "fitness", "estimate", "low", "high",
           "items", "holdout", "parents", "scores")  # fmt: skip
"""Of `candidates`: `parents` are indices, `scores` those of the tasks in their order; `low` and `high` are a 95%
interval of the fitness: of one that was stopped the race's, else a normal one by the items' variance."""
SEARCH_NOTE = (
    "The champion was picked on these items, which favours it, and so was the best source of each task; each interval "
    "is a 95% one of its task alone. Only held-out items prove anything: they are scored at the end."
)
"""What to mind while a run is under way."""
MOST_STRETCHES = 60
"""Stretches of the search that drift is told in, at most."""


def run_view(queries: Queries, run_id: str, *, since: int = 0) -> dict[str, Any]:
    """Gathers a run, or what has changed of it since a sequence number of the log.

    Returns:
        `run`: see `run_summary`.
        `sequence`, `since`: up to where, and from where on; 0: all candidates are here. A `since` beyond the log's end
        (of another log) counts as 0.
        `tasks`: `name`, `weight` (null: the log does not say), `items` (search).
        `operators`: operator → [colour on light ground, on dark ground, shape], of all candidates so far.
        `models`: `reference`, `name`, `architecture`, `parameters`, `layers`, `bytes`, `commit`, `licence`.
        `candidates`: `{"columns": COLUMNS, "rows": [[…], …]}`, those with a change after `since`.
        `mean`: `{"from": index, "index": […], "value": […]}`, the mean of the last generation's places as it stood
        after each candidate, from an index on.
        `generations`: `generation`, `evaluated`, `best`, `mean`, `diversity`, of those completed after `since`.
        `per_task`: see `per_task`.
        `drift`: see `drift`.
        `work`: see `work`.
        `failures`: the latest after `since`, newest first: `sequence`, `kind`, `digest`, `split`, `reference`, `type`,
        `message`.
        `notes`, `exports` (`digest`, `format`, `uri`, `bytes`): what the log says, in order.

    Raises:
        NotFound: the log has no such run.

    """
    run = queries.run(run_id)
    since = since if 0 < since <= run.sequence else 0
    tasks = tasks_of(queries, run)
    rows = _rows(queries, run, [task["name"] for task in tasks], weights_of(tasks), since)
    return {
        "run": run_summary(run),
        "sequence": run.sequence,
        "since": since,
        "tasks": tasks,
        "operators": looks(queries.operators(run_id)),
        "models": [
            {"reference": model["reference"], "name": short_name(model["reference"]),
             "architecture": model["architecture"], "parameters": model["parameters"], "layers": model["num_layers"],
             "bytes": model["bytes"], "commit": model["commit_hash"], "licence": model["licence"]}
            for model in queries.models(run_id).values()
        ],
        "candidates": {"columns": COLUMNS, "rows": rows},
        "mean": _mean(queries, run, min((row[0] for row in rows), default=run.proposed) if since else 0),
        "generations": queries.generations(run_id, since=since),
        "per_task": per_task(queries, run, tasks),
        "drift": drift(queries, run),
        "work": work(queries, run),
        "failures": queries.failures(run_id, since=since),
        "notes": queries.notes(run_id),
        "exports": queries.exports(run_id),
    }  # fmt: skip


def tasks_of(queries: Queries, run: RunRow) -> list[dict[str, Any]]:
    """Lists the suite's tasks in its order; of an old log, which does not say, those of the scores."""
    known = json.loads(run.tasks_json)
    if known:
        return [{"name": name, "weight": weight, "items": items} for name, weight, items in known]
    first = next(iter(queries.leaderboard(run.run_id, limit=1)), None)
    return [{"name": one.task, "weight": None, "items": None} for one in (first.scores if first else ())]


def weights_of(tasks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns task → weight, as far as the log says."""
    return {task["name"]: task["weight"] for task in tasks if task["weight"] is not None}


def _rows(
    queries: Queries, run: RunRow, tasks: Sequence[str], weights: Mapping[str, float], since: int
) -> list[list[Any]]:
    scores, variances = queries.task_scores(run.run_id, since=since), queries.variances(run.run_id, since=since)
    places, rows = queries.places(run.run_id), []
    for row in queries.table(run.run_id, since=since):
        digest, fitness, low, high = row["digest"], row["fitness"], row["low"], row["high"]
        if fitness is not None and (error := standard_error(variances.get(digest, {}), weights)) is not None:
            low, high = round(fitness - HALF_WIDTH * error, 6), round(fitness + HALF_WIDTH * error, 6)
        name = short_name(row["source"]) if row["source"] else f"#{row['place']} {row['method']}".strip()
        parents = [places[one] for one in json.loads(row["parents"]) if one in places] if row["parents"] != "[]" else []
        own = scores.get(digest, {})
        rows.append([row["place"], digest, name, row["operator"], row["method"], row["generation"], row["state"],
                     fitness, row["estimate"], low, high, row["items"], row["holdout"], parents,
                     [own.get(task) for task in tasks]])  # fmt: skip
    return rows


def _mean(queries: Queries, run: RunRow, start: int) -> dict[str, Any]:
    """The mean after each candidate from `start` on, which those of one population before it take part in."""
    points = queries.estimates(run.run_id, after=start - run.population - 1)
    curve = mean_curve(points, population=run.population)
    shown = [(index, rounded(value)) for (index, _), value in zip(points, curve, strict=True) if index >= start]
    return {"from": start, "index": [index for index, _ in shown], "value": [value for _, value in shown]}


def per_task(queries: Queries, run: RunRow, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compares the champion with the source that is best on each task, item by item.

    Returns:
        `split`: holdout, once both are scored there; else search, which the selection saw.
        `note`: what to mind.
        `tasks`: `task`, `champion` and `source` (scores), `against` (the source), `digest` (its candidate),
        `difference` with `low` and `high` (95%, paired bootstrap), `wins`, `losses`, `ties`, `worse` and `better`
        (beyond the interval). Tasks without item scores on both sides are left out.

    """
    sources = queries.sources(run.run_id)
    champion = queries.candidate(run.run_id, run.champion)
    proven = champion is not None and champion.holdout is not None and any(one.holdout is not None for one in sources)
    split = "holdout" if proven else "search"
    ours = queries.items(run.run_id, run.champion, split)
    theirs = [(one, queries.items(run.run_id, one.digest, split)) for one in sources]
    found = []
    for name in (task["name"] for task in tasks):
        mine = ours.get(name)
        rivals = [(fmean(items[name]), one, items[name]) for one, items in theirs if items.get(name)]
        if not mine or not rivals:
            continue
        score, source, others = max(rivals, key=lambda rival: rival[0])
        if len(others) == len(mine):
            pair = _compared(mine.tobytes(), others.tobytes(), run.seed)
            found.append({"task": name, "champion": rounded(fmean(mine)), "source": rounded(score),
                          "against": source.name, "digest": source.digest, **pair})  # fmt: skip
    return {"split": split, "note": NOTE if proven else SEARCH_NOTE, "tasks": found}


@lru_cache(maxsize=256)
def _compared(ours: bytes, theirs: bytes, seed: int) -> dict[str, Any]:
    """The paired comparison of two rows of item scores; it is asked for again with each look at a run."""
    pairs = list(zip(memoryview(ours).cast("d"), memoryview(theirs).cast("d"), strict=True))
    apart = difference({"": [a for a, _ in pairs]}, {"": [b for _, b in pairs]}, {"": 1.0}, seed)
    low, high = bounds(apart) if apart else (None, None)
    return {
        "difference": rounded(apart.mean) if apart else None,
        "low": rounded(low),
        "high": rounded(high),
        "wins": sum(a > b for a, b in pairs),
        "losses": sum(a < b for a, b in pairs),
        "ties": sum(a == b for a, b in pairs),
        "worse": high is not None and high < 0,
        "better": low is not None and low > 0,
    }


def drift(queries: Queries, run: RunRow) -> dict[str, Any]:
    """Tells what the search proposes, stretch by stretch.

    Returns:
        `width`: places of a stretch: a generation's, or more where there are many.
        `stretches`: their numbers; stretch n has the places from n × width on.
        `methods`, `operators`: name → share of each stretch's candidates.
        `genes`: name → mean in each stretch, null where it has none.

    """
    population = max(1, run.population)
    width = population * max(1, -(-run.proposed // (population * MOST_STRETCHES)))
    operators, methods = queries.shares(run.run_id, "operator", width), queries.shares(run.run_id, "method", width)
    stretches = list(dict.fromkeys(stretch for stretch, _, _ in operators))
    called = _ingredients(queries, run)
    genes: dict[str, dict[int, float]] = {}
    for gene, stretch, mean in queries.genes(run.run_id, width):
        genes.setdefault(called.get(gene, gene), {})[stretch] = mean
    return {
        "width": width,
        "stretches": stretches,
        "operators": _shares(operators, stretches),
        "methods": _shares(methods, stretches),
        "genes": {name: [rounded(means.get(one)) for one in stretches] for name, means in genes.items()},
    }


def _shares(counts: Sequence[tuple[int, str, int]], stretches: Sequence[int]) -> dict[str, list[float]]:
    totals: Counter[int] = Counter()
    found: dict[str, dict[int, int]] = {}
    for stretch, name, count in counts:
        totals[stretch] += count
        found.setdefault(name, {})[stretch] = count
    return {name: [round(own.get(one, 0) / totals[one], 4) for one in stretches] for name, own in found.items() if name}


def _ingredients(queries: Queries, run: RunRow) -> dict[str, str]:
    """Genes that speak of an ingredient, by its name: the run's models in their order."""
    names = [one.name for one in queries.sources(run.run_id)]
    return {f"{gene} {place}": f"{gene} of {name}" for gene in ("weight", "mask") for place, name in enumerate(names)}


def work(queries: Queries, run: RunRow) -> dict[str, Any]:
    """Tells who worked, what it took, and what waits, as far as the log says.

    Returns:
        `kinds`: `kind`, `jobs`, `seconds` (computing, all together), `latest` (mean seconds of the last twenty),
        `waiting` (candidates that wait for it, or are in work).
        `workers`: `worker`, `kind`, `jobs`, `seconds`, `last_at`.
        `devices`, `items` (computed), `cached` (evaluations that were known), `per_minute` (candidates scored, over
        the last twenty), `left_seconds` (until the budget is used at that pace; null when it cannot be said).

    """
    done = queries.work(run.run_id)
    waiting = {"merge": run.states.get("proposed", 0), "evaluate": run.states.get("merged", 0)}
    kinds = []
    for kind in ("download", "merge", "evaluate", "export"):
        own = [one for one in done if one["kind"] == kind]
        latest = [seconds for seconds, _ in queries.latest_work(run.run_id, kind)]
        if own or waiting.get(kind):
            kinds.append({"kind": kind, "jobs": sum(one["jobs"] for one in own),
                          "seconds": rounded(sum(one["seconds"] for one in own)),
                          "latest": rounded(fmean(latest)) if latest else None,
                          "waiting": 0 if run.has_ended else waiting.get(kind, 0)})  # fmt: skip
    pace = _pace(queries, run)
    left = run.budget - run.evaluated - run.stopped
    return {
        "kinds": kinds,
        "workers": [{"worker": one["worker"], "kind": one["kind"], "jobs": one["jobs"],
                     "seconds": rounded(one["seconds"]), "last_at": one["last_at"]} for one in done if one["worker"]],
        "devices": sorted({name for one in done for name in [one["devices"]] if name}),
        "items": sum(one["items"] for one in done),
        "cached": sum(one["cached"] for one in done),
        "per_minute": None if pace is None else rounded(60.0 * pace),
        "left_seconds": rounded(left / pace) if pace and left > 0 and not run.has_ended else None,
    }  # fmt: skip


def _pace(queries: Queries, run: RunRow) -> float | None:
    ends = [ended for _, ended in queries.latest_work(run.run_id, "evaluate")]
    span = ends[0] - ends[-1] if len(ends) > 1 else 0.0
    return (len(ends) - 1) / span if span > 0 else None
