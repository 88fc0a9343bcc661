"""`evomerge generate`: a model's greedy continuation of a prompt."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from evomerge_cli.commands.merge import fetch
from evomerge_cli.console import Console
from evomerge_models.reference import resolve_reference


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints a model's greedy continuation of a prompt."""
    from evomerge_common.runtime.settings import Settings
    from evomerge_scoring import generate_text

    reference = resolve_reference(args.model)
    folder = fetch([reference], console)[reference.key]
    chat = getattr(args, "chat", False)
    result = generate_text(
        folder,
        args.prompt,
        args.max_new_tokens,
        threads=getattr(args, "threads", 2),
        device=getattr(args, "device", None) or Settings.from_env().device,
        chat=chat,
    )
    if not result.text.strip():
        hint = "" if chat else "; if it was tuned to chat, add --chat"
        console.say(f"note: the model ended the text at once{hint}")
    if not console.data(asdict(result)):
        console.out(result.text)
    return 0
