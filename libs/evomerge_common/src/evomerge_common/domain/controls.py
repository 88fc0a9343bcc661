"""Controls: null candidates that a run scores beside its search, to tell what merging did from what chance does.

They are made when the search has ended, scored in full on both splits, and neither breed nor become champion: the
search is the same with and without them. Three kinds, by `search space` and champion:

* permuted: the champion's task vector with the elements of each tensor in disorder (method `permute_delta`)
* noised: the best source with noise of the norm of the champion's difference from it (method `noise_delta`)
* uniform: the plain average of the models
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evomerge_common.domain.fields import Fields

PERMUTED, NOISED, UNIFORM = "permuted", "noised", "uniform"


@dataclass(frozen=True)
class ControlsSpec:
    """How many controls of each kind a run scores; of permuted and noised ones each has a seed of its own."""

    permuted: int = 2
    noised: int = 2
    uniform: int = 1

    @property
    def count(self) -> int:
        """Counts them all."""
        return self.permuted + self.noised + self.uniform

    def to_value(self) -> dict[str, int]:
        """Writes plain data in the form that `read_controls` reads."""
        return asdict(self)


NO_CONTROLS = ControlsSpec(permuted=0, noised=0, uniform=0)


def read_controls(own: Fields, key: str = "controls") -> ControlsSpec:
    """Reads `controls: true` (the defaults), a number of seeds, a number for each kind, or `false`, the default.

    Raises:
        SpecError: anything else.

    """
    value: Any = own.data.get(key, False)
    if isinstance(value, bool):
        return ControlsSpec() if value else NO_CONTROLS
    if isinstance(value, Mapping):
        given = Fields.of(value, ControlsSpec.__dataclass_fields__, own.at(key))
        default = ControlsSpec()
        return ControlsSpec(
            permuted=given.integer("permuted", default.permuted, high=100),
            noised=given.integer("noised", default.noised, high=100),
            uniform=given.integer("uniform", default.uniform, high=1),
        )
    seeds = own.integer(key, 0, high=100)
    return ControlsSpec(permuted=seeds, noised=seeds) if seeds else NO_CONTROLS
