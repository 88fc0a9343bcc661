"""What a champion may not lose: lower bounds on tasks' scores, set by numbers or by the sources' own scores.

`constraints: {arithmetic: {not_below: base - 0.02}}`: a number, `base`, `best` (the source that is best on the task) or
a source's name, each perhaps plus or minus a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge_common.domain.fields import Fields
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import Path, RecipeError, SpecError, did_you_mean

BASE, BEST = "base", "best"
ROUNDING = 1e-9
"""A score so little below a bound meets it: bounds are sums of numbers that are no binary fractions."""
_OFFSET = re.compile(r"\s*([+-])\s*(\d+\.?\d*|\.\d+)\s*")


@dataclass(frozen=True)
class Constraint:
    """A task's score may not be below a bound.

    Attributes:
        task: the task's name.
        anchor: from whose score the bound is counted: "base", "best", a source's reference; "" for a plain number.
        offset: what is added to that score; without an anchor, the bound itself.

    """

    task: str
    anchor: str
    offset: float

    @property
    def value(self) -> float | str:
        """Returns the bound as a spec has it."""
        if not self.anchor:
            return self.offset
        return f"{self.anchor} {'-' if self.offset < 0 else '+'} {abs(self.offset)!r}" if self.offset else self.anchor

    def source(self, scores: Mapping[str, float], base: str) -> str | None:
        """Finds whose score counts; None where it is unknown, and for a plain number.

        Args:
            scores: source → its score of this task, in the run's order: of equals the first is the best.
            base: the run's base.

        """
        if self.anchor == BEST:
            return max(scores, key=lambda name: scores[name], default=None)
        name = base if self.anchor == BASE else self.anchor
        return name if name in scores else None

    def bound(self, scores: Mapping[str, float], base: str) -> float | None:
        """Computes the bound from the sources' scores, as `source`; None where the score that counts is unknown."""
        if not self.anchor:
            return self.offset
        source = self.source(scores, base)
        return None if source is None else scores[source] + self.offset


def shortfall(score: float, bound: float) -> float:
    """Returns how far a score is below its bound, 0 where it is not."""
    below = bound - score
    return below if below > ROUNDING else 0.0


def read_constraints(value: Any, path: Path, *, sources: Sequence[str], base: str) -> tuple[Constraint, ...]:
    """Reads `task: {not_below: bound}`; whether a suite has the tasks, `check_tasks` tells.

    Raises:
        SpecError: an unknown key, a bound that is none, a source that the run has not; names the nearest.

    """
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise SpecError("must be tasks with their bounds, such as {arithmetic: {not_below: base - 0.02}}", path)
    found = []
    for task, content in value.items():
        own = Fields.of(content, ("not_below",), (*path, str(task)))
        if "not_below" not in own:
            raise SpecError("needs `not_below`: a number, `base`, `best` or a source, such as base - 0.02", own.path)
        bound = own.data["not_below"]
        if isinstance(bound, str):
            found.append(_anchored(str(task), bound.strip(), own, sources, base))
        else:
            found.append(Constraint(str(task), "", own.number("not_below", 0.0)))
    return tuple(found)


def check_tasks(constraints: Iterable[Constraint], tasks: Sequence[str], path: Path = ("constraints",)) -> None:
    """Refuses a constraint on a task that a suite has not.

    Raises:
        SpecError: names the nearest task.

    """
    for one in constraints:
        if one.task not in tasks:
            raise SpecError(f"the suite has no task {one.task!r}; {did_you_mean(one.task, tasks)}", (*path, one.task))


def constraints_to_dict(constraints: Iterable[Constraint]) -> dict[str, Any]:
    """Writes what `read_constraints` reads."""
    return {one.task: {"not_below": one.value} for one in constraints}


def _anchored(task: str, text: str, own: Fields, sources: Sequence[str], base: str) -> Constraint:
    names = _names(sources)
    known = {BASE: BASE, BEST: BEST, **{name: to for name, to in names.items() if name not in (BASE, BEST)}}
    for name in sorted(known, key=len, reverse=True):  # a name may have a minus sign: the longest that fits is meant
        rest = text.removeprefix(name)
        match = _OFFSET.fullmatch(rest) if rest else None
        if text.startswith(name) and (not rest or match):
            if name == BASE and not base:
                raise own.wrong("the run has no base; name a source, `best`, or a number", "not_below")
            return Constraint(task, known[name], float(match[1] + match[2]) if match else 0.0)
    word = re.sub(r"\s*[+-]\s*[\d.]+$", "", text)
    shortest = {to: name for name, to in sorted(known.items(), key=lambda pair: -len(pair[0]))}  # one name for each
    if not base:
        del shortest[BASE]
    raise own.wrong(
        f"{text!r} is no bound: a number, `base`, `best` or a source, each perhaps with + or - and a number; "
        f"of {word!r}: {did_you_mean(word, shortest.values())}",
        "not_below",
    )


def _names(sources: Sequence[str]) -> dict[str, str]:
    """What a source may be called → its reference: as the spec names it, or by its last name where that is its own."""
    last = {source: _last_name(source) for source in sources}
    own = {name: source for source, name in last.items() if list(last.values()).count(name) == 1}
    return {**own, **{source: source for source in sources}}


def _last_name(source: str) -> str:
    try:
        public = str(ModelReference.parse(source).public)
    except RecipeError:
        return source
    return public.rpartition("/")[2] or public
