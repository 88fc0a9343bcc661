"""From what was typed to a checked run spec: a file or classic flags, the suite inlined, local folders made absolute.

Nothing is started and nothing is written here: bad input costs a second and leaves no trace.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge_cli import trackers
from evomerge_cli.earlier_runs import is_auto, named_runs, runs_beside
from evomerge_cli.evolve_file import is_evolve_file, read_evolve
from evomerge_cli.search_arguments import DEFAULT_MODELS, DEFAULT_OUT
from evomerge_cli.suite_data import fetch_data
from evomerge_common.domain.benchmarks import selection_warnings
from evomerge_common.domain.earlier import earlier_candidates, earlier_in_words
from evomerge_common.domain.fields import check_keys
from evomerge_common.domain.kinds import kind_of
from evomerge_common.domain.messages import EarlierCandidate
from evomerge_common.domain.methods import DEFAULT_METHODS, traits_of
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.spec import REQUEST_KEYS, RunRequest, RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput, RecipeError, SpecError, SuiteError
from evomerge_common.runtime.documents import Document, read_file
from evomerge_common.runtime.suite_file import inline_suite, load_suite
from evomerge_models.files import is_adapter_folder
from evomerge_models.reference import absolute, base_beside, local_path, resolve_reference
from evomerge_scoring.images import data_url
from evomerge_scoring.kinds import expand_task

BUILT_IN_SUITES = Path(__file__).parent / "suites"
ADAPTER_METHODS = tuple(name for name in DEFAULT_METHODS if traits_of(name).linear)
"""What the search draws from when all models are adapters of one base: methods whose results are such adapters too."""
CLASSIC_FLAGS = ("ps_technique1", "ps_technique2", "dfs_technique", "weight_mask_rate", "mask_strategy")


@dataclass(frozen=True)
class Prepared:
    """A run that may start.

    Attributes:
        text: what StartRun is given: JSON, suite included.
        earlier: what `search.warm_start` takes over of runs in folders here.
        notes: what was filled in for the user, in words.
        beginning: what a search that is new begins with, in words; empty where nothing of the kind was asked for.
        log_to: trackers that the command writes to.

    """

    spec: RunSpec
    suite: Suite
    text: str
    notes: tuple[str, ...] = ()
    earlier: tuple[EarlierCandidate, ...] = ()
    beginning: str = ""
    log_to: tuple[str, ...] = ()

    @property
    def request(self) -> RunRequest:
        """Returns spec and suite together."""
        return RunRequest(self.spec, self.suite)

    @cached_property
    def digest(self) -> str:
        """Returns the digest of what StartRun is given; computed once, since a suite may carry megabytes of images."""
        return self.request.digest


def prepare(args: argparse.Namespace) -> Prepared:
    """Makes the spec that a `run` command line means.

    Raises:
        SpecError, SuiteError: with file, line and key where there is a file.

    """
    notes: list[str] = []
    if args.spec:
        file = Path(args.spec).expanduser()
        if file.is_dir():
            raise SpecError("is a folder; give a run spec (`evomerge init` writes one)", file=str(file))
        document, folder = read_file(file), file.parent
        if not is_evolve_file(document.data):
            check_keys_of_spec(document)
    else:
        document, folder = Document("", {"models": classic_models(args, notes)}), Path()
    evolved = is_evolve_file(document.data)
    try:
        folders = [Path(one).expanduser() for one in getattr(args, "task_search_path", None) or ()]
        data = read_evolve(document.data, notes, folders) if evolved else dict(document.data)
    except SpecError as error:
        raise document.located(error) from error
    if args.spec and any((args.model1, args.model2, args.model3)):
        raise InvalidInput("give models in the spec file or by --model1 … --model3, not both")
    _apply_flags(data, args, notes)
    log_to = _trackers(data, args, document)
    if not args.spec and not args.suite and all(is_masked(model, folder) for model in data["models"]):
        args.suite = "masked"
        notes.append("masked language models and no --suite: they are scored on the built-in suite `masked`")
    asked = data.pop("suite", None)
    if evolved and not args.suite:
        suite = inline_suite(
            asked, folder, document, expand=expand_task, fetch=fetch_data(notes.append), embed=data_url
        )
    else:
        notes += ["the file's tasks have no effect beside --suite"] if evolved else []
        suite = resolve_suite(args.suite or asked, folder, document, flag=bool(args.suite), say=notes.append)
    notes += [f"warning: {text}" for text in selection_warnings(suite)]
    try:
        _localise(data, folder, notes)
        out = Path(args.out or DEFAULT_OUT).expanduser()
        runs = named_runs(data, folder, out, server=bool(args.server))
        spec = RunSpec.from_dict(data)
        _check_masked(spec, suite)
        request = RunRequest(spec, suite)
    except SpecError as error:
        raise document.located(error) from error
    searched = suite.on_fold(0)  # the run itself, where there are folds
    if is_auto(spec) and not args.server:
        runs = runs_beside(out, spec, searched)
    earlier = earlier_candidates(runs, spec, searched)
    beginning = ""
    if runs:
        beginning = f"search.warm_start: {earlier_in_words(earlier)}"
    elif is_auto(spec) and not args.server:
        beginning = f"search.warm_start: no finished run of these models and this suite lies beside {out}"
    return Prepared(spec, suite, request.to_json(), tuple(notes), tuple(earlier), beginning, log_to)


def check_keys_of_spec(document: Document) -> None:
    """Refuses unknown keys first: a misspelt `suite` should not be answered with "a run needs a suite"."""
    try:
        if document.data is None:
            raise SpecError("is empty; `evomerge init` writes a spec to start from")
        check_keys(document.data, (*REQUEST_KEYS, trackers.KEY), (), SpecError)
    except SpecError as error:
        raise document.located(error) from error


def _trackers(data: dict[str, Any], args: argparse.Namespace, document: Document) -> tuple[str, ...]:
    """Takes the trackers out of the spec: they are the command's."""
    try:
        return trackers.asked_for(args.log_to, data.pop(trackers.KEY, None))
    except SpecError as error:
        raise document.located(error) from error


def resolve_suite(
    value: Any,
    folder: Path,
    document: Document | None = None,
    *,
    flag: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Suite:
    """Finds a suite by file name, by the name of a built-in one, or written inside the spec, which is `document`.

    File names are relative to `folder`, the spec's; from the command line (`flag`) to where the user stands.
    `say` takes sentences for people.
    """
    document = document or Document()
    if value is None and not document.name:
        value = "general"
    if isinstance(value, str):
        path = (Path() if flag else folder) / Path(value).expanduser()
        built_in = BUILT_IN_SUITES / f"{value}.yaml"
        if not path.exists() and "/" not in value and built_in.is_file():
            path = built_in
        try:
            if path.is_dir():
                raise SuiteError(f"{path} is a folder; give a suite file", ("suite",))
            if not path.exists():
                names = ", ".join(sorted(p.stem for p in BUILT_IN_SUITES.glob("*.yaml")))
                raise SuiteError(
                    f"no suite file {path}; give an existing one, or a built-in suite: {names}", ("suite",)
                )
        except SuiteError as error:
            raise (error if flag else document.located(error)) from error
        return load_suite(path, expand=expand_task, fetch=fetch_data(say), embed=data_url)
    if value is None:
        raise document.located(SpecError("a run needs a suite: a file, `general`, or tasks written here", ("suite",)))
    return inline_suite(
        value, folder, document, path=("suite",), expand=expand_task, fetch=fetch_data(say), embed=data_url
    )


def is_masked(reference: str, folder: Path) -> bool:
    """Tells whether a local folder's config says that it is a masked language model, which cannot continue a text."""
    path = local_path(resolve_reference(reference, folder, Path()).name, folder)
    try:
        config = json.loads((path / "config.json").read_bytes()) if path else {}
        return any("ForMaskedLM" in str(name) for name in config.get("architectures") or [])
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _check_masked(spec: RunSpec, suite: Suite) -> None:
    """Candidates are built as the target is; of a masked language model no task may ask for a text."""
    asking = [task.name for task in suite.tasks if kind_of(task.kind).generates]
    if asking and is_masked(spec.target, Path()):
        raise SuiteError(
            f"task {asking[0]!r} asks for a text, which {spec.target}, a masked language model, cannot continue; the "
            "built-in suite `masked` has tasks for such models",
            ("suite",),
        )


def _localise(data: dict[str, Any], folder: Path, notes: list[str]) -> None:
    """Local folders become absolute, since the services that read the spec stand elsewhere; and adapters alone get
    the base that they belong to: the spec's, else their own.
    """

    def travelling(text: Any, *path: str | int) -> Any:
        if not isinstance(text, str) or not text.strip():
            return text
        try:
            return str(absolute(resolve_reference(text, folder, Path()), folder))
        except RecipeError as error:
            raise SpecError(error.problem, path) from error

    written = [data.get("base"), *(data["models"] if isinstance(data.get("models"), list) else [])]
    if data.get("base"):
        data["base"] = travelling(data["base"], "base")
    if isinstance(data.get("models"), list):
        data["models"] = [
            _with_base(travelling(model, "models", index), data.get("base"), folder, notes)
            for index, model in enumerate(data["models"])
        ]
        _stay_in_adapter_space(data, notes)
        _rename_anchors(data, dict(zip(written, [data.get("base"), *data["models"]], strict=True)))


def _rename_anchors(data: dict[str, Any], names: Mapping[Any, Any]) -> None:
    """Constraints call a source as the spec does, which is no longer its name once folders are absolute."""
    for content in _mapping(data.get("constraints")).values():
        bound = content.get("not_below") if isinstance(content, dict) else None
        if isinstance(bound, str):
            called = [one for one in names if isinstance(one, str) and one and bound.strip().startswith(one)]
            for one in sorted(called, key=len)[-1:]:
                content["not_below"] = bound.strip().replace(one, names[one], 1)


def _with_base(reference: Any, base: Any, folder: Path, notes: list[str]) -> Any:
    """base+adapter for a folder that is an adapter; anything else as it is."""
    if not isinstance(reference, str) or not reference.startswith("/"):
        return reference
    alone = ModelReference.parse(reference)
    if alone.adapter or not is_adapter_folder(Path(alone.name)):
        return reference
    named = base_beside(Path(alone.name), folder, needed=not base)
    own = str(absolute(named, folder)) if Path(named.name).is_dir() else str(named)
    if base and base != own:
        notes.append(f"{reference} says that it is an adapter of {named}; it is applied to the run's base, {base}")
    return str(replace(ModelReference.parse(base or own), adapter=alone.name))


def _stay_in_adapter_space(data: dict[str, Any], notes: list[str]) -> None:
    """Of models that are all adapters of one base the base is the run's; sums of updates are small and exact."""
    if not all(isinstance(model, str) and model.strip() for model in data["models"]):
        return
    models = [ModelReference.parse(model) for model in data["models"]]
    bases = {str(model.whole) for model in models if model.adapter}
    if len(bases) != 1 or not all(model.adapter for model in models) or (data.get("base") or "") not in {"", *bases}:
        return
    data["base"] = bases.pop()
    search = data.get("search") or {}
    if isinstance(search, Mapping) and "methods" not in search:
        data["search"] = {**search, "methods": list(ADAPTER_METHODS)}
        notes.append(
            f"all models are adapters of {data['base']}: the search adds up their updates "
            f"({', '.join(ADAPTER_METHODS)}); set search.methods for others"
        )


def classic_models(args: argparse.Namespace, notes: list[str]) -> list[str]:
    """Reads --model1 … --model3, the default models in the gaps; each gap is noted."""
    given = [args.model1, args.model2, args.model3]
    if not any(given):
        notes.append("no spec and no --model1: the three default models are evolved")
    models = []
    for number, (model, default) in enumerate(zip(given, DEFAULT_MODELS, strict=True), 1):
        if not model and any(given):
            notes.append(f"--model{number} is not given: the default, {default}, fills the gap")
        models.append(model or default)
    return models


def _apply_flags(data: dict[str, Any], args: argparse.Namespace, notes: list[str]) -> None:
    """Flags go before the file."""
    if args.base:
        data["base"] = args.base
    if args.seed is not None:
        data["seed"] = args.seed
    if args.evaluations is not None:
        data["search"] = {**_mapping(data.get("search")), "evaluations": args.evaluations}
    if args.cross_domain:
        own = data.get("cross_domain")
        data["cross_domain"] = {**(_mapping(own)), "strategy": args.cross_domain}
    if args.accept_licence_conflict:
        data["accept_licence_conflict"] = True
    classic = {name: getattr(args, name) for name in CLASSIC_FLAGS if getattr(args, name) is not None}
    if args.weight_mask_rate is not None or args.use_weight_rescale:
        classic["use_weight_rescale"] = args.use_weight_rescale
    if classic:
        data["classic"] = {**_mapping(data.get("classic")), **classic}
    if args.use_cli:
        notes.append("--use-cli: downloads use the hub's own client, which is what its command line uses")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
