"""Greedy decoding of many prompts: left padding, one key-value cache, finished rows retired.

Ties go to the lowest token id. Plain attention models run in a loop of our own (transformers' generate costs more than
a small model's forward pass); others (state space, hybrid) go through `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from evomerge_common.errors import NonFiniteScore
from evomerge_evaluator.scoring.batches import compose
from evomerge_evaluator.scoring.forward import MASK_BUDGET, TOKEN_BUDGET, halving, own_mask
from evomerge_evaluator.scoring.prefix import Prefix, read_prefix, shared_length

if TYPE_CHECKING:
    from evomerge_evaluator.scoring.resident import LoadedModel

RETIRE_SHARE = 0.25  # of a batch's rows finished: then the cache is shrunk, not at every single one


@dataclass(frozen=True)
class Stop:
    """When a continuation ends: at one of the strings, an end token, or after `max_new_tokens`."""

    strings: tuple[str, ...]
    max_new_tokens: int

    @property
    def tail(self) -> int:
        """Last tokens among which a stop string would show up; a token may be a part of a character."""
        return 2 * max(map(len, self.strings), default=0) + 8


def generate(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    stop: Stop,
    size: int,
    progress: Callable[[Sequence[int]], None] | None = None,
) -> list[list[int]]:
    """New tokens of each prompt, without the end token; a stop string may still be in them (`cut` removes it).

    Raises:
        NonFiniteScore: the model answered NaN or infinity.
        OutOfMemory: not even one prompt fits.

    """
    result: list[list[int]] = [[] for _ in prompts]
    longest = max(map(len, prompts), default=0)
    own_loop = longest + stop.max_new_tokens <= model.tree
    shared = shared_length(prompts, min(map(len, prompts)) - 1) if own_loop and prompts else 0
    prefix = read_prefix(model, prompts[0][:shared]) if shared else Prefix()

    def fits(count: int, longest: int) -> bool:
        whole = longest + shared
        return count * whole <= TOKEN_BUDGET and count * longest * whole <= MASK_BUDGET

    def work(part: list[int]) -> list[list[int]]:
        chosen = [prompts[i] for i in part]
        return _greedy(model, chosen, stop, prefix) if own_loop else _library(model, chosen, stop)

    for batch in compose([len(ids) - shared for ids in prompts], size, fits=fits):
        for index, tokens in zip(batch, halving(work, batch), strict=True):
            result[index] = tokens
        if progress:
            progress(batch)
    return result


def cut(text: str, strings: Sequence[str]) -> str:
    """The text up to the first stop string."""
    found = [place for place in (text.find(s) for s in strings if s) if place >= 0]
    return text[: min(found)] if found else text


def _greedy(model: LoadedModel, prompts: list[Sequence[int]], stop: Stop, prefix: Prefix) -> list[list[int]]:
    shared = prefix.length
    width = max(map(len, prompts)) - shared
    steps = min(stop.max_new_tokens, model.context - width - shared)
    ids, seen = _left_padded(model, [prompt[shared:] for prompt in prompts], width)
    positions = (seen.long().cumsum(-1) - 1).clamp(min=0) + shared
    mask: torch.Tensor | None = None
    before = seen.new_ones(len(prompts), shared)
    if shared or not bool(seen.all()):
        causal = torch.ones(width, width, dtype=torch.bool, device=model.device).tril()
        itself = torch.eye(width, dtype=torch.bool, device=model.device)  # so that padding sees something
        own = (causal & seen[:, None, :]) | itself
        mask = own_mask(model, torch.cat([before[:, None, :].expand(-1, width, -1), own], dim=-1)[:, None])
    seen = torch.cat([before, seen], dim=1)
    cache = prefix.expanded(model, len(prompts))
    made: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))  # prompts in the batch's rows
    done: set[int] = set()
    with torch.inference_mode():
        for step in range(steps):
            tokens = _step(model, ids, mask, positions, cache)
            for prompt, token in zip(alive, tokens.tolist(), strict=True):
                if prompt in done:
                    continue
                if token in model.end_ids:
                    done.add(prompt)
                    continue
                made[prompt].append(token)
                if _stopped(model.tokenizer, made[prompt], stop):
                    done.add(prompt)
            if len(done) == len(prompts) or step + 1 == steps:
                break
            rows = [row for row, prompt in enumerate(alive) if prompt not in done]
            seen = torch.cat([seen, seen.new_ones(len(alive), 1)], dim=1)
            if len(alive) - len(rows) >= RETIRE_SHARE * len(alive):
                keep = torch.tensor(rows, device=model.device)
                cache.batch_select_indices(keep)
                tokens, seen, positions = tokens[keep], seen[keep], positions[keep]
                alive = [alive[row] for row in rows]
            positions = positions[:, -1:] + 1
            mask = None if bool(seen.all()) else own_mask(model, seen[:, None, None, :])
            ids = tokens[:, None]
    return made


def _step(
    model: LoadedModel, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: Any
) -> torch.Tensor:
    """The likeliest next token of each row."""
    count, width = ids.shape
    rows = torch.arange(count, device=model.device)
    with model.gather.positions(rows, torch.full_like(rows, width - 1)) as pick:
        output = model.module(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        logits = pick(output.logits)
    best, tokens = logits.max(-1)  # the lowest id among equals; NaN is greater than all
    if not bool(torch.isfinite(best).all()):
        raise NonFiniteScore("the model answered NaN or infinity; its weights are broken or overflow in this dtype")
    return tokens


def _left_padded(model: LoadedModel, prompts: list[Sequence[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    pad = model.tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    seen = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    return ids.to(model.device), seen.to(model.device)


def _stopped(tokenizer: Any, tokens: list[int], stop: Stop) -> bool:
    if not stop.strings:
        return False
    tail = tokenizer.decode(tokens[-stop.tail :], skip_special_tokens=True)
    return any(string in tail for string in stop.strings)


def _library(model: LoadedModel, prompts: list[Sequence[int]], stop: Stop) -> list[list[int]]:
    """Through transformers' generate, one length at a time: some of these models cannot skip padding."""
    made: list[list[int]] = [[] for _ in prompts]
    pad = model.tokenizer.pad_token_id or 0
    for length in sorted({len(p) for p in prompts}):
        group = [index for index, p in enumerate(prompts) if len(p) == length]
        ids = torch.tensor([list(prompts[index]) for index in group], device=model.device)
        options = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(1, min(stop.max_new_tokens, model.context - length)),
            eos_token_id=sorted(model.end_ids) or None,
            pad_token_id=pad,
            output_logits=True,
            return_dict_in_generate=True,
            stop_strings=list(stop.strings) or None,
        )
        with torch.inference_mode():
            output = model.module.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=options, tokenizer=model.tokenizer
            )
        if not all(bool(torch.isfinite(step.max(-1).values).all()) for step in output.logits):
            raise NonFiniteScore("the model answered NaN or infinity; its weights are broken or overflow in this dtype")
        for index, row in zip(group, output.sequences[:, length:].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in model.end_ids), len(row))
            made[index] = row[:end]
    return made
