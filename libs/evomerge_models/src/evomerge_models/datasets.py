"""Files of datasets on a hub, hf://datasets/org/name/file.jsonl@revision: pinned to a commit, kept beside the models.

<store>/.datasets/<repository>/<commit>/<file>
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from evomerge_common.errors import EvoMergeException, InvalidInput, ModelNotFound, Unavailable
from evomerge_common.runtime.files import remove
from evomerge_models.hub import COMMIT, Hub, RemoteModel
from evomerge_models.hub.cache import cached_commit, cached_data, sound_files
from evomerge_models.store import WritableModelStore

SCHEME = "hf://"
_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*"
_URL = re.compile(rf"hf://datasets/(?P<repository>{_NAME})(?:@(?P<early>[^/@]+))?/(?P<file>[^@]+)(?:@(?P<late>[^@]+))?")
_STEP = re.compile(r"[^/\\\0]+")
_READ = (".jsonl", ".ndjson", ".json", ".txt")


@dataclass(frozen=True)
class DataReference:
    """A file of a dataset; `revision` is "" for the default branch."""

    repository: str
    file: str
    revision: str = ""

    @classmethod
    def parse(cls, url: str) -> DataReference:
        """Reads `hf://datasets/org/name/file@revision`, or `hf://datasets/org/name@revision/file` as elsewhere.

        Raises:
            InvalidInput: it names no file of a dataset, or one that is not read here.

        """
        match = _URL.fullmatch(url.strip())
        steps = match["file"].split("/") if match else []
        if match is None or (match["early"] and match["late"]):
            raise InvalidInput(f"{url!r} names no file of a dataset; write hf://datasets/org/name/file.jsonl@revision")
        if not all(_STEP.fullmatch(step) and not step.startswith(".") for step in steps):
            raise InvalidInput(f"{url!r} leads out of its dataset, or to a hidden file; name a file inside")
        if not match["file"].endswith(_READ):
            why = "Parquet is not read here: save it as JSON Lines" if ".parquet" in url else "JSON Lines is"
            raise InvalidInput(f"{url!r} is not {', '.join(_READ)}; {why}")
        return cls(match["repository"], match["file"], unquote(match["early"] or "") or match["late"] or "")

    def __str__(self) -> str:
        return f"{SCHEME}datasets/{self.repository}/{self.file}{f'@{self.revision}' if self.revision else ''}"


class DatasetFiles:
    """Brings files of datasets to this machine. Its methods block.

    Args:
        store: where they are kept.
        most: bytes of a file; what is larger is refused before it comes.

    """

    def __init__(self, store: WritableModelStore, hub: Hub, most: int) -> None:
        self._store, self._hub, self._most = store, hub, most

    def fetch(self, wanted: DataReference) -> tuple[Path, str]:
        """Finds a file, fetched only if neither the store nor the client's cache have it.

        Returns:
            Where it is, and the commit that it is of.

        Raises:
            ModelNotFound: no such dataset, revision or file; offline, and never fetched.
            InvalidInput: it is too large.
            DiskFull, Unavailable: trying again may help.

        """
        if COMMIT.fullmatch(wanted.revision) and (path := self._place(wanted, wanted.revision)).is_file():
            return path, wanted.revision
        if self._hub.is_offline:
            return self._without_hub(
                wanted, ModelNotFound(f"{wanted} was never fetched and HF_HUB_OFFLINE is set; unset it, or name a file")
            )
        try:
            remote = self._hub.dataset(wanted.repository, wanted.revision, wanted.file)
        except Unavailable as error:
            return self._without_hub(wanted, error)
        if remote.bytes > self._most:
            raise InvalidInput(f"{wanted} has {remote.bytes} bytes; more than {self._most} are not read")
        return self._bring(wanted, remote), remote.commit

    def _bring(self, wanted: DataReference, remote: RemoteModel) -> Path:
        key, path = _key(wanted), self._place(wanted, remote.commit)
        with self._store.incoming(f"{key}/{wanted.file}@{remote.commit}") as incoming:
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                if cached := sound_files(remote, self._store.hashes.hashes).get(wanted.file):
                    path.with_name(f".{path.name}.fresh").write_bytes(cached.read_bytes())
                    path.with_name(f".{path.name}.fresh").replace(path)
                else:
                    self._store.make_room(remote.bytes, str(wanted), incoming=incoming)
                    self._hub.fetch(remote, incoming)
                    (incoming / wanted.file).replace(path)
            remove(incoming)
            self._store.remember(key, wanted.revision, remote.commit, "")
        return path

    def _without_hub(self, wanted: DataReference, error: EvoMergeException) -> tuple[Path, str]:
        """The file as it was when it was fetched last."""
        commit = self._store.commit_of(_key(wanted), wanted.revision)
        if commit and (path := self._place(wanted, commit)).is_file():
            return path, commit
        commit = cached_commit(wanted.repository, wanted.revision, "dataset")
        remote = cached_data(wanted.repository, commit, wanted.file) if commit else None
        if remote is None or not sound_files(remote, self._store.hashes.hashes):
            raise error
        return self._bring(wanted, remote), commit

    def _place(self, wanted: DataReference, commit: str) -> Path:
        return self._store.root / ".datasets" / quote(wanted.repository, safe="") / commit / wanted.file


def _key(wanted: DataReference) -> str:
    return f"datasets/{wanted.repository}"
