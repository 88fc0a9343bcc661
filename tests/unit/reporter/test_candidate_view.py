"""What is shown of one candidate says what the log says, and nothing of held-out items before the run has ended."""

import dataclasses
import json
import time
from typing import Any

import pytest

from evomerge_common.domain import messages as m
from evomerge_common.errors import NotFound
from evomerge_common.ports import Recorded
from evomerge_report.history import History, history_of
from evomerge_report.items import TEXT_LENGTH
from evomerge_report.projection import Projection
from evomerge_report.queries import Queries
from evomerge_report.views.candidate import candidate_view, items_view
from helpers import synthetic_log

SUITE = synthetic_log.suite()


def with_answers(log: list[Recorded]) -> list[Recorded]:
    """The same log of evaluators that tell what models wrote."""

    def answered(payload: Any) -> Any:
        if not isinstance(payload, m.CandidateEvaluated):
            return payload
        scores = tuple(
            dataclasses.replace(
                one,
                answers=tuple(m.Answer(position=i, text=f"{payload.recipe_digest[:4]} says {i}") for i in range(3)),
            )
            for one in payload.scores
        )
        return dataclasses.replace(payload, scores=scores)

    return [
        dataclasses.replace(one, event=dataclasses.replace(one.event, payload=answered(one.event.payload)))
        for one in log
    ]


def queries_of(log: list[Recorded]) -> Queries:
    projection = Projection()
    projection.apply_all(log)
    return Queries(projection.database)


@pytest.fixture(scope="module")
def history() -> History:
    return history_of(synthetic_log.events())


@pytest.fixture(scope="module")
def queries() -> Queries:
    return queries_of(with_answers(synthetic_log.events()))


@pytest.fixture(scope="module")
def view(queries: Queries, history: History) -> dict[str, Any]:
    return candidate_view(queries, "run-1", history.champion_digest)


def test_wins_and_losses_against_each_source_are_those_of_the_log(history: History, view: dict[str, Any]) -> None:
    assert history.champion is not None
    for split in ("search", "holdout"):
        for source, entry in zip(history.sources, view["against"][split], strict=True):
            assert entry["digest"] == source.digest
            pairs = zip(history.champion.results[split].scores, source.results[split].scores, strict=True)
            for ours, theirs in pairs:
                items = list(zip(ours.item_scores, theirs.item_scores, strict=True))
                found = entry["tasks"][ours.task]
                assert found["wins"] == sum(a > b for a, b in items)
                assert found["losses"] == sum(a < b for a, b in items)
                assert found["difference"] == pytest.approx(ours.score - theirs.score, abs=1e-6)
                assert found["low"] <= found["difference"] <= found["high"]


def test_item_scores_stand_at_their_places(history: History, view: dict[str, Any]) -> None:
    for task in SUITE.tasks:
        table = view["scores"]["holdout"][task.name]
        assert table["places"] == list(range(len(SUITE.items(task, "holdout"))))
        for model, scores in zip(view["models"], table["scores"], strict=True):
            result = history.candidates[model["digest"]].results["holdout"]
            assert scores == list(next(one for one in result.scores if one.task == task.name).item_scores)


def test_the_recipe_is_there_in_words_yaml_and_shares(history: History, view: dict[str, Any]) -> None:
    found = view["recipe"]
    assert found["words"]
    assert "/models/" not in found["yaml"], "the author's folders stay private"
    assert [row["name"] for row in found["shares"]["rows"]] == ["embeddings", "layers 0–3", "head"]
    assert set(found["shares"]["sources"]) >= {"expert-math", "expert-code", "expert-text"}
    json.dumps(view, allow_nan=False)


def test_answers_stand_side_by_side(view: dict[str, Any]) -> None:
    first = view["answers"][0]
    assert (first["split"], first["place"]) == ("search", 0)
    assert first["texts"] == [f"{model['digest'][:4]} says 0" for model in view["models"]]
    assert {one["split"] for one in view["answers"]} == {"search", "holdout"}


def test_nothing_of_the_holdout_before_the_run_has_ended(history: History) -> None:
    whole = with_answers(synthetic_log.events())
    under_way = [one for one in whole if not isinstance(one.event.payload, m.RunFinished)]
    view = candidate_view(queries_of(under_way), "run-1", history.champion_digest)
    assert list(view["scores"]) == list(view["against"]) == ["search"]
    assert {one["split"] for one in view["answers"]} == {"search"}
    assert view["candidate"]["holdout"] is None
    assert "holdout" not in json.dumps(view["tasks"])
    assert list(items_view(SUITE, ended=False)) == ["search"]
    held = {one.content["prompt"] for task in SUITE.tasks for one in SUITE.items(task, "holdout")}
    seen = {item[1] for tasks in items_view(SUITE, ended=False).values() for some in tasks.values() for item in some}
    assert not held & seen


def test_a_stopped_candidate_is_compared_on_the_items_it_has(history: History) -> None:
    """Rungs of a race: scores stand at the places that were asked."""
    digest = next(one.digest for one in history.candidates.values() if not one.is_source and one.fitness)
    log = []
    for one in synthetic_log.events():
        payload = one.event.payload
        if isinstance(payload, m.CandidateEvaluated) and payload.recipe_digest == digest:
            scores = tuple(
                dataclasses.replace(score, item_scores=score.item_scores[5:9], positions=(5, 6, 7, 8))
                for score in payload.scores
            )
            payload = dataclasses.replace(payload, scores=scores, partial=True)
        log.append(dataclasses.replace(one, event=dataclasses.replace(one.event, payload=payload)))
    view = candidate_view(queries_of(log), "run-1", digest)
    table = view["scores"]["search"]["arithmetic"]
    assert table["places"] == [5, 6, 7, 8]
    found = view["against"]["search"][0]["tasks"]["arithmetic"]
    assert found["wins"] + found["losses"] + found["ties"] == 4


def test_parents_and_children_name_each_other(queries: Queries, history: History) -> None:
    child = next(one for one in history.candidates.values() if one.proposal.parents)
    view = candidate_view(queries, "run-1", child.digest)
    assert [one["digest"] for one in view["parents"]] == list(child.proposal.parents)
    above = candidate_view(queries, "run-1", child.proposal.parents[0])
    assert child.digest in [one["digest"] for one in above["children"]]


def test_items_are_told_shortly_with_the_right_answer() -> None:
    found = items_view(synthetic_log.suite(4), ended=True)
    texts = [item for tasks in found.values() for some in tasks.values() for item in some]
    assert all(len(text) <= TEXT_LENGTH for _, text, _ in texts)
    assert {right for _, text, right in texts if text == "sentiment question 3"} == {" 3"}


def test_no_such_candidate(queries: Queries) -> None:
    with pytest.raises(NotFound, match="no candidate"):
        candidate_view(queries, "run-1", "f" * 64)


def test_one_candidate_of_thousands_is_shown_at_once() -> None:
    """What is read and computed is one candidate's and the sources', however long the log."""
    suite = synthetic_log.suite(167)
    log = synthetic_log.events(candidates=150, tests=suite)
    queries = queries_of(with_answers(log))
    digest = queries.run("run-1").champion
    candidate_view(queries, "run-1", digest)
    start = time.perf_counter()
    json.dumps(candidate_view(queries, "run-1", digest))
    assert time.perf_counter() - start < 0.3
