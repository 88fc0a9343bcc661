"""Merge methods by name: a method is a typed function over one tensor's sources.

    @merge_method("nearer")
    def nearer(tensors: Sequence[Tensor], base: Tensor, *, weight: PerModel[float], clip: bool = True) -> Tensor:

Its signature is its schema. Positional parameters say what it works on:

    tensors     the inputs without the base, float32 (float64 where a source is), flat pieces of equal length
    base        the model that the others are changes of; leaving it out makes a method without a base
    block       a `Block`: where the piece lies in its tensor, the method's statistics, random words

Keyword-only parameters are the recipe's: `PerModel[T]` is given for each model, others once; without a default they
are required; a trailing underscore is not part of the name (`lambda_`). A method must not write into its inputs.

It is called for pieces in any order and on any thread, so it must be elementwise (with `cells=True` within a `CELL` of
elements: then no piece cuts one). What needs the whole tensor is either a fold, given as `statistics(view,
**parameters)`, which sees the tensor piece by piece beforehand (see `View`), or `whole=True`: then the only piece is
the whole tensor in its own shape.

A method that takes no `tensors` computes nothing: it says what the piece is, as a `Form` (`-> WeightedSum`), which
torch or the native kernels then make.

What is known of a method apart from its code stands in `evomerge_common.domain.methods`. Other packages register theirs
under the entry point group `evomerge.merge_methods`: each entry point is a function decorated like this (or a module
that holds some); it is loaded when the registry is first asked.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from evomerge_common.domain.methods import Traits, find_traits
from evomerge_common.errors import RecipeError, did_you_mean
from evomerge_merging.methods.view import Block

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge_merging.methods.forms import Form

T = TypeVar("T")
_PER_MODEL = "per model"
PerModel = Annotated[tuple[T, ...], _PER_MODEL]
"""One value for each of `tensors`. A default is written as a tuple of one: `(1.0,)`."""

Function = TypeVar("Function", bound="Callable[..., Tensor | Form]")
ENTRY_POINTS = "evomerge.merge_methods"
_NO_TRAITS = "its package declares no traits for the search (entry point group evomerge.methods)"
_BUILT_IN = (
    "elementwise",
    "slerp",
    "task_vectors",
    "spheres",
    "consensus",
    "pairs",
    "spectral",
    "masks",
    "calibrated",
)


@dataclass(frozen=True)
class Parameter:
    """One entry of a method's schema. `kind` is float, int, bool or str; `default` is None when required."""

    name: str
    kind: type
    per_model: bool
    required: bool
    default: Any = None


@dataclass(frozen=True)
class Method:
    """A registered merge method.

    Attributes:
        traits: what is known of it apart from its code.
        positional: what its function works on: some of tensors, base, block, in this order.
        statistics: called once a tensor with its `View` and the parameters; what it returns is `Block.statistics`.
        whole: whether the only piece is the whole tensor.
        cells: whether elements of a `CELL` depend on each other, so that pieces must begin and end where cells do.
        check: called with one tensor's parameters when planning; raises RecipeError if they cannot go together.

    """

    traits: Traits
    summary: str
    function: Callable[..., Any]
    positional: Sequence[str]
    parameters: Mapping[str, Parameter]
    statistics: Callable[..., Any] | None = None
    whole: bool = False
    cells: bool = False
    check: Callable[..., None] | None = None

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return self.traits.name

    @property
    def gives_form(self) -> bool:
        """Whether it says what a piece is (see `form`) instead of computing it."""
        return "tensors" not in self.positional

    def form(self, block: Block, parameters: Mapping[str, Any]) -> Form:
        """Says what a piece is; of methods that give forms alone. Parameters as in a call."""
        found: Form = self.function(*([block] if "block" in self.positional else []), **keywords(parameters))
        return found

    def __call__(
        self, tensors: Sequence[Tensor], base: Tensor | None, block: Block, parameters: Mapping[str, Any]
    ) -> Tensor:
        """Merges one piece; parameters by their recipe names, per-model ones as tuples."""
        if self.gives_form:
            return self.form(block, parameters).merged(tensors, base, block.start)
        given = {"tensors": tensors, "base": base, "block": block}
        merged: Tensor = self.function(*(given[name] for name in self.positional), **keywords(parameters))
        return merged


def keywords(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe names → Python names (`lambda` → `lambda_`)."""
    return {f"{name}_" if name == "lambda" else name: value for name, value in parameters.items()}


_METHODS: dict[str, Method] = {}


def merge_method(
    name: str,
    *,
    check: Callable[..., None] | None = None,
    statistics: Callable[..., Any] | None = None,
    whole: bool = False,
    cells: bool = False,
) -> Callable[[Function], Function]:
    """Registers a function under a name; see the module's text, and `Method` for the arguments.

    Raises:
        ValueError: see `add_method`; or the signature says nothing known.

    """

    def register(function: Function) -> Function:
        positional, parameters = _schema(function)
        add_method(
            name,
            function,
            positional=positional,
            parameters=parameters,
            summary=(inspect.getdoc(function) or "").partition("\n")[0],
            statistics=statistics,
            whole=whole,
            cells=cells,
            check=check,
        )
        return function

    return register


def add_method(
    name: str,
    function: Callable[..., Any],
    *,
    positional: Sequence[str],
    parameters: Iterable[Parameter],
    summary: str,
    statistics: Callable[..., Any] | None = None,
    whole: bool = False,
    cells: bool = False,
    check: Callable[..., None] | None = None,
) -> None:
    """Registers a function whose schema is given.

    Its traits are those that `evomerge_common.domain.methods` or a package's entry point has under that name. A method
    without any is for recipes alone: it takes any number of inputs, and a base if the function does.

    Raises:
        ValueError: the name is taken by another function; or the function has a base and the traits have none, or the
            other way round; or the traits say linear, and no parameter is weight or scale.

    """
    taken = _METHODS.get(name)
    if taken is not None and taken.function.__module__ != function.__module__:
        raise ValueError(f"two merge methods are named {name!r}: {taken.function.__module__} has one already")
    has_base = "base" in positional
    traits = find_traits(name) or Traits(name=name, base="derived" if has_base else "none", refusal=_NO_TRAITS)
    if "tensors" in positional and (traits.base == "none") == has_base:
        raise ValueError(f"the traits of {name!r} say base={traits.base!r}, and its function takes {positional}")
    schema = {parameter.name: parameter for parameter in parameters}
    if traits.linear and not {"weight", "scale"} & set(schema):
        raise ValueError(f"the traits of {name!r} say linear, and it has neither a weight nor a scale")
    _METHODS[name] = Method(traits, summary, function, positional, schema, statistics, whole, cells, check)


_POSITIONAL: tuple[list[str], ...] = (
    [],
    ["block"],
    ["tensors"],
    ["tensors", "base"],
    ["tensors", "block"],
    ["tensors", "base", "block"],
)


def _schema(function: Callable[..., Any]) -> tuple[list[str], list[Parameter]]:
    """What a function works on, and its parameters, from its signature."""
    items = list(inspect.signature(function).parameters.values())
    positional = [item.name for item in items if item.kind is not inspect.Parameter.KEYWORD_ONLY]
    parameters = []
    for item in items[len(positional) :]:
        # One at a time, since the others name tensors, and torch is not imported for a schema.
        alone = types.SimpleNamespace(__annotations__={"hint": item.annotation})
        hint = typing.get_type_hints(alone, function.__globals__, include_extras=True)["hint"]
        per_model = typing.get_origin(hint) is Annotated and _PER_MODEL in hint.__metadata__
        kind = typing.get_args(typing.get_args(hint)[0])[0] if per_model else hint
        if kind not in {float, int, bool, str}:
            raise ValueError(f"parameter {item.name!r} must be float, int, bool, str or PerModel of one, not {hint!r}")
        required = item.default is inspect.Parameter.empty
        default = None if required else item.default[0] if per_model else item.default
        recipe_name = item.name.removesuffix("_")
        parameters.append(Parameter(recipe_name, kind, per_model, required, default))
    if positional not in _POSITIONAL:
        raise ValueError(f"a merge method takes (tensors, [base], [block], *, parameters), not {positional}")
    return positional, parameters


@functools.cache
def _load() -> None:
    for module in _BUILT_IN:
        importlib.import_module(f"evomerge_merging.methods.{module}")
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()


def methods() -> Mapping[str, Method]:
    """Every merge method by name, those of other packages included."""
    _load()
    return dict(sorted(_METHODS.items()))


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        RecipeError: there is none; it names the nearest.

    """
    _load()
    found = _METHODS.get(name)
    if found is None:
        raise RecipeError(f"unknown merge method {name!r}; {did_you_mean(name, _METHODS)}", ("method",))
    return found
