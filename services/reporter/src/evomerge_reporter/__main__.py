"""`python -m evomerge_reporter`: the service."""

from __future__ import annotations

import sys

from evomerge_common.runtime.service import run_service
from evomerge_reporter.bootstrap import bootstrap


def main() -> int:
    """Runs until SIGTERM; returns the exit code."""
    return run_service("reporter", bootstrap)


if __name__ == "__main__":
    sys.exit(main())
