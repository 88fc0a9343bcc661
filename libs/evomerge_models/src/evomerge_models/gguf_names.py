"""Which GGUF file of a folder or repository is meant."""

from __future__ import annotations

import re
from collections.abc import Collection

from evomerge_common.errors import ModelError, ModelNotFound

GGUF = ".gguf"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def check_gguf_file(names: Collection[str], where: str, file: str) -> None:
    """Refuses a file that is not there, or no whole one.

    Raises:
        ModelNotFound: `names` do not hold it.
        ModelError: it is a part of a file.

    """
    if file not in names:
        others = which_gguf(names) if any(name.endswith(GGUF) for name in names) else "it holds no GGUF file"
        raise ModelNotFound(f"{where} has no file {file}; {others}")
    if _PART.search(file):
        raise ModelError(f"{where}: {file} is a part of a GGUF file, which is not read; give one that is whole")


def which_gguf(names: Collection[str]) -> str:
    """Says how to name one of the GGUF files among `names`, of which there is one."""
    found = sorted(name for name in names if name.endswith(GGUF))
    return (
        f"name one of them behind a slash, such as org/name/{found[0]} or FOLDER/{found[0]}: "
        f"{', '.join(found[:20])}{' …' if len(found) > 20 else ''}"
    )
