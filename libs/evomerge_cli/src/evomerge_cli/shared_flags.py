"""Flags of several commands, and those of `evomerge models`."""

from __future__ import annotations

import argparse


def add_voice_flags(parser: argparse.ArgumentParser, *, above: bool = False) -> None:
    """Adds --verbose and --quiet; `above` a command they have their defaults, after it they are only noted."""
    unless = False if above else argparse.SUPPRESS
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--verbose", action="store_true", default=unless, help="say more; show tracebacks")
    group.add_argument("--quiet", action="store_true", default=unless, help="say nothing but the result and errors")


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", dest="json_output", help="print data as JSON on stdout")


def add_log_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --log-to."""
    parser.add_argument(
        "--log-to", action="append", metavar="NAME[=PLACE]",
        help="trackers to write to as well: tensorboard, mlflow, wandb, trackio; several with commas",
    )  # fmt: skip


def add_models_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `evomerge models`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(parser))
    for name, text in (
        ("list", "what the store holds, how large, when last used, and who keeps it"),
        ("pin", "keep a model, whatever the quota"),
        ("unpin", "keep it no longer"),
        ("evict", "remove a model; a linked folder stays where it is"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        if name == "list":
            add_json_flag(action)
        else:
            action.add_argument("model", metavar="MODEL", help="its reference, or the beginning of its digest")
        if name == "unpin":
            action.add_argument(
                "--all", action="store_true", help="also what runs and processes keep, such as dead ones"
            )
        add_voice_flags(action)
