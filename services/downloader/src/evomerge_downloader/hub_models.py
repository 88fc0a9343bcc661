"""Models of a hub as entries of the store: from its own client's cache, or fetched."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import structlog

from evomerge_common.domain.messages import Model
from evomerge_common.errors import DiskFull, EvoMergeException, ModelError, ModelNotFound, Unavailable
from evomerge_common.runtime.files import remove
from evomerge_downloader.local_models import LocalModels, known_entry, make_room, record
from evomerge_models.describe import describe_model
from evomerge_models.downloads import ProgressFile
from evomerge_models.hub import COMMIT, Hub, Progress, RemoteModel, Tell, bytes_there
from evomerge_models.hub.cache import cached_commit, cached_model, snapshot, sound_files
from evomerge_models.hub.outline import Outlines
from evomerge_models.store import WritableModelStore

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked of a hub; `file` is "" for a model, else a GGUF file."""

    reference: str
    repository: str
    file: str
    revision: str

    @property
    def key(self) -> str:
        """Under which the store notes what it had."""
        return f"{self.repository}/{self.file}" if self.file else self.repository


class HubModels:
    """Brings models of a hub into the store, each pinned to a commit.

    Args:
        local: makes folders of GGUF files.
        tell: called with how far a download is.
        link: what lies in the client's cache is linked into the store, not copied.

    """

    def __init__(self, store: WritableModelStore, hub: Hub, local: LocalModels, tell: Tell, *, link: bool) -> None:
        self._store = store
        self._hub = hub
        self._local = local
        self._tell = tell
        self._link = link

    def bring(self, wanted: Wanted) -> Model:
        """Makes a model, adapter or GGUF file of the hub an entry; fetches only what neither store nor cache have.

        Raises:
            ModelError, DiskFull, Unavailable: as `Fetcher.fetch`.

        """
        if COMMIT.fullmatch(wanted.revision) and (known := self._of_commit(wanted, wanted.revision)):
            return known
        if self._hub.is_offline:
            return self._without_hub(
                wanted,
                ModelNotFound(
                    f"{wanted.reference} is not in the model store {self._store.root} and HF_HUB_OFFLINE is set; unset "
                    "it to download the model, or give a local folder"
                ),
            )
        try:
            remote = self._hub.model(wanted.repository, wanted.revision, wanted.file)
        except Unavailable as error:
            return self._without_hub(wanted, error)
        if known := self._of_commit(wanted, remote.commit):
            self._remember(wanted, remote.commit, known)
            return known
        with self._store.incoming(f"{wanted.key}@{remote.commit}") as incoming:
            # another process may have brought it while this one waited
            if known := self._of_commit(wanted, remote.commit):
                remove(incoming)
                self._remember(wanted, remote.commit, known)
                return known
            model = self._link_or_fetch(wanted, remote, incoming)
            # before the lock goes: who waits for it looks here
            self._remember(wanted, remote.commit, model)
        return model

    def _without_hub(self, wanted: Wanted, error: EvoMergeException) -> Model:
        """What a revision was when it was fetched last: by this store, else by the hub's own client."""
        commit = self._store.commit_of(wanted.key, wanted.revision)
        found = self._of_commit(wanted, commit)
        if found is None and (commit := cached_commit(wanted.repository, wanted.revision)):
            try:
                remote = cached_model(wanted.repository, commit, wanted.file)
            except ModelError as lack:
                log.info("the client's cache does not have it whole", model=wanted.reference, error=str(lack))
                raise error from lack
            with self._store.incoming(f"{wanted.key}@{commit}") as incoming:
                found = self._of_commit(wanted, commit) or self._use_cache(wanted, remote, incoming)
                if found is not None:
                    self._remember(wanted, commit, found)
        if found is None:
            raise error
        reason = "HF_HUB_OFFLINE is set" if self._hub.is_offline else str(error)
        log.warning("the commit fetched before is used", model=wanted.reference, commit=commit, reason=reason)
        return found

    def _link_or_fetch(self, wanted: Wanted, remote: RemoteModel, incoming: Path) -> Model:
        if cached := self._use_cache(wanted, remote, incoming):
            return cached
        make_room(self._store, remote.bytes, wanted.reference, incoming, bytes_there(remote.files, incoming))
        for name, path in sound_files(remote, self._store.hashes.hashes).items():  # the rest of them is fetched
            _link_or_copy(path, incoming / name)
        with Outlines(self._hub, self._store.root) as outlines:
            outlines.seed(remote, incoming)
        log.info("download", model=wanted.reference, commit=remote.commit, bytes=remote.bytes, files=len(remote.files))
        try:
            with ProgressFile(incoming, wanted.reference) as file:

                def tell(progress: Progress) -> None:
                    file(progress)
                    self._tell(progress)

                self._hub.fetch(remote, incoming, tell)
        except DiskFull:
            remove(incoming)  # others on this disk need the room more than a download that cannot end
            raise
        self._hub.finish(incoming)
        if wanted.file:
            found = self._gguf_of_hub(wanted, incoming / wanted.file, remote.commit)
            remove(incoming)
            return found
        return self._put(wanted, remote, incoming, link=False)

    def _use_cache(self, wanted: Wanted, remote: RemoteModel, incoming: Path) -> Model | None:
        """The model from the client's cache, where all of it is there: used where it lies."""
        sound = sound_files(remote, self._store.hashes.hashes)
        if len(sound) < len(remote.files):
            return None
        log.info("in the client's cache", model=wanted.reference, commit=remote.commit, bytes=remote.bytes)
        folder = snapshot(wanted.repository, remote.commit)
        if wanted.file or self._link:
            remove(incoming)
        if wanted.file:
            return self._gguf_of_hub(wanted, folder / wanted.file, remote.commit)
        if self._link:
            return self._put(wanted, remote, folder, link=True)
        make_room(self._store, remote.bytes, wanted.reference, incoming)
        for name, path in sound.items():
            _link_or_copy(path, incoming / name)
        return self._put(wanted, remote, incoming, link=False)

    def _put(self, wanted: Wanted, remote: RemoteModel, folder: Path, *, link: bool) -> Model:
        described = describe_model(folder)
        verified = {file.name: file.sha256 for file in remote.files if file.sha256}
        found = record(wanted.reference, described, remote.commit)
        found = dataclasses.replace(found, licence=self._licence(remote) or found.licence)
        return self._store.put(folder, found, described.files, link=link, verified=verified)

    def _licence(self, remote: RemoteModel) -> str:
        if self._hub.is_offline:
            return remote.licence
        try:
            with Outlines(self._hub, self._store.root) as outlines:
                return outlines.find(remote.repository, remote.commit).licence
        except Unavailable:
            return remote.licence

    def _gguf_of_hub(self, wanted: Wanted, path: Path, commit: str) -> Model:
        model = self._local.from_gguf(record(wanted.reference, describe_model(path)), path)
        return dataclasses.replace(model, commit=commit)

    def _of_commit(self, wanted: Wanted, commit: str) -> Model | None:
        return known_entry(self._store, wanted.reference, wanted.key, commit)

    def _remember(self, wanted: Wanted, commit: str, model: Model) -> None:
        self._store.remember(wanted.key, wanted.revision, commit, model.digest)


def _link_or_copy(path: Path, target: Path) -> None:
    """Gives a file of the cache a second name, which takes no room, or copies it where that cannot be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)
