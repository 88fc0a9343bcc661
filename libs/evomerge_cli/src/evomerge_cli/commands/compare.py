"""`evomerge compare`: runs side by side, their champions item by item where they answered the same items."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evomerge_cli.commands.report import events_of, suite_of
from evomerge_cli.console import Console
from evomerge_cli.run_folder import RunFolder
from evomerge_common.errors import InvalidInput
from evomerge_common.runtime.files import write_atomically


def run(args: argparse.Namespace, console: Console) -> int:
    """Shows runs side by side, as tables, as data, and with --out as a page."""
    from evomerge_report.compare import Run, comparison_of, comparison_page
    from evomerge_report.history import history_of

    if len(set(args.runs)) < max(2, len(args.runs)):
        raise InvalidInput("name two runs or more, each once: their output folders, or ids of runs at a server")
    runs = []
    for name in args.runs:
        folder = Path(name).expanduser()
        events = events_of(name, args.server)
        suite = RunFolder(folder).suite() if folder.is_dir() else suite_of(events)
        runs.append(Run(name.rstrip("/"), history_of(events), suite))
    found = comparison_of(runs)
    out = Path(args.out).expanduser() if args.out else None
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, comparison_page(found))
    if not console.data(found):
        _show(found, console)
        if out is not None:
            console.out(f"page: {out}")
    return 0


def _show(found: dict[str, Any], console: Console) -> None:
    rows = [
        [
            one["label"], one["status"], f"{len(one['models'])}", one["suite"]["digest"][:12],
            f"{one['evaluations']} / {one['budget']}", f"{one['wall_seconds']:.0f} s", _champion(one),
        ]
        for one in found["runs"]
    ]  # fmt: skip
    heads = ["run", "status", "models", "suite", "scored / budget", "time", "champion"]
    console.table(heads, rows, title="Runs")
    if found["tasks"]:
        rows = [
            [task["task"], *(_score(one, is_best=task["best"] == place) for place, one in enumerate(task["scores"]))]
            for task in found["tasks"]
        ]
        rows.append(["weighted mean", *(_mean(one["champion"]) for one in found["runs"])])
        heads = ["task", *(one["label"] for one in found["runs"])]
        console.table(heads, rows, title="Champions on held-out items [95%]; * the best")
    for pair in found["pairs"]:
        rows = [
            [task, _signed(one), f"{one['wins']} / {one['losses']} / {one['ties']}"]
            for task, one in pair["tasks"].items()
        ]
        heads = ["task", "difference [95%]", "items better / worse / alike"]
        console.table(heads, rows, title=f"{pair['first']} minus {pair['second']}")
        console.out(pair["statement"])
    if found["reason"]:
        console.out(found["reason"])


def _champion(one: dict[str, Any]) -> str:
    champion = one["champion"]
    return f"{champion['name']} {champion['recipe_digest'][:12]}" if champion else "-"


def _score(entry: dict[str, Any] | None, *, is_best: bool) -> str:
    return "-" if entry is None else f"{entry['score']:.3f}{_bounds(entry['interval95'])}{' *' if is_best else ''}"


def _mean(champion: dict[str, Any] | None) -> str:
    held = (champion or {}).get("holdout")
    return f"{held['fitness']:.3f}{_bounds(held['interval95'])}" if held else "-"


def _signed(entry: dict[str, Any]) -> str:
    return f"{entry['difference']:+.3f}{_bounds(entry['interval95'], '+')}"


def _bounds(interval: list[float] | None, sign: str = "") -> str:
    return f" [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]" if interval else ""
