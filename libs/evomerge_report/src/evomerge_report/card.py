"""README.md of an exported model, from a result: honest about what was shown and what was not."""

from __future__ import annotations

import json
import re
from typing import Any

from evomerge_report.history import short_name

_NAMES = re.compile(r"(?<![\w.])[/~](?:[^\s/,:;+']+/)+[^\s/,:;+']+")
LIMITS = (
    "The scores say how the model answers this suite's items, and nothing beyond them. Merging carries over the "
    "sources' licences, biases and faults: read their cards."
)


def model_card(result: dict[str, Any]) -> str:
    """Writes Markdown with front matter: verdict, scores with 95% intervals on items never selected on, recipe."""
    champion = result.get("champion") or {}
    sources = result.get("sources") or []
    hub_ids = [s["reference"] for s in sources if s.get("commit")]
    front = ["---", "library_name: transformers", "tags:", "- merge", "- evomerge"]
    if hub_ids:
        front += ["base_model:", *(f"- {json.dumps(reference.partition('@')[0])}" for reference in hub_ids)]
    front.append("---")
    gain = result.get("improvement")
    verdict = gain["statement"] if gain else "Nothing is proven: the run has no scores on held-out items."
    found = (
        f"Found by EvoMerge {result.get('version', '')} in run `{result['run_id']}` (seed {result['seed']}): "
        f"{result['evaluations']} candidates were scored, {result['failed']} failed."
    )
    parts = [
        *front, "", "# A merged language model", "", found, "", f"**{verdict}**", "",
        *_sources(sources), "", *_scores(result), "", *_notes(result),
        "## Recipe", "",
        f"Digest `{champion.get('recipe_digest', '')}`. The recipe rebuilds these weights bit for bit.", "",
        "```json", json.dumps(_public(champion.get("recipe")), indent=2, ensure_ascii=False), "```", "",
        "## Limits", "", LIMITS, "",
    ]  # fmt: skip
    return "\n".join(parts)


def notes_of(result: dict[str, Any]) -> list[str]:
    """Lists what the champion's merge noted as taken over, adapted or left out, without the author's folders."""
    return [
        _NAMES.sub(lambda match: short_name(match[0]), note)
        for one in {one["format"]: one for one in result["exports"]}.values()
        for note in one["notes"]
    ]


def _notes(result: dict[str, Any]) -> list[str]:
    notes = notes_of(result)
    return ["## Kept, adapted, left out", "", *(f"* {note}" for note in notes), ""] if notes else []


def _sources(sources: list[dict[str, Any]]) -> list[str]:
    lines = ["## Sources", "", "| model | commit | digest |", "|---|---|---|"]
    for source in sources:
        name = source["reference"] if source.get("commit") else short_name(source["reference"])
        lines.append(f"| {_cell(name)} | {source.get('commit') or 'local folder'} | `{source['digest'][:19]}…` |")
    return lines


def _scores(result: dict[str, Any]) -> list[str]:
    champion = result.get("champion") or {}
    split = "holdout" if champion.get("holdout") else "search"
    ours = champion.get(split)
    if not ours:
        return []
    shown = [s for s in result["sources"] if s.get(split)]
    title = "Scores on held-out items" if split == "holdout" else "Scores on the items that selection used (optimistic)"
    lines = [
        f"## {title}", "", "Higher is better; 95% bootstrap intervals in brackets.", "",
        "| task | this model | " + " | ".join(_cell(short_name(s["reference"])) for s in shown) + " |",
        "|---|---|" + "---|" * len(shown),
    ]  # fmt: skip
    for task in ours["tasks"]:
        cells = [_number(m["tasks"].get(task)) for m in (ours, *(s[split] for s in shown))]
        lines.append(f"| {_cell(task)} | " + " | ".join(cells) + " |")
    overall = [_number({"score": m["fitness"], **m}) for m in (ours, *(s[split] for s in shown))]
    lines.append("| **weighted mean** | " + " | ".join(overall) + " |")
    return lines


def _number(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "n/a"
    interval = entry.get("interval95")
    return f"{entry['score']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _public(recipe: Any) -> Any:
    """Without the author's folders: a local source is told by its name and digest."""
    if isinstance(recipe, list):
        return [_public(item) for item in recipe]
    if not isinstance(recipe, dict):
        return recipe
    return {
        key: short_name(value) if key == "source" and str(value).startswith(("/", ".", "~")) else _public(value)
        for key, value in recipe.items()
    }


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
