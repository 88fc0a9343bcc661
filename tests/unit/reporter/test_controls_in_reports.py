"""Where the champion stands against null candidates: honest words, selection accounted for, and null runs say no."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest

from evomerge_cli.run_view import RunView
from evomerge_common.domain import messages as m
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.spec import RunSpec
from evomerge_common.ports import Recorded
from evomerge_report.card import model_card
from evomerge_report.controls import expected_best
from evomerge_report.history import History, history_of
from evomerge_report.report import report_page
from evomerge_report.result import result_of
from helpers import synthetic_log

SUITE = synthetic_log.suite()
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "null_runs.py"


def scored(digest: str, split: str, skill: float) -> m.CandidateEvaluated:
    """A model that answers this share of each task's items."""
    scores = []
    for task in SUITE.tasks:
        rng = random.Random(f"{digest} {task.name} {split}")
        items = tuple(float(rng.random() < skill) for _ in SUITE.items(task, split))
        scores.append(m.TaskScore(task=task.name, score=fmean(items), metric="exact_match", item_scores=items))
    fitness = SUITE.fitness({one.task: one.score for one in scores})
    return m.CandidateEvaluated(recipe_digest=digest, split=split, fitness=fitness, scores=tuple(scores))


def with_controls(skills: Sequence[tuple[str, float | None]], *, holdout: bool = True) -> list[Recorded]:
    """The synthetic run with such controls; without a skill one fails."""
    log = [one.event for one in synthetic_log.events()]
    place = next(i for i, one in enumerate(log) if isinstance(one.payload, m.SearchEnded))
    controls, results = [], []
    for seed, (kind, skill) in enumerate(skills):
        recipe = Recipe.of_models("permute_delta", {ModelReference("a"): {}}, base=ModelReference("b"), seed=seed)
        controls.append(m.Control(kind=kind, recipe_digest=recipe.digest, recipe_json=recipe.to_json()))
        for split in ("search", "holdout") if holdout else ("search",):
            failed = m.CandidateFailed(kind="evaluate", recipe_digest=recipe.digest, split=split)
            results.append(failed if skill is None else scored(recipe.digest, split, skill))
    ended = log[place]
    assert isinstance(ended.payload, m.SearchEnded)
    log[place] = replace(ended, payload=replace(ended.payload, controls=tuple(controls)))
    log[place + 1 : place + 1] = [replace(ended, payload=payload) for payload in results]
    return [Recorded(number, event) for number, event in enumerate(log, start=1)]


def told(*skills: tuple[str, float | None], **options: Any) -> tuple[History, dict[str, Any]]:
    history = history_of(with_controls(skills, **options))
    return history, result_of(history, SUITE)


WEAK = (("permuted", 0.3), ("permuted", 0.3), ("noised", 0.35), ("noised", 0.35), ("uniform", 0.4))


def test_a_champion_far_above_its_controls_stands_out() -> None:
    history, result = told(*WEAK)
    found = result["controls"]
    assert found["stands_out"]
    assert found["selection"]["ahead"]
    assert found["holdout"]["better_than"] == found["holdout"]["of"] == 5
    assert found["statement"].startswith("The champion stands out from 5 null candidates")
    plain = result_of(history_of(synthetic_log.events()), SUITE)
    assert plain["controls"] is None
    for key in ("champion", "sources", "improvement", "evaluations", "proposed", "failed", "pareto_front"):
        assert result[key] == plain[key], key
    assert found["statement"] in model_card(result)
    page = report_page(history, {**result, "trace": {**_no_trace()}})
    assert "Against null candidates" in page
    assert "Against null candidates" not in report_page(history, {**plain, "trace": {**_no_trace()}})


def _no_trace() -> dict[str, Any]:
    return dict.fromkeys(("evaluator_busy", "orchestration", "start", "merge_to_evaluation"))


def test_one_control_that_is_as_good_is_enough_against_it() -> None:
    champion = history_of(synthetic_log.events()).champion
    assert champion is not None
    assert champion.fitness is not None
    _, result = told(*WEAK[:4], ("uniform", champion.results["holdout"].fitness))
    found = result["controls"]
    assert not found["stands_out"]
    assert found["holdout"]["nearest"]["kind"] == found["selection"]["kind"] == "uniform"
    assert "does not stand out from 5 null candidates" in found["statement"]
    assert "nothing shows that merging did more than chance" in found["statement"]


def test_a_source_stands_out_from_nothing() -> None:
    """However far below it null candidates are: no merge has beaten it."""
    log = with_controls(WEAK)
    source = next(iter(history_of(log).sources)).digest
    best = [
        replace(one, event=replace(one.event, payload=replace(one.event.payload, champion_digest=source)))
        if isinstance(one.event.payload, m.SearchEnded | m.RunFinished)
        else one
        for one in log
    ]
    found = result_of(history_of(best), SUITE)["controls"]
    assert not found["stands_out"]
    assert "a source as it is" in found["statement"]


def test_controls_are_no_part_of_the_budget() -> None:
    view, plain = RunView(), RunView()
    for one in with_controls((*WEAK, ("noised", None))):
        view.apply(one.event)
    for one in synthetic_log.events():
        plain.apply(one.event)
    assert view.done == plain.done


def test_without_a_holdout_the_best_of_as_many_controls_decides() -> None:
    _, result = told(*WEAK, holdout=False)
    found = result["controls"]
    assert found["holdout"] is None
    assert found["stands_out"] == found["selection"]["ahead"]
    assert "No items are held out" in found["statement"]
    chosen = found["selection"]
    assert chosen["mean"] < chosen["expected_best"] < chosen["best95"] < 1
    assert chosen["compared"] == result["evaluations"]


def test_controls_that_failed_are_counted_and_compared_with_nobody() -> None:
    _, result = told(*WEAK[:2], ("noised", None), ("noised", None))
    found = result["controls"]
    assert (found["failed"], len(found["candidates"]), found["holdout"]["of"]) == (2, 2, 2)
    assert told(("noised", None))[1]["controls"] is None


def test_the_expected_best_of_some_draws_is_that_of_the_normal_distribution() -> None:
    rng = random.Random(0)
    for count in (1, 5, 40, 200):
        drawn = fmean(max(rng.gauss(0, 1) for _ in range(count)) for _ in range(1500))
        assert expected_best(count) == pytest.approx(drawn, abs=0.08)


@pytest.fixture(scope="module")
def null_runs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("null_runs", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["null_runs"] = importlib.util.module_from_spec(spec)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_where_nothing_can_improve_reports_say_so(null_runs: ModuleType) -> None:
    """The seeded part of benchmarks/null_runs.py, which counts 100 of each.

    Of a null run the bootstrap's lower bound is above zero in 3 of 100; more than two of twenty would be in 2 of 100.
    """
    history = history_of(synthetic_log.events())
    models = [model.reference for model in map(history.model_of, history.sources)]
    spec = RunSpec.from_dict({"models": models, "search": {"population": 8}})
    history.start = replace(history.start, spec_json=spec.to_json())
    record = null_runs.read(history, SUITE)
    null = null_runs.measure([record], 20, evaluations=20, likeness=0.5, gain=0.0)
    assert null["did_not_improve"] >= 18
    assert null["stands_out_from_controls"] <= 1
    better = null_runs.measure([record], 8, evaluations=20, likeness=0.5, gain=0.8)
    assert better["improved"] >= 7
