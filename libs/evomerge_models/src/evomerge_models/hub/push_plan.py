"""What a push will do: our files beside those that a repository holds, as values."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from evomerge_common.domain.reference import is_repository
from evomerge_common.errors import InvalidInput
from evomerge_models.hub.files import RemoteFile


@dataclass(frozen=True)
class LocalFile:
    """A file as it is to stand in a repository: a path of this machine, or the bytes themselves."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Returns its bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def is_the_same(self, other: RemoteFile) -> bool:
        """Compares it with a file of the hub: SHA-256 for a large one, git's SHA-1 for the others."""
        if other.size != self.size:
            return False
        git = hashlib.sha1(b"blob %d\0" % other.size, usedforsecurity=False)
        with BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb") as file:
            found = hashlib.file_digest(file, "sha256" if other.sha256 else lambda: git).hexdigest()
        return found == (other.sha256 or other.blob)


@dataclass(frozen=True)
class PushPlan:
    """What a push will do; made by looking alone.

    Attributes:
        branch: "" for the default one.
        commit: of the branch now; "": the repository, or the branch, is not there or has none.
        private: whether the repository that is there is; None: there is none, or none that the token may see.
        new, changed, same: our files by what is there under their names.
        others: names of files that are there and not among ours.

    """

    repository: str
    branch: str
    commit: str
    private: bool | None
    new: tuple[LocalFile, ...]
    changed: tuple[LocalFile, ...] = ()
    same: tuple[LocalFile, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Returns the size of what is not there yet."""
        return sum(file.size for file in (*self.new, *self.changed))

    def check(self, *, public: bool, overwrite: bool) -> None:
        """Refuses to mix our files with others', and to publish by accident.

        Raises:
            InvalidInput: the repository holds something else, or is public and nobody said so.

        """
        if self.private is False and not public:
            raise InvalidInput(
                f"{self.repository} is there and public: say --public to push to it, or give another name"
            )
        there = sorted([*(file.name for file in self.changed), *self.others])
        if there and not overwrite:
            shown = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
            raise InvalidInput(
                f"{self.repository} holds other contents ({shown}): give another name, or say --overwrite, which makes "
                "it hold these files and no others, in a commit after the ones there"
            )


def check_name(repository: str) -> None:
    """Refuses what is no owner/name of a repository.

    Raises:
        InvalidInput: it is not.

    """
    if not is_repository(repository):
        raise InvalidInput(f"{repository!r} is no name of a repository: give org/name")
