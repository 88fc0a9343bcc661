"""`evomerge report`: the report again, from the event log of a folder or of a run at a server."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from evomerge_cli.console import Console
from evomerge_cli.finish import finish, report, show
from evomerge_cli.run_folder import RunFolder
from evomerge_cli.trackers import asked_for, write_again
from evomerge_common.domain.messages import RunStarted
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput, NotFound, UnservedScheme
from evomerge_common.ports import Recorded
from evomerge_common.runtime.files import write_atomically
from evomerge_common.runtime.ports_factory import open_artifact


def run(args: argparse.Namespace, console: Console) -> int:
    """Writes the report again, from the event log of a folder or of a run at a server."""
    folder = Path(args.run).expanduser()
    out = Path(args.out).expanduser() if args.out else None
    log_to = asked_for(args.log_to, None)
    if folder.is_dir():
        whole = RunFolder(folder)
        result = finish(whole, console, out=out)
        _write_notebook(out or folder, asked=args.notebook, console=console)
        events = whole.events() if log_to or args.optuna else []
        write_again(log_to, whole, events, result, console)
        _write_study(events, args.optuna, console)
        return 0
    events = events_of(args.run, args.server)
    out = out or Path(args.run)
    result = report(events, suite_of(events), out)
    show(result, out, console)
    _write_notebook(out, asked=args.notebook, console=console)
    write_again(log_to, RunFolder(out), events, result, console)
    _write_study(events, args.optuna, console)
    return 0


def _write_notebook(out: Path, *, asked: bool, console: Console) -> None:
    if not asked:
        return
    from evomerge_report.notebook import notebook_text

    path = out / "report" / "report.ipynb"
    write_atomically(path, notebook_text())
    console.say(f"notebook: {path}")


def _write_study(events: list[Recorded], file: str | None, console: Console) -> None:
    if not file:
        return
    from evomerge_report.optuna_study import DATABASES, write_study

    path = Path(file).expanduser().absolute()
    names = write_study(events, path)
    storage = f"sqlite:///{path}" if path.suffix in DATABASES else str(path)
    console.say(f"studies {', '.join(names)}; to look at them: {shlex.join(['optuna-dashboard', storage])}")


def events_of(run: str, server: str | None) -> list[Recorded]:
    """Reads the log of a run: of an output folder, or of a run at a server.

    Raises:
        InvalidInput: it is neither.

    """
    folder = Path(run).expanduser()
    if folder.is_dir():
        return RunFolder(folder).events()
    if not run.startswith("run-"):
        raise InvalidInput(f"there is no folder {folder}; give a run's output folder, or the id of a run at a server")
    from evomerge_cli.client import SelectorClient
    from evomerge_cli.local_stack import server_address

    address, settings = server_address(server)
    with SelectorClient(address, settings) as client:
        client.get_run(run)
        return client.events(run)


def suite_of(events: list[Recorded]) -> Suite:
    """Finds the suite that a run's log names.

    Raises:
        NotFound: it is an artifact of a store that cannot be reached from here.

    """
    started = next(e.event.payload for e in events if isinstance(e.event.payload, RunStarted))
    try:
        text = open_artifact(started.suite_uri).read_text("utf-8")
    except (NotFound, UnservedScheme, OSError) as error:
        raise NotFound(
            f"the run's suite is at {started.suite_uri}, which cannot be reached from here; report it there"
        ) from error
    return Suite.from_json(text)
