"""What people and clients write, read once: YAML (or JSON, which is YAML) whose values remember their lines.

Bounded before anything is built: bytes, then depth and number of values while the parser's events come in one by one.
No tag makes an object. Numbers are YAML 1.2's (`1e-3` is one), keys are texts, `<<` merges (docs/adr/0013).
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from evomerge_common.errors import Path as Place
from evomerge_common.errors import SpecError
from evomerge_common.runtime.yaml_values import MAX_DEPTH, NOTHING, Value, compose

__all__ = ["Document", "read_bytes", "read_file", "read_text"]

MAX_BYTES = 1024 * 1024
MAX_JSON_BYTES = 64 * 1024 * 1024  # a spec with all its items; JSON is read fifty times as fast as YAML
MAX_JSON_VALUES = 2_000_000

S = TypeVar("S", bound=SpecError)


class Document:
    """A text's data, and the line at which each place of it begins.

    Attributes:
        name: how errors call it: a file's name; "": errors stay as they are.
        data: dicts with keys of text, lists, texts, numbers, booleans, None.
        several: whether the text is of several documents, set apart by `---`: `data` is a list of them then.

    """

    def __init__(
        self, name: str = "", data: Any = None, *, several: bool = False, value: Value | None = None, source: str = ""
    ) -> None:
        self.name, self.data, self.several = name, data, several
        self._value = value
        self._source = source  # of a text whose values have not been looked for

    def line(self, place: Place) -> int:
        """Finds the line of a place, such as ("tasks", 1, "kind"), or of the nearest above it that there is.

        The first line is 1; 0 is that of an empty document, and of JSON too large to look for it.
        """
        if self._value is None:
            self._value = _value_of_json(self._source)
        value = self._value
        for key in place:
            if key not in value.parts:
                break
            value = value.parts[key]
        return value.line

    def is_anchored(self, place: Place) -> bool:
        """Tells whether an anchor (`&name`) is set at a place, or inside of what is there."""
        value = self._value or NOTHING
        for key in place:
            if key not in value.parts:
                return False
            value = value.parts[key]
        return value.anchored

    def repeats(self) -> list[Place]:
        """Returns the places of keys that are given twice with one value (see `read_text`)."""
        found: list[Place] = []
        rest: list[tuple[Place, Value]] = [((), self._value or NOTHING)]
        while rest:
            place, value = rest.pop()
            found += [(*place, key) for key in value.repeats]
            rest += [((*place, key), part) for key, part in value.parts.items()]
        return sorted(found, key=self.line)

    def located(self, error: S) -> S:
        """Returns the same error with name and line, unless it has them already."""
        if error.file or not self.name:
            return error
        return type(error)(error.problem, error.path, file=self.name, line=self.line(error.path))


def read_file(
    path: Path, *, several: bool = False, repeats: bool = False, error: type[SpecError] = SpecError
) -> Document:
    """Reads a file that the user of this machine names. For a client's text there is `read_text`, and nothing else.

    Raises:
        SpecError (or `error`): no such file, no regular file, not UTF-8; and what `read_text` refuses.

    """
    try:
        text = read_bytes(path, MAX_JSON_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"not UTF-8 text: {problem}", file=str(path)) from problem
    except OSError as problem:
        raise error(f"cannot be read: {problem.strerror or problem}", file=str(path)) from problem
    return read_text(text, str(path), several=several, repeats=repeats, error=error)


def read_bytes(path: Path, most: int) -> bytes:
    """Reads a regular file: what would block or never end, such as a FIFO or a device, is not opened for long.

    Raises:
        OSError: it cannot be opened, is no regular file, or has more than `most` bytes.

    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"it has {found.st_size} bytes; at most {most} are read", str(path))
        return file.read(most)


def read_text(
    text: str, name: str = "", *, several: bool = False, repeats: bool = False, error: type[SpecError] = SpecError
) -> Document:
    """Reads YAML or JSON text; with `several` also more documents than one.

    Args:
        text: at most MAX_BYTES of YAML, or MAX_JSON_BYTES of JSON.
        name: how errors call it.
        several: whether `---` may set documents apart.
        repeats: whether a mapping of YAML may give a key twice, if with one value: `Document.repeats` tells.
        error: the class of what is raised.

    Raises:
        SpecError (or `error`): not YAML, a key twice in one mapping, too large, too deep; with its line.

    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as problem:
        raise error(f"not UTF-8 text: {problem}", file=name) from problem
    refusal = f"longer than may be: {size} bytes; at most {MAX_BYTES} are read (in a suite, put items into data files)"
    try:
        if text.lstrip()[:1] in {"{", "["}:
            if size > MAX_JSON_BYTES:
                raise SpecError(refusal)
            try:
                return Document(name, _json(text), source=text)
            except ValueError as problem:  # a mapping in braces may be YAML all the same
                if size > MAX_BYTES:
                    raise SpecError(f"{refusal}; and it is not JSON: {problem}") from problem
        if size > MAX_BYTES:
            raise SpecError(refusal)
        return _yaml(text, name, several=several, repeats=repeats)
    except SpecError as problem:
        raise error(problem.problem, problem.path, file=name, line=problem.line) from problem.__cause__


# ---- JSON ----


def _json(text: str) -> Any:
    # Each value but the first follows one of these marks: an upper bound of their number, before one of them is made.
    if sum(text.count(mark) for mark in ",[{") > MAX_JSON_VALUES:
        raise SpecError(f"too large: too many values; at most {MAX_JSON_VALUES} are read")
    try:
        data = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse)
    except RecursionError:
        raise SpecError("nested too deeply", line=1) from None
    level, depth = [data], 0
    while level:
        if depth > MAX_DEPTH:
            raise SpecError("nested too deeply", line=1)
        level = [
            part
            for one in level
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, dict | list)
        ]
        depth += 1
    if "\\ud" in text or "\\uD" in text:
        json.dumps(data, ensure_ascii=False).encode()  # half of a surrogate pair is no text: a ValueError
    return data


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _value_of_json(text: str) -> Value:
    """Where the values of a JSON text are: looked for when somebody asks, since most of it is right."""
    if "\n" not in text.strip():
        return NOTHING._replace(line=1 if text else 0)
    if len(text) > MAX_BYTES:
        return NOTHING
    try:
        return compose(text)[0]
    except SpecError:
        return NOTHING


def _yaml(text: str, name: str, *, several: bool, repeats: bool) -> Document:
    found = compose(text, several=several, repeats=repeats)
    if len(found) > 1:
        whole = Value([one.data for one in found], 1, dict(enumerate(found)), 0)
        return Document(name, whole.data, several=True, value=whole)
    value = found[0] if found else NOTHING
    return Document(name, value.data, value=value)
