"""Downloads from hubs that go wrong: each ends complete and verified or in a typed error, and nothing broken is left.

`python benchmarks/hub_faults.py [--schedules 200] [--first 0]` plays seeded schedules (tests/helpers/hub_faults.py)
and prints a table of kinds and ends; it fails at the first schedule that breaks the promise.
"""

from __future__ import annotations

import argparse
import collections
import logging
import sys
import tempfile
import time
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.hub_faults import Outcome, play, write_models


def main() -> None:
    """Plays the schedules and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--verbose", action="store_true", help="a line each")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    began = time.monotonic()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        write_models(Path(scratch) / "hub")
        for seed in range(given.first, given.first + given.schedules):
            try:
                outcomes.append(play(seed, Path(scratch) / "hub", Path(scratch)))
            except Exception:
                print(f"schedule {seed} breaks the promise", flush=True)
                raise
            if given.verbose:
                print(outcomes[-1], flush=True)
    print(table(outcomes))
    print(f"\n{len(outcomes)} schedules in {time.monotonic() - began:.0f} s")


def table(outcomes: list[Outcome]) -> str:
    """Writes kinds by ends; a schedule of two kinds counts in both rows."""
    ends = sorted({outcome.end for outcome in outcomes})
    rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for outcome in outcomes:
        for kind in dict.fromkeys(outcome.kinds):
            rows[kind][outcome.end] += 1
        rows["all"][outcome.end] += 1
    lines = ["| kind | " + " | ".join(ends) + " |", "|---" * (len(ends) + 1) + "|"]
    for kind in [*sorted(rows.keys() - {"all"}), "all"]:
        lines.append(f"| {kind} | " + " | ".join(str(rows[kind][end]) for end in ends) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
