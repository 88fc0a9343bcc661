"""A score is known to everyone, once and for all."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import Task, credit_of
from evomerge_common.runtime.ports_factory import memory_ports
from evomerge_evaluator.fitness_cache import FitnessCache, Scores, item_digests
from helpers.every_kind import every_kind

SUITE = Suite.from_dict(
    {"tasks": [{"name": "e", "kind": "exact_match", "items": [{"prompt": str(n), "answer": "x"} for n in range(9)]}]}
)
TASK = SUITE.tasks[0]
KEYS = item_digests(TASK, TASK.items)


def test_what_makes_an_items_score_makes_its_digest() -> None:
    first = TASK.items[:1]
    same = [replace(TASK, name="other"), replace(TASK, weight=7.0), replace(TASK, items=())]
    other = [replace(TASK, max_new_tokens=5), replace(TASK, stop=("x",)), replace(TASK, chat=True)]
    named = (replace(first[0], id="another id"),)
    assert {item_digests(task, first) for task in same} == {item_digests(TASK, named)} == {KEYS[:1]}
    assert len({item_digests(task, first) for task in (TASK, *other)}) == 4
    assert len(set(KEYS)) == 9


def test_partial_credit_is_another_way_to_ask() -> None:
    """Whether a search is steered by it changes no score; what it is has a digest of its own."""
    assert item_digests(replace(TASK, fitness="graded"), TASK.items) == KEYS
    assert not set(item_digests(credit_of(TASK), TASK.items)) & set(KEYS)


def test_where_items_depend_on_each_other_their_company_counts() -> None:
    def task(*labels: str) -> Task:
        items = [{"text": f"about {label}", "label": label} for label in labels]
        data = {"holdout": 0, "tasks": [{"name": "t", "kind": "classification", "items": items}]}
        return Suite.from_dict(data).tasks[0]

    small, large = task(" x", " y"), task(" x", " y", " z")
    assert item_digests(small, small.items)[0] != item_digests(large, large.items)[0]


def test_items_of_every_kind_keep_their_digests() -> None:
    """Scores that are remembered stay good: a change here means that SCORING must be raised."""
    found = {
        task.name: hashlib.sha256(b"".join(item_digests(task, task.items))).hexdigest()[:16]
        for task in every_kind().tasks
    }
    assert found == {
        "choices": "6d175ce5770c4551", "exact": "03f2d4cb86d94d2f", "bits": "0290bbd70db0c29e",
        "code": "ece1b906d85966b6", "topics": "d9c6bf4af3916751", "labelled": "474e634d80a2a4cc",
        "answers": "a795d0c08a347eec", "prose": "98cbb8b7440576f9", "order": "0667a030ee883c69",
        "rules": "d8ed1a3de27a093f", "harness": "4f657493b98d470e", "own": "c2e88d8f000c934a",
        "speed": "d90b23bc28472625", "size": "09ffe123baa417dd",
    }  # fmt: skip


def test_scores_survive_as_32_bit_numbers_and_nonsense_is_nothing() -> None:
    scores = Scores({KEYS[0]: 0.5, KEYS[1]: 0.25}, "cpu")
    assert Scores.decode(scores.encode()) == scores
    assert Scores.decode(Scores().encode()) == Scores()
    for data in (b"", b"{}", b"[]", b'{"device": "", "digests": "AAAA", "scores": "AAAAAA=="}', b"\xff"):
        assert Scores.decode(data) == Scores()


async def test_the_first_score_of_an_item_wins(tmp_path: Path) -> None:
    ports = memory_ports(tmp_path)
    one, two = FitnessCache(ports.kv), FitnessCache(ports.kv)
    assert (await one.add("r", Scores({KEYS[0]: 1.0}, "a"))).items == {KEYS[0]: 1.0}
    assert (await two.add("r", Scores({KEYS[0]: 0.0, KEYS[1]: 1.0}, "b"))).items == {KEYS[0]: 1.0, KEYS[1]: 1.0}
    assert (await one.known("r")).items == {KEYS[0]: 1.0, KEYS[1]: 1.0}
    assert (await one.known("another")).items == {}


async def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    ports = memory_ports(tmp_path)
    folder = tmp_path / "home"
    writers = [FitnessCache(ports.kv, folder).add("r", Scores({key: 1.0}, "a")) for key in KEYS]
    await asyncio.gather(*writers)
    assert set((await FitnessCache(ports.kv).known("r")).items) == set(KEYS)
    assert set((await FitnessCache(memory_ports(tmp_path / "x").kv, folder).known("r")).items) == set(KEYS)


async def test_a_home_is_shared_by_stacks_and_no_run_needs_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    await FitnessCache(memory_ports(tmp_path / "a").kv, home).add("r", Scores({KEYS[0]: 1.0}, "cpu"))
    other = FitnessCache(memory_ports(tmp_path / "b").kv, home)
    assert await other.known("r") == Scores({KEYS[0]: 1.0}, "cpu")
    (file,) = home.glob("*/r.json")
    file.write_text("damaged")
    assert await other.known("r") == Scores()
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    lone = FitnessCache(memory_ports(tmp_path / "c").kv, blocked / "home")
    assert (await lone.add("r", Scores({KEYS[0]: 1.0}))).items == {KEYS[0]: 1.0}


async def test_an_entry_too_long_for_the_broker_costs_time_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge_evaluator.fitness_cache.MAX_BYTES", 10)
    cache = FitnessCache(memory_ports(tmp_path).kv)
    assert (await cache.add("r", Scores({KEYS[0]: 1.0}))).items == {KEYS[0]: 1.0}
    assert (await cache.known("r")).items == {}


async def test_scores_of_another_dtype_are_not_known(tmp_path: Path) -> None:
    """Entries of before there was a choice count for the dtype that their device names."""
    home = tmp_path / "home"
    cache = FitnessCache(memory_ports(tmp_path).kv, home)
    await cache.add("r", Scores({KEYS[0]: 1.0}, "cpu float32 2 threads"))
    assert (await cache.known("r", "bfloat16")).items == {}
    await cache.add("r", Scores({KEYS[0]: 0.5}, "cpu bfloat16 2 threads"), "bfloat16")
    for known in (cache, FitnessCache(memory_ports(tmp_path / "other").kv, home)):
        assert (await known.known("r", "float32")).items == {KEYS[0]: 1.0}
        assert (await known.known("r", "bfloat16")).items == {KEYS[0]: 0.5}

    old = home / "ol" / "old.json"
    old.parent.mkdir()
    old.write_bytes(Scores({KEYS[0]: 1.0}, "NVIDIA H100 80GB HBM3 bfloat16").encode())
    assert (await cache.known("old", "float32")).items == {}
    await cache.add("old", Scores({KEYS[0]: 0.25}, "cpu float32 1 thread"), "float32")
    other = FitnessCache(memory_ports(tmp_path / "third").kv, home)
    assert (await other.known("old", "float32")).items == {KEYS[0]: 0.25}
