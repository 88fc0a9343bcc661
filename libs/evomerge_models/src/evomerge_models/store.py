"""The model store: one folder, entries named by digest, written by the downloader alone.

<digest>            the model's files, or a symlink to the user's own folder
                    or, of a base with an adapter applied, links to the small files and the names of both entries
<digest>.json       its Model record
.incoming/          downloads under way; kept when interrupted, renamed to <digest> when complete
.hub/<repository>/  which digest a commit has, and which commit a revision had when last seen
.hashes.json        file hashes, so that untouched files are not read twice
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from evomerge_common.adapters.filesystem import FilesystemModelStore, hex_digest
from evomerge_common.domain.messages import Model
from evomerge_common.errors import DiskFull, NotFound
from evomerge_common.runtime.files import locked, remove, sync, unique_sibling, write_atomically
from evomerge_models.files import ADAPTER_CONFIG, CONFIG
from evomerge_models.hashes import HashCache, folder_digest
from evomerge_models.pair import write_pair

_HEX = re.compile(r"[0-9a-f]{64}")
_SPARE_BYTES = 64 * 1024 * 1024


class WritableModelStore(FilesystemModelStore):
    """The store as the downloader has it. All methods block; they are called beside the event loop."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.hashes = HashCache(self.root / ".hashes.json")

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

    def list(self) -> list[Model]:
        """Every entry, by reference."""
        names = (path.stem for path in self.root.glob("*.json") if _HEX.fullmatch(path.stem))
        found = [model for name in names if (model := self._read(name)) is not None]
        return sorted(found, key=lambda model: (model.reference, model.digest))

    def evict(self, digest: str) -> int:
        """Removes an entry and returns the bytes freed; of a linked folder only the link goes (0 bytes).

        Raises:
            NotFound: no such entry.

        """
        model, name = self.get(digest), hex_digest(digest)
        path = self.root / name
        freed = 0 if path.is_symlink() else model.bytes
        (self.root / f"{name}.json").unlink(missing_ok=True)  # first: without its record an entry does not exist
        remove(path)
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
        if link:
            self._link(path, folder, digest, names)
        elif path.is_symlink() or not path.exists():
            if path.is_symlink():  # files of our own serve better than somebody's folder
                path.unlink()
            files = [folder / name for name in names]
            for changed in (*files, *{file.parent for file in files}):
                sync(changed)
            try:
                folder.rename(path)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
        if not link:
            remove(folder)  # the store had these files already
        record = dataclasses.replace(model, digest=f"sha256:{digest}", uri=self.uri(digest))
        write_atomically(self.root / f"{digest}.json", json.dumps(dataclasses.asdict(record), indent=1).encode())
        return record

    def put_pair(self, model: Model, base: Model, adapter: Model) -> Model:
        """Makes the entry of a base with an adapter applied; both are entries already.

        Returns:
            The record with digest and uri.

        """
        parts = [hex_digest(one.digest) for one in (base, adapter)]
        digest = hashlib.sha256("+".join(parts).encode()).hexdigest()
        path = self.root / digest
        fresh = unique_sibling(path)  # beside it: the links are relative
        fresh.mkdir()
        write_pair(fresh, *(Path("..") / part for part in parts))
        try:
            fresh.rename(path)
        except OSError as error:
            remove(fresh)
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        record = dataclasses.replace(model, digest=f"sha256:{digest}", uri=self.uri(digest))
        write_atomically(self.root / f"{digest}.json", json.dumps(dataclasses.asdict(record), indent=1).encode())
        return record

    def folder(self, model: Model) -> Path:
        """Where an entry's files are."""
        return self.root / hex_digest(model.digest)

    def _link(self, path: Path, folder: Path, digest: str, names: tuple[str, ...]) -> None:
        """A link whose folder has changed since is pointed to the one that has these files."""
        if path.exists():
            if not path.is_symlink() or path.resolve() == folder.resolve():
                return
            there = all((path / name).is_file() for name in names)
            if there and folder_digest(self.hashes.hashes(path, names)) == digest:
                return
        fresh = unique_sibling(path)
        self.root.mkdir(parents=True, exist_ok=True)
        fresh.symlink_to(folder.resolve(), target_is_directory=True)
        fresh.replace(path)

    def _read(self, name: str) -> Model | None:
        try:
            data = json.loads((self.root / f"{name}.json").read_bytes())
            model = Model(**data)
        except (OSError, ValueError, TypeError):
            return None
        there = any((self.root / name / one).is_file() for one in (CONFIG, ADAPTER_CONFIG))
        return model if there else None

    # ---- what the hub said ----

    def commit_of(self, repository: str, revision: str) -> str:
        """The commit that a revision had when it was last fetched, or ""."""
        return self._note(repository, "revisions", revision)

    def digest_of(self, repository: str, commit: str) -> str:
        """Digest (with its prefix) of a commit that has been downloaded, or ""."""
        return self._note(repository, "commits", commit)

    def remember(self, repository: str, revision: str, commit: str, digest: str) -> None:
        """Notes both."""
        for kind, key, value in (("commits", commit, digest), ("revisions", revision, commit)):
            write_atomically(self._note_path(repository, kind, key), value.encode())

    def _note(self, repository: str, kind: str, key: str) -> str:
        try:
            return self._note_path(repository, kind, key).read_text()
        except OSError:
            return ""

    def _note_path(self, repository: str, kind: str, key: str) -> Path:
        return self.root / ".hub" / quote(repository, safe="") / kind / (quote(key, safe="") or "_default")

    # ---- room and order ----

    def check_room(self, needed: int, what: str) -> None:
        """Before anything is written.

        Raises:
            DiskFull: names what is needed and what is free.

        """
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if needed + _SPARE_BYTES > free:
            raise DiskFull(
                f"{what} needs {needed / 1e9:.2f} GB and the model store {self.root} has {free / 1e9:.2f} GB free; "
                "make room, evict models, or set EVOMERGE_MODEL_STORE to a larger disk"
            )

    @contextmanager
    def incoming(self, name: str) -> Iterator[Path]:
        """A folder for one download, kept when it fails; a second process or thread waits for the first."""
        folder = self.root / ".incoming" / quote(name, safe="")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f"{folder.name}.lock"):
            folder.mkdir(exist_ok=True)
            yield folder
