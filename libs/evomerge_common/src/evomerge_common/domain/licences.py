"""What the licences of its sources mean for a merged model: its own licence, what it owes, what excludes what.

A merge is taken for a derivative of every source. What the texts ask is in `licence_table`; this is no legal advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

from evomerge_common.domain.licence_names import AND, OTHER, UNKNOWN, identified
from evomerge_common.domain.licence_table import LICENCES, Licence
from evomerge_common.errors import LicenceConflict

_T = TypeVar("_T")
NO_ADVICE = "This is read from tables, not by a lawyer, and is no legal advice: read the licences themselves."
ACCEPT_FLAG = "--accept-licence-conflict"
_PERMISSIVE = ("apache-2.0", "cc-by-4.0", "cc-by-3.0", "bsd-3-clause", "bsd-2-clause", "bsd", "mit", "isc")
"""Of several licences that permit any other, the one that asks for most names the result."""


@dataclass(frozen=True)
class LicencePlan:
    """What is to be known before a merge is shared.

    Attributes:
        licences: of each source, as identifiers, in the order of the sources.
        licence: of the result: an identifier of the Hub, `other`, or `unknown`.
        name: of the result's licence where `licence` is `other`: the Hub's `license_name`; "" else.
        link: the Hub's `license_link`, where one text says it; "" else.
        obligations: what whoever shares the result owes, a sentence each.
        conflicts: why the result cannot be shared lawfully, a sentence each; empty: nothing is known against it.
        notes: what is not known.

    """

    licences: Mapping[str, str]
    licence: str
    name: str = ""
    link: str = ""
    obligations: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The result's licence in one word or a few."""
        return self.name or self.licence

    def to_dict(self) -> dict[str, Any]:
        """Writes plain data in the form that `from_dict` reads."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LicencePlan:
        """Reads what `to_dict` wrote."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)

    def sentences(self) -> list[str]:
        """Says all of it, for the plan of a merge or a run."""
        listed = "; ".join(f"{source}: {licence}" for source, licence in self.licences.items())
        known = set(self.licences.values()) - {UNKNOWN}
        return [
            *([f"licence of the result: {self.title} (from {listed})"] if known else []),
            *(f"licence conflict: {text}" for text in self.conflicts),
            *(f"licence: {text}" for text in self.obligations),
            *self.notes,
        ]

    def check(self, *, accepted: bool = False) -> None:
        """Refuses a merge whose result could not be shared.

        Args:
            accepted: whoever asks for it knows, and goes on.

        Raises:
            LicenceConflict: names licences and sources.

        """
        if self.conflicts and not accepted:
            raise LicenceConflict(
                f"the sources' licences exclude each other: {'; '.join(self.conflicts)}. Leave a source out, or go on "
                f"with {ACCEPT_FLAG} (in a run's spec: accept_licence_conflict: true) if you have other rights or "
                f"share nothing. {NO_ADVICE}"
            )


def by_source(pairs: Iterable[tuple[str, _T]]) -> dict[str, _T]:
    """Keys what is known of sources by their public names; a name that is taken gets a number, "final (2)".

    Of a folder the public name is the last part alone, which several sources may share.
    """
    found: dict[str, _T] = {}
    for name, value in pairs:
        own, number = name, 1
        while own in found:
            number += 1
            own = f"{name} ({number})"
        found[own] = value
    return found


def combine(licences: Mapping[str, str]) -> LicencePlan:
    """Tells what a model made from others may be licensed as, what it owes, and which licences exclude each other.

    Args:
        licences: source, as the user knows it (see `by_source`) → identifier, or several joined by `AND` (an adapter
            on its base); "" where nothing is known.

    """
    given = {source: text or UNKNOWN for source, text in licences.items()}
    holders: dict[str, list[str]] = {}
    for source, text in given.items():
        for word in dict.fromkeys(text.split(AND)):
            holders.setdefault(identified(word), []).append(source)
    known = [LICENCES[word] for word in holders if word in LICENCES]
    strange = [word for word in holders if word not in LICENCES]
    conflicts = _conflicts(known, holders)
    licence, name, link = _of_result(known, strange, bool(conflicts))
    return LicencePlan(
        given, licence, name, link, tuple(_obligations(known, holders, licence)), tuple(conflicts),
        tuple(_unknown(word, holders[word]) for word in strange),
    )  # fmt: skip


def _of_result(known: list[Licence], strange: list[str], conflict: bool) -> tuple[str, str, str]:
    """Identifier, name and link of the result's licence."""
    if strange and (strange != [strange[0]] or known or strange[0] in {UNKNOWN, OTHER}):
        return UNKNOWN, "", ""
    if strange:
        return OTHER, strange[0], ""
    if conflict:
        return OTHER, "conflicting-licences", ""
    alike = [licence for licence in known if licence.becomes]
    if alike:
        # none excludes another: the one that all may become, a source's own if possible, else the nearest
        shared, own = _shared(known), {licence.id for licence in alike}
        return _labelled(LICENCES[next((word for word in shared if word in own), shared[0])])
    binding = [licence for licence in known if not licence.is_permissive]
    if len(binding) == 1:
        return _labelled(binding[0])
    if binding:
        return OTHER, "-and-".join(sorted(licence.id for licence in binding)), ""
    if not known:
        return UNKNOWN, "", ""
    ranks = {word: rank for rank, word in enumerate(_PERMISSIVE)}
    first = min(known, key=lambda one: (not one.attribution, ranks.get(one.id, len(ranks)), one.id))
    return _labelled(first)


def _shared(known: list[Licence]) -> list[str]:
    """What all licences with share-alike may become, the nearest first, and what bars none of the others."""
    alike = [licence for licence in known if licence.becomes]
    ids = {licence.id for licence in known}
    return [
        word
        for word in (alike[0].becomes if alike else ())
        if all(word in licence.becomes for licence in alike) and not ids & {*LICENCES[word].bars}
    ]


def _labelled(licence: Licence) -> tuple[str, str, str]:
    return (licence.id, "", "") if licence.listed else (OTHER, licence.id, licence.link)


def _conflicts(known: list[Licence], holders: Mapping[str, list[str]]) -> list[str]:
    def of(licence: Licence) -> str:
        return f"{licence.title} ({', '.join(holders[licence.id])})"

    found = [
        f"{of(licence)} does not allow a changed model to be shared" for licence in known if licence.no_derivatives
    ]
    free = [licence for licence in known if not licence.no_derivatives]
    for one, other in combinations(free, 2):
        if one.becomes and other.becomes and not {*one.becomes} & {*other.becomes}:
            found.append(f"{of(one)} and {of(other)} each ask that the result has that licence and no other")
        elif one.named and other.named and not _same_beginning(one.named, other.named):
            found.append(
                f"{of(one)} wants a name that begins with {one.named!r}, {of(other)} one that begins with "
                f"{other.named!r}"
            )
        elif one.rivals and other.rivals and one.rivals != other.rivals:
            found.append(
                f"{of(one)} must not improve other models than {one.rivals}, nor {of(other)} others than {other.rivals}"
            )
        else:
            found += [text for text in (_adds(one, other, of), _adds(other, one, of)) if text]
    alike = [licence for licence in free if licence.becomes]
    if alike and not found and not _shared(free):
        barred = {word for licence in alike for one in licence.becomes for word in LICENCES[one].bars}
        who = [licence for licence in free if licence.becomes or licence.id in barred]
        found.append(f"{', '.join(map(of, who))}: there is no licence that all of them allow")
    return found


def _adds(alike: Licence, other: Licence, of: Any) -> str:
    """What another licence adds that one with share-alike forbids to add."""
    if not alike.becomes:
        return ""
    if other.id in alike.bars:
        return f"{of(other)} has terms that {of(alike)} does not allow to add"
    more = sorted(other.restrictions - alike.restrictions)
    if other.becomes and {*alike.becomes} & {*other.becomes}:
        return ""
    if not more:
        return ""
    return f"{of(alike)} allows no further terms, and {of(other)} adds: {'; '.join(more)}"


def _same_beginning(one: str, other: str) -> bool:
    short, long = sorted((one.lower(), other.lower()), key=len)
    return long.startswith(short)


def _obligations(known: list[Licence], holders: Mapping[str, list[str]], result: str) -> list[str]:
    found = []
    attributed = [licence for licence in known if licence.attribution]
    if attributed:
        texts = ", ".join(licence.title for licence in attributed)
        found.append(f"keep the sources' names and copyright notices, and ship the texts of {texts}")
    if any(licence.changes for licence in known):
        found.append("say that the weights were changed by merging")
    for licence in known:
        who = f"{licence.title}, for {', '.join(holders[licence.id])}"
        if licence.becomes:
            under = [result] if result in licence.becomes else licence.becomes
            found.append(f"share the result under {' or '.join(under)} alone ({who})")
        if licence.research_only:
            found.append(f"use it for research alone, never commercially ({who})")
        elif licence.non_commercial:
            found.append(f"no commercial use ({who})")
        if licence.passed_on:
            found.append(f"bind every recipient by {licence.passed_on} ({who})")
        if licence.notice:
            found.append(f"put into a file NOTICE: {licence.notice!r}")
        if licence.shown:
            found.append(f"display {licence.shown!r} where the model is offered ({who})")
        if licence.limits:
            found.append(f"{licence.limits} ({who})")
        if licence.rivals:
            found.append(
                f"it may improve no language models but {licence.rivals} and its derivatives, of which the result is "
                f"one ({who})"
            )
    names = [licence.named for licence in known if licence.named]
    if names:
        found.append(f"give it a name that begins with {max(names, key=len)!r}")
    return list(dict.fromkeys(found))


def _unknown(word: str, sources: list[str]) -> str:
    what = "not told" if word in {UNKNOWN, OTHER} else f"{word!r}, which is in no table here"
    return f"the licence of {', '.join(sources)} is {what}: ask its author before the result is shared"
