"""A recipe in words, for people; and as YAML, for `evomerge merge`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml

from evomerge_common.domain.methods import METHOD_WORDS, find_traits
from evomerge_common.domain.recipe import Recipe, public_names
from evomerge_common.domain.reference import ModelReference
from evomerge_report.history import short_name
from evomerge_report.shares import BASE, Table, mean_shares


def recipe_words(recipe: Recipe, table: Table) -> list[str]:
    """Tells a recipe in sentences: what the method does, what each source gives, and what is beside it."""
    return list(_sentences(recipe, table))


def recipe_yaml(recipe: Recipe) -> str:
    """Writes a recipe as YAML, which `evomerge merge` reads; a source's folder is called by its own name."""
    text: str = yaml.safe_dump(public_names(recipe.to_dict()), sort_keys=False, allow_unicode=True, width=100)
    return text


def _sentences(recipe: Recipe, table: Table) -> Iterator[str]:
    sources = recipe.sources()
    if len(sources) == 1 and recipe.digest == Recipe.of_source(sources[0], dtype=recipe.dtype).digest:
        yield f"The source {_name(sources[0])} as it is."
        return
    base = BASE if recipe.base is None else _name(recipe.base)
    yield METHOD_WORDS.get(recipe.method, f"Merged by the method {recipe.method}.").format(base=base)
    traits = find_traits(recipe.method)
    if shares := mean_shares(table):
        what = "factors of their changes" if traits is not None and traits.is_sum else "shares"
        each = ", ".join(f"{name} {share:.2f}" for name, share in shares if abs(share) >= 0.005 and name != BASE)
        yield f"Mean {what} over the layers: {each}."
        yield from _strongest(table, shares)
    else:
        yield "What each source gives follows from the tensors themselves, so no shares can be told beforehand."
    if traits is not None and traits.density is not None:
        name = traits.density.parameter
        found = sorted(_numbers([recipe.parameters.get(name), *(part.parameters.get(name) for part in recipe.slices)]))
        if found:
            span = f"{found[0]:.0%}" if found[-1] - found[0] < 0.005 else f"{found[0]:.0%} to {found[-1]:.0%}"
            yield f"Of each source's changes {span} are kept; the numbers do not show which."
    nested = [item for item in recipe.inputs() if isinstance(item, Recipe)]
    masks = [one for one in nested if one.method == "mask_delta"]
    if masks:
        rates = ", ".join(f"{_name(one.sources()[-1])} {float(one.parameters.get('rate', 0)):.0%}" for one in masks)
        yield f"Dropped at random before the merge: {rates} of a source's changes."
    if merges := [one for one in nested if one.method != "mask_delta"]:
        made = "a merge itself" if len(merges) == 1 else f"{len(merges)} merges themselves"
        yield f"Among what is merged {'is' if len(merges) == 1 else 'are'} {made} ({_methods(merges)})."
    if recipe.cross_domain is not None:
        yield "Sources of another build are fitted in."
    if recipe.seed and traits is not None and traits.random:
        yield f"Random masks of seed {recipe.seed}."
    if recipe.dtype:
        yield f"Computed in {recipe.dtype}."


def _strongest(table: Table, shares: Sequence[tuple[str, float]]) -> Iterator[str]:
    """Where one source counts far more than elsewhere."""
    means = dict(shares)
    for place, source in enumerate(table.sources):
        if source == BASE:
            continue
        rows = [(row.shares[place] or 0.0, row.name) for row in table.rows]
        value, name = max(rows)
        if value - means[source] >= 0.25:
            yield f"{source} counts most in the {name} ({value:.2f})."


def _numbers(settings: object) -> Iterator[float]:
    """Every number in a setting."""
    if isinstance(settings, bool):
        return
    if isinstance(settings, int | float):
        yield float(settings)
    elif isinstance(settings, list):
        for one in settings:
            yield from _numbers(one.get("value") if isinstance(one, dict) else one)


def _name(model: ModelReference | Recipe) -> str:
    return "a merge" if isinstance(model, Recipe) else short_name(str(model.public))


def _methods(recipes: list[Recipe]) -> str:
    return ", ".join(sorted({one.method for one in recipes}))
