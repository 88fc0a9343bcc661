"""What a person writes for a model, looked up where the person's disk is."""

from __future__ import annotations

from pathlib import Path

from evomerge_common.errors import ModelError
from evomerge_models.adapter import read_adapter


def split_reference(reference: str, *places: Path) -> tuple[str, str]:
    """(base, adapter) of "base+adapter"; (reference, "") of anything else, a folder with a plus sign in its name too.

    `places` are the folders that a relative name may start from, the current one if none are given.
    """
    text = reference.strip()

    def exists(name: str) -> bool:
        return any((place / Path(name).expanduser()).exists() for place in places or (Path(),))

    if not exists(text):
        cuts = [i for i, sign in enumerate(text) if sign == "+"]
        place = next((cut for cut in cuts if exists(text[:cut].strip())), cuts[0] if cuts else -1)
        if place > 0:
            return text[:place].strip(), text[place + 1 :].strip()
    return text, ""


def base_beside(adapter: Path, *places: Path) -> str:
    """The base that an adapter says it was trained on: a folder, also relative to it or to `places`; else a hub id.

    Raises:
        ModelError: it does not say, or is unsound.

    """
    told = read_adapter(adapter).base
    if not told:
        raise ModelError(
            f"{adapter} is a LoRA adapter that does not tell its base: write base+adapter, or set the base"
        )
    for place in (Path(), adapter, *places):
        if (folder := place / Path(told).expanduser()).is_dir():
            return str(folder)
    return told
