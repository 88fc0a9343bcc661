"""A run's folded state as bytes, so that a restart need not fold the whole log.

A snapshot only speeds replay: whatever is in the log counts, and a snapshot of another version, of another shape of the
state, or damaged, is as good as none. Every attribute of the state machine is in it but those that follow from the
others (the spec as read, and the proposer, whose strategy is told its results again). JSON with the name of each
class; only classes named here are made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

from evomerge_common import __version__
from evomerge_common.domain import messages, racing, spec
from evomerge_selector.domain import candidate, grading, leaderboard, ledger, proof, race
from evomerge_selector.domain.run import Phase, Run

FORMAT = 1
DERIVED = frozenset({"spec", "_proposer"})
"""Attributes that follow from the others."""


@cache
def _classes() -> dict[str, type]:
    """Values (frozen dataclasses) and parts with a state of their own, by name."""
    modules = (messages, spec, racing, candidate, grading, leaderboard, ledger, proof, race)
    return {
        name: one
        for module in modules
        for name, one in vars(module).items()
        if isinstance(one, type) and (dataclasses.is_dataclass(one) or one.__module__ == module.__name__)
    }


@dataclass(frozen=True)
class Snapshot:
    """A state and its place in the log.

    Attributes:
        sequence: every result up to it is folded in.
        decision: every decision up to it is folded in.

    """

    run: Run
    sequence: int
    decision: int


def pack(run: Run) -> dict[str, Any]:
    """Packs the state as plain data and frozen values, which share nothing that changes with the state machine.

    Raises:
        TypeError: something in it has no form here.

    """
    return {key: _pack(value) for key, value in vars(run).items() if key not in DERIVED}


def encode(packed: dict[str, Any], *, sequence: int, decision: int) -> bytes:
    """Writes what `decode` reads; may run in another thread than the state machine."""
    head = {"format": FORMAT, "version": _version(), "sequence": sequence, "decision": decision}
    text = json.dumps({**head, "state": packed}, default=_value, separators=(",", ":"))
    return zlib.compress(text.encode(), 1)


def decode(data: bytes) -> Snapshot | None:
    """Reads the state; None of another version, or where it is damaged."""
    classes = _classes()
    try:
        read = json.loads(zlib.decompress(data), object_hook=lambda one: _unpacked(one, classes))
        if (read["format"], read["version"]) != (FORMAT, _version()):
            return None
        run = Run(read["state"]["run_id"])
        run.restore(read["state"])
        return Snapshot(run, read["sequence"], read["decision"])
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError):
        return None


def _version() -> str:
    """Changes with the package and with the shape of what is kept."""
    shape = [sorted(vars(Run(""))), sorted(vars(race.Race(spec.NO_RACE, (), seed=0)))]
    for name, one in sorted(_classes().items()):
        fields = sorted(f.name for f in dataclasses.fields(one)) if dataclasses.is_dataclass(one) else []
        shape.append([name, *fields])
    return f"{__version__}+{hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]}"


def _pack(value: Any) -> Any:
    """Tells list, tuple, deque, set and dictionary apart, which JSON does not."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Phase):
        return {"$phase": value.value}
    if isinstance(value, list):
        return [_pack(one) for one in value]
    if isinstance(value, tuple):
        return {"$tuple": [_pack(one) for one in value]}
    if isinstance(value, deque):
        return {"$deque": [_pack(one) for one in value]}
    if isinstance(value, set):
        return {"$set": sorted(value)}
    if isinstance(value, dict):
        return {"$dict": [[_pack(key), _pack(one)] for key, one in value.items()]}
    name = type(value).__name__
    if _classes().get(name) is not type(value):
        raise TypeError(f"a snapshot has no form for {name}")
    if _is_frozen(type(value)):
        return value  # cannot change any more: turned into JSON later
    return {"$object": [name, {key: _pack(one) for key, one in vars(value).items()}]}


def _is_frozen(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) and bool(kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _value(value: Any) -> Any:
    """A frozen value; its lists are tuples, since it is frozen. A mapping says what its keys and tuples are."""
    if not _is_frozen(type(value)):
        raise TypeError(f"a snapshot has no form for {type(value).__name__}")
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    fields = {name: _pack(one) if isinstance(one, dict) else one for name, one in fields.items()}
    return {"$value": [type(value).__name__, fields]}


def _unpacked(one: dict[str, Any], classes: dict[str, type]) -> Any:
    match one:
        case {"$value": [name, fields]}:
            return classes[name](**{key: _frozen(value) for key, value in fields.items()})
        case {"$object": [name, fields]}:
            made: Any = object.__new__(classes[name])
            vars(made).update(fields)
            return made
        case {"$tuple": items}:
            return tuple(items)
        case {"$deque": items}:
            return deque(items)
        case {"$set": items}:
            return set(items)
        case {"$dict": pairs}:
            return dict(pairs)
        case {"$phase": word}:
            return Phase(word)
        case _:
            return one


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value
