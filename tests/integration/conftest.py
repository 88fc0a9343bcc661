"""The downloader's own parts over the hub of a test module, its fixture `hub`."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge_downloader.fetch import Fetcher
from evomerge_models.hub import Hub
from evomerge_models.store import WritableModelStore
from helpers.hub_server import HubServer


@pytest.fixture
def store(tmp_path: Path) -> WritableModelStore:
    return WritableModelStore(tmp_path / "store")


@pytest.fixture
def fetcher(hub: HubServer, store: WritableModelStore) -> Fetcher:
    return Fetcher(store, Hub(hub.endpoint))
