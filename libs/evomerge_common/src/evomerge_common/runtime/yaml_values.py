"""YAML as values that remember their lines, built from the parser's events within limits.

The events come one by one, so that nothing is built beyond a limit; and the parser, unlike PyYAML's own composer, does
not recurse, so that no text overruns a stack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import yaml

from evomerge_common.errors import Path as Place
from evomerge_common.errors import SpecError

__all__ = ["MAX_DEPTH", "NOTHING", "Value", "compose"]

MAX_VALUES = 100_000  # an alias counts each time it is used, so that a few lines cannot unfold into gigabytes
LONG = 100
"""Characters of a text that count like a value."""
MAX_DEPTH = 200
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of which the parser alone is used
_COLLECTIONS = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_NULLS = {"", "~", "null", "Null", "NULL"}
_FLAGS = {
    spelling: value  # YAML 1.1's words: mergekit's files have them
    for words, value in ((("true", "yes", "on"), True), (("false", "no", "off"), False))
    for word in words
    for spelling in (word, word.capitalize(), word.upper())
}
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
_PREFIXED = re.compile(r"[-+]?0(x[0-9a-fA-F]{1,16}|o[0-7]{1,21})")
_NUMBER = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Value(NamedTuple):
    """A value, its line, the values in it, and how many values it is in all: `size`.

    Attributes:
        anchored: an anchor (`&name`) is set here, on the value or inside it; where an alias stands, none is.
        repeats: keys of a mapping that are given twice with one value.

    """

    data: Any
    line: int
    parts: Mapping[str | int, Value]
    size: int
    anchored: bool = False
    repeats: tuple[str, ...] = ()


NOTHING = Value(None, 0, {}, 0)


def compose(text: str, *, several: bool = False, repeats: bool = False) -> list[Value]:
    """Reads the documents of a YAML text: one at most, unless `several` may be.

    Args:
        text: what is read.
        several: whether `---` may set documents apart.
        repeats: whether a mapping may give a key twice, if with one value.

    Raises:
        SpecError: not YAML, a key twice in one mapping, too many values, too deep; with its line.

    """
    if re.search(r"^%TAG", text, re.MULTILINE):  # the parser takes quadratic time for many of them
        raise SpecError("the directive %TAG is not read: plain values only")
    try:
        return _Composer(text, repeats=repeats).documents(several=several)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(f"not YAML: {why}", line=mark.line + 1 if mark else 0) from error
    except yaml.YAMLError as error:
        raise SpecError(f"not YAML: {error}") from error


class _Composer:
    """Builds values from the parser's events. They come one by one, so nothing is built beyond a limit."""

    def __init__(self, text: str, *, repeats: bool) -> None:
        self._parser = _LOADER(text)
        self._repeats = repeats
        self._anchors: dict[str, Value] = {}
        self._count = 0

    def documents(self, *, several: bool) -> list[Value]:
        """Reads every document of the text."""
        found: list[Value] = []
        try:
            self._parser.get_event()  # the stream's start
            while isinstance(start := self._parser.get_event(), yaml.DocumentStartEvent):
                if found and not several:
                    raise SpecError("not YAML: one document is expected, and here is another", line=_line(start))
                self._anchors = {}
                found.append(self._next((), 0))
                self._parser.get_event()  # the document's end
        finally:
            self._parser.dispose()
        return found

    def _next(self, place: Place, line: int) -> Value:
        """The value that comes next; `line` is its key's."""
        event = self._parser.get_event()
        line = line or _line(event)
        if len(place) > MAX_DEPTH:
            raise SpecError("nested too deeply", place[:3], line=line)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise SpecError(f"not YAML: found undefined alias {event.anchor!r}", place, line=line)
            value = self._anchors[event.anchor]._replace(line=line, anchored=False)
            self._counted(value.size, place, line)
            return value
        self._counted(1, place, line)
        if isinstance(event, yaml.ScalarEvent):
            value = Value(_scalar(event, line), line, {}, 1 + len(event.value) // LONG)
        elif event.tag not in _COLLECTIONS:
            raise SpecError(f"the tag {event.tag!r} is not read: plain values only", place, line=line)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(place, line)
        else:
            value = self._mapping(place, line)
        if event.anchor:
            value = value._replace(anchored=True)
            self._anchors[event.anchor] = value
        return value

    def _counted(self, count: int, place: Place, line: int) -> None:
        self._count += count
        if self._count > MAX_VALUES:
            problem = "too large: too many values (an alias counts each time it is used)"
            raise SpecError(problem, place[:3], line=line)

    def _sequence(self, place: Place, line: int) -> Value:
        parts: list[Value] = []
        while not isinstance(self._parser.peek_event(), yaml.SequenceEndEvent):
            parts.append(self._next((*place, len(parts)), 0))
        self._parser.get_event()
        anchored = any(one.anchored for one in parts)
        size = 1 + sum(one.size for one in parts)
        return Value([one.data for one in parts], line, dict(enumerate(parts)), size, anchored)

    def _mapping(self, place: Place, line: int) -> Value:
        own: dict[str | int, Value] = {}
        merged: dict[str | int, Value] = {}
        repeats: list[str] = []
        while not isinstance(event := self._parser.get_event(), yaml.MappingEndEvent):
            here = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise SpecError("a key must be a word", place, line=here)
            key = event.value
            value = self._next((*place, key), here)
            value = value._replace(size=value.size + len(key) // LONG)
            if key == "<<" and event.implicit[0]:
                merged = {**_merged(value, (*place, key)), **merged}  # what is merged first goes first
            elif key in own and self._repeats and _alike(own[key].data, value.data):
                repeats.append(key)
            elif key in own:
                problem = f"key given twice (first in line {own[key].line})"
                raise SpecError(problem, (*place, key), line=here)
            else:
                own[key] = value
        parts = {**merged, **own}
        data = {key: one.data for key, one in parts.items()}
        anchored = any(one.anchored for one in own.values())
        size = 1 + sum(one.size for one in parts.values())
        return Value(data, line, parts, size, anchored, tuple(repeats))


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same, in type too: a truth is no number."""
    return repr(one) == repr(other)


def _merged(value: Value, place: Place) -> Mapping[str | int, Value]:
    """The keys that `<<` brings: of a mapping, or of a list of them, of which the first goes first."""
    sources = list(value.parts.values()) if isinstance(value.data, list) else [value]
    if not all(isinstance(one.data, dict) for one in sources):
        raise SpecError("`<<` merges a mapping or a list of mappings", place, line=value.line)
    return {key: part for one in reversed(sources) for key, part in one.parts.items()}


def _scalar(event: yaml.ScalarEvent, line: int) -> Any:
    """A text, or what a plain one says: a number, a truth, nothing."""
    tag = event.tag if event.tag not in {None, "!"} else "" if event.implicit[0] else "tag:yaml.org,2002:str"
    wanted, text = str(tag).removeprefix("tag:yaml.org,2002:"), event.value
    if wanted == "str":
        return text
    if wanted not in {"", "int", "float", "bool", "null"}:
        problem = f"not YAML: could not determine a constructor for the tag {tag!r}"
        raise SpecError(problem, line=line)
    try:
        found = _plain(text)
    except ValueError as error:  # more digits than Python reads
        raise SpecError(f"not YAML: {error}", line=line) from error
    fits = {"int": int, "float": int | float, "bool": bool, "null": type(None)}
    if wanted and not isinstance(found, fits[wanted]):
        raise SpecError(f"not YAML: {text!r} is no {wanted}", line=line)
    return float(found) if wanted == "float" else found


def _plain(text: str) -> Any:
    if text in _NULLS:
        return None
    if text in _FLAGS:
        return _FLAGS[text]
    if _INTEGER.fullmatch(text):
        return int(text.replace("_", ""))
    if _PREFIXED.fullmatch(text):
        return int(text, 0)
    if _NUMBER.fullmatch(text):
        return float(text.replace("_", ""))
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _line(event: yaml.Event) -> int:
    mark: Any = event.start_mark
    return int(mark.line) + 1
