"""A run's trace as SVG: a row for each worker, a bar for each job."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

from evomerge_report.trace import Span, Trace, summary

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BAR = 1200, 190, 16, 66, 30, 20
_FILL = {"download": "#999999", "merge": "#E69F00", "evaluate": "#0072B2", "export": "#CC79A7"}
_HOLDOUT = "#56B4E9"
_MOST_BARS = 20_000
_STYLE = (
    "<style>.back{fill:#fff}.ink{fill:#111}.soft{fill:#444}.grid{stroke:#e4e4e4}.mark{stroke:#111}"
    "@media (prefers-color-scheme:dark){.back{fill:#1d2026}.ink{fill:#e9ebef}.soft{fill:#a3abb8}.grid{stroke:#363b45}"
    ".mark{stroke:#e9ebef}}</style>"
)
"""Colours of light and dark schemes; as a picture in a page, too, it follows the reader's."""


def timeline_svg(trace: Trace) -> str:
    """Draws the picture. Bars narrower than a tenth of a pixel still get one, so a busy row never looks idle."""
    overview = summary(trace)
    workers = [entry["worker"] for entry in overview["workers"]]
    height = _TOP + _ROW * (len(workers) + 1) + 34
    scale = (_WIDTH - _LEFT - _RIGHT) / max(trace.wall, 1e-9)

    def x(seconds: float) -> float:
        return _LEFT + scale * min(max(seconds, 0.0), trace.wall)

    parts = [f'<text x="12" y="24" font-size="16" font-weight="600" class="ink">{escape(_title(overview))}</text>']
    parts.append(f'<text x="12" y="46" class="soft">{escape(_shares(overview))}</text>')
    bottom = _TOP + _ROW * (len(workers) + 1)
    for step in range(11):
        at = trace.wall * step / 10
        parts.append(f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{_TOP}" y2="{bottom}" class="grid"/>')
        anchor = "end" if step == 10 else "middle"
        parts.append(f'<text x="{x(at):.1f}" y="{bottom + 16}" text-anchor="{anchor}" class="soft">{at:.1f} s</text>')
    for place, worker in enumerate(workers):
        top = _TOP + _ROW * place
        entry = overview["workers"][place]
        name = f"{_short(worker)}  {100 * (entry['busy'] or 0):.0f}%"
        parts.append(f'<text x="12" y="{top + 19}" class="ink">{escape(name)}</text>')
        spans = [span for span in trace.spans if span.worker == worker]
        parts += [_bar(span, x(span.began), x(span.ended), top) for span in spans[:_MOST_BARS]]
    top = _TOP + _ROW * len(workers)
    parts.append(f'<text x="12" y="{top + 19}" class="ink">selector  {len(trace.decisions)} decisions</text>')
    parts += [
        f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{top + 8}" y2="{top + 22}" stroke="#009E73"/>'
        for at in trace.decisions[:_MOST_BARS]
    ]
    parts += [
        f'<path d="M{x(at):.1f} {top + 2}l4 -6h-8z" fill="#D55E00"><title>new champion</title></path>'
        for at in trace.champions
    ]
    for moment, what in ((trace.primed, "primed"), (trace.search_ended, "search ended")):
        if moment is not None:
            at = moment
            late = x(at) > _WIDTH - 120
            label = f'x="{x(at) + (-4 if late else 4):.1f}" text-anchor="{"end" if late else "start"}"'
            parts.append(
                f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{_TOP - 8}" y2="{bottom}" class="mark" '
                f'stroke-dasharray="4 3"/><text {label} y="{_TOP - 4}" class="ink">{what}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="timeline of the run">'
        f'{_STYLE}<rect width="{_WIDTH}" height="{height}" class="back"/>{"".join(parts)}</svg>\n'
    )


def _bar(span: Span, left: float, right: float, top: float) -> str:
    colour = _HOLDOUT if span.label.startswith("holdout") else _FILL[span.work]
    return (
        f'<rect x="{left:.2f}" y="{top + 5}" width="{max(right - left, 0.1):.2f}" height="{_BAR}" fill="{colour}" '
        f'stroke="#ffffff" stroke-width="0.3"><title>{escape(span.label)}: {span.ended - span.began:.3f} s'
        f"</title></rect>"
    )


def _title(overview: dict[str, Any]) -> str:
    return f"Run {overview['run_id']}: {overview['wall_seconds']:.1f} s"


def _shares(overview: dict[str, Any]) -> str:
    parts = []
    for key, words in (
        ("evaluator_busy", "evaluators busy after priming"),
        ("evaluator_scoring", "of it scoring alone"),
        ("orchestration", "orchestration (nobody computes)"),
        ("merge_to_evaluation", "merge cost to evaluation cost"),
    ):
        if overview[key] is not None:
            parts.append(f"{words} {100 * overview[key]:.1f}%")
    return " · ".join(parts)


def _short(worker: str) -> str:
    kind, _, rest = worker.partition("@")
    return f"{kind} {rest.rpartition(':')[2]}".strip()
