"""Scores for the Hub's `.eval_results`: true ones alone, in the form that the Hub's own library reads."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from evomerge_cli.finish import report
from evomerge_cli.publication import publication_of
from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import Benchmark
from evomerge_common.errors import SuiteError
from evomerge_report.card import model_card
from evomerge_report.eval_results import entries_of, write_eval_results
from evomerge_report.history import history_of
from evomerge_report.result import result_of
from helpers import synthetic_log
from helpers.hub_server import write_model_folder

COMMIT = "5" * 40


def named(**benchmarks: Benchmark) -> Suite:
    plain = synthetic_log.suite()
    tasks = [dataclasses.replace(one, benchmark=benchmarks.get(one.name)) for one in plain.tasks]
    return Suite.from_json(dataclasses.replace(plain, tasks=tuple(tasks)).to_json())


SUITE = named(arithmetic=Benchmark("openai/gsm8k", "gsm8k", COMMIT))
EVENTS = synthetic_log.events(tests=SUITE)


def test_the_hubs_library_reads_what_the_run_folder_holds(tmp_path: Path) -> None:
    write_model_folder(tmp_path / "model")
    result = report(EVENTS, SUITE, tmp_path)
    file = tmp_path / "model" / ".eval_results" / "evomerge.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text("utf-8")))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("openai/gsm8k", "gsm8k", COMMIT)
    assert entry.value == result["champion"]["holdout"]["tasks"]["arithmetic"]["metric_value"]
    task = result["suite"]["tasks"][0]
    assert entry.notes is not None
    assert entry.notes.startswith(
        f"exact_match on {task['holdout_items']} held-out items of 60; the others were the search's"
    )
    publication = publication_of(tmp_path / "model", lambda *_: {})
    assert ".eval_results/evomerge.yaml" in {one.name for one in publication.model}
    assert not any(".eval_results" in note for note in publication.notes)


def test_what_would_not_be_true_is_not_written(tmp_path: Path) -> None:
    write_model_folder(tmp_path / "model")
    (tmp_path / "model" / ".cache").mkdir()
    (tmp_path / "model" / ".cache" / "x").touch()
    result = result_of(history_of(EVENTS), SUITE)
    (tmp_path / "model" / "README.md").write_text(model_card(result))
    assert write_eval_results(result, tmp_path / "model")
    file = tmp_path / "model" / ".eval_results" / "evomerge.yaml"
    assert file.exists()
    own: dict[str, Any] = result_of(history_of(EVENTS), synthetic_log.suite())  # the same run, its tasks one's own
    assert not write_eval_results(own, tmp_path / "model")
    assert not file.exists()
    publication = publication_of(tmp_path / "model", lambda *_: {})
    assert {one.name for one in publication.model if one.name.startswith(".")} == set()
    assert [note for note in publication.notes if note.startswith(".eval_results: nothing to write")]
    assert (
        entries_of({**result, "champion": {**result["champion"], "holdout": None}}) == []
    )  # the search has seen those


def test_a_benchmark_that_cannot_be_one_is_refused() -> None:
    data = SUITE.to_dict()
    for wrong, words in (
        ({"dataset": "gsm8k?", "task": "x"}, r"tasks\[0\].benchmark.dataset: must be a dataset of the hub"),
        ({"dataset": "openai/gsm8k"}, r"benchmark.task: is needed"),
        ({"datset": "openai/gsm8k"}, "did you mean 'dataset'"),
    ):
        data["tasks"][0]["benchmark"] = wrong
        with pytest.raises(SuiteError, match=words):
            Suite.from_dict(data)
    assert "benchmark" not in synthetic_log.suite().to_json()
