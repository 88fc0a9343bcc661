"""Models of different builds merged: three real BERT shapes by the classic command line, and 12 with 6 layers.

Everything is made here and seeded; two cores take some minutes for each part.

masked: bert-base, roberta-base and distilbert-base in their real shapes (110, 125 and 67 million parameters; WordPiece
of 30,522 tokens, byte-level BPE of 50,265, trained on the standard library's sources), lightly trained, go through
`evomerge --run --model1 … --model2 … --model3 …`, scored by pseudo-perplexity.

causal: a llama of 12 layers × 768 and one of 6 × 512, each with its own BPE vocabulary, lightly trained on texts of
their own, are merged each into the other's build. Chance is what needs no context: how often each token
occurs. What is merged must be better than that; sources, random weights and each source wholly put into the other's
build stand beside.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from evomerge_cli.console import Console
from evomerge_cli.demo.data import build_data, standard_library
from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_merging import merge_recipe
from helpers.tiny_models import masked_tokenizer

BATCH = 16
HELD_OUT = 160
"""Texts that no model is trained on."""
SCORED = 24
"""Texts of the masked models' suite: each token of each is guessed from the others."""
WAYS = (("full", 1.0), ("full", 0.5), ("full", 0.2), ("embedding_only", 0.5), ("adapter", 0.5))
"""Strategy, and the share of the model that is put into the other's build; 1: nothing of the target's is left."""
Row = dict[str, Any]


def main() -> int:
    args = _arguments()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    console = Console()
    with tempfile.TemporaryDirectory(dir=args.scratch) as temporary:
        result = {part: PARTS[part](Path(temporary), args, console) for part in args.parts}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(part["reached"] for part in result.values()) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=60, help="of training; masked models: half (default: %(default)s)")
    parser.add_argument("--evaluations", type=int, default=8, help="of the masked run (default: %(default)s)")
    parser.add_argument("--width", type=float, default=1.0, help="of all models, as a share of the real one")
    parser.add_argument("--scratch", type=Path, help="folder for files that are removed at the end")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


# ---- masked ----


def masked(scratch: Path, args: argparse.Namespace, console: Console) -> Row:
    """The classic command line, as a process of its own."""
    texts = written(seed=1)
    held_out, training = texts[:SCORED], texts[SCORED:]
    word_piece, byte_level = masked_tokenizer(30_522, standard_library()), roberta_tokenizer(50_265)
    width = int(768 * args.width)
    size = {"hidden_size": width, "intermediate_size": 4 * width}
    roberta = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    shapes: list[tuple[str, PretrainedConfig, PreTrainedTokenizerFast]] = [
        ("bert-base", BertConfig(**size), word_piece),
        ("roberta-base", RobertaConfig(**roberta, **size), byte_level),
        ("distilbert-base", DistilBertConfig(dim=width, hidden_dim=4 * width), word_piece),
    ]
    for seed, (name, config, tokenizer) in enumerate(shapes):
        torch.manual_seed(seed)
        model = AutoModelForMaskedLM.from_config(config)
        seconds = train(model, masked_batches(training, tokenizer, seed), args.steps // 2, rate=3e-4)
        console.say(f"{name}: {model.num_parameters():,} parameters, {seconds:.0f} s")
        save(model, tokenizer, scratch / name)
    (scratch / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in held_out))
    (scratch / "suite.yaml").write_text("holdout: 0.4\ntasks:\n  - {name: text, kind: perplexity, data: text.jsonl}\n")
    flags = [f"--model{i}={scratch / name}" for i, (name, _, _) in enumerate(shapes, 1)]
    command: list[str | Path] = [sys.executable, "-m", "evomerge_cli", "--run", *flags]
    command += ["--suite", scratch / "suite.yaml", "--evaluations", str(args.evaluations), "--out", scratch / "out"]
    homes = {"EVOMERGE_MODEL_STORE": str(scratch / "store"), "EVOMERGE_STATE_DIR": str(scratch / "state")}
    code, seconds, peak = watched(command, {**os.environ, **homes})
    run = json.loads((scratch / "out" / "result.json").read_text())
    bits = {name: uniform(held_out, tokenizer) for name, _, tokenizer in shapes}
    rows: list[Row] = []
    for name, model in ((Path(source["reference"]).name, source) for source in run["sources"]):
        rows.append({"model": name, "uniform": bits[name], **bits_a_byte(model)})
    rows.append({"model": "champion", "uniform": bits["bert-base"], **bits_a_byte(run["champion"])})
    known = {source["recipe_digest"] for source in run["sources"]}
    events = [json.loads(line) for line in (scratch / "out" / "events.jsonl").read_text().splitlines()]
    merges = [event["scores"][0]["metric_value"] for event in events
              if event["type"] == "CandidateEvaluated" and event["split"] == "search"
              and event["recipe_digest"] not in known]  # fmt: skip
    for name, value in (("best merge", min(merges)), ("worst merge", max(merges))):
        rows.append({"model": name, "uniform": bits["bert-base"], "search": value})
    console.table(
        ["model", "bits a byte, search", "holdout", "chance: all tokens alike"],
        [
            [r["model"], *(f"{r[key]:.3f}" if key in r else "" for key in ("search", "holdout", "uniform"))]
            for r in rows
        ],
        title="bert-base, roberta-base, distilbert-base by the classic command line: pseudo-perplexity",
    )
    for note in run["notes"]:
        console.out(f"  {note}")
    console.out(f"exit {code}, {seconds:.0f} s, {peak / 1e9:.2f} GB at most in all processes (PSS)")
    report = scratch / "out" / "report" / "index.html"
    return {"exit": code, "seconds": seconds, "peak_bytes": peak, "rows": rows, "notes": run["notes"],
            "reached": code == 0 and report.is_file() and min(merges) < bits["bert-base"]}  # fmt: skip


def bits_a_byte(model: Row) -> Row:
    """Of a model in a run's result."""
    return {split: model[split]["tasks"]["text"]["metric_value"] for split in ("search", "holdout")}


def uniform(texts: Sequence[str], tokenizer: Any) -> float:
    """Bits a byte of whoever takes every token for as likely as any other."""
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    return tokens * math.log2(len(tokenizer)) / sum(len(text.encode()) for text in texts)


def watched(command: Sequence[str | Path], env: dict[str, str]) -> tuple[int, float, int]:
    """Exit status, seconds and the most bytes that a process and all under it had at once."""
    begun, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, env=env)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        now = 0
        for one in (root, *root.children(recursive=True)):
            try:
                now += one.memory_full_info().pss
            except psutil.Error:  # ended meanwhile
                continue
        peak = max(peak, now)
        time.sleep(0.5)
    return process.returncode, time.perf_counter() - begun, peak


# ---- causal ----


def causal(scratch: Path, args: argparse.Namespace, console: Console) -> Row:
    """Two llamas, each into the other's build."""
    texts = written(seed=1)
    held_out, training = texts[:HELD_OUT], texts[HELD_OUT:]
    half = len(training) // 2
    made: dict[str, tuple[Path, Row]] = {}
    rows: list[Row] = []
    for name, layers, width, heads, vocabulary, part, seed in (
        ("12x768", 12, 768, 12, 640, training[:half], 1),
        ("6x512", 6, 512, 8, 480, training[half:], 2),
    ):
        tokenizer = causal_tokenizer(part, vocabulary)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=int(width * args.width), num_hidden_layers=layers,
            intermediate_size=int(width * args.width * 8 / 3), num_attention_heads=heads, num_key_value_heads=heads,
            max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=1,
        )  # fmt: skip
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        chance = guessed(part, held_out, tokenizer)
        rows += [{"model": name, "how": "chance: no context", **chance},
                 {"model": name, "how": "random weights", **judged(model, tokenizer, held_out)}]  # fmt: skip
        rate = 0.024 / math.sqrt(config.hidden_size)
        seconds = train(model, causal_batches(part, tokenizer, seed), args.steps, rate)
        console.say(f"{name}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens, {seconds:.0f} s")
        rows.append({"model": name, "how": "trained", **judged(model, tokenizer, held_out)})
        save(model, tokenizer, scratch / name)
        made[name] = scratch / name, chance
    notes: list[str] = []
    for target, source in (("12x768", "6x512"), ("6x512", "12x768")):
        for strategy, weight in WAYS:
            models = [(ModelReference(str(made[name][0])), {"weight": share})
                      for name, share in ((target, 1 - weight), (source, weight))]  # fmt: skip
            recipe = replace(Recipe.of_models("linear", models), cross_domain=CrossDomain(strategy))
            out = scratch / "merged"
            shutil.rmtree(out, ignore_errors=True)
            begun = time.perf_counter()
            report = merge_recipe(recipe, {}, out)
            seconds = time.perf_counter() - begun
            found = judged(AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out), held_out)
            chance = made[target][1]
            better = found["perplexity"] < chance["perplexity"] and found["accuracy"] > chance["accuracy"]
            how = f"{strategy}, {weight:g} of {source}"
            rows.append({"model": target, "how": how, "seconds": seconds, "better": better, **found})
            if weight == 0.5:
                notes += report.notes
    console.table(
        ["build", "weights", "perplexity", "next token right", "bits a character", "merge, s"],
        [
            [r["model"], r["how"], f"{r['perplexity']:,.2f}", f"{r['accuracy']:.3f}", f"{r['bits']:.3f}",
             f"{r['seconds']:.1f}" if "seconds" in r else ""]
            for r in rows
        ],
        title="12 ↔ 6 layers, 768 ↔ 512 wide, two vocabularies",
    )  # fmt: skip
    for note in dict.fromkeys(notes):
        console.out(f"  {note}")
    return {"rows": rows, "notes": notes, "reached": all(row.get("better", True) for row in rows)}


@torch.no_grad()  # type: ignore[untyped-decorator]
def judged(model: Any, tokenizer: Any, texts: Sequence[str]) -> Row:
    """Perplexity a token, share of next tokens that are guessed, bits a character (which no vocabulary favours)."""
    model.eval()
    loss, right, count = 0.0, 0, 0
    for start in range(0, len(texts), BATCH):
        ids, labels = batch([[0, *tokenizer.encode(text), 0] for text in texts[start : start + BATCH]], pad=1)
        logits, expected = model(input_ids=ids).logits[:, :-1].float(), labels[:, 1:]
        known = expected != -100
        loss += float(torch.nn.functional.cross_entropy(logits[known], expected[known], reduction="sum"))
        right += int((logits[known].argmax(-1) == expected[known]).sum())
        count += int(known.sum())
    return told(loss, right, count, texts)


def guessed(training: Sequence[str], texts: Sequence[str], tokenizer: Any) -> Row:
    """What one gets who knows how often each token occurs, and nothing of the context."""
    seen = Counter(token for text in training for token in (*tokenizer.encode(text), 0))
    total = sum(seen.values()) + len(tokenizer)
    asked = [token for text in texts for token in (*tokenizer.encode(text), 0)]
    loss = -sum(math.log((seen[token] + 1) / total) for token in asked)
    return told(loss, asked.count(seen.most_common(1)[0][0]), len(asked), texts)


def told(loss: float, right: int, count: int, texts: Sequence[str]) -> Row:
    return {"perplexity": math.exp(loss / count), "accuracy": right / count,
            "bits": loss / math.log(2) / sum(map(len, texts))}  # fmt: skip


# ---- texts and tokenizers ----


def written(seed: int) -> list[str]:
    """Short texts: as many of the demo's sums as of its reviews, mixed."""
    rng = random.Random(seed)
    sums, reviews, _ = ([row.prompt + row.answer for row in task.rows] for task in build_data(seed))
    texts = sums + rng.sample(reviews, len(sums))
    rng.shuffle(texts)
    return texts


def causal_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    tokenizer = byte_level_bpe(texts, size, ["<|end|>", "<|pad|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|pad|>"
    )


def roberta_tokenizer(size: int) -> PreTrainedTokenizerFast:
    tokenizer = byte_level_bpe(standard_library(), size, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip


def byte_level_bpe(texts: Any, size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=1, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


# ---- training ----

Batches = Callable[[], tuple[Tensor, Tensor]]


def causal_batches(texts: Sequence[str], tokenizer: Any, seed: int) -> Batches:
    rng = random.Random(seed)

    def draw() -> tuple[Tensor, Tensor]:
        ids, labels = batch([[0, *tokenizer.encode(text), 0] for text in rng.sample(texts, BATCH)], pad=1)
        return ids[:, :-1], labels[:, 1:]

    return draw


def masked_batches(texts: Sequence[str], tokenizer: Any, seed: int) -> Batches:
    """A fifth of the tokens hidden, as BERT learns."""
    rng = random.Random(seed)
    special = torch.tensor(tokenizer.all_special_ids)

    def draw() -> tuple[Tensor, Tensor]:
        ids, labels = batch([tokenizer.encode(text) for text in rng.sample(texts, BATCH)], pad=tokenizer.pad_token_id)
        hidden = (torch.rand(ids.shape) < 0.2) & ~torch.isin(ids, special)
        return ids.masked_fill(hidden, tokenizer.mask_token_id), labels.masked_fill(~hidden, -100)

    return draw


def batch(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and labels [rows, longest]; the first token and the padding are not asked for."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    labels = torch.tensor([[-100, *row[1:]] + [-100] * (width - len(row)) for row in rows])
    return ids, labels


def train(model: Any, draw: Batches, steps: int, rate: float) -> float:
    """A few steps of AdamW, in bfloat16 where the processor has it; seconds."""
    begun = time.perf_counter()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    quick = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        ids, labels = draw()
        with torch.autocast("cpu", torch.bfloat16, enabled=quick):
            logits = model(input_ids=ids).logits
        known = labels != -100
        torch.nn.functional.cross_entropy(logits[known].float(), labels[known]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - begun


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


PARTS = {"masked": masked, "causal": causal}

if __name__ == "__main__":
    raise SystemExit(main())
