"""Stores in this process's memory. They behave as a remote one: what is opened is a copy on this machine."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path

from evomerge_common.adapters.filesystem import hex_digest, name_parts
from evomerge_common.errors import ModelNotFound, NotFound, UnsafeFile, UnservedScheme

_SCHEME = "memory://"
Content = bytes | Mapping[str, bytes]
"""A file, or a folder: relative path → bytes."""


class MemoryArtifactStore:
    """Artifacts in memory.

    Args:
        local: a folder for what is staged, and for copies of what is opened.

    """

    def __init__(self, local: Path) -> None:
        self._local = _Local(local)
        self._artifacts: dict[str, Content] = {}

    def stage(self, name: str) -> Path:
        """Makes an empty folder to write in."""
        name_parts(name)
        return self._local.new_folder("staged")

    def commit(self, staged: Path, name: str) -> str:
        """Reads a staged folder, and removes it."""
        if not self._local.has(staged, "staged"):
            raise UnsafeFile(f"{staged} was not staged in this store; use the folder that `stage` gave")
        files = {str(path.relative_to(staged)): path.read_bytes() for path in staged.rglob("*") if path.is_file()}
        uri = self._put(name, files)
        shutil.rmtree(staged)
        return uri

    def put(self, name: str, data: bytes) -> str:
        """Stores one file."""
        return self._put(name, data)

    def get(self, uri: str) -> bytes:
        """Reads one file."""
        content = self._content(uri)
        if isinstance(content, bytes):
            return content
        raise NotFound(f"{uri} is a folder; open it instead")

    def open(self, uri: str) -> Path:
        """Makes a copy of the artifact, and returns its path."""
        return self._local.write(self._content(uri))

    def delete(self, uri: str) -> None:
        """Forgets it."""
        self._artifacts.pop(self._name(uri), None)

    def _put(self, name: str, content: Content) -> str:
        name_parts(name)
        self._artifacts[name] = content
        return _SCHEME + name

    def _content(self, uri: str) -> Content:
        try:
            return self._artifacts[self._name(uri)]
        except KeyError:
            raise NotFound(f"no artifact {uri}: it was deleted, or belongs to another store") from None

    @staticmethod
    def _name(uri: str) -> str:
        name = _name_in(uri)
        name_parts(name)
        return name


class MemoryModelStore:
    """Models in memory; `add` stands for the downloader.

    Args:
        local: a folder for copies of what is opened.

    """

    def __init__(self, local: Path) -> None:
        self._local = _Local(local)
        self._models: dict[str, Mapping[str, bytes]] = {}

    def add(self, digest: str, files: Mapping[str, bytes]) -> str:
        """Stores a model; returns its URI."""
        self._models[hex_digest(digest)] = files
        return self.uri(digest)

    def uri(self, digest: str) -> str:
        """Returns the URI of the model with a digest."""
        return _SCHEME + hex_digest(digest)

    def open(self, uri: str) -> Path:
        """Makes a copy of the model's folder, and returns its path."""
        try:
            return self._local.write(self._models[_name_in(uri)])
        except (KeyError, NotFound):
            raise ModelNotFound(f"{uri} is not in this store; download the model here first") from None


class _Local:
    """Folders under one folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = itertools.count()

    def new_folder(self, kind: str) -> Path:
        """Makes a new empty folder."""
        folder = self._root / kind / str(next(self._numbers))
        folder.mkdir(parents=True)
        return folder

    def has(self, folder: Path, kind: str) -> bool:
        """Tells whether it made that folder."""
        return folder.parent == self._root / kind and folder.is_dir()

    def write(self, content: Content) -> Path:
        """Writes a copy of a file or folder."""
        folder = self.new_folder("copies")
        if isinstance(content, bytes):
            (folder / "file").write_bytes(content)
            return folder / "file"
        for name, data in content.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder


def _name_in(uri: str) -> str:
    scheme, found, name = uri.partition("://")
    if found and scheme != "memory":
        raise UnservedScheme(f"{uri}: this store serves memory:// URIs alone")
    if not found:
        raise NotFound(f"{uri!r} is no URI of this store: expected memory://NAME")
    return name
