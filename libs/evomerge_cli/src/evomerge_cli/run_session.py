"""One run, from StartRun to its last event."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evomerge_cli.client import SelectorClient
from evomerge_cli.coming import Coming
from evomerge_cli.progress import Progress
from evomerge_cli.run_view import RunView
from evomerge_common.domain.messages import SearchEnded
from evomerge_common.ports import Recorded

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25


@dataclass
class Watched:
    """A run as far as it was watched."""

    run_id: str
    view: RunView = field(default_factory=RunView)
    events: list[Recorded] = field(default_factory=list)


def watch_to_end(
    client: SelectorClient,
    run_id: str,
    progress: Progress,
    *,
    check: Callable[[], None] = lambda: None,
    watched: Watched | None = None,
    coming: Callable[[], Coming | None] = lambda: None,
    search_ended: Callable[[Sequence[Recorded]], None] = lambda events: None,
    follow: Callable[[Recorded], None] = lambda recorded: None,
) -> Watched:
    """Reads every event of the run until its last.

    Args:
        check: called several times a second; raises when waiting has become pointless.
        watched: filled on the way, so that an interrupted watch leaves what it saw.
        coming: called as often; tells of the download that the run waits for.
        search_ended: called with a copy of the events so far when the search ends; what is scored then is held out.
        follow: called with each event.

    """
    watched = watched or Watched(run_id)
    watch = client.watch(run_id)
    with progress:
        while True:
            check()
            watched.view.coming = coming()
            try:
                recorded = watch.next(TICK_SECONDS)
            except TimeoutError:
                progress.show(watched.view, None)
                continue
            if recorded is None:
                return watched
            watched.events.append(recorded)
            watched.view.apply(recorded.event)
            follow(recorded)
            if isinstance(recorded.event.payload, SearchEnded):
                search_ended(tuple(watched.events))
            progress.show(watched.view, recorded)
            log.debug("%d %s", recorded.sequence, recorded.event.type)
