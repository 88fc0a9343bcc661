"""What has been scored once is never scored again: recipe digest × dtype × item digest → score.

A score is known to everyone at the same broker (bucket `scores`, one entry a recipe) and, where there is a folder, to
every stack of this home. Who computes a score second takes the first one: there is one score for all of a dtype.
Entries of float32 are named by the recipe alone, as all were before there was a choice; those of that time which a
device filled in another dtype say so, and count for nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import structlog

from evomerge_common.domain.kinds import kind_of
from evomerge_common.domain.spec import SCORING_DTYPES
from evomerge_common.domain.task import CREDIT, Item, Task
from evomerge_common.ports import KeyValue
from evomerge_common.runtime.files import locked, write_atomically

SCORING = "1"
"""Part of every item's digest: raise it when the same model and item would be scored otherwise."""
FLOAT32 = "float32"
DIGEST_BYTES = 16
_DTYPES = frozenset(SCORING_DTYPES)
MAX_BYTES = 1_000_000
"""An entry of the bucket holds no more (some 35,000 items): the broker's messages end there."""

log = structlog.get_logger("evomerge.evaluator")


def item_digests(task: Task, items: Sequence[Item]) -> tuple[bytes, ...]:
    """Digests what makes each item's score: its content and how its task asks; not the task's name, weight or origin.

    Partial credit is another way to ask, so it has digests of its own; whether a search is steered by it is none.

    Where a task brings its own items, or labels follow from the items, an item's score depends on the others.
    """
    left_out = {"name", "items", "weight", "benchmark", *(() if task.fitness == CREDIT else ("fitness",))}
    names = [one.name for one in fields(task) if one.name not in left_out]
    asked: dict[str, Any] = {name: getattr(task, name) for name in names}
    kind = kind_of(task.kind)
    asked |= kind.depends_on(task)
    if kind.own_items:
        asked["among"] = hashlib.sha256(_text([[one.id, one.content] for one in task.items]).encode()).hexdigest()
    start = hashlib.sha256(_text([SCORING, asked]).encode())
    found = []
    for item in items:
        digest = start.copy()
        digest.update(_text([item.id if "among" in asked else "", item.content]).encode())
        found.append(digest.digest()[:DIGEST_BYTES])
    return tuple(found)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value)


@dataclass
class Scores:
    """Scores of one recipe, by item digest; `device` is where the last of them came from."""

    items: dict[bytes, float] = field(default_factory=dict)
    device: str = ""

    def add(self, other: Scores) -> bool:
        """Takes what is new of another's; what is here stays. Tells whether anything was new."""
        fresh = {digest: score for digest, score in other.items.items() if digest not in self.items}
        self.items.update(fresh)
        self.device = other.device if fresh or not self.device else self.device
        return bool(fresh)

    def encode(self) -> bytes:
        """Writes JSON: device, digests and 32-bit scores in base64."""
        scores = struct.pack(f"<{len(self.items)}f", *self.items.values())
        texts = [base64.b64encode(part).decode() for part in (b"".join(self.items), scores)]
        return json.dumps({"device": self.device, "digests": texts[0], "scores": texts[1]}).encode()

    @classmethod
    def decode(cls, data: bytes, dtype: str = FLOAT32) -> Scores:
        """Reads what `encode` wrote; anything else, or scores of a device in another dtype, is as good as nothing."""
        try:
            read = json.loads(data)
            if not _DTYPES.intersection(str(read["device"]).split()) <= {dtype}:
                return cls()
            digests, scores = (base64.b64decode(read[key], validate=True) for key in ("digests", "scores"))
            count = len(scores) // 4
            if len(digests) != count * DIGEST_BYTES:
                return cls()
            keys = [digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES] for i in range(count)]
            return cls(dict(zip(keys, struct.unpack(f"<{count}f", scores), strict=True)), str(read["device"]))
        except (ValueError, KeyError, TypeError, struct.error):
            return cls()


class FitnessCache:
    """The scores of recipes' items, shared by everyone at one broker and, in a folder, by every stack of this home."""

    def __init__(self, kv: KeyValue, folder: Path | None = None) -> None:
        self._kv = kv
        self._folder = folder

    async def known(self, recipe_digest: str, dtype: str = FLOAT32) -> Scores:
        """Returns all that is known of a recipe in a dtype."""
        name = _name(recipe_digest, dtype)
        entry = await self._kv.get("scores", f"{name}.items")
        scores = Scores() if entry is None else Scores.decode(entry[0], dtype)
        if self._folder is not None:
            scores.add(await asyncio.to_thread(self._read, name, dtype))
        return scores

    async def add(self, recipe_digest: str, fresh: Scores, dtype: str = FLOAT32) -> Scores:
        """Remembers scores; returns all that is known now, in which an earlier score of an item wins."""
        name = _name(recipe_digest, dtype)
        key = f"{name}.items"
        while True:
            entry = await self._kv.get("scores", key)
            scores = Scores() if entry is None else Scores.decode(entry[0], dtype)
            if not scores.add(fresh):
                break
            data = scores.encode()
            if len(data) > MAX_BYTES:
                log.warning("too many items for one entry of the fitness cache", recipe=recipe_digest, bytes=len(data))
                break
            if entry is None:
                done = await self._kv.create("scores", key, data)
            else:
                done = await self._kv.update("scores", key, data, revision=entry[1])
            if done:
                break
        if self._folder is not None:
            await asyncio.to_thread(self._write, name, dtype, scores)
        return scores

    # ---- the folder ----

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / name[:2] / f"{name}.json"

    def _read(self, name: str, dtype: str) -> Scores:
        try:
            return Scores.decode(self._path(name).read_bytes(), dtype)
        except OSError:
            return Scores()

    def _write(self, name: str, dtype: str, scores: Scores) -> None:
        """A cache: a folder that cannot be written costs time, never a run."""
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.parent / ".lock"):
                whole = self._read(name, dtype)
                if whole.add(scores):
                    write_atomically(path, whole.encode())
        except OSError as error:
            log.warning("scores could not be kept for other runs", path=str(path), error=str(error))


def _name(recipe_digest: str, dtype: str) -> str:
    return recipe_digest if dtype == FLOAT32 else f"{recipe_digest}.{dtype}"
