"""`evomerge merge`: one recipe, executed here, without a service; `--download-and-merge` in the classic words."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from evomerge_cli.byte_progress import bytes_bar, human
from evomerge_cli.console import Console, service_logs
from evomerge_cli.merge_plan import facts, show
from evomerge_cli.preflight import check_classes, check_licences, compared, survey_models
from evomerge_cli.spec_source import classic_models
from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_common.domain.methods import DEFAULT_METHODS
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.search_space import SearchSpace, builds_differ
from evomerge_common.domain.spec import ClassicSpec
from evomerge_common.errors import ModelError, ModelNotFound, NotFound
from evomerge_common.runtime.scratch import scratch_folder
from evomerge_common.runtime.settings import Settings
from evomerge_models.content import content_digest
from evomerge_models.describe import check_model_folder, describe_pair
from evomerge_models.files import CONFIG, is_adapter_folder
from evomerge_models.pair import PAIRS, write_pair
from evomerge_models.reference import absolute, base_beside, base_hint, local_path, look_up, resolve_reference
from evomerge_models.store import WritableModelStore
from evomerge_models.survey import Survey


def run(args: argparse.Namespace, console: Console) -> int:
    """Executes one recipe here, or shows its plan."""
    from evomerge_merging import merge_recipe, plan_merge, read_recipe_file
    from evomerge_merging.engine.execute import MAX_SHARD_BYTES

    if args.recipe is None:
        recipe = _classic(args, console)
    else:
        recipe = read_recipe_file(Path(args.recipe).expanduser(), strict=args.strict).with_sources(look_up)
    out = Path(args.out or "evomerge-out").expanduser()
    accepted = args.accept_licence_conflict

    def judge(survey: Survey) -> None:
        check_classes(survey)
        check_licences(survey, console, accepted=accepted)
        if survey.missing_bytes:
            _check_plan(recipe, survey)

    models = fetch(recipe.sources(), console, recipe.base, judge=judge)
    threads = getattr(args, "threads", 2)
    with plan_merge(recipe, models) as plan:
        for note in plan.notes:
            console.say(f"note: {note}")
        if getattr(args, "dry_run", False):
            plan_facts = facts(plan, out, threads=threads)
            if not console.data(plan_facts):
                show(plan_facts, console)
            return 0
        counted = {
            "tensors": len(plan.tensors), "parameters": plan.parameters, "read_bytes": plan.read_bytes,
            "write_bytes": plan.bytes, "notes": list(plan.notes),
        }  # fmt: skip
    with bytes_bar(console, "merging") as progress:
        report = merge_recipe(
            recipe, models, out, threads=threads, progress=progress,
            max_shard_bytes=getattr(args, "max_shard_size", None) or MAX_SHARD_BYTES,
        )  # fmt: skip
    counted |= {"out": str(out), "seconds": report.seconds, "recipe_digest": recipe.digest, "files": list(report.files)}
    if not console.data(counted):
        rate = human(report.bytes / max(report.seconds, 1e-9))
        console.out(f"{out}: {report.parameters:,} parameters, {report.seconds:.1f} s, {rate}/s written")
    return 0


def fetch(
    sources: list[ModelReference],
    console: Console,
    base: ModelReference | Recipe | None = None,
    *,
    judge: Callable[[Survey], None] = check_classes,
) -> dict[str, Path]:
    """Finds the folder of each source: local ones as they are, hub ids through the model store.

    Of an adapter on its base it is a folder that stands for both; an adapter alone is one on `base`, else on the base
    that it names. A source that a recipe names by its content (`recipe.json` does) is that content.

    Args:
        judge: called before anything is fetched, with what is known of the sources by then; not where the store has
            contents that the recipe names, for then it was made before.

    Raises:
        ModelError: a source cannot be used, or is not any more what the recipe names.

    """
    owner = _on_disk(base) if isinstance(base, ModelReference) else None
    store = WritableModelStore(Settings.from_env().model_store)
    found = {one.key: folder for one in sources if one.digest and (folder := _taken(store, one.digest)) is not None}
    rest = [source for source in sources if source.key not in found]
    with survey_models([_on_disk(source) for source in rest], base=owner, store=store.root, seconds=None) as survey:
        if not found:
            judge(survey)
    return found | {source.key: _check_content(source, _fetched(source, console, base), store) for source in rest}


def _taken(store: WritableModelStore, digest: str) -> Path | None:
    """The folder of an entry, which stays while this process reads it; None where the store does not have it."""
    folder = store.find(digest)
    try:
        if folder is not None:
            store.take(digest, _reader(store.root))
    except NotFound:  # another process made room of it in this moment
        return None
    return folder


@cache
def _reader(root: Path) -> str:
    """The owner of what this process reads of a store: nobody makes room of it."""
    return WritableModelStore(root).pins.of_this_process()


def _check_content(source: ModelReference, folder: Path, store: WritableModelStore) -> Path:
    """The folder of a source, where it is what the recipe names."""
    if source.digest and (found := f"sha256:{content_digest(folder, store.hashes)}") != source.digest:
        raise ModelError(
            f"{source} has changed since this recipe was made: its content is {found}, the recipe's {source.digest}; "
            "give that model back, or take `digest` out of the recipe to merge what is there now"
        )
    return folder


def _on_disk(source: ModelReference) -> ModelReference:
    """The reference with absolute folders; of a run's output folder its champion."""
    found = absolute(source)
    if not (Path(found.name) / CONFIG).exists() and (Path(found.name) / "model" / CONFIG).exists():
        return replace(found, name=str(Path(found.name) / "model"))
    return found


def _check_plan(recipe: Recipe, survey: Survey) -> None:
    """Plans a merge of models whose weights are still at the hub.

    Raises:
        InvalidInput: it cannot be done; of models that do not fit, which fit each other.

    """
    from evomerge_merging import plan_merge

    with survey.named():
        folders = survey.folders()
    if folders is None:
        return
    try:
        with survey.named():
            plan_merge(recipe, {one.key: folders[str(_on_disk(one))] for one in recipe.sources()}).close()
    except ModelError as error:
        raise compared(error, survey) from error


def _fetched(source: ModelReference, console: Console, base: ModelReference | Recipe | None) -> Path:
    whole = None if source.revision else local_path(source.name)
    adapter = local_path(source.adapter) if source.adapter else None
    if whole is None or (source.adapter and adapter is None):
        owner = base if isinstance(base, ModelReference) and base.key != source.key else None
        return _download(source, owner, Settings.from_env(), console)
    if whole.suffix == ".gguf" and whole.is_file():
        whole = _download(ModelReference(str(whole.absolute())), None, Settings.from_env(), console)
    if adapter is None and is_adapter_folder(whole):
        if isinstance(base, ModelReference) and base.key != source.key:
            return _paired(_fetched(base.whole, console, None), whole)
        named = base_beside(whole)
        try:
            return _paired(_fetched(named.whole, console, None), whole)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error}{base_hint(whole, named)}") from error
    if not (whole / "config.json").exists() and (whole / "model" / "config.json").exists():
        whole = whole / "model"  # the output folder of a run: its champion
    if adapter is not None:
        return _paired(whole, adapter)
    check_model_folder(whole)
    return whole


def _paired(base: Path, adapter: Path) -> Path:
    """A folder that stands for both as long as this process lives."""
    if not is_adapter_folder(adapter):
        check_model_folder(adapter)
        raise ModelError(f"{adapter} is a whole model; after the plus sign comes a LoRA adapter")
    describe_pair(base, adapter)
    folder = scratch_folder(PAIRS)
    write_pair(folder, base.absolute(), adapter.absolute())
    return folder


def _download(source: ModelReference, base: ModelReference | None, settings: Settings, console: Console) -> Path:
    from evomerge_downloader.fetch import Fetcher
    from evomerge_models.hub import Hub, Progress

    console.say(f"fetching {source}")
    store = WritableModelStore(settings.model_store, settings.model_store_quota)
    with service_logs(console), bytes_bar(console, f"fetching {source}") as bar:

        def tell(progress: Progress) -> None:
            bar(progress.done, progress.total)
            if progress.note:
                console.say(f"{source}: {progress.note}")

        fetcher = Fetcher(store, Hub(limit=settings.download_limit), link=settings.link_models, tell=tell)
        model = fetcher.fetch(str(replace(source, digest="")), str(base or ""), typed=False, owner=_reader(store.root))
    return store.open(model.uri)


def _classic(args: argparse.Namespace, console: Console) -> Recipe:
    """The combination that the flags name, as a run's initial population has it.

    The first technique merges the models into one, the second into another, the third draws its layers from the two.
    """
    from evomerge_models.describe import describe_model
    from evomerge_selector.domain.initial_population import classic_population

    notes: list[str] = []
    models = tuple(resolve_reference(name) for name in classic_models(args, notes))
    for note in notes:
        console.say(f"note: {note}")
    base = resolve_reference(args.base) if args.base else None
    accepted = args.accept_licence_conflict

    def judge(survey: Survey) -> None:
        check_classes(survey)
        check_licences(survey, console, accepted=accepted)

    folders = fetch([*models, *([base] if base else [])], console, base, judge=judge)
    target = base or models[0]
    described = {key: describe_model(folder) for key, folder in folders.items()}
    cross_domain = None
    if args.cross_domain or builds_differ((d.architecture, d.num_layers, d.parameters) for d in described.values()):
        cross_domain = CrossDomain(args.cross_domain or "full", target=target)
    layers = max(1, described[target.key].num_layers)
    space = SearchSpace(
        models=models, base=base, num_layers=layers, groups=1, methods=DEFAULT_METHODS, cross_domain=cross_domain
    )
    classic = ClassicSpec(
        ps_technique1=args.ps_technique1 or "linear",
        ps_technique2=args.ps_technique2 or "ties",
        dfs_technique=args.dfs_technique or "frankenmerge",
        weight_mask_rate=args.weight_mask_rate or 0.0,
        use_weight_rescale=args.use_weight_rescale,
        mask_strategy=args.mask_strategy or "random",
    )
    (genome,) = classic_population(space, classic)
    return space.recipe(genome)
