"""What mergekit's files say that changes nothing, and how they spell values: told in a sentence, not refused.

mergekit passes over what it does not read, so published files carry words that do nothing: a density under slerp, a
seed among the parameters. Such a word is one that mergekit knows somewhere (`known_words`). A word that nothing knows
is a mistake, and stays an error.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from evomerge_common.domain.fields import check_keys
from evomerge_common.domain.recipe import normal
from evomerge_common.errors import Path, RecipeError
from evomerge_merging.methods.registry import Method, Parameter, methods

_FURTHER = (
    "merge_method", "models", "slices", "sources", "modules", "base_model", "model", "layer_range", "parameters",
    "input_model_parameters", "dtype", "out_dtype", "tokenizer", "tokenizer_source", "chat_template", "name",
    "random_seed", "embed_slerp", "metadata", "residual_weight", "override_architecture",
)  # fmt: skip
"""mergekit's words of all versions that are no parameters of a method."""
_TRUTHS = {
    word: truth
    for words, truth in ((("true", "yes", "on", "y", "t", "1"), True), (("false", "no", "off", "n", "f", "0"), False))
    for word in words
}


@functools.cache
def known_words() -> frozenset[str]:
    """Every word that mergekit's files may have somewhere: keys, and the parameters of all methods."""
    return frozenset(_FURTHER) | {name for one in methods().values() for name in one.parameters}


class Notices:
    """Sentences about one text, each once with the places that it is about."""

    def __init__(self) -> None:
        self._places: dict[str, list[Path]] = {}

    def add(self, sentence: str, path: Path) -> None:
        """Tells something of a place."""
        self._places.setdefault(sentence, []).append(path)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is told, with places, in the order of the text."""
        return tuple(f"{sentence} ({_shown(places)})" for sentence, places in self._places.items())

    def refuse(self) -> None:
        """Makes an error of the first notice, where there is one.

        Raises:
            RecipeError: with the place.

        """
        for sentence, places in self._places.items():
            raise RecipeError(sentence, places[0])

    def known(self, data: Any, keys: Iterable[str], path: Path) -> Any:
        """The mapping without words that mergekit passes over at this place.

        Raises:
            RecipeError: no mapping; a word that nothing knows.

        """
        if not isinstance(data, Mapping):
            check_keys(data, (), path, RecipeError)
        allowed = tuple(keys)
        passed = [key for key in data if key not in allowed and key in known_words()]
        for key in passed:
            self.add(f"{key!r} is not read here, as by mergekit: it has no effect", (*path, key))
        found = {key: value for key, value in data.items() if key not in passed}
        check_keys(found, allowed, path, RecipeError)
        return found

    def parameters(self, how: Method | None, data: Mapping[str, Any], path: Path, *, of_model: bool) -> dict[str, Any]:
        """What the method reads of the parameters under a mapping, in plain values; all of them of no method."""
        value, here = data.get("parameters"), (*path, "parameters")
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise RecipeError(f"must be names and values, not {value!r}", here)
        found: dict[str, Any] = {}
        for name, setting in value.items():
            parameter = how.parameters.get(name) if how else None
            if how is not None and parameter is None and name in known_words():
                self.add(f"{how.name} does not use {name!r}: it has no effect", (*here, name))
            elif parameter is not None and of_model and not parameter.per_model:
                sentence = f"{name!r} is given once for the merge: under one model it has no effect (move it up)"
                self.add(sentence, (*here, name))
            else:
                plain = setting if parameter is None else self.setting(parameter, setting, (*here, name))
                found[name] = normal(plain, (*here, name))
        return found

    def setting(self, parameter: Parameter, setting: Any, path: Path) -> Any:
        """A parameter's value with numbers and truths for the words that spell them; a lone condition as a list."""
        if isinstance(setting, list):
            return [self.setting(parameter, one, path) if not isinstance(one, Mapping) else
                    self._condition(parameter, one, path) for one in setting]  # fmt: skip
        if isinstance(setting, Mapping):
            return [self._condition(parameter, setting, path)]
        if parameter.kind is bool:
            return self.truth(setting, path)
        if parameter.kind in {int, float}:
            if isinstance(setting, bool):
                self.add(f"{path[-1]}: a truth is read as the number 1 or 0", path)
                return int(setting)
            setting = self.number(setting, path)
        if parameter.name == "density" and isinstance(setting, float | int) and setting > 1:
            self.add("a density above 1 keeps all, as 1 does", path)
            return 1.0
        return setting

    def _condition(self, parameter: Parameter, one: Mapping[str, Any], path: Path) -> Any:
        return {**one, "value": self.setting(parameter, one["value"], path)} if "value" in one else one

    def number(self, value: Any, path: Path) -> Any:
        """The number that a word spells; anything else as it is."""
        if not isinstance(value, str):
            return value
        try:
            number = float(value)
        except ValueError:
            return value
        self.add(f"{_key(path)}: words are read as the numbers that they spell", path)
        return int(number) if number.is_integer() else number

    def truth(self, value: Any, path: Path) -> Any:
        """The truth that a word spells; anything else as it is."""
        found = _TRUTHS.get(value.lower()) if isinstance(value, str) else None
        if found is None:
            return value
        self.add(f"{_key(path)}: words are read as the truths that they spell", path)
        return found


def _key(path: Path) -> str:
    return next(str(key) for key in reversed(path) if isinstance(key, str))


def _shown(places: list[Path]) -> str:
    first = RecipeError("", places[0]).key
    return first if len(places) == 1 else f"{first} and {len(places) - 1} more"
