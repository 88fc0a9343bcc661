"""A run's fitness drawn with characters: on one line, and on many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 12
"""Characters of a sparkline."""
EDGE = 8
"""Characters of the axis on the left."""

Steps = Sequence[tuple[int, float]]
"""(index of a candidate, best fitness from there on), by index."""


def sparkline(best: Steps, last: int, width: int = SPARKS) -> str:
    """Draws the best fitness over the candidates.

    Args:
        best: where it changed.
        last: index of the last candidate.
        width: in characters, at most.

    """
    if not best:
        return ""
    values = _sampled(best, last, min(width, last + 1))
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


def chart(best: Steps, scores: Mapping[int, float], last: int, width: int, height: int) -> str:
    """Draws the best fitness as a line and each candidate as a dot, with the bounds of both axes.

    Args:
        best: where the best changed.
        scores: fitness by index of candidate.
        last: index of the last candidate.
        width: in characters, the axis included; `height` in lines, that below included.

    """
    columns, rows = width - EDGE, height - 1
    low, high = min(scores.values()), max(scores.values())

    def row(value: float) -> int:
        return round((high - value) / ((high - low) or 1.0) * (rows - 1))

    lines = [[" "] * columns for _ in range(rows)]
    for index, value in scores.items():
        lines[row(value)][index * (columns - 1) // max(1, last)] = "·"
    if best:
        for place, value in enumerate(_sampled(best, last, columns)):
            lines[row(value)][place] = "─"
    names = {0: f"{high:.4f}", rows - 1: f"{low:.4f}"}
    drawn = [f"{names.get(place, ''):>{EDGE - 2}} │{''.join(line)}" for place, line in enumerate(lines)]
    below = f"{'':{EDGE - 2}} 0{last:>{columns}}"
    return "\n".join([*(line.rstrip() for line in drawn), below])


def _sampled(best: Steps, last: int, width: int) -> list[float]:
    """The best as it was at the end of each of `width` equal parts of the run."""
    until = [(place + 1) * (last + 1) / width for place in range(width)]
    return [([value for index, value in best if index < end] or [best[0][1]])[-1] for end in until]
