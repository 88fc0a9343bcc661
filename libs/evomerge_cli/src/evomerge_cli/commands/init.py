"""`evomerge init`: a run spec to start from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evomerge_cli.arguments import DEFAULT_MODELS
from evomerge_cli.console import Console
from evomerge_common.errors import InvalidInput

SPEC = """\
# A run of EvoMerge: evomerge run {file} --out out
models:                      # two or more: hub ids (org/name, org/name@revision) or folders
{models}
# base: org/name             # what they were fine-tuned from; without it, their average stands in
suite: {suite}               # a suite file, or a built-in one
seed: 0                      # the same seed gives the same champion
search:
  evaluations: {evaluations}            # candidates to score, sources included
  population: 16
  # patience: 24             # stop after so many candidates without an improvement
  # methods: [linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, frankenmerge, dfs]
evaluation:
  threads: 2                 # of a scorer; part of what makes scores the same again
"""


def run(args: argparse.Namespace, console: Console) -> int:
    """See the module's text."""
    file = Path(args.file).expanduser()
    if file.exists() and not args.force:
        raise InvalidInput(f"{file} exists; choose another name, or --force to replace it")
    models, suite, evaluations = list(DEFAULT_MODELS), "general", "64"
    if args.interactive:
        if not sys.stdin.isatty():
            raise InvalidInput("--interactive asks questions, and there is no terminal to ask on")
        models = []
        while answer := input(f"model {len(models) + 1} (hub id or folder; empty ends): ").strip():
            models.append(answer)
        models = models or list(DEFAULT_MODELS)
        suite = input("suite file (empty: general): ").strip() or suite
        evaluations = input("candidates to score (empty: 64): ").strip() or evaluations
    lines = "\n".join(f"  - {model}" for model in models)
    file.write_text(SPEC.format(file=file, models=lines, suite=suite, evaluations=evaluations), encoding="utf-8")
    console.out(f"{file} is written; evomerge run {file}")
    return 0
