"""`evomerge report`: the report again, from the event log of a folder or of a run at a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from evomerge_cli.console import Console
from evomerge_cli.finish import report_again
from evomerge_cli.run_folder import RunFolder
from evomerge_common.errors import InvalidInput


def run(args: argparse.Namespace, console: Console) -> int:
    """See the module's text."""
    folder = Path(args.run).expanduser()
    if not folder.is_dir():
        raise InvalidInput(f"there is no folder {folder}; give the output folder of a run (evomerge run --out DIR)")
    report_again(RunFolder(folder), console)
    return 0
