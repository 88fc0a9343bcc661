"""`evomerge init`: a run spec to start from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from evomerge_cli.arguments import DEFAULT_MODELS
from evomerge_cli.console import Console
from evomerge_cli.spec_source import local_path, resolve_suite
from evomerge_common.domain.recipe import ModelReference
from evomerge_common.domain.spec import STRATEGIES, RunSpec
from evomerge_common.errors import EvoMergeException, InvalidInput

T = TypeVar("T")

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
    if args.interactive:
        text = yaml.safe_dump(ask(Questions(console), file.parent), sort_keys=False, allow_unicode=True)
        text = f"# A run of EvoMerge: evomerge run {file} --out out\n{text}"
    else:
        lines = "\n".join(f"  - {model}" for model in DEFAULT_MODELS)
        text = SPEC.format(file=file, models=lines, suite="general", evaluations="64")
    file.write_text(text, encoding="utf-8")
    console.out(f"{file} is written; evomerge run {file}")
    return 0


class Questions:
    """Asks on a terminal or reads piped lines; an empty answer takes the default, a wrong one is asked for again.

    A pipe that ends answers every further question with its default; a wrong line from a pipe is an error at once.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def ask(self, question: str, default: str, read: Callable[[str], T]) -> T:
        """The first answer that `read` takes."""
        while True:
            shown = f"{question} [{default}]: " if default else f"{question}: "
            print(shown, end="", file=self._console.stderr, flush=True)
            line = sys.stdin.readline()
            if not sys.stdin.isatty():
                self._console.say(line.strip())
            try:
                return read(line.strip() or default)
            except EvoMergeException as error:
                if not sys.stdin.isatty():
                    raise
                self._console.say(f"  {error}")


def ask(questions: Questions, folder: Path) -> dict[str, Any]:
    """A spec, question by question, each answer checked as the run would check it."""
    models: list[str] = []
    while True:
        default = DEFAULT_MODELS[len(models)] if len(models) < 2 else ""
        hint = " (hub id or folder)" if not models else "" if len(models) < 2 else " (empty: no more)"
        model = questions.ask(f"model {len(models) + 1}{hint}", default, lambda text: _model(text, models, folder))
        if not model:
            break
        models.append(model)
    base = questions.ask("model that they were fine-tuned from (empty: none)", "", lambda t: _model(t, [], folder))
    suite = questions.ask("tasks: a suite file or a built-in suite", "general", lambda text: _suite(text, folder))
    strategy = questions.ask(
        f"strategy: {', '.join(STRATEGIES)} (nsga2: every task an objective of its own)",
        "tournament",
        lambda text: _checked("strategy", text),
    )
    evaluations = questions.ask("candidates to score", "64", lambda text: _checked("evaluations", _number(text)))
    patience = questions.ask(
        "stop after so many candidates without a better one (0: never)",
        "0",
        lambda text: _checked("patience", _number(text)),
    )
    seed = questions.ask("seed", "0", _number)
    search = {"strategy": strategy, "evaluations": evaluations, **({"patience": patience} if patience else {})}
    return {"models": models, **({"base": base} if base else {}), "suite": suite, "seed": seed, "search": search}


def _model(text: str, known: list[str], folder: Path) -> str:
    if not text:
        return ""
    ModelReference.parse(text)
    if text in known:
        raise InvalidInput(f"{text} is named already")
    path = local_path(text, folder)
    if path is not None and not (path / "config.json").is_file() and not path.is_file():
        raise InvalidInput(f"{path} is no model: there is no config.json in it")
    return text


def _suite(text: str, folder: Path) -> str:
    resolve_suite(text, folder)
    return text


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(f"must be a whole number, not {text!r}") from None


def _checked(key: str, value: T) -> T:
    """As the spec would: one key of `search`."""
    suite = {"tasks": [{"name": "a", "kind": "perplexity", "items": [{"text": str(i)} for i in range(20)]}]}
    RunSpec.from_dict({"models": ["a", "b"], "suite": suite, "search": {key: value}})
    return value
