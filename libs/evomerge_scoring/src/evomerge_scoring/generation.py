"""Greedy decoding of many prompts: left padding, one key-value cache, finished rows replaced by the next prompts.

Ties go to the lowest token id. Plain attention models run in a loop of our own (transformers' generate costs more than
a small model's forward pass); others (state space, hybrid) go through `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, StoppingCriteriaList

from evomerge_common.errors import NonFiniteScore
from evomerge_scoring.batches import compose
from evomerge_scoring.forward import MASK_BUDGET, TOKEN_BUDGET, halve, halving, on_device, own_mask
from evomerge_scoring.loaded import LoadedModel
from evomerge_scoring.model import Picture, Prompt, Stop
from evomerge_scoring.prefix import Prefix, read_prefix, shared_length

RETIRE_SHARE = 0.25  # of a batch's rows finished: then the cache is shrunk, not at every single one


def generate(
    model: LoadedModel,
    prompts: Sequence[Prompt],
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
    told = progress or _nothing
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, Picture):
            result[index] = _seen(model, prompt, stop)
            told([index])
    places = [index for index, prompt in enumerate(prompts) if not isinstance(prompt, Picture)]
    texts = [prompt for prompt in prompts if not isinstance(prompt, Picture)]
    made = _of_texts(model, texts, stop, size, lambda some: told([places[i] for i in some])) if texts else []
    for index, tokens in zip(places, made, strict=True):
        result[index] = tokens
    return result


def _of_texts(
    model: LoadedModel, prompts: Sequence[Sequence[int]], stop: Stop, size: int, told: Callable[[Sequence[int]], None]
) -> list[list[int]]:
    if max(map(len, prompts)) + stop.max_new_tokens <= model.tree:
        shared = shared_length(prompts, min(map(len, prompts)) - 1)
        prefix = read_prefix(model, prompts[0][:shared]) if shared else Prefix()
        return _Decoding(model, prompts, stop, prefix, told).run(size)
    result: list[list[int]] = [[] for _ in prompts]
    for batch in compose(list(map(len, prompts)), size, fits=lambda count, longest: count * longest <= TOKEN_BUDGET):
        made = halving(model, lambda part: _library(model, [prompts[i] for i in part], stop), batch)
        for index, tokens in zip(batch, made, strict=True):
            result[index] = tokens
        told(batch)
    return result


def _nothing(_: Sequence[int]) -> None:
    pass


def cut(text: str, strings: Sequence[str]) -> str:
    """The text up to the first stop string."""
    found = [place for place in (text.find(s) for s in strings if s) if place >= 0]
    return text[: min(found)] if found else text


@dataclass
class _Rows:
    """Prompts in work, one a row.

    Attributes:
        prompts: their numbers.
        ids: (rows, 1): the token that each row reads next.
        places: (rows, 1): its position.
        seen: (rows, columns): which of the cache's columns the row may look at. The shared beginning comes first, then
            padding, then the row's own tokens.

    """

    prompts: list[int]
    ids: torch.Tensor
    places: torch.Tensor
    seen: torch.Tensor
    cache: Any


class _Decoding:
    """At most `size` prompts are in work; when half of them are finished, the next ones take their rows.

    So a batch never waits for its longest answer (continuous batching, as in Orca, Yu et al., OSDI 2022). Who shares a
    batch follows from the prompts and from the model's own answers: from nothing that differs between two machines.
    """

    def __init__(
        self,
        model: LoadedModel,
        prompts: Sequence[Sequence[int]],
        stop: Stop,
        prefix: Prefix,
        progress: Callable[[Sequence[int]], None],
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._stop = stop
        self._prefix = prefix
        self._progress = progress
        self._made: list[list[int]] = [[] for _ in prompts]
        self._done: set[int] = set()
        self._longest_first = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))

    def run(self, size: int) -> list[list[int]]:
        """All continuations; out of memory, it goes on with half as many rows."""
        while True:
            waiting = [i for i in self._longest_first if i not in self._done]
            for index in waiting:
                self._made[index].clear()
            try:
                with torch.inference_mode():
                    self._work(waiting, size)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                halve(self._model, error, size)
                size //= 2
            else:
                return self._made

    def _work(self, waiting: list[int], size: int) -> None:
        rows: _Rows | None = None
        while waiting or rows is not None:
            batch = self._next(waiting, rows, size)
            if batch:
                del waiting[: len(batch)]
                parts = [part for part in (rows and self._kept(rows, 0.0), self._read(batch)) if part is not None]
                rows = self._joined(parts) if len(parts) > 1 else parts[0] if parts else None
            elif rows is not None:
                rows = self._kept(self._advanced(rows), RETIRE_SHARE)

    def _next(self, waiting: list[int], rows: _Rows | None, size: int) -> list[int]:
        """The prompts to be read now: none while most rows are in work."""
        alive = [] if rows is None else [prompt for prompt in rows.prompts if prompt not in self._done]
        if len(alive) > size // 2:
            return []
        batch: list[int] = []
        longest = max((len(self._prompts[i]) for i in [*alive, *waiting[:1]]), default=0) + self._stop.max_new_tokens
        if rows is not None and rows.seen.shape[1] + self._stop.max_new_tokens > self._model.tree:
            return []  # a sliding window would cut what the mask allows
        for prompt in waiting[: size - len(alive)]:
            count, own = len(batch) + 1, len(self._prompts[waiting[0]]) - self._prefix.length
            whole = (count + len(alive)) * longest
            if (batch or alive) and (whole > TOKEN_BUDGET or count * own * longest > MASK_BUDGET):
                break
            batch.append(prompt)
        return batch

    def _read(self, batch: list[int]) -> _Rows | None:
        """Reads prompts, all but their shared beginning; the rows that go on."""
        model, shared = self._model, self._prefix.length
        prompts = [self._prompts[i][shared:] for i in batch]
        width = max(map(len, prompts))
        ids, seen = _left_padded(model, prompts, width)
        places = (seen.long().cumsum(-1) - 1).clamp(min=0) + shared
        mask: torch.Tensor | None = None
        before = seen.new_ones(len(batch), shared)
        if shared or not bool(seen.all()):
            causal = torch.ones(width, width, dtype=torch.bool, device=model.device).tril()
            itself = torch.eye(width, dtype=torch.bool, device=model.device)  # so that padding sees something
            own = (causal & seen[:, None, :]) | itself
            mask = own_mask(model, torch.cat([before[:, None, :].expand(-1, width, -1), own], dim=-1)[:, None])
        cache = self._prefix.expanded(model, len(batch))
        tokens = _step(model, ids, mask, places, cache)
        rows = _Rows(batch, tokens[:, None], places[:, -1:] + 1, torch.cat([before, seen], dim=1), cache)
        self._note(rows)
        return self._kept(rows, 0.0)

    def _advanced(self, rows: _Rows) -> _Rows:
        """The rows after one more token of each."""
        rows.seen = torch.cat([rows.seen, rows.seen.new_ones(len(rows.prompts), 1)], dim=1)
        mask = None if bool(rows.seen.all()) else own_mask(self._model, rows.seen[:, None, None, :])
        rows.ids = _step(self._model, rows.ids, mask, rows.places, rows.cache)[:, None]
        rows.places = rows.places + 1
        self._note(rows)
        return rows

    def _note(self, rows: _Rows) -> None:
        """Takes in each row's new token."""
        ended = []
        for prompt, token in zip(rows.prompts, rows.ids[:, 0].tolist(), strict=True):
            if prompt in self._done:
                continue
            made = self._made[prompt]
            if token not in self._model.end_ids:
                made.append(token)
                room = min(self._stop.max_new_tokens, self._model.context - len(self._prompts[prompt]))
                if len(made) < room and not _stopped(self._model.tokenizer, made, self._stop):
                    continue
            ended.append(prompt)
        self._done.update(ended)
        if ended:
            self._progress(ended)

    def _kept(self, rows: _Rows, share: float) -> _Rows | None:
        """The rows without the finished ones, if these are at least a share of all."""
        alive = [row for row, prompt in enumerate(rows.prompts) if prompt not in self._done]
        if not alive:
            return None
        finished = len(rows.prompts) - len(alive)
        if not finished or finished < share * len(rows.prompts):
            return rows
        keep = torch.tensor(alive, device=self._model.device)
        rows.cache.batch_select_indices(keep)
        rows.prompts = [rows.prompts[row] for row in alive]
        rows.ids, rows.places, rows.seen = rows.ids[keep], rows.places[keep], rows.seen[keep]
        return rows

    def _joined(self, parts: list[_Rows]) -> _Rows:
        """All in one: padding behind the shared beginning makes them equally wide."""
        shared = self._prefix.length
        # Columns that no row looks at any more are left out.
        starts = [shared + int(part.seen[:, shared:].any(0).int().argmax()) for part in parts]
        width = max(part.seen.shape[1] - start for part, start in zip(parts, starts, strict=True))

        def together(tensors: Iterable[torch.Tensor], dim: int) -> torch.Tensor:
            widened = []
            for tensor, start in zip(tensors, starts, strict=True):
                own = tensor.narrow(dim, start, tensor.shape[dim] - start)
                padding = own.new_zeros(*own.shape[:dim], width - own.shape[dim], *own.shape[dim + 1 :])
                widened.append(torch.cat([tensor.narrow(dim, 0, shared), padding, own], dim=dim))
            return torch.cat(widened)

        cache = DynamicCache(config=self._model.module.config)
        for index, layers in enumerate(zip(*(part.cache.layers for part in parts), strict=True)):
            keys, values = together((one.keys for one in layers), 2), together((one.values for one in layers), 2)
            cache.update(keys, values, index)
        return _Rows(
            [prompt for part in parts for prompt in part.prompts],
            torch.cat([part.ids for part in parts]),
            torch.cat([part.places for part in parts]),
            together((part.seen for part in parts), 1),
            cache,
        )


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
    pad = model.padding
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
    for length in sorted({len(p) for p in prompts}):
        group = [index for index, p in enumerate(prompts) if len(p) == length]
        ids = torch.tensor([list(prompts[index]) for index in group], device=model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for index, tokens in zip(group, _generated(model, inputs, length, stop), strict=True):
            made[index] = tokens
    return made


def _seen(model: LoadedModel, picture: Picture, stop: Stop) -> list[int]:
    """The continuation of a text with an image in it."""
    inputs = on_device(model, model.sight.inputs(picture))
    (made,) = _generated(model, inputs, inputs["input_ids"].shape[1], stop)
    return made


def _generated(model: LoadedModel, inputs: Mapping[str, Any], length: int, stop: Stop) -> list[list[int]]:
    """What transformers' generate makes of rows of `length` tokens; a decoder's own rows begin with one."""
    before = length if model.decoder_start is None else 1
    options = GenerationConfig(
        do_sample=False,
        max_new_tokens=max(1, min(stop.max_new_tokens, model.context - before)),
        eos_token_id=sorted(model.end_ids) or None,
        pad_token_id=model.padding,
        decoder_start_token_id=model.decoder_start,
        output_logits=True,
        return_dict_in_generate=True,
    )

    def stopped(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """A stop string may be one that no token has (T5 and a line break), which transformers' own refuses."""
        rows = [_stopped(model.tokenizer, row, stop) for row in ids[:, before:].tolist()]
        return torch.tensor(rows, device=ids.device)

    with torch.inference_mode():
        output = model.module.generate(
            **inputs, generation_config=options, stopping_criteria=StoppingCriteriaList([stopped])
        )
    if not all(bool(torch.isfinite(step.max(-1).values).all()) for step in output.logits):
        raise NonFiniteScore("the model answered NaN or infinity; its weights are broken or overflow in this dtype")
    rows = output.sequences[:, before:].tolist()
    ends = [next((place for place, token in enumerate(row) if token in model.end_ids), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]
