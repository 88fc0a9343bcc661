"""`python -m evomerge_downloader`: the service."""

from __future__ import annotations

import sys

from evomerge_common.runtime.service import run_service
from evomerge_downloader.bootstrap import bootstrap


def main() -> int:
    """Runs until SIGTERM; returns the exit code."""
    return run_service("downloader", bootstrap)


if __name__ == "__main__":
    sys.exit(main())
