"""Artifacts and models in folders that every service of the machine (or of the cluster, on a shared volume) sees."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
import uuid
from pathlib import Path
from urllib.parse import quote

from evomerge_common.errors import DiskFull, InvalidInput, ModelNotFound, NotFound, Unavailable, UnsafeFile
from evomerge_common.runtime.files import remove, sync, sync_tree
from evomerge_common.runtime.uris import local_path

_STALE = 24 * 3600.0
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


class FilesystemArtifactStore:
    """`<root>/<name>` holds an artifact, `<root>/.staging` what is being written. URIs are `file://` paths.

    A commit is fsync and rename on one file system; replacing a folder takes two renames, so that a reader may for
    a moment find none, but never half of one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        self._staging = self.root / ".staging"
        self._staging.mkdir(parents=True, exist_ok=True)
        self._prefix = f"{socket.gethostname()}@{os.getpid()}@{_started(os.getpid())}"
        self._sweep()

    def stage(self, name: str) -> Path:
        """Makes an empty folder to write in, on the store's file system."""
        self._path(name)
        staged = self._new()
        staged.mkdir(parents=True)
        return staged

    def commit(self, staged: Path, name: str) -> str:
        """Makes a staged folder the artifact `name`."""
        if staged.parent.resolve() != self._staging:
            raise UnsafeFile(f"{staged} was not staged in this store; use the folder that `stage` gave")
        sync_tree(staged)
        return self._move(staged, name)

    def put(self, name: str, data: bytes) -> str:
        """Stores one file."""
        self._path(name)
        staged = self._new()
        try:
            staged.write_bytes(data)
            sync(staged)
        except OSError as error:
            staged.unlink(missing_ok=True)
            if error.errno == errno.ENOSPC:
                raise DiskFull(f"no room for {len(data)} bytes in {self.root}: free some space") from error
            raise
        return self._move(staged, name)

    def _move(self, staged: Path, name: str) -> str:
        target = self._path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and staged.is_file():
            staged.replace(target)
        else:
            for _ in range(100):  # somebody else may put the same name between the two renames
                old = self._new()
                with contextlib.suppress(FileNotFoundError):
                    target.rename(old)
                try:
                    staged.rename(target)
                    break
                except OSError as error:
                    if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR}:
                        raise
                finally:
                    remove(old)
            else:
                raise Unavailable(f"{target} is replaced by others all the time; is one name used for two things?")
        sync(target.parent)
        return "file://" + quote(str(target))

    def get(self, uri: str) -> bytes:
        """Reads one file."""
        path = self.open(uri)
        if not path.is_file():
            raise NotFound(f"{uri} is a folder; open it instead")
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"no artifact {uri}") from error

    def open(self, uri: str) -> Path:
        """Returns the artifact's path."""
        path = self._from_uri(uri)
        if not path.exists():
            raise NotFound(f"no artifact {uri}: it was deleted, or belongs to a store that this machine does not see")
        return path

    def delete(self, uri: str) -> None:
        """Removes it: renamed first, so that half of it never has its URI."""
        path = self._from_uri(uri)
        old = self._new()
        try:
            path.rename(old)
        except FileNotFoundError:
            return
        remove(old)

    def _new(self) -> Path:
        return self._staging / f"{self._prefix}@{uuid.uuid4().hex}"

    def _path(self, name: str) -> Path:
        return self.root.joinpath(*name_parts(name))

    def _from_uri(self, uri: str) -> Path:
        path, prefix = str(local_path(uri)), f"{self.root}/"
        if not uri.startswith("file:") or not path.startswith(prefix):
            raise NotFound(f"{uri} is out of this machine's reach: its artifact store is the folder {self.root}")
        return self._path(path.removeprefix(prefix))

    def _sweep(self) -> None:
        """Removes what processes left behind that died while they wrote."""
        for path in self._staging.iterdir():
            host, _, rest = path.name.partition("@")
            pid, _, rest = rest.partition("@")
            started = rest.partition("@")[0]
            try:
                old = time.time() - path.stat().st_mtime > _STALE
            except FileNotFoundError:
                continue
            dead = host == socket.gethostname() and pid.isdigit() and _started(int(pid)) != started
            if old or dead:
                remove(path)


def _started(pid: int) -> str:
    """When a process started (clock ticks since boot); tells it from a later one of the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


class FilesystemModelStore:
    """`<root>/<digest>` holds a model's files. URIs are `file://` paths; a model may also lie outside the root."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    def uri(self, digest: str) -> str:
        """Returns the URI of the model with a digest, whether the store has it or not."""
        return (self.root / hex_digest(digest)).as_uri()

    def open(self, uri: str) -> Path:
        """Returns the folder itself."""
        try:
            path = local_path(uri)
        except NotFound as error:
            raise ModelNotFound(f"{error}; download the model here first") from error
        if not path.is_dir():
            raise ModelNotFound(f"{uri} is not on this machine; download the model here first")
        return path.absolute()


def name_parts(name: str) -> list[str]:
    """Returns the parts of an artifact's name, such as "scratch/<digest>".

    Raises:
        UnsafeFile: a name that leads out of its store, or into what a store keeps for itself.

    """
    parts = name.split("/")
    if any(p in {"", ".", ".."} or p.startswith(".staging") or "\0" in p or "\\" in p for p in parts):
        raise UnsafeFile(f"artifact name {name!r} leaves its store; use names such as scratch/<digest>")
    return parts


def hex_digest(digest: str) -> str:
    """Returns the 64 hex digits of a digest.

    Raises:
        InvalidInput: not a digest.

    """
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise InvalidInput(f"{digest!r} is no digest; give sha256: and 64 hex digits, as ListModels shows them")
    return found[1]
