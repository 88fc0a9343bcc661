"""What a user asks of a run: models, how to search, a suite. Every mistake names its key and the nearest valid word."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

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
from evomerge_common.domain.recipe import (
    CROSS_KEYS,
    DTYPES,
    CrossDomain,
    ModelReference,
    check_keys,
    cross_domain_to_dict,
    read_cross_domain,
)
from evomerge_common.domain.strategies import STRATEGIES
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import Path, RecipeError, SpecError, did_you_mean

SCHEDULES = ("steady", "generational")
BREEDING = ("blend", "classic")
FORMATS = ("hf", "gguf")
"""In which the champion is handed back."""


@dataclass(frozen=True)
class RacingSpec:
    """How a candidate is stopped early that has no chance.

    Attributes:
        rungs: shares of the items after which the question is put; none: every candidate gets all items.
        rank: the rival is the candidate of this rank among those with all items.
        confidence: a candidate is stopped when its chance to be ahead of the rival is below 1 − confidence.
        margin: a lead counts beyond so many standard errors of a comparison on all items.
        unit: items that one job scores at most, so that a job stays short.

    """

    rungs: tuple[float, ...] = (0.125, 0.25, 0.5)
    rank: int = 1
    confidence: float = 0.95
    margin: float = 0.5
    unit: int = 256


NO_RACE = RacingSpec(rungs=())


@dataclass(frozen=True)
class SearchSpec:
    """How candidates are proposed.

    Attributes:
        in_flight: candidates between proposal and result under `schedule: steady`. Part of the spec, not of the
            machine: it decides which results a proposal may read, so the same value gives the same run on any
            number of workers.
        evaluations: budget of scored candidates, sources included.
        patience: ends the search after so many candidates without an improvement of `min_delta`; 0 never does.
        layer_groups: groups of consecutive layers with parameters of their own.
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
    genes: tuple[str, ...] = ("boundaries", "nesting")
    breeding: str = "blend"
    patience: int = 0
    min_delta: float = 0.0
    target: float | None = None
    hours: float | None = None
    niche: float = 0.0
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
        export_dtype: in which the champion is written ("" = dtype).
        gguf_type: of the GGUF file in which the champion is handed back as well ("" = none).
        preserve_instruction: of every candidate's recipe; see `Recipe`.
        cross_domain: how models that are built otherwise than the base (or the first) are fitted to it; None: in full.

    """

    models: tuple[str, ...]
    base: str = ""
    seed: int = 0
    dtype: str = ""
    search: SearchSpec = field(default_factory=SearchSpec)
    classic: ClassicSpec = field(default_factory=ClassicSpec)
    threads: int = 2
    export_dtype: str = ""
    gguf_type: str = ""
    preserve_instruction: bool | None = None
    cross_domain: CrossDomain | None = None

    @property
    def target(self) -> str:
        """The model whose build all candidates have."""
        return self.base or self.models[0]

    @property
    def sources(self) -> tuple[str, ...]:
        """Every model that is fetched and scored: the models, then the base."""
        return self.models + ((self.base,) if self.base and self.base not in self.models else ())

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the form that `from_dict` reads."""
        search = {key: value for key, value in asdict(self.search).items() if value is not None}
        search |= {"methods": list(self.search.methods), "genes": list(self.search.genes)}
        if not search["niche"]:
            del search["niche"]  # off is not written: the log of a run without it is what it always was
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
            "evaluation": {"threads": self.threads},
            "export": {
                "dtype": self.export_dtype,
                **({"formats": list(FORMATS), "gguf_type": self.gguf_type} if self.gguf_type else {}),
            },
            **({} if self.preserve_instruction is None else {"preserve_instruction": self.preserve_instruction}),
            **({} if self.cross_domain is None else {"cross_domain": cross_domain_to_dict(self.cross_domain)}),
        }

    def to_json(self) -> str:
        """Canonical JSON: what the run's log begins with."""
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
        check_keys(data, SPEC_KEYS, path, SpecError)
        models = data.get("models")
        if not isinstance(models, list) or not all(isinstance(m, str) and m.strip() for m in models):
            raise SpecError("must be a list of models: hub ids or folders", (*path, "models"))
        if len(models) < 2:
            raise SpecError(f"merging needs at least two models, found {len(models)}", (*path, "models"))
        for index, model in enumerate(models):
            try:
                ModelReference.parse(model)
            except RecipeError as error:
                raise SpecError(error.problem, (*path, "models", index)) from error
            if model in models[:index]:
                raise SpecError(f"{model!r} is named twice", (*path, "models", index))
        search = _search(data, path)
        base = _text(data, "base", path)
        _check_enough(search, [model for model in models if model != base], path)
        evaluation = _section(data, "evaluation", ("threads",), path)
        export = _section(data, "export", ("dtype", "formats", "gguf_type"), path)
        return cls(
            models=tuple(models),
            base=base,
            seed=_integer(data, "seed", 0, path, low=0),
            dtype=_word(data, "dtype", "", ("", *DTYPES), path),
            search=search,
            classic=_classic(data, path),
            threads=_integer(evaluation, "threads", 2, (*path, "evaluation"), low=1, high=1024),
            export_dtype=_word(export, "dtype", "", ("", *DTYPES), (*path, "export")),
            gguf_type=_gguf_type(export, (*path, "export")),
            preserve_instruction=_yes_or_no(data, "preserve_instruction", path),
            cross_domain=None
            if data.get("cross_domain") is None
            else read_cross_domain(data["cross_domain"], (*path, "cross_domain"), SpecError, keys=CROSS_KEYS),
        )


@dataclass(frozen=True)
class RunRequest:
    """What StartRun is given: a spec, and the suite that its candidates are scored on."""

    spec: RunSpec
    suite: Suite

    @classmethod
    def from_dict(cls, data: Any) -> RunRequest:
        """Reads a spec whose `suite` carries its items; the spec first, which takes no time.

        Raises:
            SpecError: see `RunSpec.from_dict`; there is no suite.
            SuiteError: the suite cannot score.

        """
        check_keys(data, REQUEST_KEYS, (), SpecError)
        if "suite" not in data:
            raise SpecError("a run needs a suite: tasks to score candidates on", ("suite",))
        spec = RunSpec.from_dict({key: value for key, value in data.items() if key != "suite"})
        return cls(spec, Suite.from_dict(data["suite"], ("suite",)))

    def to_json(self) -> str:
        """JSON in the form that `from_dict` reads."""
        whole = {**self.spec.to_dict(), "suite": self.suite.to_dict()}
        return json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


SPEC_KEYS = (
    "models", "base", "seed", "dtype", "search", "classic", "evaluation", "export", "preserve_instruction",
    "cross_domain",
)  # fmt: skip
REQUEST_KEYS = (*SPEC_KEYS, "suite")
SEARCH_KEYS = tuple(SearchSpec.__dataclass_fields__)
CLASSIC_KEYS = tuple(ClassicSpec.__dataclass_fields__)


def _search(data: Mapping[str, Any], path: Path) -> SearchSpec:
    part = _section(data, "search", SEARCH_KEYS, path)
    path = (*path, "search")
    default = SearchSpec()
    strategy = _word(part, "strategy", default.strategy, tuple(STRATEGIES), path)
    search = SearchSpec(
        strategy=strategy,
        schedule=_word(part, "schedule", default.schedule, SCHEDULES, path),
        population=_integer(part, "population", default.population, path, low=2, high=10_000),
        in_flight=_integer(part, "in_flight", default.in_flight, path, low=1, high=1_000),
        evaluations=_integer(part, "evaluations", default.evaluations, path, low=1, high=1_000_000),
        elites=_integer(part, "elites", default.elites, path, low=0, high=1_000),
        tournament_size=_integer(part, "tournament_size", default.tournament_size, path, low=1, high=1_000),
        methods=_methods(part, path),
        layer_groups=_integer(part, "layer_groups", default.layer_groups, path, low=1, high=256),
        genes=_words(part, "genes", default.genes, GENES, path),
        breeding=_word(part, "breeding", default.breeding, BREEDING, path),
        patience=_integer(part, "patience", default.patience, path, low=0),
        min_delta=_number(part, "min_delta", default.min_delta, path, low=0.0),
        target=_optional(part, "target", path),
        hours=_optional(part, "hours", path, low=0.0),
        niche=_number(part, "niche", default.niche, path, high=1.0),
        racing=_racing(part, strategy, path),
    )
    if search.elites >= search.population:
        raise SpecError(f"must be below the population ({search.population})", (*path, "elites"))
    return search


def _methods(data: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The methods that the search draws from: any whose traits allow it."""
    for index, name in enumerate(data.get("methods") or ()):
        traits = find_traits(name) if isinstance(name, str) else None
        if traits is not None and traits.refusal:
            raise SpecError(f"the search cannot draw {name!r}: {traits.refusal}", (*path, "methods", index))
    found = _words(data, "methods", DEFAULT_METHODS, searchable_methods(), path)
    if not found:
        raise SpecError("must be a list of merge methods", (*path, "methods"))
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


def _racing(data: Mapping[str, Any], strategy: str, path: Path) -> RacingSpec:
    """`racing: true` (the defaults of `RacingSpec`), its keys, or `false`, which is the default."""
    value = data.get("racing", False)
    if value is False:
        return NO_RACE
    if STRATEGIES[strategy].several_objectives:
        raise SpecError(f"a race compares one fitness, and {strategy} has several: leave it out", (*path, "racing"))
    part = {} if value is True else value
    path = (*path, "racing")
    check_keys(part, tuple(RacingSpec.__dataclass_fields__), path, SpecError)
    default = RacingSpec()
    rungs = part.get("rungs", list(default.rungs))
    if not isinstance(rungs, list) or not all(
        isinstance(share, int | float) and not isinstance(share, bool) and low < share < 1
        for low, share in zip([0.0, *rungs], rungs, strict=False)
    ):
        raise SpecError(f"must be a list of growing shares between 0 and 1, not {rungs!r}", (*path, "rungs"))
    if not rungs:
        return NO_RACE
    return RacingSpec(
        rungs=tuple(float(share) for share in rungs),
        rank=_integer(part, "rank", default.rank, path, low=1, high=1_000),
        confidence=_number(part, "confidence", default.confidence, path, low=0.5, high=0.9999),
        margin=_number(part, "margin", default.margin, path, low=0.0, high=10.0),
        unit=_integer(part, "unit", default.unit, path, low=1, high=1_000_000),
    )


def _classic(data: Mapping[str, Any], path: Path) -> ClassicSpec:
    part = _section(data, "classic", CLASSIC_KEYS, path)
    path = (*path, "classic")
    rescale = part.get("use_weight_rescale", True)
    if not isinstance(rescale, bool):
        raise SpecError(f"must be true or false, not {rescale!r}", (*path, "use_weight_rescale"))
    return ClassicSpec(
        ps_technique1=_word(part, "ps_technique1", "", ("", *PS_TECHNIQUES_1), path),
        ps_technique2=_word(part, "ps_technique2", "", ("", *PS_TECHNIQUES_2), path),
        dfs_technique=_word(part, "dfs_technique", "", ("", *DFS_TECHNIQUES), path),
        weight_mask_rate=_number(part, "weight_mask_rate", 0.0, path, low=0.0, high=0.99),
        use_weight_rescale=rescale,
        mask_strategy=_word(part, "mask_strategy", "random", MASK_STRATEGIES, path),
    )


def _gguf_type(export: Mapping[str, Any], path: Path) -> str:
    formats = _words(export, "formats", ("hf",), FORMATS, path)
    kind = _word(export, "gguf_type", "", ("", *TYPES), path)
    if "hf" not in formats:
        raise SpecError(
            "must have hf among them: the folder is the champion, a GGUF file is made from it", (*path, "formats")
        )
    if kind and "gguf" not in formats:
        raise SpecError(
            "is of a GGUF file, which is not asked for: say `formats: [hf, gguf]` too", (*path, "gguf_type")
        )
    return kind or "auto" if "gguf" in formats else ""


def _section(data: Mapping[str, Any], key: str, allowed: tuple[str, ...], path: Path) -> Mapping[str, Any]:
    part: Mapping[str, Any] = data.get(key) or {}
    check_keys(part, allowed, (*path, key), SpecError)
    return part


def _word(data: Mapping[str, Any], key: str, default: str, valid: tuple[str, ...], path: Path) -> str:
    value = data.get(key, default)
    if value is None:
        value = ""
    if value not in valid:
        raise SpecError(f"unknown word {value!r}; {did_you_mean(str(value), [v for v in valid if v])}", (*path, key))
    return str(value)


def _words(
    data: Mapping[str, Any], key: str, default: tuple[str, ...], valid: tuple[str, ...], path: Path
) -> tuple[str, ...]:
    values = data.get(key, list(default))
    if not isinstance(values, list):
        raise SpecError(f"must be a list of words: {', '.join(valid)}", (*path, key))
    for index, value in enumerate(values):
        if value not in valid:
            raise SpecError(f"unknown word {value!r}; {did_you_mean(str(value), valid)}", (*path, key, index))
    return tuple(dict.fromkeys(values))


def _yes_or_no(data: Mapping[str, Any], key: str, path: Path) -> bool | None:
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise SpecError(f"must be true or false, not {value!r}", (*path, key))
    return value


def _text(data: Mapping[str, Any], key: str, path: Path) -> str:
    value = data.get(key) or ""
    if not isinstance(value, str):
        raise SpecError(f"must be text, not {value!r}", (*path, key))
    return value


def _integer(data: Mapping[str, Any], key: str, default: int, path: Path, *, low: int = 0, high: int = 2**53) -> int:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SpecError(
            f"must be a whole number {f'from {low} to {high}' if high < 2**53 else f'of {low} or more'}, not {value!r}",
            (*path, key),
        )
    return value


def _number(
    data: Mapping[str, Any], key: str, default: float, path: Path, *, low: float = 0.0, high: float = 1e18
) -> float:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SpecError(
            f"must be a number {f'from {low:g} to {high:g}' if high < 1e18 else f'of at least {low:g}'}, not {value!r}",
            (*path, key),
        )
    return float(value)


def _optional(data: Mapping[str, Any], key: str, path: Path, *, low: float = -1e18) -> float | None:
    return None if data.get(key) is None else _number(data, key, 0.0, path, low=low)
