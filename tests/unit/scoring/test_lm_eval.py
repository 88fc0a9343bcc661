"""Tasks of lm-evaluation-harness from a local folder (run by `make test-lm-eval`, which installs the harness)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge_common.errors import SuiteError
from evomerge_common.runtime.suite_file import load_suite
from evomerge_scoring.kinds import expand_task
from evomerge_scoring.scorer import Scorer
from helpers.scoring import score
from helpers.tiny_models import make

pytestmark = [pytest.mark.lm_eval, pytest.mark.filterwarnings("ignore")]

TASK = """\
task: animals
dataset_path: json
dataset_kwargs: {data_files: {test: animals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "{{label}}"
doc_to_choice: "{{options}}"
num_fewshot: 1
fewshot_split: test
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
"""
SAYS = """\
task: says
dataset_path: json
dataset_kwargs: {data_files: {test: animals.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "x"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    docs = [{"question": f"what {n}", "options": ["good", "brown fox", "12"], "label": n % 3} for n in range(20)]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "animals.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "tasks" / "animals.yaml").write_text(TASK)
    (tmp_path / "tasks" / "says.yaml").write_text(SAYS)
    (tmp_path / "suite.yaml").write_text(
        "holdout: 0.3\ntasks:\n- {name: a, kind: lm_eval, task: animals, folder: tasks, metric: acc_norm}\n"
        "- {name: s, kind: lm_eval, task: says, folder: tasks}\n"
    )
    return tmp_path / "suite.yaml"


def test_scores_are_the_harness_own_item_by_item(tmp_path: Path, suite: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from evomerge_scoring.kinds.lm_eval_model import HarnessModel

    folder = make(tmp_path / "model")
    found = load_suite(suite, expand=expand_task)
    assert [len(task.items) for task in found.tasks] == [20, 20]
    scorer = Scorer(device="cpu")
    report = score(scorer, folder, found)
    model = scorer.resident.load_folder(folder)
    ours: Any = HarnessModel(model, scorer.encoder(model), 8)
    import contextlib

    with contextlib.chdir(tmp_path / "tasks"):
        manager = TaskManager(include_path=".", include_defaults=False)
        whole = lm_eval.simple_evaluate(
            model=ours, tasks=["animals", "says"], task_manager=manager, bootstrap_iters=0, log_samples=True
        )
    samples = whole["samples"]
    assert list(report.scores[0].item_scores) == [s["acc_norm"] for s in samples["animals"]]
    assert list(report.scores[1].item_scores) == [s["exact_match"] for s in samples["says"]]
    for split in ("search", "holdout"):
        part = score(scorer, folder, found, split).scores[0]
        chosen = {item.id for item in found.items(found.tasks[0], split)}
        expected = [
            v for v, i in zip(report.scores[0].item_scores, found.tasks[0].items, strict=True) if i.id in chosen
        ]
        assert list(part.item_scores) == expected, "few-shot examples do not depend on which items are asked"


def test_what_is_refused(suite: Path) -> None:
    task = {"name": "a", "kind": "lm_eval", "folder": str(suite.parent / "tasks")}
    for change, words in (
        ({"task": "animal"}, "mean 'animals'"),
        ({"task": "animals", "metric": "acc_nrm"}, "mean 'acc_norm'"),
        ({"task": "animals", "folder": "/no/such"}, "is no folder"),
    ):
        with pytest.raises(SuiteError, match=words):
            expand_task({**task, **change})
