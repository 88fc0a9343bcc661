"""What a person writes for a model, looked up once where the person's disk is.

Specs, recipes and jobs carry the result in the canonical text of `ModelReference`, which means the same on every
machine; who reads them looks at no disk to understand them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evomerge_common.domain.reference import ModelReference, on_hub
from evomerge_common.errors import ModelError, ModelNotFound
from evomerge_models.adapter import read_adapter
from evomerge_models.files import ADAPTER_CONFIG


def resolve_reference(text: str, *places: Path) -> ModelReference:
    """Reads what a person typed: a hub id, a folder or file (also with a plus sign in its name), base+adapter.

    What exists on the disk under the whole text is that one model. Else the text is cut at the plus sign that leaves
    an existing base before it and an existing adapter behind, or at least a base; else as the canonical text says.

    Args:
        text: as typed, or canonical.
        places: folders that a relative name may start from; the current one if none are given.

    Raises:
        RecipeError: the text names no model.

    """
    return _on_disk(text.strip(), places) or ModelReference.parse(text)


def look_up(reference: ModelReference) -> ModelReference:
    """Resolves a reference that was read from what a person wrote, as `resolve_reference` resolves its text."""
    if not reference.adapter:
        return reference
    revision = f"@{reference.revision}" if reference.revision else ""
    found = _on_disk(f"{reference.name}{revision}+{reference.adapter}", ())
    return replace(found, digest=reference.digest) if found else reference


def _on_disk(typed: str, places: tuple[Path, ...]) -> ModelReference | None:
    """What a text means by what is on the disk; None where that decides nothing."""

    def exists(name: str) -> bool:
        return any((place / Path(name).expanduser()).exists() for place in places or (Path(),))

    if typed and exists(typed):
        return _local(typed)
    cuts = [(typed[:at].strip(), typed[at + 1 :].strip()) for at, sign in enumerate(typed) if sign == "+"]
    found = [(base, adapter) for base, adapter in cuts if base and adapter and exists(base)]
    if not found:
        return None
    base, adapter = next((pair for pair in found if exists(pair[1])), found[0])
    return replace(_local(base), adapter=adapter)


def _local(name: str) -> ModelReference:
    """An existing folder or file by a name whose text cannot be taken for a revision."""
    return ModelReference(f"./{name}" if "@" in name and not name.startswith((".", "/", "~")) else name)


def plus_hint(reference: ModelReference) -> str:
    r"""What to write instead of ./my+model, where that is a folder here but was read as base and adapter; else ""."""
    literal = f"{reference.name}+{reference.adapter}"
    if not reference.adapter or not Path(literal).expanduser().exists():
        return ""
    return f"; the folder {literal}, whose name has a plus sign, is written {ModelReference(literal)}"


def local_path(name: str, *places: Path) -> Path | None:
    """The path that a model's name means, if it means one: from the first of `places` where it exists.

    None means a hub id, or a GGUF file of one (org/name/file.gguf). What looks like a path is one, whether it exists or
    not; a name that exists as a folder is that folder, and is never asked for on the hub.
    """
    text = name.strip()
    path = Path(text).expanduser()
    if path.is_absolute():
        return path
    starts = (*places, Path())
    for start in starts:
        if (start / path).exists():
            return start / path
    looks_like_a_path = text.startswith((".", "~")) or text.endswith("/") or text.count("/") > 1 or "\\" in text
    return starts[0] / path if looks_like_a_path and not on_hub(text) else None


def absolute(reference: ModelReference, *places: Path) -> ModelReference:
    """The same with every local name as an absolute path: what may travel to a service that stands elsewhere."""

    def one(name: str) -> str:
        path = local_path(name, *places)
        return name if path is None else str(path.resolve())

    name = reference.name if reference.revision else one(reference.name)
    return replace(reference, name=name, adapter=reference.adapter and one(reference.adapter))


def base_beside(adapter: Path, *places: Path, needed: bool = True) -> ModelReference:
    """The base that an adapter says it was trained on: a folder, also relative to it or to `places`; else a hub id.

    Args:
        adapter: an adapter's folder.
        places: further folders that a relative path may start from.
        needed: whether nothing else is known of the base, so that a path that is not here is an error.

    Raises:
        ModelError: it does not say, or is unsound.
        ModelNotFound: it is a path, and no folder is there.

    """
    named = read_adapter(adapter).base
    if not named:
        raise ModelError(
            f"{adapter} is a LoRA adapter that does not tell its base: write base+adapter, or set the base"
        )
    for place in () if named.revision else (Path(), adapter, *places):
        if (folder := place / Path(named.name).expanduser()).is_dir():
            return _local(str(folder))
    if needed and local_path(named.name) is not None:
        raise ModelNotFound(f"no folder {named.name}{base_hint(adapter, named)}")
    return named


def base_hint(adapter: Path | str, named: ModelReference) -> str:
    """What to do where the base that an adapter names is not found, to be put behind that error."""
    return (
        f"; {adapter} is a LoRA adapter of {str(named)!r} (base_model_name_or_path of its {ADAPTER_CONFIG}): write "
        f"BASE+{adapter} with the folder or hub id of that base, or set the base"
    )
