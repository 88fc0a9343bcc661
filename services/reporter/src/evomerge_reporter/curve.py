"""Fitness over the search as a small SVG for the live page."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from evomerge_common.domain.history import mean_curve

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1000, 300, 58, 14, 14, 34
_MOST_DOTS = 1500


def curve_svg(
    points: Sequence[tuple[int, float]], estimates: Sequence[tuple[int, float]], *, population: int
) -> Markup:
    """Draws best so far, mean of the last `population`, and a dot for each.

    Args:
        points: (index, fitness) by index.
        estimates: the same with those that a race has stopped, for the mean.
        population: candidates of a generation.

    """
    if not points:
        return Markup("")
    values = [fitness for _, fitness in [*points, *estimates]]
    low, high = min(values), max(values)
    margin = max(1e-3, 0.06 * (high - low))
    low, high = low - margin, high + margin
    last = max(1, points[-1][0], *(index for index, _ in estimates[-1:]))

    def x(index: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * index / last

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    best: list[str] = []
    top = points[0][1]
    for index, fitness in points:
        if fitness > top or not best:
            best.append(f"{x(index):.1f},{y(top):.1f}")
            top = max(top, fitness)
            best.append(f"{x(index):.1f},{y(top):.1f}")
    means = zip(estimates, mean_curve(estimates, population=population), strict=True)
    mean = [f"{x(index):.1f},{y(value):.1f}" for (index, _), value in means]
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
