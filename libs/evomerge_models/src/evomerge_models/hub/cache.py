"""What huggingface_hub's own client has fetched before, where it lies: `models--org--name/snapshots/<commit>/<file>`.

A snapshot's files are links to blobs that are called by what the hub told of them: the SHA-256 of files in LFS, git's
SHA-1 of the others. They are read to prove it, once (`HashCache`), and never written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from evomerge_models.files import Selection, select_files
from evomerge_models.hashes import git_blob_sha1
from evomerge_models.hub.files import COMMIT, RemoteFile, RemoteModel

Hashes = Callable[[Path, Iterable[str]], Mapping[str, str]]
"""Gives the SHA-256 of a folder's files by name, such as `HashCache.hashes`."""

_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


def cached_commit(repository: str, revision: str, kind: str = "model") -> str:
    """The commit that a revision ("": the default branch) had when the client fetched from it last, or ""."""
    if COMMIT.fullmatch(revision):
        return revision
    refs = _folder(repository, kind) / "refs"
    path = refs / (revision or "main")
    if not path.resolve().is_relative_to(refs.resolve()):
        return ""
    try:
        commit = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return commit if COMMIT.fullmatch(commit) else ""


def snapshot(repository: str, commit: str, kind: str = "model") -> Path:
    """The folder of a commit's files, whether there is one or not."""
    return _folder(repository, kind) / "snapshots" / commit


def cached_model(repository: str, commit: str, file: str = "") -> RemoteModel:
    """A model as the cache has it, for when the hub cannot be asked.

    Args:
        repository, commit: which.
        file: the one file that is wanted, such as a GGUF file; "": those that make a model.

    Raises:
        NotAModel: files of the model are missing.

    """
    folder = snapshot(repository, commit)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    selection = select_files(names, f"{repository}@{commit[:12]} in the client's cache", file)
    return RemoteModel(repository, commit, selection, tuple(_as_the_hub_told(folder, name) for name in selection.files))


def cached_data(repository: str, commit: str, file: str) -> RemoteModel | None:
    """A file of a dataset as the cache has it; None where it has not."""
    folder = snapshot(repository, commit, "dataset")
    if not (folder / file).is_file():
        return None
    told = _as_the_hub_told(folder, file)
    return RemoteModel(repository, commit, Selection((file,), ()), (told,), kind="dataset")


def whole_snapshot(remote: RemoteModel) -> Path | None:
    """The folder of a model's files, where all of them are there in their length; None where they are not."""
    folder = snapshot(remote.repository, remote.commit, remote.kind)
    return folder if all(_is_there(folder / file.name, file.size) for file in remote.files) else None


def sound_files(remote: RemoteModel, hashes: Hashes) -> dict[str, Path]:
    """The wanted files that the cache has as the hub describes them, by name."""
    folder = snapshot(remote.repository, remote.commit, remote.kind)
    there = [file for file in remote.files if _is_there(folder / file.name, file.size)]
    found = hashes(folder, [file.name for file in there if file.sha256])
    return {
        file.name: folder / file.name
        for file in there
        if (
            found[file.name] == file.sha256
            if file.sha256
            else git_blob_sha1((folder / file.name).read_bytes()) == file.blob
        )
    }


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False


def _as_the_hub_told(folder: Path, name: str) -> RemoteFile:
    """By the name of the blob; where the cache is without links, as it is."""
    path = folder / name
    blob, size = path.resolve().name, path.stat().st_size
    if path.is_symlink() and _SHA256.fullmatch(blob):
        return RemoteFile(name, size, sha256=blob)
    return RemoteFile(
        name, size, blob=blob if path.is_symlink() and _SHA1.fullmatch(blob) else git_blob_sha1(path.read_bytes())
    )


def _folder(repository: str, kind: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).expanduser() / str(repo_folder_name(repo_id=repository, repo_type=kind))
