"""Requests in words, answered in words: for tasks that are not ours (lm-eval's, a user's own)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evomerge_scoring.encode import EncodedTask, Encoder
from evomerge_scoring.generation import Stop, cut
from evomerge_scoring.model import ScoringModel

GROUP = 32
"""Continuations of one context that share its reading, at most."""
Advance = Callable[[int], None]


def _nothing(_: int) -> None:
    pass


class Asker:
    """Asks one model. Whatever the order of the requests, contexts are read once and batches go by length."""

    def __init__(self, model: ScoringModel, encoder: Encoder, size: int, advance: Advance = _nothing) -> None:
        self.model = model
        self._encoder = encoder
        self._size = size
        self._advance = advance

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]], *, greedy: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): natural log-likelihood, and whether greedy decoding would say it.

        Without `greedy` the second is False.
        """
        groups: dict[str, list[list[int]]] = {}
        for number, (context, _) in enumerate(pairs):
            of_context = groups.setdefault(context, [[]])
            if len(of_context[-1]) == GROUP:
                of_context.append([])
            of_context[-1].append(number)
        chosen = [numbers for of_context in groups.values() for numbers in of_context]
        encoded = self._encoder.choices([(pairs[g[0]][0], [pairs[n][1] for n in g]) for g in chosen])
        answers = self.model.answers(encoded.rows, self._size, by_item(encoded, self._advance), greedy=greedy)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for numbers, queries in zip(chosen, encoded.groups, strict=True):
            self._advance(len(numbers) - 1)
            for number, places in zip(numbers, queries, strict=True):
                total = sum(answers[row].logprobs[query] for row, query in places)
                found[number] = (total, greedy and all(answers[row].greedy[query] for row, query in places))
        return found

    def documents(self, texts: Sequence[str]) -> list[float]:
        """Natural log-likelihood of each whole text."""
        encoded = self._encoder.documents([("", text) for text in texts])
        sums = sums_of(self.model, encoded, self._size, self._advance)
        return [choices[0] + constant for choices, constant in zip(sums, encoded.constants, strict=True)]

    def continuations(self, prompts: Sequence[tuple[str, Stop]]) -> list[str]:
        """Greedy continuation of each prompt, up to its stop."""
        texts = [""] * len(prompts)
        groups: dict[Stop, list[int]] = {}
        for number, (_, stop) in enumerate(prompts):
            groups.setdefault(stop, []).append(number)
        for stop, numbers in groups.items():
            encoded = self._encoder.prompts([prompts[n][0] for n in numbers], stop.max_new_tokens)
            said = continued(self.model, encoded, stop, self._size, self._advance)
            for number, text in zip(numbers, said, strict=True):
                texts[number] = text
        return texts


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
