"""A family of each kind, tiny and random; `make families` writes the table of all."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from helpers import families

# Dense, alternating, mixture of experts, hybrid, state-space, encoder, encoder-decoder, with a tower as deep.
_ONE_OF_EACH = (
    "llama", "cohere2", "qwen2_moe", "granitemoehybrid", "mamba2", "bert", "t5", "qwen2_vl", "mistral3", "gemma3n_text",
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
