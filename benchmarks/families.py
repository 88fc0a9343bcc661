"""docs/families.md: every family of transformers, tiny and random, merged, cut and stacked (`helpers/families.py`).

    python benchmarks/families.py [--only llama,gemma3] [--out docs/families.md]

Exits with 1 where a family is neither right nor refused.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import transformers

from helpers.families import Row, rows

COLUMNS: dict[str, Callable[[Row], str]] = {
    "family": lambda row: f"`{row.family}`",
    "merged with itself": lambda row: row.itself,
    "linear": lambda row: row.linear,
    "loads": lambda row: row.loads,
    "first layer out": lambda row: row.cuts.get("first", "-"),
    "middle layer out": lambda row: row.cuts.get("middle", "-"),
    "last layer out": lambda row: row.cuts.get("last", "-"),
    "two repeated": lambda row: row.cuts.get("repeated", "-"),
    "a search draws layers": lambda row: row.search.replace("_", " "),
    "why refused": lambda row: "; ".join(row.reasons),
}
"""The table's columns, each with what it says of a family."""

_HEAD = """# Families

What merging, leaving out and repeating layers comes to for each architecture of transformers {version}, on tiny random
models whose towers are as deep as their text model. Made by `make families`; do not edit.

* merged with itself: it is itself, tensor by tensor, and every tensor of the headers is in the result
* linear: equals a plain torch sum; loads: transformers misses no key of the result that it does not miss in the source
* layers out or repeated: the logits are those of the source with its own layers skipped or passed twice (yes), or the
  recipe is refused before a byte is written; whole: its blocks of layers, not its layers, are told apart
* a search draws layers: in any order, each in place (from one source or another), or models whole

{made} families: {right} right in every column, {refused} refuse some orders of layers; {wrong}.

"""


def table(found: Mapping[str, Row | str]) -> str:
    """The page, in Markdown."""
    made = [row for row in found.values() if isinstance(row, Row)]
    refused = sum(bool(row.reasons) for row in made)
    wrong = [row.family for row in made if row.wrong]
    head = _HEAD.format(
        version=transformers.__version__,
        made=len(made),
        right=len(made) - refused - len([row for row in made if row.wrong and not row.reasons]),
        refused=refused,
        wrong=f"wrong: {', '.join(wrong)}" if wrong else "none is wrong",
    )
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(say(row).replace("|", "\\|") for say in COLUMNS.values()) for row in made]
    left = [f"* `{name}`: {why}" for name, why in found.items() if isinstance(why, str)]
    return head + "\n".join(f"| {line} |" for line in lines) + "\n\nNot made small here:\n\n" + "\n".join(left) + "\n"


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="families, comma-separated")
    parser.add_argument("--out", type=Path, help="where to write the table")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    found: dict[str, Row | str] = {}
    began = time.monotonic()
    for name, row in rows(set(args.only.split(",")) if args.only else None):
        found[name] = row
        if isinstance(row, str):
            print(f"{name:28} not built: {row}", flush=True)
        else:
            words = f"{row.itself} {row.linear} {row.loads} {row.cuts} {row.search} {row.reasons}"
            print(f"{name:28} {time.monotonic() - began:.0f} s {words}", flush=True)
    made = [row for row in found.values() if isinstance(row, Row)]
    wrong = [row.family for row in made if row.wrong]
    if args.out:
        args.out.write_text(table(found))
    print(f"{len(made)} families of {len(found)}; wrong: {', '.join(wrong) or 'none'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
