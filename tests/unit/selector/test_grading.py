"""Partial credit: when it steers a search, what it changes, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evomerge_common.domain.messages import (
    CandidateEvaluated,
    CandidateProposed,
    EvaluateJob,
    Job,
    Result,
    RunStarted,
    TaskGraded,
    TaskScore,
    TaskShape,
)
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.strategies import STRATEGIES
from evomerge_selector.domain.candidate import Candidate
from evomerge_selector.domain.grading import SHARE, Grading, at_least
from helpers import simulation as playing
from helpers.simulation import ITEMS, Simulation, make_spec

TASKS = (TaskShape(task="t0", weight=1.0, items=4, fitness="auto"), TaskShape(task="t1", weight=3.0, items=4))


def candidate(index: int, *scores: float, credit: float = 0.0, operator: str = "average") -> Candidate:
    proposed = CandidateProposed(index=index, recipe_digest=str(index), operator=operator)
    return Candidate(proposed, fitness=sum(scores) / 2, scores=scores, credits=((4 * credit, 4), (0.0, 4)))


def decided(*merges: float, source: float = 0.5, fitness: str = "auto", items: int = 4) -> tuple[str, ...]:
    grading = Grading.of((replace(TASKS[0], fitness=fitness, items=items), TASKS[1]), 9)
    sources = [candidate(0, source, 0.2, operator="source"), candidate(1, 0.0, 0.9, operator="source")]
    return grading.decide([*sources, *(candidate(2 + i, one, 0.5) for i, one in enumerate(merges))])[0].graded


def test_a_skill_that_dies_in_every_merge_is_graded() -> None:
    assert decided(0.0, 0.0, 0.0) == ("t0",)
    assert decided(0.25, 0.25, 0.25) == ("t0",), "a constant floor is as good as nothing"
    assert decided(0.0, 0.0, 0.1) == (), "its score moves by itself"
    assert decided(0.0, 0.0, 0.0, source=0.0) == (), "no source can do it"
    assert decided(0.0, 0.0) == (), "too few to say"
    assert decided(0.0, 0.0, 0.0, fitness="") == ()
    assert decided(0.0, 0.3, 0.1, fitness="graded") == ("t0",)


def test_a_lucky_item_does_not_hide_that_a_skill_dies() -> None:
    item = 1 / 50
    assert decided(item, *[0.0] * 11, items=50) == ("t0",)
    assert decided(2 * item, *[0.0] * 11, items=50) == ("t0",), "the best of twelve may have two"
    assert decided(*[item, 0.0] * 6, items=50) == ("t0",)
    assert decided(4 * item, *[0.0] * 11, items=50) == (), "its score moves by itself"
    assert decided(item, *[0.0] * 11, source=3 * item, items=50) == (), "the source may have been lucky, too"
    assert decided(*[0.5, 0.48, 0.52] * 4, source=0.9, items=50) == (), "half alive"


def test_the_chance_of_so_many_right_ones_is_fishers() -> None:
    assert at_least(0, drawn=4, right=10, of=12) == pytest.approx(1.0)
    assert at_least(2, drawn=2, right=2, of=4) == pytest.approx(1 / 6)
    assert at_least(3, drawn=4, right=4, of=8) == pytest.approx(17 / 70), "the lady who tasted tea"
    assert at_least(5, drawn=4, right=4, of=8) == 0.0


def test_strategies_are_told_score_and_a_share_of_credit() -> None:
    grading = replace(Grading.of(TASKS, 9), graded=("t0",), decided=True)
    fitness, scores = grading.steered(candidate(3, 0.0, 0.6, credit=0.4))
    assert fitness == pytest.approx(0.3 + SHARE * 0.4 * 1 / 4)
    assert scores == pytest.approx((SHARE * 0.4, 0.6))
    assert replace(grading, graded=()).steered(candidate(3, 0.0, 0.6, credit=0.4)) == (0.3, (0.0, 0.6))
    failed = replace(candidate(3), fitness=float("-inf"), credits=())
    assert grading.steered(failed) == (float("-inf"), ())


def test_credit_of_rungs_adds_up_by_items() -> None:
    grading = Grading.of(TASKS, 9)
    first = candidate(2, 0.0, 0.0)
    first = replace(first, credits=())
    for credit, items in ((0.5, 1), (0.1, 3)):
        scores = [TaskScore(task="t0", credit=credit, item_scores=(0.0,) * items)]
        first = replace(first, credits=grading.credited(first, scores))
    assert first.credits[0] == pytest.approx((0.8, 4))


# ---- whole runs ----


def merged_dies(job: Job, **options: Any) -> Result:
    """Task t0 is answered by source m0 alone; its credit grows with the first task's skill."""
    found = playing_answer(job, **options)
    if not isinstance(found, CandidateEvaluated):
        return found
    assert isinstance(job.payload, EvaluateJob)
    assert job.payload.split == "search" or not job.payload.graded, "the holdout is asked for its own metric alone"
    alive = job.payload.artifact_uri == "file:///org/m0"
    scores = tuple(
        replace(
            one,
            score=one.score if alive else 0.0,
            item_scores=one.item_scores if alive else (0.0,) * len(one.item_scores),
            credit=one.score if one.task in job.payload.graded else 0.0,
        )
        if one.task == "t0"
        else one
        for one in found.scores
    )
    if job.payload.split == "search":
        ASKED.append((job.payload.recipe_digest, job.payload.graded))
    return replace(found, scores=scores, fitness=sum(one.score for one in scores) / len(scores))


playing_answer = playing.answer
ASKED: list[tuple[str, tuple[str, ...]]] = []


def play(spec: RunSpec, monkeypatch: pytest.MonkeyPatch, *, fitness: str, **options: Any) -> Simulation:
    """A run whose task t0 says how it is graded, and dies in every merge."""

    def with_fitness(**fields: Any) -> TaskShape:
        return TaskShape(**fields, fitness=fitness if fields["task"] == "t0" else "")

    ASKED.clear()
    monkeypatch.setattr(playing, "answer", merged_dies)
    monkeypatch.setattr(playing, "TaskShape", with_fitness)
    return Simulation(spec, items=True, **options)


def graded(simulation: Simulation) -> list[TaskGraded]:
    return [event.payload for event in simulation.events if isinstance(event.payload, TaskGraded)]


def test_auto_asks_the_first_candidates_and_goes_on_where_the_skill_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    played = play(make_spec(evaluations=40, population=8), monkeypatch, fitness="auto", workers=1, order=0)
    (said,) = graded(played)
    assert said.task == "t0"
    assert "merges scores 0.000, the best source" in said.reason
    asked = dict(ASKED)
    assert all(asked[digest] == ("t0",) for _, digest, _ in played.proposals)
    plain = play(make_spec(evaluations=40, population=8), monkeypatch, fitness="", workers=1, order=0)
    assert not graded(plain)
    assert not any(names for _, names in ASKED)
    found = [sum(c.scores[0] == 0.0 and c.credits != () for c in run.run.candidates) for run in (played, plain)]
    assert found[0] > 20
    assert found[1] == 0


def test_what_is_not_needed_is_no_longer_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A skill that lives: credit is asked of the first candidates, then no more; nothing else changes."""
    calm = play(make_spec(evaluations=40, population=8), monkeypatch, fitness="", workers=1, order=0)
    monkeypatch.setattr(playing, "answer", playing_answer)
    lively = make_spec(evaluations=40, population=8)

    def alive(job: Job, **options: Any) -> Result:
        if isinstance(job.payload, EvaluateJob) and job.payload.split == "search":
            ASKED.append((job.payload.recipe_digest, job.payload.graded))
        return playing_answer(job, **options)

    ends = []
    for fitness in ("auto", ""):
        ASKED.clear()
        monkeypatch.setattr(playing, "answer", alive)
        shape = lambda fitness=fitness, **fields: TaskShape(**fields, fitness=fitness)  # noqa: E731
        monkeypatch.setattr(playing, "TaskShape", shape)
        ends.append(Simulation(lively, workers=1, order=0, items=True))
        asked = dict(ASKED)
        order = [digest for _, digest, _ in ends[-1].proposals]
        assert [bool(asked[digest]) for digest in order[-20:]] == [False] * 20
        assert bool(asked[order[0]]) == bool(fitness)
    assert not graded(ends[0])
    assert ends[0].proposals == ends[1].proposals
    assert ends[0].events[-1] == ends[1].events[-1]
    assert calm.proposals[:4] == ends[0].proposals[:4]


def test_the_champion_goes_by_the_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    run = play(make_spec(evaluations=40, population=8), monkeypatch, fitness="graded", workers=1, order=0).run
    whole = [one for one in run.candidates if one.is_whole]
    assert run.final_champion.fitness == max(one.fitness or 0.0 for one in whole)


def test_a_rung_that_is_answered_again_is_credited_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that ends early, in the midst of races, and goes on."""
    racing = {"rungs": [0.5, 0.9], "confidence": 0.99, "early": 0, "unit": 12}
    short, long = (make_spec(evaluations=30, patience=count, racing=racing, population=8) for count in (4, 20))
    played = play(short, monkeypatch, fitness="graded", workers=6, order=2)
    played.go_on(long)
    judged = [one for one in played.run.candidates if one.fitness is not None]
    assert [sum(items for _, items in one.credits) for one in judged] == [
        one.raced.items if one.raced else 3 * ITEMS for one in judged
    ]


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "gp"])
@pytest.mark.parametrize(("workers", "order", "replay"), [(8, 3, 1), (3, 5, 17)])
def test_order_workers_and_crashes_change_nothing(
    strategy: str, workers: int, order: int, replay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    racing = not STRATEGIES[strategy].several_objectives and workers == 3
    spec = make_spec(strategy=strategy, evaluations=30, population=8, in_flight=5, racing=racing)
    calm = play(spec, monkeypatch, fitness="auto", workers=1, order=0)
    wild = play(spec, monkeypatch, fitness="auto", workers=workers, order=order, replay_every=replay)
    assert wild.proposals == calm.proposals
    assert wild.events[-1] == calm.events[-1]
    assert graded(wild) == graded(calm)


def test_a_log_from_before_has_nothing_graded() -> None:
    assert TaskShape(task="a", weight=1.0, items=ITEMS).fitness == ""
    assert Grading.of(RunStarted().tasks, 5).asked(0) == ()
