"""A suite with a task of every kind."""

from __future__ import annotations

from typing import Any

from evomerge_common.domain.suite import Suite

STORY = "Tom lost his keys. He walked back. A shop had found them. He bought a newspaper."
PROMPTS = ("1 + 1 =", "The quick brown fox jumps over", "def", "Review: the soup was good.\nVerdict:")
TASKS: list[dict[str, Any]] = [
    {"name": "choices", "kind": "multiple_choice", "metric": "acc_norm", "items": [
        {"id": "x", "prompt": p, "choices": [" 2", " brown fox", " excellent"], "answer": n % 3}
        for n, p in enumerate(PROMPTS)]},
    {"name": "exact", "kind": "exact_match", "extract": r"(\w+)", "weight": 2, "max_new_tokens": 6,
     "items": [{"prompt": p, "answer": "fox"} for p in PROMPTS]},
    {"name": "bits", "kind": "perplexity", "limit": 3,
     "items": [{"text": f"naïve {p}"} for p in PROMPTS[1:]] + [{"text": "x", "prompt": "y"}]},
    {"name": "code", "kind": "code", "timeout": 2, "max_new_tokens": 4, "stop": "\n",
     "items": [{"prompt": f"x = {n}\n#", "tests": "assert x == 1"} for n in range(3)]},
    {"name": "topics", "kind": "classification",
     "items": [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(4)]},
    {"name": "labelled", "kind": "classification", "labels": ["good", "bad", "fine"], "template": "Say: {text}\n",
     "metric": "acc_norm", "items": [{"text": f"text {n}", "label": "bad"} for n in range(4)]},
    {"name": "answers", "kind": "qa", "items": [
        {"question": "1 + 1", "answers": "2"}, {"question": "?", "answers": ["x", "y"], "context": "c"}]},
    {"name": "prose", "kind": "writing", "items": [{"prompt": "The quick", "text": " brown fox"},
                                                   {"prompt": "", "text": "jumps"}]},
    {"name": "order", "kind": "coherence", "items": [{"text": STORY}, {"text": "One. Two. Three."}]},
    {"name": "rules", "kind": "instruction_following", "max_new_tokens": 8, "items": [
        {"prompt": "say", "checks": {"min_words": 1, "json": False, "matches": "^T"}}]},
    {"name": "harness", "kind": "lm_eval", "task": "animals", "metric": "acc", "requests": "00", "split": "test",
     "items": [{"id": f"animals:{n}", "document": f"{n:064x}"} for n in range(3)]},
    {"name": "own", "kind": "plugin", "plugin": "rhymes", "options": {"count": 3},
     "items": [{"id": f"r{n}", "word": f"word {n}"} for n in range(3)]},
    {"name": "speed", "kind": "efficiency", "reference": 1e4},
    {"name": "size", "kind": "efficiency", "metric": "parameters", "reference": 20000},
]  # fmt: skip


def every_kind(*, without: tuple[str, ...] = ()) -> Suite:
    """All of TASKS but those of the kinds named."""
    tasks = [task for task in TASKS if task["kind"] not in without]
    return Suite.from_dict({"name": "every", "seed": 3, "holdout": 0, "batch_size": 3, "tasks": tasks})
