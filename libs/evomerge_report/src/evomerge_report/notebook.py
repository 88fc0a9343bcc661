"""A run's report as a Jupyter notebook: it reads a run's result.json and events.jsonl, and draws them.

The cells are the same for every run: what a run's users named stands in the files that they read, never in the cells.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

_READ = """\
import json
from pathlib import Path

import matplotlib.pyplot as plt

folder = next(one for one in (Path("."), Path("..")) if (one / "result.json").is_file())
result = json.loads((folder / "result.json").read_text("utf-8"))
lines = (folder / "events.jsonl").read_text("utf-8").split("\\n")
events = [json.loads(line) for line in lines if line]
proposed = {e["recipe_digest"]: e for e in events if e["type"] == "CandidateProposed"}
whole = [e for e in events if e["type"] == "CandidateEvaluated"]
whole = [e for e in whole if e.get("split") != "holdout" and not e.get("partial")]
whole += [e for e in events if e["type"] == "CandidateRaced" and not e.get("stopped")]
scored = {e["recipe_digest"]: e for e in whole if e["recipe_digest"] in proposed}
gain = result["improvement"]
print(gain["statement"] if gain else "Nothing is proven: the run has no scores on held-out items.")
for loss in (gain or {}).get("specialists", []):
    print("Lost to a specialist:", loss)"""
_FITNESS = """\
places = sorted((proposed[digest].get("index", 0), one.get("fitness", 0.0)) for digest, one in scored.items())
figure, axes = plt.subplots(figsize=(9, 4))
axes.scatter([place for place, _ in places], [fitness for _, fitness in places], s=18, label="candidates")
best, curve = float("-inf"), []
for place, fitness in places:
    best = max(best, fitness)
    curve.append((place, best))
if curve:
    axes.step(*zip(*curve), where="post", color="tab:green", label="best so far")
    axes.legend()
axes.set(xlabel="candidate, in order of proposal", ylabel="fitness on search items");"""
_TASKS = """\
tasks = gain["tasks"] if gain else {}
figure, axes = plt.subplots(figsize=(9, 0.8 + 0.6 * max(1, len(tasks))))
for row, (task, one) in enumerate(tasks.items()):
    low, high = one["interval95"]
    axes.plot([low, high], [row, row], color="tab:gray")
    axes.plot(one["difference"], row, "o", color="tab:red" if one["worse"] else "tab:blue")
    name = one["against"].rstrip("/").rpartition("/")[2]
    print(f"{task}: champion {one['champion']:.3f}, {name} {one['source']:.3f}; "
          f"items {one['wins']} better, {one['losses']} worse, {one['ties']} alike")
axes.axvline(0, color="black", linewidth=0.8)
axes.set_yticks(range(len(tasks)), [task.replace("$", r"\\$") for task in tasks])
axes.set(xlabel="champion minus the best source of the task, held-out items [95%]");"""
_PARETO = """\
names = [task["name"] for task in result["suite"]["tasks"]][:2]
figure, axes = plt.subplots(figsize=(5, 5))
if len(names) == 2:
    points = []
    for one in scored.values():
        by_task = {score["task"]: score.get("score", 0.0) for score in one["scores"]}
        points.append(tuple(by_task.get(name, 0.0) for name in names))
    front, top = [], float("-inf")
    for point in sorted(set(points), reverse=True):
        if point[1] > top:
            front.append(point)
            top = point[1]
    if points:
        axes.scatter(*zip(*points), s=18)
        axes.step(*zip(*front), where="pre", color="tab:green")
    axes.set(xlabel=names[0].replace("$", r"\\$"), ylabel=names[1].replace("$", r"\\$"));"""
_LINEAGE = """\
def tell(digest, depth=0, seen=()):
    one = proposed.get(digest)
    if one is None or digest in seen:
        return
    fitness = scored.get(digest, {}).get("fitness")
    shown = "no score" if fitness is None else f"{fitness:.4f}"
    print("  " * depth + f"#{one.get('index', 0)} {one['operator']}  {shown}  {digest[:12]}")
    for parent in one.get("parents", []):
        tell(parent, depth + 1, (*seen, digest))


tell((result["champion"] or {}).get("recipe_digest", ""))"""


def report_notebook() -> dict[str, Any]:
    """Makes the notebook, in Jupyter's format 4.5; it runs in a run's output folder, or in report/ within."""
    cells = [
        _text("# An EvoMerge run\n\nRead from `result.json` and `events.jsonl`, which lie beside this notebook."),
        _code(_READ),
        _text("## Fitness over the search"),
        _code(_FITNESS),
        _text("## Champion and the best source of each task"),
        _code(_TASKS),
        _text("## Trade-off of the first two tasks"),
        _code(_PARETO),
        _text("## Where the champion comes from"),
        _code(_LINEAGE),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def notebook_text() -> str:
    """Writes `report_notebook` as a file has it."""
    return json.dumps(report_notebook(), indent=1, ensure_ascii=False) + "\n"


def _text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": _name(source), "metadata": {}, "source": source.splitlines(keepends=True)}


def _code(source: str) -> dict[str, Any]:
    return {
        "cell_type": "code", "id": _name(source), "metadata": {}, "execution_count": None, "outputs": [],
        "source": source.splitlines(keepends=True),
    }  # fmt: skip


def _name(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:8]
