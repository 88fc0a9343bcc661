"""A family of each kind, tiny and random; `make families` writes the table of all."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from helpers import families

_PAGE = Path(__file__).parents[3] / "docs" / "families.md"
# Dense, alternating, mixture of experts, hybrid, state-space, encoder, encoder-decoder, a tower as deep, packed
# tensors, a head of its own.
_ONE_OF_EACH = (
    "llama", "cohere2", "qwen2_moe", "granitemoehybrid", "mamba2", "bert", "t5", "qwen2_vl", "mistral3", "gemma3n_text",
    "cpmant",
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


def test_the_page_tells_of_75_families_or_more_and_none_is_wrong() -> None:
    page = _PAGE.read_text()
    rows = re.findall(r"^\| `[\w-]+` \|.*$", page, re.MULTILINE)
    assert len(rows) >= 75
    assert "none is wrong" in page
    assert not [row for row in rows if re.search("logits|faults|error|differs", row)]
