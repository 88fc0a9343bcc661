"""What a champion may not lose: how bounds are read, who may lead, and that order and crashes change nothing."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge_common.domain.constraints import Constraint
from evomerge_common.domain.genome import Genome
from evomerge_common.domain.messages import (
    CandidateEvaluated,
    CandidateFailed,
    CandidateProposed,
    EvaluateJob,
    Job,
    Result,
    RunFailed,
)
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.search_space import SearchSpace
from evomerge_common.domain.spec import RunRequest, RunSpec, SearchSpec
from evomerge_common.domain.strategies import STRATEGIES
from evomerge_common.errors import SpecError
from evomerge_selector.domain.candidate import Candidate
from evomerge_selector.domain.leaderboard import Leaderboard
from evomerge_selector.domain.run import Phase, Run
from evomerge_selector.domain.strategies.nsga2 import ParetoSearch
from evomerge_selector.domain.strategies.tournament import EvolutionaryTournament
from evomerge_selector.domain.strategy import ScoredCandidate
from helpers import simulation as playing
from helpers.simulation import SUITE, Simulation, make_spec

SPACE = SearchSpace((ModelReference("a"), ModelReference("b"), ModelReference("c")), None, 6, 4, ("linear",))
MODELS = ["org/qwen-0.5", "org/math", "/home/me/base"]


def read(bound: Any, base: str = "org/base", task: str = "a") -> RunSpec:
    return RunSpec.from_dict({"models": MODELS, "base": base, "constraints": {task: {"not_below": bound}}})


def constrained(bounds: dict[str, Any], **search: Any) -> RunSpec:
    data = make_spec(**{"evaluations": 40, "population": 8, **search}).to_dict()
    return RunSpec.from_dict({**data, "constraints": {task: {"not_below": bound} for task, bound in bounds.items()}})


@pytest.mark.parametrize(
    ("bound", "anchor", "offset"),
    [
        (0.4, "", 0.4),
        (0, "", 0.0),
        ("base", "base", 0.0),
        ("base - 0.02", "base", -0.02),
        ("base-.02", "base", -0.02),
        ("best + 0.1", "best", 0.1),
        ("math - 0.02", "org/math", -0.02),
        ("org/math", "org/math", 0.0),
        ("qwen-0.5", "org/qwen-0.5", 0.0),
        ("org/qwen-0.5 - 0.5", "org/qwen-0.5", -0.5),
        ("qwen-0.5-0.5", "org/qwen-0.5", -0.5),
        ("/home/me/base - 0.1", "/home/me/base", -0.1),
    ],
)
def test_bounds_are_read_and_written(bound: Any, anchor: str, offset: float) -> None:
    spec = read(bound)
    assert spec.constraints == (Constraint("a", anchor, offset),)
    assert RunSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"a": {"not_below": "bse - 0.02"}}, "did you mean 'base'"),
        ({"a": {"not_below": "mth"}}, "did you mean 'math'"),
        ({"a": {"not_below": "base * 2"}}, "is no bound"),
        ({"a": {"not_below": True}}, "must be a number"),
        ({"a": {"not_bellow": 1}}, "did you mean 'not_below'"),
        ({"a": {}}, "needs `not_below`"),
        ({"a": 0.3}, "expected keys and values"),
        ([1], "must be tasks with their bounds"),
    ],
)
def test_mistakes_name_the_nearest_valid_word(data: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        RunSpec.from_dict({"models": MODELS, "base": "org/base", "constraints": data})
    assert caught.value.path[0] == "constraints"


def test_a_run_without_base_has_no_bound_by_it() -> None:
    with pytest.raises(SpecError, match="has no base"):
        read("base", base="")


def test_a_task_that_the_suite_has_not_is_refused() -> None:
    with pytest.raises(SpecError, match="no task 'aa'; did you mean 'a'") as caught:
        RunRequest.from_dict({**read(0.1, task="aa").to_dict(), "suite": SUITE})
    assert caught.value.path == ("constraints", "aa")


def test_fewer_evaluations_than_sources_leave_bounds_unknown() -> None:
    with pytest.raises(SpecError, match="all 4 sources"):
        constrained({"t0": "base"}, evaluations=3)


def test_without_constraints_the_log_is_what_it_was() -> None:
    assert "constraints" not in make_spec().to_dict()


# ---- who leads ----


def candidate(index: int, fitness: float, violation: float) -> Candidate:
    return Candidate(CandidateProposed(index=index, recipe_digest=str(index)), fitness=fitness, violation=violation)


def test_the_leaderboard_follows_debs_rules() -> None:
    board, search = Leaderboard(), SearchSpec(elites=3, target=0.8)
    leads = []
    for index, (fitness, violation) in enumerate([(0.9, 0.2), (0.8, 0.1), (0.3, 0.0), (0.95, 0.01), (0.4, 0.0)]):
        board.count(candidate(index, fitness, violation), search)
        leads.append(board.champion)
        assert board.stop_reason(search, 99) == "", "a target is reached by who meets the constraints"
    assert leads == [0, 1, 2, 2, 4]
    assert [index for _, _, index in board.elites] == [4, 2, 3]


def scored(index: int, fitness: float, violation: float, scores: tuple[float, ...] = (0.5,)) -> ScoredCandidate:
    genome = Genome("linear", weights=((float(index), 1.0, 1.0),) * 4)
    return ScoredCandidate(str(index), genome, fitness, index, scores, violation)


def test_the_tournaments_pool_follows_debs_rules() -> None:
    search = EvolutionaryTournament(SPACE, SearchSpec(population=3))
    for one in (scored(0, 0.9, 0.2), scored(1, 0.8, 0.1), scored(2, 0.3, 0.0), scored(3, 0.2, 0.0)):
        search.tell(one)
    assert [one.index for one in search.pool] == [2, 3, 1]


def test_feasible_candidates_dominate_the_others() -> None:
    search = ParetoSearch(SPACE, SearchSpec(population=3))
    for one in (scored(0, 0.9, 0.2, (0.9, 0.9)), scored(1, 0.2, 0.0, (0.1, 0.3)), scored(2, 0.2, 0.0, (0.3, 0.1))):
        search.tell(one)
    assert search.layer == {"1": 0, "2": 0, "0": 1}
    search.tell(scored(3, 0.5, 0.1, (0.5, 0.5)))
    assert [one.index for one in search.pool] == [1, 2, 3]


# ---- whole runs ----


def of_candidates(run: Run) -> list[Candidate]:
    return [one for one in run.candidates[: run._leaderboard.seen] if one.is_whole]


@pytest.mark.parametrize("racing", [False, True])
def test_who_violates_is_no_champion_while_anyone_does_not(racing: bool) -> None:
    free = Simulation(constrained({}, racing=racing), workers=1, order=0, items=True)
    bound = {"t0": "best - 0.1", "t1": 0.2}
    played = Simulation(constrained(bound, racing=racing), workers=1, order=0, items=True)
    sources = played.run.candidates[:4]
    limits = [max(one.scores[0] for one in sources) - 0.1, 0.2]
    champion = played.run.final_champion
    assert all(score >= limit for score, limit in zip(champion.scores, limits, strict=False))
    feasible = [
        one for one in of_candidates(played.run)
        if all(score >= limit - 1e-9 for score, limit in zip(one.scores, limits, strict=False))
    ]  # fmt: skip
    assert champion.fitness == max(one.fitness or 0.0 for one in feasible)
    assert champion is played.run.champion
    assert racing or free.run.final_champion.scores[0] < limits[0], "or the bound would prove nothing"


def test_where_nobody_meets_the_bounds_who_is_nearest_leads() -> None:
    run = Simulation(constrained({"t0": 1.5}), workers=1, order=0, items=True).run
    assert run.final_champion.scores[0] == max(one.scores[0] for one in of_candidates(run))
    assert run.phase is Phase.FINISHED


def test_bounds_that_all_meet_change_nothing() -> None:
    free = Simulation(constrained({}), workers=1, order=0, items=True)
    bound = Simulation(constrained({"t0": 0.0}), workers=1, order=0, items=True)
    assert bound.proposals == free.proposals
    assert bound.events[-1] == free.events[-1]


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "gp"])
@pytest.mark.parametrize(("workers", "order", "replay"), [(8, 3, 1), (3, 5, 17)])
def test_order_workers_and_crashes_change_nothing(strategy: str, workers: int, order: int, replay: int) -> None:
    """Many in flight: candidates have results before the sources, which set the bounds."""
    racing = not STRATEGIES[strategy].several_objectives and workers == 3
    bounds = {"t0": "best - 0.05", "t1": "base", "t2": "m1 - 0.3"}
    spec = constrained(bounds, strategy=strategy, evaluations=30, in_flight=9, racing=racing)
    calm = Simulation(spec, workers=1, order=0, items=True)
    wild = Simulation(spec, workers=workers, order=order, replay_every=replay, items=True)
    assert wild.proposals == calm.proposals
    assert wild.events[-1] == calm.events[-1]
    assert any(one.violation for one in calm.run.candidates)


def test_a_bound_by_a_source_without_a_score_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(job: Job, **options: Any) -> Result:
        found = answered(job, **options)
        if not isinstance(found, CandidateEvaluated) or not isinstance(job.payload, EvaluateJob):
            return found
        if job.payload.artifact_uri != "file:///org/base" or job.payload.split != "search":
            return found
        return CandidateFailed(job_id=job.job_id, kind="evaluate", recipe_digest=found.recipe_digest, split="search")

    answered = playing.answer
    monkeypatch.setattr(playing, "answer", answer)
    end = Simulation(constrained({"t1": "base - 0.02"}), workers=2, order=1, items=True).events[-1].payload
    assert isinstance(end, RunFailed)
    assert end.error.message == "constraint on 't1' (not below base - 0.02): that source could not be scored"
