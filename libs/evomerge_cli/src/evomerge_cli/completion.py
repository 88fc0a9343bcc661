"""Completion by argcomplete: the shell calls the command itself, which knows what can be typed."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.completers import DirectoriesCompleter, FilesCompleter
from argcomplete.shell_integration import shellcode

from evomerge_cli.arguments import COMMANDS, make_parser
from evomerge_cli.run_folder import HIDDEN
from evomerge_common.errors import EvoMergeException

COMMAND = "evomerge"


def script(shell: str) -> str:
    """Writes what a shell (bash, zsh or fish) is to read."""
    return shellcode([COMMAND], shell=shell).strip() + "\n"


def answer() -> None:
    """Answers a shell's question, which is in the environment, and ends the process."""
    parser = make_parser()
    for action in (action for one in parser.walk() for action in one.actions):
        if (completer := _completer(action)) is not None:
            action.completer = completer  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _completer(action: argparse.Action) -> Any:
    """What follows from the word that stands for a value in the help; None: choices, or any file."""
    match action.metavar:
        case "RUN" | "RUN_OR_DIR":
            return _run_ids
        case "COMMAND" if action.dest == "words":
            return lambda **_: list(COMMANDS)
        case "DIR" | "OUT_DIR":
            return DirectoriesCompleter()
        case str(name) if name.endswith((".yaml", ".svg")):
            return FilesCompleter(("yaml", "yml") if name.endswith(".yaml") else ("svg",))
        case "N" | "R" | "SIZE" | "TEXT" | "HOST:PORT" | "ORG/NAME" | "DIGEST":
            return lambda **_: []
    return None


def _run_ids(**_: object) -> list[str]:
    """The runs of the stack that is up, and the output folders here."""
    found = [state.parents[1].name for state in Path().glob(f"*/{HIDDEN}/run.json")]
    with contextlib.suppress(EvoMergeException):
        from evomerge_cli.client import SelectorClient
        from evomerge_cli.local_stack import server_address

        address, settings = server_address(None)
        with SelectorClient(address, settings) as client:
            found += [run.run_id for run in client.list_runs()]
    return found
