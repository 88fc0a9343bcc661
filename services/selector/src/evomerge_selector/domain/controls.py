"""The controls of a run that has ended: null candidates made of its champion and sources (see `domain.controls`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from evomerge_common.domain.controls import NOISED, PERMUTED, UNIFORM
from evomerge_common.domain.messages import CandidateProposed, Control
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import RunSpec
from evomerge_selector.domain.proposer import with_rules


def controls(
    spec: RunSpec, space: SearchSpace, champion: CandidateProposed, source: CandidateProposed
) -> Iterator[Control]:
    """Makes the controls that the spec asks for.

    Where the champion is what a task vector would be taken against, or has another depth, the change of another model
    stands in for its change.

    Args:
        spec: of the run.
        space: of the run; whose models the sources are.
        champion: of the ended search.
        source: the one with the highest search fitness.

    """
    average = with_rules(space.recipe(space.uniform("linear", weight=1.0)), spec)
    base = space.base or _plain(average)
    best = _model(source)
    found = _model(champion)
    if isinstance(found, Recipe) and _depth(found, space) != space.num_layers:
        found = best
    plain = _plain(average)
    permuted = Recipe.of_models("permute_delta", [(_first_other(base, (found, best, plain)), {})], base=base)
    noised = Recipe.of_models("noise_delta", [(_first_other(best, (found, base, plain)), {})], base=best)
    for kind, recipe, count in (
        (PERMUTED, permuted, spec.controls.permuted),
        (NOISED, noised, spec.controls.noised),
    ):
        for seed in range(1, count + 1):
            one = replace(recipe, dtype=space.dtype, seed=seed, cross_domain=space.cross_domain)
            yield _control(kind, with_rules(one, spec))
    if spec.controls.uniform:
        yield _control(UNIFORM, average)


def _control(kind: str, recipe: Recipe) -> Control:
    return Control(kind=kind, recipe_digest=recipe.digest, recipe_json=recipe.to_json())


def _plain(recipe: Recipe) -> Recipe:
    """The recipe as a part of another one, which says how builds and instructions are dealt with."""
    return replace(recipe, cross_domain=None, preserve_instruction=None)


def _model(candidate: CandidateProposed) -> ModelReference | Recipe:
    recipe = Recipe.from_json(candidate.recipe_json)
    return recipe.sources()[0] if candidate.operator == "source" else _plain(recipe)


def _first_other(
    origin: ModelReference | Recipe, models: tuple[ModelReference | Recipe, ...]
) -> ModelReference | Recipe:
    """The first of the models that is not the origin; of two models or more there is one."""
    return next(model for model in models if model.digest != origin.digest)


def _depth(model: ModelReference | Recipe, space: SearchSpace) -> int:
    """Counts the layers of a model or a merge."""
    if isinstance(model, ModelReference):
        return space.num_layers
    ranges = [part.inputs[0].layer_range for part in model.slices]
    if any(span is None for span in ranges):
        return _depth(model.slices[0].inputs[0].model, space)
    return sum(span[1] - span[0] for span in ranges if span is not None)
