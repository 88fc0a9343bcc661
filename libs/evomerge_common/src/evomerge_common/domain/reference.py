"""How a model is called: a hub id, a folder, a file, an adapter on its base; and which content is meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePath

from evomerge_common.errors import RecipeError

_PLUS = re.compile(r"(\\*)\+")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_HUB_FILE = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)/(?P<file>(?:[A-Za-z0-9_][^/\\\0]*/)*[A-Za-z0-9_][^/\\\0]*\.gguf)"
)


@dataclass(frozen=True, order=True)
class ModelReference:
    r"""A model as recipes and specs name it; the same on every machine, since no disk is looked at.

    Its text is `name`, `name@revision` or either with `+adapter`: the first plus sign parts base and adapter. One that
    belongs to a name is written `\+` (and backslashes right before a plus sign are doubled), so that the folder
    `./my+model` is `./my\+model`. What a person typed is looked up on the disk first, once, where the disk is
    (`evomerge_models.reference`).

    Attributes:
        name: a hub id (org/name), perhaps with a GGUF file of it (org/name/file.gguf), or the path of a folder or GGUF
            file, as it is on the disk.
        revision: of a hub id: branch, tag or commit; "" is the default branch.
        adapter: the hub id (perhaps @revision) or folder of a LoRA adapter that is applied to it; "" without.
        digest: of the content, once the downloader has told it; "" before.

    """

    name: str
    revision: str = ""
    adapter: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Reads "org/name", "org/name@revision", "./folder", "base+adapter".

        Raises:
            RecipeError: the text names no model, or nothing after its plus sign.

        """
        whole, adapter = _parted(text.strip())
        found = cls.of_name(whole)
        if not found.name or "\0" in text:
            raise RecipeError(f"{text!r} names no model; give a hub id (org/name) or a folder")
        if adapter == "":
            raise RecipeError(f"{text!r} names no adapter after its plus sign; one in a name is written \\+")
        return replace(found, adapter=adapter or "")

    @classmethod
    def of_name(cls, text: str) -> ModelReference:
        """Reads one model, perhaps "@revision", in whose name a plus sign means nothing; a path has no revision."""
        if text.startswith((".", "/", "~")):
            return cls(text)
        name, _, revision = text.partition("@")
        return cls(name, revision)

    @property
    def whole(self) -> ModelReference:
        """Returns the model without its adapter."""
        return ModelReference(self.name, self.revision, digest="" if self.adapter else self.digest)

    @property
    def adapter_alone(self) -> ModelReference | None:
        """Returns the adapter without its base; None where there is none."""
        return ModelReference.of_name(self.adapter) if self.adapter else None

    def __str__(self) -> str:
        whole = _escaped(self.name + (f"@{self.revision}" if self.revision else ""))
        if not self.adapter:
            return whole
        doubled = whole[len(whole.rstrip("\\")) :]
        return f"{whole}{doubled}+{_escaped(self.adapter)}"

    @property
    def public(self) -> ModelReference:
        """Returns the reference as others may read it: hub ids as they are, of a folder its own name."""
        return replace(self, name=own_name(self.name), adapter=own_name(self.adapter))

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """Returns the hub ids among model and adapter, without revisions and files."""
        names = (self.name, self.adapter.partition("@")[0])
        return tuple(found[0] for name in names if (found := on_hub(name)))

    @property
    def key(self) -> str:
        """Identifies it where models are looked up (`plan_merge(models=…)`): the digest when known, else the text."""
        return self.digest or str(self)


def on_hub(name: str) -> tuple[str, str] | None:
    """Returns the repository and the GGUF file ("": the model itself) that a name means on a hub; None: a path."""
    if HUB_ID.fullmatch(name):
        return name, ""
    found = _HUB_FILE.fullmatch(name)
    return (found["repository"], found["file"]) if found else None


def is_repository(name: str) -> bool:
    """Tells whether a text is a name that a repository of the hub can have: owner/name."""
    return "/" in name and HUB_ID.fullmatch(name) is not None and "--" not in name and ".." not in name


def own_name(name: str) -> str:
    """Returns a hub id as it is, of a path the last part: the rest means nothing elsewhere, and is the author's own."""
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    return (PurePath(name).name or name) if is_path and not on_hub(name) else name


def without_folders(text: str, names: Iterable[str]) -> str:
    """Returns a text that calls each of these models by its own name (`own_name`), also where it is written escaped."""
    plain = {name.rstrip("/") for name in names}
    for name in sorted(plain | {_escaped(one) for one in plain}, key=len, reverse=True):
        own = own_name(name)
        if own != name:
            text = re.sub(rf"(?<![\w./~-]){re.escape(name)}(?![\w-])", own.replace("\\", r"\\"), text)
    return text


def _parted(text: str) -> tuple[str, str | None]:
    """Base and adapter of a reference's text, without escapes; None for the adapter where no plus sign parts them."""
    whole, adapter, at = "", None, 0
    for match in _PLUS.finditer(text):
        slashes = len(match[1])
        piece = text[at : match.start()] + slashes // 2 * "\\"
        at = match.end()
        if adapter is None and slashes % 2 == 0:
            whole, adapter = whole + piece, ""
        elif adapter is None:
            whole += piece + "+"
        else:
            adapter += piece + "+"
    return (whole + text[at:], None) if adapter is None else (whole.strip(), (adapter + text[at:]).strip())


def _escaped(name: str) -> str:
    return _PLUS.sub(r"\1\1\\+", name)
