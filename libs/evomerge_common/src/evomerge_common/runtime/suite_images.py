"""Images that items name: files beside their data file, bounded; the suite carries them itself, wherever it travels.

So a suite's digest, an item's digest and the split follow from the image's bytes, and a server needs no file of ours.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge_common.domain.kinds import IMAGE, KINDS, Kind
from evomerge_common.errors import Path as Place
from evomerge_common.errors import SuiteError

MAX_IMAGE_BYTES = 8 * 1024 * 1024
MAX_SUITE_BYTES = 32 * 1024 * 1024
"""Of all images of a suite: a request to a server holds 64 MiB, and base64 makes four bytes of three."""

Embed = Callable[[bytes], str]
"""Makes a data URL of an image file, after decoding it once; raises SuiteError."""


class ImageReader:
    """Reads the images of one suite.

    Args:
        embed: judges a file and makes the data URL; None: only suites that carry their images already are read.

    """

    def __init__(self, embed: Embed | None) -> None:
        self._embed = embed
        self._bytes = 0

    def with_images(self, items: Any, kind: Kind, folder: Path, path: Place) -> Any:
        """Puts each item's image in place of the file name that it gives.

        Args:
            items: of a task of this kind, as they were read.
            folder: of the data file, in which the images lie.
            path: of `items` in the document, for errors.

        Raises:
            SuiteError: with the item's place: no such file, outside of the folder, too large, broken, or an image for
                a kind that shows none.

        """
        if not isinstance(items, list):
            return items  # for Suite.from_dict to refuse
        return [
            {**item, IMAGE: self._read(item[IMAGE], kind, folder, (*path, number, IMAGE))}
            if isinstance(item, Mapping) and IMAGE in item and (IMAGE in kind.optional or kind.name in KINDS)
            else item
            for number, item in enumerate(items)
        ]

    def _read(self, value: Any, kind: Kind, folder: Path, place: Place) -> str:
        if IMAGE not in kind.optional:
            able = ", ".join(name for name, one in KINDS.items() if IMAGE in one.optional)
            raise SuiteError(f"a task of kind {kind.name} shows no images; these do: {able}", place)
        if not isinstance(value, str) or not value:
            raise SuiteError(f"must be the name of an image file, not {str(value)[:80]!r}", place)
        if value.startswith("data:") and self._embed is None:
            return value
        if self._embed is None:
            raise SuiteError("is a file, which only the command reads", place)
        file = _decoded(value, place) if value.startswith("data:") else _file(value, folder, place)
        self._bytes += len(file)
        if self._bytes > MAX_SUITE_BYTES:
            raise SuiteError(
                f"the suite's images are more than {MAX_SUITE_BYTES >> 20} MiB by here, and the suite carries them to "
                "wherever models are scored; make them smaller or fewer",
                place,
            )
        try:
            return self._embed(file)
        except SuiteError as error:
            raise SuiteError(f"{value[:200]}: {error.problem}", place) from error


def _file(name: str, folder: Path, place: Place) -> bytes:
    """The file's bytes, which lies in the folder or below it."""
    try:
        home = folder.resolve()
        path = (home / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(home):
            raise SuiteError(
                f"{name[:200]} lies outside of {folder}, the data file's folder; only images in it are read", place
            )
        if not path.is_file():
            raise SuiteError(f"there is no image file {name[:200]} in {folder}", place)
        with path.open("rb") as stream:
            file = stream.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise SuiteError(f"{name[:200]} cannot be read: {error.strerror or error}", place) from error
    except (ValueError, RuntimeError) as error:  # a NUL in the name; links in a circle
        raise SuiteError(f"{name[:200]!r} names no file: {error}", place) from error
    if len(file) > MAX_IMAGE_BYTES:
        raise SuiteError(f"{name[:200]} has more than {MAX_IMAGE_BYTES >> 20} MiB; make it smaller", place)
    return file


def _decoded(url: str, place: Place) -> bytes:
    head, _, body = url.partition(";base64,")
    try:
        if head.startswith("data:image/") and len(body) <= 2 * MAX_IMAGE_BYTES:
            return base64.b64decode(body, validate=True)
    except binascii.Error:
        pass
    raise SuiteError(
        f"is no image of a data URL (data:image/png;base64,…) of at most {MAX_IMAGE_BYTES >> 20} MiB", place
    )
