"""The demo family: one base model and three experts of it, made on this machine in about a minute.

Real Hugging Face folders (llama, byte-level BPE), so that all that follows is the real path. The base learns all three
tasks a little; each expert goes on with its own and, as fine-tuning in practice does against forgetting, sees some of
another task's base rows again. So task vectors stay small enough to be added, and no source is good at everything.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evomerge_common.runtime.files import new_folder

EXPERTS = ("arithmetic", "sentiment", "python")
VERSION = "4"
"""Part of the cache's name: raise it when anything that shapes the family changes."""

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
    """Folders of the models, and the suite's file. `experts` are in the order of EXPERTS."""

    base: Path
    experts: tuple[Path, Path, Path]
    suite: Path


@dataclass(frozen=True)
class Schedule:
    """Training steps, learning rate of the matrices (Muon), batch rows; what is replayed: (task, rows, every)."""

    steps: int
    rate: float
    rows: int
    replay: tuple[str, int, int] = ("", 0, 0)


BASE_STEPS, BASE_RATE, BASE_ADAM = 120, 0.02, 5e-3
BASE_ROWS = {"arithmetic": (24, 1), "sentiment": (16, 7), "python": (8, 2)}
"""Task → rows a batch, and every how many steps: the base knows a little of all."""
SCHEDULES = {
    "arithmetic": Schedule(60, 0.008, 48, ("python", 6, 4)),
    "sentiment": Schedule(50, 0.006, 32, ("arithmetic", 24, 3)),
    "python": Schedule(40, 0.008, 12, ("arithmetic", 24, 3)),
}
EXPERT_ADAM = 2e-3


def build_family(folder: Path, *, seed: int = 0, progress: Callable[[str, float], None] | None = None) -> Family:
    """Makes the family in `folder`, or finds it there: a second call with the same seed returns at once.

    Written beside `folder` and renamed, so a kill leaves no half family. The same seed gives the same files on one
    machine.

    Args:
        progress: called with (what, fraction 0 … 1 of the whole).

    """
    home = folder / f"v{VERSION}-{seed}"
    if not home.is_dir():
        try:
            with new_folder(home) as fresh:
                _make(fresh, seed, progress or (lambda _what, _fraction: None))
        except OSError:
            if not home.is_dir():  # another command was first
                raise
    arithmetic, sentiment, python = (home / name for name in EXPERTS)
    return Family(home / "base", (arithmetic, sentiment, python), home / "suite.yaml")


def _make(folder: Path, seed: int, progress: Callable[[str, float], None]) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads: no spinning on a busy machine
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # a number of its own: the files must not depend on the machine's cores
    try:
        _train(folder, seed, progress)
    finally:
        torch.set_num_threads(threads)


def _train(folder: Path, seed: int, progress: Callable[[str, float], None]) -> None:
    from evomerge_cli.demo.data import build_data
    from evomerge_cli.demo.training import Encoded, new_model, train, train_tokenizer

    progress("writing the tasks", 0.0)
    tasks = {task.name: task for task in build_data(seed)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.yaml").write_text(SUITE, encoding="utf-8")
    for name, task in tasks.items():
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in task.items)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    tokenizer = train_tokenizer([row for task in tasks.values() for row in task.rows])

    base = new_model(tokenizer, seed)
    mix = [
        (Encoded(name, tasks[name].base_rows, tokenizer, rows, seed), every)
        for name, (rows, every) in BASE_ROWS.items()
    ]
    train(
        base, mix, steps=BASE_STEPS, rate=BASE_RATE, adam=BASE_ADAM,
        progress=lambda f: progress("training the base", 0.02 + 0.48 * f),
    )  # fmt: skip
    _save(base, tokenizer, folder / "base")
    for place, name in enumerate(EXPERTS):
        plan = SCHEDULES[name]
        rows = [(Encoded(name, tasks[name].rows, tokenizer, plan.rows, seed + 1), 1)]
        again, count, every = plan.replay
        rows.append((Encoded(again, tasks[again].base_rows, tokenizer, count, seed + 2), every))
        expert = copy.deepcopy(base)
        start = 0.5 + place / 6
        train(
            expert, rows, steps=plan.steps, rate=plan.rate, adam=EXPERT_ADAM,
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
