"""Log-probabilities of chosen tokens, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from evomerge_common.errors import ModelError, NonFiniteScore, OutOfMemory
from evomerge_scoring.batches import compose, pack, share
from evomerge_scoring.forest import forest
from evomerge_scoring.lanes import in_lanes
from evomerge_scoring.loaded import LoadedModel
from evomerge_scoring.model import Answer, Row
from evomerge_scoring.prefix import Prefix, read_prefix, shared_length

LOGIT_BUDGET = 1 << 27  # numbers in one batch's logits (512 MiB of float32)
MASK_BUDGET = 1 << 26  # numbers in one batch's attention mask
TOKEN_BUDGET = 1 << 16  # tokens in one batch, padding included
NO_PREFIX = Prefix()
CHUNK = 1 << 24  # numbers of logits that a softmax works on at once
PACKING_SAVES = 0.1  # of a batch's tokens, at least: then rows are read side by side instead of padding


def token_answers(
    model: LoadedModel,
    rows: Sequence[Row],
    size: int,
    progress: Callable[[Sequence[int]], None] | None = None,
    *,
    greedy: bool = False,
) -> list[Answer]:
    """How likely each row's queried tokens are.

    Args:
        model: the resident model.
        rows: any number of them.
        size: rows a batch, at most.
        progress: called with the numbers of the rows of a finished batch.
        greedy: also tell whether each token is the likeliest.

    Raises:
        NonFiniteScore: the model answered NaN or infinity.
        OutOfMemory: not even one row fits.

    """
    if any(row.picture for row in rows):
        return _with_pictures(model, rows, size, progress, greedy=greedy)
    result: list[Answer] = [Answer([]) for _ in rows]
    prefix = _shared(model, rows)
    shared = prefix.length
    masked_rows = shared > 0 or any(row.ends for row in rows)
    options: dict[str, Any] = {"greedy": greedy, "prefix": prefix} if greedy or shared else {}

    def fits(count: int, longest: int) -> bool:
        tokens = count * longest
        return (
            tokens + count * shared <= TOKEN_BUDGET
            and tokens * model.vocabulary <= LOGIT_BUDGET
            and (not masked_rows or tokens * (longest + shared) <= MASK_BUDGET)
        )

    def answered(batch: list[int]) -> list[Answer]:
        return halving(model, lambda part: _score(model, [rows[i] for i in part], **options), batch)

    lengths = [len(row.ids) + len(row.source) - shared for row in rows]
    batches = compose(lengths, share(len(rows), size, model.lanes), fits=fits)
    for batch, answers in zip(batches, in_lanes(answered, batches, min(model.lanes, len(batches))), strict=True):
        for index, answer in zip(batch, answers, strict=True):
            result[index] = answer
        if progress:
            progress(batch)
    return result


def _with_pictures(
    model: LoadedModel,
    rows: Sequence[Row],
    size: int,
    progress: Callable[[Sequence[int]], None] | None,
    *,
    greedy: bool,
) -> list[Answer]:
    """Rows with an image are read one by one, the others as ever."""
    told = progress or (lambda _: None)
    found: dict[int, Answer] = {}
    for number, row in enumerate(rows):
        if row.picture:
            (found[number],) = _read(model, [row], [[0]], greedy, NO_PREFIX)
            told([number])
    plain = [number for number in range(len(rows)) if number not in found]
    answers = token_answers(
        model, [rows[n] for n in plain], size, lambda some: told([plain[n] for n in some]), greedy=greedy
    )
    found.update(zip(plain, answers, strict=True))
    return [found[number] for number in range(len(rows))]


def halving(model: LoadedModel, work: Callable[[list[int]], list[Any]], batch: list[int]) -> list[Any]:
    """Runs a batch; out of memory, its halves.

    Raises:
        OutOfMemory: one row alone does not fit.

    """
    try:
        return work(batch)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        halve(model, error, len(batch))
    middle = (len(batch) + 1) // 2
    return halving(model, work, batch[:middle]) + halving(model, work, batch[middle:])


def halve(model: LoadedModel, error: Exception, count: int) -> None:
    """Makes room after a batch that did not fit, and notes it; raises what halving cannot mend."""
    if type(error) is RuntimeError and "memory" not in str(error):
        raise error
    if count == 1:
        raise OutOfMemory(f"one item alone does not fit into memory: {str(error)[:200]}") from None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    model.halved += 1


def _shared(model: LoadedModel, rows: Sequence[Row]) -> Prefix:
    """What all rows begin with and none asks about, where the model takes masks of ours."""
    if len(rows) < 2 or max(len(row.ids) for row in rows) > model.tree:
        return Prefix()
    limit = min(min((p for p, _ in row.queries), default=len(row.ids) - 1) for row in rows)
    limit = min(limit, *(min(row.trunk, len(row.ids) - 1) for row in rows))
    count = shared_length([row.ids for row in rows], limit)
    return read_prefix(model, rows[0].ids[:count])


def _score(model: LoadedModel, rows: list[Row], *, greedy: bool = False, prefix: Prefix = NO_PREFIX) -> list[Answer]:
    if prefix.length:
        rows = [row.behind(prefix.length) for row in rows]
    width = max(len(row.ids) for row in rows)
    bins = pack([len(row.ids) for row in rows], width) if model.tree else []
    bins = (
        bins if worth_packing(len(rows), len(bins), width, width + prefix.length) else [[i] for i in range(len(rows))]
    )
    answers = dict(zip((i for some in bins for i in some), _read(model, rows, bins, greedy, prefix), strict=True))
    return [answers[index] for index in range(len(rows))]


def _read(model: LoadedModel, rows: list[Row], bins: list[list[int]], greedy: bool, prefix: Prefix) -> list[Answer]:
    """Answers of all rows, bin by bin: the rows of a bin are read side by side."""
    ordered = [rows[index] for some in bins for index in some]
    rows = [rows[some[0]] if len(some) == 1 else forest([rows[index] for index in some])[0] for some in bins]
    # several choices may ask the same position: each position is computed once
    places: dict[tuple[int, int], int] = {}
    wanted = [
        [places.setdefault((index, position), len(places)) for position, _ in row.queries]
        for index, row in enumerate(rows)
    ]
    if not places:
        return [Answer([]) for _ in ordered]
    where = torch.tensor(list(places), device=model.device)
    arguments = arguments_of(model, rows, prefix)
    with torch.inference_mode(), model.gather.positions(where[:, 0], where[:, 1]) as pick:
        logits = pick(output_of(model.module, arguments).logits)
        lines = torch.tensor([line for lines in wanted for line in lines], device=model.device)
        targets = torch.tensor([token for row in rows for _, token in row.queries], device=model.device)
        values = _log_softmax_at(logits, lines, targets)
        likeliest = (logits.argmax(-1)[lines] == targets).tolist() if greedy else []
    flat = values.tolist()
    if not all(map(math.isfinite, flat)):
        raise NonFiniteScore("the model answered NaN or infinity; its weights are broken or overflow in this dtype")
    answers = []
    start = 0
    for row in ordered:
        end = start + len(row.queries)
        answers.append(Answer(flat[start:end], likeliest[start:end]))
        start = end
    return answers


def worth_packing(count: int, packed: int, width: int, seen: int) -> bool:
    """Whether `packed` rows instead of `count` spare enough; their mask (each token by `seen` others) must fit."""
    return 0 < packed <= (1 - PACKING_SAVES) * count and packed * width * seen <= MASK_BUDGET


def arguments_of(model: LoadedModel, rows: list[Row], prefix: Prefix) -> dict[str, Any]:
    """What the model's forward takes of these rows, padded on the right."""
    picture = rows[0].picture
    if picture is not None:
        return {**on_device(model, model.sight.inputs(picture)), "use_cache": False}
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[model.padding] * (width - len(row.ids))] for row in rows])
    if model.decoder_start is None:
        return {"input_ids": ids.to(model.device), **_attention(model, rows, ids.shape[1], prefix)}
    sources, seen = padded(model, [row.source for row in rows])
    return {
        "input_ids": sources, "attention_mask": seen, "decoder_input_ids": ids.to(model.device), "use_cache": False,
    }  # fmt: skip


def padded(model: LoadedModel, sources: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """What an encoder reads, (rows, tokens) int64, padded on the right, and which of it counts."""
    width = max(map(len, sources))
    ids = torch.tensor([[*source, *[model.padding] * (width - len(source))] for source in sources])
    lengths = torch.tensor([[len(source)] for source in sources])
    return ids.to(model.device), (torch.arange(width)[None] < lengths).long().to(model.device)


def on_device(model: LoadedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A processor's tensors where the model is; pixels in the model's dtype."""
    return {
        name: one.to(model.device, model.dtype if one.is_floating_point() else None)
        for name, one in inputs.items()
        if isinstance(one, torch.Tensor)
    }


def output_of(module: Any, arguments: Mapping[str, Any]) -> Any:
    """What a model's forward answers.

    Raises:
        ModelError: its class cannot read a text alone.

    """
    try:
        return module(**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"transformers' {type(module).__name__} does not answer to a text as it is: "
            f"{' '.join(str(error).split())[:300]}; such a model cannot be scored; `evomerge merge` merges it"
        ) from error


def _attention(model: LoadedModel, rows: list[Row], width: int, prefix: Prefix) -> dict[str, Any]:
    """What the model needs beside the ids. Padding is on the right: a causal model never looks there."""
    if model.masked:
        lengths = torch.tensor([[len(row.ids)] for row in rows])
        return {"attention_mask": (torch.arange(width)[None] < lengths).long().to(model.device)}
    if not prefix.length and not any(row.ends for row in rows):
        return {"use_cache": False}
    places = torch.arange(width)
    ends = torch.full((len(rows), width), width)
    positions = places.repeat(len(rows), 1)
    for index, row in enumerate(rows):
        if row.ends:
            ends[index, : len(row.ends)] = torch.tensor(row.ends)
            positions[index, : len(row.depths)] = torch.tensor(row.depths)
    # padding in a wide tree would stand beyond the last position that the model knows
    positions = (positions + prefix.length).clamp(max=model.context - 1).to(model.device)
    allowed = ((places[:, None] < ends[:, None, :]) & (places[None, :] <= places[:, None]))[:, None]
    if not prefix.length:
        mask = own_mask(model, allowed)
        return {"attention_mask": mask, "position_ids": positions, "use_cache": False}
    before = torch.ones(len(rows), 1, width, prefix.length, dtype=torch.bool)
    return {
        "attention_mask": own_mask(model, torch.cat([before, allowed], dim=-1)),
        "position_ids": positions,
        "past_key_values": prefix.expanded(len(rows)),
        "use_cache": True,
    }


def own_mask(model: LoadedModel, allowed: torch.Tensor) -> torch.Tensor:
    """A mask (rows, 1, queries, keys) in the form that the model's attention takes as it is; True: may look."""
    allowed = allowed.to(model.device)
    if model.module.config.get_text_config()._attn_implementation == "sdpa":
        return allowed
    zero = torch.zeros((), dtype=model.dtype, device=model.device)  # eager attention adds it to its scores
    return torch.where(allowed, zero, torch.finfo(model.dtype).min)


def _log_softmax_at(logits: torch.Tensor, lines: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Gives log softmax(logits[line])[target] in float32 for each pair, without a copy of all logits."""
    step = max(1, CHUNK // logits.shape[-1])
    totals = torch.cat([part.float().logsumexp(-1) for part in logits.split(step)])
    return logits[lines, targets].float() - totals[lines]
