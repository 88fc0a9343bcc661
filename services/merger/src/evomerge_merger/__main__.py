"""`python -m evomerge_merger`."""

from __future__ import annotations

import sys

from evomerge_common.runtime.service import run_service
from evomerge_merger.bootstrap import bootstrap


def main() -> int:
    """Runs the service until it is told to stop."""
    return run_service("merger", bootstrap)


if __name__ == "__main__":
    sys.exit(main())
