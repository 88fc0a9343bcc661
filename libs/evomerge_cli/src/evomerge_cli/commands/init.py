"""`evomerge init`: a run spec to start from."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from evomerge_cli.console import Console
from evomerge_cli.search_arguments import DEFAULT_MODELS
from evomerge_cli.spec_source import BUILT_IN_SUITES, is_masked, resolve_suite
from evomerge_common.domain.gguf_types import TYPES
from evomerge_common.domain.spec import RunSpec
from evomerge_common.domain.strategies import STRATEGIES
from evomerge_common.errors import EvoMergeException, InvalidInput, SuiteError, did_you_mean
from evomerge_models.files import ADAPTER_CONFIG
from evomerge_models.reference import local_path, resolve_reference

T = TypeVar("T")

SPEC = """\
# A run of EvoMerge: {command}
models:                      # two or more: hub ids (org/name, org/name@revision), folders, adapters (base+adapter)
{models}
{base}
{suite}
seed: {seed}                      # the same seed gives the same champion
search:
  strategy: {strategy}
  evaluations: {evaluations}            # candidates to score, sources included
  {hours}
  {patience}
  population: 16
  # methods: [linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, frankenmerge, dfs]
evaluation:
  threads: 2                 # of a scorer; part of what makes scores the same again
{export}
"""
KINDS = {
    "multiple_choice": {"prompt", "choices", "answer"},
    "instruction_following": {"prompt", "checks"},
    "code": {"prompt", "tests"},
    "exact_match": {"prompt", "answer"},
    "qa": {"question", "answers"},
    "classification": {"text", "label"},
    "writing": {"prompt", "text"},
    "perplexity": {"text"},
}
"""Kind of task → the keys that tell its items from the kinds' below."""


@dataclass(frozen=True)
class Answers:
    """What a run is to be; `suite` as in the spec."""

    models: tuple[str, ...] = DEFAULT_MODELS
    base: str = ""
    suite: str | dict[str, Any] = "general"
    strategy: str = "tournament"
    evaluations: int = 64
    hours: float = 0.0
    patience: int = 0
    seed: int = 0
    gguf_type: str = ""
    out: str = "out"


def run(args: argparse.Namespace, console: Console) -> int:
    """Writes a run spec to start from, asking for its values where the user wants that."""
    file = Path(args.file).expanduser()
    if file.exists() and not args.force:
        raise InvalidInput(f"{file} exists; choose another name, or --force to replace it")
    answers = ask(Questions(console), file.parent) if args.interactive else Answers()
    command = shlex.join(["evomerge", "run", str(file), "--out", answers.out])
    file.write_text(spec_text(answers, command), encoding="utf-8")
    console.out(f"{file} is written. To start the run: {command}")
    return 0


def spec_text(answers: Answers, command: str) -> str:
    """Writes the spec, with what was not asked for as comments."""
    gguf = f"  formats: [hf, gguf]        # the champion also as a file for llama.cpp\n  gguf_type: {answers.gguf_type}"
    return SPEC.format(
        command=command,
        models="\n".join(f"  - {_quoted(model)}" for model in answers.models),
        base=f"base: {_quoted(answers.base)}"
        if answers.base
        else "# base: org/name             # what they were fine-tuned from; without it, their average stands in",
        suite=_suite_text(answers.suite),
        seed=answers.seed,
        strategy=answers.strategy,
        evaluations=answers.evaluations,
        hours=f"hours: {answers.hours:g}" if answers.hours else "# hours: 8                 # ends when they are over",
        patience=f"patience: {answers.patience}"
        if answers.patience
        else "# patience: 24             # ends after so many candidates without an improvement",
        export=f"export:\n{gguf}" if answers.gguf_type else "# export: {formats: [hf, gguf]}    # for llama.cpp too",
    )


def _suite_text(suite: str | dict[str, Any]) -> str:
    if isinstance(suite, str):
        return f"suite: {_quoted(suite)}               # a suite file, a built-in one, or tasks written here"
    tasks = "".join(f"\n    - {_quoted(task)}" for task in suite["tasks"])
    return (
        f"suite:\n  tasks:{tasks}\n  holdout: 0.3               # this share of the items is never seen by the search"
    )


def _quoted(value: Any) -> str:
    """A value on one line of YAML, quoted where it must be."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


class Questions:
    """Asks on a terminal or reads piped lines; an empty answer takes the default, a wrong one is asked for again.

    A pipe that ends answers every further question with its default; a wrong line from a pipe is an error at once.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def offer(self, what: str, choices: Mapping[str, str]) -> None:
        """Lists what the next question may be answered with, a line each."""
        self._console.say(f"{what}:")
        for name, meaning in choices.items():
            self._console.say(f"  {name:{max(map(len, choices))}}  {meaning}")

    def ask(self, question: str, default: str, read: Callable[[str], T]) -> T:
        """Asks until `read` takes an answer, and returns what it made of it."""
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


def ask(questions: Questions, folder: Path) -> Answers:
    """Asks question by question, each answer checked as the run would check it."""
    models: list[str] = []
    while True:
        default = DEFAULT_MODELS[len(models)] if len(models) < 2 else ""
        hint = " (hub id, folder or GGUF file)" if not models else "" if len(models) < 2 else " (empty: no more)"
        model = questions.ask(f"model {len(models) + 1}{hint}", default, lambda text: _model(text, models, folder))
        if not model:
            break
        models.append(model)
    base = questions.ask("model that they were fine-tuned from (empty: none)", "", lambda t: _model(t, [], folder))
    built_in = ", ".join(sorted(path.stem for path in BUILT_IN_SUITES.glob("*.yaml")))
    suite = questions.ask(
        f"tasks: a built-in suite ({built_in}), a suite file, or .jsonl files of items",
        "masked" if all(is_masked(model, folder) for model in models) else "general",
        lambda text: _suite(text, folder),
    )
    questions.offer("strategies", {name: traits.summary for name, traits in STRATEGIES.items()})
    strategy = questions.ask(
        "strategy",
        "tournament",
        lambda text: _checked("strategy", text),
    )
    return Answers(
        models=tuple(models),
        base=base,
        suite=suite,
        strategy=strategy,
        evaluations=questions.ask("candidates to score", "64", lambda t: _checked("evaluations", _number(t, int))),
        hours=questions.ask("hours at most (0: no limit)", "0", lambda t: _checked("hours", _number(t, float))),
        patience=questions.ask(
            "stop after so many candidates without a better one (0: never)",
            "0",
            lambda text: _checked("patience", _number(text, int)),
        ),
        seed=questions.ask("seed", "0", lambda text: _number(text, int)),
        gguf_type=questions.ask("champion also as a GGUF file: auto, q8_0, … (empty: no)", "", _gguf_type),
        out=questions.ask("output folder", "out", lambda text: text),
    )


def _model(text: str, known: list[str], folder: Path) -> str:
    if not text:
        return ""
    named = resolve_reference(text, folder, Path())
    if text in known:
        raise InvalidInput(f"{text} is named already")
    path = local_path(named.name, folder)
    if path is None or named.adapter or path.is_file():
        return text
    if not any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise InvalidInput(f"{path} is no model: there is no config.json in it")
    return text


def _suite(text: str, folder: Path) -> str | dict[str, Any]:
    """A suite's name or file; files of items become tasks whose kind their first item tells."""
    try:
        files = [Path(word).expanduser() for word in shlex.split(text)]
    except ValueError as error:
        raise InvalidInput(f"{text!r} cannot be read: {error}") from error
    if not all(file.suffix == ".jsonl" for file in files):
        resolve_suite(text, folder)
        return text
    suite = {"tasks": [{"name": file.stem, "kind": _kind(folder / file), "data": str(file)} for file in files]}
    resolve_suite(suite, folder)
    return suite


def _kind(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as lines:
            item = json.loads(next((line for line in lines if line.strip()), "null"))
    except (OSError, ValueError) as error:
        raise SuiteError(f"{file} cannot be read as JSON Lines: {error}") from error
    found = next((kind for kind, keys in KINDS.items() if isinstance(item, dict) and keys <= set(item)), "")
    if not found:
        wanted = "; ".join(f"{kind}: {', '.join(sorted(keys))}" for kind, keys in KINDS.items())
        raise SuiteError(f"{file}: what its first item asks for is not clear; the keys of an item: {wanted}")
    return found


def _number(text: str, kind: Callable[[str], T]) -> T:
    try:
        return kind(text)
    except ValueError:
        raise InvalidInput(f"must be a {'whole ' if kind is int else ''}number, not {text!r}") from None


def _gguf_type(text: str) -> str:
    if text and text not in TYPES:
        raise InvalidInput(f"unknown type {text!r}; {did_you_mean(text, TYPES)}")
    return text


def _checked(key: str, value: T) -> T:
    """As the spec would: one key of `search`."""
    RunSpec.from_dict({"models": ["a", "b"], "search": {key: value}})
    return value
