"""`evomerge models`: what the model store of this machine holds, and what it is to keep."""

from __future__ import annotations

import argparse
import time
from typing import Any

from evomerge_cli.byte_progress import human
from evomerge_cli.console import Console
from evomerge_common.domain.messages import Model
from evomerge_common.errors import InvalidInput, NotFound
from evomerge_common.runtime.settings import Settings
from evomerge_models.pins import USER
from evomerge_models.store import WritableModelStore


def run(args: argparse.Namespace, console: Console) -> int:
    """Lists the store's models, or pins, unpins or evicts one."""
    settings = Settings.from_env()
    store = WritableModelStore(settings.model_store, settings.model_store_quota)
    if args.action == "list":
        return _list(store, settings.model_store_quota, console)
    model = find(store, args.model)
    if args.action == "evict":
        freed = store.evict(model.digest)
        console.out(f"{model.reference} is evicted: {human(freed)} freed")
        return 0
    name = model.digest.removeprefix("sha256:")
    if args.action == "pin":
        store.pins.add(name, USER)
        console.out(f"{model.reference} stays in {store.root} until it is unpinned")
        return 0
    owners = [owner for owner in store.pins.owners(name) if owner == USER or args.all]
    for owner in owners:
        store.pins.remove(name, owner)
    console.out(f"{model.reference} is no longer kept by {', '.join(owners) or 'you; it was not pinned'}")
    return 0


def _list(store: WritableModelStore, quota: int, console: Console) -> int:
    entries: list[dict[str, Any]] = [
        {
            "reference": model.reference,
            "digest": model.digest,
            "commit": model.commit,
            "bytes": store.bytes_of(model),
            "used": store.used(model.digest),
            "kept_by": store.pins.owners(model.digest.removeprefix("sha256:")),
        }
        for model in store.list()
    ]
    taken = sum(one["bytes"] for one in entries)
    if console.data({"store": str(store.root), "bytes": taken, "quota": quota, "models": entries}):
        return 0
    rows = [
        [
            one["reference"],
            one["digest"].removeprefix("sha256:")[:12],
            human(one["bytes"]) if one["bytes"] else "link",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one["used"])),
            ", ".join(one["kept_by"]),
        ]
        for one in entries
    ]
    console.table(["model", "digest", "size", "last used", "kept by"], rows)
    console.out(f"{store.root}: {human(taken)}{f' of {human(quota)}' if quota else ', without a quota'}")
    return 0


def find(store: WritableModelStore, text: str) -> Model:
    """The entry that a reference, or the beginning of a digest, names.

    Raises:
        NotFound: there is none.
        InvalidInput: there are several.

    """
    models = store.list()
    begin = text.removeprefix("sha256:")
    found = [model for model in models if model.reference == text]
    if not found and len(begin) >= 6:
        found = [model for model in models if model.digest.removeprefix("sha256:").startswith(begin)]
    if not found:
        raise NotFound(f"no model {text!r} in the store {store.root}; evomerge models list shows what there is")
    if len(found) > 1:
        digests = ", ".join(model.digest.removeprefix("sha256:")[:12] for model in found)
        raise InvalidInput(f"{text!r} names {len(found)} models; give the digest of one of them: {digests}")
    return found[0]
