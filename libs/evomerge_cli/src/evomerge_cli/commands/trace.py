"""`evomerge runs trace`: where a run's time went, as a table, as data, and as a picture."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from evomerge_cli.commands.report import events_of
from evomerge_cli.console import Console
from evomerge_cli.run_folder import RunFolder
from evomerge_common.runtime.files import write_atomically


def run(args: argparse.Namespace, console: Console) -> int:
    """Shows where a run's time went, as a table, as data, and as a picture."""
    from evomerge_report.timeline import timeline_svg
    from evomerge_report.trace import summary, trace_of

    folder = Path(args.run_id).expanduser()
    command = RunFolder(folder).command() if folder.is_dir() else None
    trace = trace_of(events_of(args.run_id, args.server), command)
    out = Path(args.out).expanduser() if args.out else None
    if out is None:
        out = folder / "report" / "timeline.svg" if folder.is_dir() else Path(f"{args.run_id}-timeline.svg")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, timeline_svg(trace))
    overview = summary(trace)
    if console.data({**overview, "picture": str(out), "spans": [asdict(span) for span in trace.spans]}):
        return 0
    rows = [
        [one["worker"], str(one["jobs"]), f"{one['busy_seconds']:.1f} s", f"{one['busy']:.1%}"]
        for one in overview["workers"]
    ]
    console.table(["worker", "jobs", "busy", "of the run"], rows, title=f"Run {overview['run_id']}")
    for key, words in (
        ("evaluator_busy", "evaluators with a job in hand, from the first candidate to the end of the search"),
        ("evaluator_scoring", "the same, computing alone"),
        ("merge_to_evaluation", "cost of merging, to that of scoring"),
        ("orchestration", "orchestration: nobody computes, of the whole run"),
        ("start", "of it the start: the first job waits for the scoring process"),
        ("orchestration_after_start", "of it the rest"),
    ):
        console.out(f"{words}: {'-' if overview[key] is None else format(overview[key], '.1%')}")
    if whole := overview.get("command"):
        parts = ", ".join(f"{part} {whole[f'{part}_seconds']:.2f} s" for part in ("start", "search", "end"))
        console.out(
            f"orchestration of the whole command, {whole['seconds']:.1f} s: {whole['orchestration']:.1%} ({parts})"
        )
    for kind, seconds in overview["mean_wait_seconds"].items():
        console.out(f"mean wait of a job for {kind}: {seconds:.3f} s")
    console.out(f"picture: {out}")
    return 0
