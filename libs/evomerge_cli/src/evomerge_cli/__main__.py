"""`evomerge`, or `python -m evomerge_cli`: one command in, one exit code out.

0 done · 1 failed · 2 bad input · 130 Ctrl-C (143 and 129 for SIGTERM and SIGHUP)
"""

from __future__ import annotations

import sys

from evomerge_cli.arguments import parse


def main(argv: list[str] | None = None) -> int:
    """Runs one command line; every error becomes a sentence on stderr and an exit code."""
    args = parse(sys.argv[1:] if argv is None else argv)

    from importlib import import_module

    from evomerge_cli.console import Console
    from evomerge_cli.failure import guarded

    console = Console(json_output=getattr(args, "json_output", False), verbose=args.verbose)
    name = "stack" if args.command in {"up", "down", "status"} else args.command.replace("-", "_")
    return guarded(lambda: int(import_module(f"evomerge_cli.commands.{name}").run(args, console)), console)


if __name__ == "__main__":
    sys.exit(main())
