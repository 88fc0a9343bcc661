"""Are these models there, are they models, can they be merged with each other? From headers alone, in milliseconds."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_common.domain.kinds import kind_of
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import EvoMergeException, ModelError, ModelNotFound, SuiteError
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.settings import Settings
from evomerge_models.adapter import read_adapter
from evomerge_models.describe import ModelDescription, describe_model, describe_pair, tensor_shapes
from evomerge_models.files import ADAPTER_CONFIG, CONFIG, is_adapter_folder, read_json_object

HUB_SECONDS = 2.0


def check_models(references: Sequence[str], *, hub: bool = True, store: Path | None = None) -> bool:
    """Checks what can be checked before anything is started.

    Args:
        references: absolute folders and hub ids, in the canonical text of `ModelReference`.
        hub: also ask the hub for each id, for two seconds at most; a hub that is slower is left to the downloader.
        store: the model store: what it has already is not asked for.

    Returns:
        Whether the local ones differ in build, so that they must be fitted to each other.

    Raises:
        ModelNotFound, NotAModel, UnsafeFile, ModelError, Unavailable.

    """
    models = [ModelReference.parse(reference) for reference in references]
    for model in models:
        _check_adapter(model)
    wholes = [model.whole for model in models]
    folders = dict.fromkeys(Path(whole.name) for whole in wholes if _is_here(whole))
    described = {folder: describe_model(folder) for folder in folders}
    if hub:
        adapters = [alone for model in models if (alone := model.adapter_alone) is not None]
        _check_hub([one for one in dict.fromkeys([*wholes, *adapters]) if not _is_here(one)], store)
    return builds_differ(described)


def _is_here(model: ModelReference) -> bool:
    return model.name.startswith("/")


def _check_adapter(model: ModelReference) -> None:
    """An adapter that is here: sound, and made for its base where that is here too."""
    alone = model.adapter_alone
    if alone is None or not _is_here(alone):
        return
    folder = Path(alone.name)
    if not is_adapter_folder(folder):
        describe_model(folder)  # says what is wrong with it, if anything is
        raise ModelError(f"{folder} is a whole model; after the plus sign comes a LoRA adapter ({ADAPTER_CONFIG})")
    if _is_here(model):
        describe_pair(Path(model.name), folder)
    else:
        read_adapter(folder)


def check_code_allowed(suite: Suite, settings: Settings) -> None:
    """Checks whether what models write may be run here, where the suite asks for it.

    Raises:
        SuiteError: says how to allow it.

    """
    asking = [task.name for task in suite.tasks if kind_of(task.kind).runs_code]
    if asking and not settings.allow_code:
        raise SuiteError(
            f"task {asking[0]!r} runs programs that models write; allow it with EVOMERGE_ALLOW_CODE=true (they run in "
            "a sandbox without files, network and other processes)"
        )


def check_gguf(spec: RunSpec, *, quantizer: bool = True) -> None:
    """Checks whether the champion can become a GGUF file of the type asked for, as far as this machine can tell by now.

    Args:
        spec: of the run.
        quantizer: K-quants are made here, not on a server.

    Raises:
        InvalidInput: llama-quantize is missing.
        ModelError: llama.cpp does not run models of the champion's architecture.

    """
    from evomerge_models.gguf.configs_out import check
    from evomerge_models.gguf.quantizer import check_type
    from evomerge_models.gguf.table import of_config, text_config

    if quantizer:
        check_type(spec.gguf_type)
    base = ModelReference.parse(spec.target).name
    config = Path(base) / CONFIG
    if config.is_absolute() and config.is_file():  # a hub's comes later; a GGUF file is of such an architecture
        values = read_json_object(config)
        check(text_config(values), of_config(values, base), base)


def builds_differ(described: dict[Path, ModelDescription]) -> bool:
    """Tells whether models cannot be merged tensor by tensor, as far as headers and tokenizer files tell."""
    if len(described) < 2:
        return False
    first, *others = described
    expected, tokens = tensor_shapes(first), _tokenizer_stamp(first)
    for other in others:
        found = tensor_shapes(other)
        if (
            described[first].architecture != described[other].architecture
            or described[first].num_layers != described[other].num_layers
            or any(expected[name] != found[name] for name in expected.keys() & found.keys())
            or tokens != _tokenizer_stamp(other)
        ):
            return True
    return False


def _tokenizer_stamp(folder: Path) -> str:
    names = [name for name in ("tokenizer.json", "vocab.json", "vocab.txt") if (folder / name).is_file()]
    return hashlib.sha256((folder / names[0]).read_bytes()).hexdigest() if names else ""


def plan_in_words(spec: RunSpec) -> list[str]:
    """Says how the models of a run, all local folders, will be fitted to one build: what their average's plan says.

    Made in a process of its own, which takes torch and its memory away with it.

    Raises:
        ModelError: they cannot be fitted; says why.

    """
    child = ChildProcess()
    try:
        return asyncio.run(child.call(_plan, [spec.target, *spec.sources], spec.cross_domain or CrossDomain()))
    finally:
        child.close()


def _plan(models: Sequence[str], cross_domain: CrossDomain) -> list[str]:
    from evomerge_merging import plan_merge

    references = [ModelReference.parse(name) for name in dict.fromkeys(models)]
    recipe = Recipe.of_models("linear", [(one, {"weight": 1.0}) for one in references])
    with plan_merge(replace(recipe, cross_domain=cross_domain)) as plan:
        return list(plan.notes)


def _check_hub(wanted: Sequence[ModelReference], store: Path | None) -> None:
    """Asks for all of them at the same time."""
    if not wanted:
        return
    from evomerge_common.domain.reference import HUB_ID
    from evomerge_models.hub import Hub
    from evomerge_models.store import WritableModelStore

    for reference in wanted:
        if not HUB_ID.fullmatch(reference.name):
            raise ModelNotFound(
                f"there is no folder {reference.name}; give an existing model folder or a hub id (org/name)"
            )
    known = WritableModelStore(store) if store is not None and store.is_dir() else None
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
