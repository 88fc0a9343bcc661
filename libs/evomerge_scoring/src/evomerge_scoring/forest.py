"""Rows read as one, side by side, so that little is padding; what they begin with alike may stand there once.

Rows that are scored share nothing but a prompt of their own: a score's last bits stay what they were in earlier runs.
Where only the likeliest token counts, as in generation, they do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from evomerge_scoring.joins import common
from evomerge_scoring.model import Row

WIDE = 128
"""Tokens that a forest may have anyway: their attention costs little beside the rest of a forward pass."""
COLUMNS = 1000
"""Beyond that, a token is worth reading again rather than that others look at so many more columns."""
WIDEST = 1024
"""Tokens of a forest, unless one row alone has half of them: its mask is quadratic."""


def forest(rows: Sequence[Row], *, shared: bool = False) -> tuple[Row, list[list[int]]]:
    """The rows as one, whose queries come row by row, and where in it each row's tokens stand.

    No token sees another row's. If `shared`, what a row begins with as the one before it, before either forks, stands
    once.
    """
    ids: list[int] = []
    queries: list[tuple[int, int]] = []
    ends: list[int] = []
    depths: list[int] = []
    places: list[list[int]] = []
    trunk: Sequence[int] = ()
    path: list[int] = []  # places of that trunk
    for row in rows:
        stem = row.ids[: row.trunk]
        same = common(trunk, stem) if shared else 0
        for place in path[same:]:
            ends[place] = len(ids)
        count, shift = len(row.ids), len(ids) - same
        own = [*path[:same], *range(len(ids), shift + count)]
        queries += [(own[place], token) for place, token in row.queries]
        ends += [end + shift for end in (row.ends or (count,) * count)[same:]]
        depths += (row.depths or range(count))[same:]
        ids += row.ids[same:]
        trunk, path = stem, own[: len(stem)]
        places.append(own)
    for place in path:
        ends[place] = len(ids)
    return Row(tuple(ids), tuple(queries), tuple(ends), tuple(depths)), places


def gather(rows: Sequence[Row], most: int, wide: int = WIDE) -> list[list[int]]:
    """Numbers of the rows that are to be read as one, from the rows alone.

    First fit, longest first, where a row goes rather to those that it begins alike with. Beyond `wide` tokens a row
    joins others only where it has half its tokens in common with one, and spares more than the wider attention costs.

    Args:
        rows: any number of them.
        most: tokens of a forest; a longer row stays alone.
        wide: tokens of a forest whose rows have little in common.

    """
    found: list[list[int]] = []
    widths: list[int] = []
    homes: dict[int, int] = {}  # hash of a beginning → the last group with a row that begins so
    trunks = [row.ids[: row.trunk] for row in rows]
    shortest = min(map(len, trunks), default=0)
    first = 0  # groups before it are full
    for number in sorted(range(len(rows)), key=lambda number: (-len(rows[number].ids), trunks[number], number)):
        length = len(rows[number].ids)
        beginnings = list(accumulate(trunks[number], lambda before, token: hash((before, token)), initial=0))[1:]
        place, more = _home(beginnings, homes, widths, length, min(wide, most), most)
        if place < 0:
            fitting = (place for place in range(first, len(found)) if widths[place] + length <= min(wide, most))
            place = next(fitting, len(found))
        if place == len(found):
            found.append([])
            widths.append(0)
        found[place].append(number)
        widths[place] += more
        homes.update(dict.fromkeys(beginnings, place))
        while first < len(found) and widths[first] + shortest > wide:
            first += 1
    return [sorted(some, key=lambda number: (trunks[number], number)) for some in found]


def _home(
    beginnings: Sequence[int], homes: Mapping[int, int], widths: Sequence[int], length: int, wide: int, most: int
) -> tuple[int, int]:
    """The group that a row joins for what they begin with, and the tokens it adds; without one, -1 and all of them."""
    for same in range(len(beginnings), 0, -1):
        place = homes.get(beginnings[same - 1], -1)
        if place >= 0:
            more = length - same
            whole = widths[place] + more
            spares = same >= more and same * COLUMNS >= more * widths[place] and whole <= max(WIDEST, 2 * length)
            if whole <= wide or (spares and whole <= most):
                return place, more
    return -1, length
