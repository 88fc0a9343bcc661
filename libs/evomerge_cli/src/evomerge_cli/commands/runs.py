"""`evomerge runs list|show|watch|events|lineage|trace|pause|resume|finish|cancel`: the selector's runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from evomerge.v1 import selector_pb2 as pb
from evomerge_cli.client import SelectorClient
from evomerge_cli.console import Console
from evomerge_cli.failure import FAILED, OK
from evomerge_cli.local_stack import server_address, stack_of
from evomerge_cli.run_folder import RunFolder
from evomerge_common.errors import InvalidInput
from evomerge_common.ports import Recorded


def run(args: argparse.Namespace, console: Console) -> int:
    """Does one of the actions."""
    if args.action == "lineage" and Path(args.run_id).is_dir():
        return _lineage(RunFolder(Path(args.run_id)).events(), args.candidate, console)
    if args.action == "trace":
        from evomerge_cli.commands import trace

        return trace.run(args, console)
    if args.action != "list" and (folder := Path(args.run_id)).is_dir():
        address, run_id = stack_of(folder)
        if address:
            args.server, args.run_id = address, run_id
        elif args.action == "watch":
            return _watch_folder(RunFolder(folder), console)
        else:
            raise InvalidInput(f"no command is at work in {folder}: what it has left can be watched, reported, traced")
    address, settings = server_address(args.server)
    with SelectorClient(address, settings) as client:
        match args.action:
            case "list":
                return _list(client, console)
            case "show":
                return _show(client.get_run(args.run_id), console)
            case "watch":
                return _watch(client, args.run_id, console)
            case "events":
                return _events(client, args.run_id, console)
            case "lineage":
                client.get_run(args.run_id)
                return _lineage(client.events(args.run_id), args.candidate, console)
            case "pause":
                return _show(client.pause(args.run_id), console)
            case "resume":
                return _show(client.resume(args.run_id), console)
            case _:
                finish = args.action == "finish" or args.finish
                return _show(client.cancel(args.run_id, finish=finish, reason=args.reason), console)


def status_word(run_: pb.Run) -> str:
    """Names a status: running, paused …"""
    return str(pb.RunStatus.Name(run_.status)).removeprefix("RUN_STATUS_").lower()


def as_data(run_: pb.Run) -> dict[str, Any]:
    """Returns the message as plain data, every field present."""
    return {
        "run_id": run_.run_id, "status": status_word(run_), "proposed": run_.proposed, "evaluated": run_.evaluated,
        "failed": run_.failed, "budget": run_.budget, "generation": run_.generation, "best_fitness": run_.best_fitness,
        "mean_fitness": run_.mean_fitness, "champion_digest": run_.champion_digest, "message": run_.message,
    }  # fmt: skip


def _list(client: SelectorClient, console: Console) -> int:
    runs = client.list_runs()
    if not console.data([as_data(r) for r in runs]):
        rows = [
            [r.run_id, status_word(r), str(r.evaluated), str(r.budget), f"{r.best_fitness:.4f}", r.champion_digest[:12]]
            for r in runs
        ]
        console.table(["run", "status", "candidates", "budget", "best", "champion"], rows)
    return OK


def _show(run_: pb.Run, console: Console) -> int:
    data = as_data(run_)
    if not console.data(data):
        for key, value in data.items():
            console.out(f"{key:16} {value}")
    return OK


def _watch(client: SelectorClient, run_id: str, console: Console) -> int:
    from evomerge_cli.failure import interrupt_on_signals
    from evomerge_cli.progress import describe, make_progress
    from evomerge_cli.run_session import watch_to_end
    from evomerge_common.domain.messages import RunFinished

    client.get_run(run_id)
    if _has_screen(console):
        from evomerge_cli.watch_screen import WatchScreen

        watch = client.watch(run_id)
        screen = WatchScreen(watch.ready, pause=lambda: client.pause(run_id), resume=lambda: client.resume(run_id))
        screen.run()
        view = screen.board.view
        console.out(describe(view, None))
        if view.end is None:
            console.say(f"the run goes on; to watch it again: {console.again}")
        return OK if view.end is None or isinstance(view.end, RunFinished) else FAILED
    interrupt_on_signals()
    watched = watch_to_end(client, run_id, make_progress(console))
    if not console.data(as_data(client.get_run(run_id))):
        console.out(describe(watched.view, None))
    return OK if isinstance(watched.view.end, RunFinished) else FAILED


def _watch_folder(folder: RunFolder, console: Console) -> int:
    """A run that has ended, from what it left."""
    from evomerge_cli.progress import describe
    from evomerge_cli.run_view import RunView

    events = folder.events()
    if _has_screen(console):
        from evomerge_cli.watch_screen import WatchScreen

        batches = iter([events])
        WatchScreen(lambda: next(batches, [])).run()
        return OK
    view = RunView()
    for recorded in events:
        view.apply(recorded.event)
    data = {"run_id": events[0].event.run_id if events else "", "status": view.phase, "best_fitness": view.best}
    if not console.data(data):
        console.out(describe(view, None))
    return OK


def _has_screen(console: Console) -> bool:
    """Tells whether somebody sits before a whole terminal and wants to see more than the result."""
    return console.is_terminal and console.stdout.isatty() and sys.stdin.isatty() and not console.json_output


def _lineage(events: list[Recorded], wanted: str, console: Console) -> int:
    from evomerge_report.history import history_of
    from evomerge_report.lineage import lineage_rows, lineage_text

    history = history_of(events)
    digest = next((one for one in history.candidates if wanted and one.startswith(wanted)), "")
    if wanted and not digest:
        raise InvalidInput(f"run {history.run_id} has no candidate {wanted!r}; `evomerge runs events` names them all")
    if not console.data(lineage_rows(history, digest)):
        console.out(lineage_text(history, digest) or "no candidate has a score yet")
    return OK


def _events(client: SelectorClient, run_id: str, console: Console) -> int:
    from evomerge_common.adapters.codec import to_json_line

    client.get_run(run_id)
    for recorded in client.events(run_id):
        console.out(to_json_line(recorded.event, recorded.sequence))
    return OK
