"""docs/families.md: every family of transformers, tiny and random, merged, cut and stacked (`helpers/families.py`).

    python benchmarks/families.py [--only llama,gemma3] [--out docs/families.md]

Exits with 1 where a family is neither right nor refused.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import transformers

from helpers.families import Row, rows


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
            words = f"{row.itself} {row.linear} {row.loads} {row.cuts} {row.reasons}"
            print(f"{name:28} {time.monotonic() - began:.0f} s {words}", flush=True)
    made = [row for row in found.values() if isinstance(row, Row)]
    wrong = [row.family for row in made if row.wrong]
    print(f"{len(made)} families of {len(found)}; wrong: {', '.join(wrong) or 'none'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
