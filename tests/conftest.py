"""Fixtures of every part: a real nats-server where a test needs one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge_cli.stack.broker import Broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One nats-server for all tests that leave it alive; they share its streams, so they use ids of their own."""
    server = Broker(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[Broker]:
    """A nats-server of the test's own, to `kill()` and `start()` again: same port, same store."""
    server = Broker(tmp_path / "nats")
    server.start()
    yield server
    server.stop()
