"""A snapshot is the folded state, all of it, wherever in the log it was taken."""

from __future__ import annotations

import json
import zlib

import pytest

from evomerge_common.domain.strategies import STRATEGIES
from evomerge_selector.domain import snapshot
from evomerge_selector.domain.run import Phase, Run
from helpers.simulation import Simulation, make_spec


def state_of(run: Run) -> str:
    """Everything that is kept, comparable."""
    return zlib.decompress(snapshot.encode(snapshot.pack(run), sequence=0, decision=0)).decode()


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "gp"])
def test_a_fold_that_begins_at_a_snapshot_equals_the_whole_fold_at_every_event(strategy: str) -> None:
    spec = make_spec(strategy=strategy, evaluations=26, population=8, patience=20)
    events = Simulation(spec, workers=3, order=4, fail=frozenset(range(3))).events
    every = 1 if strategy == "tournament" else 7
    folded = Run("r")
    for place, event in enumerate(events):
        folded.apply(event)
        if place % every:
            continue
        data = snapshot.encode(snapshot.pack(folded), sequence=place, decision=place)
        found = snapshot.decode(data)
        assert found is not None
        assert (found.sequence, found.decision) == (place, place)
        assert state_of(found.run) == state_of(folded)
        assert found.run.next_decision() == folded.next_decision()
        assert found.run.jobs() == folded.jobs()
        if place % (every * 5) == 0:
            for later in events[place + 1 :]:
                found.run.apply(later)
            whole = Run("r")
            for one in events:
                whole.apply(one)
            assert state_of(found.run) == state_of(whole)


def test_a_snapshot_in_the_middle_of_a_race_goes_on_to_the_same_decisions() -> None:
    spec = make_spec(evaluations=30, population=8, racing={"unit": 40})
    run = Simulation(spec, workers=4, order=4, items=True)
    assert any(told.stopped for told in run.raced)
    folded, known, under_way = Run("r"), set(), 0
    for place, event in enumerate(run.events):
        folded.apply(event)
        race = folded._race
        assert race is not None
        found = snapshot.decode(snapshot.encode(snapshot.pack(folded), sequence=place, decision=place))
        assert found is not None
        restored = found.run._race
        assert restored is not None
        assert vars(restored) == vars(race)
        assert found.run.next_decision() == folded.next_decision()
        assert found.run.jobs() == folded.jobs()
        answered = [runner for runner in race.runners.values() if runner.known]
        if folded.phase is not Phase.RUNNING or not answered:
            continue
        under_way += 1
        known |= {runner.step for runner in answered}
        told = []
        for later in run.events[place + 1 :]:
            if not later.is_result:
                told.append((later.payload, found.run.next_decision()))
            found.run.apply(later)
        assert all(expected == decision for expected, decision in told)
        assert found.run.phase is Phase.FINISHED
        assert state_of(found.run) == state_of(run.run)
    assert under_way > 5
    assert len(known) > 1, "at more than one rung"


def test_a_snapshot_does_not_change_with_the_state_that_it_was_taken_of() -> None:
    events = Simulation(make_spec(evaluations=20), workers=1, order=0).events
    run = Run("r")
    for event in events[:40]:
        run.apply(event)
    packed, before = snapshot.pack(run), state_of(run)
    for event in events[40:]:
        run.apply(event)
    assert zlib.decompress(snapshot.encode(packed, sequence=0, decision=0)).decode() == before


def test_another_version_or_damage_is_as_good_as_none() -> None:
    events = Simulation(make_spec(evaluations=14), workers=1, order=0).events
    run = Run("r")
    for event in events:
        run.apply(event)
    data = snapshot.encode(snapshot.pack(run), sequence=1, decision=1)
    assert snapshot.decode(data) is not None
    assert snapshot.decode(data[: len(data) // 2]) is None
    read = json.loads(zlib.decompress(data))
    for change in (
        {"version": "0.0.1+0"},
        {"format": 99},
        {"state": {"run_id": "r", "phase": {"$value": ["Path", {}]}}},
    ):
        assert snapshot.decode(zlib.compress(json.dumps({**read, **change}).encode())) is None


def test_what_has_no_form_is_refused_and_not_left_out() -> None:
    run = Run("r")
    run.discarded.append(object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no form for object"):
        snapshot.pack(run)
