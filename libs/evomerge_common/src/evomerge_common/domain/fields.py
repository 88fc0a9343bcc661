"""What a user wrote, key by key: each value checked, each mistake told with its place and the nearest valid word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge_common.errors import Path, SpecError, did_you_mean

__all__ = ["Fields", "check_keys"]

UNBOUNDED = 1e18
MOST = 2**53
"""Whole numbers up to here are exact in JSON everywhere."""


@dataclass(frozen=True)
class Fields:
    """A mapping that a user wrote, and its place. A key that is missing, or says null, has its default.

    Attributes:
        data: keys and values, as a document has them.
        path: the place of the mapping in its document.
        error: the class of what is raised.

    """

    data: Mapping[str, Any]
    path: Path = ()
    error: type[SpecError] = field(default=SpecError)

    @classmethod
    def of(cls, data: Any, keys: Iterable[str], path: Path = (), error: type[SpecError] = SpecError) -> Fields:
        """Takes the fields of a value that must be a mapping with no other keys than these.

        Raises:
            SpecError (or `error`): it is no mapping; an unknown key, with the nearest valid one.

        """
        check_keys(data, tuple(keys), path, error)
        return cls(data, path, error)

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def at(self, key: str) -> Path:
        """Returns the place of a key."""
        return (*self.path, key)

    def wrong(self, problem: str, key: str) -> SpecError:
        """Returns the error that says what is wrong with the value of a key."""
        return self.error(problem, self.at(key))

    def section(self, key: str, keys: Iterable[str]) -> Fields:
        """Reads the mapping under a key; an empty one where there is none."""
        return Fields.of(self.data.get(key) or {}, keys, self.at(key), self.error)

    def text(self, key: str, default: str = "") -> str:
        """Reads a text without NUL, which no file's name has."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(f"must be text, not {value!r}", key)
        if "\0" in value:
            raise self.wrong("has a NUL character in it", key)
        return value

    def texts(self, key: str, problem: str) -> tuple[str, ...]:
        """Reads a list of texts that are not empty; `problem` says what it must be."""
        values = self._value(key, [])
        if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
            raise self.wrong(problem, key)
        return tuple(values)

    def entries(self, key: str) -> list[Any]:
        """Reads a list with something in it."""
        values = self.data.get(key)
        if not isinstance(values, list) or not values:
            raise self.wrong("must be a list with at least one entry", key)
        return values

    def word(self, key: str, valid: Iterable[str], default: str = "", *, what: str = "word") -> str:
        """Reads one of the valid words; "" is one only where it is the default."""
        value, words = self._value(key, default), tuple(valid)
        if not isinstance(value, str) or value not in (*words, default):
            raise self.wrong(f"unknown {what} {value!r}; {did_you_mean(str(value), words)}", key)
        return value

    def words(self, key: str, valid: Iterable[str], default: Iterable[str]) -> tuple[str, ...]:
        """Reads a list of valid words, each once, in the user's order."""
        values, words = self._value(key, list(default)), tuple(valid)
        if not isinstance(values, list):
            raise self.wrong(f"must be a list of words: {', '.join(words)}", key)
        for index, value in enumerate(values):
            if not isinstance(value, str) or value not in words:
                problem = f"unknown word {value!r}; {did_you_mean(str(value), words)}"
                raise self.error(problem, (*self.at(key), index))
        return tuple(dict.fromkeys(values))

    def flag(self, key: str, default: bool) -> bool:
        """Reads true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(f"must be true or false, not {value!r}", key)
        return value

    def optional_flag(self, key: str) -> bool | None:
        """Reads true, false, or None where nothing is said."""
        return self.flag(key, False) if key in self else None

    def integer(self, key: str, default: int, *, low: int = 0, high: int = MOST) -> int:
        """Reads a whole number within bounds."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            bounds = f"from {low} to {high}" if high < MOST else f"of at least {low}"
            raise self.wrong(f"must be a whole number {bounds}, not {value!r}", key)
        return value

    def number(self, key: str, default: float, *, low: float = -UNBOUNDED, high: float = UNBOUNDED) -> float:
        """Reads a finite number within bounds."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            least = f" of at least {low:g}" if low > -UNBOUNDED else ""
            bounds = f" from {low:g} to {high:g}" if high < UNBOUNDED else least
            raise self.wrong(f"must be a number{bounds}, not {value!r}", key)
        return float(value)

    def optional_number(self, key: str, *, low: float = -UNBOUNDED) -> float | None:
        """Reads a number, or None where nothing is said."""
        return self.number(key, 0.0, low=low) if key in self else None

    def _value(self, key: str, default: Any) -> Any:
        value = self.data.get(key)
        return default if value is None else value


def check_keys(data: Any, allowed: tuple[str, ...], path: Path, error: type[SpecError]) -> None:
    """Refuses anything but a mapping with known keys, naming the nearest valid word."""
    if not isinstance(data, Mapping):
        raise error(f"expected keys and values here, found {data!r}", path)
    for key in data:
        if key not in allowed:
            raise error(f"unknown key; {did_you_mean(str(key), allowed)}", (*path, str(key)))
