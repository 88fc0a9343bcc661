"""Which earlier runs `search.warm_start` finds, and what a command begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge_cli.arguments import parse
from evomerge_cli.commands.run import execute
from evomerge_cli.console import Console
from evomerge_cli.folds import search_on
from evomerge_cli.run_folder import RunFolder
from evomerge_cli.spec_source import Prepared, prepare
from evomerge_common.domain.messages import Event, RunStarted
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput, SpecError
from evomerge_common.ports import Recorded
from helpers.simulation import SUITE, Simulation, make_spec

SMALL: dict[str, Any] = {"evaluations": 12, "population": 4}


def asked(folder: Path, warm_start: Any, *flags: str, **suite: Any) -> Prepared:
    """What `evomerge run` is given, beside the runs that lie in the folder."""
    spec = {
        "models": ["org/m0", "org/m1", "org/m2"],
        "base": "org/base",
        "search": {**SMALL, "warm_start": warm_start},
        "suite": {**SUITE, **suite},
    }
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    return prepare(parse(["run", str(file), "--out", str(folder / "new"), *flags]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs in folders: one is finished, one is not."""
    suite = Suite.from_dict(SUITE)
    for name, status in (("first", "finished"), ("second", "started")):
        spec = make_spec(seed=len(name), **SMALL)
        events = Simulation(spec, workers=1, order=0).events
        started = RunStarted(spec_json=spec.to_json(), suite_digest=suite.digest, has_holdout=True)
        events = [Event(run_id="r", payload=started), *events[1:]]
        run = RunFolder(tmp_path / name)
        run.save({"version": 1, "spec": spec.to_dict(), "status": status, "run_id": f"run-{name}"})
        run.keep_suite(suite)
        run.write_events([Recorded(i, event) for i, event in enumerate(events, start=1)])
    return tmp_path


def test_a_folder_or_the_id_of_a_run_beside_names_it(folder: Path) -> None:
    by_folder, by_id = asked(folder, ["first"]), asked(folder, ["run-first"])
    assert by_folder.earlier
    assert by_folder.earlier == by_id.earlier
    assert by_folder.spec.search.warm_start == ("r",)  # a folder means nothing to a server
    assert "best results of r" in by_folder.beginning
    assert not asked(folder, "off").earlier


def test_auto_takes_finished_runs_of_the_same_models_and_suite(folder: Path) -> None:
    found = asked(folder, "auto")
    assert set(found.earlier) <= set(asked(folder, ["first"]).earlier)
    assert found.earlier
    assert found.spec.search.warm_start == ("auto",)  # the same spec, whichever runs there are
    other = asked(folder, "auto", holdout=0.5)
    assert not other.earlier
    assert "no finished run" in other.beginning


def test_a_finished_run_that_is_only_reported_again_begins_with_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge_cli.commands.run.interrupt_on_signals", lambda: None)
    prepared = asked(folder, "auto")
    assert "best results of" in prepared.beginning
    (folder / "first").rename(folder / "new")
    run = RunFolder(folder / "new")
    run.save({**run.state(), "spec_digest": prepared.digest, "spec": prepared.spec.to_dict()})
    assert execute(prepared, folder / "new", Console()) == 0
    said = capsys.readouterr().err
    assert "is finished: reporting again" in said
    assert "begins with" not in said


def test_what_is_no_run_is_refused_before_anything_starts(folder: Path) -> None:
    with pytest.raises(SpecError, match="no earlier run 'run-9'") as caught:
        asked(folder, ["run-9"])
    assert caught.value.path == ("search", "warm_start", 0)
    assert asked(folder, ["run-9"], "--server", "127.0.0.1:1").spec.search.warm_start == ("run-9",)
    (folder / "empty").mkdir()
    with pytest.raises(InvalidInput, match="holds no run"):
        asked(folder, ["empty"])
    with pytest.raises(InvalidInput, match="items that this run holds out"):
        asked(folder, ["first"], holdout=0.5)


def test_folds_begin_with_nothing_and_the_run_itself_does(folder: Path) -> None:
    prepared = asked(folder, ["first"], folds=2)
    assert prepared.earlier
    assert search_on(prepared, 0).earlier == prepared.earlier
    fold = search_on(prepared, 1)
    assert not fold.earlier
    assert not fold.spec.search.warm_start
