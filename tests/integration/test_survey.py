"""Models of a hub, judged before a byte of their weights is fetched."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import DiskFull, ModelError, ModelNotFound, NotAModel, QuantisedModel, UnsafeFile
from evomerge_downloader.fetch import Fetcher
from evomerge_models.hub import Hub
from evomerge_models.seen import difference
from evomerge_models.store import WritableModelStore
from evomerge_models.survey import Survey
from helpers.headers import CASES
from helpers.hub_server import HubServer, write_adapter, write_model_folder, write_safetensors, write_sparse

GIGABYTE = 1 << 30


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    for name in ("one", "two"):
        write_model_folder(tmp_path / "hub" / "org" / name)
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture(autouse=True)
def surveys() -> Iterator[None]:
    with STACK:
        yield


STACK = contextlib.ExitStack()
"""Surveys stay open until the test ends."""


def look(hub: HubServer, store: WritableModelStore | None, *names: str) -> Survey:
    survey = STACK.enter_context(Survey(Hub(hub.endpoint), store))
    survey.look([ModelReference.parse(name) for name in names])
    return survey


def test_a_model_of_the_hub_is_described_without_its_weights(hub: HubServer, store: WritableModelStore) -> None:
    survey = look(hub, store, "org/one", "org/two")
    local = look(hub, None, str(hub.root / "org" / "one"))
    (here,) = local.models.values()
    assert survey.models["org/one"].description == here.description
    assert not survey.differ()
    assert survey.missing_bytes == 2 * here.description.bytes


def test_a_second_look_fetches_nothing(hub: HubServer, store: WritableModelStore) -> None:
    first = look(hub, store, "org/one")
    hub.requests.clear()
    assert look(hub, store, "org/one").models["org/one"].description == first.models["org/one"].description
    assert [line for line in hub.requests if "/resolve/" in line] == []
    hub.requests.clear()
    repository = hub.repository("org/one")
    assert repository is not None
    look(hub, store, f"org/one@{repository.commit}")
    assert hub.requests == []


def test_a_new_commit_is_looked_at_again(hub: HubServer, store: WritableModelStore) -> None:
    look(hub, store, "org/one")
    write_safetensors(hub.root / "org" / "one" / "model.safetensors", {"a.weight": (8, 16), "b.weight": (64,)})
    survey = look(hub, store, "org/one", "org/two")
    assert survey.differ()
    assert "a.weight is [8, 16] in org/one and [16, 16] in org/two" in survey.comparison()


def test_headers_longer_than_the_first_range(hub: HubServer, store: WritableModelStore) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{i}.some_rather_long_name_of_a_module.weight": (4, 4) for i in range(2000)
    }
    for name in ("one", "two"):
        write_sparse(hub.root / "org" / name / "new", shapes)
        for file in ("config.json", "model.safetensors"):
            (hub.root / "org" / name / "new" / file).replace(hub.root / "org" / name / file)
    survey = look(hub, store, "org/one")
    assert survey.models["org/one"].description.parameters == 2000 * 16
    survey = look(hub, store, "org/one")
    assert survey.models["org/one"].description.parameters == 2000 * 16


def test_all_that_is_wrong_is_told_at_once(hub: HubServer, store: WritableModelStore) -> None:
    (hub.root / "org" / "one" / ".gated").touch()
    (hub.root / "org" / "two" / "tokenizer.json").unlink()
    with pytest.raises(ModelError) as caught:
        look(hub, store, "org/one", "org/two", "org/gone", "org/one@nowhere")
    text = str(caught.value)
    assert text.startswith("4 of 4 models cannot be used:")
    for words in ("org/one is gated", "org/two has no tokenizer", "no model org/gone", "HF_TOKEN"):
        assert words in text


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_no_use_is_refused_by_name(hub: HubServer, store: WritableModelStore) -> None:
    one = hub.root / "org" / "one"
    gptq = {"quant_method": "gptq", "bits": 4}
    write_safetensors(one / "model.safetensors", {"a.qweight": (16, 16), "b.weight": (64,)})
    set_config(one, quantization_config=gptq)
    with pytest.raises(QuantisedModel, match="org/one is quantised"):
        look(hub, store, "org/one")
    raw = (one / "model.safetensors").read_bytes()
    (one / "model.safetensors").write_bytes(raw[:-10])
    with pytest.raises(UnsafeFile, match=r"^org/one/model.safetensors"):
        look(hub, store, "org/one")
    (one / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(UnsafeFile, match="claims 1099511627776 bytes"):
        look(hub, store, "org/one")
    (one / "model.safetensors").unlink()
    with pytest.raises(NotAModel, match="no weights"):
        look(hub, store, "org/one")
    adapter = write_adapter(hub.root / "org" / "adapter", base="org/two")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UnsafeFile, match="a pickle"):
        look(hub, store, "org/adapter")


def test_headers_are_judged_as_those_of_a_folder(hub: HubServer, store: WritableModelStore, tmp_path: Path) -> None:
    local = write_model_folder(tmp_path / "local")
    for number, (name, case) in enumerate(list(CASES.items())[::4]):
        folder = write_model_folder(hub.root / "org" / f"case{number}")
        case.write(folder / "model.safetensors")
        case.write(local / "model.safetensors")
        judged = []
        for reference in (str(local), f"org/case{number}"):
            try:
                look(hub, store, reference)
                judged.append("")
            except ModelError as error:
                judged.append(f"{type(error).__name__}: {str(error).replace(f'{local}', reference)}")
        assert judged[1] == judged[0].replace(str(local), f"org/case{number}"), name


def test_a_leftover_quantization_config_is_none(hub: HubServer, store: WritableModelStore) -> None:
    set_config(hub.root / "org" / "one", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert look(hub, store, "org/one", "org/two").models["org/one"].description.parameters == 320


def test_adapters_are_judged_on_their_base(hub: HubServer, store: WritableModelStore) -> None:
    write_adapter(hub.root / "org" / "adapter", base="org/two")
    write_adapter(hub.root / "org" / "wide", base="org/two", size=32)
    write_adapter(hub.root / "org" / "lost", base="org/gone")
    survey = look(hub, store, "org/adapter", "org/one+org/adapter")
    assert str(survey.models["org/adapter"].base.reference) == "org/two"
    with pytest.raises(ModelError, match=r"org/wide"):
        look(hub, store, "org/one+org/wide")
    with pytest.raises(ModelNotFound, match="org/lost is a LoRA adapter of 'org/gone'"):
        look(hub, store, "org/lost")


def test_licences_of_the_hub_and_of_folders(hub: HubServer, store: WritableModelStore) -> None:
    one, two = (hub.root / "org" / name for name in ("one", "two"))
    (one / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n")
    (two / "LICENSE").write_text("MIT License\n\nCopyright (c) 2024")
    survey = look(hub, store, "org/one", "org/two", str(one), str(two))
    assert survey.licences() == {"org/one": "qwen-research", "org/two": "mit", "one": "qwen-research", "two": "mit"}
    write_adapter(hub.root / "org" / "adapter", base="org/two")
    (hub.root / "org" / "adapter" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert look(hub, store, "org/two+org/adapter").licences() == {"org/two+org/adapter": "mit, cc-by-nc-4.0"}
    assert look(hub, store, "org/one+org/adapter", "org/adapter").models["org/adapter"].licence == "mit, cc-by-nc-4.0"


def test_licences_of_folders_of_one_name(hub: HubServer, store: WritableModelStore, tmp_path: Path) -> None:
    folders = [tmp_path / place / "final" for place in "ab"]
    for folder, licence in zip(folders, ("gpl-2.0", "apache-2.0"), strict=True):
        write_model_folder(folder)
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    assert look(hub, store, *map(str, folders)).licences() == {"final": "gpl-2.0", "final (2)": "apache-2.0"}


def test_no_room_is_told_before_anything_is_fetched(
    hub: HubServer, store: WritableModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sparse(hub.root / "org" / "huge", {"a.weight": (1 << 20, 1 << 20)})
    survey = look(hub, store, "org/huge")
    assert survey.missing_bytes > 1 << 42
    with pytest.raises(Exception, match="needs 43"):
        survey.check_room()


def test_empty_files_are_looked_at_like_others(hub: HubServer, store: WritableModelStore) -> None:
    for name in ("merges.txt", "LICENSE"):
        (hub.root / "org" / "one" / name).write_bytes(b"")
    assert look(hub, store, "org/one").models["org/one"].description.parameters == 320


def test_what_has_come_of_a_download_needs_no_room(
    hub: HubServer, store: WritableModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_sparse(hub.root / "org" / "large", {"a.weight": (1 << 10, 1 << 12)})
    size = (folder / "model.safetensors").stat().st_size
    survey = look(hub, store, "org/large")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=(64 << 20) + size // 2))
    with pytest.raises(DiskFull):
        survey.check_room()
    repository = hub.repository("org/large")
    assert repository is not None
    with store.incoming(f"org/large@{repository.commit}") as incoming:
        shutil.copy(folder / "model.safetensors", incoming)
    survey.check_room()


def test_tokenizers_whose_hashes_are_of_different_kinds_may_be_one(hub: HubServer, store: WritableModelStore) -> None:
    survey = look(hub, store, "org/one", "org/two")
    parts = []
    for name, sha256, blob in (("org/one", "0" * 64, ""), ("org/two", "", "0" * 40)):
        base = survey.models[name].base
        assert base.outline is not None
        remote = base.outline.remote
        remote = replace(remote, files=tuple(replace(file, sha256=sha256, blob=blob) for file in remote.files))
        outline = replace(base.outline, remote=remote, holes=("tokenizer.json",))
        parts.append(replace(survey.models[name], base=replace(base, outline=outline)))
    assert difference(*parts) == ""


def test_a_revision_that_has_moved_is_looked_at_anew(hub: HubServer, store: WritableModelStore) -> None:
    Fetcher(store, Hub(hub.endpoint)).fetch("org/one")
    assert look(hub, store, "org/one").missing_bytes == 0
    write_safetensors(hub.root / "org" / "one" / "model.safetensors", {"a.weight": (8, 16), "b.weight": (64,)})
    survey = look(hub, store, "org/one")
    assert survey.models["org/one"].description.parameters == 8 * 16 + 64
    assert survey.missing_bytes > 0


@pytest.mark.parametrize("trouble", ["down", "slow", "offline"])
def test_where_the_hub_says_nothing_the_commit_fetched_last_is_looked_at(
    hub: HubServer, store: WritableModelStore, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    Fetcher(store, Hub(hub.endpoint)).fetch("org/one")
    write_safetensors(hub.root / "org" / "one" / "model.safetensors", {"a.weight": (8, 16), "b.weight": (64,)})
    hub.down, hub.delay = trouble == "down", 2.0 if trouble == "slow" else 0.0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", trouble == "offline")
    with Survey(Hub(hub.endpoint), store, seconds=0.3) as survey:
        survey.look([ModelReference.parse("org/one")])
        assert survey.models["org/one"].description.parameters == 320


def test_what_is_being_looked_at_is_not_asked_for_again(
    hub: HubServer, store: WritableModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    one, began = ModelReference.parse("org/one"), set(threading.enumerate())
    hub.delay = 0.4
    with Survey(Hub(hub.endpoint), store, seconds=0.1) as survey:
        survey.look([one])
        looking = [thread for thread in threading.enumerate() if "_try" in thread.name and thread not in began]
        survey.look([one])
        assert survey.models == {}
    for thread in looking:
        thread.join(10)
    assert len(looking) == 1
    assert len([line for line in hub.requests if "/api/" in line]) == 1
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_slow_hub_is_left_to_the_downloader(hub: HubServer, store: WritableModelStore) -> None:
    hub.delay = 2.0
    began = time.monotonic()
    with Survey(Hub(hub.endpoint), store, seconds=0.2) as survey:
        survey.look([ModelReference.parse("org/one"), ModelReference.parse("org/two")])
    assert time.monotonic() - began < 1.5
    assert survey.models == {}
    assert not survey.differ()


def test_a_trio_of_a_gigabyte_each(hub: HubServer, store: WritableModelStore) -> None:
    def shapes(hidden: int) -> dict[str, tuple[int, ...]]:
        layer = {f"model.layers.{i}.mlp.up_proj.weight": (4 * hidden, hidden) for i in range(16)}
        return {"model.embed_tokens.weight": (GIGABYTE // 8 // hidden, hidden), **layer}

    for name, hidden in (("a", 1024), ("b", 1024), ("c", 1536)):
        write_sparse(hub.root / "org" / name, shapes(hidden), hidden_size=hidden)
    look(hub, store, "org/one")  # the client is imported
    hub.sent = 0
    began = time.monotonic()
    survey = look(hub, store, "org/a", "org/b", "org/c")
    assert time.monotonic() - began < 2.0
    assert hub.sent < 1_000_000
    assert survey.differ()
    text = survey.comparison()
    assert "model.embed_tokens.weight is [131072, 1024] in org/a and [87381, 1536] in org/c" in text
    assert "org/a and org/b fit each other: leave the others out" in text
