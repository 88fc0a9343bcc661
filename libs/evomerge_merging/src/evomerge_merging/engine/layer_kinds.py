"""Layers go on doing what they did: the config under which transformers builds each moved layer as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from evomerge_common.errors import RecipeError
from evomerge_merging.engine import layer_fields
from evomerge_merging.engine.architecture import LayerStack, text_config
from evomerge_merging.engine.built import Built, Kind, Reference, build, knows
from evomerge_merging.engine.layer_fields import Origin

_LACKS = object()
_TRIES = 400


def config_of_layers(
    config: Mapping[str, Any], origin: Origin, stack: LayerStack, note: Callable[[str], None]
) -> dict[str, Any]:
    """The donor's config for other layers.

    Args:
        config: the donor's, unchanged here.
        origin: for each layer of the output, the config of the model that it comes from and its number there.
        stack: the donor's layers.
        note: takes a sentence for people.

    Raises:
        RecipeError: a layer would not go on doing what it did, and the format cannot say that it should.

    """
    if [layer for _, layer in origin] == list(range(stack.depth)):
        essences = {id(one): layer_fields.essence(one) for one, _ in origin}
        if all(one == layer_fields.essence(config) for one in essences.values()):
            return dict(config)
    plain = layer_fields.rewritten(config, origin, stack.depth)
    if not knows(config):
        note(
            f"transformers does not know {str(config.get('model_type', 'this architecture'))!r}: nothing checks that "
            "moved layers go on doing what they did"
        )
        return plain
    try:
        donor = build(config, stack.prefix)
        models = {id(one): build(one, stack.prefix) for one, _ in origin}
    except Exception as error:  # transformers' own, of any type
        note(f"transformers cannot build this model ({_first_line(error)}): nothing checks its moved layers")
        return plain
    if len(donor.kinds) != stack.depth or any(layer >= len(models[id(one)].kinds) for one, layer in origin):
        raise RecipeError(
            f"transformers builds {config.get('model_type')} models of other lists of layers than {stack.prefix!r}, so "
            "layers cannot be left out, repeated or moved: leave layer_range out",
            ("slices",),
        )
    sources = [models[id(one)] for one, _ in origin]
    judge = _Judge(donor, sources, origin, stack.prefix)
    judge.check_packed(config, stack.depth)
    found = judge.first_right(_ways(config, plain, sources, origin, stack, judge))
    if found is None:
        raise RecipeError(judge.refusal(str(config.get("model_type"))), ("slices",))
    return found


def _ways(
    config: Mapping[str, Any],
    plain: dict[str, Any],
    sources: Sequence[Built],
    origin: Origin,
    stack: LayerStack,
    judge: _Judge,
) -> Iterator[dict[str, Any]]:
    """Configs to try, the nearest to the donor's first."""
    yield plain
    depth = stack.depth
    yield layer_fields.rewritten(config, origin, depth, every_list=True)
    spelled = [
        (layer_fields.spelled_out(one, built.part, len(built.kinds)), layer)
        for (one, layer), built in zip(origin, sources, strict=True)
    ]
    donor = layer_fields.spelled_out(config, judge.donor.part, depth)
    for every in (False, True):
        whole = layer_fields.rewritten(donor, spelled, depth, every_list=every)
        yield whole
        yield layer_fields.periods(whole, judge.donor.part, origin, depth)
    yield from _searched(judge, len(origin))


def _searched(judge: _Judge, depth: int) -> Iterator[dict[str, Any]]:
    """Goes down from the best so far, one number at a time: few layers wrong, then none."""
    config = judge.best
    for _ in range(3):
        before = judge.fewest
        for key in layer_fields.scalars({**judge.donor.part, **text_config(config)}):
            for value in (*range(depth + 2), -1):
                yield layer_fields.with_part(config, {**text_config(config), key: value})
            config = judge.best
        if judge.fewest == before:
            return


class _Judge:
    """Counts the layers that a config would make something else."""

    def __init__(self, donor: Built, sources: Sequence[Built], origin: Origin, prefix: str) -> None:
        self.donor = donor
        self._sources = sources
        self._prefix = prefix
        self._numbers = [layer for _, layer in origin]
        self._wanted = [built.kinds[layer] for built, layer in zip(sources, self._numbers, strict=True)]
        self._free = {id(one): _alike(one, donor) for one in sources if one is not donor}
        self.best: dict[str, Any] = {}
        self.fewest = len(origin) + 2
        self._worst = ""

    def first_right(self, ways: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        """The first config under which every layer is as it was."""
        for tried, config in enumerate(ways):
            wrong, words = self._wrong(config)
            if wrong < self.fewest:
                self.best, self.fewest, self._worst = config, wrong, words
            if not wrong:
                return config
            if tried > _TRIES:
                break
        return None

    def refusal(self, model_type: str) -> str:
        """Says why no config will do."""
        return (
            f"{self._worst}, and a {model_type} config cannot say otherwise: keep each layer at the place that it "
            "has, or choose layers of the same kinds in the same places"
        )

    def check_packed(self, config: Mapping[str, Any], depth: int) -> None:
        """Refuses models that hold values of all layers in one tensor outside them, which are not cut.

        Raises:
            RecipeError: there is such a tensor, and layers move.

        """
        if self._numbers == list(range(depth)):
            return
        deeper = [(config, layer) for layer in (*range(depth), depth - 1)]
        for every in (False, True):
            try:
                other = build(layer_fields.rewritten(config, deeper, depth, every_list=every), self._prefix).outside
            except Exception:  # noqa: S112  # that depth cannot be built: then nothing is known
                continue
            packed = [name for name, shape in self.donor.outside.items() if other.get(name) not in {shape, None}]
            if packed:
                raise RecipeError(
                    f"{packed[0]} holds values of all layers in one tensor, which does not follow layers that are "
                    "left out, repeated or moved: keep all layers in their places",
                    ("slices",),
                )
            return

    def _wrong(self, config: dict[str, Any]) -> tuple[int, str]:
        try:
            built = build(config, self._prefix)
        except Exception as error:  # transformers' own, of any type
            return len(self._wanted) + 1, f"transformers refuses the result's config ({_first_line(error)})"
        if len(built.kinds) != len(self._wanted):
            return len(self._wanted) + 1, "the result would have another number of layers"
        wrong, words = 0, ""
        for i, (kind, wanted) in enumerate(zip(built.kinds, self._wanted, strict=True)):
            difference = self._difference(i, kind, wanted) or self._sharing(i, built)
            if difference:
                wrong += 1
                words = words or f"layer {i} of the result comes from layer {self._numbers[i]}, but {difference}"
        return wrong, words

    def _difference(self, i: int, kind: Kind, wanted: Kind) -> str:
        for place in sorted(wanted.keys() | kind.keys()):
            was, here = wanted.get(place, _LACKS), kind.get(place, _LACKS)
            if isinstance(was, Reference) and isinstance(here, Reference):
                if self._points(here.layer, i) == (id(self._sources[i]), was.layer):
                    continue
            elif was == here or {was, here} == {None, _LACKS} or place in self._free.get(id(self._sources[i]), ()):
                continue
            return f"its {place} would be {_word(here)} where it was {_word(was)}"
        return ""

    def _points(self, layer: int, i: int) -> tuple[int, int]:
        if 0 <= layer < len(self._numbers):
            return id(self._sources[layer]), self._numbers[layer]
        return id(self._sources[i]), layer  # such as -1: none

    def _sharing(self, i: int, built: Built) -> str:
        """Tells of a tensor that the result would share with a layer that does not have it in the source."""
        for name, owner in built.shared[i].items():
            if self._owner(i, name) != self._owner(owner, name):
                return f"its {name} would be shared with layer {owner}"
        return ""

    def _owner(self, i: int, name: str) -> tuple[int, int]:
        """Model and layer that a tensor of a result's layer comes from."""
        source, layer = self._sources[i], self._numbers[i]
        return id(source), source.shared[layer].get(name, layer)


def _alike(source: Built, donor: Built) -> set[str]:
    """Places of fractions (norms' epsilon, a rotation's base) that each of two models has alike in all its layers."""
    return {
        place
        for place, value in source.kinds[0].items()
        if isinstance(value, float)
        and len({kind.get(place) for kind in source.kinds}) == 1
        and len({kind.get(place) for kind in donor.kinds}) == 1
    }


def _word(value: Any) -> str:
    if value is _LACKS:
        return "absent"
    return f"that of layer {value.layer}" if isinstance(value, Reference) else repr(value)


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error) or type(error).__name__)[:160]
