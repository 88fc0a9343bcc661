"""How far the downloads are that a run waits for, read from the model store that the command shares with its stack."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evomerge_cli.byte_progress import duration, human


@dataclass(frozen=True)
class Coming:
    """A download under way, in words; `step` changes when a log should hear of it."""

    words: str
    step: tuple[str, int, str]


class DownloadWatch:
    """Looks at the downloads of a store.

    Args:
        store: the model store's folder.
        clock: gives Unix seconds.

    """

    def __init__(self, store: Path, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._began = clock()
        self._first: dict[str, tuple[float, int]] = {}

    def __call__(self) -> Coming | None:
        """Tells of the downloads that have written since this watch began; None: there is none."""
        from evomerge_models.downloads import Download, downloads

        def words(one: Download) -> str:
            now = self._clock()
            since, first = self._first.setdefault(one.reference, (now, one.done))
            text = f"downloading {one.reference}: {human(one.done)} of {human(one.total)}"
            if one.done > first and now > since:
                rate = (one.done - first) / (now - since)
                text += f", {human(rate)}/s, {duration((one.total - one.done) / rate)} left"
            return f"{text}; {one.note}" if one.note else text

        under_way = downloads(self._store, self._began - 1.0)
        if not under_way:
            return None
        first = under_way[0]
        return Coming("  ".join(map(words, under_way)), (first.reference, _tenth(first.done, first.total), first.note))


def _tenth(done: int, total: int) -> int:
    return done * 10 // max(1, total)
