"""python -m evomerge_evaluator"""

from __future__ import annotations

import sys

from evomerge_common.runtime.service import run_service
from evomerge_evaluator.bootstrap import bootstrap, scoring_process


def main() -> int:
    """Runs the evaluator until SIGTERM."""
    return run_service("evaluator", bootstrap, early=scoring_process)


if __name__ == "__main__":
    sys.exit(main())
