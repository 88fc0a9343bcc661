"""Models as a survey has seen them, and which of them fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge_common.domain.licence_names import joined
from evomerge_common.domain.reference import ModelReference
from evomerge_models.describe import ModelDescription, tensor_shapes
from evomerge_models.hashes import git_blob_sha1, sha256_file
from evomerge_models.hub import bytes_there
from evomerge_models.hub.outline import Outline
from evomerge_models.store import WritableModelStore

_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Part:
    """A model or adapter by itself.

    Attributes:
        folder: a local folder or GGUF file, an entry of the store, or an outline's folder.
        outline: of a hub's model that has to be fetched; None for what is here.

    """

    reference: ModelReference
    folder: Path
    description: ModelDescription
    licence: str
    outline: Outline | None = None

    @property
    def missing_bytes(self) -> int:
        """What would be fetched."""
        return 0 if self.outline is None else self.outline.remote.bytes

    def bytes_in(self, store: WritableModelStore) -> int:
        """What an interrupted download of it left in a store."""
        if self.outline is None:
            return 0
        remote = self.outline.remote
        return bytes_there(remote.files, store.place_of_incoming(f"{remote.repository}@{remote.commit}"))


@dataclass(frozen=True)
class Seen:
    """A model that was asked for: a part, or a base with an adapter applied."""

    reference: ModelReference
    base: Part
    adapter: Part | None
    description: ModelDescription

    @property
    def parts(self) -> tuple[Part, ...]:
        """The base and the adapter, where there is one."""
        return (self.base,) if self.adapter is None else (self.base, self.adapter)

    @property
    def licence(self) -> str:
        """Of base and adapter together; see `licence_names.joined`."""
        return joined(part.licence for part in self.parts)

    @property
    def can_be_planned(self) -> bool:
        """Whether its headers are known and lie in folders: not those of pickles on a hub, nor of a GGUF file."""
        return all(part.folder.is_dir() and (part.outline is None or part.outline.has_headers) for part in self.parts)


def groups_of(models: Sequence[Seen]) -> list[list[Seen]]:
    """Groups models that can be merged tensor by tensor, as far as headers and tokenizers tell."""
    groups: list[list[Seen]] = []
    for seen in models:
        group = next((group for group in groups if not difference(group[0], seen)), None)
        if group is None:
            groups.append([seen])
        else:
            group.append(seen)
    return groups


def comparison(models: Sequence[Seen], said: str = "") -> str:
    """Says what keeps models apart, if it is not `said` already, and which fit each other; "" where nothing does."""
    groups = groups_of(models)
    if len(groups) < 2:
        return ""
    largest = max(groups, key=len)
    found = [difference(largest[0], group[0]) for group in groups if group is not largest]
    apart = "; ".join(text for text in found if text not in said)
    fitting = [" and ".join(str(one.reference) for one in group) for group in groups if len(group) > 1]
    what = f"{'; '.join(fitting)} fit each other: leave the others out" if fitting else "no two fit each other"
    return f"{apart}{'. ' if apart else ''}Of these, {what}"


def difference(one: Seen, other: Seen) -> str:
    """What keeps two models from being merged tensor by tensor; "" where nothing is known to."""
    first, second = one.description, other.description
    names = f"{one.reference}", f"{other.reference}"
    shapes, found = tensor_shapes(one.base.folder), tensor_shapes(other.base.folder)
    apart = [name for name in shapes.keys() & found.keys() if shapes[name] != found[name]]
    if apart:
        name = min(apart)
        return f"{name} is {list(shapes[name])} in {names[0]} and {list(found[name])} in {names[1]}"
    if first.architecture != second.architecture:
        return f"{names[0]} is a {first.architecture} and {names[1]} a {second.architecture}"
    if first.num_layers != second.num_layers:
        return f"{names[0]} has {first.num_layers} layers and {names[1]} {second.num_layers}"
    stamps, others = _tokenizer_stamps(one.base), _tokenizer_stamps(other.base)
    shared = stamps.keys() & others.keys()
    if shared and not any(stamps[kind] == others[kind] for kind in shared):
        return f"{names[0]} and {names[1]} have different tokenizers"
    return ""


def _tokenizer_stamps(part: Part) -> dict[str, str]:
    """Identifies the tokenizer's file: kind of hash → hash. Of one that an outline lacks the hub tells one kind."""
    if part.folder.is_file():
        return {}
    name = next((name for name in _TOKENIZERS if (part.folder / name).is_file()), "")
    if part.outline is not None and name in part.outline.holes:
        file = next(file for file in part.outline.remote.files if file.name == name)
        return {"sha256": file.sha256} if file.sha256 else {"blob": file.blob}
    if not name:
        return {"sha256": "", "blob": ""}
    path = part.folder / name
    return {"sha256": sha256_file(path), "blob": git_blob_sha1(path.read_bytes())}
