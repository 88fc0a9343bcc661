"""Searches on several folds: each item is held out once, the command resumes, the report pools all items."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge_cli.commands import run as command
from evomerge_cli.console import Console
from evomerge_cli.folds import cost_of_folds, folds_in, search_on
from evomerge_cli.run_folder import RunFolder
from evomerge_cli.spec_source import Prepared
from evomerge_common.domain.controls import ControlsSpec
from evomerge_common.domain.spec import RunRequest
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import SuiteError
from evomerge_report.folds import folds_of
from evomerge_report.report import write_report
from helpers import synthetic_log
from helpers.simulation import make_spec


def suite(folds: int = 4) -> Suite:
    return Suite.from_dict({**synthetic_log.suite().to_dict(), "folds": folds})


def prepared(folds: int = 3) -> Prepared:
    spec = replace(make_spec(evaluations=20), controls=ControlsSpec(), push_to="org/name")
    return Prepared(spec, suite(folds), RunRequest(spec, suite(folds)).to_json())


def test_each_item_is_held_out_on_one_fold() -> None:
    whole = suite()
    for task in whole.tasks:
        held = [item.id for fold in range(1, 5) for item in whole.on_fold(fold).items(task, "holdout")]
        assert sorted(held) == sorted(item.id for item in task.items)
        for fold in range(1, 5):
            one = whole.on_fold(fold)
            assert len(one.items(task, "search")) + len(one.items(task, "holdout")) == len(task.items)
            assert Suite.from_json(one.to_json()) == one
    assert whole.on_fold(0) == synthetic_log.suite()
    assert whole.on_fold(0).digest == synthetic_log.suite().digest


def test_folds_that_cannot_be_are_refused() -> None:
    for folds, fold in ((1, 0), (-1, 0), (3, 4), (50, 0)):
        with pytest.raises(SuiteError, match="fold"):
            Suite.from_dict({**synthetic_log.suite(items=20).to_dict(), "folds": folds, "fold": fold})


def test_the_command_searches_on_each_fold_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int, int]] = []
    stops = [0, 130]

    def execute(one: Prepared, out: Path, console: Console, **options: Any) -> int:
        done.append((str(out.relative_to(tmp_path)), one.suite.fold, one.spec.controls.count))
        (out / "model").mkdir(parents=True)
        return stops.pop(0) if stops else 0

    monkeypatch.setattr(command, "execute", execute)
    console = Console(stdout=io.StringIO(), stderr=io.StringIO())
    assert command.execute_folds(prepared(), tmp_path / "out", console) == 130
    (tmp_path / "out" / "folds" / "2" / "model").rmdir()
    assert [row[1] for row in done] == [1, 2]
    done.clear()
    assert command.execute_folds(prepared(), tmp_path / "out", console) == 0
    assert done == [("out/folds/1", 1, 0), ("out/folds/2", 2, 0), ("out/folds/3", 3, 0), ("out", 0, 5)]
    assert not (tmp_path / "out" / "folds" / "3" / "model").exists()
    assert (tmp_path / "out" / "model").exists()


def test_folds_cost_is_told_and_the_run_itself_is_as_ever() -> None:
    assert "4 searches in all, 80 evaluations" in cost_of_folds(prepared())
    plain = RunRequest(prepared().spec, synthetic_log.suite()).to_json()
    assert search_on(prepared(), 0).text == plain
    assert search_on(prepared(), 2).spec.push_to == ""
    assert len({search_on(prepared(), fold).digest for fold in range(4)}) == 4


@pytest.mark.parametrize(("gain", "verdict"), [(0.5, "The procedure improves"), (-0.2, "")])
def test_the_report_pools_all_items(gain: float, verdict: str, tmp_path: Path) -> None:
    whole = suite(3)
    for fold in (1, 2, 3):
        folder, one = RunFolder(tmp_path / "folds" / str(fold)), whole.on_fold(fold)
        events = synthetic_log.events(tests=one, gain=gain, seed=fold, candidates=20)
        folder.save({"status": "finished" if fold < 3 else "started"})
        folder.keep_suite(one)
        folder.write_events(events)
    folds = folds_in(tmp_path)
    assert [one.fold for _, one in folds] == [1, 2]
    found = folds_of(folds, 7)
    assert found is not None
    items = sum(len(one.items(task, "holdout")) for _, one in folds for task in one.tasks)
    assert f"{items} items, each held out once" in found["statement"]
    assert found["statement"].startswith(verdict)
    assert found["interval95"][0] <= found["difference"] <= found["interval95"][1]
    result = write_report(synthetic_log.events(), synthetic_log.suite(), tmp_path / "out", folds=folds)
    assert result["folds"] == found
    assert "The procedure on several folds" in (tmp_path / "out" / "report" / "index.html").read_text()
