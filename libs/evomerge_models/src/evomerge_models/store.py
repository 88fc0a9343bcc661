"""The model store: one folder, entries named by digest, written by the downloader alone.

<digest>            the model's files, or a symlink to the user's own folder
                    or, of a base with an adapter applied, links to the small files and the names of both entries
<digest>.json       its Model record and the sizes of its files; its time tells when the entry was last used
.incoming/          downloads under way; kept when interrupted, renamed to <digest> when complete
.hub/<repository>/  which digest a commit has, and which commit a revision had when last seen
.pins/              who keeps which entries (`pins`)
.lock               held while an entry is taken for use, or entries go to make room
.hashes.json        file hashes, so that untouched files are not read twice
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from evomerge_common.adapters.filesystem import FilesystemModelStore, hex_digest
from evomerge_common.domain.licence_names import joined
from evomerge_common.domain.messages import Model
from evomerge_common.errors import DiskFull, InvalidInput, NotFound, OverQuota
from evomerge_common.runtime.files import locked, remove, sync, unique_sibling, write_atomically
from evomerge_models.card import UNTOLD, licence_of_folder
from evomerge_models.content import content_digest, pair_digest
from evomerge_models.files import ADAPTER_CONFIG, CONFIG, read_json_or_nothing
from evomerge_models.hashes import HashCache, folder_digest
from evomerge_models.hub_notes import HubNotes
from evomerge_models.incoming import Incoming
from evomerge_models.pair import names_of_parts, read_pair, write_pair
from evomerge_models.pins import Pins
from evomerge_models.room import Taken, choose

_HEX = re.compile(r"[0-9a-f]{64}")
_SPARE_BYTES = 64 * 1024 * 1024


def licence_at(folder: Path) -> str:
    """Tells the licence of a model folder, adapter, pair or entry of a store; "" where nothing tells it."""
    if (pair := read_pair(folder)) is not None:
        return joined(licence_at(part) for part in pair)
    found = licence_of_folder(folder)
    if found in UNTOLD and _HEX.fullmatch(folder.name):  # an entry: its record has what the hub said
        return str(read_json_or_nothing(folder.with_name(f"{folder.name}.json")).get("licence") or found)
    return found


class WritableModelStore(FilesystemModelStore, HubNotes):
    """The store as the downloader has it. All methods block; they are called beside the event loop."""

    def __init__(self, root: Path, quota: int = 0) -> None:
        """Opens the store in a folder; it may take `quota` bytes, or all that the disk has (0)."""
        super().__init__(root)
        self.hashes = HashCache(self.root / ".hashes.json")
        self.pins = Pins(self.root)
        self._incoming = Incoming(self.root)
        self._quota = quota

    # ---- entries ----

    def get(self, digest: str) -> Model:
        """The record of an entry whose files are there.

        Raises:
            InvalidInput: not a digest.
            NotFound: no such entry.

        """
        found = self._read(hex_digest(digest))
        if found is None:
            raise NotFound(f"no model {digest} in the store {self.root}; download it first")
        return found

    def take(self, digest: str, owner: str = "") -> Model:
        """The record of an entry that is about to be used: it counts as used now, and `owner` (`pins`) keeps it.

        Raises:
            InvalidInput, NotFound: as `get`.

        """
        name = hex_digest(digest)
        with self._locked():
            found = self.get(digest)
            for one in (name, *names_of_parts(self.root / name)):
                with suppress(FileNotFoundError):
                    os.utime(self._record(one))
            if owner:
                self.pins.add(name, owner)
        return found

    def list(self) -> list[Model]:
        """Every entry, by reference."""
        found = [model for name in self._names() if (model := self._read(name)) is not None]
        return sorted(found, key=lambda model: (model.reference, model.digest))

    def used(self, digest: str) -> float:
        """When an entry was last used, in Unix seconds."""
        return self._record(hex_digest(digest)).stat().st_mtime

    def bytes_of(self, model: Model) -> int:
        """What an entry takes of the disk: nothing, of a linked folder and of a base with an adapter."""
        return 0 if model.base or self.folder(model).is_symlink() else model.bytes

    def evict(self, digest: str) -> int:
        """Removes an entry, and the pairs that it is a part of; returns the bytes freed.

        Of a linked folder only the link goes (0 bytes).

        Raises:
            NotFound: no such entry.
            InvalidInput: it is kept by somebody.

        """
        name = hex_digest(digest)
        with self._locked():
            model = self.get(digest)
            going = [*(pair for pair in self._names() if name in names_of_parts(self.root / pair)), name]
            for one in going:
                if owners := self.pins.owners(one):
                    raise InvalidInput(
                        f"{model.reference} is kept by {', '.join(owners)}; wait for its end, or unpin it: "
                        "evomerge models unpin"
                    )
            return sum([self._evict(one) for one in going])

    def _evict(self, name: str) -> int:
        """Under the lock. The record goes first: without it an entry does not exist."""
        model = self._read(name)
        freed = 0 if model is None else self.bytes_of(model)
        self._record(name).unlink(missing_ok=True)
        remove(self.root / name)
        return freed

    def put(
        self,
        folder: Path,
        model: Model,
        names: tuple[str, ...],
        *,
        link: bool,
        verified: Mapping[str, str] | None = None,
    ) -> Model:
        """Makes a folder the entry of its digest; a copy or a download is moved in, a linked folder stays where it is.

        `verified` holds the SHA-256 of files that were compared with it a moment ago: they are not read again.

        Returns:
            The record with digest and uri.

        """
        sure = dict(verified or {})
        digest = folder_digest(self.hashes.hashes(folder, [name for name in names if name not in sure]) | sure)
        path = self.root / digest
        if not link:
            files = [folder / name for name in names]
            for changed in (*files, *{file.parent for file in files}):
                sync(changed)
        with self._locked():
            if link:
                self._link(path, folder, digest, names)
            elif path.is_symlink() or self._read(digest) is None:
                remove(path)  # files of our own serve better than somebody's folder, or than a part of them
                folder.rename(path)
            record = self._write(model, digest, {name: (path / name).stat().st_size for name in names})
        if not link:
            remove(folder)  # the store had these files already
        return record

    def find(self, digest: str) -> Path | None:
        """The folder of an entry whose files are what the digest says, read to prove it; None where there is none."""
        try:
            folder = self.folder(self.get(digest))
        except InvalidInput:
            return None
        return folder if content_digest(folder, self.hashes) == hex_digest(digest) else None

    def put_pair(self, model: Model, base: Model, adapter: Model) -> Model:
        """Makes the entry of a base with an adapter applied; both are entries already.

        Returns:
            The record with digest and uri.

        """
        parts = [hex_digest(one.digest) for one in (base, adapter)]
        digest = pair_digest(*parts)
        path = self.root / digest
        fresh = unique_sibling(path)  # beside it: the links are relative
        fresh.mkdir()
        write_pair(fresh, *(Path("..") / part for part in parts))
        with self._locked():
            if self._read(digest) is None:
                remove(path)
                fresh.rename(path)
            else:
                remove(fresh)
            return self._write(model, digest, {})

    def folder(self, model: Model) -> Path:
        """Where an entry's files are."""
        return self.root / hex_digest(model.digest)

    def _link(self, path: Path, folder: Path, digest: str, names: tuple[str, ...]) -> None:
        """A link whose folder has changed since is pointed to the one that has these files."""
        if path.exists() and not path.is_symlink():
            if self._read(digest) is not None:
                return
            remove(path)
        elif path.exists():
            if path.resolve() == folder.resolve():
                return
            there = all((path / name).is_file() for name in names)
            if there and folder_digest(self.hashes.hashes(path, names)) == digest:
                return
        fresh = unique_sibling(path)
        self.root.mkdir(parents=True, exist_ok=True)
        fresh.symlink_to(folder.resolve(), target_is_directory=True)
        fresh.replace(path)

    def _names(self) -> Sequence[str]:
        return [path.stem for path in self.root.glob("*.json") if _HEX.fullmatch(path.stem)]

    def _record(self, name: str) -> Path:
        return self.root / f"{name}.json"

    def _write(self, model: Model, digest: str, sizes: Mapping[str, int]) -> Model:
        record = dataclasses.replace(model, digest=f"sha256:{digest}", uri=self.uri(digest))
        data = {**dataclasses.asdict(record), "files": sizes}
        write_atomically(self._record(digest), json.dumps(data, indent=1))
        return record

    def _read(self, name: str) -> Model | None:
        """An entry's record, where all its files are there: the folder behind a link may be gone, or parts of it."""
        folder = self.root / name
        try:
            data = json.loads(self._record(name).read_bytes())
            sizes = data.pop("files", {})
            model = Model(**data)
            if any((folder / file).stat().st_size != size for file, size in sizes.items()):
                return None
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        there = any((folder / one).is_file() for one in (CONFIG, ADAPTER_CONFIG))
        whole = all((self.root / part).is_dir() for part in names_of_parts(folder))
        return model if there and whole else None

    # ---- room and order ----

    def make_room(self, needed: int, what: str, *, there: int = 0, incoming: Path | None = None) -> Sequence[Model]:
        """Sees to it, before anything is written, that there is room; parts with models where the quota asks for it.

        Args:
            needed: bytes, when all of it has come.
            what: comes, for errors.
            there: bytes of it that an earlier try left.
            incoming: where it is written; the room counts as taken as long as this process writes there.

        Returns:
            The models that went.

        Raises:
            OverQuota: it is larger than the quota by itself.
            DiskFull: names what is needed and what is free.

        """
        self._check_quota(needed, what)
        with self._locked():
            self._sweep()
            gone = self._make_room_in_quota(needed, what, incoming) if self._quota else []
            self._check_disk(needed - there, what)
            if incoming is not None:
                self._incoming.expect(incoming, needed)
        return gone

    def check_room(self, needed: int, what: str, *, there: int = 0) -> None:
        """Looks whether there could be room for `needed` bytes, of which `there` have come, and changes nothing.

        Raises:
            OverQuota, DiskFull: as `make_room`.

        """
        self._check_quota(needed, what)
        self._check_disk(needed - there, what)

    def _check_quota(self, needed: int, what: str) -> None:
        if self._quota and needed > self._quota:
            raise OverQuota(
                f"{what} needs {needed / 1e9:.2f} GB, and the model store {self.root} may take {self._quota / 1e9:.2f} "
                "GB in all; set EVOMERGE_MODEL_STORE_QUOTA to more"
            )

    def _check_disk(self, needed: int, what: str) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if needed + _SPARE_BYTES > free:
            raise DiskFull(
                f"{what} needs {needed / 1e9:.2f} GB and the model store {self.root} has {free / 1e9:.2f} GB free; "
                "make room, evict models (evomerge models evict), or set EVOMERGE_MODEL_STORE to a larger disk"
            )

    def _make_room_in_quota(self, needed: int, what: str, incoming: Path | None) -> Sequence[Model]:
        taken = self._taken()
        coming, left = self._incoming.sizes(incoming)
        over = sum(one.bytes for one in taken.values()) + coming + sum(size for _, size in left) + needed - self._quota
        for folder, size in left:  # before any whole model
            if over > 0 and self._incoming.drop(folder):
                over -= size
        going = choose(taken, [name for name in taken if self.pins.owners(name)], over)
        if going is None:
            raise DiskFull(
                f"{what} needs {needed / 1e9:.2f} GB; of the {self._quota / 1e9:.2f} GB that the model store "
                f"{self.root} may take, too much is in use or pinned (evomerge models list): unpin models, wait, or "
                "set EVOMERGE_MODEL_STORE_QUOTA to more"
            )
        models = [model for name in going if (model := self._read(name))]
        for name in going:
            self._evict(name)
        return models

    def _sweep(self) -> None:
        """Removes what a process left that was killed while it evicted."""
        for folder in self.root.iterdir():
            if _HEX.fullmatch(folder.name) and not self._record(folder.name).exists():
                remove(folder)

    def _taken(self) -> dict[str, Taken]:
        found = {}
        for name in self._names():
            if model := self._read(name):
                parts = names_of_parts(self.root / name)
                found[name] = Taken(self.bytes_of(model), self.used(name), parts)
        return found

    def incoming(self, name: str) -> AbstractContextManager[Path]:
        """A folder for one download, kept when it fails; a second process or thread waits for the first."""
        return self._incoming.folder(name)

    def place_of_incoming(self, name: str) -> Path:
        """Where that folder is, whether there is one or not."""
        return self._incoming.place(name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / ".lock"):
            yield
