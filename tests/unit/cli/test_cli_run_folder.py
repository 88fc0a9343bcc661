"""Whose an output folder is, how far a run in it came, and what is reported from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge_cli.__main__ import main
from evomerge_cli.byte_progress import duration
from evomerge_cli.given import given_at
from evomerge_cli.progress import LineProgress
from evomerge_cli.run_folder import RunFolder
from evomerge_cli.run_view import RunView
from evomerge_common.domain import messages as m
from evomerge_common.domain.spec import RunRequest
from evomerge_common.errors import InvalidInput, NotFound
from evomerge_common.ports import Recorded
from helpers import synthetic_log
from helpers.simulation import make_request


def test_a_folder_keeps_its_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    folder.check("spec one")
    assert not folder.out.exists()
    first = folder.claim("spec one")
    assert folder.claim("spec one") == first
    folder.check("spec one")
    with pytest.raises(InvalidInput, match="another spec"):
        folder.check("spec two")


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_what_failed_may_be_tried_again(tmp_path: Path, status: str) -> None:
    folder = RunFolder(tmp_path)
    first = folder.claim("spec")
    folder.save({**first, "status": status})
    second = folder.claim("spec")
    assert second["attempt"] == 2
    assert second["request_id"] != first["request_id"]


def test_a_run_may_go_on_with_another_budget_alone(tmp_path: Path) -> None:
    folder, first = RunFolder(tmp_path), make_request(evaluations=20)
    folder.save({**folder.claim(first.digest, first.spec), "run_id": "run-1", "status": "finished"})
    assert folder.has_other_budget(make_request(evaluations=30, patience=5))
    assert not folder.has_other_budget(first)
    assert not folder.has_other_budget(make_request(evaluations=30, population=8))
    other = RunRequest(make_request(evaluations=30).spec, synthetic_log.suite())
    assert not folder.has_other_budget(other)
    with pytest.raises(InvalidInput, match=r"nothing but search\.evaluations"):
        folder.check(other.digest)


def test_one_command_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from evomerge_cli.run_folder import RunFolder\n"
        f"with RunFolder(pathlib.Path({str(tmp_path)!r})).lock():\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdin is not None
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InvalidInput, match=f"pid {other.pid}"), RunFolder(tmp_path).lock():
            pass
    finally:
        other.kill()  # the lock goes with the process, even one that could not clean up
        other.wait()
        other.stdin.close()
        other.stdout.close()
    with RunFolder(tmp_path).lock():
        pass


def test_the_champion_is_moved_here_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    folder.out.mkdir()
    export = tmp_path / "exports" / "run 1"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    uri = "file://" + str(export).replace(" ", "%20")
    assert folder.take_model(uri, move=True) == folder.out / "model"
    assert not export.exists()
    assert folder.take_model(uri, move=True) == folder.out / "model"
    export.mkdir()
    (export / "champion-F16.gguf").write_bytes(b"")
    assert folder.take_model(uri, move=True, name="gguf") == folder.out / "gguf"
    assert folder.take_model(uri, move=True, name="gguf") == folder.out / "gguf"
    assert [path.name for path in (folder.out / "gguf").iterdir()] == ["champion-F16.gguf"]
    for elsewhere in ("s3://bucket/model", "file://another-host/model"):
        with pytest.raises(NotFound, match="cannot be reached"):
            folder.take_model(elsewhere, move=False)


def finished_folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "out")
    folder.claim("spec")
    folder.keep_suite(synthetic_log.suite())
    folder.write_events(synthetic_log.events(candidates=12))
    return folder


def test_events_come_back_as_they_were_written(tmp_path: Path) -> None:
    events = [
        *synthetic_log.events(candidates=12),
        Recorded(10**6, m.Event(run_id="r", payload=m.RunPaused(reason="a\u2028b"))),
    ]
    folder = RunFolder(tmp_path)
    folder.write_events(events)
    assert folder.events()[-1] == events[-1]
    assert [e.sequence for e in folder.events()] == [e.sequence for e in events]


def test_report_reports_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished_folder(tmp_path)
    assert main(["report", str(folder.out)]) == 0
    said = capsys.readouterr().out
    assert "champion" in said
    assert "interval" in said
    result = json.loads((folder.out / "result.json").read_text())
    assert (folder.out / "report" / "index.html").exists()
    assert main(["report", str(folder.out), "--out", str(tmp_path / "elsewhere"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert (tmp_path / "elsewhere" / "report" / "fitness_plot.png").exists()


def test_a_view_of_a_continued_run_has_its_budget_and_no_end() -> None:
    view = RunView()
    for recorded in synthetic_log.events(candidates=12):
        view.apply(recorded.event)
    ends = [view.end]
    view.apply(m.Event(run_id="r", payload=m.RunContinued(spec_json=make_request(evaluations=99).spec.to_json())))
    ends.append(view.end)
    assert isinstance(ends[0], m.RunFinished)
    assert ends[1] is None
    assert (view.budget, view.phase) == (99, "searching")


def test_a_view_is_the_fold_of_the_events() -> None:
    view = RunView()
    for recorded in synthetic_log.events(candidates=12):
        view.apply(recorded.event)
    assert view.phase == "finished"
    assert view.done == len(view.scored | view.failed) > 0
    assert view.best is not None
    assert view.mean is not None
    assert view.best >= view.mean
    assert view.method


def test_lines_for_a_log_do_not_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    from evomerge_cli.console import Console

    view, progress = RunView(), LineProgress(Console())
    with progress:
        for recorded in synthetic_log.events(candidates=40):
            view.apply(recorded.event)
            progress.show(view, recorded)
            progress.show(view, None)
    lines = capsys.readouterr().err.splitlines()
    assert 5 < len(lines) < 40
    assert lines[-1].startswith("finished")


def test_durations_read_well() -> None:
    assert [duration(s) for s in (3.4, 65, 3725)] == ["3 s", "1 min 05 s", "1 h 02 min"]


def test_a_folder_knows_when_its_one_command_was_given_and_ended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.command() is None
    began = given_at()
    assert 0 < time.time() - began < 24 * 3600
    folder.save({"commands": [{"pid": os.getpid(), "given": began}]})
    assert folder.command() is None, "it is not done"
    folder.note_end()
    given, ended = folder.command() or (0.0, 0.0)
    assert given == began
    assert ended == pytest.approx(time.time(), abs=5)
    folder.save({"commands": [{"pid": 1, "given": began}, *folder.state()["commands"]]})
    assert folder.command() is None, "the run took two"
    folder.save({"commands": [{"pid": os.getpid() + 1, "given": began}]})
    folder.note_end()
    assert folder.command() is None, "that command was killed; this one only reported again"
