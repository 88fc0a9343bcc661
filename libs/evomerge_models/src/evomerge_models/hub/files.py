"""What a hub says of a repository, as values."""

from __future__ import annotations

import re
from dataclasses import dataclass

from evomerge_models.files import Selection

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
ACCESS = (
    "check the name and revision; for a gated or private model accept its terms on the hub and set HF_TOKEN; "
    "for another hub set HF_ENDPOINT; or give a local folder"
)


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub describes it. `sha256` is set for LFS files, `blob` (git's SHA-1) for the others."""

    name: str
    size: int
    sha256: str = ""
    blob: str = ""


@dataclass(frozen=True)
class RemoteModel:
    """A repository at one commit, with the files that make its model."""

    repository: str
    commit: str
    selection: Selection
    files: tuple[RemoteFile, ...]

    @property
    def bytes(self) -> int:
        """Returns the size of the selected files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Progress:
    """How far a download is: bytes that are there, bytes in all, and why it waits, when it does."""

    done: int
    total: int
    note: str = ""
