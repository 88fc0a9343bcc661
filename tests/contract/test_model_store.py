"""ModelStore: what every adapter does, the one that the downloader writes included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from evomerge_common.adapters.filesystem import FilesystemModelStore
from evomerge_common.adapters.memory_stores import MemoryModelStore
from evomerge_common.domain.messages import Model
from evomerge_common.errors import InvalidInput, ModelNotFound, UnservedScheme
from evomerge_common.ports import ModelStore
from evomerge_models.store import WritableModelStore

DIGEST = "sha256:" + "ab" * 32
FILES = {"config.json": b"{}", "model.safetensors": b"weights"}
Add = Callable[[str, Mapping[str, bytes]], object]


@pytest.fixture(params=["folder", "writable folder", "memory"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ModelStore, Add]:
    """An empty store, and what puts a model into it."""
    if request.param == "memory":
        memory = MemoryModelStore(tmp_path / "local")
        return memory, memory.add
    kind = FilesystemModelStore if request.param == "folder" else WritableModelStore
    store = kind(tmp_path / "my models")

    def add(digest: str, files: Mapping[str, bytes]) -> None:
        folder = store.root / digest.removeprefix("sha256:")
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)

    return store, add


def test_a_model_is_opened_by_the_uri_of_its_digest(stores: tuple[ModelStore, Add]) -> None:
    store, add = stores
    add(DIGEST, FILES)
    uri = store.uri(DIGEST)
    assert store.uri(DIGEST.removeprefix("sha256:")) == uri
    folder = store.open(uri)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


def test_a_model_that_is_not_there(stores: tuple[ModelStore, Add]) -> None:
    store, _ = stores
    for uri in (store.uri(DIGEST), ""):
        with pytest.raises(ModelNotFound, match="download the model here first"):
            store.open(uri)


def test_a_model_of_another_host(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="another host"):
        FilesystemModelStore(tmp_path).open("file://elsewhere/models/x")


@pytest.mark.parametrize("scheme", ["s3", "https"])
def test_a_scheme_that_nobody_serves(stores: tuple[ModelStore, Add], scheme: str) -> None:
    with pytest.raises(UnservedScheme, match=f"^{scheme}://bucket/x: .*serves"):
        stores[0].open(f"{scheme}://bucket/x")


@pytest.mark.parametrize("digest", ["", "sha256:", "../x", "sha256:" + "g" * 64, "AB" * 32])
def test_a_digest_is_checked_before_it_becomes_a_uri(stores: tuple[ModelStore, Add], digest: str) -> None:
    with pytest.raises(InvalidInput, match="is no digest"):
        stores[0].uri(digest)


def test_what_the_downloader_puts_the_others_open(tmp_path: Path) -> None:
    store = WritableModelStore(tmp_path / "store")
    with store.incoming("mine") as folder:
        for name, data in FILES.items():
            (folder / name).write_bytes(data)
        model = store.put(folder, Model(reference="mine"), tuple(FILES), link=False)
    reader = FilesystemModelStore(tmp_path / "store")
    assert reader.uri(model.digest) == model.uri
    assert (reader.open(model.uri) / "model.safetensors").read_bytes() == b"weights"
