"""The command line: what can be typed. Standard library alone, so that `evomerge --help` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from evomerge_cli.argument_types import positive, rate, size
from evomerge_cli.output_arguments import add_export_flags, add_extract_lora_flags, add_push_flags
from evomerge_cli.shared_flags import add_json_flag, add_models_flags, add_verbose_flag
from evomerge_common import __version__
from evomerge_common.domain.cross_domain import CROSS_STRATEGIES
from evomerge_common.domain.licences import ACCEPT_FLAG
from evomerge_common.domain.methods import DFS_TECHNIQUES, MASK_STRATEGIES, PS_TECHNIQUES_1, PS_TECHNIQUES_2
from evomerge_common.domain.spec import AUTO, SCORING_DTYPES
from evomerge_common.errors import did_you_mean

DEFAULT_MODELS = (
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-Coder-1.5B-Instruct",
    "Qwen/Qwen2.5-Math-1.5B-Instruct",
)
"""Stand in for --model1, --model2, --model3 where one is not given."""
DEFAULT_OUT = "evomerge-out"


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
}


class Parser(argparse.ArgumentParser):
    """argparse, except that an unknown command or choice is answered with the nearest valid word."""

    def __init__(self, **options: object) -> None:
        super().__init__(**{"allow_abbrev": False, **options})  # type: ignore[arg-type]

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            kind = "command" if action.dest == "command" else "value"
            raise argparse.ArgumentError(
                action, f"unknown {kind} {value!r}; {did_you_mean(str(value), map(str, action.choices))}"
            )

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2 and the usage of the command at hand."""
        self.exit(2, f"error: {message}\n(see: {self.prog} --help)\n")


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads a command line, modern or classic; `command` tells what to do. Exits with 2 on one that means nothing."""
    first = argv[0] if argv else ""
    if (
        first.startswith("--")
        and not any(word in COMMANDS for word in argv[:2])
        and first not in {"--help", "--version"}
    ):
        return _parse_classic(argv)
    args = _parser().parse_args(argv)
    if args.command == "evaluate":
        args.json_output = args.json_file == "-"
    return args


def _parser() -> Parser:
    parser = Parser(
        prog="evomerge",
        description="EvoMerge evolves merged language models: models and tasks in, a proven champion out.",
        epilog="The classic flags work too: evomerge --run --model1 A --model2 B --model3 C …",
    )
    parser.add_argument("--version", action="version", version=f"evomerge {__version__}")
    parser.add_argument("--verbose", action="store_true", help="say more; show tracebacks")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, text in COMMANDS.items():
        command = sub.add_parser(name, help=text, description=text)
        add_verbose_flag(command)
        if name in _WITH_JSON:
            add_json_flag(command)
        if name in _FLAGS:
            _FLAGS[name](command)
    return parser


def _add_demo_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="evomerge-demo", metavar="DIR", help="output folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--evaluations", type=positive, default=44, metavar="N", help="candidates (default: %(default)s)"
    )
    parser.add_argument("--evaluators", type=positive, default=2, metavar="N", help="default: %(default)s")


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", nargs="?", metavar="SPEC.yaml", help="run spec; without one, give --model1 and so on")
    parser.add_argument(
        "--task-search-path", action="append", metavar="DIR", help="task files of your own, for mergekit-evolve's file"
    )
    _add_search_flags(parser)
    _add_technique_flags(parser)


def _add_merge_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("out", metavar="OUT_DIR")
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="plan only: what goes where, memory, disk, time")
    parser.add_argument("--strict", action="store_true", help="refuse words of the recipe that have no effect")
    _add_licence_flag(parser)
    parser.add_argument(
        "--max-shard-size", type=size, metavar="SIZE", help="of a weight file, such as 2GB or 500MiB (default: 5GB)"
    )


def _add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    _add_score_flags(parser)


def _add_generate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    _add_prompt_flags(parser, required=True)


def _add_up_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--evaluators", type=positive, metavar="N", help="default: one a GPU; without, 1")
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
        if name == "trace":
            action.add_argument("run_id", metavar="RUN_OR_DIR", help="id of a run at a server, or its output folder")
            action.add_argument("--out", metavar="FILE.svg", help="the picture (default: DIR/report/timeline.svg)")
        elif name != "list":
            action.add_argument("run_id", metavar="RUN")
        if name == "lineage":
            action.add_argument("--candidate", default="", metavar="DIGEST", help="another one than the champion")
        if name == "cancel":
            action.add_argument("--finish", action="store_true", help="the same as `evomerge runs finish`")
        if name in {"cancel", "finish"}:
            action.add_argument("--reason", default="asked on the command line")
        _add_server_flag(action)
        add_json_flag(action)
        add_verbose_flag(action)


def _add_report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_OR_DIR", help="a run's output folder, or the id of a run (with a server)")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: the folder itself, or ./RUN)")
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
    inspect.add_argument("file", metavar="FILE")
    add_json_flag(inspect)
    add_verbose_flag(inspect)


def _add_bench_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="run this one; without a name, list them")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="…", help="handed to it")


def _parse_classic(argv: list[str]) -> argparse.Namespace:
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
    parser.add_argument("--verbose", action="store_true", help="say more; show tracebacks")
    parser.add_argument("--json", action="store_true", dest="json_output", help="print data as JSON on stdout")
    parser.add_argument("--split", choices=("search", "holdout", "all"), default="all")
    _add_search_flags(parser)
    _add_technique_flags(parser)
    _add_prompt_flags(parser, required=False)
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


def _add_search_flags(parser: argparse.ArgumentParser) -> None:
    for number, default in enumerate(DEFAULT_MODELS, 1):
        parser.add_argument(f"--model{number}", metavar="MODEL", help=f"hub id or folder (default: {default})")
    parser.add_argument("--base", metavar="MODEL", help="what task vectors are taken against (default: derived)")
    parser.add_argument("--suite", metavar="FILE", help="tasks: a suite file, or `general` (the default of the flags)")
    parser.add_argument(
        "--out", "--custom-dir", dest="out", metavar="DIR", help="output folder (default: evomerge-out)"
    )
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--evaluations", type=positive, metavar="N", help="how many candidates to score")
    parser.add_argument(
        "--evaluators", type=positive, metavar="N", help="processes that score (default: one a GPU; without, 1)"
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="a selector that runs already: no stack is started here")
    parser.add_argument(
        "--cross-domain", choices=CROSS_STRATEGIES,
        help="how models of another architecture, size or vocabulary are fitted in (default: full)",
    )  # fmt: skip
    _add_licence_flag(parser)


def _add_licence_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        ACCEPT_FLAG, action="store_true", help="go on with sources whose licences exclude each other; the card says so"
    )


def _add_technique_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("classic merge techniques")
    group.add_argument("--ps-technique1", choices=PS_TECHNIQUES_1, help="first merge in parameter space")
    group.add_argument("--ps-technique2", choices=PS_TECHNIQUES_2, help="second merge in parameter space")
    group.add_argument("--dfs-technique", choices=DFS_TECHNIQUES, help="merge in data-flow space (layers)")
    group.add_argument("--weight-mask-rate", type=rate, metavar="R", help="share of each task vector dropped, 0 to 1")
    group.add_argument("--use-weight-rescale", action="store_true", help="scale what a mask keeps by 1/(1 - rate)")
    group.add_argument("--mask-strategy", choices=MASK_STRATEGIES, help="drop at random, or the smallest first")
    group.add_argument(
        "--use-cli", action="store_true", help="kept for old scripts: downloads use the hub's own client"
    )


def _add_score_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="general", metavar="SUITE.yaml", help="default: the built-in `general`")
    parser.add_argument("--split", choices=("search", "holdout", "all"), default="all", help="default: %(default)s")
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
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps (default: EVOMERGE_DEVICE)")


def _add_prompt_flags(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--prompt", required=required, metavar="TEXT")
    parser.add_argument("--max-new-tokens", type=positive, default=64, metavar="N", help="default: %(default)s")
    if required:
        parser.add_argument("--chat", action="store_true", help="put the prompt through the model's chat template")
        _add_compute_flags(parser)


def _add_init_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="evomerge.yaml", metavar="SPEC.yaml", help="default: %(default)s")
    parser.add_argument("--interactive", action="store_true", help="ask for models, tasks, budget, strategy and output")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


_WITH_JSON = frozenset(COMMANDS) - {"evaluate", "init", "down", "runs", "gguf", "models"}
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
}
"""What can be typed after a command."""
