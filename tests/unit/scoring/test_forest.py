"""Rows that are read as one."""

from __future__ import annotations

import random

import pytest

from evomerge_scoring.forest import forest, gather
from evomerge_scoring.model import Row


def seen(row: Row, place: int) -> list[tuple[int, int]]:
    """What a token sees, itself last: ids and positions."""
    ends = row.ends or (len(row.ids),) * len(row.ids)
    depths = row.depths or range(len(row.ids))
    return [(row.ids[other], depths[other]) for other in range(place + 1) if place < ends[other]]


def random_rows(generator: random.Random, count: int) -> list[Row]:
    """Paths over few tokens, so that many begin alike; some fork, some are there twice."""
    rows = []
    for _ in range(count):
        ids = tuple(generator.choices(range(3), k=generator.randint(1, 9)))
        row = Row.plain(ids, [(place, 7) for place in range(len(ids)) if generator.random() < 0.5])
        if generator.random() < 0.3:
            other = Row.plain((*ids[:2], 5, 6)[: generator.randint(2, 4)], [(1, 8)])
            row = forest([row, other], shared=True)[0]
        rows += [row] * generator.choice((1, 1, 1, 2))
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_a_token_sees_in_a_forest_what_it_sees_alone(seed: int) -> None:
    generator = random.Random(seed)
    rows = random_rows(generator, 12)
    groups = gather(rows, generator.choice((5, 20, 200)))
    assert sorted(number for some in groups for number in some) == list(range(len(rows)))
    for some in groups:
        one, places = forest([rows[number] for number in some], shared=seed % 2 == 0)
        asked = []
        for number, own in zip(some, places, strict=True):
            row = rows[number]
            assert [seen(one, own[place]) for place in range(len(row.ids))] == [
                seen(row, place) for place in range(len(row.ids))
            ]
            asked += [(own[place], token) for place, token in row.queries]
        assert list(one.queries) == asked


def test_what_many_rows_begin_with_is_read_once() -> None:
    passages = [tuple(range(start, start + 300)) for start in (0, 1000)]
    rows = [Row.plain((*passages[n % 2], 2000 + n, 1, 2), [(302, 3)]) for n in range(8)]
    groups = gather(rows, 10_000)
    assert sorted(map(sorted, groups)) == [[0, 2, 4, 6], [1, 3, 5, 7]], "long rows share no mask for nothing"
    for some in groups:
        assert len(forest([rows[number] for number in some], shared=True)[0].ids) == 300 + 4 * 3
    assert sorted(gather(rows, 305)) == [[number] for number in range(8)], "as many tokens as the model takes"
