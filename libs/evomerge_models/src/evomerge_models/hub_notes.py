"""What a store notes of what the hub said: which digest a commit has, which commit a revision had when last seen."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from evomerge_common.runtime.files import write_atomically


class HubNotes:
    """`<root>/.hub/<repository>/`: a small file for each note. A GGUF file's key is its repository, a slash, its name.

    Attributes:
        root: the store's folder.

    """

    root: Path

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
