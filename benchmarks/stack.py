"""Start, stop and idle memory of the embedded stack; with --run OUT, how busy a run kept its evaluators."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from evomerge_cli.console import Console
from evomerge_cli.stack.embedded import Stack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--run", type=Path, metavar="OUT", help="output folder of a finished run")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    numbers: dict[str, Any] = measure_run(args.run) if args.run else measure_stack(args.repeat)
    Console().table(
        ["what", "value"], [[name, f"{value:,.3f}".rstrip("0").rstrip(".")] for name, value in numbers.items()]
    )
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")
    return 0


def measure_stack(repeat: int) -> dict[str, float]:
    numbers = {"evomerge --help, s": median(lambda: subprocess.run(
        [sys.executable, "-m", "evomerge_cli", "--help"], check=True, stdout=subprocess.DEVNULL), repeat)}  # fmt: skip
    starts, stops = [], []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            stack = Stack(Path(folder))
            starts.append(seconds(stack.start))
            processes = json.loads((Path(folder) / "stack.json").read_text())["processes"]
            memory = {name: psutil.Process(pid).memory_info().rss / 2**20 for name, pid in processes.items()}
            stops.append(seconds(stack.stop))
    numbers |= {"stack start, s": statistics.median(starts), "stack stop, s": statistics.median(stops)}
    return numbers | {f"idle {name}, MiB": value for name, value in memory.items()}


def measure_run(out: Path) -> dict[str, float]:
    """From the log alone. An evaluator's work is the seconds that it scored; the queue is primed from its first result
    on until the search ends."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().split("\n") if line]
    scored = [e for e in events if e["type"] == "CandidateEvaluated" and e["split"] == "search" and not e.get("cached")]
    if len(scored) < 2:
        raise SystemExit(f"{out} has too few scored candidates")
    ended = next(e["time"] for e in events if e["type"] == "SearchEnded")
    first = scored[0]["time"]
    wall = ended - first
    scoring = sum(e.get("seconds", 0.0) for e in scored[1:])
    merging = sum(e.get("seconds", 0.0) for e in events if e["type"] == "CandidateMerged" and e["time"] > first)
    evaluators = len(list((out / ".evomerge" / "logs").glob("evaluator*.log")))
    return {
        "candidates": len(scored), "evaluators": evaluators, "search after the first result, s": wall,
        "scoring, s": scoring, "merging, s": merging, "evaluators busy": scoring / (wall * max(1, evaluators)),
    }  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median(work: Callable[[], object], repeat: int) -> float:
    return statistics.median(seconds(work) for _ in range(repeat))


if __name__ == "__main__":
    sys.exit(main())
