"""Our scoring as a model of EleutherAI's lm-evaluation-harness (0.4.13): prefixes shared, batches by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from evomerge_common.domain.kinds import Continuation, Document, Loglikelihood, Request
from evomerge_common.errors import SuiteError
from evomerge_scoring.asking import EncodedRequests
from evomerge_scoring.encode import Encoder
from evomerge_scoring.model import Row, ScoringModel

MAX_NEW_TOKENS = 256
"""The harness's default of `max_gen_toks`."""


class HarnessModel(LM):
    """Also good for `lm_eval.simple_evaluate(model=HarnessModel(…))`."""

    def __init__(self, model: ScoringModel, encoder: Encoder, size: int) -> None:
        super().__init__()
        self.model, self.encoder, self.size = model, encoder, size

    def _answers(self, requests: Sequence[Request]) -> list[Any]:
        return EncodedRequests(requests, self.encoder).answers(self.model, self.size)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log-likelihood, and whether greedy decoding would say it."""
        return self._answers(
            [Loglikelihood(context, said, greedy=True) for context, said in (one.args for one in requests)]
        )

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of each whole text, in the harness's own windows: each as full of context as can be."""
        encoder = self.encoder
        rows: list[Row] = []
        places: list[list[int]] = []
        if encoder.masked or encoder.decoder_start is not None:
            return self._answers([Document(request.args[0]) for request in requests])
        prefix = (encoder.start or [0])[0]
        for request in requests:
            tokens = encoder.tokenizer(request.args[0], add_special_tokens=False, verbose=False)["input_ids"]
            windows = utils.get_rolling_token_windows(
                token_list=tokens, prefix_token=prefix, max_seq_len=encoder.context, context_len=1
            )
            place = []
            for context, continuation in map(utils.make_disjoint_window, windows):
                whole = [*context, *continuation]
                queries = [(p - 1, whole[p]) for p in range(len(context), len(whole))]
                place.append(len(rows))
                rows.append(Row.plain(whole[:-1], queries))
            places.append(place)
        answers = self.model.answers(rows, self.size)
        return [sum(sum(answers[row].logprobs) for row in place) for place in places]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy continuations; a task that samples is refused."""
        prompts: list[Continuation] = []
        for request in requests:
            prompt, options = request.args
            if options.get("do_sample") and options.get("temperature", 1.0) > 0:
                raise SuiteError(f"task {request.task_name!r} samples its answers; only greedy decoding repeats itself")
            until = options.get("until") or ()
            count = int(options.get("max_gen_toks") or options.get("max_new_tokens") or MAX_NEW_TOKENS)
            count = max(1, min(count, self.encoder.context - 1))
            prompts.append(Continuation(prompt, [until] if isinstance(until, str) else until, count))
        return self._answers(prompts)

    @property
    def tokenizer_name(self) -> str:
        return self.model.tokenizer_digest

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's own."""
        return self.model.tokenizer.chat_template or None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's template writes it."""
        text: Any = self.model.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip
        return str(text)
