"""A hub's model before its weights: a folder with its small files, its headers, and holes where the rest will be.

What judges a local folder judges an outline by the same code: every file is there under its name and in its length.
Config, index and adapter's config are whole; a weight file is its header and a hole behind it (a sparse file); a
tokenizer is whole if it is small, else a hole until `whole_tokenizers` fetches it. What was read is kept by commit
beside the model store, so that a second look at the same commit fetches nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from evomerge_common.domain.licence_names import licence_of_text
from evomerge_common.errors import EvoMergeException, SpecError, Unavailable, UnsafeFile
from evomerge_common.runtime.files import write_atomically
from evomerge_common.runtime.scratch import drop, scratch_folder
from evomerge_models.card import LICENCE_BYTES, UNTOLD
from evomerge_models.files import MAX_JSON_BYTES, Selection
from evomerge_models.hashes import git_blob_sha1
from evomerge_models.headers import LENGTH_BYTES, header_length, parse_header
from evomerge_models.hub.client import Hub
from evomerge_models.hub.files import COMMIT, RemoteFile, RemoteModel

SMALL_BYTES = 1 << 18
"""Files up to this size are fetched whole; so are config and index up to the limit of JSON."""
_FIRST_BYTES = 1 << 16
"""The first range of a weight file: most headers of a gigabyte are in it."""
_FOLDERS = "evomerge-outline-"
_READERS = 8
_NEEDED = (".index.json", "config.json")


@dataclass(frozen=True)
class Outline:
    """One model of a hub, as far as it is known without its weights.

    Attributes:
        name: org/name, with the revision that was asked for.
        folder: see the module's text.
        holes: files that are neither weights nor fetched.

    """

    name: str
    remote: RemoteModel
    folder: Path
    holes: tuple[str, ...]

    @property
    def has_headers(self) -> bool:
        """Whether its tensors are known: a pickle's are not."""
        return all(name.endswith(".safetensors") for name in self.remote.selection.weights)


class Outlines:
    """Outlines of models, in a folder that is gone at the end of the context.

    Args:
        hub: where they are.
        cache: the model store's folder; None: nothing is kept.

    """

    def __init__(self, hub: Hub, cache: Path | None = None) -> None:
        self._hub = hub
        self._cache = cache
        self._root = scratch_folder(_FOLDERS)

    def __enter__(self) -> Outlines:
        return self

    def __exit__(self, *_: object) -> None:
        drop(self._root)

    def find(self, repository: str, revision: str) -> RemoteModel:
        """Tells what a revision is now; of a commit that was looked at before without a request.

        Raises:
            ModelError, Unavailable: see `Hub.model`.

        """
        if COMMIT.fullmatch(revision) and (known := self._load(repository, revision)) is not None:
            return known
        remote = self._hub.model(repository, revision)
        if known := self._load(repository, remote.commit):
            return known
        if remote.licence in UNTOLD and remote.licence_file:
            text = self._hub.read(remote, remote.licence_file, 0, LICENCE_BYTES).decode("utf-8", "replace")
            remote = dataclasses.replace(remote, licence=licence_of_text(text) or remote.licence)
        self._save(remote)
        return remote

    def draw(self, remote: RemoteModel, revision: str = "") -> Outline:
        """Fetches what is known without weights, in parallel, and lays it out as a folder.

        Raises:
            UnsafeFile: a header that lies, or a small file that is not what the hub's metadata says.
            ModelNotFound, Unavailable: as `Hub.read`.

        """
        name = f"{remote.repository}@{revision}" if revision else remote.repository
        folder = self._root / name
        _make_below(self._root, folder)
        kept = self._kept(remote)
        weights = set(remote.selection.weights)
        wanted = [file for file in remote.files if file.name not in weights and _is_wanted(file)]
        headers = [file for file in remote.files if file.name in weights and file.name.endswith(".safetensors")]
        for file in remote.files:
            for place in (folder, kept):
                _make_below(place, (place / file.name).parent)
        jobs = [partial(self._whole, remote, file, kept, folder) for file in wanted]
        jobs += [partial(self._header, remote, file, kept, folder) for file in headers]
        _run_all(jobs)
        holes = []
        for file in remote.files:
            path = folder / file.name
            if not path.exists():
                path.touch()
                holes += [] if file.name in weights else [file.name]
            os.truncate(path, file.size)
        return Outline(name, remote, folder, tuple(sorted(holes)))

    def whole_tokenizers(self, outline: Outline) -> Outline:
        """Fetches the larger small files too: a plan of a merge reads the vocabularies.

        Raises:
            UnsafeFile, ModelNotFound, Unavailable: as `draw`.

        """
        kept = self._kept(outline.remote)
        files = [file for file in outline.remote.files if file.name in outline.holes]
        _run_all([partial(self._whole, outline.remote, file, kept, outline.folder) for file in files])
        return dataclasses.replace(outline, holes=())

    def seed(self, remote: RemoteModel, folder: Path) -> None:
        """Puts the small files of a commit that was looked at into the folder of its download, which verifies them."""
        kept = self._kept(remote)
        for file in remote.files:
            held, path = kept / file.name, folder / file.name
            if held.is_file() and held.stat().st_size == file.size and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(held.read_bytes())

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors raised within call a model by its name on the hub, not by the folder of its outline."""
        try:
            yield
        except SpecError:
            raise
        except EvoMergeException as error:
            text = str(error)
            shown = text.replace(f"{self._root}/", "")
            if shown == text:
                raise
            raise type(error)(shown) from error

    def _whole(self, remote: RemoteModel, file: RemoteFile, kept: Path, folder: Path) -> None:
        path, held = folder / file.name, kept / file.name
        if held.is_file() and held.stat().st_size == file.size:
            data = held.read_bytes()
        else:
            data = _twice(lambda: self._fetched(remote, file, path))
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        if self._cache is not None and not held.exists():
            write_atomically(held, data)

    def _header(self, remote: RemoteModel, file: RemoteFile, kept: Path, folder: Path) -> None:
        path, held = folder / file.name, kept / f"{file.name}.header"
        if held.is_file():
            path.write_bytes(held.read_bytes())
            return
        data = _twice(lambda: self._fetched_header(remote, file, path))
        path.write_bytes(data)
        if self._cache is not None:
            write_atomically(held, data)

    def _fetched(self, remote: RemoteModel, file: RemoteFile, path: Path) -> bytes:
        """A whole file, compared with what the hub says of it."""
        data = self._hub.read(remote, file.name, 0, max(1, file.size))
        if file.sha256:
            same = hashlib.sha256(data).hexdigest() == file.sha256
        else:
            same = len(data) == file.size and file.blob in {"", git_blob_sha1(data)}
        if not same:
            raise UnsafeFile(f"{path} is not the file that the hub says it is; try again")
        return data

    def _fetched_header(self, remote: RemoteModel, file: RemoteFile, path: Path) -> bytes:
        """A weight file up to the end of its header, which is sound."""
        data = self._hub.read(remote, file.name, 0, min(_FIRST_BYTES, max(1, file.size)))
        stop = LENGTH_BYTES + header_length(path, file.size, data)
        if stop > len(data):
            data += self._hub.read(remote, file.name, len(data), stop)
        if len(data) < stop:
            raise Unavailable(f"the hub sends {len(data)} bytes of the header of {path}, which has {stop}; try again")
        parse_header(path, file.size, data[LENGTH_BYTES:stop])
        return data[:stop]

    # ---- what is kept ----

    def _kept(self, remote: RemoteModel) -> Path:
        root = self._root
        if self._cache is not None:
            root = self._cache
            root.mkdir(parents=True, exist_ok=True)
        folder = root / ".hub" / quote(remote.repository, safe="") / "outlines" / remote.commit
        _make_below(root, folder)
        return folder

    def _save(self, remote: RemoteModel) -> None:
        if self._cache is not None:
            write_atomically(self._kept(remote) / ".model", json.dumps(dataclasses.asdict(remote)).encode())

    def _load(self, repository: str, commit: str) -> RemoteModel | None:
        if self._cache is None:
            return None
        path = self._cache / ".hub" / quote(repository, safe="") / "outlines" / commit / ".model"
        try:
            data = json.loads(path.read_bytes())
            chosen = {key: tuple(names) for key, names in data["selection"].items()}
            files = tuple(RemoteFile(**file) for file in data["files"])
            return RemoteModel(**{**data, "selection": Selection(**chosen), "files": files})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _make_below(root: Path, folder: Path) -> None:
    """Makes folders in a root that must be there: a thread may draw still when the outlines are dropped."""
    for path in [*reversed(folder.relative_to(root).parents), folder.relative_to(root)]:
        if path.name:
            (root / path).mkdir(exist_ok=True)


def _is_wanted(file: RemoteFile) -> bool:
    return file.size <= SMALL_BYTES or (file.name.endswith(_NEEDED) and file.size <= MAX_JSON_BYTES)


def _twice(fetch: Callable[[], bytes]) -> bytes:
    """What came wrong once may have been damaged on its way."""
    try:
        return fetch()
    except UnsafeFile:
        return fetch()


def _run_all(jobs: Sequence[Callable[[], None]]) -> None:
    """Runs all, some at the same time; the first error in their order is raised.

    In daemons: a hub that never answers must not keep a command from ending.
    """
    waiting, errors = list(enumerate(jobs)), dict[int, Exception]()

    def work() -> None:
        while waiting:
            try:
                number, job = waiting.pop(0)
            except IndexError:
                return
            try:
                job()
            except Exception as error:
                errors[number] = error

    threads = [threading.Thread(target=work, name="outline", daemon=True) for _ in jobs[:_READERS]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
