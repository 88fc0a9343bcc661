"""A reference becomes an entry of the model store."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from evomerge_common.domain.licence_names import joined
from evomerge_common.domain.licences import combine
from evomerge_common.domain.messages import Model
from evomerge_common.domain.reference import HUB_ID, ModelReference
from evomerge_common.errors import DiskFull, InvalidInput, ModelError, ModelNotFound, RecipeError, Unavailable
from evomerge_common.runtime.files import remove
from evomerge_models.describe import ModelDescription, describe_model, describe_pair
from evomerge_models.downloads import ProgressFile
from evomerge_models.files import ADAPTER_CONFIG, is_adapter_folder
from evomerge_models.hub import COMMIT, Hub, Progress, RemoteModel, Tell, bytes_there
from evomerge_models.hub.outline import Outlines
from evomerge_models.reference import absolute, base_beside, base_hint, plus_hint, resolve_reference
from evomerge_models.store import WritableModelStore
from evomerge_models.survey import Survey

log = structlog.get_logger(__name__)


class Fetcher:
    """Brings models into the store. Its methods block; they are called beside the event loop.

    Args:
        link: local folders are linked into the store, not copied.
        tell: called with how far a download is, see `Tell`; the store's progress file says it to other processes.

    """

    def __init__(self, store: WritableModelStore, hub: Hub, *, link: bool = True, tell: Tell = lambda _: None) -> None:
        self._store = store
        self._hub = hub
        self._link = link
        self._tell = tell

    def fetch(
        self,
        reference: str,
        base: str = "",
        *,
        typed: bool = True,
        together: Sequence[str] = (),
        accept_licence_conflict: bool = False,
    ) -> Model:
        """Finds the entry of a hub id, local folder, or base+adapter of such, fetched only if the store lacks it.

        A name that exists as a folder is that folder: a local path is never asked for on the hub.

        Args:
            reference: what to bring; the record's `reference` is this text.
            base: what an adapter that is named alone is applied to; "": the base that it names itself.
            typed: a person wrote both: they are looked up on this machine's disk (`resolve_reference`). False: they
                travelled, and are read as the canonical text of `ModelReference` alone.
            together: canonical texts of all models that it will be merged with: no weights come before all of them
                have been looked at.
            accept_licence_conflict: it comes though their licences exclude each other.

        Raises:
            ModelError: it, or one of the others, cannot be used (see the classes below it); trying again will not help.
            LicenceConflict: their licences exclude each other.
            DiskFull, Unavailable: trying again may help.

        """
        read = resolve_reference if typed else ModelReference.parse
        try:
            wanted, owner = read(reference), read(base) if base else None
        except RecipeError as error:
            raise ModelNotFound(str(error)) from error
        self._look([ModelReference.parse(one) for one in together] or [wanted], owner, accept=accept_licence_conflict)
        try:
            model = self._one(reference if wanted.adapter == "" else str(wanted.whole), wanted.whole)
        except ModelNotFound as error:
            hint = plus_hint(wanted)
            raise (ModelNotFound(f"{error}{hint}") if hint else error) from error
        if (adapter := wanted.adapter_alone) is not None:
            return self._pair(reference, model, self._one(str(adapter), adapter))
        folder = self._store.folder(model)
        if not is_adapter_folder(folder):
            return model
        if owner is not None:
            return self._pair(reference, self._one(str(owner), owner), model)
        named = base_beside(folder, *([place] if (place := local_folder(wanted)) else []))
        try:
            found = self._one(str(named), named)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error}{base_hint(reference, named)}") from error
        return self._pair(reference, found, model)

    def _look(self, asked: Sequence[ModelReference], base: ModelReference | None, *, accept: bool) -> None:
        """Judges models by what is known of them without weights; what the hub keeps back is left to the download."""
        if all(local_folder(part) or not HUB_ID.fullmatch(part.name) for one in asked for part in _parts(one)):
            return  # nothing will be fetched
        hub = None if self._hub.is_offline else self._hub
        with Survey(hub, self._store, patient=True) as survey:
            survey.look([absolute(one) for one in asked], base and absolute(base))
            combine(survey.licences()).check(accepted=accept)

    def _one(self, reference: str, model: ModelReference) -> Model:
        """A model or an adapter by itself, recorded under the text `reference`."""
        folder = local_folder(model)
        if folder is not None:
            return self._local(reference, folder)
        if model.name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(model.name):
            raise ModelNotFound(
                f"there is no folder {model.name}; give an existing model folder or a hub id such as org/name"
            )
        return self._from_hub(reference, model.name, model.revision)

    def _pair(self, reference: str, base: Model, adapter: Model) -> Model:
        """The entry of a base with an adapter applied: links, and the proof that they fit each other.

        Raises:
            ModelError: the base is an adapter too, the adapter is none, or it does not fit.

        """
        if is_adapter_folder(self._store.folder(base)) or base.base:
            raise ModelError(
                f"{reference}: {base.reference} is an adapter itself; give the whole model that it changes"
            )
        if not is_adapter_folder(self._store.folder(adapter)):
            raise ModelError(
                f"{reference}: {adapter.reference} is no LoRA adapter (no {ADAPTER_CONFIG}); write base+adapter"
            )
        described = describe_pair(self._store.folder(base), self._store.folder(adapter))
        record = dataclasses.replace(
            _record(reference, described, adapter.commit or base.commit),
            base=base.digest,
            licence=joined([base.licence, adapter.licence]),
        )
        return self._store.put_pair(record, base, adapter)

    # ---- local folders ----

    def _local(self, reference: str, folder: Path) -> Model:
        described = describe_model(folder)
        model = _record(reference, described)
        if folder.is_file():
            return self._from_gguf(model, folder)
        if self._link:
            return self._store.put(folder.absolute(), model, described.files, link=True)
        self._store.check_room(described.bytes, f"a copy of {folder}")
        with self._store.incoming(hashlib.sha256(str(folder.resolve()).encode()).hexdigest()) as incoming:
            remove(incoming)
            incoming.mkdir()
            for name in described.files:
                (incoming / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(folder / name, incoming / name)
            return self._store.put(incoming, model, described.files, link=False)

    def _from_gguf(self, model: Model, path: Path) -> Model:
        """The file's model as a folder of the store; the same file is converted once."""
        from evomerge_models.gguf.folder import CONVERTER, write_model_folder

        content = self._store.hashes.hashes(path.parent, [path.name])[path.name]
        if known := self._known(model.reference, CONVERTER, content):
            return dataclasses.replace(known, commit="")
        self._store.check_room(model.bytes, f"{path} as a folder")
        with self._store.incoming(f"{CONVERTER}@{content}") as incoming:
            if known := self._known(model.reference, CONVERTER, content):
                remove(incoming)
                return dataclasses.replace(known, commit="")
            remove(incoming)
            log.info("convert", model=model.reference, parameters=model.parameters)
            write_model_folder(path, incoming)
            described = describe_model(incoming)
            stored = self._store.put(incoming, _record(model.reference, described), described.files, link=False)
            self._store.remember(CONVERTER, "", content, stored.digest)
        return stored

    # ---- the hub ----

    def _from_hub(self, reference: str, repository: str, revision: str) -> Model:
        if COMMIT.fullmatch(revision) and (known := self._known(reference, repository, revision)):
            return known
        if self._hub.is_offline:
            return self._offline(reference, repository, revision)
        try:
            remote = self._hub.model(repository, revision)
        except Unavailable as error:
            known = self._known(reference, repository, self._store.commit_of(repository, revision))
            if known is None:
                raise
            log.warning("hub does not answer: the commit fetched before is used", model=reference, commit=known.commit,
                        error=str(error))  # fmt: skip
            return known
        if known := self._known(reference, repository, remote.commit):
            self._store.remember(repository, revision, remote.commit, known.digest)
            return known
        with self._store.incoming(f"{repository}@{remote.commit}") as incoming:
            # another process may have brought it while this one waited
            if known := self._known(reference, repository, remote.commit):
                remove(incoming)
                return known
            model = self._download(reference, remote, incoming)
            # before the lock goes: who waits for it looks here
            self._store.remember(repository, revision, remote.commit, model.digest)
        return model

    def _offline(self, reference: str, repository: str, revision: str) -> Model:
        """What the store has of a revision, as it was last seen."""
        known = self._known(reference, repository, self._store.commit_of(repository, revision))
        if known is None:
            raise ModelNotFound(
                f"{reference} is not in the model store {self._store.root} and HF_HUB_OFFLINE is set; unset it to "
                "download the model, or give a local folder"
            )
        log.warning("HF_HUB_OFFLINE is set: the commit fetched before is used", model=reference, commit=known.commit)
        return known

    def _download(self, reference: str, remote: RemoteModel, incoming: Path) -> Model:
        self._store.check_room(remote.bytes - bytes_there(remote.files, incoming), reference)
        with Outlines(self._hub, self._store.root) as outlines:
            outlines.seed(remote, incoming)
        log.info("download", model=reference, commit=remote.commit, bytes=remote.bytes, files=len(remote.files))
        try:
            with ProgressFile(incoming, reference) as file:

                def tell(progress: Progress) -> None:
                    file(progress)
                    self._tell(progress)

                self._hub.fetch(remote, incoming, tell)
        except DiskFull:
            remove(incoming)  # others on this disk need the room more than a download that cannot end
            raise
        self._hub.finish(incoming)
        described = describe_model(incoming)
        verified = {file.name: file.sha256 for file in remote.files if file.sha256}
        record = dataclasses.replace(_record(reference, described, remote.commit), licence=self._licence(remote))
        return self._store.put(incoming, record, described.files, link=False, verified=verified)

    def _licence(self, remote: RemoteModel) -> str:
        with Outlines(self._hub, self._store.root) as outlines:
            return outlines.find(remote.repository, remote.commit).licence

    def _known(self, reference: str, repository: str, commit: str) -> Model | None:
        digest = self._store.digest_of(repository, commit) if commit else ""
        try:
            found = self._store.get(digest) if digest else None
        except InvalidInput:
            return None  # evicted
        return None if found is None else dataclasses.replace(found, reference=reference, commit=commit)


def local_folder(model: ModelReference) -> Path | None:
    """Finds the folder or file that a model's name means; None where there is none."""
    path = Path(model.name).expanduser()
    return path if not model.revision and path.exists() else None


def _parts(model: ModelReference) -> list[ModelReference]:
    """Base and adapter, or the model alone."""
    return [model.whole, *([model.adapter_alone] if model.adapter_alone is not None else [])]


def _record(reference: str, described: ModelDescription, commit: str = "") -> Model:
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
