"""Linear merges of linear merges as one weighted sum.

Some methods are linear in their sources (see `Traits.linear`), so a chain of them is one sum over what is at its
leaves, each leaf read once, whatever the depth: cheaper, and exact up to float32's rounding. A single merge is left as
it is.
A merge of one tensor with itself is that tensor: what adapters of one base leave alone costs nothing.
"""

from __future__ import annotations

from evomerge_merging.engine.nodes import Apply, Load, Node, children
from evomerge_merging.methods.forms import shares
from evomerge_merging.methods.registry import method

_ROUNDING = 1e-6


def flatten(node: Node, done: dict[int, Node] | None = None) -> Node:
    """The same value with chains of linear methods as one.

    Args:
        node: any expression; other methods stay, with their inputs flattened.
        done: what was flattened already, by the id of its node, so that shared parts stay shared.

    """
    done = {} if done is None else done
    if isinstance(node, Load):
        return node
    if id(node) not in done:
        done[id(node)] = _flattened(node, done)
    return done[id(node)]


def _flattened(node: Apply, done: dict[int, Node]) -> Node:
    inputs = tuple(flatten(child, done) for child in node.inputs)
    base = None if node.base is None else flatten(node.base, done)
    if inputs != node.inputs or base is not node.base:
        node = Apply(node.method, inputs, base, node.parameters, node.masks, node.shape, node.dtype, node.names)
    if (only := _only_leaf(node)) is not None:
        return only
    if not _is_linear(node) or not any(_is_linear(child) for child in children(node)):
        return node
    terms: dict[object, tuple[Node, float]] = {}
    for leaf, factor in _terms(node, 1.0):
        key = _identity(leaf) if isinstance(leaf, Load) else id(leaf)
        terms[key] = (leaf, factor + (terms[key][1] if key in terms else 0.0))
    if len(terms) == 1 and abs(next(iter(terms.values()))[1] - 1.0) <= _ROUNDING:
        return next(iter(terms.values()))[0]
    leaves = tuple(leaf for leaf, _ in terms.values())
    weights = tuple(factor for _, factor in terms.values())
    parameters = {"weight": weights, "normalize": False}
    return Apply(method("linear"), leaves, None, parameters, (), node.shape, node.dtype)


def terms_of(node: Node) -> list[tuple[Node, float]]:
    """Leaves and factors of the sum that the node is; of what is no linear merge itself, with the factor 1."""
    return _terms(node, 1.0)


def _only_leaf(node: Apply) -> Load | None:
    """The source tensor that the node is nothing but, if there is one."""
    leaves = [child for child in children(node) if isinstance(child, Load)]
    if not node.method.traits.idempotent or len(leaves) < max(2, len(children(node))):
        return None
    if any(_identity(leaf) != _identity(leaves[0]) for leaf in leaves):
        return None
    if _is_linear(node) and abs(sum(factor for _, factor in _terms(node, 1.0)) - 1.0) > _ROUNDING:
        return None
    return leaves[0]


def _identity(leaf: Load) -> tuple[object, ...]:
    return leaf.source, leaf.name, leaf.cast


def _is_linear(node: Node) -> bool:
    return isinstance(node, Apply) and node.method.traits.linear


def _terms(node: Node, factor: float) -> list[tuple[Node, float]]:
    """Leaves and their factors, repeats included."""
    if isinstance(node, Load) or not _is_linear(node):
        return [(node, factor)]
    own = node.parameters
    given = own["weight"] if "weight" in own else own["scale"]
    factors = shares(given, normalize=own.get("normalize", False))
    weights = [weight * own.get("lambda", 1.0) for weight in factors]
    found = [term for child, w in zip(node.inputs, weights, strict=True) for term in _terms(child, factor * w)]
    if node.base is not None:
        found = _terms(node.base, factor * (1.0 - sum(weights))) + found
    return found
