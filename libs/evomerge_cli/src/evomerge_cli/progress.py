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
from evomerge_cli.coming import Coming
from evomerge_cli.console import Console
from evomerge_common.domain import messages as m
from evomerge_common.domain.history import Change, change_of, evaluations_of, mean_fitness, population_of
from evomerge_common.domain.racing import cost
from evomerge_common.ports import Recorded

PHASES = {"running": "searching", "finishing": "proving on holdout", "cancelled": "stopped", "failed": "stopped"}
"""What a status is called here, where not by its own name."""


@dataclass
class RunView:
    """How far a run is: the fold of its changes.

    Attributes:
        lack: why the run is paused, when a machine lacks something.
        scored: recipe digests of candidates that were scored, or stopped by a race.
        exported: by format.
        coming: the download that the run waits for; whoever watches sets it, no event tells.

    """

    budget: int = 0
    phase: str = "preparing"
    lack: str = ""
    scored: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    champion: str = ""
    best: float | None = None
    end: m.RunFinished | m.RunCancelled | m.RunFailed | None = None
    exported: dict[str, m.ArtifactExported] = field(default_factory=dict)
    export_failures: list[m.CandidateFailed] = field(default_factory=list)
    coming: Coming | None = None
    _population: int = 1
    _proposed: dict[str, m.CandidateProposed] = field(default_factory=dict)
    _controls: set[str] = field(default_factory=set)
    _fitness: dict[int, float] = field(default_factory=dict)
    _last: int = -1
    _size: int = 1
    _stopped: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Counts the candidates with a result, good or bad."""
        return len(self.scored | self.failed)

    @property
    def spent(self) -> int:
        """Counts what `done` took from the budget, in evaluations: of one that was stopped early a part of one."""
        parts = sum(cost(items, self._size) for items in self._stopped.values())
        return self.done - len(self._stopped) + parts // self._size

    @property
    def mean(self) -> float | None:
        """Returns the mean fitness, see `mean_fitness`."""
        places = range(max(0, self._last + 1 - self._population), self._last + 1)
        recent = ((place, self._fitness[place]) for place in places if place in self._fitness)
        return mean_fitness(recent, last=self._last, population=self._population)

    @property
    def method(self) -> str:
        """Returns the champion's merge method; "source" when it is a source as it was."""
        proposed = self._proposed.get(self.champion)
        if proposed is None:
            return ""
        return "source" if proposed.operator == "source" else _method(proposed.recipe_json)

    def apply(self, event: m.Event) -> None:
        """Folds one event in."""
        change = change_of(event.payload)
        if change.started is not None:
            self.budget = evaluations_of(change.started.spec_json)
            self._population = population_of(change.started.spec_json)
            self._size = max(1, sum(one.items for one in change.started.tasks))
        if change.continued is not None:
            self.budget, self.end = evaluations_of(change.continued.spec_json), None
        if change.status is not None:
            self.phase = PHASES.get(change.status.word, change.status.word)
            self.lack = change.status.reason if self.phase == "paused" and change.status.error else ""
        if change.proposed is not None:
            self._proposed[change.proposed.recipe_digest] = change.proposed
            self.phase = "searching" if self.phase == "preparing" else self.phase
        self._controls |= {one.recipe_digest for one in change.controls if one.recipe_digest not in self._proposed}
        if change.improvement is not None:
            self.champion, self.best = change.improvement.recipe_digest, change.improvement.fitness
        if change.exported is not None:
            self.exported[change.exported.format] = change.exported
        if change.failure is not None and change.failure.kind == m.JOB_KINDS[m.ExportJob]:
            self.export_failures.append(change.failure)
        if isinstance(event.payload, m.TERMINAL):
            self.end = event.payload
        self._count(change)

    def _count(self, change: Change) -> None:
        if change.state is None or change.merged is not None:
            return
        digest, state = change.state
        if digest in self._controls:  # no part of the budget
            return
        (self.failed if state == "failed" else self.scored).add(digest)
        if change.raced is not None and change.raced.stopped:
            self._stopped.setdefault(digest, change.raced.items)
        if (proposed := self._proposed.get(digest)) is not None:
            self._last = max(self._last, proposed.index)
            if (result := change.scored or change.raced) is not None:  # of one that was stopped: its estimate
                self._fitness.setdefault(proposed.index, result.fitness)


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
    def show(self, view: RunView, recorded: Recorded | None) -> None:
        """Shows where the run is; called by the command after each event."""
        ...


def make_progress(console: Console) -> Progress:
    """Makes a bar on a terminal, lines elsewhere."""
    return BarProgress(console) if console.is_terminal else LineProgress(console)


class Rate:
    """Time left, from what was done since this process began to watch: what is replayed of a run took no time now."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._began = clock()
        self._start: tuple[float, int] | None = None

    def remaining(self, view: RunView, recorded: Recorded | None) -> float | None:
        """Estimates the seconds left; None while they cannot be known."""
        now = self._clock()
        if view.phase != "searching" or not view.budget:
            return None
        if recorded is not None and recorded.event.time < self._began - 1.0:
            self._start = None
            return None
        if self._start is None:
            self._start = (now, view.spent)
        since, base = now - self._start[0], view.spent - self._start[1]
        if base < 2 or since <= 0:
            return None
        return max(0.0, (view.budget - view.spent) * since / base)


class LineProgress:
    """A line for each new champion, each tenth of the budget or of a download, each phase; it suits a log file."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._rate = Rate(clock)
        self._shown: tuple[Any, ...] = ()
        self._step: tuple[Any, ...] = ()

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, view: RunView, recorded: Recorded | None) -> None:
        """Writes a line when something is worth one."""
        left = self._rate.remaining(view, recorded)
        tenth = view.spent * 10 // view.budget if view.budget else 0
        self._step = view.coming.step if view.coming is not None else self._step
        state = (view.phase, view.lack, view.champion, tenth, self._step)
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
        """Draws the bar anew."""
        left = self._rate.remaining(view, recorded)
        self._bar.update(
            self._task, total=view.budget or None, completed=min(view.spent, view.budget or view.spent),
            phase=view.phase, budget=str(view.budget or "?"), words=_words(view, left),
        )  # fmt: skip


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
    return f"{view.phase}: {view.spent}/{view.budget or '?'} {_words(view, left)}".rstrip() + lack


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
    if view.coming is not None:
        parts.append(view.coming.words)
    return "  ".join(parts)
