"""A reference becomes an entry of the model store."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from evomerge_common.domain.licence_names import joined
from evomerge_common.domain.licences import combine
from evomerge_common.domain.messages import Model
from evomerge_common.domain.reference import ModelReference, on_hub
from evomerge_common.errors import ModelError, ModelNotFound, NotFound, RecipeError, Unavailable
from evomerge_downloader.hub_models import HubModels, Wanted
from evomerge_downloader.local_models import LocalModels, record
from evomerge_models.describe import describe_pair
from evomerge_models.files import ADAPTER_CONFIG, is_adapter_folder
from evomerge_models.hub import Hub, Tell
from evomerge_models.reference import absolute, base_beside, base_hint, plus_hint, resolve_reference
from evomerge_models.store import WritableModelStore
from evomerge_models.survey import Survey

_LOOK_SECONDS = 30.0
"""So long what a run's models are stays known to its other download jobs."""
_TRIES = 5
"""At a model that goes as soon as it has come."""


class Fetcher:
    """Brings models into the store. Its methods block; they are called beside the event loop.

    Args:
        link: local folders are linked into the store, not copied.
        tell: called with how far a download is, see `Tell`; the store's progress file says it to other processes.

    """

    def __init__(self, store: WritableModelStore, hub: Hub, *, link: bool = True, tell: Tell = lambda _: None) -> None:
        self._store = store
        self._hub = hub
        self._local = LocalModels(store, link=link)
        self._from_hub = HubModels(store, hub, self._local, tell, link=link)
        self._looking = threading.Lock()
        self._looked: tuple[tuple[object, ...], float] = ((), 0.0)

    def fetch(
        self,
        reference: str,
        base: str = "",
        *,
        typed: bool = True,
        together: Sequence[str] = (),
        accept_licence_conflict: bool = False,
        owner: str = "",
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
            owner: who keeps the entry in the store from now on (`evomerge_models.pins`); "": nobody.

        Raises:
            ModelError: it, or one of the others, cannot be used (see the classes below it); trying again will not help.
            LicenceConflict: their licences exclude each other.
            DiskFull, Unavailable: trying again may help.

        """
        read = resolve_reference if typed else ModelReference.parse
        try:
            wanted, under = read(reference), read(base) if base else None
        except RecipeError as error:
            raise ModelNotFound(str(error)) from error
        if together:
            self._look_once(tuple(together), under, accept=accept_licence_conflict)
        elif _is_fetched(wanted):
            self._look([wanted], under, accept=True)
        with self._store.pins.of_process() as hold:  # a base stays while its adapter makes room for itself
            model = self._bring(reference, wanted, under, hold)
            return dataclasses.replace(self._store.take(model.digest, owner), reference=reference, commit=model.commit)

    def _bring(self, reference: str, wanted: ModelReference, under: ModelReference | None, hold: str) -> Model:
        try:
            model = self._one(reference if wanted.adapter == "" else str(wanted.whole), wanted.whole, hold)
        except ModelNotFound as error:
            hint = plus_hint(wanted)
            raise (ModelNotFound(f"{error}{hint}") if hint else error) from error
        if (adapter := wanted.adapter_alone) is not None:
            return self._pair(reference, model, self._one(str(adapter), adapter, hold))
        folder = self._store.folder(model)
        if not is_adapter_folder(folder):
            return model
        if under is not None:
            return self._pair(reference, self._one(str(under), under, hold), model)
        named = base_beside(folder, *([place] if (place := local_folder(wanted)) else []))
        try:
            found = self._one(str(named), named, hold)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error}{base_hint(reference, named)}") from error
        return self._pair(reference, found, model)

    def _look_once(self, together: tuple[str, ...], base: ModelReference | None, *, accept: bool) -> None:
        """Looks for all jobs of a run that come within a moment: each of them names all of its models."""
        with self._looking:
            what = (together, base, accept)
            if self._looked[0] == what and time.monotonic() < self._looked[1] + _LOOK_SECONDS:
                return
            self._look([ModelReference.parse(one) for one in together], base, accept=accept)
            self._looked = what, time.monotonic()

    def _look(self, asked: Sequence[ModelReference], base: ModelReference | None, *, accept: bool) -> None:
        """Judges models by what is known of them without weights; what the hub keeps back is left to the download."""
        hub = None if self._hub.is_offline else self._hub
        with Survey(hub, self._store, patient=True) as survey:
            survey.look([absolute(one) for one in asked], base and absolute(base))
            combine(survey.licences()).check(accepted=accept)

    def _one(self, reference: str, model: ModelReference, hold: str) -> Model:
        """A model or an adapter by itself, recorded under the text `reference` and kept by `hold`."""
        for _ in range(_TRIES):
            found = self._find(reference, model)
            try:
                self._store.take(found.digest, hold)
            except NotFound:  # another process made room of it in this moment
                continue
            return found
        raise Unavailable(f"the model store is so full that {reference} goes as soon as it is there; try again later")

    def _find(self, reference: str, model: ModelReference) -> Model:
        folder = local_folder(model)
        if folder is not None:
            return self._local.bring(reference, folder)
        if (named := on_hub(model.name)) is not None:
            return self._from_hub.bring(Wanted(reference, *named, model.revision))
        raise ModelNotFound(
            f"there is no folder {model.name}; give an existing model folder or a hub id such as org/name"
        )

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
        found = dataclasses.replace(
            record(reference, described, adapter.commit or base.commit),
            base=base.digest,
            licence=joined([base.licence, adapter.licence]),
        )
        return self._store.put_pair(found, base, adapter)


def local_folder(model: ModelReference) -> Path | None:
    """Finds the folder or file that a model's name means; None where there is none."""
    path = Path(model.name).expanduser()
    return path if not model.revision and path.exists() else None


def _is_fetched(model: ModelReference) -> bool:
    """Whether a hub has a part of it, and nothing else is missing."""
    parts = [part for part in (model.whole, model.adapter_alone) if part is not None and not local_folder(part)]
    return bool(parts) and all(on_hub(part.name) for part in parts)
