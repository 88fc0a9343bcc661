"""Are these models there, are they models, can they be merged with each other? From headers alone, in milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from evomerge_common.domain.suite import Suite
from evomerge_common.errors import EvoMergeException, ModelError, ModelNotFound, ShapeMismatch, SuiteError
from evomerge_common.lora_folder import describe_pair, is_adapter_folder, read_adapter, split_reference
from evomerge_common.model_folder import ADAPTER_CONFIG, ModelDescription, describe_model, tensor_shapes
from evomerge_common.runtime.settings import Settings

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
    pairs = [split_reference(reference) for reference in references]
    for base, adapter in pairs:
        _check_adapter(base, adapter)
    wholes = list(dict.fromkeys(base for base, _ in pairs))
    check_fit({folder: describe_model(folder) for folder in map(Path, wholes) if folder.is_absolute()})
    if hub:
        names = [*wholes, *(adapter for _, adapter in pairs if adapter)]
        _check_hub([name for name in dict.fromkeys(names) if not name.startswith("/")], store)


def _check_adapter(base: str, adapter: str) -> None:
    """An adapter that is here: sound, and made for its base where that is here too."""
    if not adapter.startswith("/"):
        return
    if not is_adapter_folder(Path(adapter)):
        describe_model(Path(adapter))  # says what is wrong with it, if anything is
        raise ModelError(f"{adapter} is a whole model; after the plus sign comes a LoRA adapter ({ADAPTER_CONFIG})")
    if base.startswith("/"):
        describe_pair(Path(base), Path(adapter))
    else:
        read_adapter(Path(adapter))


def check_code_allowed(suite: Suite, settings: Settings) -> None:
    """Whether what models write may be run here, where the suite asks for it.

    Raises:
        SuiteError: says how to allow it.

    """
    asking = [task.name for task in suite.tasks if task.kind == "code"]
    if asking and not settings.allow_code:
        raise SuiteError(
            f"task {asking[0]!r} runs programs that models write; allow it with EVOMERGE_ALLOW_CODE=true (they run in "
            "a sandbox without files, network and other processes)"
        )


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
