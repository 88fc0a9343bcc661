"""What plain transformers code says a tiny model's likelihoods are, and whether EvoMerge's scoring says the same.

Nothing here is shared with `evomerge_scoring`: a text at a time, no padding, no batch, no cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput
from evomerge_scoring.kinds import prepare
from evomerge_scoring.kinds.requests import Requests
from evomerge_scoring.scorer import Scorer

PROMPT, CHOICES, TEXT = "some words of it", (" a b", " the end of it", " no"), " and more of them to be read"
SPECIAL = ("<pad>", "<s>", "</s>", "<mask>")
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,?!:;-'()0123456789"
TOLERANCE = 1e-3


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, 78 in all; ids 0, 1, 2 are padding, beginning and end, as the small configs have them."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *LETTERS])}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>"
    )


@dataclass(frozen=True)
class Scored:
    """Of the choices behind the prompt, and of a text behind it: "yes", "refused" or how far off; and why refused."""

    perplexity: str
    choices: str
    reason: str = ""


def compare(folder: Path, model: Any, kind: str) -> Scored:
    """Compares EvoMerge's likelihoods of a folder with those of the model that transformers loads from it.

    Args:
        folder: of a tiny model; the tokenizer is put into it.
        model: transformers', float32.
        kind: the mapping of transformers that its class is in, such as MASKED_LM.

    """
    tokenizer().save_pretrained(folder)
    with torch.no_grad():
        tok = AutoTokenizer.from_pretrained(folder)  # some types read any tokenizer's file in a way of their own
        wanted = [likelihood(model, tok, kind, PROMPT, text) for text in (TEXT, *CHOICES)]
    try:
        found = ours(folder)
    except InvalidInput as error:
        why = str(error).replace(f"{folder}", "the model").removeprefix("the model: ")
        return Scored("refused", "refused", why)
    words = [_word(one, other) for one, other in zip(found, wanted, strict=True)]
    return Scored(words[0], next((word for word in words[1:] if word != "yes"), "yes"))


def _word(one: float, other: float) -> str:
    return "yes" if abs(one - other) <= TOLERANCE else f"off by {abs(one - other):.3g}"


def ours(folder: Path) -> list[float]:
    """EvoMerge's log-likelihoods: of the text, then of each choice."""
    suite = Suite.from_dict(
        {
            "holdout": 0,
            "tasks": [
                {"name": "p", "kind": "perplexity", "items": [{"prompt": PROMPT, "text": TEXT}]},
                {
                    "name": "c", "kind": "multiple_choice",
                    "items": [{"prompt": PROMPT, "choices": list(CHOICES), "answer": 0}],
                },
            ],
        }
    )  # fmt: skip
    scorer = Scorer(device="cpu")
    model = scorer.resident.load_folder(folder)
    found: list[float] = []
    for task in suite.tasks:
        prepared = prepare(task, task.items, scorer.encoder(model))
        assert isinstance(prepared, Requests)
        (answer,) = prepared.encoded.answers(model, 2)
        found += answer if isinstance(answer, list) else [answer]
    return found


def likelihood(model: Any, tok: Any, kind: str, prompt: str, text: str) -> float:
    """log P(text | prompt), natural, as the kind of model defines it."""
    before = tok(prompt, add_special_tokens=False)["input_ids"]
    own = tok(prompt + text, add_special_tokens=False)["input_ids"][len(before) :]
    if kind == "MASKED_LM":  # pseudo-log-likelihood (Salazar et al. 2020): each token masked alone
        total = 0.0
        for place, token in enumerate(own):
            ids = [*before, *own]
            ids[len(before) + place] = tok.mask_token_id
            total += _logprobs(model, input_ids=ids)[len(before) + place, token].item()
        return total
    if model.config.is_encoder_decoder:
        start = _start(model)
        table = _logprobs(model, input_ids=before, decoder_input_ids=[start, *own[:-1]])
        return sum(float(table[place, token]) for place, token in enumerate(own))
    first = [tok.bos_token_id] if text == TEXT else []  # a document begins as documents do
    ids = [*first, *before, *own][:-1]  # nobody asks what follows the last one
    table = _logprobs(model, input_ids=ids)
    begin = len(first) + len(before)
    return sum(float(table[begin + place - 1, token]) for place, token in enumerate(own))


def _start(model: Any) -> int:
    for config in (model.generation_config, model.config, model.config.get_text_config(decoder=True)):
        if isinstance(getattr(config, "decoder_start_token_id", None), int):
            return int(config.decoder_start_token_id)
    return 1  # bos


def _logprobs(model: Any, **ids: list[int]) -> torch.Tensor:
    inputs = {name: torch.tensor([row]) for name, row in ids.items()}
    try:
        out = model(**inputs, use_cache=False)
    except TypeError:
        out = model(**inputs)
    logits = out.logits if hasattr(out, "logits") else out[0]
    found: torch.Tensor = logits[0].double().log_softmax(-1)
    return found
