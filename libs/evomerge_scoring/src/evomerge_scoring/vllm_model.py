"""What vLLM's offline API answers: `LLM.generate`, `SamplingParams`, prompt log-probabilities.

Choices do not share rows: vLLM computes each prompt whose log-probabilities it tells from its first token on. Prompts
that are continued share what they begin with (its prefix cache).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from evomerge_common.errors import NonFiniteScore
from evomerge_scoring.model import Answer, Picture, Progress, Prompt, Row, Stop
from evomerge_scoring.pictures import Sight


@dataclass
class VllmModel:
    """One candidate in a vLLM engine; see `model.ScoringModel`.

    Attributes:
        end_engine: called once the model has answered NaN: its keys and values stay in the engine's memory, and from
            there spoil the answers of the candidates after it.

    """

    llm: Any
    end_engine: Callable[[], None]
    tokenizer: Any
    tokenizer_digest: str
    context: int
    vocabulary: int
    end_ids: frozenset[int]
    parameters: int
    weight_bytes: int
    device: torch.device
    dtype: torch.dtype
    masked: bool = False
    decoder_start: int | None = None
    sight: Any = field(default_factory=lambda: Sight(fault="vLLM is not given images; EVOMERGE_BACKEND=torch is"))
    tree: int = 0

    def describe(self, threads: int) -> str:
        """Where and how it computed."""
        del threads
        place = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{place} {str(self.dtype).removeprefix('torch.')} vllm"

    def answers(
        self, rows: Sequence[Row], size: int, progress: Progress | None = None, *, greedy: bool = False
    ) -> list[Answer]:
        """Log-probabilities of queried tokens, from vLLM's of the whole prompt; it batches as it likes."""
        from vllm import SamplingParams

        del size
        whole = [_with_last(row) for row in rows]
        options = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=int(greedy), detokenize=False)
        found = self.llm.generate([_prompt(ids) for ids in whole], options, use_tqdm=False)
        result = []
        for row, ids, output in zip(rows, whole, found, strict=True):
            table: list[Mapping[int, Any] | None] = output.prompt_logprobs
            entries = [(table[place + 1] or {}, ids[place + 1]) for place, _ in row.queries]
            values = [float(entry[token].logprob) for entry, token in entries]
            self._check(values)
            best = [max(float(one.logprob) for one in entry.values()) for entry, _ in entries] if greedy else []
            result.append(Answer(values, [value >= most for value, most in zip(values, best, strict=False)]))
        if progress:
            progress(range(len(rows)))
        return result

    def continuations(
        self, prompts: Sequence[Prompt], stop: Stop, size: int, progress: Progress | None = None
    ) -> list[list[int]]:
        """Greedy continuations without the end token; a stop string may still be in them."""
        from vllm import SamplingParams

        del size
        options = SamplingParams(
            max_tokens=stop.max_new_tokens, temperature=0.0, logprobs=0, stop=list(stop.strings) or None,
            include_stop_str_in_output=True, stop_token_ids=sorted(self.end_ids), ignore_eos=True,
        )  # fmt: skip
        texts = [_prompt(list(ids)) for ids in prompts if not isinstance(ids, Picture)]
        found = [output.outputs[0] for output in self.llm.generate(texts, options, use_tqdm=False)]
        for output in found:
            self._check([entry[token].logprob for token, entry in zip(output.token_ids, output.logprobs, strict=True)])
        if progress:
            progress(range(len(prompts)))
        return [[token for token in output.token_ids if token not in self.end_ids] for output in found]

    def _check(self, logprobs: Sequence[float]) -> None:
        if not all(map(math.isfinite, logprobs)):
            self.end_engine()
            raise NonFiniteScore("the model answered NaN or infinity; its weights are broken or overflow in this dtype")


def _with_last(row: Row) -> list[int]:
    """What is read, and the token that the last query asks about."""
    last = dict(row.queries).get(len(row.ids) - 1)
    return [*row.ids] if last is None else [*row.ids, last]


def _prompt(ids: list[int]) -> Any:
    from vllm import TokensPrompt

    return TokensPrompt(prompt_token_ids=ids)
