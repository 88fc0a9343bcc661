"""A run's records: the same log gives the same ones, a longer log more of them, and nothing twice."""

import math
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from evomerge_cli.trackers import asked_for
from evomerge_common.domain.history import mean_fitness
from evomerge_common.domain.spec import RunSpec
from evomerge_common.errors import InvalidInput, SpecError
from evomerge_common.ports import Recorded
from evomerge_report.history import history_of
from evomerge_report.records import CANDIDATE, END, RESULT, RUN, Record, Records, records_of
from evomerge_report.result import result_of
from evomerge_report.sinks import KINDS, check_asked, without_secrets
from evomerge_report.sinks import __main__ as sinks_process
from helpers import synthetic_log
from helpers.simulation import Simulation, make_spec

EVENTS = synthetic_log.events()


def numbered(simulation: Simulation) -> list[Recorded]:
    return [Recorded(number, event) for number, event in enumerate(simulation.events, start=1)]


def race() -> Simulation:
    """A run that stops candidates, retries jobs, and tells some results twice."""
    return Simulation(make_spec(evaluations=24, population=6, racing=True), workers=4, order=3, items=True)


def test_two_replays_give_the_same_records() -> None:
    first, second = ([one.to_json() for one in records_of(EVENTS)] for _ in range(2))
    assert first == second
    assert [Record.from_json(one).to_json() for one in first] == first


@pytest.mark.parametrize("log", [EVENTS, numbered(race())], ids=["plain", "race"])
def test_a_longer_log_has_the_same_records_and_more(log: list[Recorded]) -> None:
    whole = list(records_of(log))
    for cut in range(0, len(log), 7):
        part = list(records_of(log[:cut]))
        assert part == whole[: len(part)]
        assert len(part) >= sum(one.step > 0 for one in part)


def test_events_that_come_again_change_nothing() -> None:
    fold = Records()
    found = [one for recorded in EVENTS for again in (recorded, recorded) for one in fold.take(again)]
    assert found == list(records_of(EVENTS))
    assert [one for recorded in EVENTS for one in fold.take(recorded)] == []


@pytest.mark.parametrize("log", [EVENTS, numbered(race())], ids=["plain", "race"])
def test_every_candidate_has_one_record_at_one_step(log: list[Recorded]) -> None:
    history = history_of(log)
    found = [one for one in records_of(log) if one.kind == CANDIDATE]
    assert [one.step for one in found] == list(range(1, len(found) + 1))
    by_digest = {one.words["digest"]: one for one in found}
    done = [one for one in history.candidates.values() if one.fitness is not None or one.failure or one.raced]
    assert set(by_digest) == {one.digest for one in done}
    for candidate in done:
        record = by_digest[candidate.digest]
        assert record.metrics["candidate/index"] == candidate.index
        assert record.words["operator"] == candidate.operator
        if candidate.fitness is not None:
            assert record.metrics["candidate/fitness"] == candidate.fitness
            scores = {f"score/{task}": score for task, score in candidate.scores("search").items()}
            assert scores.items() <= record.metrics.items()
        elif candidate.raced is not None and candidate.raced.stopped:
            assert record.words["state"] == "stopped"
            assert record.metrics["candidate/low"] <= record.metrics["candidate/estimate"]
        else:
            assert record.words["state"] == "failed"


def test_best_and_mean_are_those_of_the_run() -> None:
    history = history_of(EVENTS)
    found = [one for one in records_of(EVENTS) if one.kind == CANDIDATE]
    assert found[-1].metrics["best"] == history.champions[-1].fitness
    assert [one.words["champion"] for one in found if "champion" in one.words] == [
        one.recipe_digest for one in history.champions
    ]
    points = [(one.index, one.fitness) for one in history.scored if one.fitness is not None]
    expected = mean_fitness(points, last=points[-1][0], population=history.population)
    assert expected is not None
    assert math.isclose(found[-1].metrics["mean"], expected)
    assert [one.metrics["diversity"] for one in found if "diversity" in one.metrics] == [
        one.diversity for one in history.generations
    ]


def test_a_race_tells_estimates_with_their_intervals() -> None:
    simulation = race()
    stopped = [one for one in records_of(numbered(simulation)) if one.words.get("state") == "stopped"]
    assert len(stopped) == sum(one.stopped for one in simulation.raced) > 0
    assert all({"candidate/low", "candidate/high", "candidate/items"} <= one.metrics.keys() for one in stopped)
    assert all("candidate/fitness" not in one.metrics for one in stopped)


def test_a_run_that_goes_on_with_more_budget_goes_on_in_its_records() -> None:
    simulation = Simulation(make_spec(evaluations=20, population=6), workers=3, order=1)
    before = list(records_of(numbered(simulation)))
    assert before[-1].kind == END
    larger = make_spec(evaluations=32, population=6)
    simulation.go_on(RunSpec.from_dict(larger.to_dict()))
    after = list(records_of(numbered(simulation)))
    assert after[: len(before)] == before
    assert [one.kind for one in after].count(RUN) == 1
    assert [one.metrics["run/budget"] for one in after if "run/budget" in one.metrics] == [20, 32]
    assert [one.step for one in after if one.kind == CANDIDATE] == list(range(1, 33))


def test_the_result_says_what_result_json_says() -> None:
    fold = Records()
    for recorded in EVENTS:
        fold.take(recorded)
    result = result_of(history_of(EVENTS), synthetic_log.suite())
    record = fold.result(result)
    assert record is not None
    assert record.kind == RESULT
    assert record.metrics["champion/holdout/fitness"] == result["champion"]["holdout"]["fitness"]
    assert record.metrics["improvement/low"] == result["improvement"]["interval95"][0]
    assert record.metrics["source/expert-code/holdout/sentiment"] > 0
    assert record.words["verdict"] == result["improvement"]["statement"]
    assert fold.result({"champion": None}) is None


def test_no_folder_of_this_machine_is_in_a_record() -> None:
    text = "\n".join(one.to_json() for one in records_of(EVENTS))
    assert "expert-math" in text
    assert "/models" not in text


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("tensorbord", "there is no tracker 'tensorbord'; did you mean 'tensorboard'?"),
        ("mlflow=https://me:hunter2@host/x", "holds a password"),
        ("mlflow=postgresql://me:hunter2@host/db", "MLFLOW_TRACKING_URI"),
    ],
)
def test_what_cannot_be_written_to_is_refused(asked: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words.replace("?", r"\?")) as raised:
        check_asked([asked])
    assert "hunter2" not in str(raised.value)


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in KINDS:
        with pytest.raises(InvalidInput, match=rf"pip install 'evomerge-report\[{name}\]'"):
            check_asked([name])


def test_flags_go_before_the_spec_and_both_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert asked_for(None, None) == ()
    assert asked_for(["tensorboard,wandb=team"], ["mlflow"]) == ("tensorboard", "wandb=team")
    assert asked_for(None, ["trackio", {"mlflow": "http://host:5000"}]) == ("trackio", "mlflow=http://host:5000")
    with pytest.raises(SpecError, match=r"log_to\[1\]: must be a tracker"):
        asked_for(None, ["trackio", 3])
    with pytest.raises(InvalidInput, match="named twice"):
        asked_for(["mlflow=a", "mlflow=b"], None)


def test_secrets_are_in_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    text = without_secrets("https://me:pass@host/x refused the key 0123456789abcdef")
    assert text == "https://…@host/x refused the key …"


def test_records_are_written_while_more_come_and_all_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they come faster than a pause lasts."""
    monkeypatch.setattr(sinks_process, "PAUSE_SECONDS", (0.05, 0.05))
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    found = list(records_of(EVENTS))

    def come() -> None:
        for one in found:
            lines.put(one.to_json())
            time.sleep(0.01)
        lines.put(None)

    class Notes(sinks_process.Writer):
        counts: ClassVar[list[int]] = []

        def write(self, seen: Sequence[Record]) -> None:
            self.counts.append(len(seen))

    source = threading.Thread(target=come)
    source.start()
    sinks_process.follow(lines, [Notes("tensorboard", Path(), sinks_process.Written(Path("none")), print)])
    source.join()
    assert Notes.counts[-1] == len(found)
    assert len(Notes.counts) > 4
