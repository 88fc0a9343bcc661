"""A model is its recipe: an immutable expression over source models.

A `Recipe` names a merge method, the slices of layers that it puts together, and for each slice its inputs: source
models or further recipes. `models:` of mergekit is one slice without layer ranges. The digest of the canonical JSON
is the identity of the merged model, so sources count by content digest, never by where a user found them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from evomerge_common.domain.cross_domain import CrossDomain, cross_domain_to_dict, read_cross_domain
from evomerge_common.domain.fields import Fields
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import RecipeError

Parameters = Mapping[str, Any]
"""Parameter name → number, bool, word, gradient (list of numbers over depth), or list of {filter, value}."""

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Input:
    """One model's part in a slice; `layer_range` is half open, None means all layers."""

    model: ModelReference | Recipe
    layer_range: tuple[int, int] | None = None
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of the output, made from as many layers of each input."""

    inputs: tuple[Input, ...]
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How to make one model: an immutable expression over source models.

    Attributes:
        method: name of a merge method, such as "ties".
        slices: bottom to top; a single slice without layer ranges is a merge of whole models.
        base: the model that task vectors are taken against.
        parameters: defaults for all slices; a slice's and an input's own go first.
        dtype: in which the merge is computed ("" = the first source's).
        out_dtype: in which it is written ("" = dtype).
        tokenizer: "" (the base's or the first model's), "base", "union", or a model.
        tokens: by token, where its embedding comes from: {"source": model, "token" or "token_id" if it is another's},
            {"zero": true}, and "force" to replace rows that are there.
        preserve_instruction: whether the chat template, the special tokens and their embeddings of an instruction-tuned
            source stay as they are; None: where no tokenizer is asked for.
        pad_to_multiple_of: rows of the embedding are rounded up to a multiple of it (0: not).
        seed: of random masks.
        cross_domain: how sources of another build are fitted in; None: in full, to the base or the first source.
        notes: what the text that it was read from says without effect, for people; no part of what it is.

    """

    method: str
    slices: tuple[Slice, ...]
    base: ModelReference | Recipe | None = None
    parameters: Parameters = field(default_factory=dict)
    dtype: str = ""
    out_dtype: str = ""
    tokenizer: str = ""
    chat_template: str = ""
    seed: int = 0
    tokens: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pad_to_multiple_of: int = 0
    preserve_instruction: bool | None = None
    cross_domain: CrossDomain | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of_source(cls, source: ModelReference, *, dtype: str = "") -> Recipe:
        """Makes the recipe that is just a source model."""
        return cls("passthrough", (Slice((Input(source),)),), dtype=dtype)

    @classmethod
    def of_models(
        cls,
        method: str,
        models: Mapping[Any, Parameters] | Sequence[tuple[ModelReference | Recipe, Parameters]],
        *,
        base: ModelReference | Recipe | None = None,
        parameters: Parameters | None = None,
        dtype: str = "",
        seed: int = 0,
    ) -> Recipe:
        """Makes a merge of whole models."""
        pairs = list(models.items()) if isinstance(models, Mapping) else list(models)
        inputs = tuple(Input(model, None, own) for model, own in pairs)
        return cls(method, (Slice(inputs),), base, parameters or {}, dtype=dtype, seed=seed)

    # ---- the expression ----

    def inputs(self) -> Iterator[ModelReference | Recipe]:
        """Yields the direct inputs, base first, repeats included."""
        if self.base is not None:
            yield self.base
        for part in self.slices:
            for item in part.inputs:
                yield item.model

    def sources(self) -> list[ModelReference]:
        """Returns every source model of the whole expression, each once, in order of first appearance."""
        found: dict[str, ModelReference] = {}
        for item in self.inputs():
            for source in item.sources() if isinstance(item, Recipe) else (item,):
                found.setdefault(source.key, source)
        if self.cross_domain is not None and self.cross_domain.target is not None:
            found.setdefault(self.cross_domain.target.key, self.cross_domain.target)
        return list(found.values())

    def with_digests(self, digests: Mapping[str, str]) -> Recipe:
        """Returns the same recipe with each source's content digest, looked up by its text.

        Raises:
            RecipeError: a source without a digest.

        """

        def named(model: ModelReference) -> ModelReference:
            if model.digest:
                return model
            if str(model) not in digests:
                raise RecipeError(f"no digest is known for {model}")
            return replace(model, digest=digests[str(model)])

        return self.with_sources(named)

    def with_sources(self, change: Callable[[ModelReference], ModelReference]) -> Recipe:
        """Returns the same recipe with every source model, of the whole expression, as `change` returns it."""

        def changed(model: ModelReference | Recipe) -> ModelReference | Recipe:
            return model.with_sources(change) if isinstance(model, Recipe) else change(model)

        slices = tuple(
            replace(part, inputs=tuple(replace(item, model=changed(item.model)) for item in part.inputs))
            for part in self.slices
        )
        fitted = self.cross_domain
        if fitted is not None and fitted.target is not None:
            fitted = replace(fitted, target=change(fitted.target))
        base = None if self.base is None else changed(self.base)
        return replace(self, slices=slices, base=base, cross_domain=fitted)

    # ---- JSON ----

    def to_dict(self, *, names: bool = True) -> dict[str, Any]:
        """Writes plain data; without `names`, resolved sources appear by digest alone (the canonical form)."""

        def model(item: ModelReference | Recipe) -> dict[str, Any]:
            if isinstance(item, Recipe):
                return {"recipe": item.to_dict(names=names)}
            if item.digest and not names:
                return {"digest": item.digest}
            return {"source": str(item), **({"digest": item.digest} if item.digest else {})}

        def one(item: Input) -> dict[str, Any]:
            return _present(
                model=model(item.model),
                layer_range=list(item.layer_range) if item.layer_range else None,
                parameters=dict(item.parameters),
            )

        def fitted(one: CrossDomain) -> dict[str, Any]:
            return {**cross_domain_to_dict(one), **({} if one.target is None else {"target": model(one.target)})}

        digests = {} if names else {w: s.digest for s in self.sources() if s.digest for w in (str(s), s.name)}

        def of_token(own: Mapping[str, Any]) -> dict[str, Any]:
            return {**own, **({"source": digests.get(own["source"], own["source"])} if "source" in own else {})}

        # Apart from the rest, since no is a decision and not the absence of one.
        decision = {} if self.preserve_instruction is None else {"preserve_instruction": self.preserve_instruction}
        return decision | _present(
            method=self.method,
            slices=[
                _present(inputs=[one(item) for item in part.inputs], parameters=dict(part.parameters))
                for part in self.slices
            ],
            base=None if self.base is None else model(self.base),
            parameters=dict(self.parameters),
            dtype=self.dtype,
            out_dtype=self.out_dtype,
            tokenizer=digests.get(self.tokenizer, self.tokenizer),
            chat_template=self.chat_template,
            seed=self.seed,
            tokens={token: of_token(own) for token, own in self.tokens.items()},
            pad_to_multiple_of=self.pad_to_multiple_of,
            cross_domain=None if self.cross_domain is None else fitted(self.cross_domain),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Reads what `to_dict` wrote.

        Raises:
            RecipeError: it is not a recipe.

        """

        def model(item: Mapping[str, Any]) -> ModelReference | Recipe:
            if "recipe" in item:
                return cls.from_dict(item["recipe"])
            digest = Fields(item, (), RecipeError).text("digest")
            if "source" not in item:
                return ModelReference(digest, digest=digest)
            return replace(ModelReference.parse(item["source"]), digest=digest)

        def one(item: Mapping[str, Any]) -> Input:
            span = item.get("layer_range")
            return Input(
                model(item["model"]), (int(span[0]), int(span[1])) if span else None, normal(item.get("parameters", {}))
            )

        def fitted(one: Mapping[str, Any]) -> CrossDomain:
            settings = {key: value for key, value in one.items() if key != "target"}
            target = model(one["target"]) if "target" in one else None
            if isinstance(target, Recipe):
                raise RecipeError("the target of cross_domain must be a source model", ("cross_domain", "target"))
            return replace(read_cross_domain(settings, ("cross_domain",)), target=target)

        own = Fields(data, (), RecipeError)
        try:
            return cls(
                method=own.text("method"),
                slices=tuple(
                    Slice(tuple(one(item) for item in part["inputs"]), normal(part.get("parameters", {})))
                    for part in data["slices"]
                ),
                base=model(data["base"]) if data.get("base") else None,
                parameters=normal(data.get("parameters", {})),
                dtype=own.text("dtype"),
                out_dtype=own.text("out_dtype"),
                tokenizer=own.text("tokenizer"),
                chat_template=own.text("chat_template"),
                seed=int(data.get("seed", 0)),
                tokens={str(token): dict(own) for token, own in data.get("tokens", {}).items()},
                pad_to_multiple_of=int(data.get("pad_to_multiple_of", 0)),
                preserve_instruction=own.optional_flag("preserve_instruction"),
                cross_domain=fitted(data["cross_domain"]) if data.get("cross_domain") else None,
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise RecipeError(f"not a recipe: {error!r}") from error

    def to_json(self) -> str:
        """Writes JSON with names and digests: what travels and lies beside the weights."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Reads what `to_json` wrote.

        Raises:
            RecipeError: it is not a recipe.

        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"not a recipe: {error}") from error
        return cls.from_dict(data)

    @property
    def public(self) -> Recipe:
        """Returns the recipe as others may read it: a source's folder is called by its own name."""
        return Recipe.from_dict(public_names(self.to_dict()))

    @cached_property
    def digest(self) -> str:
        """Returns SHA-256 (hex) of the canonical JSON: the identity of the merged model."""
        canonical = json.dumps(self.to_dict(names=False), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.digest)


def public_names(data: Any) -> Any:
    """Returns plain data of a recipe (`Recipe.to_dict`) in which a source's folder is called by its own name."""
    if isinstance(data, list):
        return [public_names(item) for item in data]
    if not isinstance(data, Mapping):
        return data
    return {
        key: str(ModelReference.parse(value).public)
        if key in {"source", "tokenizer"} and isinstance(value, str) and value
        else public_names(value)
        for key, value in data.items()
    }


def _present(**fields: Any) -> dict[str, Any]:
    """Without what is empty, so that a default never changes a digest."""
    return {key: value for key, value in fields.items() if value not in (None, "", 0, {}, [])}


def normal(value: Any, path: tuple[str | int, ...] = ()) -> Any:
    """Puts parameter values in one form: every number a finite float, so that 1 and 1.0 are the same recipe.

    Raises:
        RecipeError: NaN, infinity, or a value that no parameter can have.

    """
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise RecipeError(f"{value} is not a finite number", path)
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): normal(item, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [normal(item, (*path, index)) for index, item in enumerate(value)]
    raise RecipeError(f"{value!r} is no number, word or list", path)
