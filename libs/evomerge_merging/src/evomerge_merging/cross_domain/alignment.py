"""Where one model keeps what another keeps elsewhere: the basis of the residual stream, the order of heads and neurons.

* The basis: the orthogonal map that brings the shared tokens' embeddings closest to each other (Procrustes, Schönemann
  1966); between two widths, its orthonormal columns or rows.
* Heads: in the common basis, by how alike the maps are that they apply, query with key and value with output, whatever
  basis a head uses inside; then that basis, by Procrustes (only its order where positions are rotations).
* Neurons: by how alike their weights are (Ainsworth et al. 2023, "Git Re-Basin").

Where everything already is in its place (a fine-tune, a model distilled from the other's layers), the answer is exactly
"the same", and nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evomerge_merging.cross_domain.anatomy import Anatomy, Part
from evomerge_merging.cross_domain.axes import AxisMap, Heads, Pick, Rotate, Same, along, leading
from evomerge_merging.cross_domain.tokens import TokenRows

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

IN_PLACE = 0.9
"""Of the best agreement that any map reaches: who reaches so much without one is in its place already."""
_ROWS_AT_ONCE = 4096
_SKETCH = 512
"""Neurons are compared by so many numbers at most: random projections keep angles (Johnson & Lindenstrauss 1984)."""
_ROUNDS = 64


@dataclass(frozen=True)
class LayerMaps:
    """Maps of the axes of one layer."""

    queries: AxisMap
    keys: AxisMap
    values: AxisMap
    context: AxisMap
    units: AxisMap


@contextmanager
def one_thread() -> Iterator[None]:
    """Has sums made in one order: the last bits of a matrix product depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


def procrustes(product: Tensor) -> Tensor | None:
    """Finds the map M [there, here] with orthonormal columns or rows for which tr(Mᵀ·product) is largest.

    Args:
        product: float64 [there, here], the sum of the outer products of vectors that are to meet.

    Returns:
        The map as float32; None when the vectors are in their place already.

    """
    there, here = product.shape
    size = torch.linalg.matrix_norm(product, ord=2)
    if not bool(size > 0):
        return None if there == here else torch.eye(there, here)
    # Directions that no vector has are anybody's guess: the nudge makes them stay where they are.
    left, values, right = torch.linalg.svd(product + 1e-9 * size * torch.eye(there, here, dtype=product.dtype), False)
    if there == here and bool(product.trace() >= IN_PLACE * values.sum()):
        return None
    found: Tensor = (left @ right).float()
    return found


def hidden_map(source: Anatomy, target: Anatomy, rows: TokenRows) -> AxisMap:
    """Finds the map of the residual stream, from the embeddings of the tokens that both know."""
    part = Part("token embedding", None, "weight")
    product = torch.zeros(source.hidden, target.hidden, dtype=torch.float64)
    moments = torch.zeros(source.hidden, source.hidden, dtype=torch.float64)
    here, there = rows.pairs()
    for start in range(0, len(here), _ROWS_AT_ONCE):
        step = slice(start, start + _ROWS_AT_ONCE)
        ours = target.source.store.rows(target.where[part], torch.from_numpy(here[step])).float()
        theirs = source.source.store.rows(source.where[part], torch.from_numpy(there[step])).float()
        product += (theirs.T @ ours).double()
        moments += (theirs.T @ theirs).double()
    found = procrustes(product)
    if found is None:
        return Same()
    return Rotate(found, _swelling(found.double(), moments) if source.hidden > target.hidden else 1.0)


def _swelling(matrix: Tensor, moments: Tensor) -> float:
    """How much the root mean square of a narrowed stream is above that of the whole: the map keeps what is largest.

    A norm divides by it. Where a stream is widened the target's own dimensions stand beside, and it is left alone:
    measured, merges are worse otherwise.

    Args:
        matrix: the map [there, here].
        moments: sum of the outer products [there, there] of the vectors that are mapped.

    """
    there, here = matrix.shape
    share = (matrix.T @ moments @ matrix).trace() / moments.trace().clamp(min=1e-300)
    return math.sqrt(max(1.0, float(share * there / here)))


def layer_maps(source: Anatomy, theirs: int, target: Anatomy, ours: int, hidden: AxisMap) -> LayerMaps:
    """Aligns layer `theirs` of the source with layer `ours` of the target."""

    def pair(role: str, hidden_axis: int) -> tuple[Tensor, Tensor]:
        maps = [Same(), hidden] if hidden_axis else [hidden, Same()]
        seen = along(source.read(Part(role, theirs, "weight")), tuple(maps), lambda one, x: one.take(x))
        return target.read(Part(role, ours, "weight")), seen

    query, key, value = pair("query", 1), pair("key", 1), pair("value", 1)
    output = pair("attention output", 0)
    both = tuple(zip((target, source), (0, 1), strict=True))
    q = [_by_head(query[i], who.heads) for who, i in both]
    k = [_by_head(_repeated(key[i], who), who.heads) for who, i in both]
    v = [_by_head(_repeated(value[i], who), who.heads) for who, i in both]
    o = [_by_head(output[i].T, who.heads) for who, i in both]
    order = _order((_alike(q, k) + _alike(v, o)).numpy())
    inside = _bases(q, k, order) if _free(source) and _free(target) else _fixed(source, target)
    scale = 1.0 if source.head_size == target.head_size else (target.head_size / source.head_size) ** 0.5
    free = _bases(v, o, order)
    queries, keys = _heads(order, inside, source, scale), _heads(order, inside, source)
    values = _heads(order, free, source)
    units = [_neurons(source, theirs, hidden), _neurons(target, ours, Same())]
    matched = _order(_sketched(units[1], units[0]).numpy())
    return LayerMaps(queries, keys, values, values, Same() if matched is None else Pick(torch.from_numpy(matched)))


def leading_maps(source: Anatomy, target: Anatomy) -> LayerMaps:
    """Maps without alignment: heads, their dimensions and neurons in their order, as far as both have them."""
    order = torch.arange(target.heads)
    order[order >= source.heads] = -1
    scale = 1.0 if source.head_size == target.head_size else (target.head_size / source.head_size) ** 0.5
    same = order if source.heads != target.heads else None
    inside = _fixed(source, target)
    heads = _heads(same, inside, source)
    return LayerMaps(_heads(same, inside, source, scale), heads, heads, heads, leading(source.mlp, target.mlp))


# ---- heads ----


def _free(model: Anatomy) -> bool:
    """Whether a head may use any basis for queries and keys: no rotation by position, no norm of single dimensions."""
    return model.learned_positions and Part("query norm", 0, "weight") not in model.where


def _repeated(rows: Tensor, model: Anatomy) -> Tensor:
    """Keys or values with one head for each query head."""
    if model.kv_heads == model.heads:
        return rows
    shaped = rows.reshape(model.kv_heads, model.head_size, *rows.shape[1:])
    return shaped.repeat_interleave(model.heads // model.kv_heads, 0).reshape(-1, *rows.shape[1:])


def _by_head(rows: Tensor, heads: int) -> Tensor:
    return rows.reshape(heads, -1, rows.shape[-1])


def _alike(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Cosine of AᵀB between all heads here and there: [here, there]. `one`, `other`: A and B of (target, source)."""

    def products(i: int, j: int) -> Tensor:
        shape = (one[i].shape[0], one[i].shape[1], one[j].shape[0], one[j].shape[1])
        first = one[i].flatten(0, 1) @ one[j].flatten(0, 1).T
        second = other[i].flatten(0, 1) @ other[j].flatten(0, 1).T
        return (first * second).reshape(shape).sum((1, 3))

    norms = [products(i, i).diagonal().clamp(min=1e-30).sqrt() for i in (0, 1)]
    return products(0, 1) / (norms[0][:, None] * norms[1][None])


def _bases(one: list[Tensor], other: list[Tensor], order: NDArray[np.int64] | None) -> Tensor | None:
    """For each head here, the map [size there, size here] of its dimensions; None: all are in their place."""
    picked = np.arange(one[0].shape[0]) if order is None else np.maximum(order, 0)
    found = []
    for here, there in enumerate(picked):
        product = one[1][there] @ one[0][here].T + other[1][there] @ other[0][here].T
        found.append(procrustes(product.double()))
    if all(matrix is None for matrix in found):
        return None
    there, here = one[1].shape[1], one[0].shape[1]
    return torch.stack([torch.eye(there, here) if matrix is None else matrix for matrix in found])


def _fixed(source: Anatomy, target: Anatomy) -> Tensor | None:
    """Dimensions by their number; where positions rotate pairs of them, by the speed of their rotation."""
    there, here = source.head_size, target.head_size
    if there == here:
        return None
    matrix = torch.eye(there, here)
    if not source.learned_positions and not target.learned_positions and there % 2 == here % 2 == 0:
        matrix = torch.zeros(there, here)
        larger, smaller = max(there, here) // 2, min(there, here) // 2
        if larger % smaller:
            return torch.eye(there, here).repeat(target.heads, 1, 1)
        for i in range(smaller):
            j = i * (larger // smaller)
            a, b = (i, j) if there < here else (j, i)
            matrix[a, b] = matrix[a + there // 2, b + here // 2] = 1.0
    return matrix.repeat(target.heads, 1, 1)


def _heads(
    order: NDArray[np.int64] | Tensor | None, matrices: Tensor | None, source: Anatomy, scale: float = 1.0
) -> AxisMap:
    if order is None and matrices is None and scale == 1.0:
        return Same()
    if matrices is None:
        assert order is not None
        matrices = torch.eye(source.head_size).repeat(len(order), 1, 1)
    return Heads(torch.arange(len(matrices)) if order is None else torch.as_tensor(order), matrices, scale)


# ---- neurons ----


def _neurons(model: Anatomy, layer: int, hidden: AxisMap) -> list[Tensor]:
    """What a layer's neurons read and write in the target's basis: [neurons, hidden] each."""
    roles = [role for role in ("up", "gate", "down") if Part(role, layer, "weight") in model.where]
    found = []
    for role in roles:
        weights = model.read(Part(role, layer, "weight"))
        rows = weights.T if role == "down" else weights
        found.append(along(rows, (Same(), hidden), lambda one, x: one.take(x)))
    return found


def _sketched(here: list[Tensor], there: list[Tensor]) -> Tensor:
    """Mean cosine of neurons, [here, there]; of a gate that only one model has, the other's `up` is no match."""
    ours = [here[0], here[-1]] if len(here) != len(there) else here
    theirs = [there[0], there[-1]] if len(here) != len(there) else there
    total = torch.zeros(len(here[0]), len(there[0]))
    for a, b in zip(ours, theirs, strict=True):
        total += _unit(a) @ _unit(b).T
    return total / len(ours)


def _unit(rows: Tensor) -> Tensor:
    """Rows of length one, of so few numbers that comparing all with all is cheap."""
    if rows.shape[1] > _SKETCH:
        generator = np.random.Generator(np.random.PCG64(0))
        rows = rows @ torch.from_numpy(generator.standard_normal((rows.shape[1], _SKETCH), np.float32))
    return torch.nn.functional.normalize(rows, dim=1)


# ---- who is whose ----


def _order(score: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """For each row its column, -1 for none; None when each row's own number is (nearly) as good.

    Pairs that prefer each other are taken, then those among the rest, and so on: an exact copy in another order is
    found exactly, and it costs a few passes over the matrix where an optimal assignment would cost its cube.
    """
    here, there = score.shape
    found = np.full(here, -1, np.int64)
    rows, columns, left = np.arange(here), np.arange(there), score
    for _ in range(_ROUNDS):
        if not len(rows) or not len(columns):
            break
        choice, chooser = left.argmax(1), left.argmax(0)
        mutual = chooser[choice] == np.arange(len(rows))
        found[rows[mutual]] = columns[choice[mutual]]
        stay = np.ones(len(columns), bool)
        stay[choice[mutual]] = False
        rows, columns, left = rows[~mutual], columns[stay], left[~mutual][:, stay]
    for row, column in zip(rows, columns, strict=False):
        found[row] = column
    if here == there:
        total = float(score[np.arange(here), found].sum(dtype=np.float64))
        if float(score.trace(dtype=np.float64)) >= IN_PLACE * total:
            return None
    return found
