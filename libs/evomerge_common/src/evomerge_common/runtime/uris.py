"""What a URI means on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from evomerge_common.domain.messages import Model


def path_of_uri(uri: str) -> Path | None:
    """The path that a file:// URI or a plain path names; None for any other URI, whether it exists or not."""
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return Path(unquote(parts.path))
    return None if parts.scheme or not uri else Path(uri)


def model_folders(models: Iterable[Model]) -> dict[str, Path]:
    """ModelReference.key → folder of each model that is on this machine; the others are left out."""
    found = {}
    for model in models:
        folder = path_of_uri(model.uri)
        if folder is not None and folder.is_dir():
            found[model.digest or model.reference] = folder
    return found
