"""Files that belong to a model beside weights, config and tokenizer: processors, and sentence-transformers' modules."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge_models.files import COMPANION_FILES, MAX_SMALL_BYTES, MODULES

_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_OF_MODULES = (".json", ".safetensors", ".txt")
_EMPTY, _WEIGHTY = "Normalize", "Dense"
"""Classes of modules: of the first the folder is empty, and so not on a hub; the second is nothing without weights."""


@dataclass(frozen=True)
class Companions:
    """What is copied from a folder.

    Attributes:
        folder: where they are.
        names: of files, those in a module's folder too, such as 1_Pooling/config.json; that of a module that keeps
            nothing ends with a slash: 2_Normalize/.

    """

    folder: Path
    names: tuple[str, ...] = ()

    def write(self, out: Path) -> None:
        """Copies them."""
        for name in self.names:
            if name.endswith("/"):
                (out / name).mkdir(exist_ok=True)
                continue
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(self.folder / name, out / name)


def plan_companions(folder: Path, label: str, others: Mapping[str, Path]) -> tuple[Companions, list[str]]:
    """Takes those of the model that gives the config; the notes tell what others have and the result has not.

    Args:
        folder, label: of the model that gives the config.
        others: folders of the other sources by label.

    """
    own, notes = _names(folder)
    for name in sorted(COMPANION_FILES):
        theirs = [other for other, path in others.items() if (path / name).is_file()]
        differ = [other for other in theirs if name in own and not _alike(folder / name, others[other] / name)]
        if name not in own and theirs and not (folder / name).is_file():
            notes.append(f"{name} of {', '.join(theirs)} is left out: {label}, which gives the config, has none")
        elif differ:
            notes.append(f"{name} is {label}'s; that of {', '.join(differ)} differs")
    weighty = sorted({name.split("/")[0] for name in own if name.endswith(".safetensors")})
    if weighty:
        notes.append(f"{', '.join(weighty)} of {label} is kept as it is, not merged")
    return Companions(folder, tuple(own)), notes


def _names(folder: Path) -> tuple[list[str], list[str]]:
    found = [name for name in sorted(COMPANION_FILES) if _is_small(folder / name)]
    if MODULES not in found:
        return found, []
    inside: list[str] = []
    for path, kind in _modules(folder / MODULES):
        there = (folder / path).glob("*") if _FOLDER.fullmatch(path) else ()
        files = sorted(item.name for item in there if item.suffix in _OF_MODULES and _is_small(item))
        lack = ""
        if not _FOLDER.fullmatch(path) or not (files or kind == _EMPTY):
            lack = f"it names {path!r}, which is no folder with files beside it"
        elif kind == _WEIGHTY and not any(name.endswith(".safetensors") for name in files):
            lack = f"{path} has no weights in safetensors, and pickles are not read"
        if lack:
            found.remove(MODULES)
            return found, [f"{MODULES} is left out: {lack}"]
        inside += [f"{path}/{name}" for name in files] or [f"{path}/"]
    return found + inside, []


def _modules(path: Path) -> Iterable[tuple[str, str]]:
    """Folder and class of what a modules.json names, but of the model itself."""
    try:
        modules = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return
    for module in modules if isinstance(modules, list) else ():
        where = module.get("path") if isinstance(module, Mapping) else None
        if isinstance(where, str) and where:
            yield where, str(module.get("type", "")).rpartition(".")[2]


def _is_small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= MAX_SMALL_BYTES


def _alike(one: Path, other: Path) -> bool:
    """Whether two JSON files say the same."""
    try:
        return bool(json.loads(one.read_text("utf-8")) == json.loads(other.read_text("utf-8")))
    except (OSError, ValueError):
        return False
