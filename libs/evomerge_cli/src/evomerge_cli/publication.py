"""What of a run, or of a model's folder, goes to the hub: which files, with the author's folders left out of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge_cli.run_folder import RunFolder
from evomerge_common.domain.licence_names import licence_of_metadata
from evomerge_common.domain.licences import combine
from evomerge_common.domain.messages import ArtifactExported, RunFinished
from evomerge_common.domain.recipe import Recipe, public_names
from evomerge_common.domain.reference import ModelReference, on_hub, own_name
from evomerge_common.errors import InvalidInput, ModelNotFound, NotFound, RecipeError
from evomerge_models.card import CARD, Metadata, completed, metadata_of_source, of_folder, parse_metadata, parts_of
from evomerge_models.describe import check_model_folder
from evomerge_models.hub.push_plan import LocalFile

RECIPE, MODELFILE = "recipe.json", "Modelfile"
_NAMING = {
    "config.json": "_name_or_path",
    "adapter_config.json": "base_model_name_or_path",
    "tokenizer_config.json": "name_or_path",
}
"""Files in which a library writes where a model lay, with the key."""
Cards = Callable[[str, str], Mapping[str, Any]]
"""Returns the metadata of a hub model's card, by id and revision; empty where there is none."""


@dataclass(frozen=True)
class Publication:
    """Files as they are to stand in a repository: of the model, and its GGUF files, which may get one of their own.

    Attributes:
        notes: what was changed for it, and what is not known.

    """

    model: tuple[LocalFile, ...]
    gguf: tuple[LocalFile, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def card(self) -> dict[str, Any]:
        """Returns the metadata of the model's card."""
        return next((parse_metadata(_text(file))[0] for file in self.model if file.name == CARD), {})

    def together(self) -> tuple[LocalFile, ...]:
        """Returns all files as those of one repository; of two of one name the model's."""
        return tuple({file.name: file for file in (*self.gguf, *self.model)}.values())

    def gguf_alone(self, repository: str) -> tuple[LocalFile, ...]:
        """Returns the GGUF files as a repository of their own, with a card that says of which model (`repository`)."""
        own = {key: str(value) for key, value in self.card.items()}
        head = Metadata(
            base_models=(repository,) if repository else (),
            relation="quantized",
            library="gguf",
            pipeline_tag=own.get("pipeline_tag", ""),
            tags=("gguf", "evomerge"),
            licence=own.get("license", ""),
            licence_name=own.get("license_name", ""),
            licence_link=own.get("license_link", ""),
        )
        names = "".join(f"* `{file.name}`\n" for file in self.gguf if file.name.endswith(".gguf"))
        text = f"{head.front_matter()}\n# GGUF files\n\nFor llama.cpp and Ollama:\n\n{names}"
        card = [] if any(file.name == CARD for file in self.gguf) else [LocalFile(CARD, text.encode())]
        return (*self.gguf, *card)


def publication_of(path: Path, cards: Cards) -> Publication:
    """Collects the files of a run's output folder, a model's or adapter's folder, or a GGUF file.

    Raises:
        InvalidInput: a run that is not finished, or has no champion; a folder that holds neither run nor model.

    """
    if path.is_file() and path.suffix == ".gguf":
        beside = path.with_name(MODELFILE)
        more = [LocalFile(MODELFILE, beside)] if beside.is_file() else []
        return Publication((), (LocalFile(path.name, path), *more))
    if not path.is_dir():
        raise ModelNotFound(f"there is no folder {path}; give a run's output folder, a model's folder or a GGUF file")
    state = RunFolder(path).state()
    if state:
        if state.get("status") != "finished":
            raise InvalidInput(
                f"the run in {path} is not finished ({state.get('status')}): let `evomerge run` go on with it, or give "
                "a model's folder"
            )
        if not (path / "model").is_dir():
            raise InvalidInput(f"the run in {path} has no champion there (no {path / 'model'}), so nothing to push")
    if (path / "model").is_dir() and not (path / "config.json").exists():
        return _collected(path / "model", path / "gguf", cards)
    files = _files(path)
    if any(name.endswith(".gguf") for name in files) and "config.json" not in files:
        return Publication((), _local(files))
    return _collected(path, None, cards)


def publication_at_server(run: str, server: str | None, cards: Cards) -> Publication:
    """Collects the champion of a finished run at a server, where its store can be reached from here.

    Raises:
        InvalidInput, NotFound: no such run, it is not finished, or its champion is out of reach.

    """
    from evomerge_cli.commands.report import events_of, suite_of
    from evomerge_common.runtime.ports_factory import open_artifact
    from evomerge_report.card import model_card
    from evomerge_report.history import history_of
    from evomerge_report.result import result_of

    events = events_of(run, server)
    payloads = [recorded.event.payload for recorded in events]
    if not any(isinstance(payload, RunFinished) for payload in payloads):
        raise InvalidInput(f"run {run} is not finished: wait for it (`evomerge runs watch {run}`)")
    exported = {one.format: one.uri for one in payloads if isinstance(one, ArtifactExported)}
    if "hf" not in exported:
        raise NotFound(f"run {run} has no champion to push")
    folder = open_artifact(exported["hf"])
    found = _collected(folder, open_artifact(exported["gguf"]) if "gguf" in exported else None, cards)
    own = LocalFile(CARD, model_card(result_of(history_of(events), suite_of(events)), folder).encode())
    card, _ = _card(folder, _recipe(folder), [own], cards)
    return replace(found, model=_with_card(found.model, card))


def _collected(folder: Path, gguf: Path | None, cards: Cards) -> Publication:
    check_model_folder(folder)
    files = _files(folder)
    recipe = _recipe(folder)
    local = _local_names(recipe, folder)
    notes, made = [], []
    for file in _local(files):
        text = _public_text(file, local)
        if text is not None:
            file = replace(file, content=text.encode())  # noqa: PLW2901 - the same file, as others may read it
            notes.append(f"{file.name}: folders of this machine are called by their last part")
        made.append(file)
    card, unknown = _card(folder, recipe, made, cards)
    return Publication(
        _with_card(tuple(made), card),
        _local(_files(gguf)) if gguf is not None and gguf.is_dir() else (),
        (*notes, *unknown),
    )


def _files(folder: Path) -> dict[str, Path]:
    """Name in the repository → path of each file; what is hidden stays here."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if not any(part.startswith(".") for part in name.split("/"))}


def _local(files: Mapping[str, Path]) -> tuple[LocalFile, ...]:
    return tuple(LocalFile(name, path) for name, path in files.items())


def _text(file: LocalFile) -> str:
    data = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    return data.decode("utf-8", errors="replace")


def _recipe(folder: Path) -> Recipe | None:
    try:
        return Recipe.from_json((folder / RECIPE).read_text("utf-8"))
    except (OSError, RecipeError):
        return None


def _local_names(recipe: Recipe | None, folder: Path) -> list[str]:
    """The folders of this machine that the model's files may name, the longest first."""
    names = {part for source in (recipe.sources() if recipe else ()) for part in (source.name, source.adapter)}
    names |= {str(folder), str(folder.absolute()), str(folder.resolve())}
    return sorted((name for name in names if own_name(name) != name), key=len, reverse=True)


def _public_text(file: LocalFile, local: list[str]) -> str | None:
    """A small text file as others may read it; None where it is that already."""
    if file.name not in {RECIPE, CARD, "mergekit_config.yml", "mergekit_moe_config.yml", *_NAMING}:
        return None
    before = _text(file)
    text = before
    if file.name == RECIPE or file.name in _NAMING:
        try:
            data = json.loads(before)
        except ValueError:
            return None
        key = _NAMING.get(file.name)
        if key is None:
            changed = public_names(data)
        else:
            changed = {**data, key: own_name(data[key])} if isinstance(data.get(key), str) else data
        if changed != data:
            text = json.dumps(changed, indent=2, sort_keys=file.name == RECIPE, ensure_ascii=False) + "\n"
    for name in local:
        text = text.replace(name, own_name(name))
    return None if text == before else text


def _card(folder: Path, recipe: Recipe | None, files: list[LocalFile], cards: Cards) -> tuple[str, list[str]]:
    """The card, with the licence and languages that only the sources' cards on the hub tell; and what is not known."""
    card = next((_text(file) for file in files if file.name == CARD), "")
    if not card:
        library, task = of_folder(folder)
        head = Metadata(library=library, pipeline_tag=task, tags=("evomerge",))
        card = f"{head.front_matter()}\n# {folder.resolve().name}\n"
    named = parse_metadata(card)[0].get("base_model") or []
    ids = [str(one) for one in (named if isinstance(named, list) else [named])]
    sources = recipe.sources() if recipe else [ModelReference(one) for one in ids]
    known = {str(part.public): _metadata_of(part, cards) for part in parts_of(sources)}
    made = completed(card, Metadata().drawn_from(known))
    plan = combine({name: licence_of_metadata(metadata) for name, metadata in known.items()})
    notes = [f"licence conflict: {text}" for text in plan.conflicts]
    notes += [f"licence: {text}" for text in (*plan.obligations, *plan.notes)]
    if not parse_metadata(made)[0].get("license"):
        notes.append("the card names no licence, so nobody knows what they may do with the model")
    return made, notes


def _metadata_of(source: ModelReference, cards: Cards) -> Mapping[str, Any]:
    place = on_hub(source.name)
    return cards(place[0], source.revision) if place else metadata_of_source(Path(source.name).expanduser())


def _with_card(files: tuple[LocalFile, ...], card: str) -> tuple[LocalFile, ...]:
    """Files whose card has this text; a card that it is already stays the file it was."""
    for file in files:
        if file.name == CARD and _text(file) == card:
            return files
    return (*(file for file in files if file.name != CARD), LocalFile(CARD, card.encode()))
