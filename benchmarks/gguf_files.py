"""GGUF files: written ones judged by llama.cpp, there and back bit for bit, reading against transformers.

A model is written in several types by `evomerge export` as a command. llama.cpp loads each file. Those that hold all of
it (f32, f16) must go on with prompts at temperature 0 as transformers does, and come back from a folder as the same
bytes; the quantised ones are judged by the perplexity that llama.cpp gives them, against f16's. With --gguf, a file
from elsewhere is read by `evomerge export` as a command, and weights and logits are compared with transformers' own
load. That comparison runs on one thread: two threads share a sum otherwise, and round it otherwise (how far is told).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge_cli.console import Console
from evomerge_cli.spec_source import resolve_suite
from helpers import llama_cpp as judges
from helpers.llama_cpp import Judge

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = [
    "The quick brown fox", "1 + 1 = 2, 2 + 2 =", "def add(a, b):\n    return", "naïve café — ok",
    "Review: the soup was good.\nVerdict:", " 3 33 333 \n\n x", "The capital of France is",
    "Once upon a time, there was",
]  # fmt: skip
TOKENS = 24
EXACT = ("f32", "f16")
PERPLEXITY_LIMIT = 0.01
"""How far q8_0's may be from f16's, as a share of it."""
READ_LIMIT = 5.0
"""Seconds of the command that reads a file into a folder."""
CONTEXT = 96
"""Tokens of a text whose probabilities are asked for."""


def main() -> int:
    args = _arguments()
    judges.FOLDER = args.llama_cpp
    if not (args.llama_cpp / "bin" / "llama-server").is_file():
        raise SystemExit(f"no llama.cpp in {args.llama_cpp}: `scripts/llama-cpp {args.llama_cpp}` puts it there")
    os.environ["PATH"] = f"{args.llama_cpp / 'bin'}:{os.environ['PATH']}"
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as temporary:
        scratch = Path(temporary)
        reading = measure_reading(args.gguf, scratch, args.repeat) if args.gguf else None
        written = [measure_type(kind, args, scratch) for kind in args.types]
    base = next((row["perplexity"] for row in written if row["type"] == "f16"), None)
    for row in written:
        row["ratio"] = row["perplexity"] / base if base else None
        if row["type"] == "q8_0" and base:
            row["reached"] = abs(row["ratio"] - 1) <= PERPLEXITY_LIMIT
    result = {"model": args.model.name, "torch": torch.__version__, "transformers": transformers.__version__,
              "written": written, "reading": reading}  # fmt: skip
    (args.out / "gguf.json").write_text(json.dumps(result, indent=2) + "\n")
    with (args.out / "gguf.txt").open("w") as file:
        for console in (Console(stdout=file), Console()):
            report(written, reading, console)
    return 0 if all(row["reached"] for row in (*written, *([reading] if reading else []))) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a causal model's folder")
    parser.add_argument("--gguf", type=Path, help="also read this file")
    parser.add_argument(
        "--llama-cpp", type=Path, default=ROOT / ".llama-cpp", help="folder that scripts/llama-cpp filled"
    )
    parser.add_argument("--types", nargs="+", default=["f32", "f16", "q8_0", "q4_0", "q4_k_m"])
    parser.add_argument("--texts", type=int, default=6, help="for the perplexity (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="of each command (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="folder for files that are removed at the end")
    parser.add_argument("--out", type=Path, default=Path("bench-gguf"), help="folder of the results")
    return parser.parse_args()


# ---- writing ----


def measure_type(kind: str, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Writes the model as `kind`, and asks llama.cpp."""
    file = scratch / f"{kind}.gguf"
    seconds = [export(args.model, file, "--gguf", kind) for _ in range(args.repeat)]
    row: dict[str, Any] = {"type": kind, "bytes": file.stat().st_size, "seconds": statistics.median(seconds)}
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = [tokenizer(text).input_ids[:CONTEXT] for text in texts_of(args.texts)]
    with Judge(file) as judge:  # which fails where llama.cpp does not load it
        row["perplexity"] = perplexity(judge, texts, len(tokenizer))
        if kind in EXACT:
            row["same"] = sum(goes_on_alike(judge, args.model, tokenizer, kind))
    if kind in EXACT:
        back, again = scratch / "back", scratch / "again.gguf"
        export(file, back)
        # The file's name is in its metadata: the same one is given again.
        shutil.move(back, scratch / args.model.resolve().name)
        export(scratch / args.model.resolve().name, again, "--gguf", kind)
        row["round_trip"] = file.read_bytes() == again.read_bytes()
        shutil.rmtree(scratch / args.model.resolve().name)
        again.unlink()
    row["reached"] = row.get("same", len(PROMPTS)) == len(PROMPTS) and row.get("round_trip", True)
    file.unlink()
    file.with_suffix(".log").unlink()
    return row


def export(model: Path, out: Path, *options: str) -> float:
    """`evomerge export` as a user runs it; seconds."""
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "evomerge_cli", "export", model, out, *options], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    return time.perf_counter() - begun


def texts_of(count: int) -> list[str]:
    suite = resolve_suite("general", Path(), flag=True)
    task = next(task for task in suite.tasks if task.name == "perplexity")
    return [str(item.content["text"]) for item in task.items[:count]]


def perplexity(judge: Judge, texts: list[list[int]], vocabulary: int) -> float:
    """exp of the mean negative log-probability, by llama.cpp, of every token but the first of each text."""
    logs = [judge.log_probability(ids[:at], ids[at], vocabulary) for ids in texts for at in range(1, len(ids))]
    return math.exp(-statistics.fmean(logs))


@torch.no_grad()  # type: ignore[untyped-decorator]
def goes_on_alike(judge: Judge, folder: Path, tokenizer: Any, kind: str) -> list[bool]:
    """For each prompt: whether llama.cpp reads the same tokens and goes on with the same ones."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if kind == "f16":
        model = model.half().float()  # the weights that the file holds
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        options = {"attention_mask": torch.ones(1, len(ids)), "max_new_tokens": TOKENS, "do_sample": False}
        expected = model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        continued = judge.continuation(ids, TOKENS)
        if len(expected) < TOKENS:  # the token that ends the text, which one side leaves out
            expected, continued = expected[:-1], continued[: len(expected) - 1]
        found.append(judge.tokens(prompt) == ids and expected == continued)
    return found


# ---- reading ----


@torch.no_grad()  # type: ignore[untyped-decorator]
def measure_reading(file: Path, scratch: Path, repeat: int) -> dict[str, Any]:
    """A file as a folder: seconds of the command, and whether transformers finds in it what it reads from the file."""
    out = scratch / "read"
    seconds = [export(file, out) for _ in range(repeat)]
    begun = time.perf_counter()
    theirs = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()
    load = time.perf_counter() - begun
    ours = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    weights = mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    tokenizer = AutoTokenizer.from_pretrained(out)
    their_tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    prompts = [tokenizer(prompt, return_tensors="pt").input_ids for prompt in PROMPTS]
    tokens = sum(tokenizer(prompt).input_ids == their_tokenizer(prompt).input_ids for prompt in PROMPTS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = [ours(ids).logits for ids in prompts]
    logits = sum(torch.equal(found, theirs(ids).logits) for found, ids in zip(one, prompts, strict=True))
    torch.set_num_threads(2)
    two = [ours(ids).logits for ids in prompts]
    torch.set_num_threads(threads)
    return {
        "file": file.name, "seconds": statistics.median(seconds), "all_seconds": seconds, "transformers_load": load,
        "weights_equal": weights, "same_tokens": tokens, "same_logits": logits,
        "same_logits_by_2_threads": sum(torch.equal(a, b) for a, b in zip(one, two, strict=True)),
        "difference_by_2_threads": max((a - b).abs().max().item() for a, b in zip(one, two, strict=True)),
        "reached": weights and logits == tokens == len(PROMPTS) and statistics.median(seconds) <= READ_LIMIT,
    }  # fmt: skip


# ---- what came of it ----


def report(written: list[dict[str, Any]], reading: dict[str, Any] | None, console: Console) -> None:
    count = len(PROMPTS)
    console.table(
        ["type", "bytes", "export, s", "llama.cpp perplexity", "of f16's", f"same {TOKENS} tokens", "there and back"],
        [
            [row["type"], f"{row['bytes']:,}", f"{row['seconds']:.1f}", f"{row['perplexity']:.4f}",
             f"{row['ratio']:.4f}" if row["ratio"] else "", f"{row['same']}/{count}" if "same" in row else "",
             {True: "same bytes", False: "other bytes"}[row["round_trip"]] if "round_trip" in row else ""]
            for row in written
        ],
        title="Written, and read by llama.cpp",
    )  # fmt: skip
    if reading:
        by_two = (
            f"{reading['same_logits_by_2_threads']}/{count} prompts, {reading['difference_by_2_threads']:.1e} apart"
        )
        console.table(
            [f"{reading['file']} as a folder", ""],
            [
                [f"evomerge export, s (bar {READ_LIMIT:g})", f"{reading['seconds']:.2f}"],
                ["transformers' own load alone, s", f"{reading['transformers_load']:.1f}"],
                ["weights", "same bits" if reading["weights_equal"] else "other bits"],
                ["same tokens", f"{reading['same_tokens']}/{count} prompts"],
                ["same logits, bit for bit, one thread", f"{reading['same_logits']}/{count} prompts"],
                ["the same model, by two threads and by one", by_two],
            ],
            title="Read",
        )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
