"""What of a run, or of a model's folder, goes to the hub: which files, with the author's folders left out of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from evomerge_cli.run_folder import RunFolder
from evomerge_common.domain.licence_names import licence_of_metadata
from evomerge_common.domain.licences import by_source, combine
from evomerge_common.domain.messages import ArtifactExported, RunFinished
from evomerge_common.domain.recipe import Recipe, public_names
from evomerge_common.domain.reference import ModelReference, on_hub, without_folders
from evomerge_common.errors import InvalidInput, ModelNotFound, NotFound, RecipeError
from evomerge_models.card import (
    CARD,
    Metadata,
    completed,
    licence_file_among,
    metadata_of_source,
    of_folder,
    parse_metadata,
    parts_of,
    read_metadata,
)
from evomerge_models.describe import check_model_folder
from evomerge_models.files import names_in
from evomerge_models.hub.push_plan import LocalFile
from evomerge_report.eval_results import FOLDER as EVAL_RESULTS

RECIPE, MODELFILE = "recipe.json", "Modelfile"
_NAMING = ("_name_or_path", "base_model_name_or_path", "name_or_path")
"""Keys, at any depth of a configuration, under which a library writes where a model lay."""
_CONFIGURATION = "config.json"
"""How the names of such files end."""
_FOR_MERGEKIT = ("mergekit_config.yml", "mergekit_moe_config.yml")
_OF_TRAINING = ("training_args.bin", "trainer_state.json", "optimizer.*", "scheduler.*", "rng_state*")
"""Files that go on with a training, and tell of its machine: nobody else needs them."""
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
        """Returns the metadata of the model's card; of several licences, which the Hub has no word for, none."""
        found = next((parse_metadata(_text(file))[0] for file in self.model if file.name == CARD), {})
        licence = found.get("license")
        if isinstance(licence, list):
            found["license"] = licence[0] if len(licence) == 1 else ""
        return found

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
        return Publication((), _gguf_files([path, path.with_name(MODELFILE)]))
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
    names = names_in(path)
    if any(name.endswith(".gguf") for name in names) and not {"config.json", "adapter_config.json"} & names:
        return Publication((), _gguf_files(path.iterdir()))
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
    recipe = _recipe(folder)
    card, _ = _card(folder, recipe, [_public(own, _local_names(recipe, folder, []))], cards)
    return replace(found, model=_with_card(found.model, card))


def _collected(folder: Path, gguf: Path | None, cards: Cards) -> Publication:
    check_model_folder(folder)
    recipe = _recipe(folder)
    files, left_out = _files(folder)
    local = _local_names(recipe, folder, files)
    made = tuple(_public(file, local) for file in files)
    notes = [f"{name}: stays here" for name in left_out]
    notes += [f"{one.name}: folders of this machine are called by their last part" for one in made if one not in files]
    card, unknown = _card(folder, recipe, made, cards)
    if "model-index" in parse_metadata(card)[0] and not any(one.name.startswith(EVAL_RESULTS) for one in made):
        notes.append(f"{EVAL_RESULTS}: nothing to write: no task of the suite names a benchmark of the Hub")
    return Publication(
        _with_card(made, card),
        _gguf_files(gguf.iterdir()) if gguf is not None and gguf.is_dir() else (),
        (*notes, *unknown),
    )


def _files(folder: Path) -> tuple[list[LocalFile], list[str]]:
    """The files that go to the hub, and the names of those that stay; of what is hidden only scores go, in silence."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    shown = {
        name: path
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.removeprefix(f"{EVAL_RESULTS}/").split("/"))
    }
    stays = [
        name
        for name, path in shown.items()
        if any(fnmatchcase(path.name, pattern) for pattern in _OF_TRAINING)
        or (path.name == MODELFILE and not _is_ours(path, names_in(path.parent)))
    ]
    return [LocalFile(name, path) for name, path in shown.items() if name not in stays], stays


def _is_ours(modelfile: Path, files: Collection[str]) -> bool:
    from evomerge_models.gguf.modelfile import is_ours  # imported here: it takes numpy along

    return is_ours(modelfile, files)


def _gguf_files(paths: Iterable[Path]) -> tuple[LocalFile, ...]:
    """GGUF files among paths, and what belongs to them: a Modelfile of ours, card and licence."""
    there = {path.name: path for path in sorted(paths) if path.is_file() and not path.name.startswith(".")}
    models = [name for name in there if name.endswith(".gguf")]
    more = [name for name in there if name == CARD or licence_file_among([name])]
    if MODELFILE in there and _is_ours(there[MODELFILE], models):
        more.append(MODELFILE)
    files = [LocalFile(name, there[name]) for name in (*models, *more)]
    local = _local_names(None, there[models[0]].parent, files) if models else set()
    return tuple(_public(file, local) for file in files)


def _text(file: LocalFile) -> str:
    data = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    return data.decode("utf-8", errors="replace")


def _recipe(folder: Path) -> Recipe | None:
    try:
        return Recipe.from_json((folder / RECIPE).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, RecipeError):
        return None


def _local_names(recipe: Recipe | None, folder: Path, files: Iterable[LocalFile]) -> set[str]:
    """The names of models that the files may hold; of those that are paths only the last part goes out."""
    names = {part for source in (recipe.sources() if recipe else ()) for part in (source.name, source.adapter)}
    names |= {str(folder.absolute()), str(folder.resolve())}
    for file in files:
        if file.name == CARD:
            names |= set(_base_models(parse_metadata(_text(file))[0]))
        elif file.name.endswith(_CONFIGURATION):
            names |= set(_named(_data(file)))
    return names


def _base_models(metadata: Mapping[str, Any]) -> list[str]:
    named = metadata.get("base_model") or []
    return [str(one) for one in (named if isinstance(named, list) else [named])]


def _data(file: LocalFile) -> Any:
    """A JSON file's data; None where it cannot be read."""
    try:
        return json.loads(_text(file))
    except (ValueError, RecursionError):
        return None


def _named(data: Any) -> list[str]:
    """The values of `_NAMING` at any depth, and as JSON may write them."""
    if isinstance(data, list):
        return [name for one in data for name in _named(one)]
    if not isinstance(data, dict):
        return []
    own = [value for key, value in data.items() if key in _NAMING and isinstance(value, str)]
    return [*own, *(json.dumps(value)[1:-1] for value in own), *_named(list(data.values()))]


def _public(file: LocalFile, local: set[str]) -> LocalFile:
    """A file as others may read it: itself, or a small text that names no folder of this machine."""
    if not file.name.endswith(_CONFIGURATION) and file.name not in {RECIPE, CARD, *_FOR_MERGEKIT}:
        return file
    before = text = _text(file)
    if file.name == RECIPE:
        data = _data(file)
        changed = public_names(data)
        if changed != data:
            text = json.dumps(changed, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    text = without_folders(text, local)
    return file if text == before else replace(file, content=text.encode())


def _card(folder: Path, recipe: Recipe | None, files: Iterable[LocalFile], cards: Cards) -> tuple[str, list[str]]:
    """The card, with the licence and languages that only the sources' cards on the hub tell; and what is not known."""
    card = next((_text(file) for file in files if file.name == CARD), "")
    if not card:
        library, task = of_folder(folder)
        head = Metadata(library=library, pipeline_tag=task, tags=("evomerge",))
        card = f"{head.front_matter()}\n# {folder.resolve().name}\n"
    sources = recipe.sources() if recipe else [ModelReference(one) for one in _base_models(read_metadata(folder))]
    known = by_source((str(part.public), _metadata_of(part, cards)) for part in parts_of(sources))
    head = Metadata().drawn_from(known)
    if recipe is None:  # a card may leave out a source, whose licence may be stricter
        head = replace(head, licence="")
    made = completed(card, head)
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
