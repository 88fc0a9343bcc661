"""The demo family's tokenizer and its training loop: small, deterministic, for two CPU threads."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge_cli.demo.data import Row

VOCABULARY = 1536
CONTEXT = 256
END = "<|endoftext|>"
PAD = "<|pad|>"


@dataclass(frozen=True)
class Shape:
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 384


def train_tokenizer(rows: Iterable[Row]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on the rows' texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row.prompt + row.answer for row in rows), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int, shape: Shape = Shape()) -> LlamaForCausalLM:
    """Makes a small Llama with random weights, the same for the same seed."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


Batch = tuple[torch.Tensor, torch.Tensor]  # token ids, labels


class Encoded:
    """A task's rows as token ids; batches are drawn without replacement, epoch after epoch."""

    def __init__(self, name: str, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, batch: int, seed: int):
        end = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id
        self.rows = []
        newline = tokenizer.encode("\n", add_special_tokens=False)
        prompts = tokenizer([row.prompt for row in rows], add_special_tokens=False)["input_ids"]
        answers = tokenizer([row.answer for row in rows], add_special_tokens=False)["input_ids"]
        for row, prompt, answer in zip(rows, prompts, answers, strict=True):
            ids = [*prompt, *answer, *(newline if row.prompt else []), end]
            self.rows.append((ids, len(prompt)))
        self.rng = random.Random(f"batches:{name}:{seed}")
        self.batch = batch
        self.end = end
        self.queue: list[int] = []

    def next(self) -> Batch:
        """Draws the next batch: token ids and labels (rows, tokens), int64; −100 where no loss is taken."""
        if len(self.queue) < self.batch:
            self.queue = list(range(len(self.rows)))
            self.rng.shuffle(self.queue)
        chosen = [self.rows[self.queue.pop()] for _ in range(self.batch)]
        bos = [self.rng.random() < 0.5 for _ in chosen]
        width = max(len(ids) for ids, _ in chosen) + 1
        tokens = torch.full((len(chosen), width), self.pad)
        labels = torch.full((len(chosen), width), -100)
        for i, ((ids, prompt), b) in enumerate(zip(chosen, bos, strict=True)):
            if b:
                ids, prompt = [self.end, *ids], prompt + 1 if prompt else 0  # noqa: PLW2901
            t = torch.tensor(ids)
            tokens[i, : len(ids)] = t
            labels[i, prompt : len(ids)] = t[prompt:]
        return tokens, labels


class Muon:
    """Muon (Jordan et al. 2024): momentum whose update is made orthogonal by five Newton-Schulz steps.

    torch.optim.Muon works matrix by matrix in bfloat16; here matrices of one shape go through one batched
    float32 product, several times faster on a CPU.
    """

    def __init__(self, matrices: Iterable[torch.nn.Parameter], momentum: float = 0.95, decay: float = 0.01):
        groups: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            groups.setdefault(matrix.shape, []).append(matrix)
        self.groups = [(group, torch.zeros(len(group), *shape)) for shape, group in groups.items()]
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, rate: float) -> None:
        """Updates the matrices once, at a learning rate."""
        for group, buffer in self.groups:
            gradient = torch.stack([m.grad for m in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            x = gradient.lerp_(buffer, self.momentum)
            tall = x.shape[1] > x.shape[2]
            if tall:
                x = x.transpose(1, 2)
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                gram = x @ x.transpose(1, 2)
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            scale = max(1.0, group[0].shape[0] / group[0].shape[1]) ** 0.5
            if tall:
                x = x.transpose(1, 2)
            for matrix, update in zip(group, x, strict=True):
                matrix.mul_(1 - rate * self.decay).add_(update, alpha=-rate * scale)


def train(
    model: Any,
    tasks: Sequence[tuple[Encoded, int]],
    *,
    steps: int,
    rate: float,
    adam: float,
    warmup: int = 10,
    progress: Callable[[float], None] = lambda _: None,
) -> list[list[float]]:
    """Trains the model on all tasks, each at every so many steps; returns the losses of each step.

    Args:
        model: a causal model of transformers whose parts are `model` and `lm_head`.
        rate: learning rate of the matrices (Muon); `adam`: of the rest.

    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in n)]
    muon = Muon(matrices)
    optimizer = torch.optim.AdamW(rest, lr=adam, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    log = []
    for step in range(steps):
        factor = min(1.0, (step + 1) / warmup) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = adam * factor
        row = []
        for encoded, every in tasks:
            if step % every:
                continue
            tokens, labels = encoded.next()
            hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
            keep = labels[:, 1:] != -100
            logits = model.lm_head(hidden[keep])
            loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:][keep])
            loss.backward()
            row.append(loss.item())
        muon.step(rate * factor)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        log.append(row)
        progress((step + 1) / steps)
    model.eval()
    return log
