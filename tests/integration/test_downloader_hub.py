"""The real huggingface_hub client against a local hub."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from evomerge_common.domain.messages import DownloadJob, Job
from evomerge_common.errors import LicenceConflict, ModelNotFound, NotAModel, QuantisedModel, Unavailable, UnsafeFile
from evomerge_downloader.fetch import Fetcher
from evomerge_downloader.handlers import DownloadHandler
from evomerge_models.hub import Hub
from evomerge_models.pair import read_pair
from evomerge_models.store import WritableModelStore
from helpers.hub_server import Fault, HubServer, write_adapter, write_model_folder, write_safetensors


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client's waits between its own attempts
    write_model_folder(tmp_path / "hub" / "org" / "small")
    (tmp_path / "hub" / "org" / "small" / "modeling_evil.py").write_text("raise SystemExit")
    with HubServer(tmp_path / "hub") as server:
        yield server


def commit(hub: HubServer, name: str = "org/small") -> str:
    repository = hub.repository(name)
    assert repository is not None
    return repository.commit


async def test_hub_id_downloads_pinned(hub: HubServer, store: WritableModelStore, fetcher: Fetcher) -> None:
    job = Job(job_id="j", run_id="r", payload=DownloadJob(reference="org/small"))
    ready = await DownloadHandler(fetcher)(job)
    model = ready.model
    assert (ready.job_id, model.reference, model.commit) == ("j", "org/small", commit(hub))
    entry = store.root / model.digest.removeprefix("sha256:")
    assert sorted(path.name for path in entry.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(hub.files_looked_at()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert hub.files_fetched() == ["model.safetensors"]  # the others are small, and came with the look
    assert all(f"/resolve/{model.commit}/" in line for line in hub.requests if "/resolve/" in line)
    local = Fetcher(WritableModelStore(store.root.parent / "other"), Hub(hub.endpoint)).fetch(
        str(hub.root / "org" / "small")
    )
    assert local.digest == model.digest


def test_of_a_quantised_model_no_weights_are_fetched(hub: HubServer, fetcher: Fetcher) -> None:
    write_safetensors(hub.root / "org" / "small" / "model.safetensors", {"a.qweight": (16, 16), "b.weight": (64,)})
    config = hub.root / "org" / "small" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(QuantisedModel, match="org/small is quantised"):
        fetcher.fetch("org/small")
    assert hub.files_fetched() == []


def test_no_model_of_a_run_is_fetched_when_another_is_of_no_use(hub: HubServer, fetcher: Fetcher) -> None:
    write_safetensors(
        write_model_folder(hub.root / "org" / "codes") / "model.safetensors", {"a.qweight": (16, 16), "b.weight": (64,)}
    )
    with pytest.raises(QuantisedModel, match="org/codes is quantised"):
        fetcher.fetch("org/small", typed=False, together=["org/small", "org/codes"])
    assert hub.files_fetched() == []


def test_licences_that_exclude_each_other_stop_a_download(hub: HubServer, fetcher: Fetcher) -> None:
    (hub.root / "org" / "small" / "README.md").write_text("---\nlicense: gpl-3.0\n---\n")
    other = write_model_folder(hub.root / "org" / "other", fill=1)
    (other / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    together = ["org/small", "org/other"]
    with pytest.raises(LicenceConflict, match=r"GPL-3.0 \(org/small\) allows no further terms"):
        fetcher.fetch("org/small", typed=False, together=together)
    assert hub.files_fetched() == []
    model = fetcher.fetch("org/other", typed=False, together=together, accept_licence_conflict=True)
    assert model.licence == "llama3.1"
    assert fetcher.fetch("org/small").licence == "gpl-3.0"
    assert fetcher.fetch(str(other)).licence == "llama3.1"


def test_offline_the_licences_of_what_the_store_has_are_judged_too(
    hub: HubServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model_folder(hub.root / "org" / "other", fill=1)
    for name, licence in (("small", "gpl-3.0"), ("other", "llama3.1")):
        (hub.root / "org" / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        fetcher.fetch(f"org/{name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LicenceConflict, match=r"GPL-3.0 \(org/small\) allows no further terms"):
        fetcher.fetch("org/small", typed=False, together=["org/small", "org/other"])


def test_licences_of_folders_count_too(hub: HubServer, fetcher: Fetcher) -> None:
    folders = [hub.root / "org" / name for name in ("small", "other")]
    write_model_folder(folders[1], fill=1)
    for folder, licence in zip(folders, ("gpl-3.0", "cc-by-nc-4.0"), strict=True):
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    with pytest.raises(LicenceConflict, match=r"GPL-3\.0"):
        fetcher.fetch(str(folders[0]), typed=False, together=[str(folder) for folder in folders])


def test_a_leftover_quantization_config_is_none(hub: HubServer, fetcher: Fetcher) -> None:
    config = hub.root / "org" / "small" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"load_in_4bit": True}}))
    assert fetcher.fetch("org/small").parameters == 320


def test_what_the_hub_keeps_back_from_a_look_is_left_to_the_download(hub: HubServer, fetcher: Fetcher) -> None:
    hub.fault_of_looks = lambda _: Fault(status=418)
    assert fetcher.fetch("org/small").parameters == 320


def test_a_bit_that_is_wrong_once_is_read_again(hub: HubServer, fetcher: Fetcher) -> None:
    seen: list[str] = []

    def fault(path: str) -> Fault:
        seen.append(path)
        return Fault(flip=0.01) if seen.count(path) == 1 else Fault()

    hub.fault_of_looks = fault
    assert fetcher.fetch("org/small").parameters == 320


def test_second_time_fetches_no_file(hub: HubServer, fetcher: Fetcher) -> None:
    first = fetcher.fetch("org/small")
    hub.requests.clear()
    assert fetcher.fetch("org/small") == first
    assert hub.files_fetched() == []
    hub.requests.clear()
    pinned = fetcher.fetch(f"org/small@{first.commit}")
    assert (pinned.digest, hub.requests) == (first.digest, [])


def test_many_who_want_one_model_fetch_it_once(hub: HubServer, store: WritableModelStore) -> None:
    for fill in range(1, 6):
        write_model_folder(hub.root / "org" / f"many{fill}", fill=fill)
        hub.requests.clear()
        start = threading.Barrier(6)

        def one(name: str, start: threading.Barrier = start) -> str:
            start.wait(10)
            return Fetcher(WritableModelStore(store.root), Hub(hub.endpoint)).fetch(name).digest

        with ThreadPoolExecutor(6) as pool:
            digests = set(pool.map(one, [f"org/many{fill}"] * 6))
        assert len(digests) == 1
        assert hub.files_fetched() == ["model.safetensors"]


def test_who_waited_for_another_process_notes_the_revision(
    hub: HubServer, store: WritableModelStore, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming, other = store.incoming, Fetcher(WritableModelStore(store.root), Hub(hub.endpoint))

    def late(name: str) -> AbstractContextManager[Path]:
        other.fetch(f"org/small@{commit(hub)}")
        return incoming(name)

    monkeypatch.setattr(store, "incoming", late)
    model = fetcher.fetch("org/small")
    assert store.commit_of("org/small", "") == model.commit


def test_new_commit_is_another_model(hub: HubServer, store: WritableModelStore, fetcher: Fetcher) -> None:
    first = fetcher.fetch("org/small")
    (hub.root / "org" / "small" / "tokenizer.json").write_text('{"v": 2}')
    second = fetcher.fetch("org/small")
    assert second.commit != first.commit
    assert second.digest != first.digest
    assert len(store.list()) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_wrong_hash_is_refused(hub: HubServer, store: WritableModelStore, fetcher: Fetcher, name: str) -> None:
    real = (hub.root / "org" / "small" / name).read_bytes()
    hub.lie[name] = real[:-1] + b"X"
    with pytest.raises(UnsafeFile, match="the hub says"):
        fetcher.fetch("org/small")
    assert store.list() == []
    hub.lie.clear()
    assert fetcher.fetch("org/small").bytes > 0


def test_broken_connection_is_resumed(hub: HubServer, fetcher: Fetcher) -> None:
    hub.break_next = 2
    model = fetcher.fetch("org/small")
    assert hub.files_fetched().count("model.safetensors") == 3
    assert model.parameters == 320


def test_interrupted_download_goes_on(hub: HubServer, store: WritableModelStore, fetcher: Fetcher) -> None:
    hub.break_next = 100
    with pytest.raises(Unavailable):
        fetcher.fetch("org/small")
    assert store.list() == []
    (store.root / ".incoming" / "leftover").mkdir()
    hub.break_next = 0
    hub.requests.clear()
    assert fetcher.fetch("org/small").parameters == 320
    assert hub.files_fetched() == ["model.safetensors"]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("org/none", "no model org/none"),
        ("org/small@v9", "no such revision"),
        ("nobody", "HF_TOKEN"),
        ("-x/y", "folder"),
    ],
)
def test_not_found(fetcher: Fetcher, reference: str, words: str) -> None:
    with pytest.raises(ModelNotFound, match=words):
        fetcher.fetch(reference)


def test_gated_model_says_what_to_do(hub: HubServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub.root / "org" / "small" / ".gated").touch()
    with pytest.raises(ModelNotFound, match=r"gated.*HF_TOKEN"):
        fetcher.fetch("org/small")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert fetcher.fetch("org/small").parameters == 320


def test_repository_that_is_no_model(hub: HubServer, fetcher: Fetcher) -> None:
    (hub.root / "org" / "data").mkdir()
    (hub.root / "org" / "data" / "train.jsonl").write_text("{}")
    with pytest.raises(NotAModel, match=r"no config\.json"):
        fetcher.fetch("org/data")
    assert hub.files_fetched() == []


def test_unreachable_hub(hub: HubServer, store: WritableModelStore, fetcher: Fetcher) -> None:
    first = fetcher.fetch("org/small")
    hub.down = True
    assert fetcher.fetch("org/small") == first, "the commit fetched before serves"
    with pytest.raises(Unavailable, match="503"):
        fetcher.fetch("org/other")
    with pytest.raises(Unavailable, match="does not answer"):
        Fetcher(store, Hub("http://127.0.0.1:9")).fetch("org/other")


@pytest.mark.slow
def test_hf_endpoint_in_the_environment(hub: HubServer, store: WritableModelStore) -> None:
    code = (
        "import sys, json, dataclasses, pathlib\n"
        "from evomerge_downloader.fetch import Fetcher\nfrom evomerge_models.hub import Hub\n"
        "from evomerge_models.store import WritableModelStore\n"
        "model = Fetcher(WritableModelStore(pathlib.Path(sys.argv[1])), Hub()).fetch('org/small')\n"
        "print(json.dumps(dataclasses.asdict(model)))\n"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(store.root.parent / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.root)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout.splitlines()[-1])["commit"] == commit(hub)
    assert done.stderr == ""


def test_no_url_reaches_the_log(
    fetcher: Fetcher, hub: HubServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    hub.break_next = 1
    fetcher.fetch("org/small")
    assert hub.files_fetched().count("model.safetensors") == 2
    assert "http://" not in caplog.text + capfd.readouterr().err


async def test_adapters_of_the_hub(hub: HubServer, store: WritableModelStore, fetcher: Fetcher, tmp_path: Path) -> None:
    write_adapter(hub.root / "org" / "adapter", base="org/small")
    job = Job(job_id="j", run_id="r", payload=DownloadJob(reference="org/adapter"))
    model = (await DownloadHandler(fetcher)(job)).model
    assert (model.reference, model.architecture) == ("org/adapter", "LlamaForCausalLM")
    assert model.base == fetcher.fetch("org/small").digest
    pair = read_pair(store.folder(model))
    assert pair is not None
    assert (pair[1] / "adapter_model.safetensors").is_file()
    assert fetcher.fetch("org/small+org/adapter").digest == model.digest
    other = write_model_folder(tmp_path / "other", fill=1)
    job = Job(job_id="j", run_id="r", payload=DownloadJob(reference="org/adapter", base=str(other)))
    assert (await DownloadHandler(fetcher)(job)).model.base == fetcher.fetch(str(other)).digest
    assert fetcher.fetch(f"{other}+org/adapter").base == fetcher.fetch(str(other)).digest


def test_modules_of_sentence_transformers_come_along(
    hub: HubServer, store: WritableModelStore, fetcher: Fetcher
) -> None:
    folder = write_model_folder(hub.root / "org" / "sentences")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "modules.json").write_text("[]")
    entry = store.folder(fetcher.fetch("org/sentences"))
    assert (entry / "1_Pooling" / "config.json").read_text() == '{"pooling_mode_mean_tokens": true}'
    copied = Fetcher(WritableModelStore(hub.root.parent / "copies"), Hub(hub.endpoint), link=False).fetch(str(folder))
    assert copied.digest == fetcher.fetch("org/sentences").digest
