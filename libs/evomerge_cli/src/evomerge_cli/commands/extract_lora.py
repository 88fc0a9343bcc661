"""`evomerge extract-lora`: what a fine-tuned model changed in its base, as a LoRA adapter for PEFT."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge_cli.byte_progress import bytes_bar, human
from evomerge_cli.commands.merge import fetch
from evomerge_cli.console import Console
from evomerge_models.reference import resolve_reference

if TYPE_CHECKING:
    from evomerge_merging import AdapterReport

SHOWN = 12
"""Modules in the table; `--json` tells all."""


def run(args: argparse.Namespace, console: Console) -> int:
    """Writes what a fine-tuned model changed in its base as a LoRA adapter."""
    from evomerge_merging import extract_lora

    model, base = resolve_reference(args.model), resolve_reference(args.base)
    models = fetch([model, base], console)
    with bytes_bar(console, "extracting") as progress:
        report = extract_lora(
            model, base, Path(args.out).expanduser(), rank=args.rank, models=models, embeddings=args.embeddings,
            threads=args.threads, progress=progress,
        )  # fmt: skip
    tell(report, console)
    return 0


def tell(report: AdapterReport, console: Console) -> None:
    """Shows the adapter's size and errors."""
    data = {
        "out": str(report.out_dir),
        "bytes": report.bytes,
        "relative_error": report.relative_error,
        "modules": [
            {"tensor": one.tensor, "rank": one.rank, "relative_error": one.relative_error} for one in report.modules
        ],
        "skipped": list(report.skipped),
        "notes": list(report.notes),
    }
    for note in report.notes:
        console.say(f"note: {note}")
    for name in report.skipped:
        console.say(f"note: {name} changed and is left out")
    if console.data(data):
        return
    worst = sorted(report.modules, key=lambda one: -one.relative_error)[:SHOWN]
    console.table(
        ["tensor", "rank", "relative error"],
        [[one.tensor, str(one.rank or "whole"), f"{one.relative_error:.2%}"] for one in worst],
    )
    console.out(
        f"{report.out_dir}: {human(report.bytes)}, {len(report.modules)} tensors (above: those that lose most); "
        f"{report.relative_error:.2%} of all changes to the base are lost"
    )
