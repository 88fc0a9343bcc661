"""Image files in suites: bounded before they are decoded, and carried by the suite itself as data URLs."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import TYPE_CHECKING

from evomerge_common.errors import SuiteError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 16_000_000
"""Of one image; a file of a few kilobytes can ask for gigabytes."""
MAX_RATIO = 32
"""Of one image's sides: processors that scale the shorter side to a size of theirs scale the longer one with it."""


def data_url(file: bytes) -> str:
    """The file as a data URL, after decoding it once.

    Raises:
        SuiteError: it is no image of a known format, broken, or too large.

    """
    return f"data:image/{(_opened(file).format or '').lower()};base64,{base64.b64encode(file).decode()}"


def image_of(url: str) -> Image:
    """The image, RGB, of a data URL.

    Raises:
        SuiteError: see `data_url`.

    """
    head, _, body = url.partition(";base64,")
    if not head.startswith("data:image/"):
        raise SuiteError("an image in a suite is a data URL: data:image/png;base64,…")
    try:
        file = base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise SuiteError(f"an image's data URL is no base64: {error}") from error
    return _opened(file).convert("RGB")


def _opened(file: bytes) -> Image:
    """The decoded image: its size is read, and judged, before its pixels are."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(file), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise SuiteError(f"an image of {image.width} × {image.height} pixels; at most {MAX_PIXELS} are decoded")
            if max(image.size) > MAX_RATIO * min(image.size):
                raise SuiteError(
                    f"an image of {image.width} × {image.height} pixels; one side may be {MAX_RATIO} times as long "
                    "as the other at most"
                )
            image.load()
    except Image.DecompressionBombError as error:
        raise SuiteError(f"an image that would decode to too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise SuiteError(f"no image of the formats {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises of broken files
        raise SuiteError(f"a broken image: {error}") from error
    return image
