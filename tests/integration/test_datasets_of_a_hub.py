"""Suites whose data are files of a dataset on a hub: pinned, kept, verified, and never out of their folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge_cli.spec_source import resolve_suite
from evomerge_cli.suite_data import fetch_data
from evomerge_common.errors import InvalidInput, ModelNotFound, SuiteError, Unavailable
from evomerge_common.runtime.suite_file import MAX_DATA_BYTES, load_suite
from evomerge_models.datasets import DataReference, DatasetFiles
from evomerge_models.hub import Hub
from evomerge_models.store import WritableModelStore
from helpers.hub_server import HubServer

ITEMS = [{"prompt": f"what {n}", "choices": ["a", "b"], "answer": n % 2} for n in range(6)]
URL = "hf://datasets/org/quiz/data/test.jsonl"


def write_items(folder: Path, items: list[dict[str, object]]) -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EVOMERGE_MODEL_STORE", str(tmp_path / "store"))
    write_items(tmp_path / "hub" / "datasets" / "org" / "quiz", ITEMS)
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def files(hub: HubServer, tmp_path: Path) -> DatasetFiles:
    return DatasetFiles(WritableModelStore(tmp_path / "store"), Hub(hub.endpoint), MAX_DATA_BYTES)


def commit_of(hub: HubServer) -> str:
    repository = hub.repository("datasets/org/quiz")
    assert repository is not None
    return repository.commit


def suite_file(tmp_path: Path, url: str) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(f"tasks:\n- name: quiz\n  kind: multiple_choice\n  data: {url}\n")
    return path


def test_a_suite_names_a_dataset(
    hub: HubServer, files: DatasetFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge_models.hub.Hub", lambda: Hub(hub.endpoint))
    notes: list[str] = []
    path = suite_file(tmp_path, URL)
    suite = resolve_suite(str(path), Path(), flag=True, say=notes.append)
    assert [item.id for item in suite.tasks[0].items] == ["1", "2", "3", "4", "5", "6"]
    assert commit_of(hub) in notes[0]
    first = commit_of(hub)
    write_items(hub.root / "datasets" / "org" / "quiz", ITEMS[:4])
    assert len(resolve_suite(str(path), Path(), flag=True).tasks[0].items) == 4
    hub.down = True
    pinned = suite_file(tmp_path, f"{URL}@{first}")
    again = load_suite(pinned, fetch=fetch_data(notes.append))
    assert again.digest == suite.digest
    assert len(notes) == 1


def test_a_file_is_fetched_once_and_pinned(
    hub: HubServer, files: DatasetFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.refs.add("refs/pr/1")
    path, commit = files.fetch(DataReference.parse(f"{URL}@refs/pr/1"))
    assert (path.name, commit) == ("test.jsonl", commit_of(hub))
    sent = hub.sent
    for url in (URL, f"{URL}@{commit}", "hf://datasets/org/quiz@refs%2Fpr%2F1/data/test.jsonl"):
        assert files.fetch(DataReference.parse(url)) == (path, commit)
    assert hub.sent == sent
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    requests = len(hub.requests)
    assert files.fetch(DataReference.parse(URL)) == (path, commit)
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE"):
        files.fetch(DataReference.parse("hf://datasets/org/quiz/other.jsonl"))
    assert len(hub.requests) == requests


def test_a_file_in_the_clients_cache_is_not_fetched(
    hub: HubServer, files: DatasetFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download("org/quiz", "data/test.jsonl", repo_type="dataset", endpoint=hub.endpoint)
    hub.sent = 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert files.fetch(DataReference.parse(URL))[1] == commit_of(hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    files.fetch(DataReference.parse(URL))
    assert hub.sent == 0


def test_what_is_wrong_is_told_before_a_byte(hub: HubServer, files: DatasetFiles, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no file none\.jsonl; it has data/test\.jsonl"):
        files.fetch(DataReference.parse("hf://datasets/org/quiz/none.jsonl"))
    with pytest.raises(ModelNotFound, match="datasets/org/nothing"):
        files.fetch(DataReference.parse("hf://datasets/org/nothing/x.jsonl"))
    small = DatasetFiles(WritableModelStore(tmp_path / "s"), Hub(hub.endpoint), 10)
    with pytest.raises(InvalidInput, match="more than 10"):
        small.fetch(DataReference.parse(URL))
    assert hub.sent == 0
    hub.down = True
    with pytest.raises(Unavailable):
        files.fetch(DataReference.parse(URL))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hf://datasets/org/quiz/../../../etc/passwd.jsonl", "leads out"),
        ("hf://datasets/org/quiz/a//b.jsonl", "leads out"),
        ("hf://datasets/org/quiz/.hidden.jsonl", "leads out"),
        (r"hf://datasets/org/quiz/a\..\b.jsonl", "leads out"),
        ("hf://datasets/org/quiz/data.parquet", "Parquet is not read"),
        ("hf://datasets/org/quiz/data.csv", "JSON Lines is"),
        ("hf://datasets/org/quiz", "names no file"),
        ("hf://org/model/x.jsonl", "names no file"),
        ("hf://datasets/org/quiz@a/x.jsonl@b", "names no file"),
    ],
)
def test_urls_that_name_nothing_here(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(SuiteError, match=words) as told:
        load_suite(suite_file(tmp_path, url), fetch=fetch_data(lambda _: None))
    assert (told.value.line, told.value.path[-1]) == (4, "data")


def test_whoever_cannot_fetch_says_so(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="fetched by the command"):
        load_suite(suite_file(tmp_path, URL))
