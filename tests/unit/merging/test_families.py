"""A family of each kind, tiny and random; `make families` writes the table of all."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers import families

_PAGE = Path(__file__).parents[3] / "docs" / "families.md"
# Dense, alternating, mixture of experts, hybrid, state-space, encoder, encoder-decoder, a tower as deep, packed
# tensors, a head of its own.
_ONE_OF_EACH = (
    "llama", "cohere2", "qwen2_moe", "granitemoehybrid", "mamba2", "bert", "t5", "qwen2_vl", "mistral3", "gemma3n_text",
    "cpmant", "bart", "smolvlm", "deepseek_v32",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", _ONE_OF_EACH)
def test_a_family_is_merged_cut_and_stacked_or_refused(family: str, tmp_path: Path) -> None:
    kind, class_name = families.families()[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = families.check(family, kind, class_name, tmp_path)
    assert (row.itself, row.linear, row.loads) == ("yes", "yes", "yes")
    assert set(row.cuts) == set(families.CUTS)
    assert not row.wrong, row
    assert (row.perplexity, row.choices) == ("yes", "yes") or row.not_scored
    written = _written(family)
    assert written.pop("GGUF"), "llama.cpp is asked for it elsewhere"
    assert written == {name: _columns()[name](row) for name in written}


def _columns() -> Mapping[str, Any]:
    """Those of the script that writes the page."""
    spec = importlib.util.spec_from_file_location("families_page", _PAGE.parents[1] / "benchmarks" / "families.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    columns: Mapping[str, Any] = module.COLUMNS
    return columns


def _written(family: str) -> dict[str, str]:
    """A family's line of the page, column by column."""
    lines = [line.strip("|").split("|") for line in _PAGE.read_text().splitlines() if line.startswith("|")]
    row = next(line for line in lines if line[0].strip() == f"`{family}`")
    return {name.strip(): word.strip() for name, word in zip(lines[0], row, strict=True)}


def test_the_page_tells_of_75_families_or_more_and_none_is_wrong() -> None:
    page = _PAGE.read_text()
    rows = re.findall(r"^\| `[\w-]+` \|.*$", page, re.MULTILINE)
    assert len(rows) >= 75
    assert "none is wrong" in page
    assert not [row for row in rows if re.search("logits|faults|error|differs|off by", row)]
