"""Small random models of many kinds, with a real BPE tokenizer trained on the spot, and items to ask them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from evomerge_common.domain.suite import Suite

transformers.utils.logging.disable_progress_bar()

CORPUS = [
    "The quick brown fox jumps over the lazy dog.", "1 + 1 = 2, 2 + 2 = 4, and 12 + 30 = 42.",
    "def add(a, b):\n    return a + b\n", "Review: the soup was good.\nVerdict: excellent", "naïve café, Ünïcödé — ok",
] * 4  # fmt: skip
CONTEXT = 64

CHOICES: list[dict[str, Any]] = [
    {"prompt": "1 + 1 =", "choices": [" 2", " 3", " 42"], "answer": 0},
    {"prompt": "Review: the soup was good.\nVerdict:", "choices": [" good", " excellent fox", " bad"], "answer": 1},
    {"prompt": "The quick ", "choices": ["brown fox", "brown dog", "lazy", "12"], "answer": 0},
    {"prompt": "", "choices": ["def add", "return"], "answer": 1},
    {"prompt": "naïve café", "choices": [", Ünï", ", U", "— ok"], "answer": 2},
]
PROMPTS = ["1 + 1 =", "The quick brown fox jumps over", "def", "Review: the soup was good.\nVerdict:", "12", "a b c"]
TEXTS = [
    "The quick brown fox.", "x", "1 + 1 = 2, 2 + 2 = 4, naïve café " * 6, "def add(a, b):\n    return a + b\n" * 9,
]  # fmt: skip


def suite_of(kind: str, items: list[dict[str, Any]], **options: Any) -> Suite:
    batch = options.pop("batch_size", 3)
    return Suite.from_dict(
        {"holdout": 0, "batch_size": batch, "tasks": [{"name": "t", "kind": kind, "items": items, **options}]}
    )


def tokenizer(
    *, bos: bool = True, adds_bos: bool = False, cut: dict[str, Any] | None = None, texts: Iterable[str] = CORPUS
) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from texts; `cut`: the pre-tokenizer as tokenizer.json has it, else GPT-2's."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut is not None:
        base = Tokenizer.from_str(json.dumps({**json.loads(base.to_str()), "pre_tokenizer": cut}))
    base.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=names, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    base.train_from_iterator(texts, trainer)
    if adds_bos:
        base.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    options: dict[str, Any] = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token="</s>", pad_token="<pad>", **options)


def masked_tokenizer(size: int = 200, texts: Iterable[str] = CORPUS) -> PreTrainedTokenizerFast:
    """BERT's, with its special tokens."""
    base = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    base.normalizer = normalizers.BertNormalizer()
    base.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    base.train_from_iterator(texts, trainer)
    base.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def make(
    folder: Path, kind: str = "llama", *, seed: int = 0, tok: Any = None, scale: float = 5.0, **options: Any
) -> Path:
    """A model folder; `scale` sharpens the random weights so that predictions differ clearly."""
    masked = kind in ("bert", "distilbert", "roberta")
    tok = tok or (masked_tokenizer() if masked else tokenizer())
    common: dict[str, Any] = {
        "vocab_size": len(tok), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
        "bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id,
    }  # fmt: skip
    if kind in ("gpt2", "distilbert"):
        common = {"vocab_size": len(tok), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "dim": 32,
                  "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": CONTEXT,
                  "bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id,
                  "pad_token_id": tok.pad_token_id}  # fmt: skip
    if kind in ("gemma", "gemma2", "gemma3_text", "qwen3"):
        common["head_dim"] = 8
    config = AutoConfig.for_model(kind, **{**common, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 or "norm" not in name.lower():
                    parameter.mul_(scale)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
