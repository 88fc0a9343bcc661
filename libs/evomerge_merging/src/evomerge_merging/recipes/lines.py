"""YAML with the line of every value; nothing but plain data comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from evomerge_common.errors import Path, RecipeError

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
MAX_NESTING = 200


@dataclass
class Document:
    """A document's data, and the line at which each path in it begins.

    A text of `several` documents, set apart by `---`, has the list of their data; paths begin with their number.
    """

    file: str
    data: Any = None
    several: bool = False
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """The line of a path, or of the nearest place above it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return 1

    def locate(self, error: RecipeError) -> RecipeError:
        """The error with file and line."""
        located = error.located(self.file, self.line(error.path))
        assert isinstance(located, RecipeError)
        return located


def read_yaml(text: str, file: str) -> Document:
    """Reads a YAML text of one document or several.

    Raises:
        RecipeError: it is not YAML, has a key twice, or is too large; with its line.

    """
    document = Document(file)
    if len(text) > MAX_BYTES:
        raise RecipeError(f"longer than any recipe ({MAX_BYTES} characters)", file=file, line=1)
    loader = yaml.SafeLoader(text)
    try:
        nodes: list[yaml.Node] = []
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            nodes.append(node)
        _Reader(loader, document).read(nodes)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise RecipeError(f"not YAML: {error.problem}", file=file, line=mark.line + 1 if mark else 1) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"not YAML: {error}", file=file, line=1) from error
    finally:
        loader.dispose()
    return document


class _Reader:
    """Nodes → data. Aliases are followed, within a limit: a small text must not become a large document."""

    def __init__(self, loader: yaml.SafeLoader, document: Document) -> None:
        self._loader = loader
        self._document = document
        self._count = 0

    def read(self, nodes: list[yaml.Node]) -> None:
        if len(nodes) > 1:
            self._document.several = True
            self._document.data = [self._value(node, (i,)) for i, node in enumerate(nodes)]
        else:
            self._document.data = self._value(nodes[0], ()) if nodes else None

    def _value(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self._document.lines.setdefault(path, line)
        self._count += 1
        if self._count > MAX_VALUES or len(path) > MAX_NESTING:
            raise RecipeError("too large or too deeply nested", file=self._document.file, line=line)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, i)) for i, item in enumerate(node.value)]
        value = self._loader.construct_object(node)
        return _number(value) if isinstance(value, str) and getattr(node, "style", None) is None else value

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError("a key must be a word", path, file=self._document.file, line=line)
            key = str(key_node.value)
            if key in result:
                raise RecipeError("this key is given twice", (*path, key), file=self._document.file, line=line)
            self._document.lines[*path, key] = line
            result[key] = self._value(value_node, (*path, key))
        return result


def _number(text: str) -> Any:
    """YAML 1.1 takes 1e-3 for a text; recipes mean the number."""
    if text[:1] in "0123456789+-." and any(letter in text for letter in "eE"):
        try:
            return float(text)
        except ValueError:
            return text
    return text
