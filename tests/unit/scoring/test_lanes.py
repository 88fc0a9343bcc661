"""Batches that are read side by side, each by one thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_scoring.asking import sums_of
from evomerge_scoring.batches import share
from evomerge_scoring.lanes import in_lanes
from evomerge_scoring.loaded import TREE_TYPES
from evomerge_scoring.scorer import Scorer
from helpers.scoring import resident
from helpers.tiny_models import CHOICES, make


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", sorted(TREE_TYPES))
def test_lanes_show_in_no_score(tmp_path: Path, kind: str, threads: int) -> None:
    scorer = Scorer(device="cpu")
    model: Any = resident(scorer).load_folder(make(tmp_path, kind))
    items = [(item["prompt"] * (1 + n % 2), item["choices"]) for n, item in enumerate(CHOICES * 4)]
    encoded = scorer.encoder(model).choices(items)
    assert model.lanes == threads
    beside = sums_of(model, encoded, 4)
    assert beside == sums_of(model, encoded, 4), "bit for bit"
    torch.set_num_threads(1)
    assert model.lanes == 1
    one_by_one = sums_of(model, encoded, 1)
    for some, alone in zip(beside, one_by_one, strict=True):
        assert some == pytest.approx(alone, abs=1e-4)


def test_a_model_whose_forward_pass_writes_into_it_has_one_lane(tmp_path: Path, threads: int) -> None:
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model: Any = resident(Scorer(device="cpu")).load_folder(make(tmp_path, "llama", rope_parameters=scaled))
    assert threads > 1
    assert model.lanes == 1


def test_results_come_in_order_and_each_lane_has_one_thread(threads: int) -> None:
    def work(number: int) -> tuple[int, int]:
        time.sleep(0.02 * (3 - number % 3))
        return number, torch.get_num_threads()

    assert list(in_lanes(work, range(7), threads)) == [(number, 1) for number in range(7)]
    assert list(in_lanes(work, range(2), 1)) == [(0, threads), (1, threads)]
    assert torch.get_num_threads() == threads

    def broken(number: int) -> int:
        if number == 1:
            raise ValueError("lane 1")
        return number

    with pytest.raises(ValueError, match="lane 1"):
        list(in_lanes(broken, range(7), threads))
    assert torch.get_num_threads() == threads


def test_each_lane_gets_as_many_batches_as_the_others() -> None:
    assert [share(rows, 16, 2) for rows in (1, 2, 31, 32, 33, 100)] == [1, 1, 16, 16, 9, 13]
    assert share(100, 16, 1) == 16
    for rows in range(1, 200):
        for lanes in (2, 3, 8):
            assert 1 <= share(rows, 16, lanes) <= 16
