"""Progress of work that is counted in bytes, and bytes and seconds in words."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from evomerge_cli.console import Console

_QUIET_SECONDS = 2.0


@contextlib.contextmanager
def bytes_bar(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Makes a bar with bytes a second: call what it gives with (bytes done, bytes in all). No terminal: tenths."""
    if console.is_terminal:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            TextColumn("{task.description}"), BarColumn(bar_width=28), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=RichConsole(file=console.stderr), transient=True,
        )  # fmt: skip
        with bar:
            task = None

            def draw(done: int, total: int) -> None:
                nonlocal task
                if task is None:
                    task = bar.add_task(title, total=total, completed=done)
                bar.update(task, completed=done, total=total)

            yield draw
        return
    began, shown, first = time.monotonic(), 0, -1

    def line(done: int, total: int) -> None:
        nonlocal shown, first
        first = done if first < 0 else first  # an earlier try brought it: it took no time now
        since, tenth = time.monotonic() - began, done * 10 // max(1, total)
        if since > _QUIET_SECONDS and shown < tenth < 10 and done > first:
            shown = tenth
            rate = (done - first) / since
            console.say(f"{title}: {tenth * 10}%, {human(rate)}/s, {duration((total - done) / rate)} left")

    yield line


def human(count: float) -> str:
    """Writes a size: 12 B, 3.4 MB, 5.0 GB (decimal, as disks are sold and shards named)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Writes seconds as 12 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
