"""Models in the hub's own client's cache are used where they lie; the store keeps to its quota."""

import multiprocessing
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import evomerge_models.hub
from evomerge_cli.commands import merge
from evomerge_cli.console import Console
from evomerge_common.domain.messages import DownloadJob, Event, Job, Model, RunFinished, RunStarted
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import DiskFull, InvalidInput, ModelError, ModelNotFound, NotFound, OverQuota, Unavailable
from evomerge_common.runtime.ports_factory import memory_ports
from evomerge_downloader.fetch import Fetcher
from evomerge_downloader.handlers import DownloadHandler
from evomerge_downloader.run_pins import RunPins
from evomerge_models.hub import Hub
from evomerge_models.pins import USER, run_owner
from evomerge_models.store import WritableModelStore
from evomerge_models.survey import Survey
from helpers.hub_server import HubServer, write_adapter, write_model_folder, write_safetensors
from helpers.tiny_gguf import tiny_model


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    write_model_folder(tmp_path / "hub" / "org" / "small")
    with HubServer(tmp_path / "hub") as server:
        yield server


def in_cache(hub: HubServer, name: str = "org/small", *, without: tuple[str, ...] = (), revision: str = "") -> Path:
    """Has the client fetch a repository's files into its cache; returns the snapshot. The counter starts anew."""
    from huggingface_hub import hf_hub_download

    repository = hub.repository(name)
    assert repository is not None
    for file in repository.hashes:
        if file not in without:
            got = hf_hub_download(name, file, revision=revision or None, endpoint=hub.endpoint)
    hub.sent = 0
    hub.requests.clear()
    return Path(str(got)[: str(got).index(repository.commit) + len(repository.commit)])


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_cached_model_is_used_where_it_lies(hub: HubServer, store: WritableModelStore, fetcher: Fetcher) -> None:
    snapshot = in_cache(hub)
    model = fetcher.fetch("org/small")
    assert (hub.sent, hub.files_fetched()) == (0, [])
    entry = store.folder(model)
    assert entry.is_symlink()
    assert entry.resolve() == snapshot.resolve()
    assert store.bytes_of(model) == 0
    assert model.commit == snapshot.name
    other = WritableModelStore(store.root.parent / "other")
    shutil.rmtree(store.root.parent / "cache")
    assert Fetcher(other, Hub(hub.endpoint)).fetch("org/small").digest == model.digest
    assert hub.sent > 0


def test_a_cached_model_that_is_deleted_is_fetched(hub: HubServer, store: WritableModelStore, fetcher: Fetcher) -> None:
    snapshot = in_cache(hub)
    model = fetcher.fetch("org/small")
    (snapshot / "model.safetensors").resolve().unlink()  # a link to nothing is left
    with pytest.raises(NotFound):
        store.get(model.digest)
    assert fetcher.fetch("org/small").digest == model.digest
    assert hub.files_fetched() == ["model.safetensors"]
    assert not store.folder(model).is_symlink()
    shutil.rmtree(snapshot.parents[1])
    assert store.get(model.digest)


def test_of_a_part_in_the_cache_the_rest_is_fetched(
    hub: HubServer, store: WritableModelStore, fetcher: Fetcher
) -> None:
    snapshot = in_cache(hub, without=("config.json",))
    (snapshot / "tokenizer.json").resolve().write_text("{ ")  # spoilt: neither used nor changed
    model = fetcher.fetch("org/small")
    assert "model.safetensors" not in hub.files_fetched()
    entry = store.folder(model)
    assert entry.joinpath("model.safetensors").samefile(snapshot / "model.safetensors")
    assert (snapshot / "tokenizer.json").read_text() == "{ "
    shutil.rmtree(snapshot.parents[1])
    assert store.get(model.digest)


def test_a_copying_store_fetches_nothing_of_what_is_cached(hub: HubServer, store: WritableModelStore) -> None:
    in_cache(hub)
    model = Fetcher(store, Hub(hub.endpoint), link=False).fetch("org/small")
    assert (hub.sent, store.folder(model).is_symlink()) == (0, False)


@pytest.mark.parametrize("revision", ["", "refs/pr/1"])
def test_offline_the_cache_tells_the_commit(
    hub: HubServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    snapshot = in_cache(hub)
    refs = snapshot.parents[1] / "refs"
    if revision:
        (refs / revision).parent.mkdir(parents=True)
        (refs / revision).write_text(snapshot.name)
    offline(monkeypatch)
    name = f"org/small@{revision}" if revision else "org/small"
    assert fetcher.fetch(name).commit == snapshot.name
    assert hub.requests == []
    for other in ("org/small@nowhere", "org/small@../../blobs", "org/other"):
        with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE"):
            fetcher.fetch(other)


def test_a_survey_takes_what_is_cached_where_the_hub_cannot_be_asked(
    hub: HubServer, store: WritableModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, other = ModelReference.parse("org/small"), ModelReference.parse("org/other")
    snapshot = in_cache(hub)
    with Survey(Hub(hub.endpoint), store) as survey:
        survey.look([small])
        assert survey.missing_bytes == 0
    assert hub.sent == 0
    offline(monkeypatch)
    with Survey(Hub(hub.endpoint), store) as survey:
        survey.look([small])
        assert survey.models["org/small"].base.folder == snapshot
        with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE"):
            survey.look([other])


def test_offline_a_cached_model_must_be_whole_and_sound(
    hub: HubServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = in_cache(hub)
    offline(monkeypatch)
    weights = (snapshot / "model.safetensors").resolve()
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"\1")
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE"):
        fetcher.fetch("org/small")
    weights.unlink()
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE"):
        fetcher.fetch("org/small")


# ---- GGUF files by id ----


def test_a_gguf_file_of_a_hub(hub: HubServer, store: WritableModelStore, fetcher: Fetcher) -> None:
    folder = hub.root / "org" / "files"
    (folder / "deep").mkdir(parents=True)
    tiny_model(folder / "tiny-f32.gguf")
    tiny_model(folder / "deep" / "tiny.gguf")
    shutil.copy(folder / "tiny-f32.gguf", folder / "big-00001-of-00002.gguf")
    repository = hub.repository("org/files")
    assert repository is not None
    with pytest.raises(ModelError, match=r"GGUF files only; name one .*org/name/big-00001-of-00002\.gguf.*tiny-f32"):
        fetcher.fetch("org/files")
    with pytest.raises(ModelNotFound, match=r"has no file other\.gguf; name one of them.*tiny-f32\.gguf"):
        fetcher.fetch("org/files/other.gguf")
    with pytest.raises(ModelError, match="part of a GGUF file"):
        fetcher.fetch("org/files/big-00001-of-00002.gguf")
    assert hub.sent == 0
    model = fetcher.fetch("org/files/tiny-f32.gguf")
    assert (model.reference, model.commit) == ("org/files/tiny-f32.gguf", repository.commit)
    assert (store.folder(model) / "model.safetensors").is_file()
    sent = hub.sent
    assert fetcher.fetch(f"org/files/tiny-f32.gguf@{repository.commit}").digest == model.digest
    assert fetcher.fetch(str(folder / "tiny-f32.gguf")).digest == model.digest
    assert hub.sent == sent
    assert fetcher.fetch("org/files/deep/tiny.gguf").digest == model.digest
    assert [path.name for path in (store.root / ".incoming").iterdir() if path.is_dir()] == []


def test_a_cached_gguf_file_is_not_fetched(hub: HubServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub.root / "org" / "files").mkdir()
    tiny_model(hub.root / "org" / "files" / "tiny.gguf")
    snapshot = in_cache(hub, "org/files")
    assert fetcher.fetch("org/files/tiny.gguf").commit == snapshot.name
    assert hub.sent == 0
    offline(monkeypatch)
    assert fetcher.fetch("org/files/tiny.gguf").commit == snapshot.name


def test_an_adapter_and_its_base_at_revisions(hub: HubServer, fetcher: Fetcher) -> None:
    write_adapter(hub.root / "org" / "adapter", base="org/small")
    base, adapter = hub.repository("org/small"), hub.repository("org/adapter")
    assert base is not None
    assert adapter is not None
    model = fetcher.fetch(f"org/small@{base.commit}+org/adapter@{adapter.commit}")
    assert model.commit == adapter.commit
    assert model.base == fetcher.fetch("org/small").digest
    with pytest.raises(ModelNotFound):
        fetcher.fetch(f"org/small+org/adapter@{base.commit}")


# ---- quota ----


SIZE = 40_000


def large(folder: Path, fill: int) -> Path:
    write_model_folder(folder)
    write_safetensors(folder / "model.safetensors", {"a.weight": (100, 100)}, fill)
    return folder


@pytest.fixture
def small_store(hub: HubServer, tmp_path: Path) -> WritableModelStore:
    for number in range(4):
        large(hub.root / "org" / f"m{number}", number)
    return WritableModelStore(tmp_path / "small", quota=int(2.5 * SIZE))


def test_models_used_longest_ago_go_first(hub: HubServer, small_store: WritableModelStore) -> None:
    fetcher = Fetcher(small_store, Hub(hub.endpoint))

    def there() -> list[str]:
        return [model.reference for model in small_store.list()]

    for number in (0, 1):
        fetcher.fetch(f"org/m{number}")
        time.sleep(0.02)
    fetcher.fetch("org/m0")  # used again
    fetcher.fetch("org/m2")
    assert there() == ["org/m0", "org/m2"]
    small_store.pins.add(fetcher.fetch("org/m0").digest.removeprefix("sha256:"), USER)
    fetcher.fetch("org/m2")
    fetcher.fetch("org/m3")
    assert there() == ["org/m0", "org/m3"]
    sent = hub.sent
    small_store.pins.add(fetcher.fetch("org/m3").digest.removeprefix("sha256:"), run_owner("r"))
    with pytest.raises(DiskFull, match="in use or pinned"):
        fetcher.fetch("org/m1")
    assert there() == ["org/m0", "org/m3"]
    assert hub.sent == sent
    with pytest.raises(InvalidInput, match="kept by user"):
        small_store.evict(fetcher.fetch("org/m0").digest)


def test_a_model_larger_than_the_quota_is_refused_before_a_byte(hub: HubServer, tmp_path: Path) -> None:
    store = WritableModelStore(tmp_path / "tiny", quota=1000)
    with pytest.raises(OverQuota, match="EVOMERGE_MODEL_STORE_QUOTA"):
        Fetcher(store, Hub(hub.endpoint)).fetch("org/small")
    assert hub.files_fetched() == []
    folder = write_model_folder(tmp_path / "local")
    assert Fetcher(store, Hub(hub.endpoint)).fetch(str(folder)).bytes > 1000  # a link takes no room


def test_models_that_do_not_fit_together_are_told_at_the_look(hub: HubServer, small_store: WritableModelStore) -> None:
    with Survey(Hub(hub.endpoint), small_store) as survey:
        survey.look([ModelReference.parse(f"org/m{number}") for number in (0, 1)])
        survey.check_room()
        survey.look([ModelReference.parse("org/m2")])
        with pytest.raises(OverQuota, match="org/m0, org/m1, org/m2"):
            survey.check_room()


def test_a_source_found_by_its_content_stays_while_another_comes(
    hub: HubServer, small_store: WritableModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_MODEL_STORE", str(small_store.root))
    monkeypatch.setenv("EVOMERGE_MODEL_STORE_QUOTA", str(int(2.5 * SIZE)))
    monkeypatch.setattr(evomerge_models.hub, "Hub", partial(Hub, hub.endpoint))
    fetcher = Fetcher(small_store, Hub(hub.endpoint))
    first = fetcher.fetch("org/m0")
    time.sleep(0.02)
    fetcher.fetch("org/m1")
    sources = [ModelReference("org/m0", digest=first.digest), ModelReference("org/m2")]
    folders = merge.fetch(sources, Console())
    assert all((folder / "model.safetensors").is_file() for folder in folders.values())
    assert [model.reference for model in small_store.list()] == ["org/m0", "org/m2"]


def test_a_pair_keeps_its_parts(hub: HubServer, small_store: WritableModelStore) -> None:
    fetcher = Fetcher(small_store, Hub(hub.endpoint))
    write_adapter(hub.root / "org" / "adapter", size=100)
    pair = fetcher.fetch("org/m0+org/adapter")
    small_store.pins.add(pair.digest.removeprefix("sha256:"), USER)
    fetcher.fetch("org/m1")
    fetcher.fetch("org/m2")
    assert small_store.get(pair.base)
    small_store.pins.remove(pair.digest.removeprefix("sha256:"), USER)
    assert small_store.evict(pair.base) > SIZE  # the pair goes with it
    with pytest.raises(NotFound):
        small_store.get(pair.digest)


async def test_a_run_keeps_its_models_until_it_ends(
    hub: HubServer, small_store: WritableModelStore, tmp_path: Path
) -> None:
    ports = memory_ports(tmp_path / "ports")
    handler = DownloadHandler(Fetcher(small_store, Hub(hub.endpoint)))
    for number in (0, 1):
        await handler(Job(job_id=f"j{number}", run_id="r", payload=DownloadJob(reference=f"org/m{number}")))
    pins = RunPins(small_store, ports.log, ports.clock)
    await pins.settle()  # a run of another stack, for all that this log knows
    started = Event(run_id="r", time=0.0, worker="w", payload=RunStarted(spec_json="{}"))
    sequence = await ports.log.append_decision(started, expected_last=0)
    await pins.settle()
    with pytest.raises(DiskFull):
        await handler(Job(job_id="j2", run_id="other", payload=DownloadJob(reference="org/m2")))
    ended = Event(run_id="r", time=1.0, worker="w", payload=RunFinished())
    await ports.log.append_decision(ended, expected_last=sequence)
    await pins.settle()
    await handler(Job(job_id="j3", run_id="other", payload=DownloadJob(reference="org/m2")))
    assert small_store.pins.runs() == ["other"]


def fetch_many(root: str, endpoint: str, numbers: list[int]) -> None:
    """In a process of its own: each model is whole as long as it is held."""
    store = WritableModelStore(Path(root), quota=int(2.5 * SIZE))
    fetcher = Fetcher(store, Hub(endpoint))
    for number in numbers:
        with store.pins.of_process() as owner:
            try:
                model = fetcher.fetch(f"org/m{number}", owner=owner)
            except DiskFull:
                continue  # the others hold what there is
            time.sleep(0.01)
            data = (store.folder(model) / "model.safetensors").read_bytes()
            assert data.endswith(bytes([number]) * 1000)


def test_a_model_that_goes_before_it_is_taken_is_brought_again(
    hub: HubServer, small_store: WritableModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher = Fetcher(small_store, Hub(hub.endpoint))
    taking, evictions = small_store.take, iter((True, True, False, False, False))

    def late(digest: str, owner: str = "") -> Model:
        if next(evictions):
            small_store.evict(digest)
        return taking(digest, owner)

    monkeypatch.setattr(small_store, "take", late)
    assert small_store.get(fetcher.fetch("org/m0").digest)
    monkeypatch.setattr(small_store, "take", lambda digest, _: small_store.get("sha256:" + "0" * 64))
    with pytest.raises(Unavailable, match="so full"):
        fetcher.fetch("org/m1")


@pytest.mark.slow
def test_many_processes_share_a_small_store(hub: HubServer, small_store: WritableModelStore) -> None:
    orders = ([0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2], [1, 3, 0, 2, 1, 3])
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=fetch_many, args=(str(small_store.root), hub.endpoint, numbers)) for numbers in orders
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    taken = sum(small_store.bytes_of(model) for model in small_store.list())
    assert 0 < taken <= 2.5 * SIZE
    assert not list((small_store.root / ".pins").glob("*/*"))


def test_what_a_killed_eviction_left_goes(small_store: WritableModelStore, hub: HubServer) -> None:
    fetcher = Fetcher(small_store, Hub(hub.endpoint))
    name = fetcher.fetch("org/m0").digest.removeprefix("sha256:")
    (small_store.root / f"{name}.json").unlink()  # the first step of an eviction
    fetcher.fetch("org/m1")
    assert not (small_store.root / name).exists()
    assert fetcher.fetch("org/m0").digest == f"sha256:{name}"


def test_a_dead_process_holds_nothing(small_store: WritableModelStore, hub: HubServer) -> None:
    model = Fetcher(small_store, Hub(hub.endpoint)).fetch("org/m0")
    name = model.digest.removeprefix("sha256:")
    with small_store.pins.of_process() as owner:
        small_store.take(model.digest, owner)
        assert small_store.pins.owners(name) == [owner]
    small_store.pins.add(name, "process-of-the-dead")
    (small_store.root / ".pins" / "process-of-the-dead.lock").touch()
    assert small_store.pins.owners(name) == []
    assert small_store.evict(model.digest) > 0
