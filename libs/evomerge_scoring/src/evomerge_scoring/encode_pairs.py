"""Items for an encoder with a decoder (T5, BART): the prompt is the encoder's, what is asked about is the decoder's."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge_common.errors import SuiteError
from evomerge_scoring.encode import CHARS_PER_TOKEN, EncodedTask, Encoder
from evomerge_scoring.model import Row


class PairEncoder(Encoder):
    """See `Encoder`. The likelihood of a text is the decoder's, given the prompt, as lm-evaluation-harness defines it.

    The encoder reads the prompt with the special tokens that the tokenizer adds; the decoder's text has none.
    """

    @property
    def _side(self) -> str:
        """What the tokenizer calls the decoder's texts: Marian's has a vocabulary for either side.

        Those that know no target language refuse the word, and differ by special tokens alone.
        """
        return "text" if getattr(self.tokenizer, "tgt_lang", "") is None else "text_target"

    def choices(
        self, items: Sequence[tuple[str, Sequence[str]]], *, chat: bool = False, compared: bool = True, name: str = ""
    ) -> EncodedTask:
        """See `Encoder.choices`.

        Raises:
            SuiteError: a choice has no token, or more than the decoder reads; a prompt has none.

        """
        del compared  # a choice's tokens are its own here
        encoded = EncodedTask()
        for prompt, choices in items:
            source, cut = self._source(prompt, chat=chat, name=name)
            encoded.truncated += cut
            group = []
            for choice, ids in zip(choices, self._encode(list(choices), self._side), strict=True):
                if not 0 < len(ids) <= self.context:
                    raise SuiteError(
                        f"task {name!r}: {choice[:40]!r} behind {prompt[-60:]!r} has {len(ids)} tokens; the decoder "
                        f"can be asked for 1 to {self.context}"
                    )
                group.append([(len(encoded.rows), query) for query in range(len(ids))])
                encoded.rows.append(Row((*self.start, *ids[:-1]), tuple(enumerate(ids)), source=source))
            encoded.groups.append(group)
        return encoded

    def documents(self, documents: Sequence[tuple[str, str]], *, name: str = "") -> EncodedTask:
        """See `Encoder.documents`: each text is what the decoder says to its prompt.

        Raises:
            SuiteError: a document has no prompt, or is longer than the decoder reads.

        """
        for number, (prompt, _) in enumerate(documents):
            if not prompt:
                raise SuiteError(
                    f"task {name!r}: document {number} has no prompt, and an encoder-decoder model says nothing "
                    "without one; give each item a `prompt`, or ask by multiple_choice, exact_match or qa"
                )
        encoded = self.choices([(prompt, [text]) for prompt, text in documents], name=name)
        encoded.constants = [0.0] * len(documents)
        return encoded

    def prompts(self, texts: Sequence[str], max_new_tokens: int, *, chat: bool = False, name: str = "") -> EncodedTask:
        """See `Encoder.prompts`; the whole context is the encoder's."""
        del max_new_tokens
        encoded = EncodedTask()
        for text in texts:
            source, cut = self._source(text, chat=chat, name=name)
            encoded.truncated += cut
            encoded.prompts.append(source)
        return encoded

    def _source(self, prompt: str, *, chat: bool, name: str) -> tuple[tuple[int, ...], bool]:
        """What the encoder reads, and whether the prompt was cut from the left to fit.

        Raises:
            SuiteError: nothing, which no encoder reads; `name` is the task's.

        """
        text = self._text(prompt, chat=chat)
        limit = self.context * CHARS_PER_TOKEN
        (ids,) = self._encode([text[-limit:]])
        lead = self.lead if not chat else []
        room = max(1, self.context - len(lead) - len(self.trail))
        cut = len(ids) > room or len(text) > limit
        source = (*lead, *ids[-room:], *self.trail)
        if not source:
            raise SuiteError(f"task {name!r}: an empty prompt, and the tokenizer adds no token to it")
        return source, cut
