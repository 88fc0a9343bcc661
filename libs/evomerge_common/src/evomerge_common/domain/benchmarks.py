"""What is to be said of a suite before a search selects on it.

A model chosen on a benchmark's test items says nothing about it; what a clock measures is not the same twice.
"""

from __future__ import annotations

import re

from evomerge_common.domain.kinds import kind_of
from evomerge_common.domain.suite import Suite

KNOWN = (
    "agieval", "aime", "arc_challenge", "arc_easy", "bbh", "belebele", "boolq", "copa", "drop", "gpqa", "gsm8k",
    "hellaswag", "humaneval", "ifeval", "lambada", "livecodebench", "math_500", "mbpp", "mgsm", "mmlu", "mmlu_pro",
    "musr", "naturalquestions", "openbookqa", "piqa", "race", "siqa", "squad", "swe_bench", "triviaqa", "truthfulqa",
    "wikitext", "winogrande", "xcopa", "xnli",
)  # fmt: skip
"""Names of public benchmarks, in lower case."""
FAIR = ("train", "dev", "valid", "validation", "search")
"""Words of a task's name that say that its items are not the test split."""


def selection_warnings(suite: Suite) -> tuple[str, ...]:
    """Writes one sentence for each task that looks like a known benchmark's test split, or that measures time."""
    found = []
    for task in suite.tasks:
        kind = kind_of(task.kind)
        if kind.measures_time(task):
            found.append(
                f"task {task.name!r} measures time: a second run with the same seed may end with another champion "
                "(never one that remembers this one's scores); `parameters` and `bytes` are the same everywhere"
            )
            continue
        benchmark = kind.test_split_of(task)
        if benchmark is None:
            benchmark = _named_after(task.name)
        if benchmark:
            found.append(_sentence(task.name, benchmark))
    return tuple(found)


def _named_after(task: str) -> str:
    """The public benchmark whose test split a task's name speaks of; "" for none."""
    words = re.sub(r"[^a-z0-9]+", "_", task.lower())
    if any(word in words.split("_") for word in FAIR):
        return ""
    return next((name for name in KNOWN if re.search(rf"(^|_){name}(_|$)", words)), "")


def _sentence(task: str, benchmark: str) -> str:
    return (
        f"task {task!r} looks like the test split of {benchmark}: a model selected on it has seen the test, so its "
        "score there proves nothing; select on the training or validation split"
    )
