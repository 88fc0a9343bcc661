"""How far a run is, folded from its events, and how that looks on a terminal or in a log."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from evomerge_cli.byte_progress import duration
from evomerge_cli.console import Console
from evomerge_common.domain import messages as m
from evomerge_common.ports import Recorded


@dataclass
class RunView:
    """The fold. `budget` and so on are what the events say; nothing is asked for."""

    budget: int = 0
    phase: str = "preparing"
    lack: str = ""  # why it is paused, when a machine lacks something
    scored: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    total_fitness: float = 0.0
    champion: str = ""
    best: float | None = None
    models_ready: int = 0
    end: m.RunFinished | m.RunCancelled | m.RunFailed | None = None
    exported: dict[str, m.ArtifactExported] = field(default_factory=dict)  # by format
    export_failures: list[m.CandidateFailed] = field(default_factory=list)
    _methods: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Candidates with a result, good or bad."""
        return len(self.scored | self.failed)

    @property
    def mean(self) -> float | None:
        """Mean fitness of the candidates scored."""
        return self.total_fitness / len(self.scored) if self.scored else None

    @property
    def method(self) -> str:
        """The champion's merge method; "source" when it is a source as it was."""
        return self._methods.get(self.champion, "")

    def apply(self, event: m.Event) -> None:
        """Folds one event in."""
        match event.payload:
            case m.RunStarted(spec_json=text):
                self.budget = int(json.loads(text).get("search", {}).get("evaluations", 0))
            case m.ModelReady():
                self.models_ready += 1
            case m.CandidateProposed(recipe_digest=digest, recipe_json=recipe, operator=operator):
                self.phase = "searching"
                self._methods[digest] = "source" if operator == "source" else _method(recipe)
            case (
                m.CandidateEvaluated(recipe_digest=digest, split="search", partial=False, fitness=fitness)
                | m.CandidateRaced(recipe_digest=digest, fitness=fitness)
            ):
                if digest not in self.scored:
                    self.scored.add(digest)
                    self.total_fitness += fitness
            case m.CandidateFailed(recipe_digest=digest, kind="merge" | "evaluate", split="search" | ""):
                self.failed.add(digest)
            case m.ChampionChanged(recipe_digest=digest, fitness=fitness):
                self.champion, self.best = digest, fitness
            case m.SearchEnded():
                self.phase = "proving on holdout"
            case m.ArtifactExported():
                self.exported[event.payload.format] = event.payload
            case m.CandidateFailed(kind="export"):
                self.export_failures.append(event.payload)
            case m.RunPaused(reason=reason, lack=lack):
                self.phase, self.lack = "paused", reason if lack.type else ""
            case m.RunResumed():
                self.phase, self.lack = "searching" if self._methods else "preparing", ""
            case m.RunFinished() | m.RunCancelled() | m.RunFailed():
                self.phase = "finished" if isinstance(event.payload, m.RunFinished) else "stopped"
                self.end = event.payload


def _method(recipe_json: str) -> str:
    try:
        return str(json.loads(recipe_json)["method"])
    except (ValueError, KeyError, TypeError):
        return ""


class Progress(Protocol):
    """Shows a view that changes."""

    def __enter__(self) -> Progress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, view: RunView, recorded: Recorded | None) -> None: ...


def make_progress(console: Console, *, quiet: bool = False) -> Progress:
    """A bar on a terminal, lines elsewhere."""
    return BarProgress(console) if console.is_terminal and not quiet else LineProgress(console)


class Rate:
    """Time left, from what was done since this process began to watch: what is replayed of a run took no time now."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._began = clock()
        self._start: tuple[float, int] | None = None

    def remaining(self, view: RunView, recorded: Recorded | None) -> float | None:
        """Seconds, or None while it cannot be known."""
        now = self._clock()
        if view.phase != "searching" or not view.budget:
            return None
        if recorded is not None and recorded.event.time < self._began - 1.0:
            self._start = None
            return None
        if self._start is None:
            self._start = (now, view.done)
        since, base = now - self._start[0], view.done - self._start[1]
        if base < 2 or since <= 0:
            return None
        return max(0.0, (view.budget - view.done) * since / base)


class LineProgress:
    """A line for each new champion, each tenth of the budget, each phase; nothing repeats, so it suits a log file."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._rate = Rate(clock)
        self._shown: tuple[Any, ...] = ()

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, view: RunView, recorded: Recorded | None) -> None:
        left = self._rate.remaining(view, recorded)
        tenth = view.done * 10 // view.budget if view.budget else 0
        state = (view.phase, view.lack, view.champion, tenth)
        if state != self._shown:
            self._shown = state
            self._console.say(describe(view, left))


class BarProgress:
    """Rich's bar."""

    def __init__(self, console: Console) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._rate = Rate()
        self._bar = RichProgress(
            TextColumn("{task.fields[phase]}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.fields[budget]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}"),
            console=RichConsole(file=console.stderr),
            transient=True,
        )
        self._task = self._bar.add_task("run", total=None, phase="preparing", budget="?", words="")

    def __enter__(self) -> BarProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, view: RunView, recorded: Recorded | None) -> None:
        left = self._rate.remaining(view, recorded)
        self._bar.update(
            self._task, total=view.budget or None, completed=min(view.done, view.budget or view.done), phase=view.phase,
            budget=str(view.budget or "?"), words=_words(view, left),
        )  # fmt: skip


@contextlib.contextmanager
def stages(console: Console, title: str) -> Iterator[Callable[[str, float], None]]:
    """A bar for work in named stages: call what it gives with (stage, fraction 0 … 1). Without a terminal: tenths."""
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
    """One line: where the run is."""
    lack = f"  {view.lack}; the run goes on by itself then" if view.lack else ""
    return f"{view.phase}: {view.done}/{view.budget or '?'} {_words(view, left)}".rstrip() + lack


def _words(view: RunView, left: float | None) -> str:
    parts = []
    if view.best is not None:
        parts.append(f"best {view.best:.4f} ({view.method or '?'})")
    if view.mean is not None:
        parts.append(f"mean {view.mean:.4f}")
    if view.failed:
        parts.append(f"{len(view.failed)} failed")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)
