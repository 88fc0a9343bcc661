"""Which URIs are served, and where they lead: in one place, for the settings and for the stores' adapters alone."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from evomerge_common.errors import NotFound, UnservedScheme

SERVED = ("file",)
"""Schemes that a store of this version reads and writes."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # one slash: a Path has taken the other away


def local_path(place: str) -> Path:
    """Returns the path that a file:// URI or a plain path names, whether there is anything or not.

    Raises:
        UnservedScheme: a URI of another scheme.
        NotFound: nothing, or a path of another host.

    """
    if not place:
        raise NotFound("an empty URI leads nowhere")
    found = _SCHEME.match(place)
    if found is None:
        return Path(place)
    if found[1].lower() not in SERVED:
        raise UnservedScheme(
            f"{place}: no store serves {found[1]}:// URIs; served: {', '.join(f'{one}://' for one in SERVED)} URIs "
            "and plain folders"
        )
    parts = urlsplit(place)
    if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment:
        raise NotFound(f"{place}: out of this machine's reach, a path of another host")
    return Path(unquote(parts.path))
