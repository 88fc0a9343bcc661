"""vLLM's offline API as 0.32 has it, computed by transformers: the parts that scoring uses, and their traps.

Names, arguments and answers are those of the real one (`test_scoring_backend.py` compares the signatures where vLLM is
installed). As there, weights are loaded in place and what is missing stays; keys and values of prompts are remembered
by tokens alone, whatever weights made them, until `reset_prefix_cache`; a prompt whose log-probabilities are asked for
is computed afresh; a prompt must be shorter than `max_model_len`; and once a model has computed NaN, the engine's
memory holds it, and every later answer is NaN.
"""

from __future__ import annotations

import copy
import importlib.machinery
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

BLOCK = 4


class SamplingParams:
    def __init__(
        self,
        *,
        temperature: float = 1.0,
        max_tokens: int = 16,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        stop: list[str] | None = None,
        stop_token_ids: list[int] | None = None,
        ignore_eos: bool = False,
        include_stop_str_in_output: bool = False,
        detokenize: bool = True,
    ) -> None:
        assert temperature == 0.0, "greedy"
        assert detokenize or not stop
        assert include_stop_str_in_output or not stop
        self.max_tokens, self.logprobs, self.prompt_logprobs = max_tokens, logprobs, prompt_logprobs
        self.stop, self.ends = stop or [], set(stop_token_ids or ())
        self.ignore_eos = ignore_eos


class LLM:
    """One engine; `engines` lists all that were started."""

    engines: list[LLM] = []  # noqa: RUF012 - a test empties it

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        seed: int = 0,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        enable_prefix_caching: bool = False,
        generation_config: str = "auto",
    ) -> None:
        assert not trust_remote_code
        self.dtype = getattr(torch, dtype)
        self.module = AutoModelForCausalLM.from_pretrained(model, dtype=self.dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        config = SimpleNamespace(max_model_len=self.module.config.max_position_embeddings, dtype=self.dtype)
        core = SimpleNamespace(shutdown=lambda: setattr(self, "module", None))
        self.llm_engine = SimpleNamespace(model_config=config, engine_core=core)
        self.caching, self.stuck, self.spoilt = enable_prefix_caching, False, False
        self.remembered: dict[tuple[int, ...], Any] = {}
        self.paths: list[str] = []
        self.engines.append(self)

    def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[()] = (), kwargs: dict[str, Any] | None = None
    ) -> list[Any]:
        assert method == "reload_weights"
        self._reload_weights(*args, **(kwargs or {}))
        return [None]

    def _reload_weights(
        self,
        weights_iterator: Iterable[tuple[str, torch.Tensor]] | None = None,
        weights_path: str | None = None,
        is_checkpoint_format: bool = True,
    ) -> None:
        assert is_checkpoint_format
        if weights_iterator is None:
            assert weights_path is not None
            self.paths.append(weights_path)
            files = sorted(Path(weights_path).glob("*.safetensors"))
            weights_iterator = [pair for file in files for pair in load_file(file).items()]
        own = self.module.state_dict()
        for name, tensor in weights_iterator:
            own[name].copy_(tensor)

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        if not self.stuck:
            self.remembered.clear()
        return not self.stuck

    def generate(self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True) -> list[Any]:
        with torch.no_grad():
            return [self._one(list(prompt["prompt_token_ids"]), sampling_params) for prompt in prompts]

    def _one(self, ids: list[int], options: SamplingParams) -> Any:
        assert 0 < len(ids) < self.llm_engine.model_config.max_model_len
        made: list[int] = []
        entries: list[dict[int, Any]] = []
        past, known = self._past(ids) if options.prompt_logprobs is None else (None, 0)
        output = self.module(torch.tensor([ids[known:]]), past_key_values=past, use_cache=True)
        self.spoilt = self.spoilt or bool(output.logits.isnan().any())
        if self.spoilt:
            output.logits = output.logits * torch.nan
        whole = output.logits[0].float().log_softmax(-1)
        length = self.llm_engine.model_config.max_model_len - len(ids)
        for _ in range(min(options.max_tokens, length)):
            last = output.logits[0, -1].float().log_softmax(-1)
            token = int(last.argmax())
            made.append(token)
            entries.append({token: SimpleNamespace(logprob=float(last[token]), rank=1)})
            eos = not options.ignore_eos and token == self.tokenizer.eos_token_id
            if eos or token in options.ends or any(stop in self.tokenizer.decode(made) for stop in options.stop):
                break
            output = self.module(torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
        table = None
        if options.prompt_logprobs is not None:
            table = [None, *(self._entry(row, token, options) for row, token in zip(whole, ids[1:], strict=False))]
        logprobs = None if options.logprobs is None else entries
        return SimpleNamespace(prompt_logprobs=table, outputs=[SimpleNamespace(token_ids=made, logprobs=logprobs)])

    def _entry(self, row: torch.Tensor, token: int, options: SamplingParams) -> dict[int, Any]:
        wanted = {*row.topk(options.prompt_logprobs or 0).indices.tolist(), token}
        return {one: SimpleNamespace(logprob=float(row[one]), rank=int((row >= row[one]).sum())) for one in wanted}

    def _past(self, ids: list[int]) -> tuple[Any, int]:
        """Keys and values of the prompt's whole blocks but the last token: those that are remembered, if any."""
        known = (len(ids) - 1) // BLOCK * BLOCK if self.caching else 0
        if not known:
            return None, 0
        key = tuple(ids[:known])
        if key not in self.remembered:
            self.remembered[key] = self.module(torch.tensor([ids[:known]]), use_cache=True).past_key_values
        return copy.deepcopy(self.remembered[key]), known


def module() -> Any:
    """The module `vllm`."""
    made: Any = ModuleType("vllm")
    made.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    made.LLM, made.SamplingParams, made.TokensPrompt = LLM, SamplingParams, dict
    return made
