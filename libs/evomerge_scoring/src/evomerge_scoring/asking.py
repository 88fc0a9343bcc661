"""Requests in words, answered by a model: encoded once for a tokenizer, then put to any model that has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge_common.domain.kinds import Choices, Continuation, Document, Loglikelihood, Request
from evomerge_scoring import encode_pictures
from evomerge_scoring.encode import EncodedTask, Encoder
from evomerge_scoring.generation import cut
from evomerge_scoring.model import ScoringModel, Stop

GROUP = 32
"""Continuations of one context that share its reading, at most."""
Advance = Callable[[int], None]


def _nothing(_: int) -> None:
    pass


class EncodedRequests:
    """Requests of any types, encoded. Whatever their order, contexts are read once and batches go by length.

    Args:
        requests: what to ask.
        encoder: of the tokenizer.
        name: of the task, for errors.

    Raises:
        SuiteError: a masked language model is to continue a text, a document is too long, a choice has no token, or the
            model reads no images and an item has one.
        ModelError: a request asks for a chat template and the model has none, or a token has no row.

    """

    def __init__(self, requests: Sequence[Request], encoder: Encoder, *, name: str = "") -> None:
        self._count = len(requests)
        numbered = list(enumerate(requests))
        self._parts: list[_Part] = []
        asked = (((r.chat, bool(r.image)), (n, r)) for n, r in numbered if isinstance(r, Choices))
        for (chat, seen), choices in _grouped(asked).items():
            if seen:
                items = [(r.prompt, r.choices, r.image) for _, r in choices]
                encoded = encode_pictures.choices(encoder, items, chat=chat, name=name)
            else:
                encoded = encoder.choices([(r.prompt, r.choices) for _, r in choices], chat=chat, name=name)
            self._parts.append(_Choices([n for n, _ in choices], encoded))
        for greedy, pairs in _grouped((r.greedy, (n, r)) for n, r in numbered if isinstance(r, Loglikelihood)).items():
            self._parts.append(_Continued.encode(pairs, encoder, greedy=greedy, name=name))
        documents = [(n, r) for n, r in numbered if isinstance(r, Document)]
        if documents:
            encoded = encoder.documents([(r.prompt, r.text) for _, r in documents], name=name)
            self._parts.append(_Documents([n for n, _ in documents], encoded))
        said = (
            ((r.chat, tuple(r.stop), r.max_new_tokens, bool(r.image)), (n, r))
            for n, r in numbered
            if isinstance(r, Continuation)
        )
        for (chat, strings, limit, seen), prompts in _grouped(said).items():
            if seen:
                shown = [(r.prompt, r.image) for _, r in prompts]
                encoded = encode_pictures.prompts(encoder, shown, limit, chat=chat, name=name)
            else:
                encoded = encoder.prompts([r.prompt for _, r in prompts], limit, chat=chat, name=name)
            self._parts.append(_Continuations([n for n, _ in prompts], encoded, Stop(strings, limit)))

    @property
    def truncated(self) -> int:
        """Requests that were cut to fit the context window."""
        return sum(part.encoded.truncated for part in self._parts)

    def answers(self, model: ScoringModel, size: int, advance: Advance = _nothing) -> list[Any]:
        """A model's answer to each request, as its type says, `size` rows a batch.

        Raises:
            NonFiniteScore: the model answered NaN or infinity.
            OutOfMemory: not even one row fits.

        """
        found: list[Any] = [None] * self._count
        for part in self._parts:
            part.answer(found, model, size, advance)
        return found


def _grouped(pairs: Any) -> dict[Any, list[Any]]:
    """Values by key, in order of first appearance."""
    groups: dict[Any, list[Any]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


class _Part(Protocol):
    """Requests that are encoded together."""

    @property
    def encoded(self) -> EncodedTask: ...
    def answer(self, found: list[Any], model: ScoringModel, size: int, advance: Advance) -> None:
        """Puts the answers to their places among all."""
        ...


@dataclass(frozen=True)
class _Choices:
    numbers: list[int]
    encoded: EncodedTask

    def answer(self, found: list[Any], model: ScoringModel, size: int, advance: Advance) -> None:
        for number, sums in zip(self.numbers, sums_of(model, self.encoded, size, advance), strict=True):
            found[number] = sums


@dataclass(frozen=True)
class _Documents:
    numbers: list[int]
    encoded: EncodedTask

    def answer(self, found: list[Any], model: ScoringModel, size: int, advance: Advance) -> None:
        sums = sums_of(model, self.encoded, size, advance)
        for number, (total,), constant in zip(self.numbers, sums, self.encoded.constants, strict=True):
            found[number] = total + constant


@dataclass(frozen=True)
class _Continuations:
    numbers: list[int]
    encoded: EncodedTask
    stop: Stop

    def answer(self, found: list[Any], model: ScoringModel, size: int, advance: Advance) -> None:
        for number, text in zip(self.numbers, continued(model, self.encoded, self.stop, size, advance), strict=True):
            found[number] = text


@dataclass(frozen=True)
class _Continued:
    """Continuations whose likelihood is asked; those of one context are encoded as its choices, some at a time."""

    groups: list[list[int]]
    encoded: EncodedTask
    greedy: bool

    @classmethod
    def encode(
        cls, pairs: Sequence[tuple[int, Loglikelihood]], encoder: Encoder, *, greedy: bool, name: str
    ) -> _Continued:
        some = [
            group[start : start + GROUP]
            for group in _grouped((r.context, (n, r)) for n, r in pairs).values()
            for start in range(0, len(group), GROUP)
        ]
        of_context = [(group[0][1].context, [r.continuation for _, r in group]) for group in some]
        encoded = encoder.choices(of_context, compared=False, name=name)
        return cls([[n for n, _ in group] for group in some], encoded, greedy)

    def answer(self, found: list[Any], model: ScoringModel, size: int, advance: Advance) -> None:
        answers = model.answers(self.encoded.rows, size, by_item(self.encoded, advance), greedy=self.greedy)
        for numbers, queries in zip(self.groups, self.encoded.groups, strict=True):
            advance(len(numbers) - 1)
            for number, places in zip(numbers, queries, strict=True):
                total = sum(answers[row].logprobs[query] for row, query in places)
                likeliest = self.greedy and all(answers[row].greedy[query] for row, query in places)
                found[number] = (total, likeliest) if self.greedy else total


def sums_of(model: ScoringModel, encoded: EncodedTask, size: int, advance: Advance = _nothing) -> list[list[float]]:
    """Item → choice → natural log-likelihood of the choice's (or document's) tokens."""
    answers = model.answers(encoded.rows, size, by_item(encoded, advance))
    return [[sum(answers[row].logprobs[query] for row, query in pairs) for pairs in item] for item in encoded.groups]


def continued(
    model: ScoringModel, encoded: EncodedTask, stop: Stop, size: int, advance: Advance = _nothing
) -> list[str]:
    """Each prompt's continuation as text, up to the first stop string."""
    if not encoded.prompts:
        return []
    made = model.continuations(encoded.prompts, stop, size, lambda batch: advance(len(batch)))
    texts = model.tokenizer.batch_decode(made, skip_special_tokens=True)
    return [cut(text, stop.strings) for text in texts]


def by_item(encoded: EncodedTask, advance: Advance) -> Callable[[Sequence[int]], None]:
    """Progress in items: an item counts with its first row."""
    first = {pairs[0][0] for item in encoded.groups for pairs in item[:1] if pairs}
    return lambda batch: advance(sum(row in first for row in batch))
