"""Several models before anything is done with them: local folders, and models of a hub before their weights are here.

One look finds all that is wrong with any of them, what is to be fetched, whether they fit each other, and their
licences. Models of a hub are seen through `hub.outline`, so the code that judges a local folder judges them too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from evomerge_common.domain.licences import by_source
from evomerge_common.domain.reference import ModelReference, on_hub
from evomerge_common.errors import EvoMergeException, InvalidInput, ModelError, ModelNotFound, Unavailable
from evomerge_common.runtime.scratch import drop, scratch_folder
from evomerge_models.describe import describe_model, describe_pair
from evomerge_models.files import ADAPTER_CONFIG, is_adapter_folder
from evomerge_models.hub import COMMIT, Hub
from evomerge_models.hub.cache import cached_commit, cached_model, snapshot, whole_snapshot
from evomerge_models.hub.outline import Outlines
from evomerge_models.pair import PAIRS, write_pair
from evomerge_models.reference import absolute, base_beside, base_hint
from evomerge_models.seen import Part, Seen, comparison, groups_of
from evomerge_models.store import WritableModelStore


class Survey:
    """One look at several models. Outlines are gone at the end of the context.

    Args:
        hub: where ids are looked for; None: they are not.
        store: what it has of a commit is not fetched; of a revision, what it had last counts where the hub is silent.
        patient: a model of a hub that does not answer is left out, and no error.
        seconds: that the hub is given for all of them; what is not known by then is left out. None: no limit.

    """

    def __init__(
        self,
        hub: Hub | None,
        store: WritableModelStore | None,
        *,
        seconds: float | None = None,
        patient: bool = False,
    ) -> None:
        self._hub, self._store, self._seconds, self._patient = hub, store, seconds, patient
        self._outlines = Outlines(hub, store.root if store is not None else None) if hub is not None else None
        self._parts: dict[str, Part | Exception | None] = {}
        self._answers: dict[str, Part | Exception | None] = {}  # by threads, at any time
        self._threads: dict[str, threading.Thread] = {}
        self._pairs: list[Path] = []
        self._wanted: dict[str, ModelReference] = {}
        self.models: dict[str, Seen] = {}

    def __enter__(self) -> Survey:
        return self

    def __exit__(self, *_: object) -> None:
        for folder in self._pairs:
            drop(folder)
        if self._outlines is not None:
            self._outlines.__exit__()

    # ---- looking ----

    def look(self, references: Sequence[ModelReference], base: ModelReference | None = None) -> None:
        """Looks at models, each once; `models` holds what was found, by the reference's text.

        Args:
            references: absolute folders and hub ids.
            base: what adapters that are named alone are applied to; None: the base that each names itself.

        Raises:
            ModelError, Unavailable: one of them cannot be used; of several, one error tells all.

        """
        end = None if self._seconds is None else time.monotonic() + self._seconds
        wanted = list(dict.fromkeys(references))
        self._wanted |= {str(one): one for one in wanted}
        parts = [part for one in wanted for part in (one.whole, one.adapter_alone) if part is not None]
        self._look_at(parts, end)
        bases = {one: found for one in wanted if (found := self._base_of(one, base)) is not None}
        self._look_at(list(bases.values()), end)
        errors: list[EvoMergeException] = []
        for one in wanted:
            try:
                seen = self._seen(one, bases.get(one))
            except EvoMergeException as error:
                errors.append(error)
            else:
                if seen is not None:
                    self.models[str(one)] = seen
        if errors:
            raise all_of(errors, len(wanted))

    def _base_of(self, one: ModelReference, base: ModelReference | None) -> ModelReference | None:
        """What an adapter that is named alone belongs on; None for anything else."""
        part = self._parts.get(str(one))
        if one.adapter or not isinstance(part, Part) or not is_adapter_folder(part.folder):
            return None
        if base is not None and base != one:
            return base.whole
        try:
            return absolute(base_beside(part.folder))
        except EvoMergeException as error:
            self._parts[str(one)] = error
            return None

    def _seen(self, one: ModelReference, named: ModelReference | None) -> Seen | None:
        """What the parts of a model are together; None where the hub was too slow."""
        alone = one.adapter_alone if one.adapter else one if named is not None else None
        try:
            base = self._part(named or one.whole)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error}{base_hint(str(one), named)}") if named is not None else error from error
        if alone is None:
            return None if base is None else Seen(one, base, None, base.description)
        adapter = self._part(alone)
        if adapter is not None and not is_adapter_folder(adapter.folder):
            raise ModelError(f"{alone} is a whole model; after the plus sign comes a LoRA adapter ({ADAPTER_CONFIG})")
        if base is None or adapter is None:
            return None
        if is_adapter_folder(base.folder):
            raise ModelError(f"{one}: {base.reference} is an adapter itself; give the whole model that it changes")
        with self.named():
            described = describe_pair(base.folder, adapter.folder)
        return Seen(one, base, adapter, described)

    def _part(self, reference: ModelReference) -> Part | None:
        found = self._parts.get(str(reference))
        if isinstance(found, Unavailable) and self._patient:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    def _look_at(self, parts: Sequence[ModelReference], end: float | None) -> None:
        """Local ones one after the other, those of the hub at the same time; one that is looked at already goes on."""
        for part in dict.fromkeys(parts):
            key = str(part)
            if key in self._threads or key in self._parts:
                continue
            if part.name.startswith("/"):
                self._try(part, self._local)
            elif self._hub is None:
                self._try(part, self._in_store)
            else:
                # A daemon: a hub that never answers must not keep the command from ending.
                self._threads[key] = threading.Thread(target=self._try, args=(part, self._of_hub), daemon=True)
                self._threads[key].start()
        for key in map(str, parts):
            if key in self._threads:
                self._threads[key].join(None if end is None else max(0.0, end - time.monotonic()))
            if key in self._answers:
                self._parts[key] = self._answers[key]

    def _try(self, part: ModelReference, look: Callable[[ModelReference], Part | None]) -> None:
        try:
            self._answers[str(part)] = look(part)
        except Exception as error:  # raised where it is asked for; after the end of the context, nowhere
            self._answers[str(part)] = error

    def _local(self, part: ModelReference) -> Part:
        folder = Path(part.name)
        described = describe_model(folder)
        return Part(part, folder, described, described.licence)

    def _of_hub(self, part: ModelReference) -> Part | None:
        named = on_hub(part.name)
        if named is None:
            raise ModelNotFound(f"there is no folder {part.name}; give an existing model folder or a hub id (org/name)")
        assert self._hub is not None
        if (known := self._in_store(part)) is not None:
            if COMMIT.fullmatch(part.revision) or self._hub.is_offline:
                return known
            self._answers[str(part)] = known  # a slow hub may never say whether the revision has moved since
        try:
            return self._ask(part, *named, known)
        except (ModelNotFound, Unavailable) as error:
            if known is not None and isinstance(error, Unavailable):
                return known
            if (isinstance(error, ModelNotFound) and not self._hub.is_offline) or not _is_cached(part, *named):
                raise
        return self._see_cache(part, *named)

    def _ask(self, part: ModelReference, repository: str, file: str, known: Part | None) -> Part | None:
        """What the hub says now, `known` where that is unchanged.

        None of a GGUF file, whose header is long, and is read when it is here.
        """
        assert self._hub is not None
        assert self._outlines is not None
        if file:
            return self._in_store(part, self._hub.model(repository, part.revision, file).commit, known)
        with self._outlines.named():
            remote = self._outlines.find(part.name, part.revision)
            if (there := self._in_store(part, remote.commit, known)) is not None:
                return there
            if (folder := whole_snapshot(remote)) is not None:
                return Part(part, folder, describe_model(folder), remote.licence)
            outline = self._outlines.draw(remote, part.revision)
            described = replace(describe_model(outline.folder), licence=remote.licence)
        return Part(part, outline.folder, described, remote.licence, outline)

    @staticmethod
    def _see_cache(part: ModelReference, repository: str, file: str) -> Part | None:
        """What the hub's own client has fetched before, where the hub cannot be asked."""
        if file:
            return None
        folder = snapshot(repository, cached_commit(repository, part.revision))
        described = describe_model(folder)
        return Part(part, folder, described, described.licence)

    def _in_store(self, part: ModelReference, commit: str = "", known: Part | None = None) -> Part | None:
        """What the store has of a commit; "": of that which the revision was when it was last fetched.

        `known` is an entry whose headers have been read: where it is that one they are not read again.
        """
        store = self._store
        if store is None:
            return None
        pinned = part.revision if COMMIT.fullmatch(part.revision) else ""
        commit = commit or pinned or store.commit_of(part.name, part.revision)
        try:
            model = store.get(store.digest_of(part.name, commit))
            folder = store.folder(model)
            if known is not None and known.folder == folder:
                return known
            return Part(part, folder, describe_model(folder), model.licence)
        except InvalidInput:  # never fetched, or evicted
            return None

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors raised within call models of the hub by their names, see `Outlines.named`."""
        with self._outlines.named() if self._outlines is not None else nullcontext():
            yield

    # ---- what was seen ----

    @property
    def missing_bytes(self) -> int:
        """What would be fetched for all of them."""
        return sum(part.missing_bytes for part in self._parts_seen)

    @property
    def _parts_seen(self) -> Collection[Part]:
        return {str(part.reference): part for seen in self.models.values() for part in seen.parts}.values()

    def check_room(self) -> None:
        """Refuses what the store has no room for.

        Raises:
            DiskFull: names what is needed and what is free.

        """
        missing = self.missing_bytes
        if self._store is not None and missing:
            there = sum(part.bytes_in(self._store) for part in self._parts_seen)
            self._store.check_room(missing, f"the download of {', '.join(self.models)}", there=there)

    @property
    def unseen(self) -> tuple[str, ...]:
        """What was asked for and is not known: a hub that is slow, or a GGUF file of a hub."""
        return tuple(name for name in self._wanted if name not in self.models)

    def licences(self) -> dict[str, str]:
        """Returns each model's licence by its public name (see `by_source`); "" where it is not known."""
        seen = {name: model.licence for name, model in self.models.items()}
        return by_source((str(one.public), seen.get(name, "")) for name, one in self._wanted.items())

    def differ(self) -> bool:
        """Tells whether models cannot be merged tensor by tensor, as far as headers and tokenizers tell."""
        return len(groups_of(list(self.models.values()))) > 1

    def comparison(self, said: str = "") -> str:
        """Says what keeps the models apart, and which of them fit each other; see `seen.comparison`."""
        return comparison(list(self.models.values()), said)

    def folders(self) -> dict[str, Path] | None:
        """Finds the folder of each model for a plan, by its reference's text; None where one cannot be planned with.

        A plan reads vocabularies: tokenizers too large for an outline are fetched here.

        Raises:
            ModelError, Unavailable: the hub fails.

        """
        if self.unseen or not all(seen.can_be_planned for seen in self.models.values()):
            return None
        for seen in self.models.values():
            for part in seen.parts:
                if part.outline is not None and part.outline.holes and self._outlines is not None:
                    self._outlines.whole_tokenizers(part.outline)
        return {name: self._folder(seen) for name, seen in self.models.items()}

    def _folder(self, seen: Seen) -> Path:
        if seen.adapter is None:
            return seen.base.folder
        folder = scratch_folder(PAIRS)
        self._pairs.append(folder)
        write_pair(folder, seen.base.folder.absolute(), seen.adapter.folder.absolute())
        return folder


def _is_cached(part: ModelReference, repository: str, file: str) -> bool:
    commit = cached_commit(repository, part.revision)
    try:
        return bool(commit and cached_model(repository, commit, file))
    except ModelError:
        return False


def all_of(errors: Sequence[EvoMergeException], asked: int) -> EvoMergeException:
    """Returns one error that tells of all; a single one as it is.

    Args:
        errors: at least one.
        asked: of how many models.

    """
    distinct = list({str(error): error for error in errors}.values())
    if len(distinct) == 1:
        return distinct[0]
    kinds = {type(error) for error in distinct}
    kind: type[EvoMergeException] = EvoMergeException
    if len(kinds) == 1:
        kind = kinds.pop()
    elif all(isinstance(error, ModelError) for error in distinct):
        kind = ModelError
    else:
        kind = next((type(error) for error in distinct if isinstance(error, InvalidInput)), type(distinct[0]))
    listed = "".join(f"\n  * {error}" for error in distinct)
    return kind(f"{len(errors)} of {asked} models cannot be used:{listed}")
