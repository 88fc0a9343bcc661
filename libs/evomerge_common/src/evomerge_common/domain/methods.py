"""What is known of each merge method apart from its code: one table, from which every list of methods follows.

The search reads it to draw genomes and to write recipes; the engine reads it beside the method's function. Neither
torch nor a model file is needed for it. A package's own method is drawn by the search once the package names its
`Traits` under the entry point group `evomerge.methods`, in a module that imports without torch:

    [project.entry-points."evomerge.methods"]
    halfway = "my_package.traits:HALFWAY"          # HALFWAY = Traits(name="halfway", weights="sum")
    [project.entry-points."evomerge.merge_methods"]
    halfway = "my_package.method:halfway"          # @merge_method("halfway") def halfway(tensors, base, *, weight): …

The package must be installed where the spec is read (the command), where the search runs (the selector) and where
models are merged (merger, evaluator).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from evomerge_common.errors import RecipeError, SpecError, did_you_mean

ENTRY_POINTS = "evomerge.methods"


@dataclass(frozen=True, kw_only=True)
class Density:
    """The gene that says which share of something a method keeps.

    Attributes:
        parameter: the method's parameter that it becomes.
        low, high: least and largest share that the method takes.
        default: the share that a genome gets that comes from a method without this gene.

    """

    parameter: str = "density"
    low: float = 0.0
    high: float = 1.0
    default: float = 0.7

    def clip(self, share: float) -> float:
        """Returns the nearest share that the method takes."""
        return min(self.high, max(self.low, share))


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What is known of a merge method apart from its code.

    Attributes:
        name: the word for it in recipes and in `search.methods`.
        base: whether it needs one: "none", or what stands in for a base that the recipe does not name: "first" (the
            first input), "derived" (the inputs' common ancestor, else their average), "optional" (nothing).
        inputs: how many inputs besides the base it takes, None for any number of at least `at_least`.
        space: what the search varies: "weights" of the models, or the "path" through their layers.
        weights: how the weights act: "sum" (changes of the base are weighed and added up), "mean" (only each weight's
            share of their sum counts), "" (the method reads none).
        share: of a method of two models, the parameter that is the second one's share; "": both have a `weight`.
        density: the gene for the share that it keeps, None where it has none.
        random: whether it draws random masks, so that the recipe's seed matters.
        scales: what its parameter `scale` multiplies: a "tensor", the hidden state at a "hop", or "" (it has none).
        settings: parameters that every recipe of the search sets.
        normalizes: whether the weights are divided by their sum where a recipe does not say.
        linear: whether each tensor is a weighted sum of the inputs': of `weight` (divided by their sum with
            `normalize`, times `lambda`) or `scale`, and of what is left of one times the base. Chains of such merges
            are one sum, and such merges of adapters are adapters.
        idempotent: whether a merge of a tensor with itself is that tensor (of a linear method: where the factors add
            up to one).
        mergekit: mergekit's name for it, "" where it has none.
        default: whether the search draws it when a spec names no methods.
        refusal: why the search cannot draw it; "" where it can.

    """

    name: str
    base: Literal["none", "first", "derived", "optional"] = "derived"
    inputs: int | None = None
    at_least: int = 1
    space: Literal["weights", "path"] = "weights"
    weights: Literal["", "sum", "mean"] = ""
    share: str = ""
    density: Density | None = None
    random: bool = False
    scales: Literal["", "tensor", "hop"] = ""
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    normalizes: bool = False
    linear: bool = False
    idempotent: bool = False
    mergekit: str = ""
    default: bool = False
    refusal: str = ""

    @property
    def is_path(self) -> bool:
        """Tells whether the search varies a path through layers."""
        return self.space == "path"

    @property
    def is_mean(self) -> bool:
        """Tells whether only the weights' shares count."""
        return self.weights == "mean"

    @property
    def is_sum(self) -> bool:
        """Tells whether weighted changes of the base are added up."""
        return self.weights == "sum"

    @property
    def is_pairwise(self) -> bool:
        """Tells whether it takes exactly two models, so that more are folded in one by one."""
        return not self.is_path and self.inputs is not None


def _task_vectors(name: str, **traits: Any) -> Traits:
    """A method that adds up what models changed of their base, thinned out by `density`."""
    return Traits(
        name=name,
        **{
            "weights": "sum",
            "density": Density(),
            "settings": MappingProxyType({"normalize": False}),
            "idempotent": True,
            "mergekit": name,
            **traits,
        },
    )


def _layers(name: str, **traits: Any) -> Traits:
    """A method that takes each layer from one model."""
    return Traits(name=name, base="none", inputs=1, space="path", mergekit="passthrough", **traits)


def _one_into_another(name: str, mergekit: str = "") -> Traits:
    reason = "it brings one model into another, in that order: give it in a recipe"
    return Traits(name=name, base="first", inputs=1, mergekit=mergekit, refusal=reason)


_DELLA = Density(low=0.2, high=0.8)
"""density ± epsilon (0.15 unless a recipe says otherwise) has to stay between 0 and 1."""
_CALIBRATED = "it needs statistics of calibration texts for each model: give it in a recipe"
_MASK = "it masks one model: name masks among search.genes, and the search masks what it merges"

_CONTROL = "it destroys what one model learned: `controls: true` scores such candidates beside the search"

_TABLE = (
    Traits(
        name="linear",
        base="none",
        weights="mean",
        settings=MappingProxyType({"normalize": True}),
        normalizes=True,
        linear=True,
        idempotent=True,
        mergekit="linear",
        default=True,
    ),
    Traits(
        name="slerp",
        base="first",
        inputs=1,
        weights="mean",
        share="t",
        idempotent=True,
        mergekit="slerp",
        default=True,
    ),
    _task_vectors("task_arithmetic", density=None, linear=True, default=True),
    _task_vectors("ties", normalizes=True, default=True),
    _task_vectors("dare_linear", random=True, default=True),
    _task_vectors("dare_ties", random=True, default=True),
    _layers("frankenmerge", scales="tensor", default=True),
    _layers("dfs", scales="hop", default=True),
    _task_vectors("breadcrumbs"),
    _task_vectors("breadcrumbs_ties"),
    _task_vectors("della", normalizes=True, random=True, density=_DELLA),
    _task_vectors("della_linear", random=True, density=_DELLA),
    Traits(name="nuslerp", base="optional", inputs=2, weights="mean", mergekit="nuslerp"),
    Traits(name="multislerp", base="optional", weights="mean", mergekit="multislerp"),
    Traits(name="karcher", base="none", mergekit="karcher"),
    Traits(name="sce", density=Density(parameter="select_topk"), mergekit="sce"),
    Traits(name="model_stock", at_least=2, mergekit="model_stock"),
    Traits(name="ram", mergekit="ram"),
    Traits(name="ramplus_tl", mergekit="ramplus_tl"),
    Traits(name="iso_c", weights="sum"),
    Traits(name="tsv", weights="sum"),
    _one_into_another("nearswap", "nearswap"),
    _one_into_another("arcee_fusion", "arcee_fusion"),
    _one_into_another("expo"),
    Traits(name="fisher", base="none", weights="mean", refusal=_CALIBRATED),
    Traits(name="regmean", base="none", weights="mean", refusal=_CALIBRATED),
    _layers(
        "passthrough",
        scales="tensor",
        linear=True,
        idempotent=True,
        refusal="frankenmerge is its name in the search",
    ),
    Traits(name="mask_delta", inputs=1, random=True, refusal=_MASK),
    Traits(name="mask_weights", base="none", inputs=1, random=True, refusal=_MASK),
    Traits(name="noise", base="none", inputs=1, random=True, refusal="it adds noise to one model"),
    Traits(name="permute_delta", inputs=1, random=True, idempotent=True, refusal=_CONTROL),
    Traits(name="noise_delta", inputs=1, random=True, idempotent=True, refusal=_CONTROL),
)
BUILT_IN: Mapping[str, Traits] = MappingProxyType({traits.name: traits for traits in _TABLE})
"""The methods of `evomerge_merging` by name, those first that the search draws unless told otherwise."""
DEFAULT_METHODS = tuple(traits.name for traits in _TABLE if traits.default)
"""What the search draws from when a spec names no methods."""

_CHANGES = "What each source changed of {base} is weighed"
METHOD_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "linear": "A weighted mean of its sources, tensor by tensor.",
        "slerp": "A turn from one source towards the other on a sphere (SLERP), tensor by tensor.",
        "nuslerp": "A turn between two sources on a sphere (NuSLERP), tensor by tensor.",
        "multislerp": "A mean of its sources on a sphere, tensor by tensor.",
        "karcher": "A mean of its sources on a sphere (Karcher's), all alike.",
        "task_arithmetic": f"{_CHANGES} and added to it.",
        "ties": f"{_CHANGES}; the largest are kept, and where signs differ the stronger side counts (TIES).",
        "dare_linear": f"{_CHANGES}; a random part is kept, scaled up and added (DARE).",
        "dare_ties": f"{_CHANGES}; a random part is kept and scaled up, and of unlike signs the stronger side counts.",
        "breadcrumbs": f"{_CHANGES}; neither the smallest nor the largest are added (Model Breadcrumbs).",
        "breadcrumbs_ties": f"{_CHANGES}; neither the smallest nor the largest count, nor the weaker side of signs.",
        "della": f"{_CHANGES}; small ones are dropped rather than large, and the weaker side of signs (DELLA).",
        "della_linear": f"{_CHANGES}; small ones are dropped at random rather than large, the rest is added.",
        "sce": "Of what sources changed of {base} what varies most is added, weighed by the changes themselves.",
        "model_stock": "Between {base} and the mean of its sources, by the angles between them (Model Stock).",
        "ram": "Changes of {base} that one source alone made are kept, shared ones averaged.",
        "ramplus_tl": "Changes of {base} that one source alone made are kept and scaled up, shared ones averaged.",
        "iso_c": "What sources changed of {base} is added up, all its directions made equally strong (Iso-C).",
        "tsv": "The main directions of what each source changed of {base}, set at right angles and added up (TSV).",
        "frankenmerge": "A stack of layers, each taken from one source as it is.",
        "passthrough": "A source as it is, or a stack of layers of sources.",
        "dfs": "A path through the layers of its sources, the hidden state scaled where it goes from one to another.",
        "mask_delta": "A part of what one source changed of {base} is dropped at random.",
        "permute_delta": "A null candidate: a source's changes of {base} in disorder.",
        "noise_delta": "A null candidate: noise of the size of a source's changes of {base}.",
    }
)
"""Of each method that the search draws or wraps what it does: a sentence for people, which may name the {base}."""

MASK_STRATEGIES = ("random", "magnitude")
"""How a mask chooses what it drops: each element with the same probability, or the smallest magnitudes first."""

# ---- the classic command line ----

PS_TECHNIQUES_1 = {"linear": "linear", "slerp": "slerp"}
PS_TECHNIQUES_2 = {"ties": "ties", "dare": "dare_ties"}
DFS_TECHNIQUES = {"frankenmerge": "frankenmerge", "dfs": "dfs"}
"""Each technique's methods by the words of the classic flags."""


# ---- methods of other packages ----


def find_traits(name: str) -> Traits | None:
    """Finds the traits of that name, of this table or an installed package; None where nobody declares any.

    Raises:
        SpecError: a package's entry point cannot be used.

    """
    return BUILT_IN.get(name) or _of_packages().get(name)


def traits_of(name: str) -> Traits:
    """Finds the traits of that name.

    Raises:
        RecipeError: nobody declares any.
        SpecError: a package's entry point cannot be used.

    """
    found = find_traits(name)
    if found is None:
        raise RecipeError(f"unknown merge method {name!r}; {did_you_mean(name, searchable_methods())}", ("method",))
    return found


def searchable_methods() -> tuple[str, ...]:
    """Returns every method that the search can draw, those of installed packages included."""
    return tuple(one.name for one in (*_TABLE, *_of_packages().values()) if not one.refusal)


@functools.cache
def _of_packages() -> Mapping[str, Traits]:
    from importlib.metadata import entry_points  # a fifth of the time to the help of a command

    found: dict[str, Traits] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            traits = entry.load()
        except (ImportError, AttributeError) as error:
            raise SpecError(
                f"the merge method {entry.name!r} cannot be used: {entry.value} does not load ({error}); "
                "its traits must stand in a module that imports without torch"
            ) from error
        if not isinstance(traits, Traits) or traits.name != entry.name:
            raise SpecError(f"the entry point {entry.name!r} must name Traits(name={entry.name!r}), not {traits!r}")
        if entry.name in BUILT_IN or found.get(entry.name, traits) != traits:
            raise SpecError(f"two merge methods are named {entry.name!r}: rename the one of {entry.value}")
        found[entry.name] = traits
    return found
