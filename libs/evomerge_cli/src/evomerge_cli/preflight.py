"""Are these models there, are they models, may they and can they be merged with each other? Headers tell, in a moment.

Nothing is started, and of a hub's models no weights are fetched, before all that can be known is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from evomerge_cli.console import Console
from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_common.domain.kinds import kind_of
from evomerge_common.domain.licences import combine
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import ModelError, SuiteError
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.settings import Settings
from evomerge_models.files import CONFIG, read_json_object, read_json_or_nothing
from evomerge_models.store import WritableModelStore
from evomerge_models.survey import Survey

HUB_SECONDS = 2.0
"""What the hub is given before a run starts; what it has not said by then is left to the downloader."""


@contextmanager
def survey_models(
    references: Sequence[ModelReference],
    *,
    base: ModelReference | None = None,
    hub: bool = True,
    store: Path | None = None,
    seconds: float | None = HUB_SECONDS,
) -> Iterator[Survey]:
    """Looks at models before anything is started; see `evomerge_models.survey`.

    Args:
        references: absolute folders and hub ids.
        base: what adapters that are named alone are applied to; None: the base that each names itself.
        hub: also look at hub ids: config, small files and headers.
        store: the model store's folder: see `Survey`.
        seconds: what the hub is given; None: as long as it takes.

    Raises:
        ModelError, Unavailable: what is wrong with any of them, told at once.
        DiskFull, OverQuota: the store has no room for what would be fetched.

    """
    from evomerge_models.hub import Hub

    quota = Settings.from_env().model_store_quota
    known = WritableModelStore(store, quota) if store is not None else None
    with Survey(Hub() if hub else None, known, seconds=seconds) as survey:
        survey.look(references, base)
        survey.check_room()
        yield survey


def check_licences(survey: Survey, console: Console, *, accepted: bool) -> None:
    """Tells what licence the result will have and what it owes, once every model is known.

    Raises:
        LicenceConflict: licences exclude each other, and nobody has accepted that.

    """
    plan = combine(survey.licences())
    for sentence in plan.sentences():
        console.say(f"note: {sentence}")
    plan.check(accepted=accepted)


def check_classes(survey: Survey) -> None:
    """Refuses models that run with Python code of their own alone: it is neither fetched nor run.

    Raises:
        ModelError: names the model.

    """
    for seen in survey.models.values():
        config = read_json_or_nothing(seen.base.folder / CONFIG) if seen.base.folder.is_dir() else {}
        kind = config.get("model_type")
        if not config.get("auto_map") or seen.base.description.architecture == "":
            continue
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # a second, for few models

        if kind not in CONFIG_MAPPING_NAMES:
            raise ModelError(
                f"{seen.reference} runs with Python code of its own alone (auto_map; transformers has no model_type "
                f"{kind!r}), and EvoMerge runs no code of strangers; give a model of a class that transformers has"
            )


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


def check_scorable(spec: RunSpec, suite: Suite, survey: Survey) -> None:
    """Checks whether the target is of a kind that can be scored on the suite: candidates are built as it is.

    In a process of its own, which takes torch and its memory away with it; that takes seconds, so a causal model that
    is shown no images is not asked about.

    Raises:
        ModelError, SuiteError: says what cannot be asked, and what can.

    """
    from evomerge_scoring.asked import check_folder, shows_images

    seen = survey.models.get(spec.target)
    if seen is None or not (seen.base.folder / CONFIG).is_file():  # not known here: the first jobs tell
        return
    folder, images = seen.base.folder, shows_images(suite)
    named = read_json_or_nothing(folder / CONFIG).get("architectures")
    causal = isinstance(named, list) and any(str(name).endswith("ForCausalLM") for name in named)
    outline = folder != Path(ModelReference.parse(spec.target).name)  # of a hub's model, without its processor
    if outline if images else causal:
        return
    child = ChildProcess()
    try:
        asyncio.run(child.call(check_folder, folder, suite))
    finally:
        child.close()


def check_gguf(spec: RunSpec, survey: Survey | None, *, quantizer: bool = True) -> None:
    """Checks whether the champion can become a GGUF file of the type asked for, as far as this machine can tell by now.

    Args:
        spec: of the run.
        survey: of its models; None: not looked at yet.
        quantizer: K-quants are made here, not on a server.

    Raises:
        InvalidInput: llama-quantize is missing.
        ModelError: llama.cpp does not run models of the champion's architecture.

    """
    from evomerge_models.gguf.configs_out import check
    from evomerge_models.gguf.lookup import of_config, text_config
    from evomerge_models.gguf.quantizer import check_type

    if quantizer:
        check_type(spec.gguf_type)
    target = survey.models.get(spec.target) if survey is not None else None
    if target is not None and target.base.folder.is_dir():  # a GGUF file is of such an architecture
        values, name = read_json_object(target.base.folder / CONFIG), str(target.base.reference)
        check(text_config(values), of_config(values, name), name)


def plan_in_words(spec: RunSpec, survey: Survey) -> list[str]:
    """Says how the models of a run will be fitted to one build: what their average's plan says.

    Made in a process of its own, which takes torch and its memory away with it. Empty where not all models are known
    well enough to plan with: a GGUF file, pickles of a hub, or a hub that is slow.

    Raises:
        ModelError: they cannot be fitted; says why, what keeps them apart, and which fit each other.

    """
    names = list(dict.fromkeys([spec.target, *spec.sources]))
    with survey.named():
        folders = survey.folders()
    if folders is None or not folders.keys() >= set(names):
        return []
    child = ChildProcess()
    try:
        with survey.named():
            return asyncio.run(child.call(_plan, names, folders, spec.cross_domain or CrossDomain()))
    except ModelError as error:
        raise compared(error, survey) from error
    finally:
        child.close()


def compared(error: ModelError, survey: Survey) -> ModelError:
    """Adds to an error what keeps the models apart, and which of them fit each other."""
    comparison = survey.comparison(str(error))
    return type(error)(f"{error}. {comparison}") if comparison else error


def _plan(models: Sequence[str], folders: Mapping[str, Path], cross_domain: CrossDomain) -> list[str]:
    from evomerge_merging import plan_merge

    references = [ModelReference.parse(name) for name in dict.fromkeys(models)]
    recipe = Recipe.of_models("linear", [(one, {"weight": 1.0}) for one in references])
    with plan_merge(replace(recipe, cross_domain=cross_domain), folders) as plan:
        return list(plan.notes)
