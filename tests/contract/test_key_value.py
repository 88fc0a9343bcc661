"""KeyValue: the same on memory and on NATS."""

from __future__ import annotations

import asyncio

import pytest

from evomerge_common.errors import InvalidInput
from evomerge_common.runtime.ports_factory import Ports


async def test_create_once(ports: Ports) -> None:
    assert await ports.kv.get("scores", "a.b") is None
    assert await ports.kv.create("scores", "a.b", b"one")
    assert not await ports.kv.create("scores", "a.b", b"two")
    found = await ports.kv.get("scores", "a.b")
    assert found is not None
    assert found[0] == b"one"
    assert await ports.kv.get("runs", "a.b") is None  # buckets are apart


async def test_update_needs_the_revision(ports: Ports) -> None:
    await ports.kv.create("runs", "r", b"1")
    _, revision = await ports.kv.get("runs", "r") or (b"", 0)
    assert await ports.kv.update("runs", "r", b"2", revision=revision)
    assert not await ports.kv.update("runs", "r", b"stale", revision=revision)
    value, later = await ports.kv.get("runs", "r") or (b"", 0)
    assert value == b"2"
    assert later > revision


async def test_many_creators_one_wins(ports: Ports) -> None:
    answers = await asyncio.gather(*(ports.kv.create("results", "job", bytes([i])) for i in range(8)))
    assert answers.count(True) == 1
    assert await ports.kv.get("results", "job") is not None


async def test_delete_and_create_again(ports: Ports) -> None:
    await ports.kv.create("models", "m", b"1")
    await ports.kv.delete("models", "m")
    await ports.kv.delete("models", "m")  # gone already
    assert await ports.kv.get("models", "m") is None
    assert await ports.kv.keys("models") == []
    assert await ports.kv.create("models", "m", b"2")


async def test_keys_are_sorted(ports: Ports) -> None:
    assert await ports.kv.keys("models") == []
    for key in ("b", "a", "c/d.e=f"):
        await ports.kv.create("models", key, b"")
    assert await ports.kv.keys("models") == ["a", "b", "c/d.e=f"]
    assert (await ports.kv.get("models", "a") or (b"?", 0))[0] == b""


async def test_bytes_come_back_as_they_were(ports: Ports) -> None:
    value = bytes(range(256)) * 100
    await ports.kv.create("results", "bytes", value)
    assert (await ports.kv.get("results", "bytes") or (b"", 0))[0] == value


@pytest.mark.parametrize("key", ["", "a b", "a..b", ".a", "a.", "*", "a>"])
async def test_bad_keys(ports: Ports, key: str) -> None:
    with pytest.raises(InvalidInput, match="key"):
        await ports.kv.create("runs", key, b"")


async def test_bad_bucket(ports: Ports) -> None:
    with pytest.raises(InvalidInput, match="did you mean 'scores'"):
        await ports.kv.get("score", "a")
