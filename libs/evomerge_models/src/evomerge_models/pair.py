"""A folder that stands for a base with an adapter applied: links to the small files, and the paths of both."""

from __future__ import annotations

import json
from pathlib import Path

from evomerge_common.errors import NotAModel
from evomerge_models.files import (
    CONFIG_FILES,
    SUPPORT_FILES,
    names_in,
    names_with_modules,
    read_json_object,
    read_json_or_nothing,
    tokenizer_of_adapter,
)

PAIR = "base_and_adapter.json"
"""Marks such a folder: paths of base and adapter, relative to the folder or absolute."""
PAIRS = "evomerge-pair-"
"""How the names of such folders begin that live as long as a process."""


def write_pair(folder: Path, base: Path, adapter: Path) -> None:
    """Makes an empty folder stand for base + adapter: links to the small files and to folders of modules, and `PAIR`.

    The adapter's tokenizer, where it brings one, goes before the base's; weights are neither copied nor linked.

    Args:
        folder: exists already.
        base: a model folder, relative to `folder` or absolute.
        adapter: an adapter folder, likewise.

    """
    of_adapter = tokenizer_of_adapter(names_in(folder / adapter))
    of_base = names_with_modules(folder / base)
    modules = {name.partition("/")[0] for name in of_base if "/" in name}
    of_base &= CONFIG_FILES if of_adapter else SUPPORT_FILES
    for names, place in ((of_base | modules, base), (of_adapter, adapter)):
        for name in names:
            (folder / name).symlink_to(place / name)
    (folder / PAIR).write_text(json.dumps({"base": str(base), "adapter": str(adapter)}) + "\n", "utf-8")


def names_of_parts(folder: Path) -> tuple[str, ...]:
    """What the folders of base and adapter are called that a pair of a store is made of; () for any other folder."""
    data = read_json_or_nothing(folder / PAIR)
    return tuple(Path(str(data[key])).name for key in ("base", "adapter") if key in data)


def read_pair(folder: Path) -> tuple[Path, Path] | None:
    """Base and adapter of a folder that stands for both; None for any other folder.

    Raises:
        NotAModel: one of them is gone.

    """
    path = folder / PAIR
    if not path.is_file():
        return None
    data = read_json_object(path)
    if not all(isinstance(data.get(key), str) for key in ("base", "adapter")):
        raise NotAModel(f"{path} does not name a base and an adapter; give them again as base+adapter")
    base, adapter = ((folder / data[key]).resolve() for key in ("base", "adapter"))
    for place in (base, adapter):
        if not place.is_dir():
            raise NotAModel(
                f"{folder} stands for a base with an adapter, but {place} is gone; put it back, or give both again as "
                "base+adapter"
            )
    return base, adapter
