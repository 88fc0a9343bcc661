"""The digest of what a model's folder holds: its identity in the store and in recipes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from evomerge_models.describe import describe_model
from evomerge_models.hashes import HashCache, folder_digest
from evomerge_models.pair import read_pair


def content_digest(folder: Path, hashes: HashCache) -> str:
    """Computes the digest (hex) that a model, an adapter or a pair has as an entry of a store, or would have.

    Raises:
        ModelError: it is none of these.

    """
    if pair := read_pair(folder):
        return pair_digest(*(content_digest(part, hashes) for part in pair))
    return folder_digest(hashes.hashes(folder, describe_model(folder).files))


def pair_digest(base: str, adapter: str) -> str:
    """Computes the digest (hex) of a base with an adapter applied from those of both."""
    return hashlib.sha256(f"{base}+{adapter}".encode()).hexdigest()
