"""`evomerge`, or `python -m evomerge_cli`: one command in, one exit code out.

0 done · 1 failed · 2 bad input · 130 Ctrl-C (143 and 129 for SIGTERM and SIGHUP)
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from evomerge_cli.arguments import parse

GOES_ON = frozenset({"run", "demo", "push"})
"""Commands that take up their own work when they are given again."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command line; every error becomes a sentence on stderr and an exit code."""
    if "_ARGCOMPLETE" in os.environ:
        from evomerge_cli.completion import answer

        answer()
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)

    from importlib import import_module

    from evomerge_cli.console import Console
    from evomerge_cli.failure import guarded

    console = Console(
        json_output=getattr(args, "json_output", False), verbose=args.verbose, quiet=args.quiet, again=_typed(argv)
    )
    if args.command in GOES_ON:
        console.when_interrupted = "stopped; to go on from here"
    name = "stack" if args.command in {"up", "down", "status"} else args.command.replace("-", "_")
    return guarded(lambda: int(import_module(f"evomerge_cli.commands.{name}").run(args, console)), console)


def _typed(argv: list[str]) -> str:
    """The command line as it has to be typed to come here again."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        words = [sys.executable, "-m", "evomerge_cli"]
    else:
        found = shutil.which(program.name)
        words = [program.name if found and Path(found).resolve() == program.resolve() else str(program)]
    return shlex.join([*words, *argv])


if __name__ == "__main__":
    sys.exit(main())
