"""Log-probabilities of chosen tokens, batch by batch.

A `Row` is what the model reads, and the queries that it answers: "at position p, how likely is token t?". Choices of
one prompt share a row: the prompt is read once, then each choice as a branch that sees the prompt and itself only, at
the positions that it would have alone (tree attention, as in SpecInfer, arXiv:2305.09781).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from evomerge_common.errors import NonFiniteScore, OutOfMemory
from evomerge_evaluator.scoring.batches import compose

if TYPE_CHECKING:
    from evomerge_evaluator.scoring.resident import LoadedModel

LOGIT_BUDGET = 1 << 27  # numbers in one batch's logits (512 MiB of float32)
MASK_BUDGET = 1 << 26  # numbers in one batch's attention mask
TOKEN_BUDGET = 1 << 16  # tokens in one batch, padding included
CHUNK = 1 << 24  # numbers of logits that a softmax works on at once


@dataclass(frozen=True)
class Row:
    """Tokens to read and queries to answer.

    Attributes:
        ids: tokens read: a prefix, then branches one after the other.
        queries: (position in `ids`, token) pairs.
        prefix: length of the prefix; all of `ids` when there are no branches.
        branches: lengths of the branches.

    """

    ids: tuple[int, ...]
    queries: tuple[tuple[int, int], ...]
    prefix: int
    branches: tuple[int, ...] = ()

    @classmethod
    def plain(cls, ids: Sequence[int], queries: Sequence[tuple[int, int]]) -> Row:
        """A row without branches."""
        return cls(tuple(ids), tuple(queries), len(ids))


class Gather:
    """Lets a model's output layer compute logits of chosen positions alone, whatever the model's class.

    A hook picks the hidden states before the output layer, so whatever the model does to its logits afterwards (soft
    capping, scaling) still happens.
    """

    def __init__(self, module: Any) -> None:
        self._chosen: tuple[torch.Tensor, torch.Tensor] | None = None
        head = module.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._hook)

    def _hook(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if self._chosen is None or inputs[0].dim() != 3:
            return inputs
        return (inputs[0][self._chosen].unsqueeze(0), *inputs[1:])

    @contextmanager
    def positions(self, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """Within it, logits come as (1, N, vocabulary) for N (row, column) pairs; yields what makes them (N, …)."""

        def pick(logits: torch.Tensor) -> torch.Tensor:
            if logits.shape[0] == 1 and logits.shape[1] == len(rows):
                return logits[0]
            return logits[rows, columns]

        self._chosen = (rows, columns)
        try:
            yield pick
        finally:
            self._chosen = None


@dataclass(frozen=True)
class Answer:
    """A row's queries answered, in their order.

    Attributes:
        logprobs: natural log-probability of each queried token.
        greedy: whether it is the likeliest of all tokens; empty unless asked for.

    """

    logprobs: list[float]
    greedy: list[bool] = field(default_factory=list)


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
    result: list[Answer] = [Answer([]) for _ in rows]
    branched = any(row.branches for row in rows)
    options = {"greedy": True} if greedy else {}

    def fits(count: int, longest: int) -> bool:
        tokens = count * longest
        return (
            tokens <= TOKEN_BUDGET
            and tokens * model.vocabulary <= LOGIT_BUDGET
            and (not branched or tokens * longest <= MASK_BUDGET)
        )

    for batch in compose([len(row.ids) for row in rows], size, fits=fits):
        answers = halving(lambda part: _score(model, [rows[i] for i in part], **options), batch)
        for index, answer in zip(batch, answers, strict=True):
            result[index] = answer
        if progress:
            progress(batch)
    return result


def halving(work: Callable[[list[int]], list[Any]], batch: list[int]) -> list[Any]:
    """Runs a batch; out of memory, its halves.

    Raises:
        OutOfMemory: one row alone does not fit.

    """
    try:
        return work(batch)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        if len(batch) == 1:
            raise OutOfMemory(f"one item alone does not fit into memory: {str(error)[:200]}") from None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(batch) + 1) // 2
    return halving(work, batch[:middle]) + halving(work, batch[middle:])


def _score(model: LoadedModel, rows: list[Row], *, greedy: bool = False) -> list[Answer]:
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    pad = model.tokenizer.pad_token_id or 0
    for index, row in enumerate(rows):
        ids[index] = torch.tensor([*row.ids, *[pad] * (width - len(row.ids))])
    # several choices may ask the same position: each position is computed once
    places: dict[tuple[int, int], int] = {}
    wanted = [
        [places.setdefault((index, position), len(places)) for position, _ in row.queries]
        for index, row in enumerate(rows)
    ]
    if not places:
        return [Answer([]) for _ in rows]
    where = torch.tensor(list(places), device=model.device)
    arguments: dict[str, Any] = {"input_ids": ids.to(model.device), **_attention(model, rows, width)}
    with torch.inference_mode(), model.gather.positions(where[:, 0], where[:, 1]) as pick:
        logits = pick(model.module(**arguments).logits)
        lines = torch.tensor([line for lines in wanted for line in lines], device=model.device)
        targets = torch.tensor([token for row in rows for _, token in row.queries], device=model.device)
        values = _log_softmax_at(logits, lines, targets)
        likeliest = (logits.argmax(-1)[lines] == targets).tolist() if greedy else []
    flat = values.tolist()
    if not all(map(math.isfinite, flat)):
        raise NonFiniteScore("the model answered NaN or infinity; its weights are broken or overflow in this dtype")
    answers = []
    start = 0
    for row in rows:
        end = start + len(row.queries)
        answers.append(Answer(flat[start:end], likeliest[start:end]))
        start = end
    return answers


def _attention(model: LoadedModel, rows: list[Row], width: int) -> dict[str, torch.Tensor | bool]:
    """What the model needs beside the ids. Padding is on the right: a causal model never looks there."""
    if model.masked:
        lengths = torch.tensor([[len(row.ids)] for row in rows])
        return {"attention_mask": (torch.arange(width)[None] < lengths).long().to(model.device)}
    if not any(row.branches for row in rows):
        return {"use_cache": False}
    branch = torch.full((len(rows), width), -1)
    positions = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        branch[index, : row.prefix] = 0
        positions[index, : row.prefix] = torch.arange(row.prefix)
        start = row.prefix
        for number, length in enumerate(row.branches, 1):
            branch[index, start : start + length] = number
            positions[index, start : start + length] = torch.arange(row.prefix, row.prefix + length)
            start += length
    seen = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    allowed = (seen & torch.ones(width, width, dtype=torch.bool).tril())[:, None]
    return {"attention_mask": own_mask(model, allowed), "position_ids": positions.to(model.device), "use_cache": False}


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
