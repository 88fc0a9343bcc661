"""Fitness over the search as a small SVG for the live page."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1000, 300, 58, 14, 14, 34
_WINDOW = 8
_MOST_DOTS = 1500


def curve_svg(points: Sequence[tuple[int, float]]) -> Markup:
    """Best so far, mean of the last candidates, and each one as a dot; `points` are (index, fitness) by index."""
    if not points:
        return Markup("")
    values = [fitness for _, fitness in points]
    low, high = min(values), max(values)
    margin = max(1e-3, 0.06 * (high - low))
    low, high = low - margin, high + margin
    last = max(1, points[-1][0])

    def x(index: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * index / last

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    best: list[str] = []
    mean: list[str] = []
    top = values[0]
    for place, (index, fitness) in enumerate(points):
        if fitness > top or not best:
            best.append(f"{x(index):.1f},{y(top):.1f}")
            top = max(top, fitness)
            best.append(f"{x(index):.1f},{y(top):.1f}")
        recent = values[max(0, place + 1 - _WINDOW) : place + 1]
        mean.append(f"{x(index):.1f},{y(sum(recent) / len(recent)):.1f}")
    best.append(f"{x(points[-1][0]):.1f},{y(top):.1f}")
    step = -(-len(points) // _MOST_DOTS)
    dots = "".join(f'<circle class="dot" cx="{x(i):.1f}" cy="{y(f):.1f}" r="4"/>' for i, f in points[::step])
    grid = []
    for part in range(5):
        value = low + (high - low) * part / 4
        grid.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        grid.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    for index in sorted({round(last * part / 5) for part in range(6)}):
        anchor = "end" if index == last else "middle"
        grid.append(f'<text x="{x(index):.1f}" y="{_HEIGHT - 12}" text-anchor="{anchor}">{index}</text>')
    return Markup(  # noqa: S704 - numbers alone
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="fitness over the search">'
        f'{"".join(grid)}{dots}<polyline class="mean" points="{" ".join(mean)}"/>'
        f'<polyline class="best" points="{" ".join(best)}"/></svg>'
    )
