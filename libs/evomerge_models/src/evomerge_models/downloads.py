"""Downloads under way, as other processes see them: `<store>/.incoming/<name>.progress`, a small file each.

Whoever downloads writes it about once a second; the command reads it to show how far its stack's downloader is.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from evomerge_models.hub import Progress

_SECONDS = 1.0


@dataclass(frozen=True)
class Download:
    """A download under way: the model's reference, bytes that are there and in all, and why it waits, if it does."""

    reference: str
    done: int
    total: int
    note: str = ""


class ProgressFile:
    """Writes how far a download is; called as a `Tell`. The file goes with the context.

    Args:
        incoming: the folder that the download goes to.
        reference: the model.

    """

    def __init__(self, incoming: Path, reference: str) -> None:
        self._path = incoming.with_name(f"{incoming.name}.progress")
        self._reference = reference
        self._written, self._note = 0.0, ""

    def __enter__(self) -> ProgressFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def __call__(self, progress: Progress) -> None:
        """Writes the file when the last is old or says something else; a full disk does not end the download here."""
        now = time.monotonic()
        if now - self._written < _SECONDS and progress.note == self._note:
            return
        self._written, self._note = now, progress.note
        fresh = self._path.with_name(f".{self._path.name}.fresh")
        record = {"reference": self._reference, "done": progress.done, "total": progress.total, "note": progress.note}
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps(record))
            fresh.replace(self._path)


def downloads(store: Path, since: float) -> list[Download]:
    """Lists the downloads of a model store that wrote after `since` (seconds as of time.time()).

    What a killed process left behind is older than that, and is left out.
    """
    found = []
    for path in sorted((store / ".incoming").glob("*.progress")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            if path.stat().st_mtime >= since:
                found.append(Download(**json.loads(path.read_text())))
    return found
