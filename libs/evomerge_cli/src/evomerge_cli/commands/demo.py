"""`evomerge demo`: a base model and three experts of it, made here, evolved, proven."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evomerge_cli.console import Console
from evomerge_cli.progress import stages

SPEC = """\
# Made by `evomerge demo`: edit a copy of it for your own models.
models:
  - {arithmetic}
  - {sentiment}
  - {python}
base: {base}
suite: {suite}
seed: {seed}
search:
  evaluations: {evaluations}
  population: 12
  in_flight: 4
evaluation:
  threads: 1
"""


def run(args: argparse.Namespace, console: Console) -> int:
    """Makes the demo's models and data, evolves them, and reports."""
    from evomerge_cli.arguments import parse
    from evomerge_cli.commands.run import Options, execute
    from evomerge_cli.demo.family import build_family
    from evomerge_cli.spec_source import prepare
    from evomerge_common.runtime.settings import Settings

    out = Path(args.out).expanduser().absolute()
    cache = Settings.from_env().model_store.parent / "demo" / str(args.seed)
    with stages(console, "making the demo family (once)") as progress:
        family = build_family(cache, seed=args.seed, progress=progress)
    arithmetic, sentiment, python = family.experts
    named = {"arithmetic": arithmetic, "sentiment": sentiment, "python": python, "base": family.base}
    paths = {name: json.dumps(str(path)) for name, path in {**named, "suite": family.suite}.items()}  # JSON is YAML
    spec = SPEC.format(**paths, seed=args.seed, evaluations=args.evaluations)
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.yaml").write_text(spec, encoding="utf-8")
    prepared = prepare(parse(["run", str(out / "spec.yaml"), *(f"--log-to={one}" for one in args.log_to or ())]))
    return execute(prepared, out, console, options=Options(evaluators=args.evaluators, opened=args.open))
