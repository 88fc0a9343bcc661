"""The full-screen view of a run, by textual's own pilot: what stands where, and what the keys do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from textual.widgets import DataTable, RichLog, Static

from evomerge_cli.__main__ import main
from evomerge_cli.board import Board
from evomerge_cli.watch_screen import WatchScreen
from evomerge_common.adapters.codec import from_json_line
from evomerge_common.ports import Recorded

LOG = Path(__file__).parent / "recorded" / "demo.jsonl"
EVENTS = [Recorded(*from_json_line(line)) for line in LOG.read_text().splitlines()]
LAST = EVENTS[-1].event.time


def screen_of(*batches: list[Recorded], **controls: object) -> WatchScreen:
    waiting = iter(batches)
    return WatchScreen(lambda: next(waiting, []), clock=lambda: LAST, **controls)  # type: ignore[arg-type]


def test_the_board_counts_queues_and_workers() -> None:
    board = Board()
    most = 0
    for recorded in EVENTS:
        board.apply(recorded)
        most = max(most, sum(board.queues.values()))
    assert most == 4, "that many are in flight"
    assert board.queues == {"merge": 0, "evaluate": 0}
    assert sum(worker.jobs for worker in board.workers.values()) == sum(bool(one.event.worker) for one in EVENTS)
    assert len(board.lines) == len(EVENTS)


@pytest.mark.parametrize("size", [(130, 40), (80, 24)])
async def test_a_finished_run_is_shown_whole(size: tuple[int, int]) -> None:
    app = screen_of(EVENTS)
    async with app.run_test(size=size) as pilot:
        await pilot.pause(0.3)
        view = app.board.view
        assert view.stage == "finished"
        leaders = app.query_one("#leaders", DataTable)
        assert leaders.row_count == 20
        first = [str(cell) for cell in leaders.get_row_at(0)]
        assert first[:2] == ["1*", f"{view.best:.4f}"]
        assert str(app.query_one("#where", Static).render()).startswith("run-1  finished: 44/44  best 0.60")
        assert len(app.query_one("#log", RichLog).lines) == len(EVENTS)
        assert app.query_one("#hands", DataTable).row_count == len(app.board.workers) == 3
        curve = str(app.query_one("#fitness", Static).render())
        assert "0.60" in curve
        assert "·" in curve
        await pilot.press("p")
        await pilot.pause()
        assert "nothing to pause" in str([note.message for note in app._notifications])
        await pilot.press("q")
    assert app.return_code == 0


async def test_keys_pause_and_resume_a_run_under_way() -> None:
    done: list[str] = []
    half = len(EVENTS) // 2
    app = screen_of(EVENTS[:half], pause=lambda: done.append("paused"), resume=lambda: done.append("resumed"))
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause(0.3)
        assert app.board.view.stage == "search"
        await pilot.press("p")
        await app.workers.wait_for_complete()
        await pilot.press("r")
        await app.workers.wait_for_complete()
    assert done == ["paused", "resumed"]


def test_without_a_terminal_a_folder_is_watched_in_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events.jsonl").write_text(LOG.read_text())
    assert main(["runs", "watch", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("finished: 44/44  best 0.60")
    assert main(["runs", "watch", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "finished"
    assert main(["runs", "pause", str(tmp_path)]) == 2
    assert "no command is at work" in capsys.readouterr().err
