"""Scoring against lm-evaluation-harness's HF model: items a second on the same model, items, dtype, batch size.

Items of the built-in suite `general` (four choices behind three worked examples and without any, four long endings,
exact match, perplexity), and items made here from a seed, of four shapes: one-token choices under 50 tokens, bare and
behind an instruction; four longer choices; choices behind more than 500 tokens of worked examples. Both sides hold
the model in memory, in float32 unless told, with the same number of threads, and are asked alternately; medians count.
Seconds of CPU are told beside those of the wall: they say the same on a machine that is not idle. Answers are compared:
choices and generated texts one by one, perplexity to four digits. Needs the evaluator's extra `lm-eval` and accelerate.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from evomerge_cli.console import Console
from evomerge_cli.spec_source import resolve_suite
from evomerge_common.domain.kinds.coherence import orders
from evomerge_common.domain.kinds.multiple_choice import choose
from evomerge_common.domain.suite import Suite
from evomerge_scoring import resident
from evomerge_scoring.asking import continued, sums_of
from evomerge_scoring.devices import choose_threads
from evomerge_scoring.model import Stop
from evomerge_scoring.scorer import Scorer

SHAPES = ("one token", "one token, instructed", "longer choices", "few-shot, 500 tokens")
"""Items made here; see `shaped`."""
BARS = {"four-choice, 3 examples": 2.0, "four-choice, none": 2.0, "exact match": 3.0} | dict.fromkeys(SHAPES, 2.0)
"""Kind of item → how many times the harness's items a second are to be reached in one dtype."""
KINDS = (
    "four-choice, 3 examples", "four-choice, none", "four long endings", *SHAPES, "exact match", "perplexity"
)  # fmt: skip


@dataclass
class Row:
    """One kind of item on one model: seconds of each repeat, and whether both sides said the same."""

    model: str
    kind: str
    items: int
    threads: int
    ours: list[float] = field(default_factory=list)
    harness: list[float] = field(default_factory=list)
    ours_cpu: list[float] = field(default_factory=list)
    harness_cpu: list[float] = field(default_factory=list)
    same: str = ""
    identical: bool = False
    one_dtype: bool = True

    @property
    def bar(self) -> float:
        """What is to be reached; 0: nothing. Twice as much of choices where ours alone are in bfloat16."""
        bar = BARS.get(self.kind, 0.0)
        return bar if self.one_dtype or self.kind == "exact match" else 2 * bar

    @property
    def ratio(self) -> float:
        return statistics.median(self.harness) / statistics.median(self.ours)

    @property
    def cpu_ratio(self) -> float:
        return statistics.median(self.harness_cpu) / statistics.median(self.ours_cpu)

    @property
    def reached(self) -> bool:
        return (self.identical or not self.one_dtype) and self.ratio >= self.bar


def main() -> int:
    args = _arguments()
    suite = resolve_suite("general", Path(), flag=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        models = {"tiny": make_tiny(Path(scratch) / "tiny", suite)} if args.tiny else {}
        models.update({folder.parent.name if folder.name == "model" else folder.name: folder for folder in args.model})
        for name, folder in models.items():
            rows += measure(name, folder, suite, args)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {
        "cpu": cpu_kind(), "threads": args.threads, "batch_size": args.batch_size,
        "dtype": args.dtype, "peer_dtype": args.peer_dtype,
        "torch": torch.__version__,
        "rows": [
            {**vars(row), "items_per_second": row.items / statistics.median(row.ours), "ratio": row.ratio,
             "cpu_ratio": row.cpu_ratio, "bar": row.bar}
            for row in rows
        ],
    }  # fmt: skip
    (args.out / "evaluate.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(rows, args.out / "evaluate.png")
    with (args.out / "evaluate.txt").open("w") as file:
        for console in (Console(stdout=file), Console()):
            report(rows, args, console)
    return 0 if all(row.reached for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", default=[], help="also this model folder")
    parser.add_argument("--tiny", action=argparse.BooleanOptionalAction, default=True, help="the tiny random model")
    parser.add_argument(
        "--kind", choices=KINDS, action="append", help="only items of this kind (repeatable; default: all)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--items", type=int, default=100, help="of each task, at most (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    for whose, flag in (("our", "--dtype"), ("the harness's", "--peer-dtype")):
        parser.add_argument(flag, choices=("float32", "bfloat16"), default="float32", help=f"{whose} side's")
    parser.add_argument("--out", type=Path, default=Path("bench-evaluate"), help="folder of the results")
    return parser.parse_args()


def make_tiny(folder: Path, suite: Suite) -> Path:
    """A random llama of 3 M parameters whose tokenizer knows the suite's words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    texts = [json.dumps(dict(item.content), ensure_ascii=False) for task in suite.tasks for item in task.items]
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # so that its answers differ clearly
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- the same questions for both ----


def four_choices(suite: Suite, limit: int) -> dict[str, list[dict[str, Any]]]:
    """Kind → items of prompt and four choices."""
    questions = of_task(suite, "question_answering", 1000)
    told, asked = questions[:3], questions[3:]
    examples = "".join(f"Question: {q['question']}\nAnswer: {q['answers'][0]}\n\n" for q in told)
    generator = random.Random(0)
    few_shot = []
    for question in asked[:limit]:
        right = question["answers"][0]
        wrong = sorted({q["answers"][0] for q in asked} - {right})
        choices = [f" {answer}" for answer in (right, *generator.sample(wrong, 3))]
        few_shot.append({"prompt": f"{examples}Question: {question['question']}\nAnswer:", "choices": choices})
    coherence = next(task for task in suite.tasks if task.name == "coherence")
    endings = [dict(orders(item.content["text"])) for item in coherence.items]
    return {
        "four-choice, 3 examples": few_shot,
        "four-choice, none": of_task(suite, "coding", limit),
        "four long endings": [c for c in endings if len(c["choices"]) == 4][:limit],
    }


NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Jack", "Kate")
THINGS = ("apples", "books", "pencils", "stamps", "coins", "shells", "marbles", "postcards")


def shaped(kind: str, count: int) -> list[dict[str, Any]]:
    """Items of one of `SHAPES`, of prompt and four choices; the same ones at each call.

    "one token": who has most, told in 20 to 40 tokens, answered by a name. "one token, instructed": the same behind a
    line that says what to do. "longer choices": the answer is a sentence. "few-shot, 500 tokens": the same behind ten
    worked examples.

    """
    generator = random.Random(kind)
    made = [_question(generator, sentences=kind in SHAPES[2:]) for _ in range(count + 10)]
    before = {
        "one token, instructed": "Read how many things each person has, then name the right person.\n",
        "few-shot, 500 tokens": "".join(f"{item['prompt']}{item['choices'][0]}\n\n" for item in made[count:]),
    }.get(kind, "")
    return [{"prompt": before + item["prompt"], "choices": item["choices"]} for item in made[:count]]


def _question(generator: random.Random, *, sentences: bool) -> dict[str, Any]:
    people, thing = generator.sample(NAMES, 4), generator.choice(THINGS)
    counts = generator.sample(range(2, 99), 4)
    told = 4 if sentences else generator.choice((2, 3, 4))
    facts = ", ".join(f"{who} has {n} {thing}" for who, n in zip(people[:told], counts, strict=False))
    most = max(zip(counts[:told], people, strict=False))[1]
    order = [most, *(who for who in people if who != most)]
    names = [f" {who}" for who in order]
    said = [f"{name} has the most {thing}, {generator.randrange(2, 99)} in all, and will share." for name in names]
    return {"prompt": f"{facts}. Who has the most?\nAnswer:", "choices": said if sentences else names}


def cpu_kind() -> str:
    """The processor's name and the widest float instructions that torch uses of it."""
    lines = Path("/proc/cpuinfo").read_text("utf-8", "ignore").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def of_task(suite: Suite, name: str, limit: int) -> list[dict[str, Any]]:
    return [dict(i.content) for i in next(t for t in suite.tasks if t.name == name).items[:limit]]


def measure(name: str, folder: Path, suite: Suite, args: argparse.Namespace) -> list[Row]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    warnings.simplefilter("ignore")
    scorer = Scorer(device="cpu", backend="torch")
    with patch.object(resident, "choose_dtype", lambda *_, **__: getattr(torch, args.dtype)):
        model = scorer.resident.load_folder(folder)
    harness = HFLM(pretrained=str(folder), device="cpu", dtype=args.peer_dtype, batch_size=args.batch_size)
    size = args.batch_size
    threads = choose_threads(args.threads, parameters=model.parameters)
    torch.set_num_threads(threads)

    def ask(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        requests = [Instance(kind, {}, argument, n, ("t", n, 1)) for n, argument in enumerate(arguments)]
        return list(getattr(harness, kind)(requests, disable_tqdm=True))

    rows = []

    def ours_choices(choices: list[dict[str, Any]]) -> list[int]:
        encoded = scorer.encoder(model).choices([(c["prompt"], c["choices"]) for c in choices])
        return [
            choose(c["choices"], sums, "acc") for c, sums in zip(choices, sums_of(model, encoded, size), strict=True)
        ]

    def their_choices(choices: list[dict[str, Any]]) -> list[int]:
        found = [ll for ll, _ in ask("loglikelihood", [(c["prompt"], x) for c in choices for x in c["choices"]])]
        return [choose(c["choices"], found[4 * n : 4 * n + 4], "acc") for n, c in enumerate(choices)]

    asked = args.kind or KINDS
    for kind, choices in (four_choices(suite, args.items) | {k: shaped(k, args.items) for k in SHAPES}).items():
        if kind not in asked:
            continue
        row = Row(name, kind, len(choices), threads, one_dtype=args.dtype == args.peer_dtype)
        mine, theirs = alternate(row, partial(ours_choices, choices), partial(their_choices, choices), args.repeat)
        same = sum(a == b for a, b in zip(mine, theirs, strict=True))
        row.same, row.identical = f"{same}/{len(mine)} choices", mine == theirs
        rows.append(row)

    # exact match
    questions = of_task(suite, "mathematics", args.items)
    row = Row(name, "exact match", len(questions), threads, one_dtype=args.dtype == args.peer_dtype)
    stop = Stop(("\n",), 16)

    def ours_texts() -> list[str]:
        encoded = scorer.encoder(model).prompts([q["prompt"] for q in questions], stop.max_new_tokens)
        return continued(model, encoded, stop, size)

    def their_texts() -> list[str]:
        options = {"until": ["\n"], "max_gen_toks": stop.max_new_tokens, "do_sample": False}
        return [str(text) for text in ask("generate_until", [(q["prompt"], dict(options)) for q in questions])]

    if "exact match" in asked:
        said, they_said = alternate(row, ours_texts, their_texts, args.repeat)
        same = sum(a == b for a, b in zip(said, they_said, strict=True))
        row.same, row.identical = f"{same}/{len(said)} answers", said == they_said
        rows.append(row)

    # perplexity
    texts = [d["text"] for d in of_task(suite, "perplexity", args.items)]
    row = Row(name, "perplexity", len(texts), threads, one_dtype=args.dtype == args.peer_dtype)
    size_in_bytes = sum(len(text.encode()) for text in texts)

    def ours_bits() -> float:
        encoded = scorer.encoder(model).documents([("", text) for text in texts])
        return sum(choices[0] for choices in sums_of(model, encoded, size))

    def their_bits() -> float:
        return sum(float(ll) for ll in ask("loglikelihood_rolling", [(text,) for text in texts]))

    if "perplexity" in asked:
        a, b = alternate(row, ours_bits, their_bits, args.repeat)
        a, b = math.exp(-a / size_in_bytes), math.exp(-b / size_in_bytes)
        row.same, row.identical = f"{a:.6f} / {b:.6f} a byte", f"{a:.4g}" == f"{b:.4g}"
        rows.append(row)
    return rows


def alternate(row: Row, ours: Callable[[], Any], theirs: Callable[[], Any], repeat: int) -> tuple[Any, Any]:
    """Both in turn, after one round of each that does not count."""
    answers = ours(), theirs()
    for _ in range(repeat):
        for work, wall, cpu in ((ours, row.ours, row.ours_cpu), (theirs, row.harness, row.harness_cpu)):
            start, start_cpu = time.perf_counter(), time.process_time()
            work()
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
    return answers


# ---- what came of it ----


def report(rows: list[Row], args: argparse.Namespace, console: Console) -> None:
    console.table(
        ["model, items", "threads", "ours items/s", "harness items/s", "ratio", "of CPU", "bar", "same"],
        [
            [f"{row.model}, {row.items} {row.kind}", str(row.threads), f"{row.items / statistics.median(row.ours):.1f}",
             f"{row.items / statistics.median(row.harness):.1f}", f"{row.ratio:.2f}", f"{row.cpu_ratio:.2f}",
             f"{row.bar:g}" if row.bar else "", row.same]
            for row in rows
        ],
        title=f"Scoring: EvoMerge and lm-evaluation-harness's HF model ({cpu_kind()}, "
        f"{args.dtype} against {args.peer_dtype}, batch {args.batch_size}, median of {args.repeat})",
    )  # fmt: skip


def draw(rows: list[Row], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.7 * len(rows) + 1.5), layout="constrained")
    places = range(len(rows))
    axes.barh(list(places), [row.ratio for row in rows], color="#2a6f97", height=0.55)
    for place, row in zip(places, rows, strict=True):
        if row.bar:
            axes.plot([row.bar] * 2, [place - 0.4, place + 0.4], color="#d62828", linewidth=2)
        axes.text(row.ratio, place, f" {row.ratio:.2f}×", va="center")
    axes.set_yticks(list(places), [f"{row.model}: {row.kind}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("items per second, in multiples of lm-eval's (red: the bar)")
    axes.set_xlim(0, max(row.ratio for row in rows) * 1.15)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
