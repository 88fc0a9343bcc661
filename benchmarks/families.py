"""docs/families.md: every family of transformers, tiny and random, merged, cut and stacked (`helpers/families.py`).

    python benchmarks/families.py [--only llama,gemma3] [--out docs/families.md]

Exits with 1 where a family is neither right nor refused.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import transformers

from helpers import family_gguf
from helpers.families import Row, families, rows

COLUMNS: dict[str, Callable[[Row], str]] = {
    "family": lambda row: f"`{row.family}`",
    "itself": lambda row: row.itself,
    "linear": lambda row: row.linear,
    "loads": lambda row: row.loads,
    "first out": lambda row: row.cuts.get("first", "-"),
    "middle out": lambda row: row.cuts.get("middle", "-"),
    "last out": lambda row: row.cuts.get("last", "-"),
    "repeated": lambda row: row.cuts.get("repeated", "-"),
    "search": lambda row: row.search.replace("_", " "),
    "perplexity": lambda row: row.perplexity,
    "choices": lambda row: row.choices,
    "GGUF": lambda row: row.gguf.partition(":")[0].replace(", told", " (told)"),
}
"""The table's columns, each with what it says of a family."""

_HEAD = """# Families

What merging, leaving out and repeating layers comes to for each architecture of transformers {version}, on tiny random
models whose towers are as deep as their text model. Made by `make families`; do not edit.

* itself: merged with itself it is itself, tensor by tensor, and every tensor of the headers is in the result
* linear: equals a plain torch sum; loads: transformers misses no key of the result that it does not miss in the source
* first, middle or last layer out, two layers repeated: the logits are those of the source with its own layers skipped
  or passed twice, or the recipe is refused before a byte is written (why: below); whole: its blocks of layers, not its
  layers, are told apart; -: its model calls layers past their hooks, so there is nothing to judge by
* search: layers are drawn in any order, each in place (from one source or another), or models whole
* perplexity, choices: log-likelihoods of a text and of three choices behind a prompt are to 1e-3 those of plain
  transformers code, a text at a time; or scoring is refused (why: below)
* GGUF: llama.cpp goes on with the exported file as transformers does with the folder; told: but for sliding windows,
  which it does not have there and the export tells of; refused: by its name, before a byte is written; -: no model that
  goes on with a text, or llama.cpp was not there

{made} families: {right} are right in every column, {refused} refuse some order of layers, {unscored} are not scored;
{wrong}.

"""


def table(found: Mapping[str, Row | str]) -> str:
    """The page, in Markdown."""
    made = [row for row in found.values() if isinstance(row, Row)]
    wrong = [row.family for row in made if row.wrong]
    head = _HEAD.format(
        version=transformers.__version__,
        made=len(made),
        right=sum(not row.reasons and not row.not_scored and not row.wrong for row in made),
        refused=sum(bool(row.reasons) for row in made),
        unscored=sum(bool(row.not_scored) for row in made),
        wrong=f"wrong: {', '.join(wrong)}" if wrong else "none is wrong",
    )
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [line(row) for row in made]
    reasons = _listed({row.family: row.reasons[0] for row in made if row.reasons})
    unscored = _listed({row.family: row.not_scored for row in made if row.not_scored})
    none = _listed({row.family: row.gguf.partition(": ")[2] for row in made if _has_a_reason_of_its_own(row)})
    left = _listed({name: why for name, why in found.items() if isinstance(why, str)})
    parts = {
        "Why refused": reasons, "Why not scored": unscored, "No GGUF of it here": none, "Not made small here": left,
    }  # fmt: skip
    rows_text = "\n".join(f"| {one} |" for one in lines)
    return f"{head}{rows_text}\n" + "".join(f"\n## {title}\n\n{text}\n" for title, text in parts.items())


def line(row: Row) -> str:
    """A family's line of the table, without its outer bars."""
    return " | ".join(say(row) for say in COLUMNS.values())


def _has_a_reason_of_its_own(row: Row) -> bool:
    """Whether it is refused as GGUF for another reason than that its architecture is not written at all."""
    return row.gguf.startswith("refused") and "GGUF is not written" not in row.gguf


def _listed(reasons: Mapping[str, str]) -> str:
    """Each reason as a point, wrapped; its first sentence is enough."""
    points = (f"* {name}: {re.split(r', and an? |; keep ', why)[0]}" for name, why in reasons.items())
    return "\n".join(textwrap.fill(one, 118, subsequent_indent="  ", break_on_hyphens=False) for one in points)


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
            if family_gguf.there():
                row.gguf = family_gguf.judged(name, *families()[name])
            words = " ".join(str(value) for value in vars(row).values())
            print(f"{name:28} {time.monotonic() - began:.0f} s {words}", flush=True)
    made = [row for row in found.values() if isinstance(row, Row)]
    wrong = [row.family for row in made if row.wrong]
    if args.out:
        args.out.write_text(table(found))
    print(f"{len(made)} families of {len(found)}; wrong: {', '.join(wrong) or 'none'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
