"""YAML whose values remember their line, so that an error can point at it. Safe loader only: no tag makes an object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from evomerge_common.errors import Path as Place
from evomerge_common.errors import SpecError

__all__ = ["LineMap", "load_yaml", "locate", "parse_yaml"]

MAX_BYTES = 1024 * 1024  # pure Python reads this in seconds; the C loader overruns its stack on deep nesting
MAX_VALUES = 200_000  # an alias counts each time it is used, so that a few lines cannot unfold into gigabytes
MAX_DEPTH = 100
_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

S = TypeVar("S", bound=SpecError)


class LineMap:
    """Place in the document, such as ("tasks", 1, "kind"), → its line; the first line is 1."""

    def __init__(self, lines: Mapping[Place, int]) -> None:
        self._lines = lines

    def line(self, path: Place) -> int:
        """The line of a place, or of its nearest parent that the document has; 0 for an empty document."""
        for end in range(len(path), -1, -1):
            if path[:end] in self._lines:
                return self._lines[path[:end]]
        return 0


def load_yaml(path: Path) -> tuple[Any, LineMap]:
    """Reads one YAML (or JSON) document.

    Raises:
        SpecError: no such file, too large, not UTF-8, not YAML, a key twice in one mapping.

    """
    file = str(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SpecError(
                f"the file has {size} bytes; at most {MAX_BYTES} are read: put items into a data file", file=file
            )
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"not UTF-8 text: {error}", file=file) from error
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", file=file) from error
    return parse_yaml(text, file)


def parse_yaml(text: str, file: str = "") -> tuple[Any, LineMap]:
    """Reads one YAML document from text; `file` is how errors call it.

    Raises:
        SpecError: see `load_yaml`.

    """
    loader = yaml.SafeLoader(text)
    lines: dict[Place, int] = {}
    try:
        node = loader.get_single_node()
        data = None if node is None else _Reader(loader, lines, file).value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(f"not YAML: {why}", file=file, line=mark.line + 1 if mark else 0) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise SpecError(f"not YAML: {error}", file=file) from error
    except RecursionError as error:
        raise SpecError("nested too deeply", file=file) from error
    finally:
        loader.dispose()
    return data, LineMap(lines)


def locate(error: S, file: str, lines: LineMap) -> S:
    """The same error with file and line, unless it has them already."""
    if error.file:
        return error
    return type(error)(error.problem, error.path, file=file, line=lines.line(error.path))


class _Reader:
    """Turns nodes into plain data, noting each one's line."""

    def __init__(self, loader: yaml.SafeLoader, lines: dict[Place, int], file: str) -> None:
        self.loader, self.lines, self.file = loader, lines, file
        self.values = 0

    def value(self, node: yaml.Node, path: Place, line: int | None = None) -> Any:
        self.values += 1
        here = node.start_mark.line + 1 if line is None else line
        if self.values > MAX_VALUES:
            raise SpecError("too many values (an alias counts each time it is used)", path, file=self.file, line=here)
        if len(path) > MAX_DEPTH:
            raise SpecError("nested too deeply", path[:3], file=self.file, line=here)
        self.lines[path] = here
        if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN:
            raise SpecError(f"the tag {node.tag!r} is not read: plain values only", path, file=self.file, line=here)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        return self.loader.construct_object(node)

    def mapping(self, node: yaml.MappingNode, path: Place) -> dict[Any, Any]:
        merged = [key for key, _ in node.value if key.tag == "tag:yaml.org,2002:merge"]
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node in merged:
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise SpecError("a key must be a word", path, file=self.file, line=key_node.start_mark.line + 1)
            key = self.loader.construct_object(key_node)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise SpecError(f"key given twice (first in line {seen[key]})", (*path, key), file=self.file, line=line)
            seen[key] = line
        if merged:
            self.loader.flatten_mapping(node)
        data = {}
        for key_node, value_node in node.value:  # merged keys come first, so the mapping's own win
            key = self.loader.construct_object(key_node)
            data[key] = self.value(value_node, (*path, key), key_node.start_mark.line + 1)
        return data
