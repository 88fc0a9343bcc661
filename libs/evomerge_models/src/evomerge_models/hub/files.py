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
    """A repository at one commit, with the files that make its model.

    Attributes:
        licence: what its card says, as `evomerge_common.domain.licence_names` writes it; "" where it says nothing.
        licence_file: name of a file with its text; "" where there is none.
        kind: "model", or "dataset" for files of one.

    """

    repository: str
    commit: str
    selection: Selection
    files: tuple[RemoteFile, ...]
    licence: str = ""
    licence_file: str = ""
    kind: str = "model"

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
