"""Numbers and words as the pages show them."""

from __future__ import annotations

from typing import Any

from evomerge_report.history import short_name

FILTERS: dict[str, Any] = {}
"""Name → function, for the templates."""


def _filter(function: Any) -> Any:
    FILTERS[function.__name__] = function
    return function


@_filter
def score(value: float | None) -> str:
    """Writes three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


@_filter
def signed(value: float | None) -> str:
    """Writes three decimals with a sign, or a dash."""
    return "–" if value is None else f"{value:+.3f}"


@_filter
def interval(bounds: list[float] | None, sign: str = "") -> str:
    """Writes [low, high], or nothing."""
    return "" if not bounds else f"[{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]"


@_filter
def duration(seconds: float) -> str:
    """Writes seconds as 1.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


@_filter
def count(value: float) -> str:
    """Writes digits in groups of three."""
    return f"{value:,.0f}"


@_filter
def size(value: float) -> str:
    """Writes a number as 1.7 M, 1.5 B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {unit}"
    return f"{value:.0f}"


@_filter
def short(text: str) -> str:
    """Cuts a digest to its beginning."""
    return text[:19] + "…" if text.startswith("sha256:") else text[:12] + ("…" if len(text) > 12 else "")


@_filter
def name(reference: str) -> str:
    """Returns the last part of a hub id or folder."""
    return short_name(reference)


@_filter
def capital(text: str) -> str:
    """Begins a sentence: the first letter alone is changed."""
    return text[:1].upper() + text[1:]


@_filter
def some(names: list[str], most: int = 60) -> str:
    """Lists names, the first so many of them; a dash for none."""
    rest = f" and {len(names) - most} more (result.json has all)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest if names else "–"
