"""A suite's data from a hub: fetched before anything is started, so that no service needs the hub for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evomerge_common.runtime.settings import Settings
from evomerge_common.runtime.suite_file import MAX_DATA_BYTES, Fetch


def fetch_data(say: Callable[[str], None]) -> Fetch:
    """Makes what brings files of datasets into this machine's store.

    Args:
        say: takes a sentence for each file: the commit that it is of.

    """

    def fetch(url: str) -> Path:
        from evomerge_models.datasets import DataReference, DatasetFiles
        from evomerge_models.hub import Hub
        from evomerge_models.store import WritableModelStore

        settings = Settings.from_env()
        wanted = DataReference.parse(url)
        store = WritableModelStore(settings.model_store, settings.model_store_quota)
        path, commit = DatasetFiles(store, Hub(), MAX_DATA_BYTES).fetch(wanted)
        if wanted.revision != commit:
            say(f"{url} is of commit {commit}; write @{commit} behind it for the same items ever after")
        return path

    return fetch
