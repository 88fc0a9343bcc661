"""What the selector's log says of an event, so that all lines of a candidate are found by its digest."""

from __future__ import annotations

from typing import Any

from evomerge_common.domain.messages import Decision, ModelReady, Result
from evomerge_common.runtime.logging import short

_FIELDS = (
    *("job_id", "kind", "index", "operator", "generation", "fitness", "split", "rung", "cached", "seconds", "stopped"),
    *("reason", "evaluated", "attempt"),
)


def line_of(payload: Decision | Result) -> dict[str, Any]:
    """Returns an event's type, its candidate (or model) and the numbers that fit into a line."""
    words: dict[str, Any] = {"type": type(payload).__name__}
    digest = getattr(payload, "recipe_digest", "") or getattr(payload, "champion_digest", "")
    if digest:
        words["candidate"] = short(digest)
    if isinstance(payload, ModelReady):
        words["model"] = f"{payload.model.reference}@{short(payload.model.digest)}"
    if parents := getattr(payload, "parents", ()):
        words["parents"] = [short(one) for one in parents]
    if (error := getattr(payload, "error", None)) is not None and error.type:
        words["error"] = f"{error.type}: {error.message}"
    words.update((name, value) for name in _FIELDS if (value := getattr(payload, name, None)) not in (None, ""))
    return words
