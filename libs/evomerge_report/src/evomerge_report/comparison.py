"""Champion and sources task by task as bars with 95% intervals: a picture in the page, in the reader's colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from evomerge_report.history import short_name

_LEFT, _BAR, _GAP, _WIDTH, _LABEL = 150, 15, 14, 760, 250
_MOST_MODELS = 8


def comparison_svg(result: Mapping[str, Any]) -> str:
    """Draws the bars on held-out items where there are any, else on search items; empty without a champion's scores.

    Classes name colours of the page's style sheet: `own` is the champion, `other` a source, `best` the best source of
    the task.
    """
    champion, sources = result.get("champion") or {}, result.get("sources") or []
    split = "holdout" if champion.get("holdout") else "search"
    if not champion.get(split):
        return ""
    models = [("champion", champion[split])]
    models += [(short_name(one["reference"]), one[split]) for one in sources if one[split]][: _MOST_MODELS - 1]
    parts: list[str] = []
    y = 8
    for task in champion[split]["tasks"]:
        found = [(name, scores["tasks"].get(task)) for name, scores in models]
        best = max((one["score"] for name, one in found[1:] if one), default=None)
        parts.append(f'<text x="0" y="{y + 12}" class="task">{escape(_cut(task, 20))}</text>')
        for place, (name, one) in enumerate(found):
            if one is not None:
                kind = "own" if place == 0 else "best" if one["score"] == best else "other"
                parts.append(_bar(name, one, kind, y))
                y += _BAR + 3
        y += _GAP
    label = f"Champion and sources, score of each task on {'held-out' if split == 'holdout' else 'search'} items"
    return (
        f'<svg class="bars" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _bar(name: str, one: Mapping[str, Any], kind: str, y: float) -> str:
    scale = _WIDTH - _LEFT - _LABEL
    width = scale * min(max(one["score"], 0.0), 1.0)
    whisker = ""
    end = _LEFT + width
    if bounds := one.get("interval95"):
        low, high = (_LEFT + scale * min(max(bound, 0.0), 1.0) for bound in bounds)
        end = max(end, high)
        middle = y + _BAR / 2
        whisker = f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}m0 -4v8M{low:.1f} {middle - 4}v8"/>'
    text = escape(f"{one['score']:.3f} {_cut(name, 26)}")
    return (
        f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{max(width, 1):.1f}" height="{_BAR}"/>{whisker}'
        f'<text x="{end + 8:.1f}" y="{y + 12}">{text}</text>'
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
