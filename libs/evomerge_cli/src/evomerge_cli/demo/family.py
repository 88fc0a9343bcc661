"""The demo family: one base model and three experts of it, made on this machine in about a minute.

Real Hugging Face folders (llama, byte-level BPE), so that all that follows is the real path. The base learns all three
tasks a little; each expert goes on with its own and, as fine-tuning in practice does against forgetting, sees some of
another task's base rows again. So task vectors stay small enough to be added, and no source is good at everything.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evomerge_cli.demo.data import TaskData, build_data
from evomerge_common.runtime.files import new_folder

SUITE = """\
name: demo
tasks:
  - {name: arithmetic, kind: exact_match, data: arithmetic.jsonl, max_new_tokens: 6}
  - {name: sentiment, kind: multiple_choice, data: sentiment.jsonl}
  - {name: python, kind: perplexity, data: python.jsonl}
holdout: 0.4
"""


@dataclass(frozen=True)
class Family:
    """Folders of the models, and the suite's file. `experts` are in the order of the plan's."""

    base: Path
    experts: tuple[Path, Path, Path]
    suite: Path


@dataclass(frozen=True)
class Schedule:
    """Training steps, learning rate of the matrices (Muon), batch rows; what is replayed: (task, rows, every) …"""

    steps: int
    rate: float
    rows: int
    replay: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a family is made from.

    Attributes:
        version: part of the cache's name: raise it when anything that shapes the family changes.
        suite: text of suite.yaml; each task's items are beside it, in <task>.jsonl.
        tasks: the tasks' data by a seed.
        model: the base by a tokenizer and a seed, with random weights.
        base_rows: task → rows a batch, and every how many steps: the base knows a little of all.
        base_steps, base_rate, base_adam: the base's training steps and learning rates (Muon, AdamW).
        experts: each expert's task → its training after the base's.

    """

    version: str
    suite: str
    tasks: Callable[[int], Sequence[TaskData]]
    model: Callable[[Any, int], Any]
    base_rows: Mapping[str, tuple[int, int]]
    base_steps: int
    base_rate: float
    base_adam: float
    experts: Mapping[str, Schedule]


EXPERT_ADAM = 2e-3


def _llama(tokenizer: Any, seed: int) -> Any:
    from evomerge_cli.demo.training import new_model

    return new_model(tokenizer, seed)


DEMO = Plan(
    version="4",
    suite=SUITE,
    tasks=build_data,
    model=_llama,
    base_rows={"arithmetic": (24, 1), "sentiment": (16, 7), "python": (8, 2)},
    base_steps=120,
    base_rate=0.02,
    base_adam=5e-3,
    experts={
        "arithmetic": Schedule(60, 0.008, 48, (("python", 6, 4),)),
        "sentiment": Schedule(50, 0.006, 32, (("arithmetic", 24, 3),)),
        "python": Schedule(40, 0.008, 12, (("arithmetic", 24, 3),)),
    },
)


def build_family(
    folder: Path, *, seed: int = 0, progress: Callable[[str, float], None] | None = None, plan: Plan = DEMO
) -> Family:
    """Makes the family in `folder`, or finds it there: a second call with the same seed returns at once.

    Written beside `folder` and renamed, so a kill leaves no half family. The same seed gives the same files on one
    machine.

    Args:
        progress: called with (what, fraction 0 … 1 of the whole).

    """
    home = folder / f"v{plan.version}-{seed}"
    if not home.is_dir():
        try:
            with new_folder(home) as fresh:
                _make(fresh, seed, progress or (lambda _what, _fraction: None), plan)
        except OSError:
            if not home.is_dir():  # another command was first
                raise
    first, second, third = (home / name for name in plan.experts)
    return Family(home / "base", (first, second, third), home / "suite.yaml")


def _make(folder: Path, seed: int, progress: Callable[[str, float], None], plan: Plan) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads: no spinning on a busy machine
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # a number of its own: the files must not depend on the machine's cores
    try:
        _train(folder, seed, progress, plan)
    finally:
        torch.set_num_threads(threads)


def _train(folder: Path, seed: int, progress: Callable[[str, float], None], plan: Plan) -> None:
    from evomerge_cli.demo.training import Encoded, train, train_tokenizer

    progress("writing the tasks", 0.0)
    tasks = {task.name: task for task in plan.tasks(seed)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.yaml").write_text(plan.suite, encoding="utf-8")
    for name, task in tasks.items():
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in task.items)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    tokenizer = train_tokenizer([row for task in tasks.values() for row in task.rows])

    base = plan.model(tokenizer, seed)
    mix = [
        (Encoded(name, tasks[name].base_rows, tokenizer, rows, seed), every)
        for name, (rows, every) in plan.base_rows.items()
    ]
    train(
        base, mix, steps=plan.base_steps, rate=plan.base_rate, adam=plan.base_adam,
        progress=lambda f: progress("training the base", 0.02 + 0.48 * f),
    )  # fmt: skip
    _save(base, tokenizer, folder / "base")
    for place, (name, schedule) in enumerate(plan.experts.items()):
        rows = [(Encoded(name, tasks[name].rows, tokenizer, schedule.rows, seed + 1), 1)]
        for again, count, every in schedule.replay:
            rows.append((Encoded(again, tasks[again].base_rows, tokenizer, count, seed + 2), every))
        expert = copy.deepcopy(base)
        start = 0.5 + place / 6
        train(
            expert, rows, steps=schedule.steps, rate=schedule.rate, adam=EXPERT_ADAM,
            progress=partial(_tell, progress, f"training the {name} expert", start),
        )  # fmt: skip
        _save(expert, tokenizer, folder / name)


def _tell(progress: Callable[[str, float], None], what: str, start: float, fraction: float) -> None:
    progress(what, start + fraction / 6)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
