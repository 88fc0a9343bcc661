"""Start, stop and idle memory of the embedded stack; with --run OUT, how busy a run kept its evaluators; with --spec
FILE, the seconds from the command `evomerge run FILE` to its first score and to its end, and its CPU seconds (medians).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
    parser.add_argument("--spec", type=Path, metavar="FILE", help="a run whose first score is waited for")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    numbers: dict[str, Any] = (
        measure_run(args.run) if args.run
        else measure_first_score(args.spec, args.repeat) if args.spec
        else measure_stack(args.repeat)
    )  # fmt: skip
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


def measure_first_score(spec: Path, repeat: int) -> dict[str, float]:
    """Nothing is known of the candidates beforehand; the files are in the page cache from the second time on."""
    found: dict[str, list[float]] = {}
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            out, before, began = Path(folder) / "out", resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
            subprocess.run(
                [sys.executable, "-m", "evomerge_cli", "run", str(spec), "--out", str(out)],
                check=True, stdout=subprocess.DEVNULL, env={**os.environ, "EVOMERGE_SCORE_CACHE": "off"},
            )  # fmt: skip
            end, after = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
            first: dict[str, float] = {}
            for line in (out / "events.jsonl").read_text().splitlines():
                event = json.loads(line)
                first.setdefault(event["type"], event["time"])
        for name, value in (
            ("run started, s", first["RunStarted"] - began), ("first score, s", first["CandidateEvaluated"] - began),
            ("last event, s", first["RunFinished"] - began), ("whole command, s", end - began),
            ("CPU, s", after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        ):  # fmt: skip
            found.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in found.items()}


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
