"""What searches on several folds show: whether the procedure, and not one champion, improves on its sources.

Each fold is held out by one search, so each item has one score of a champion that was not chosen by it, and one of the
source that was best for that search. Their differences over all items are one paired comparison (Stone 1974,
Cross-validatory choice and assessment of statistical predictions). Its interval speaks of the items: champions of
overlapping search items are alike, and what another seed would find is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from evomerge_common.domain.suite import Suite
from evomerge_common.ports import Recorded
from evomerge_report.history import history_of
from evomerge_report.result import best_source, improvement, weights_of
from evomerge_report.specialists import bounds, difference, items_of


def folds_of(folds: Iterable[tuple[Sequence[Recorded], Suite]], seed: int) -> dict[str, Any] | None:
    """Gathers plain data for result.json; None where no fold is proven.

    Args:
        folds: log of each fold's search, and the suite that holds it out.
        seed: of the bootstrap.

    """
    rows: list[dict[str, Any]] = []
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    weights: dict[str, float] = {}
    for events, suite in folds:
        history = history_of(events)
        found = improvement(history, suite, seed)
        champion, source = history.champion, best_source(history, "search")
        if found is None or champion is None or source is None:
            continue
        rows.append({"fold": suite.fold, "against": found["against"], "difference": found["holdout_difference"],
                     "interval95": found["interval95"]})  # fmt: skip
        weights = weights_of(suite)
        for pool, one in ((ours, champion), (theirs, source)):
            for task, items in items_of(one.results["holdout"]).items():
                pool.setdefault(task, []).extend(items)
    overall = difference(ours, theirs, weights, seed) if rows else None
    if overall is None:
        return None
    count = sum(map(len, ours.values()))
    low, high = bounds(overall)
    verdict = (
        "The procedure improves on its sources"
        if low > 0
        else "The procedure is worse than its sources"
        if high < 0
        else "Nothing shows that the procedure improves on its sources"
    )
    each = ", ".join(f"{row['difference']:+.3f}" for row in rows)
    return {
        "folds": rows,
        "mean": fmean(row["difference"] for row in rows),
        "difference": overall.mean,
        "interval95": [low, high],
        "statement": f"{verdict}: over {len(rows)} folds champions differ from the best source by {overall.mean:+.3f} "
        f"(95% interval {low:+.3f} to {high:+.3f}, {count} items, each held out once); fold by fold {each}.",
        "method": "paired bootstrap over all items, each scored by the champion of the fold that held it out; the "
        "interval speaks of items, not of other searches",
    }
