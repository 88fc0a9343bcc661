"""Whether llama.cpp goes on as each family of transformers does, or why it is refused: a column of docs/families.md."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from evomerge_common.errors import ModelError
from evomerge_merging.export.gguf import export_gguf
from helpers import families
from helpers.llama_cpp import FOLDER, Judge

PROMPT, REST = 20, 8
TOLERANCE = 2e-3
"""Of a token's log-probability."""


def there() -> bool:
    """Whether llama.cpp is."""
    return (FOLDER / "bin" / "llama-server").is_file()


def judged(model_type: str, kind: str, class_name: str) -> str:
    """What llama.cpp makes of a family's file: "yes", "refused: why", "wrong: what"; "-": none goes on.

    "yes, told: no window": texts longer than the model's sliding window are left out, since the export tells of them.
    """
    if kind not in {"CAUSAL_LM", "IMAGE_TEXT_TO_TEXT"}:
        return "-"
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        families.make(model_type, class_name, folder, 1)
        _write_tokenizer(folder)
        try:
            report = export_gguf(folder, Path(root) / "m.gguf", "f32")
        except ModelError as error:
            return f"refused: {error}".replace(str(folder), "the model")
        try:
            told = any("attends to the whole text" in note for note in report.notes)
            with Judge(report.path) as judge:
                found = _compared(judge, families.load(folder, class_name)[0], *((3, 1) if told else (PROMPT, REST)))
            return "yes, told: no window" if told and found == "yes" else found
        except AssertionError as error:
            reasons = [line for line in str(error).splitlines() if "error loading" in line] or [str(error)]
            return f"wrong: {reasons[0].strip()[-200:]}"


def _compared(judge: Judge, model: Any, length: int, count: int) -> str:
    """Tokens that follow so many, and the probability of the first."""
    ids = torch.randint(3, families.VOCAB, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        wanted = model(input_ids=ids, use_cache=False).logits[0, length - 1 :].log_softmax(-1)
    prompt, rest = ids[0, :length].tolist(), ids[0, length:].tolist()
    off = abs(judge.log_probability(prompt, rest[0], families.VOCAB) - wanted[0, rest[0]].item())
    if off > TOLERANCE:
        return f"wrong: log-probability off by {off:.2g}"
    for at, (mine, theirs) in enumerate(zip(judge.continuation(prompt, count), rest, strict=False)):
        if mine != theirs:
            near = wanted[at, theirs] - wanted[at, mine] < TOLERANCE
            return "yes" if near else f"wrong: another token at {at}"
    return "yes"


def _write_tokenizer(folder: Path) -> None:
    """A tokenizer of as many tokens as the families have: bytes, and one merge, without which llama.cpp reads none."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: families.VOCAB - 1]
    pair = (letters[0], letters[1])
    made = Tokenizer(models.BPE({text: number for number, text in enumerate([*letters, "".join(pair)])}, [pair]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
