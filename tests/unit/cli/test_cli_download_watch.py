"""A run's command shows how far the downloads of its stack are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evomerge_cli.coming import DownloadWatch
from evomerge_cli.console import Console
from evomerge_cli.progress import LineProgress
from evomerge_cli.run_view import RunView
from evomerge_models.downloads import ProgressFile, downloads
from evomerge_models.hub import Progress


def test_bytes_rate_and_time_left(tmp_path: Path) -> None:
    now = [0.0]
    watch = DownloadWatch(tmp_path, lambda: now[0])
    (tmp_path / ".incoming").mkdir()
    assert watch() is None
    with ProgressFile(tmp_path / ".incoming" / "m", "org/m") as file:
        file(Progress(10_000_000, 100_000_000))
        found = watch()
        assert found is not None
        assert found.words == "downloading org/m: 10.0 MB of 100.0 MB"
        now[0] += 4.0
        file(Progress(30_000_000, 100_000_000, "the hub answers HTTP 429; the hub asks to wait 30 s"))
        found = watch()
        assert found is not None
        assert found.words == (
            "downloading org/m: 30.0 MB of 100.0 MB, 5.0 MB/s, 14 s left; "
            "the hub answers HTTP 429; the hub asks to wait 30 s"
        )
    assert watch() is None


def test_what_a_killed_process_left_is_no_download(tmp_path: Path) -> None:
    left = tmp_path / ".incoming" / "m.progress"
    left.parent.mkdir()
    left.write_text('{"reference": "org/m", "done": 1, "total": 2, "note": ""}')
    os.utime(left, (1.0, 1.0))
    assert len(downloads(tmp_path, 0.0)) == 1
    assert DownloadWatch(tmp_path)() is None
    for other in ("", "[1]", '{"reference": "org/m"}'):
        left.write_text(other)
        assert downloads(tmp_path, 0.0) == []


def test_a_log_hears_of_each_tenth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    watch = DownloadWatch(tmp_path, lambda: now[0])
    (tmp_path / ".incoming").mkdir()
    view, lines = RunView(), LineProgress(Console())
    for percent in range(0, 100, 2):
        now[0] += 1.0
        file = ProgressFile(tmp_path / ".incoming" / "m", "org/m")
        file(Progress(percent, 100))
        view.coming = watch()
        lines.show(view, None)
    view.coming = None
    lines.show(view, None)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 10
    assert said[5] == "downloading org/m: 50 B of 100 B, 2 B/s, 25 s left"
