"""What is done to a source of another build, in words: what was matched, what was adapted, what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_merging.cross_domain.adapted import AdaptedStore, layer_at
from evomerge_merging.cross_domain.anatomy import Anatomy, Part
from evomerge_merging.cross_domain.roles import AXES
from evomerge_merging.cross_domain.tokens import TokenRows
from evomerge_merging.engine.architecture import text_config

_MEANING = (
    ("activation", ("hidden_act", "activation_function", "activation", "hidden_activation")),
    ("norm epsilon", ("layer_norm_eps", "rms_norm_eps", "layer_norm_epsilon")),
    ("rope_theta", ("rope_theta",)),
)
_SHOWN = 6
_ORDER = list(AXES)


def describe(
    source: Anatomy,
    target: Anatomy,
    store: AdaptedStore,
    how: CrossDomain,
    rows: TokenRows,
    why: str,
    *,
    own_vocabulary: bool,
) -> list[str]:
    """Writes the plan for one source, a sentence a line, each with the source's name in front."""
    whole = [
        part for part in target.where if store.source_name(part) and target.where[part] not in store.target_tensors
    ]
    used = [p for p in whole if how.strategy != "adapter" or p.role in {"token embedding", "head"} or store.fits(p)]
    taken = {store.source_part(part) for part in used}
    notes = [
        f"adapted to {target.name} ({why}): {source.build} into {target.build}; strategy {how.strategy}, width "
        f"{how.width}" + (f", weight {how.weight:g}" if how.weight != 1.0 else ""),
        f"matched by role: {_roles(used)}",
    ]
    if source.depth != target.depth and any(part.layer is not None for part in used):
        places = [layer_at(i, target.depth, source.depth) for i in range(target.depth)]
        skipped = sorted(set(range(source.depth)) - set(places))
        notes.append(
            f"layers by relative position: 0 to {target.depth - 1} take {', '.join(map(str, places))}"
            + (f"; left out: {', '.join(map(str, skipped))}" if skipped else "")
        )
    if how.strategy != "adapter":
        notes += _widths(source, target, how, rows)
    if own_vocabulary:
        notes.append("vocabulary: united by the recipe's tokenizer setting")
    elif not rows.is_identity and used:
        notes.append(_tokens(source, target, rows))
    layers = {part.layer for part in taken} if how.strategy != "embedding_only" else {p.layer for p in source.where}
    left = [part for part in source.where if part not in taken and part.layer in {None, *layers}]
    target_parts = [part for part in target.where if part not in used]
    for what, parts, unknown in (
        ("left out", left, source.unknown),
        (f"kept as in {target.name}", target_parts, target.unknown),
    ):
        without = f"{len(unknown)} without a role that is known ({_few(unknown)})" if unknown else ""
        if parts or unknown:
            notes.append(f"{what}: " + "; ".join(filter(None, [_roles(parts) if parts else "", without])))
    ours, theirs = text_config(target.source.config), text_config(source.source.config)
    for what, keys in _MEANING:
        here, there = (next((c[key] for key in keys if key in c), None) for c in (ours, theirs))
        if here != there and here is not None and there is not None:
            notes.append(f"{what} is {there}; {target.name}'s {here} is kept")
    return [f"{source.name}: {note}" for note in notes]


def _roles(parts: Sequence[Part]) -> str:
    """Such as "query, key weight and bias in 12 layers; token embedding"."""
    counts: Counter[tuple[str, str, int]] = Counter()
    parts = sorted(parts, key=lambda part: (_ORDER.index(part.role), part.suffix != "weight", part.layer or 0))
    layers = Counter((part.role, part.suffix) for part in parts if part.layer is not None)
    order = dict.fromkeys((part.role, part.suffix, part.layer is not None) for part in parts)
    for role, kind, inside in order:
        counts[role, kind, layers[role, kind] if inside else 0] = 1
    by_role: dict[tuple[str, int], list[str]] = {}
    for role, kind, count in counts:
        by_role.setdefault((role, count), []).append(kind)
    texts = sorted(((count, role, kinds) for (role, count), kinds in by_role.items()), key=lambda item: -item[0])
    found = []
    for count, group in groupby(texts, key=lambda item: item[0]):
        names = ", ".join(f"{role} bias" if kinds == ["bias"] else role for _, role, kinds in group)
        found.append(f"{names} in {count} layer{'s' if count != 1 else ''}" if count else names)
    return "; ".join(found) or "nothing"


def _widths(source: Anatomy, target: Anatomy, how: CrossDomain, rows: TokenRows) -> list[str]:
    notes = []
    shared = len(rows.pairs()[0])
    if how.width == "align":
        sizes = f"{source.hidden} dimensions into {target.hidden}" if source.hidden != target.hidden else "basis"
        notes.append(f"{sizes} by an orthogonal map fitted to the embeddings of {shared:,} shared tokens")
        if shared < min(source.hidden, target.hidden):
            notes.append(f"{shared} shared tokens are too few to fix all dimensions: the others stay in their order")
    elif source.hidden != target.hidden:
        notes.append(f"{source.hidden} dimensions into {target.hidden}: the leading ones")
    if how.strategy == "full":
        for what, there, here in (
            ("heads", source.heads, target.heads), ("dimensions a head", source.head_size, target.head_size),
            ("neurons a layer", source.mlp, target.mlp),
        ):  # fmt: skip
            if there > here:
                notes.append(f"{there} {what} into {here}: {there - here} are left out")
            elif there < here:
                rest = "zero" if how.width == "pad" else f"{target.name}'s own"
                notes.append(f"{there} {what} into {here}: the others are {rest}")
        if source.heads // source.kv_heads != target.heads // target.kv_heads:
            notes.append(
                f"{source.kv_heads} key-value heads into {target.kv_heads}: each query head brings its own, and those "
                "that share one get the mean"
            )
        if source.learned_positions != target.learned_positions:
            notes.append(
                f"positions are {_positions(source)} there and {_positions(target)} in {target.name}, which is kept"
            )
    return notes


def _positions(who: Anatomy) -> str:
    return "learned" if who.learned_positions else "rotations"


def _tokens(source: Anatomy, target: Anatomy, rows: TokenRows) -> str:
    parts = [f"{rows.same:,} of {target.rows:,} tokens are found by their text"]
    if rows.folded:
        parts.append(f"{rows.folded:,} of them but for letter case")
    if rows.composed:
        parts.append(f"{rows.composed:,} by the mean of the parts that {source.name} writes them with")
    if rows.own:
        parts.append(f"{rows.own:,} keep {target.name}'s own rows")
    if rows.unused:
        parts.append(f"{rows.unused:,} tokens of {source.name} are left out")
    return "vocabulary: " + ", ".join(parts)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
