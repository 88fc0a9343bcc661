"""The store by itself: local folders, digests, room, eviction."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from evomerge_common.errors import (
    DiskFull,
    InvalidInput,
    ModelError,
    ModelNotFound,
    NotFound,
    ShapeMismatch,
    Unavailable,
)
from evomerge_downloader.fetch import Fetcher
from evomerge_models import hashes
from evomerge_models.hub import Hub, RemoteModel
from evomerge_models.pair import read_pair
from evomerge_models.store import WritableModelStore
from helpers.hub_server import write_adapter, write_model_folder


class NoHub(Hub):
    """Fails the test when a local path is asked for on the hub."""

    def model(self, repository: str, revision: str, file: str = "") -> RemoteModel:
        raise AssertionError(f"asked the hub for {repository}@{revision}")


class DeadHub(Hub):
    def model(self, repository: str, revision: str, file: str = "") -> RemoteModel:
        raise Unavailable("no network")


@pytest.fixture
def store(tmp_path: Path) -> WritableModelStore:
    return WritableModelStore(tmp_path / "store")


@pytest.fixture
def fetcher(store: WritableModelStore) -> Fetcher:
    return Fetcher(store, NoHub())


def old(folder: Path) -> None:
    """Long ago enough for a hash to be remembered."""
    for path in folder.iterdir():
        os.utime(path, (1_000_000, 1_000_000))


def test_local_folder_is_linked(tmp_path: Path, store: WritableModelStore, fetcher: Fetcher) -> None:
    folder = write_model_folder(tmp_path / "a b+c@d")
    model = fetcher.fetch(str(folder))
    entry = store.root / model.digest.removeprefix("sha256:")
    assert entry.is_symlink()
    assert entry.resolve() == folder
    assert model.uri == entry.as_uri()
    assert (model.reference, model.commit, model.parameters, model.num_layers) == (str(folder), "", 320, 2)
    assert store.list() == [model]
    assert store.get(model.digest) == model


def test_digest_is_the_content(tmp_path: Path, fetcher: Fetcher) -> None:
    one = fetcher.fetch(str(write_model_folder(tmp_path / "a")))
    same = write_model_folder(tmp_path / "b")
    (same / "notes.txt").write_text("does not count")
    assert fetcher.fetch(str(same)).digest == one.digest
    assert fetcher.fetch(str(write_model_folder(tmp_path / "c", fill=1))).digest != one.digest


def test_copies_when_asked(tmp_path: Path, store: WritableModelStore) -> None:
    folder = write_model_folder(tmp_path / "a")
    linked = Fetcher(store, NoHub()).fetch(str(folder))
    copied = Fetcher(store, NoHub(), link=False).fetch(str(folder))
    entry = store.root / copied.digest.removeprefix("sha256:")
    assert copied.digest == linked.digest
    assert not entry.is_symlink()
    shutil.rmtree(folder)
    assert store.get(copied.digest) == copied
    assert sorted(path.name for path in entry.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert not [path for path in (store.root / ".incoming").iterdir() if path.is_dir()]


def test_second_time_reads_nothing(tmp_path: Path, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model_folder(tmp_path / "a")
    old(folder)
    read: list[str] = []
    real = hashes.sha256_file

    def reading(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(hashes, "sha256_file", reading)
    first = fetcher.fetch(str(folder))
    assert len(read) == 3
    assert fetcher.fetch(str(folder)) == first
    assert len(read) == 3
    (folder / "tokenizer.json").write_text('{"changed": 1}')
    assert fetcher.fetch(str(folder)).digest != first.digest
    assert read[3:] == ["tokenizer.json"]


def test_link_follows_the_files_not_the_name(tmp_path: Path, store: WritableModelStore, fetcher: Fetcher) -> None:
    first = write_model_folder(tmp_path / "a")
    model = fetcher.fetch(str(first))
    (first / "tokenizer.json").write_text('{"changed": 1}')
    second = write_model_folder(tmp_path / "b")
    assert fetcher.fetch(str(second)).digest == model.digest
    assert (store.root / model.digest.removeprefix("sha256:")).resolve() == second


def test_relative_folder_that_looks_like_a_hub_id(
    tmp_path: Path, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model_folder(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert fetcher.fetch("org/name").architecture == "LlamaForCausalLM"


@pytest.mark.parametrize("reference", ["./none", "/none/at/all", "~/none-here", "a/b/c", "", "  ", "bad name"])
def test_what_is_neither_folder_nor_hub_id(fetcher: Fetcher, reference: str) -> None:
    with pytest.raises(ModelNotFound):
        fetcher.fetch(reference)


def test_an_adapter_on_its_base_is_an_entry_of_its_own(
    tmp_path: Path, store: WritableModelStore, fetcher: Fetcher
) -> None:
    base = write_model_folder(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base="../base")
    model = fetcher.fetch(f"{base}+{adapter}")
    whole = fetcher.fetch(str(base))
    assert (model.architecture, model.num_layers, model.base) == (whole.architecture, whole.num_layers, whole.digest)
    assert model.digest != whole.digest
    folder = store.folder(model)
    assert read_pair(folder) == (base, adapter)
    assert (folder / "config.json").read_text() == (base / "config.json").read_text()
    assert not list(folder.glob("*.safetensors"))
    assert fetcher.fetch(str(adapter)).digest == model.digest, "alone, it is on the base that it names"
    assert store.get(model.digest).base == whole.digest
    copied = Fetcher(store, NoHub(), link=False).fetch(f"{base}+{adapter}")
    assert copied.digest == model.digest
    store.evict(whole.digest)
    with pytest.raises(NotFound):
        store.get(model.digest)


def test_an_adapter_alone_is_on_the_base_that_the_run_names(tmp_path: Path, fetcher: Fetcher) -> None:
    base = write_model_folder(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base="/gone")
    assert fetcher.fetch(str(adapter), str(base)).base == fetcher.fetch(str(base)).digest
    assert fetcher.fetch(str(base), str(base)).base == ""
    with pytest.raises(ModelNotFound):
        fetcher.fetch(str(adapter))


def test_what_is_no_pair_is_refused(tmp_path: Path, fetcher: Fetcher) -> None:
    base = write_model_folder(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter")
    other = write_adapter(tmp_path / "other", "other")
    with pytest.raises(ModelError, match="is no LoRA adapter"):
        fetcher.fetch(f"{base}+{base}")
    with pytest.raises(ModelError, match="is an adapter itself"):
        fetcher.fetch(f"{adapter}+{adapter}")
    with pytest.raises(ShapeMismatch, match=r"'other', but .* has no tensor"):
        fetcher.fetch(f"{base}+{other}")
    with pytest.raises(ModelError, match="does not tell its base"):
        fetcher.fetch(str(adapter))


def test_disk_full_names_need_and_free(
    tmp_path: Path, store: WritableModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model_folder(tmp_path / "a")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    with pytest.raises(DiskFull, match=r"needs 0\.00 GB .* has 0\.01 GB free"):
        Fetcher(store, NoHub(), link=False).fetch(str(folder))
    assert store.list() == []


def test_what_an_earlier_copy_left_does_not_keep_the_next_from_its_room(
    tmp_path: Path, store: WritableModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher, copy = Fetcher(store, NoHub(), link=False), shutil.copyfile
    folder = write_model_folder(tmp_path / "model")

    def left() -> list[Path]:
        return [path for path in (store.root / ".incoming").glob("*/*") if path.is_file()]

    def cut(source: Path, target: Path) -> None:
        copy(source, target)
        raise error

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0 if left() else 1 << 40))
    monkeypatch.setattr("shutil.copyfile", cut)
    for error, stays in ((OSError(28, "No space left on device"), 0), (OSError(5, "I/O error"), 1)):
        with pytest.raises(OSError, match=error.strerror):
            fetcher.fetch(str(folder))
        assert len(left()) == stays
    monkeypatch.setattr("shutil.copyfile", copy)
    assert fetcher.fetch(str(folder)).bytes > 0


def test_evict(tmp_path: Path, store: WritableModelStore, fetcher: Fetcher) -> None:
    folder = write_model_folder(tmp_path / "a")
    linked = fetcher.fetch(str(folder))
    assert store.evict(linked.digest) == 0
    assert (folder / "config.json").is_file()
    copied = Fetcher(store, NoHub(), link=False).fetch(str(folder))
    assert store.evict(copied.digest) == copied.bytes
    with pytest.raises(NotFound, match="download it first"):
        store.evict(copied.digest)


@pytest.mark.parametrize("digest", ["", "sha256:../../x", "sha256:" + "g" * 64])
def test_digest_is_checked_before_it_becomes_a_path(store: WritableModelStore, digest: str) -> None:
    with pytest.raises(InvalidInput):
        store.get(digest)


def test_dead_hub_without_a_copy(store: WritableModelStore) -> None:
    with pytest.raises(Unavailable):
        Fetcher(store, DeadHub()).fetch("org/name")
