"""The benchmarks' second family: its items are four-choice ones, enough of them, and none is a training row."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from evomerge_common.domain.task import Item

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "second_family.py"


@pytest.fixture(scope="module")
def family() -> ModuleType:
    spec = importlib.util.spec_from_file_location("second_family", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [0, 1])
def test_no_suite_item_is_a_training_row(family: ModuleType, seed: int) -> None:
    for task in family.build_data(seed):
        trained = {row.prompt for row in (*task.rows, *task.base_rows)}
        asked = [item["prompt"] for item in task.items]
        assert len(set(asked)) == len(asked) == family.ITEMS[task.name]
        assert not trained & set(asked), task.name
        assert all(len(set(item["choices"])) == 4 for item in task.items)


def test_the_search_has_300_items_and_the_same_seed_gives_the_same_ones(family: ModuleType) -> None:
    tasks = family.build_data(0)
    items = [Item(id=item["id"], content=item) for task in tasks for item in task.items]
    assert sum(not item.is_holdout(seed=0, share=0.4) for item in items) >= 300
    assert tasks == family.build_data(0)
    assert tasks != family.build_data(1)
