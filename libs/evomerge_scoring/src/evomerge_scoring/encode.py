"""A task's items as token rows.

Depends on the tokenizer and the context window, never on the weights, so one encoding serves every candidate of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge_common.errors import ModelError, SuiteError
from evomerge_scoring.asked import cannot_continue
from evomerge_scoring.joins import added_tokens, common, cut_left, split_spaces, starts
from evomerge_scoring.model import Picture, Row
from evomerge_scoring.pictures import Sight

CHARS_PER_TOKEN = 16
"""A prompt longer than context window × this is cut before it is tokenised, which could take minutes."""
TREE_TOKENS = 8192
"""Choices share a row no longer than this: its mask is quadratic."""
MAX_DOCUMENT_CHARS = 4 * 1024 * 1024


@dataclass
class EncodedTask:
    """Rows of a task and how its items are put together from them.

    Attributes:
        rows: what the model reads (choices, documents).
        groups: item → choice → (row, query) pairs whose log-probabilities are summed; a document is one choice.
        constants: item → log-probability of tokens that nothing conditions (documents without BOS).
        prompts: item → what to continue.
        truncated: how many items were cut to fit.

    """

    rows: list[Row] = field(default_factory=list)
    groups: list[list[list[tuple[int, int]]]] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)
    prompts: list[tuple[int, ...] | Picture] = field(default_factory=list)
    truncated: int = 0


class Encoder:
    """Turns items into rows for one tokenizer.

    Args:
        tokenizer: of the model's folder.
        context: tokens that the model reads at most.
        masked: a masked language model.
        vocabulary: rows of its embedding.
        tree: the longest row that choices may share (see `loaded.tree_limit`).
        decoder_start, sight: see `model.ScoringModel`.

    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        context: int,
        masked: bool,
        vocabulary: int,
        tree: int,
        decoder_start: int | None = None,
        sight: Sight | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.decoder_start = decoder_start
        self.sight = sight or Sight()
        self.context = context
        self.masked = masked
        self.vocabulary = vocabulary
        self.tree = 0 if masked else tree
        self.lead, self.trail = added_tokens(tokenizer)
        self.check_rows([*self.lead, *self.trail])
        first = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
        first = first if decoder_start is None else [decoder_start]
        self.start = [token for token in first if token < vocabulary][:1]
        if masked and tokenizer.mask_token_id is None:
            raise ModelError("a masked language model whose tokenizer has no mask token cannot be scored")

    # ---- multiple choice ----

    def choices(
        self, items: Sequence[tuple[str, Sequence[str]]], *, chat: bool = False, compared: bool = True, name: str = ""
    ) -> EncodedTask:
        """Choices of each item, a prompt and its choices; a group of `EncodedTask.groups` an item, in order.

        Args:
            items: prompts, each with its choices.
            chat: the prompt is a user's turn in the model's chat template.
            compared: an item's choices are asked for the same part of its text (see `joins.starts`).
            name: the task's, for errors.

        Raises:
            ModelError: `chat` asks for a chat template and the model has none, or a token has no row.
            SuiteError: a choice has no token whose likelihood could be asked.

        """
        limit = self.context * CHARS_PER_TOKEN
        pairs = []
        for prompt, choices in items:
            text = self._text(prompt, chat=chat)
            pairs += [split_spaces(text, choice) for choice in choices]
        cut = [len(context) > limit for context, _ in pairs]
        pairs = [
            (context[-limit:] if long else context, choice[:limit])
            for (context, choice), long in zip(pairs, cut, strict=True)
        ]
        contexts = self._encode([context for context, _ in pairs])
        wholes = self._encode([context + choice for context, choice in pairs])
        encoded = EncodedTask()
        position = 0
        for prompt, choices in items:
            end = position + len(choices)
            lead = self.lead if not chat else []
            begins = starts(contexts[position:end], wholes[position:end], compared=compared)
            sequences = []
            for whole, start in zip(wholes[position:end], begins, strict=True):
                first = lead or ([] if start > 0 or self.masked else self.start)
                sequences.append(([*first, *whole], max(len(first) + start, 0 if self.masked else 1)))
            for choice, whole, (ids, start) in zip(choices, wholes[position:end], sequences, strict=True):
                if not whole or start >= len(ids):  # the likelihood of nothing is 1, more than any other's
                    raise SuiteError(
                        f"task {name!r}: the choice {choice[:40]!r} of the item {prompt[-60:]!r} has no token behind "
                        "another one, so this model cannot score it; give the item a prompt, or the choice a text"
                    )
            room = self.context - len(self.trail) if self.masked else self.context + 1
            too_long = max(len(ids) for ids, _ in sequences) - room
            if too_long > 0:
                sequences = [cut_left(ids, start, too_long, len(lead), room) for ids, start in sequences]
            encoded.truncated += too_long > 0 or any(cut[position:end])
            if self.masked:
                encoded.groups.append([self._pseudo(encoded, ids, range(start, len(ids))) for ids, start in sequences])
            else:
                encoded.groups.append(self._choices(encoded, sequences))
            position = end
        return encoded

    def _choices(self, encoded: EncodedTask, sequences: list[tuple[list[int], int]]) -> list[list[tuple[int, int]]]:
        """Rows for the choices of one item; the last token of each is only predicted, never read.

        What choices begin with in common is read once: they are the paths of a tree.
        """
        reads = [ids[:-1] for ids, _ in sequences]
        groups: list[list[tuple[int, int]]] = [[] for _ in sequences]
        tokens: list[int] = []
        ends: list[int] = []
        depths: list[int] = []
        queries: list[tuple[int, int]] = []
        path: list[int] = []  # places in `tokens` of the sequence before
        before: list[int] = []
        for number in sorted(range(len(reads)), key=reads.__getitem__):  # neighbours share the most
            (ids, start), read = sequences[number], reads[number]
            same = common(before, read)
            for place in path[same:]:
                ends[place] = len(tokens)
            path = [*path[:same], *range(len(tokens), len(tokens) + len(read) - same)]
            depths += range(same, len(read))
            tokens += read[same:]
            ends += [0] * (len(read) - same)
            groups[number] = [(len(encoded.rows), len(queries) + n) for n in range(len(ids) - start)]
            queries += [(path[p - 1], ids[p]) for p in range(start, len(ids))]
            before = read
        for place in path:
            ends[place] = len(tokens)
        if len(tokens) <= min(self.tree, TREE_TOKENS):
            encoded.rows.append(Row(tuple(tokens), tuple(queries), tuple(ends), tuple(depths)))
            return groups
        groups = []
        for ids, start in sequences:
            alone = [(p - 1, ids[p]) for p in range(start, len(ids))]
            groups.append([(len(encoded.rows), q) for q in range(len(alone))])
            encoded.rows.append(Row.plain(ids[:-1], alone))
        return groups

    # ---- perplexity ----

    def documents(self, documents: Sequence[tuple[str, str]], *, name: str = "") -> EncodedTask:
        """(prompt, text) pairs: every token of each text is asked for, and none of its prompt; one choice a group.

        Texts longer than the context window are cut into windows side by side; each one's first token is predicted
        from the last of the window before.

        Raises:
            SuiteError: a document is too long; `name` is the task's.

        """
        for number, (_, text) in enumerate(documents):
            if len(text) > MAX_DOCUMENT_CHARS:
                raise SuiteError(
                    f"task {name!r}: document {number} has {len(text)} characters; split it into documents of "
                    f"at most {MAX_DOCUMENT_CHARS}"
                )
        limit = self.context * CHARS_PER_TOKEN
        wholes = self._encode([prompt[-limit:] + text for prompt, text in documents])
        prompts = self._encode([prompt[-limit:] for prompt, _ in documents])
        encoded = EncodedTask(truncated=sum(len(prompt) > limit for prompt, _ in documents))
        for ids, before in zip(wholes, prompts, strict=True):
            encoded.constants.append(0.0)
            known = min(common(before, ids), len(ids) - 1)  # what joins prompt and text to one token is the text's
            if self.masked:
                encoded.groups.append([self._pseudo_windows(encoded, ids, known)])
                continue
            tokens = [*self.start, *ids]
            if not self.start and not known:  # nothing conditions the first token: as if all were equally likely
                encoded.constants[-1] = -math.log(self.vocabulary)
            known = max(known + len(self.start), 1)
            spare = max(0, known - self.context // 2) if len(tokens) > self.context + 1 else 0
            if spare:  # a long prompt: its end matters
                tokens, known = [*self.start, *tokens[len(self.start) + spare :]], known - spare
                encoded.truncated += 1
            pairs_of_text = []
            for begin in range(0, len(tokens) - 1, self.context):
                window = tokens[begin : begin + self.context + 1]
                queries = [(p, token) for p, token in enumerate(window[1:]) if begin + p + 1 >= known]
                pairs_of_text += [(len(encoded.rows), q) for q in range(len(queries))]
                encoded.rows.append(Row.plain(window[:-1], queries))
            encoded.groups.append([pairs_of_text])
        return encoded

    def _pseudo_windows(self, encoded: EncodedTask, ids: Sequence[int], known: int) -> list[tuple[int, int]]:
        room = self.context - len(self.lead) - len(self.trail)
        pairs = []
        for begin in range(0, len(ids), room):
            window = [*self.lead, *ids[begin : begin + room]]
            first = len(self.lead) + max(0, known - begin)
            pairs += self._pseudo(encoded, window, range(first, len(window)))
        return pairs

    def _pseudo(self, encoded: EncodedTask, ids: Sequence[int], positions: range) -> list[tuple[int, int]]:
        """One row a position, that position masked: pseudo-log-likelihood (Salazar et al. 2020, arXiv:1910.14659)."""
        pairs = []
        for position in positions:
            row = [*ids, *self.trail]
            row[position] = self.tokenizer.mask_token_id
            pairs.append((len(encoded.rows), 0))
            encoded.rows.append(Row.plain(row, [(position, ids[position])]))
        return pairs

    # ---- generation ----

    def prompts(self, texts: Sequence[str], max_new_tokens: int, *, chat: bool = False, name: str = "") -> EncodedTask:
        """Texts to continue, each cut from the left so that `max_new_tokens` fit behind it.

        Raises:
            SuiteError: the model is a masked one, or an empty prompt meets a tokenizer without a first token.
            ModelError: `chat` asks for a chat template and the model has none.

        """
        if self.masked:
            raise SuiteError(cannot_continue(name))
        limit = self.context * CHARS_PER_TOKEN
        asked = [self._text(text, chat=chat) for text in texts]
        encoded = EncodedTask()
        room = max(1, self.context - max_new_tokens)
        for text, ids in zip(asked, self._encode([text[-limit:] for text in asked]), strict=True):
            lead = self.lead if not chat else []
            tokens = [*lead, *ids] or list(self.start)
            if not tokens:
                raise SuiteError(f"task {name!r}: an empty prompt, and the tokenizer has no first token")
            over = len(tokens) > room
            if over:
                kept = lead if len(lead) < room else []
                tokens = [*kept, *tokens[len(tokens) - room + len(kept) :]]
            encoded.truncated += over or len(text) > limit
            encoded.prompts.append(tuple(tokens))
        return encoded

    # ---- text ----

    def _text(self, prompt: str, *, chat: bool) -> str:
        return chat_text(self.tokenizer, prompt[-self.context * CHARS_PER_TOKEN :]) if chat else prompt

    def _encode(self, texts: list[str], side: str = "text") -> list[list[int]]:
        """Each text's tokens; `side` is the tokenizer's parameter for what a text is: "text" or "text_target"."""
        words = {side: texts, "add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        found = self.tokenizer(**words)["input_ids"]
        for ids in found:
            self.check_rows(ids)
        return [list(ids) for ids in found]

    def check_rows(self, ids: Sequence[int]) -> None:
        """Refuses tokens that the embedding has no row for.

        Raises:
            ModelError: names the last of them by its word.

        """
        last = max(ids, default=0)
        if last >= self.vocabulary:
            raise ModelError(
                f"the text of an item has the token {self.tokenizer.convert_ids_to_tokens(last)!r} with the id {last}, "
                f"but the model's embedding has {self.vocabulary} rows; resize the embedding, or keep the token out"
            )


def chat_text(tokenizer: Any, prompt: str) -> str:
    """The prompt as a user's turn, up to where the answer begins.

    Raises:
        ModelError: the model has no chat template, or it does not work.

    """
    if not tokenizer.chat_template:
        raise ModelError("the model has no chat template, and the task says chat: true")
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # whatever the template does
        raise ModelError(f"the model's chat template does not work: {str(error)[:200]}") from error
    return str(text)
