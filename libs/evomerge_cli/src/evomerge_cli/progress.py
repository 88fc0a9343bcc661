"""How far a run is, on a terminal or in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol

from evomerge_cli.byte_progress import duration
from evomerge_cli.console import Console
from evomerge_cli.eta import TimeLeft
from evomerge_cli.run_view import STAGES, RunView
from evomerge_cli.text_chart import sparkline
from evomerge_common.ports import Recorded


class Progress(Protocol):
    """Shows a view that changes."""

    def __enter__(self) -> Progress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, view: RunView, recorded: Recorded | None) -> None:
        """Shows where the run is; called by the command after each event."""
        ...


def make_progress(console: Console) -> Progress:
    """Makes a bar on a terminal, lines elsewhere."""
    return BarProgress(console) if console.is_terminal else LineProgress(console)


class LineProgress:
    """A line for each new champion, each tenth of the budget or of a download, each phase; it suits a log file."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._left = TimeLeft(clock)
        self._shown: tuple[Any, ...] = ()
        self._step: tuple[Any, ...] = ()

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, view: RunView, recorded: Recorded | None) -> None:
        """Writes a line when something is worth one."""
        left = self._left.remaining(view, recorded)
        tenth = view.spent * 10 // view.budget if view.budget else 0
        self._step = view.coming.step if view.coming is not None else self._step
        state = (view.stage, view.lack, view.champion, tenth, self._step)
        if state != self._shown:
            self._shown = state
            self._console.say(describe(view, left))


class BarProgress:
    """Two lines that are drawn anew: the stages and a bar; what has come of it so far."""

    def __init__(self, console: Console) -> None:
        from rich.console import Console as RichConsole
        from rich.live import Live

        self._left = TimeLeft()
        self._began = time.monotonic()
        self._live = Live(console=RichConsole(file=console.stderr), transient=True, auto_refresh=False)

    def __enter__(self) -> BarProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, view: RunView, recorded: Recorded | None) -> None:
        """Draws both lines anew."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        left = self._left.remaining(view, recorded)
        line = Table.grid(padding=(0, 2))
        where = Text("  ").join(
            Text(name, style="bold" if name == view.stage else "dim") for name in (*STAGES, *_ended(view))
        )
        bar = ProgressBar(total=view.budget or 1, completed=min(view.spent, view.budget), width=20)
        line.add_row(where, bar, Text(_counts(view, left, time.monotonic() - self._began)))
        words = Text(_words(view), overflow="ellipsis", no_wrap=True)
        self._live.update(Group(line, words), refresh=True)


def _ended(view: RunView) -> tuple[str, ...]:
    """What is no stage: paused, stopped."""
    return () if view.stage in (*STAGES, "finished") else (view.stage,)


@contextlib.contextmanager
def stages(console: Console, title: str) -> Iterator[Callable[[str, float], None]]:
    """Makes a bar for work in named stages: call what it gives with (stage, fraction 0 … 1). No terminal: tenths."""
    if console.is_terminal:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            TextColumn("{task.description}"), BarColumn(bar_width=28), TextColumn("{task.percentage:3.0f}%"),
            TimeRemainingColumn(), console=RichConsole(file=console.stderr), transient=True,
        )  # fmt: skip
        task = bar.add_task(title, total=1.0)
        with bar:
            yield lambda stage, fraction: bar.update(task, description=stage or title, completed=fraction)
        return
    began, shown = time.monotonic(), -1

    def line(stage: str, fraction: float) -> None:
        nonlocal shown
        since = time.monotonic() - began
        if since > 2.0 and int(fraction * 10) > shown:  # what is over in two seconds needs no telling
            shown = int(fraction * 10)
            left = f", {duration(since / fraction * (1 - fraction))} left" if 0 < fraction < 1 else ""
            console.say(f"{stage or title}: {fraction:.0%}{left}")

    yield line


def describe(view: RunView, left: float | None) -> str:
    """Says in one line where the run is."""
    lack = f"  {view.lack}; the run goes on by itself then" if view.lack else ""
    time_left = f"  {duration(left)} left" if left is not None else ""
    counted = f"{view.spent}/{view.budget}" if view.budget and view.stage != "download" else ""
    words = "  ".join(filter(None, (counted, _words(view))))
    return (words if view.coming is not None else f"{view.stage}: {words}".rstrip(" :")) + time_left + lack


def _counts(view: RunView, left: float | None, since: float) -> str:
    parts = [f"{view.spent}/{view.budget}" if view.budget else "", duration(since)]
    parts += [f"{duration(left)} left"] if left is not None else []
    return "  ".join(filter(None, parts))


def _words(view: RunView) -> str:
    parts = []
    if view.best is not None:
        against = "" if view.best_source is None else f"best source {view.best_source:.4f}"
        if view.method not in ("source", ""):
            against = f"{view.best - view.best_source:+.4f} on the {against}" if view.best_source is not None else ""
            parts.append(f"best {view.best:.4f} ({', '.join(filter(None, (view.method, against)))})")
        else:
            parts.append(against or f"best {view.best:.4f}")
        parts.append(sparkline(view.curve, view.last))
    if view.mean is not None:
        parts.append(f"{view.mean_name} {view.mean:.4f}")
    if view.failed:
        parts.append(f"{len(view.failed)} failed")
    if view.rate is not None and view.is_active:
        parts.append(f"{view.rate:.0f}/h")
    if view.coming is not None:
        parts.append(view.coming.words)
    return "  ".join(parts)
