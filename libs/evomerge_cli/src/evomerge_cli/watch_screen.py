"""`evomerge runs watch` on a terminal: the whole screen, by textual."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, RichLog, Static

from evomerge_cli.board import Board
from evomerge_cli.byte_progress import duration
from evomerge_cli.eta import TimeLeft
from evomerge_cli.progress import describe
from evomerge_cli.text_chart import chart
from evomerge_common.errors import EvoMergeException
from evomerge_common.ports import Recorded

TICK_SECONDS = 0.25
LEADERS = 20
LEADER_COLUMNS = ("", "fitness", "method", "operator", "recipe")
WORKER_COLUMNS = ("worker", "jobs", "busy", "seen")


class WatchScreen(App[None]):
    """A run on the whole screen: fitness, leaderboard, workers and queues, the log; keys leave, pause, resume.

    Args:
        pull: gives the events that are new.
        pause, resume: what the keys do; None: the run has ended, and they do nothing.

    """

    CSS = """
    #where { height: auto; padding: 0 1; }
    #leaders, #hands, #log { scrollbar-size-horizontal: 0; }
    #upper { height: 3fr; }
    #fitness, #leaders, #workers { border: round $primary; width: 1fr; height: 100%; }
    #lower { height: 2fr; }
    #log { border: round $primary; width: 2fr; height: 100%; }
    #workers { width: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "leave"),
        Binding("ctrl+c", "quit", "leave", show=False, priority=True),
        Binding("p", "control('pause')", "pause"),
        Binding("r", "control('resume')", "resume"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(
        self,
        pull: Callable[[], Iterable[Recorded]],
        *,
        pause: Callable[[], object] | None = None,
        resume: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.board = Board()
        self._pull = pull
        self._controls = {"pause": pause, "resume": resume}
        self._clock = clock
        self._left = TimeLeft(clock)

    def compose(self) -> ComposeResult:
        """Makes the parts."""
        yield Static(id="where")
        with Horizontal(id="upper"):
            yield Static(id="fitness")
            yield DataTable[Text](id="leaders", cursor_type="none", zebra_stripes=True)
        with Horizontal(id="lower"):
            yield RichLog(id="log", max_lines=500, wrap=False)
            with Vertical(id="workers"):
                yield Static(id="queues")
                yield DataTable[Text](id="hands", cursor_type="none")
        yield Footer()

    def on_mount(self) -> None:
        """Names the parts and begins to look."""
        for name, title in (("fitness", "best and each candidate"), ("leaders", "leaderboard"), ("log", "log")):
            self.query_one(f"#{name}").border_title = title
        self.query_one("#workers").border_title = "queues, workers"
        self.query_one("#leaders", DataTable).add_columns(*LEADER_COLUMNS)
        self.query_one("#hands", DataTable).add_columns(*WORKER_COLUMNS)
        self._look()
        self.set_interval(TICK_SECONDS, self._look)

    def on_resize(self) -> None:
        """Draws the curve in its new size."""
        self.call_after_refresh(self._draw_fitness)

    def action_control(self, what: str) -> None:
        """Pauses the run, or lets it go on."""
        control = self._controls[what]
        if control is None or self.board.view.end is not None:
            self.notify(f"the run has ended: nothing to {what}", severity="warning")
            return

        def work() -> None:
            try:
                control()
            except EvoMergeException as error:
                self.call_from_thread(self.notify, str(error), severity="error")

        self.run_worker(work, thread=True)

    def _look(self) -> None:
        log, left, new = self.query_one("#log", RichLog), None, False
        for recorded in self._pull():
            log.write(Text(self.board.apply(recorded)))
            left, new = self._left.remaining(self.board.view, recorded), True
        if not new:
            left = self._left.remaining(self.board.view, None)
        self.query_one("#where", Static).update(Text(f"{self.board.run_id}  {describe(self.board.view, left)}"))
        self._draw_workers()
        if new:
            self._draw_leaders()
            self._draw_fitness()

    def _draw_fitness(self) -> None:
        place, view = self.query_one("#fitness", Static), self.board.view
        size = place.content_size
        if not view.fitness or size.width < 20 or size.height < 5:
            place.update("no score yet")
            return
        place.update(Text(chart(view.curve, view.fitness, view.last, size.width, size.height)))

    def _draw_leaders(self) -> None:
        table, view = self.query_one("#leaders", DataTable), self.board.view
        table.clear()
        for rank, (fitness, one) in enumerate(view.ranking[:LEADERS], 1):
            crown = "*" if one.recipe_digest == view.champion else ""
            cells = (f"{rank}{crown}", f"{fitness:.4f}", view.method_of(one), one.operator, one.recipe_digest[:8])
            table.add_row(*map(Text, cells))

    def _draw_workers(self) -> None:
        queues = "  ".join(f"{kind} {count}" for kind, count in self.board.queues.items())
        self.query_one("#queues", Static).update(queues)
        table, now = self.query_one("#hands", DataTable), self._clock()
        table.clear()
        for one in sorted(self.board.workers.values(), key=lambda worker: worker.name):
            cells = (one.name, str(one.jobs), duration(one.seconds), f"{duration(max(0.0, now - one.seen))} ago")
            table.add_row(*map(Text, cells))
