"""The table of GGUF's architectures agrees with the gguf package, with transformers and with itself."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import transformers

from evomerge_models.gguf.architectures import Architecture
from evomerge_models.gguf.lookup import WRAPPERS
from evomerge_models.gguf.table import ARCHITECTURES
from helpers import gguf_cases

KEYS = {key for group in vars(gguf.Keys).values() if isinstance(group, type) for key in vars(group).values()}


def each(test: object) -> object:
    return pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=list(ARCHITECTURES))(test)


@each
def test_every_name_is_one_of_the_gguf_package(row: Architecture) -> None:
    architecture = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == row.name)
    names = {gguf.TENSOR_NAMES[one] for one in gguf.MODEL_TENSORS[architecture]}
    assert {f"blk.{{bid}}.{part.partition('.')[0]}" for part in row.inner} | {*row.outer} <= names
    assert {f"{{arch}}.{one}" for one in [*row.writes, *(one.ours for one in row.fields)]} <= KEYS


@each
def test_every_row_is_a_class_of_transformers_with_these_settings(row: Architecture) -> None:
    made = transformers.CONFIG_MAPPING[row.model_type]()
    assert hasattr(transformers, row.hf_class)
    known = {*made.to_dict(), *made.attribute_map}
    for one in row.fields:
        assert known & {*one.theirs} or not one.theirs, one
    assert {*row.flags} <= known
    assert {*row.fixed} - known <= {"position_embedding_type"}


@each
def test_names_lead_there_and_back(row: Architecture) -> None:
    for part in row.inner:
        ours = f"blk.3.{part}" if "." in part else f"blk.3.{part}.weight"
        place = row.to_hf(ours)
        assert place is not None
        found = row.places(place.name.replace("*", "2"))
        assert ours in [one.name for one in found]
        assert next(one for one in found if one.name == ours).expert == (2 if "*" in place.name else -1)


@each
def test_rows_change_places_and_none_is_lost(row: Architecture) -> None:
    for part, rows in (("attn_q", 32), ("attn_k", 16), ("attn_qkv", 64)):
        order = row.row_order(f"blk.0.{part}.weight", rows, 4, 2)
        assert order is None or sorted(order) == list(range(rows))


def test_halves_become_neighbours() -> None:
    order = ARCHITECTURES["llama"].row_order("blk.0.attn_k.weight", 8, 4, 1)
    assert order is not None
    assert order.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_every_architecture_is_judged_by_llama_cpp() -> None:
    assert {kind for kind, _ in gguf_cases.CASES.values()} == {*ARCHITECTURES} - {"bert"}


def test_the_readme_names_them_all() -> None:
    readme = (Path(__file__).parents[3] / "libs/evomerge_models/README.md").read_text()
    listed, _, wrapped = readme.partition("written and read: ")[2].partition("; and the text half of ")
    assert listed.split() == ", ".join(sorted(ARCHITECTURES)).split()
    assert wrapped.partition(". ")[0].split() == ", ".join(sorted(WRAPPERS)).split()
