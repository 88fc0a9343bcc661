"""What a model wrote to the first items of a task that generates is told with its scores."""

from pathlib import Path

import pytest

from evomerge_common.adapters import codec
from evomerge_common.domain.messages import Answer, CandidateEvaluated, TaskScore
from evomerge_evaluator.handlers import _answers
from evomerge_scoring import score_folder
from evomerge_scoring.kinds.requests import ANSWER_LENGTH, ANSWERS, _short, _written
from evomerge_scoring.report import ScoreReport
from helpers.tiny_models import PROMPTS, make, suite_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"))


def test_a_task_that_generates_tells_what_was_written_first(folder: Path) -> None:
    prompts = [f"{prompt} {place}" for place in range(2) for prompt in PROMPTS]
    suite = suite_of("exact_match", [{"prompt": prompt, "answer": "x"} for prompt in prompts], stop=["\x00"])
    (found,) = score_folder(folder, suite, "all", threads=1).scores
    assert [one.position for one in found.answers] == list(range(ANSWERS))
    for one, prompt in zip(found.answers, prompts, strict=False):
        alone = suite_of("exact_match", [{"prompt": prompt, "answer": one.text.strip()}], stop=["\x00"])
        assert score_folder(folder, alone, "all", threads=1).scores[0].score == 1.0, "it is what is scored"


def test_other_tasks_tell_none(folder: Path) -> None:
    suite = suite_of("multiple_choice", [{"prompt": "a", "choices": ["b", "c"], "answer": 0}])
    assert score_folder(folder, suite, "all", threads=1).scores[0].answers == ()


def test_answers_are_short_and_can_travel() -> None:
    assert len(_short("x" * 5000)) == ANSWER_LENGTH
    (one,) = _written([["half a pair \ud800"]])
    assert one.text == "half a pair ?"
    event = CandidateEvaluated(scores=(TaskScore(task="t", answers=(one,)),))
    (back,) = codec.from_proto(codec.to_proto(event)).scores
    assert back.answers == (one,)


def test_places_are_those_of_the_split_and_later_rungs_tell_none() -> None:
    score = TaskScore(task="t", item_scores=(1.0, 0.0), answers=(Answer(position=0, text="a"), Answer(position=1)))
    report = ScoreReport(fitness=0.5, scores=(score,), seconds=0.0, items=2, device="cpu")
    missing = {"t": {b"one": 4, b"two": 9}}
    assert [one.position for one in _answers(report, missing, "t", 0)] == [4, 9]
    assert _answers(report, missing, "t", 1) == ()
