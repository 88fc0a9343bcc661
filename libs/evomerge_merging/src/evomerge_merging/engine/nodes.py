"""One output tensor as an expression over source tensors: the nodes that it is made of.

A node is a source's tensor (`Load`) or a method over nodes (`Apply`); nested recipes are just deeper nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge_merging.methods.registry import Method
from evomerge_merging.numerics.random_words import MaskKey
from evomerge_models.dtypes import ElementType


@dataclass(frozen=True, eq=False)
class Load:
    """A source's tensor. `cast`: the type that its elements are rounded to before anything else (None: as stored)."""

    source: str
    label: str
    name: str
    shape: tuple[int, ...]
    dtype: ElementType
    cast: ElementType | None = None


@dataclass(frozen=True, eq=False)
class Apply:
    """A method over nodes of one shape.

    Attributes:
        parameters: by recipe name; per-model ones as tuples as long as `inputs`.
        masks: key of each input's random words.
        dtype: what the result is written in if the recipe names none.
        names: the tensor's name in each input.

    """

    method: Method
    inputs: tuple[Node, ...]
    base: Node | None
    parameters: Mapping[str, Any]
    masks: tuple[MaskKey, ...]
    shape: tuple[int, ...]
    dtype: ElementType
    names: tuple[str, ...] = ()


Node = Load | Apply


def loads(node: Node) -> Iterator[Load]:
    """Gives every source tensor of the expression, repeats included."""
    if isinstance(node, Load):
        yield node
        return
    for child in children(node):
        yield from loads(child)


def children(node: Apply) -> list[Node]:
    """Gives the base first, where there is one, then the inputs."""
    return ([node.base] if node.base is not None else []) + list(node.inputs)


def whole_bytes(node: Node) -> int:
    """Bytes of the tensors that must be in memory at once because a method asked for them whole."""
    if isinstance(node, Load):
        return 0
    below = sum(whole_bytes(child) for child in children(node))
    return below + (math.prod(node.shape) * 4 * (len(children(node)) + 2) if node.method.whole else 0)


def needs_statistics(node: Node) -> bool:
    """Whether anything must be known of the whole tensor before its first piece."""
    if isinstance(node, Load):
        return False
    return node.method.statistics is not None or node.method.whole or any(needs_statistics(c) for c in children(node))
