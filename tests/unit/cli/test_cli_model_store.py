"""`evomerge models` shows and changes what the store keeps."""

import json
from pathlib import Path

import pytest

from evomerge_cli.__main__ import main
from evomerge_common.runtime.settings import Settings
from evomerge_downloader.fetch import Fetcher
from evomerge_models.hub import Hub
from evomerge_models.store import WritableModelStore
from helpers.hub_server import write_model_folder


@pytest.fixture
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("EVOMERGE_MODEL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("EVOMERGE_MODEL_STORE_QUOTA", "1.5MB")
    folders = [write_model_folder(tmp_path / name, fill) for fill, name in enumerate("ab")]
    store = WritableModelStore(tmp_path / "store")
    return [Fetcher(store, Hub(), link=fill == 1).fetch(str(one)).digest for fill, one in enumerate(folders)]


def test_lists_pins_and_evicts(tmp_path: Path, digests: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def listed() -> dict[str, dict[str, object]]:
        assert main(["models", "list", "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["quota"] == 1_500_000
        return {Path(one["reference"]).name: one for one in data["models"]}

    found = listed()
    assert (found["a"]["kept_by"], found["b"]["bytes"]) == ([], 0)
    assert found["a"]["digest"] == digests[0]
    assert main(["models", "pin", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    assert listed()["a"]["kept_by"] == ["user"]
    assert main(["models", "evict", digests[0][7:19]]) == 2
    assert "kept by user" in capsys.readouterr().err
    assert main(["models", "unpin", digests[0]]) == 0
    assert main(["models", "evict", digests[0]]) == 0
    assert main(["models", "evict", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "config.json").is_file()
    capsys.readouterr()
    assert listed() == {}
    assert main(["models", "evict", "nothing"]) == 2
    assert "models list" in capsys.readouterr().err


def test_list_for_people(digests: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert digests[0].removeprefix("sha256:")[:12] in shown
    assert "link" in shown
    assert "of 1.5 MB" in shown


@pytest.mark.parametrize(("text", "value"), [("200GB", 200 * 10**9), ("1GiB", 2**30), ("17", 17), ("", 0)])
def test_quota_in_words(text: str, value: int) -> None:
    settings = Settings.from_env({"EVOMERGE_MODEL_STORE_QUOTA": text})
    assert settings.model_store_quota == value
    assert Settings.from_env(settings.to_env()).model_store_quota == value


def test_quota_that_is_none() -> None:
    with pytest.raises(Exception, match="EVOMERGE_MODEL_STORE_QUOTA=much: must be a size"):
        Settings.from_env({"EVOMERGE_MODEL_STORE_QUOTA": "much"})
