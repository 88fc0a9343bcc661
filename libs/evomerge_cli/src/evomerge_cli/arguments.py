"""The command line: what can be typed. Standard library alone, so that `evomerge --help` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from evomerge_cli.argument_types import positive, size
from evomerge_cli.command_line import Parser
from evomerge_cli.output_arguments import add_export_flags, add_extract_lora_flags, add_push_flags
from evomerge_cli.search_arguments import (
    SEED,
    add_licence_flag,
    add_open_flag,
    add_search_flags,
    add_technique_flags,
)
from evomerge_cli.shared_flags import add_json_flag, add_log_flag, add_models_flags, add_voice_flags
from evomerge_common import __version__

_SPLITS = ("search", "holdout", "all")

CLASSIC_ACTIONS = ("--run", "--download-and-merge", "--evaluate", "--generate", "--generate-config")

COMMANDS = {
    "demo": "build a small family of real models, evolve it, show what came of it",
    "run": "evolve a champion from models and a suite of tasks",
    "merge": "execute one merge recipe (EvoMerge's or mergekit's YAML), no services",
    "evaluate": "score one model on a suite",
    "generate": "continue a prompt with one model",
    "init": "write a run spec to start from",
    "up": "start the local stack in the background",
    "down": "stop it",
    "status": "tell how it is",
    "runs": "list, show, watch, pause, resume, finish, cancel runs; print their events",
    "report": "report again from the event log",
    "compare": "two or more runs side by side, their champions item by item",
    "export": "write a model as a finished Hugging Face folder, as GGUF for llama.cpp, or a champion as a LoRA adapter",
    "push": "publish a run's champion, or a model folder, on the Hugging Face Hub",
    "gguf": "look into a GGUF file",
    "models": "list, pin, unpin, evict models of this machine's store",
    "extract-lora": "write what a fine-tuned model changed in its base as a LoRA adapter",
    "doctor": "what this machine has, and what to do about what it lacks",
    "bench": "the performance benchmarks",
    "completion": "print the script that completes commands, flags and runs in bash, zsh or fish",
    "help": "print the help of a command",
}


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads a command line, modern or classic; `command` tells what to do. Exits with 2 on one that means nothing."""
    first = argv[0] if argv else "help"
    if first == "help":
        argv = [*argv[1:], "--help"]
    elif argv in (["runs"], ["models"], ["gguf"]):
        argv = [first, "--help"]
    elif (
        first.startswith("--")
        and not any(word in COMMANDS for word in argv[:2])
        and first not in {"--help", "--version"}
    ):
        return _parse_classic(argv)
    args = make_parser(next((word for word in argv if word in COMMANDS), "")).parse_args(argv)
    if args.command == "evaluate":
        args.json_output = args.json_file == "-"
    return args


def make_parser(wanted: str | None = None) -> Parser:
    """Makes the parser of the modern command line, whole; or with what follows the `wanted` command alone, which is
    quicker: flags import what their choices are made of.
    """
    parser = Parser(
        prog="evomerge",
        description="EvoMerge evolves merged language models: models and tasks in, a proven champion out.",
        epilog="`evomerge help COMMAND` has examples. The classic flags work too: evomerge --run --model1 A …",
    )
    parser.add_argument("--version", action="version", version=f"evomerge {__version__}", help="print the version")
    add_voice_flags(parser, above=True)
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, text in COMMANDS.items():
        command = sub.add_parser(name, help=text, description=text)
        add_voice_flags(command)
        if name in _WITH_JSON:
            add_json_flag(command)
        if name in _FLAGS and wanted in {None, name}:
            _FLAGS[name](command)
    return parser


def _add_demo_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="evomerge-demo", metavar="DIR", help="output folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=SEED)
    parser.add_argument(
        "--evaluations", type=positive, default=44, metavar="N", help="candidates (default: %(default)s)"
    )
    parser.add_argument(
        "--evaluators", type=positive, default=2, metavar="N", help="processes that score (default: %(default)s)"
    )
    add_open_flag(parser)
    add_log_flag(parser)


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", nargs="?", metavar="SPEC.yaml", help="run spec; without one, give --model1 and so on")
    parser.add_argument(
        "--task-search-path", action="append", metavar="DIR", help="task files of your own, for mergekit-evolve's file"
    )
    add_search_flags(parser)
    add_technique_flags(parser)


def _add_merge_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="EvoMerge's or mergekit's")
    parser.add_argument("out", metavar="OUT_DIR", help="folder for the model")
    parser.add_argument(
        "--threads", type=positive, default=2, metavar="N", help="processor threads (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="plan only: what goes where, memory, disk, time")
    parser.add_argument("--strict", action="store_true", help="refuse words of the recipe that have no effect")
    add_licence_flag(parser)
    parser.add_argument(
        "--max-shard-size", type=size, metavar="SIZE", help="of a weight file, such as 2GB or 500MiB (default: 5GB)"
    )


def _add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, folder, GGUF file, adapter, or base+adapter")
    _add_score_flags(parser)


def _add_generate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, folder, GGUF file, adapter, or base+adapter")
    _add_prompt_flags(parser, required=True)


def _add_up_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--evaluators", type=positive, metavar="N", help="processes that score (default: one a GPU; without, 1)"
    )
    parser.add_argument("--folder", metavar="DIR", help="where it keeps its store and logs (default: the state folder)")


def _add_runs_flags(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    for name, text in (
        ("list", "every run that the selector knows"), ("show", "one run's state"),
        ("watch", "follow its events until it ends"), ("events", "print its events so far, one JSON object a line"),
        ("lineage", "the champion's ancestors, by which operator each came"),
        ("trace", "where its time went: a table, and a timeline as SVG"),
        ("pause", "propose nothing new"), ("resume", "go on"),
        ("finish", "end the search now: the best candidate so far is proven and handed back as champion"),
        ("cancel", "stop it"),
    ):  # fmt: skip
        action = actions.add_parser(name, help=text, description=text)
        if name != "list":
            action.add_argument("run_id", metavar="RUN_OR_DIR", help="id of a run at the server, or its output folder")
        if name == "trace":
            action.add_argument("--out", metavar="FILE.svg", help="the picture (default: DIR/report/timeline.svg)")
        if name == "lineage":
            action.add_argument("--candidate", default="", metavar="DIGEST", help="another one than the champion")
        if name == "cancel":
            action.add_argument("--finish", action="store_true", help="the same as `evomerge runs finish`")
        if name in {"cancel", "finish"}:
            action.add_argument("--reason", default="asked on the command line", metavar="TEXT", help="kept in the log")
        _add_server_flag(action)
        add_json_flag(action)
        add_voice_flags(action)


def _add_report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_OR_DIR", help="a run's output folder, or the id of a run (with a server)")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: the folder itself, or ./RUN)")
    parser.add_argument("--notebook", action="store_true", help="write report/report.ipynb, too: for Jupyter")
    add_log_flag(parser)
    parser.add_argument(
        "--optuna", metavar="FILE", help="write an Optuna study, too: FILE.db (SQLite), else a journal, for large runs"
    )
    _add_server_flag(parser)


def _add_compare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN_OR_DIR", help="output folders, or ids of runs (with a server)")
    parser.add_argument("--out", metavar="FILE.html", help="write the comparison as a page, too")
    _add_server_flag(parser)


def _add_push_flags(parser: argparse.ArgumentParser) -> None:
    add_push_flags(parser)
    _add_server_flag(parser)


def _add_gguf_flags(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    text = "metadata, tensors, types and sizes of a file"
    inspect = actions.add_parser("inspect", help=text, description=text)
    inspect.add_argument("file", metavar="FILE", help="a .gguf file")
    add_json_flag(inspect)
    add_voice_flags(inspect)


def _add_bench_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="run this one; without a name, list them")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="…", help="handed to it")


def _add_completion_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="yours")


def _add_help_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="whose help (default: all commands)")


def classic_parser() -> Parser:
    """Makes the parser of the classic command line."""
    parser = Parser(prog="evomerge", usage="evomerge " + " | ".join(CLASSIC_ACTIONS) + " [options]")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--run", action="store_true", help="evolve a champion")
    action.add_argument("--download-and-merge", action="store_true", help="fetch the models and merge them once")
    action.add_argument("--evaluate", metavar="PATH", help="score a model")
    action.add_argument("--generate", metavar="PATH", help="continue --prompt with a model")
    action.add_argument("--generate-config", action="store_true", help="write a run spec")
    parser.add_argument(
        "--config", dest="spec", metavar="FILE", help="run spec (with --generate-config: where to write)"
    )
    add_voice_flags(parser, above=True)
    add_json_flag(parser)
    parser.add_argument("--split", choices=_SPLITS, default="all", help="which items to score (default: %(default)s)")
    add_search_flags(parser)
    add_technique_flags(parser)
    _add_prompt_flags(parser, required=False)
    return parser


def _parse_classic(argv: list[str]) -> argparse.Namespace:
    parser = classic_parser()
    args = parser.parse_args(argv)
    if args.evaluate:
        args.command, args.model, args.json_file = "evaluate", args.evaluate, ""
    elif args.generate:
        if not args.prompt:
            parser.error("--generate needs --prompt TEXT")
        args.command, args.model = "generate", args.generate
    elif args.generate_config:
        args.command, args.file, args.interactive, args.force = "init", args.spec or "evomerge.yaml", False, False
    else:
        args.command = "run" if args.run else "merge"
        args.recipe = None
    return args


def _add_server_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server", metavar="HOST:PORT", help="a selector's gRPC address (default: the one of `evomerge up`)"
    )


def _add_score_flags(parser: argparse.ArgumentParser) -> None:
    from evomerge_common.domain.spec import AUTO, SCORING_DTYPES

    parser.add_argument(
        "--suite", default="general", metavar="SUITE.yaml", help="tasks (default: the built-in `general`)"
    )
    parser.add_argument("--split", choices=_SPLITS, default="all", help="which items to score (default: %(default)s)")
    parser.add_argument(
        "--json", nargs="?", const="-", default="", dest="json_file", metavar="FILE",
        help="print data as JSON on stdout; with FILE, write it there, item scores included",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=positive, metavar="N", help="rows at once (default: the suite's)")
    parser.add_argument(
        "--dtype", choices=SCORING_DTYPES, default=AUTO, help="to compute in (default: bfloat16 where it pays here)"
    )
    _add_compute_flags(parser)


def _add_compute_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=positive, default=2, metavar="N", help="processor threads (default: %(default)s)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps (default: EVOMERGE_DEVICE)")


def _add_prompt_flags(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--prompt", required=required, metavar="TEXT", help="what to continue")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=64, metavar="N", help="of the answer, at most (default: %(default)s)"
    )
    if required:
        parser.add_argument("--chat", action="store_true", help="put the prompt through the model's chat template")
        _add_compute_flags(parser)


def _add_init_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", default="evomerge.yaml", metavar="SPEC.yaml", help="to write (default: %(default)s)"
    )
    parser.add_argument("--interactive", action="store_true", help="ask for models, tasks, budget, strategy and output")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


_WITH_JSON = frozenset(COMMANDS) - {"evaluate", "init", "down", "runs", "gguf", "models", "completion", "help"}
"""Commands with a plain `--json`; those with actions have it at each, evaluate's takes a file."""
_FLAGS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "demo": _add_demo_flags,
    "run": _add_run_flags,
    "merge": _add_merge_flags,
    "evaluate": _add_evaluate_flags,
    "generate": _add_generate_flags,
    "up": _add_up_flags,
    "runs": _add_runs_flags,
    "models": add_models_flags,
    "report": _add_report_flags,
    "compare": _add_compare_flags,
    "export": add_export_flags,
    "push": _add_push_flags,
    "gguf": _add_gguf_flags,
    "extract-lora": add_extract_lora_flags,
    "bench": _add_bench_flags,
    "init": _add_init_flags,
    "completion": _add_completion_flags,
    "help": _add_help_flags,
}
"""What can be typed after a command."""
