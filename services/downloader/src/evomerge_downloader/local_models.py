"""Folders and GGUF files of this machine as entries of the store, and what every entry needs."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from evomerge_common.domain.messages import Model
from evomerge_common.errors import InvalidInput, is_disk_full
from evomerge_common.runtime.files import remove
from evomerge_models.describe import ModelDescription, describe_model
from evomerge_models.store import WritableModelStore

log = structlog.get_logger(__name__)


class LocalModels:
    """Brings what lies on this machine into the store.

    Args:
        link: folders are linked into the store, not copied.

    """

    def __init__(self, store: WritableModelStore, *, link: bool) -> None:
        self._store = store
        self._link = link

    def bring(self, reference: str, folder: Path) -> Model:
        """Makes a folder, or a GGUF file, an entry that is recorded as `reference`.

        Raises:
            ModelError, DiskFull: as `Fetcher.fetch`.

        """
        described = describe_model(folder)
        model = record(reference, described)
        if folder.is_file():
            return self.from_gguf(model, folder)
        if self._link:
            return self._store.put(folder.absolute(), model, described.files, link=True)
        with self._store.incoming(hashlib.sha256(str(folder.resolve()).encode()).hexdigest()) as incoming:
            with self._room_anew(described.bytes, f"a copy of {folder}", incoming):
                incoming.mkdir()
                for name in described.files:
                    (incoming / name).parent.mkdir(exist_ok=True)
                    shutil.copyfile(folder / name, incoming / name)
            return self._store.put(incoming, model, described.files, link=False)

    def from_gguf(self, model: Model, path: Path) -> Model:
        """The file's model as a folder of the store; the same file is converted once."""
        from evomerge_models.gguf.folder import CONVERTER, write_model_folder

        content = self._store.hashes.hashes(path.parent, [path.name])[path.name]
        if known := known_entry(self._store, model.reference, CONVERTER, content):
            return dataclasses.replace(known, commit="")
        with self._store.incoming(f"{CONVERTER}@{content}") as incoming:
            if known := known_entry(self._store, model.reference, CONVERTER, content):
                remove(incoming)
                return dataclasses.replace(known, commit="")
            with self._room_anew(model.bytes, f"{path} as a folder", incoming):
                log.info("convert", model=model.reference, parameters=model.parameters)
                write_model_folder(path, incoming)
            described = describe_model(incoming)
            stored = self._store.put(incoming, record(model.reference, described), described.files, link=False)
            self._store.remember(CONVERTER, "", content, stored.digest)
        return stored

    @contextmanager
    def _room_anew(self, size: int, what: str, incoming: Path) -> Iterator[None]:
        """Room for what is written within the block: nothing is left there before it, nor after a disk that was full.

        Raises:
            DiskFull: as `WritableModelStore.make_room`.

        """
        remove(incoming)  # what an earlier try left would take the room that this one needs
        make_room(self._store, size, what, incoming)
        try:
            yield
        except Exception as error:
            if is_disk_full(error):
                remove(incoming)
            raise


def make_room(store: WritableModelStore, size: int, what: str, incoming: Path, there: int = 0) -> None:
    """Has the store make room, see `WritableModelStore.make_room`; tells in the log what went."""
    for model in store.make_room(size, what, there=there, incoming=incoming):
        log.info("evict", model=model.reference, digest=model.digest, bytes=model.bytes, room_for=what)


def known_entry(store: WritableModelStore, reference: str, key: str, commit: str) -> Model | None:
    """The entry that a commit has in the store, recorded as `reference`; None: it was never fetched, or has gone."""
    digest = store.digest_of(key, commit) if commit else ""
    try:
        found = store.get(digest) if digest else None
    except InvalidInput:
        return None
    return None if found is None else dataclasses.replace(found, reference=reference, commit=commit)


def record(reference: str, described: ModelDescription, commit: str = "") -> Model:
    """The record of an entry, without its digest and place."""
    return Model(
        reference=reference,
        commit=commit,
        architecture=described.architecture,
        num_layers=described.num_layers,
        parameters=described.parameters,
        bytes=described.bytes,
        layers=described.layers,
        fixed_scale=not described.hops_scale,
        licence=described.licence,
    )
