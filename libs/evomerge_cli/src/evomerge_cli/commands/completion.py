"""`evomerge completion bash|zsh|fish`: the script that the shell reads."""

from __future__ import annotations

import argparse

from evomerge_cli.console import Console
from evomerge_cli.failure import OK


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the script."""
    from evomerge_cli.completion import script

    console.out(script(args.shell).rstrip())
    return OK
