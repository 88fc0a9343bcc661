"""What a user asks of a run: models, how to search, a suite. Every mistake names its key and the nearest valid word."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from evomerge_common.domain.constraints import Constraint, check_tasks, constraints_to_dict, read_constraints
from evomerge_common.domain.controls import NO_CONTROLS, ControlsSpec, read_controls
from evomerge_common.domain.cross_domain import CROSS_KEYS, CrossDomain, cross_domain_to_dict, read_cross_domain
from evomerge_common.domain.fields import Fields
from evomerge_common.domain.genome import GENES
from evomerge_common.domain.gguf_types import TYPES
from evomerge_common.domain.methods import (
    DEFAULT_METHODS,
    DFS_TECHNIQUES,
    MASK_STRATEGIES,
    PS_TECHNIQUES_1,
    PS_TECHNIQUES_2,
    find_traits,
    searchable_methods,
    traits_of,
)
from evomerge_common.domain.recipe import DTYPES
from evomerge_common.domain.reference import ModelReference, is_repository
from evomerge_common.domain.strategies import STRATEGIES
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import Path, RecipeError, SpecError

SCHEDULES = ("steady", "generational")
BREEDING = ("blend", "classic")
AUTO = "auto"
SCORING_DTYPES = (AUTO, "float32", "bfloat16")
"""In which candidates are scored; the first is what the first evaluator to answer takes on its device."""
FORMATS = ("hf", "gguf")
"""In which the champion is handed back."""


@dataclass(frozen=True)
class RacingSpec:
    """How a candidate is stopped early that has no chance.

    Attributes:
        rungs: shares of the items after which the question is put; none: every candidate gets all items.
        rank: the rival is the candidate of this rank among those with all items.
        confidence: a candidate is stopped when its chance to be ahead of the rival is below 1 − confidence.
        early: evaluations' worth of items after which `confidence` holds; before, `early_confidence` does.
        early_confidence: what is used as confidence early, when any step up is large and estimates need not be sharp.
        margin: a lead counts beyond so many standard deviations of the fitness over other items of the same kinds.
        unit: items that one job scores at most, so that a job stays short.

    """

    rungs: tuple[float, ...] = (0.1, 0.3)
    rank: int = 1
    confidence: float = 0.9
    early: float = 8.0
    early_confidence: float = 0.5
    margin: float = 0.0
    unit: int = 256


NO_RACE = RacingSpec(rungs=())


@dataclass(frozen=True)
class SearchSpec:
    """How candidates are proposed.

    Attributes:
        in_flight: candidates between proposal and result under `schedule: steady`. Part of the spec, not of the
            machine: it decides which results a proposal may read, so the same value gives the same run on any
            number of workers.
        evaluations: budget of scored candidates, sources included; in a race, of so many candidates' items.
        patience: ends the search after so many evaluations without an improvement of `min_delta`; 0 never does.
        layer_groups: groups of consecutive layers with parameters of their own.
        layer_granularity: layers of such a group, in place of their number; 0: by their number.
        warm_start: earlier runs, by id, with whose results the search begins; `(AUTO,)`: whichever there are.
        niche: genomes nearer than this (`Genome.distance`, 0 … 1) share their chance to become parents; 0: none do.
        genes: what evolves beside weights, densities, methods and paths: where the groups are cut (boundaries), masks
            on the sources' changes (masks), merges of whole candidates (nesting).

    """

    strategy: str = "tournament"
    schedule: str = "steady"
    population: int = 16
    in_flight: int = 4
    evaluations: int = 64
    elites: int = 2
    tournament_size: int = 3
    methods: tuple[str, ...] = DEFAULT_METHODS
    layer_groups: int = 4
    layer_granularity: int = 0
    genes: tuple[str, ...] = ("boundaries", "nesting")
    breeding: str = "blend"
    patience: int = 0
    min_delta: float = 0.0
    target: float | None = None
    hours: float | None = None
    niche: float = 0.0
    warm_start: tuple[str, ...] = ()
    racing: RacingSpec = NO_RACE


@dataclass(frozen=True)
class ClassicSpec:
    """The three techniques of the original command line; an empty word leaves both of its kind in."""

    ps_technique1: str = ""
    ps_technique2: str = ""
    dfs_technique: str = ""
    weight_mask_rate: float = 0.0
    use_weight_rescale: bool = True
    mask_strategy: str = "random"


@dataclass(frozen=True)
class RunSpec:
    """A whole run, but for the suite, which travels as an artifact of its own: `RunRequest` has both.

    Attributes:
        base: the model that the others were fine-tuned from; task vectors are taken against it.
        threads: intra-op threads of a scorer. Fixed for the run, so that scores do not depend on the machine's load.
        dtype: in which candidates are computed and written ("" = the first model's).
        scoring_dtype: in which candidates are scored, all of a run in the same.
        export_dtype: in which the champion is written ("" = dtype).
        gguf_type: of the GGUF file in which the champion is handed back as well ("" = none).
        push_to: repository of the hub to which the command that started the run pushes the champion ("" = none).
        preserve_instruction: of every candidate's recipe; see `Recipe`.
        cross_domain: how models that are built otherwise than the base (or the first) are fitted to it; None: in full.
        accept_licence_conflict: the run goes on though the sources' licences exclude each other.
        controls: null candidates that are scored beside the champion when the search has ended.
        constraints: what the champion may not lose, a bound a task.

    """

    models: tuple[str, ...]
    base: str = ""
    seed: int = 0
    dtype: str = ""
    search: SearchSpec = field(default_factory=SearchSpec)
    classic: ClassicSpec = field(default_factory=ClassicSpec)
    threads: int = 2
    scoring_dtype: str = AUTO
    export_dtype: str = ""
    gguf_type: str = ""
    push_to: str = ""
    preserve_instruction: bool | None = None
    cross_domain: CrossDomain | None = None
    accept_licence_conflict: bool = False
    controls: ControlsSpec = NO_CONTROLS
    constraints: tuple[Constraint, ...] = ()

    @property
    def target(self) -> str:
        """Returns the model whose build all candidates have."""
        return self.base or self.models[0]

    @property
    def sources(self) -> tuple[str, ...]:
        """Returns every model that is fetched and scored: the models, then the base."""
        return sources_of(self.models, self.base)

    def differs_in_budget_alone(self, other: RunSpec) -> bool:
        """Tells whether a run with the other spec may go on with this one: what is proposed follows from the rest."""
        budget = {key: getattr(self.search, key) for key in BUDGET_KEYS}
        return replace(other, search=replace(other.search, **budget)) == self

    def scores_as(self, other: RunSpec) -> bool:
        """Tells whether a genome is the same model with the same score in both runs, where both score in one dtype."""
        return all(getattr(self, key) == getattr(other, key) for key in SCORING_KEYS)

    def to_dict(self) -> dict[str, Any]:
        """Writes plain data in the form that `from_dict` reads."""
        search = {key: value for key, value in asdict(self.search).items() if value is not None}
        search |= {"methods": list(self.search.methods), "genes": list(self.search.genes)}
        search["warm_start"] = AUTO if self.search.warm_start == (AUTO,) else list(self.search.warm_start)
        for key in ("niche", "layer_granularity", "warm_start"):
            if not search[key]:
                del search[key]  # off is not written: the log of a run without it is what it always was
        racing = search.pop("racing")
        if racing["rungs"]:
            search["racing"] = {**racing, "rungs": list(racing["rungs"])}
        return {
            "models": list(self.models),
            "base": self.base,
            "seed": self.seed,
            "dtype": self.dtype,
            "search": search,
            "classic": asdict(self.classic),
            "evaluation": {
                "threads": self.threads,
                **({} if self.scoring_dtype == AUTO else {"dtype": self.scoring_dtype}),
            },
            "export": {
                "dtype": self.export_dtype,
                **({"formats": list(FORMATS), "gguf_type": self.gguf_type} if self.gguf_type else {}),
                **({"push_to": self.push_to} if self.push_to else {}),
            },
            **({} if self.preserve_instruction is None else {"preserve_instruction": self.preserve_instruction}),
            **({} if self.cross_domain is None else {"cross_domain": cross_domain_to_dict(self.cross_domain)}),
            **({"accept_licence_conflict": True} if self.accept_licence_conflict else {}),
            **({"controls": self.controls.to_value()} if self.controls.count else {}),
            **({"constraints": constraints_to_dict(self.constraints)} if self.constraints else {}),
        }

    def to_json(self) -> str:
        """Writes canonical JSON: what the run's log begins with."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """Reads what `to_json` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, data: Any, path: Path = ()) -> RunSpec:
        """Reads a spec without its suite.

        Raises:
            SpecError: unknown key or word, a number out of range, too few models.

        """
        own = Fields.of(data, SPEC_KEYS, path)
        models = own.texts("models", "must be a list of models: hub ids or folders")
        if len(models) < 2:
            raise own.wrong(f"merging needs at least two models, found {len(models)}", "models")
        for index, model in enumerate(models):
            try:
                ModelReference.parse(model)
            except RecipeError as error:
                raise SpecError(error.problem, (*own.at("models"), index)) from error
            if model in models[:index]:
                raise SpecError(f"{model!r} is named twice", (*own.at("models"), index))
        base = own.text("base")
        search = _search(own.section("search", SEARCH_KEYS))
        _check_enough(search, [model for model in models if model != base], path)
        evaluation = own.section("evaluation", ("threads", "dtype"))
        sources = sources_of(models, base)
        constraints = read_constraints(own.data.get("constraints"), own.at("constraints"), sources=sources, base=base)
        if constraints and search.evaluations < len(sources):
            raise own.wrong(
                f"bounds need the scores of all {len(sources)} sources: raise search.evaluations", "constraints"
            )
        export = own.section("export", ("dtype", "formats", "gguf_type", "push_to"))
        fitted = own.data.get("cross_domain")
        return cls(
            models=models,
            base=base,
            seed=own.integer("seed", 0),
            dtype=own.word("dtype", DTYPES),
            search=search,
            classic=_classic(own.section("classic", CLASSIC_KEYS)),
            threads=evaluation.integer("threads", 2, low=1, high=1024),
            scoring_dtype=evaluation.word("dtype", SCORING_DTYPES, AUTO),
            export_dtype=export.word("dtype", DTYPES),
            gguf_type=_gguf_type(export),
            push_to=_push_to(export),
            preserve_instruction=own.optional_flag("preserve_instruction"),
            cross_domain=None
            if fitted is None
            else read_cross_domain(fitted, own.at("cross_domain"), SpecError, keys=CROSS_KEYS),
            accept_licence_conflict=own.flag("accept_licence_conflict", False),
            controls=read_controls(own),
            constraints=constraints,
        )


def sources_of(models: Sequence[str], base: str) -> tuple[str, ...]:
    """Lists every model that a run fetches and scores: the models, then the base where it is none of them."""
    return (*models, *((base,) if base and base not in models else ()))


@dataclass(frozen=True)
class RunRequest:
    """What StartRun is given: a spec, and the suite that its candidates are scored on."""

    spec: RunSpec
    suite: Suite

    def __post_init__(self) -> None:
        """Refuses constraints on tasks that the suite has not (SpecError)."""
        check_tasks(self.spec.constraints, [task.name for task in self.suite.tasks])

    @classmethod
    def from_dict(cls, data: Any) -> RunRequest:
        """Reads a spec whose `suite` carries its items; the spec first, which takes no time.

        Raises:
            SpecError: see `RunSpec.from_dict`; there is no suite, or not the tasks of the constraints.
            SuiteError: the suite cannot score.

        """
        Fields.of(data, REQUEST_KEYS)
        if "suite" not in data:
            raise SpecError("a run needs a suite: tasks to score candidates on", ("suite",))
        spec = RunSpec.from_dict({key: value for key, value in data.items() if key != "suite"})
        return cls(spec, Suite.from_dict(data["suite"], ("suite",)))

    def to_json(self) -> str:
        """Writes JSON in the form that `from_dict` reads."""
        whole = {**self.spec.to_dict(), "suite": self.suite.to_dict()}
        return json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def digest(self) -> str:
        """Returns SHA-256 (hex) of the JSON: two runs with the same one are the same run."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


SPEC_KEYS = (
    "models", "base", "seed", "dtype", "search", "classic", "evaluation", "export", "preserve_instruction",
    "cross_domain", "accept_licence_conflict", "controls", "constraints",
)  # fmt: skip
REQUEST_KEYS = (*SPEC_KEYS, "suite")
SEARCH_KEYS = tuple(SearchSpec.__dataclass_fields__)
BUDGET_KEYS = ("evaluations", "patience", "target", "hours")
"""Keys of `search` that say when it ends, and nothing else."""
SCORING_KEYS = ("models", "base", "dtype", "threads", "preserve_instruction", "cross_domain")
"""Attributes of a run spec from which a genome's model and its scores follow, beside the dtype of the scores."""
CLASSIC_KEYS = tuple(ClassicSpec.__dataclass_fields__)


def _search(own: Fields) -> SearchSpec:
    default = SearchSpec()
    strategy = own.word("strategy", STRATEGIES, default.strategy)
    search = SearchSpec(
        strategy=strategy,
        schedule=own.word("schedule", SCHEDULES, default.schedule),
        population=own.integer("population", default.population, low=2, high=10_000),
        in_flight=own.integer("in_flight", default.in_flight, low=1, high=1_000),
        evaluations=own.integer("evaluations", default.evaluations, low=1, high=1_000_000),
        elites=own.integer("elites", default.elites, high=1_000),
        tournament_size=own.integer("tournament_size", default.tournament_size, low=1, high=1_000),
        methods=_methods(own),
        layer_groups=own.integer("layer_groups", default.layer_groups, low=1, high=256),
        layer_granularity=own.integer("layer_granularity", default.layer_granularity, high=1_000),
        genes=own.words("genes", GENES, default.genes),
        breeding=own.word("breeding", BREEDING, default.breeding),
        patience=own.integer("patience", default.patience),
        min_delta=own.number("min_delta", default.min_delta, low=0.0),
        target=own.optional_number("target"),
        hours=own.optional_number("hours", low=0.0),
        warm_start=_warm_start(own),
        niche=own.number("niche", default.niche, low=0.0, high=1.0),
        racing=_racing(own, strategy),
    )
    if search.elites >= search.population:
        raise own.wrong(f"must be below the population ({search.population})", "elites")
    return search


def _methods(own: Fields) -> tuple[str, ...]:
    """The methods that the search draws from: any whose traits allow it."""
    named = own.data.get("methods")
    for index, name in enumerate(named if isinstance(named, list) else ()):
        traits = find_traits(name) if isinstance(name, str) else None
        if traits is not None and traits.refusal:
            raise SpecError(f"the search cannot draw {name!r}: {traits.refusal}", (*own.at("methods"), index))
    found = own.words("methods", searchable_methods(), DEFAULT_METHODS)
    if not found:
        raise own.wrong("must be a list of merge methods", "methods")
    return found


def _check_enough(search: SearchSpec, models: Sequence[str], path: Path) -> None:
    """Refuses a method that needs more models besides the base than the run has."""
    for index, name in enumerate(search.methods):
        least = traits_of(name).at_least
        if len(models) < least:
            raise SpecError(
                f"{name} needs at least {least} models besides the base, and the run has {len(models)}",
                (*path, "search", "methods", index),
            )


def _racing(search: Fields, strategy: str) -> RacingSpec:
    """`racing: true` (the defaults of `RacingSpec`), its keys, or `false`, which is the default."""
    value = search.data.get("racing", False)
    if value is False:
        return NO_RACE
    if STRATEGIES[strategy].several_objectives:
        raise search.wrong(f"a race compares one fitness, and {strategy} has several: leave it out", "racing")
    own = Fields.of({} if value is True else value, RacingSpec.__dataclass_fields__, search.at("racing"))
    default = RacingSpec()
    rungs = own.data.get("rungs", list(default.rungs))
    if not isinstance(rungs, list) or not all(
        isinstance(share, int | float) and not isinstance(share, bool) and low < share < 1
        for low, share in zip([0.0, *rungs], rungs, strict=False)
    ):
        raise own.wrong(f"must be a list of growing shares between 0 and 1, not {rungs!r}", "rungs")
    if not rungs:
        return NO_RACE
    return RacingSpec(
        rungs=tuple(float(share) for share in rungs),
        rank=own.integer("rank", default.rank, low=1, high=1_000),
        confidence=own.number("confidence", default.confidence, low=0.5, high=0.9999),
        early=own.number("early", default.early, low=0.0, high=1_000_000.0),
        early_confidence=own.number("early_confidence", default.early_confidence, low=0.5, high=0.9999),
        margin=own.number("margin", default.margin, low=0.0, high=10.0),
        unit=own.integer("unit", default.unit, low=1, high=1_000_000),
    )


def _warm_start(search: Fields) -> tuple[str, ...]:
    """`off`, which is the default (YAML reads the word as false), `auto`, or the runs by name."""
    value = search.data.get("warm_start", False)
    if value is False or value == "off":
        return ()
    if value == AUTO:
        return (AUTO,)
    return search.texts("warm_start", f"must be auto, off, or a list of earlier runs, ids or folders, not {value!r}")


def _classic(own: Fields) -> ClassicSpec:
    return ClassicSpec(
        ps_technique1=own.word("ps_technique1", PS_TECHNIQUES_1),
        ps_technique2=own.word("ps_technique2", PS_TECHNIQUES_2),
        dfs_technique=own.word("dfs_technique", DFS_TECHNIQUES),
        weight_mask_rate=own.number("weight_mask_rate", 0.0, low=0.0, high=0.99),
        use_weight_rescale=own.flag("use_weight_rescale", True),
        mask_strategy=own.word("mask_strategy", MASK_STRATEGIES, "random"),
    )


def _push_to(export: Fields) -> str:
    name = export.text("push_to")
    if name and not is_repository(name):
        raise export.wrong(f"must be a repository of the hub, org/name, not {name!r}", "push_to")
    return name


def _gguf_type(export: Fields) -> str:
    formats = export.words("formats", FORMATS, ("hf",))
    kind = export.word("gguf_type", TYPES)
    if "hf" not in formats:
        raise export.wrong(
            "must have hf among them: the folder is the champion, a GGUF file is made from it", "formats"
        )
    if kind and "gguf" not in formats:
        raise export.wrong("is of a GGUF file, which is not asked for: say `formats: [hf, gguf]` too", "gguf_type")
    return kind or "auto" if "gguf" in formats else ""
