"""The family tree of a candidate: as nodes, and as SVG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from evomerge_report.history import Candidate, History

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 210, 52, 52, 16, 14
_FILL = {"source": "#e8e8e8", "average": "#fff3c4", "classic": "#dcefff", "random": "#f6e3ee", "crossover": "#cfe3f3",
         "mutation": "#fbe6c2", "breed": "#cfeee2"}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A candidate in the tree; `level` 0 for those without parents."""

    candidate: Candidate
    level: int


def ancestors(history: History, digest: str, limit: int = 48) -> list[Node]:
    """Returns the candidate and its ancestors, nearest first, at most `limit` of them."""
    wanted: list[str] = [digest]
    order: list[Candidate] = []
    while wanted and len(order) < limit:
        candidate = history.candidates.get(wanted.pop(0))
        if candidate is not None and candidate not in order:
            order.append(candidate)
            wanted.extend(candidate.proposal.parents)
    digests = {candidate.digest for candidate in order}
    levels: dict[str, int] = {}
    for candidate in sorted(order, key=lambda c: c.index):  # a parent is proposed before its child
        above = [levels[p] for p in candidate.proposal.parents if p in digests and p in levels]
        levels[candidate.digest] = 1 + max(above) if above else 0
    return [Node(candidate, levels[candidate.digest]) for candidate in order]


def lineage_rows(history: History, digest: str = "") -> list[dict[str, Any]]:
    """Returns the same as plain data: who came from whom, by which operator, and how good it was."""
    return [
        {
            "recipe_digest": node.candidate.digest,
            "index": node.candidate.index,
            "name": history.name_of(node.candidate),
            "operator": node.candidate.operator,
            "fitness": node.candidate.fitness,
            "parents": list(node.candidate.proposal.parents),
            "level": node.level,
        }
        for node in ancestors(history, digest or history.champion_digest)
    ]


def lineage_text(history: History, digest: str = "") -> str:
    """Writes the tree as lines: a candidate, and its parents below it; one that was there is only named again."""
    rows = {row["recipe_digest"]: row for row in lineage_rows(history, digest)}
    names: set[str] = set()
    lines: list[str] = []

    def tell(name: str, first: str, rest: str) -> None:
        row = rows[name]
        fitness = "failed" if row["fitness"] is None else f"{row['fitness']:.4f}"
        again = name in names and bool(row["parents"])
        lines.append(
            f"{first}{row['name']}  {row['operator']}  {fitness}  {name[:12]}" + ("  (see above)" if again else "")
        )
        names.add(name)
        parents = [] if again else [parent for parent in row["parents"] if parent in rows]
        for place, parent in enumerate(parents):
            last = place == len(parents) - 1
            tell(parent, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    if rows:
        tell(next(iter(rows)), "", "")
    return "\n".join(lines)


def lineage_svg(history: History, digest: str = "") -> str:
    """Draws the tree of a candidate (default: the champion), sources to the left."""
    nodes = ancestors(history, digest or history.champion_digest)
    if not nodes:
        return _svg(320, 60, ['<text x="160" y="34" text-anchor="middle" fill="#808080">no champion yet</text>'])
    columns: dict[int, list[Candidate]] = {}
    for node in nodes:
        columns.setdefault(node.level, []).append(node.candidate)
    tallest = max(len(column) for column in columns.values())
    height = 2 * _MARGIN + tallest * _HEIGHT + (tallest - 1) * _GAP_Y
    width = 2 * _MARGIN + len(columns) * _WIDTH + (len(columns) - 1) * _GAP_X
    places: dict[str, tuple[float, float]] = {}
    for position, level in enumerate(sorted(columns)):
        column = sorted(columns[level], key=lambda c: (_mean_y(c, places), c.index))
        top = (height - len(column) * _HEIGHT - (len(column) - 1) * _GAP_Y) / 2
        for row, candidate in enumerate(column):
            places[candidate.digest] = (_MARGIN + position * (_WIDTH + _GAP_X), top + row * (_HEIGHT + _GAP_Y))
    pairs = [(p, n.candidate.digest) for n in nodes for p in n.candidate.proposal.parents if p in places]
    drawn = [_edge(places[parent], places[child]) for parent, child in pairs]
    drawn += [_box(history, node.candidate, places[node.candidate.digest], is_first=node is nodes[0]) for node in nodes]
    return _svg(width, height, drawn)


def _mean_y(candidate: Candidate, places: dict[str, tuple[float, float]]) -> float:
    above = [places[parent][1] for parent in candidate.proposal.parents if parent in places]
    return sum(above) / len(above) if above else 0.0


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1, x2, y2 = start[0] + _WIDTH, start[1] + _HEIGHT / 2, end[0], end[1] + _HEIGHT / 2
    bend = max(30.0, (x2 - x1) / 2)
    curve = f"M{x1:.0f} {y1:.0f}C{x1 + bend:.0f} {y1:.0f} {x2 - bend:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
    return f'<path d="{curve}" fill="none" stroke="#8a8a8a" stroke-width="1.4"/>'


def _box(history: History, candidate: Candidate, place: tuple[float, float], *, is_first: bool) -> str:
    x, y = place
    middle = x + _WIDTH / 2
    border = 'stroke="#D55E00" stroke-width="2.5"' if is_first else 'stroke="#8a8a8a"'
    fitness = "failed" if candidate.fitness is None else f"fitness {candidate.fitness:.3f}"
    if candidate.raced is not None and candidate.raced.stopped:
        fitness = f"stopped, ~{candidate.raced.fitness:.2f} [{candidate.raced.low:.2f}, {candidate.raced.high:.2f}]"
    name = history.name_of(candidate)
    name = name if len(name) <= 22 else name[:21] + "…"
    return (
        f"<g><title>{escape(candidate.digest)}</title>"
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="7" '
        f'fill="{_FILL.get(candidate.operator, "#ffffff")}" {border}/>'
        f'<text x="{middle:.0f}" y="{y + 21:.0f}" text-anchor="middle" font-weight="600" fill="#111">'
        f"{escape(name)}</text>"
        f'<text x="{middle:.0f}" y="{y + 39:.0f}" text-anchor="middle" fill="#333">'
        f"{escape(candidate.operator)} · {fitness}</text></g>"
    )


def _svg(width: float, height: float, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="system-ui, sans-serif" font-size="13" role="img" '
        f'aria-label="lineage">{"".join(parts)}</svg>\n'
    )
