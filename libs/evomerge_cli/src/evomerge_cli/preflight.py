"""Are these models there, are they models, can they be merged with each other? From headers alone, in milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from evomerge_common.errors import EvoMergeException, ModelNotFound, ShapeMismatch
from evomerge_common.model_folder import ModelDescription, describe_model, read_safetensors_header, select_files

HUB_SECONDS = 2.0


def check_models(references: Sequence[str], *, hub: bool = True, store: Path | None = None) -> None:
    """Checks what can be checked before anything is started.

    Args:
        references: absolute folders and hub ids.
        hub: also ask the hub for each id, for two seconds at most; a hub that is slower is left to the downloader.
        store: the model store: what it has already is not asked for.

    Raises:
        ModelNotFound, NotAModel, UnsafeFile, ModelError, ShapeMismatch, Unavailable.

    """
    folders = [Path(r) for r in references if r.startswith("/")]
    described = {folder: describe_model(folder) for folder in folders}
    check_fit(described)
    if hub:
        _check_hub([r for r in references if not r.startswith("/")], store)


def check_fit(described: dict[Path, ModelDescription]) -> None:
    """Every model against the first one.

    Raises:
        ShapeMismatch: says which tensor, which shapes, and of which folders.

    """
    if len(described) < 2:
        return
    first, *others = described
    expected = tensor_shapes(first)
    for other in others:
        if described[first].architecture != described[other].architecture:
            raise ShapeMismatch(
                f"{first} is a {described[first].architecture}, {other} a {described[other].architecture}: "
                "models of different architectures cannot be merged yet; choose models of one family"
            )
        found = tensor_shapes(other)
        for name in sorted(expected.keys() & found.keys()):
            if expected[name] != found[name]:
                raise ShapeMismatch(
                    f"tensor {name} has shape {expected[name]} in {first} but {found[name]} in {other}: "
                    "they cannot be merged; choose models of one size"
                )
        if described[first].num_layers != described[other].num_layers:
            raise ShapeMismatch(
                f"{first} has {described[first].num_layers} layers, {other} {described[other].num_layers}: "
                "they cannot be merged; choose models of one size"
            )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape, from the safetensors headers; empty for .bin weights, which are not opened."""
    chosen = select_files((item.name for item in folder.iterdir() if item.is_file()), str(folder))
    return {
        name: tuple(entry["shape"])
        for file in chosen.weights
        if file.endswith(".safetensors")
        for name, entry in read_safetensors_header(folder / file).items()
    }


def _check_hub(references: Sequence[str], store: Path | None) -> None:
    """Asks for all of them at the same time."""
    if not references:
        return
    from evomerge_common.domain.recipe import ModelReference
    from evomerge_downloader.hub import HUB_ID, Hub
    from evomerge_downloader.store import ModelStore

    wanted = [ModelReference.parse(reference) for reference in references]
    for reference in wanted:
        if not HUB_ID.fullmatch(reference.name):
            raise ModelNotFound(
                f"there is no folder {reference.name}; give an existing model folder or a hub id (org/name)"
            )
    known = ModelStore(store) if store is not None and store.is_dir() else None
    errors: dict[str, EvoMergeException] = {}

    def ask(reference: ModelReference) -> None:
        try:
            Hub().model(reference.name, reference.revision)
        except EvoMergeException as error:
            errors[str(reference)] = error

    threads = []
    for reference in wanted:
        if known is not None and known.commit_of(reference.name, reference.revision):
            continue
        # A daemon: a hub that never answers must not keep the command from ending.
        threads.append(threading.Thread(target=ask, args=(reference,), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HUB_SECONDS)
    for reference in wanted:
        if str(reference) in errors:
            raise errors[str(reference)]
