"""A run as a study: Optuna reads it back, and its best trial is the champion."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from evomerge_common.domain.spec import RunSpec
from evomerge_common.errors import InvalidInput
from evomerge_common.ports import Recorded
from evomerge_report.history import history_of
from evomerge_report.optuna_study import write_study
from helpers import synthetic_log
from helpers.simulation import Simulation, make_spec


def read(file: Path, name: str) -> optuna.Study:
    storage = f"sqlite:///{file}" if file.suffix == ".db" else JournalStorage(JournalFileBackend(str(file)))
    return optuna.load_study(study_name=name, storage=storage)


def simulated(**search: Any) -> list[Recorded]:
    simulation = Simulation(make_spec(population=6, **search), workers=4, order=3, items=True)
    return [Recorded(number, event) for number, event in enumerate(simulation.events, start=1)]


@pytest.mark.parametrize("name", ["run.db", "run.log"])
def test_the_best_trial_is_the_champion(tmp_path: Path, name: str) -> None:
    events = synthetic_log.events(candidates=20)
    history = history_of(events)
    champion = history.champion
    assert champion is not None
    assert write_study(events, tmp_path / name) == ["run-1", "run-1 (tasks)"]
    assert write_study(events, tmp_path / name) == ["run-1", "run-1 (tasks)"], "again: in place of the first"
    study = read(tmp_path / name, "run-1")
    assert len(study.trials) == 20
    best = study.best_trial
    assert (best.number, best.value) == (champion.index, champion.fitness)
    assert best.user_attrs["digest"] == champion.digest
    assert best.user_attrs["holdout"]["fitness"] == champion.results["holdout"].fitness
    assert best.user_attrs["parents"] == list(champion.proposal.parents)
    assert [one.number for one in study.trials if one.state == TrialState.FAIL] == [17]
    assert "NonFiniteScore" in study.trials[17].user_attrs["error"]
    assert all(one.duration is not None and one.duration.total_seconds() > 0 for one in study.trials)
    tasks = read(tmp_path / name, "run-1 (tasks)")
    assert tasks.metric_names == list(synthetic_log.TASKS)
    assert tasks.trials[5].values == list(list(history.candidates.values())[5].scores("search").values())


def test_a_race_has_pruned_trials_and_its_rungs(tmp_path: Path) -> None:
    events = simulated(evaluations=24, racing=True)
    history = history_of(events)
    write_study(events, tmp_path / "run.log")
    study = read(tmp_path / "run.log", "r")
    candidates = list(history.candidates.values())
    pruned = [one.number for one in study.trials if one.state == TrialState.PRUNED]
    assert pruned == [one.index for one in history.stopped]
    assert pruned
    for number in pruned:
        raced = candidates[number].raced
        assert raced is not None
        assert list(study.trials[number].intermediate_values.values()) == [one.fitness for one in raced.estimates]
        assert study.trials[number].user_attrs["estimate"]["low"] == raced.low
    assert study.best_trial.user_attrs["champion"]


def test_parameters_say_what_they_are_of(tmp_path: Path) -> None:
    events = simulated(evaluations=40)
    write_study(events, tmp_path / "run.log")
    study = read(tmp_path / "run.log", "r")
    weighed = [one.params for one in study.trials if "weight.group 1.m0" in one.params]
    assert len(weighed) > 10
    assert all({"weight.embeddings.m2", "method"} <= one.keys() for one in weighed)
    assert study.trials[0].params == {"method": "source"}
    assert {name for one in study.trials for name in one.params if name.startswith("path.")} <= {
        "path.length", *(f"path.layers of {place}" for place in ("m0", "m1", "m2", "input 0", "input 1", "input 2"))
    }  # fmt: skip


def test_a_champion_under_constraints_is_the_best_feasible_trial(tmp_path: Path) -> None:
    plain = make_spec(evaluations=40, population=6)
    spec = RunSpec.from_dict({**plain.to_dict(), "constraints": {"t0": {"not_below": "best - 0.01"}}})
    simulation = Simulation(spec, workers=4, order=3, items=True)
    events = [Recorded(number, event) for number, event in enumerate(simulation.events, start=1)]
    champion = history_of(events).champion
    assert champion is not None
    write_study(events, tmp_path / "run.log")
    study = read(tmp_path / "run.log", "r")
    assert any(one.constraints.get("t0", 0.0) > 0 for one in study.trials)
    assert study.best_trial.number == champion.index


def test_a_run_under_way_has_trials_that_run(tmp_path: Path) -> None:
    events = simulated(evaluations=24)
    write_study(events[: len(events) // 2], tmp_path / "run.log")
    states = {one.state for one in read(tmp_path / "run.log", "r").trials}
    assert {TrialState.RUNNING, TrialState.COMPLETE} <= states


def test_other_studies_stay_and_other_files_are_refused(tmp_path: Path) -> None:
    events = synthetic_log.events(candidates=8)
    file = tmp_path / "theirs.log"
    optuna.create_study(study_name="theirs", storage=JournalStorage(JournalFileBackend(str(file))))
    write_study(events, file)
    assert read(file, "theirs").trials == []
    assert len(read(file, "run-1").trials) == 8
    for name in ("notes.db", "notes.log"):
        (tmp_path / name).write_text("my notes\n")
        with pytest.raises(InvalidInput, match="nothing is overwritten"):
            write_study(events, tmp_path / name)
        assert (tmp_path / name).read_text() == "my notes\n"
    with pytest.raises(InvalidInput, match="no events"):
        write_study([], tmp_path / "none.log")
    assert not (tmp_path / "none.log").exists()
