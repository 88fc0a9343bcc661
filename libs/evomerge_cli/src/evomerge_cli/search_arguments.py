"""What can be typed about a search: models, tasks, budget, classic techniques. Standard library and domain alone."""

from __future__ import annotations

import argparse

from evomerge_cli.argument_types import positive, rate
from evomerge_cli.shared_flags import add_log_flag

DEFAULT_MODELS = (
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-Coder-1.5B-Instruct",
    "Qwen/Qwen2.5-Math-1.5B-Instruct",
)
"""Stand in for --model1, --model2, --model3 where one is not given."""
DEFAULT_OUT = "evomerge-out"
SEED = "the same seed gives the same champion"


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what a search is made of, how it is scored and where it goes."""
    from evomerge_common.domain.cross_domain import CROSS_STRATEGIES

    for number, default in enumerate(DEFAULT_MODELS, 1):
        parser.add_argument(f"--model{number}", metavar="MODEL", help=f"hub id or folder (default: {default})")
    parser.add_argument("--base", metavar="MODEL", help="what task vectors are taken against (default: derived)")
    parser.add_argument("--suite", metavar="FILE", help="tasks: a suite file, or `general` (the default of the flags)")
    parser.add_argument(
        "--out", "--custom-dir", dest="out", metavar="DIR", help="output folder (default: evomerge-out)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help=SEED)
    parser.add_argument("--evaluations", type=positive, metavar="N", help="how many candidates to score")
    parser.add_argument(
        "--evaluators", type=positive, metavar="N", help="processes that score (default: one a GPU; without, 1)"
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="a selector that runs already: no stack is started here")
    parser.add_argument(
        "--cross-domain", choices=CROSS_STRATEGIES,
        help="how models of another architecture, size or vocabulary are fitted in (default: full)",
    )  # fmt: skip
    add_licence_flag(parser)
    add_open_flag(parser)
    add_log_flag(parser)


def add_licence_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that accepts a licence conflict."""
    from evomerge_common.domain.licences import ACCEPT_FLAG

    parser.add_argument(
        ACCEPT_FLAG, action="store_true", help="go on with sources whose licences exclude each other; the card says so"
    )


def add_technique_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the classic merge techniques."""
    from evomerge_common.domain.methods import DFS_TECHNIQUES, MASK_STRATEGIES, PS_TECHNIQUES_1, PS_TECHNIQUES_2

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


def add_open_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --open."""
    parser.add_argument("--open", action="store_true", help="open the run's live page in the browser")
