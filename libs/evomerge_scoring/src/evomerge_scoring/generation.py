"""Greedy decoding of many prompts: they are read as scored rows are, then a token of each at once, from one cache.

Ties go to the lowest token id. Plain attention models run in a loop of our own (transformers' generate costs more than
a small model's forward pass); others (state space, hybrid) go through `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from evomerge_common.errors import NonFiniteScore
from evomerge_scoring.batches import compose, share
from evomerge_scoring.config import text_config
from evomerge_scoring.forest import forest, gather
from evomerge_scoring.forward import MASK_BUDGET, TOKEN_BUDGET, arguments_of, halve, halving, on_device, own_mask
from evomerge_scoring.lanes import in_lanes
from evomerge_scoring.loaded import LoadedModel
from evomerge_scoring.model import Picture, Prompt, Row, Stop
from evomerge_scoring.prefix import Prefix, read_prefix, shared_length
from evomerge_scoring.slots import Slots

MOST_ROWS = 128
CACHE_BYTES = 1 << 29
"""So many rows are decoded at once where their keys and values take no more: a step reads all weights anyway."""


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


def rows_at_once(model: LoadedModel, prompts: Sequence[Prompt], stop: Stop, size: int) -> int:
    """Rows to decode at once: at least `size`, more while they are cheap; from prompts and config alone."""
    config = text_config(model.module.config)
    longest = max((len(p) for p in prompts if not isinstance(p, Picture)), default=0) + stop.max_new_tokens
    if longest > model.tree:
        return size
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = int(2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * longest)
    return max(size, min(MOST_ROWS, CACHE_BYTES // row))


def _nothing(_: Sequence[int]) -> None:
    pass


def cut(text: str, strings: Sequence[str]) -> str:
    """The text up to the first stop string."""
    found = [place for place in (text.find(s) for s in strings if s) if place >= 0]
    return text[: min(found)] if found else text


class _Decoding:
    """At most `size` prompts are in work; when half of them are finished, the next ones take their rows.

    So a batch never waits for its longest answer (continuous batching, as in Orca, Yu et al., OSDI 2022), and a row
    that is finished costs nothing more. Who shares a batch follows from the prompts, the threads and the model's own
    answers: from nothing that differs between two machines.
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
        slots = Slots()
        rows: list[int] = []  # the prompts in work, in the order of their slots
        while waiting or rows:
            batch = self._next(waiting, rows, size)
            if batch:
                del waiting[: len(batch)]
                rows = self._read(batch, slots, rows, size)
            else:
                self._advance(slots, rows)
            rows = self._kept(slots, rows)

    def _next(self, waiting: list[int], rows: list[int], size: int) -> list[int]:
        """The prompts to be read now: none while most rows are in work."""
        if len(rows) > size // 2:
            return []
        longest = max((len(self._prompts[i]) for i in [*rows, *waiting[:1]]), default=0) + self._stop.max_new_tokens
        count = min(size, max(1, TOKEN_BUDGET // longest)) - len(rows)
        return waiting[: max(count, 0)]

    def _read(self, batch: list[int], slots: Slots, rows: list[int], size: int) -> list[int]:
        """Reads prompts, all but their shared beginning; the rows in work with them."""
        model, shared = self._model, self._prefix.length
        own = [Row.plain(p[shared:], [(len(p) - shared - 1, 0)]) for p in (self._prompts[i] for i in batch)]
        groups = gather(own, model.tree - shared)
        widths = [len(forest([own[i] for i in some], shared=True)[0].ids) for some in groups]

        def fits(count: int, longest: int) -> bool:
            return count * (longest + shared) <= min(TOKEN_BUDGET, MASK_BUDGET // longest)

        batches = compose(widths, share(len(groups), size, model.lanes), fits=fits)

        def read(places: list[int]) -> tuple[Any, list[list[list[int]]], list[int]]:
            with torch.inference_mode():
                return self._answered([[own[number] for number in groups[place]] for place in places])

        results = in_lanes(read, batches, min(model.lanes, len(batches)))
        for some, (cache, stands, tokens) in zip(batches, results, strict=True):
            numbers = [batch[number] for place in some for number in groups[place]]
            paths = [path for row in stands for path in row]
            width = max(map(len, paths))
            before = range(shared)
            columns = [[*before, *(shared + p for p in path), *[0] * (width - len(path))] for path in paths]
            slots.take(
                cache,
                torch.arange(len(rows), len(rows) + len(numbers), device=model.device),
                torch.tensor([line for line, row in enumerate(stands) for _ in row], device=model.device),
                torch.tensor(columns, device=model.device),
                len(rows) + len(numbers),
            )
            rows = [*rows, *numbers]
            self._note(numbers, tokens)
        return rows

    def _answered(self, groups: list[list[Row]]) -> tuple[Any, list[list[list[int]]], list[int]]:
        """The cache of groups of rows, where in it each row's tokens stand, and the likeliest next token of each."""
        model = self._model
        made = [forest(some, shared=True) for some in groups]
        cache = self._prefix.expanded(len(groups))
        arguments = arguments_of(model, [row for row, _ in made], self._prefix)
        arguments |= {"past_key_values": cache, "use_cache": True}
        where = torch.tensor([(line, place) for line, (row, _) in enumerate(made) for place, _ in row.queries])
        return cache, [places for _, places in made], _likeliest(model, where.to(model.device), arguments)

    def _advance(self, slots: Slots, rows: list[int]) -> None:
        """Reads the last token of each row; notes the next."""
        model = self._model
        ids = torch.tensor([[self._made[prompt][-1]] for prompt in rows], device=model.device)
        at = torch.tensor([len(self._prompts[p]) + len(self._made[p]) - 1 for p in rows], device=model.device)
        arguments = {
            "input_ids": ids, "attention_mask": own_mask(model, slots.step(at)), "position_ids": at[:, None],
            "past_key_values": slots, "use_cache": True,
        }  # fmt: skip
        where = torch.stack([slots.rows, torch.zeros_like(slots.rows)], dim=1)
        self._note(rows, _likeliest(model, where, arguments))

    def _note(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Takes in each row's new token."""
        ended = []
        for prompt, token in zip(rows, tokens, strict=True):
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

    def _kept(self, slots: Slots, rows: list[int]) -> list[int]:
        """The rows without the finished ones, whose slots the last ones take."""
        count = sum(prompt not in self._done for prompt in rows)
        free = [slot for slot in range(count) if rows[slot] in self._done]
        last = [slot for slot in range(count, len(rows)) if rows[slot] not in self._done]
        slots.move(last, free)
        kept = rows[:count]
        for source, target in zip(last, free, strict=True):
            kept[target] = rows[source]
        return kept


def _likeliest(model: LoadedModel, where: torch.Tensor, arguments: Mapping[str, Any]) -> list[int]:
    """The likeliest token behind each (row, place) of a forward pass."""
    with model.gather.positions(where[:, 0], where[:, 1]) as pick:
        logits = pick(model.module(**arguments).logits)
    best, tokens = logits.max(-1)  # the lowest id among equals; NaN is greater than all
    if not bool(torch.isfinite(best).all()):
        raise NonFiniteScore("the model answered NaN or infinity; its weights are broken or overflow in this dtype")
    return [int(token) for token in tokens.tolist()]


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
