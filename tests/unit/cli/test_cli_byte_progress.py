"""Bytes in words, and their progress on a terminal and in a log."""

from __future__ import annotations

import io

import pytest

from evomerge_cli.arguments import parse
from evomerge_cli.byte_progress import bytes_bar, human
from evomerge_cli.console import Console
from evomerge_cli.merge_plan import _ranges


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bytes_in_words() -> None:
    assert [human(n) for n in (0, 999, 1000, 2_500_000, 7.25e9, 5e12)] == [
        "0 B", "999 B", "1.0 kB", "2.5 MB", "7.2 GB", "5000.0 GB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("500 MiB", 500 * 2**20), ("1.5k", 1500), ("123", 123), ("7b", 7)]
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse(["merge", "recipe.yml", "out", "--max-shard-size", text]).max_shard_size == size


def test_layers_in_words() -> None:
    assert _ranges(["0", "1", "2", "5", "7", "8"]) == "0-2, 5, 7-8"
    assert _ranges([""]) == ""


def test_a_log_gets_a_line_for_each_tenth_with_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("evomerge_cli.byte_progress.time.monotonic", lambda: next(now))
    stderr = io.StringIO()
    with bytes_bar(Console(stderr=stderr), "merging") as progress:
        for done in range(0, 101, 5):
            progress(done * 10**6, 10**8)
    lines = stderr.getvalue().splitlines()
    assert lines[0] == "merging: 10%, 3.3 MB/s, 27 s left"
    assert [line.split()[1] for line in lines] == [f"{tenth}0%," for tenth in range(1, 10)]


def test_a_terminal_gets_a_bar() -> None:
    stderr = Terminal()
    with bytes_bar(Console(stderr=stderr), "merging") as progress:
        progress(3_000_000, 10_000_000)
        progress(10_000_000, 10_000_000)
    assert "merging" in stderr.getvalue()
    assert "10.0/10.0 MB" in stderr.getvalue()


def test_what_an_earlier_try_brought_took_no_time_now(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("evomerge_cli.byte_progress.time.monotonic", lambda: next(now))
    stderr = io.StringIO()
    with bytes_bar(Console(stderr=stderr), "fetching") as progress:
        for done in (60, 61, 62, 72):
            progress(done * 10**6, 10**8)
    assert stderr.getvalue().splitlines() == [
        "fetching: 60%, 666.7 kB/s, 57 s left",
        "fetching: 70%, 3.0 MB/s, 9 s left",
    ]
