"""`evomerge runs list|show|watch|events|lineage|trace|pause|resume|finish|cancel`: the selector's runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evomerge.v1 import selector_pb2 as pb
from evomerge_cli.client import SelectorClient
from evomerge_cli.console import Console
from evomerge_cli.failure import FAILED, OK
from evomerge_cli.local_stack import server_address
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

    interrupt_on_signals()
    client.get_run(run_id)
    watched = watch_to_end(client, run_id, make_progress(console))
    if not console.data(as_data(client.get_run(run_id))):
        console.out(describe(watched.view, None))
    return OK if isinstance(watched.view.end, RunFinished) else FAILED


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
