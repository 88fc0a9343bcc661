"""`evomerge push` against a hub that takes uploads as the Hub does: what is there afterwards is what was meant."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from evomerge_cli.__main__ import main
from evomerge_cli.commands.push import push_champion
from evomerge_cli.console import Console
from evomerge_cli.publication import Publication, publication_of
from evomerge_common.domain.messages import ArtifactExported, RunFinished
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import Unavailable
from evomerge_common.ports import Recorded
from evomerge_downloader.fetch import Fetcher
from evomerge_merging import merge_recipe
from evomerge_models.hub import Hub
from evomerge_models.hub.push import Publisher
from evomerge_models.hub.push_plan import LocalFile
from evomerge_models.store import WritableModelStore
from helpers import synthetic_log, tiny_models
from helpers.hub_server import write_model_folder, write_safetensors
from helpers.hub_writer import SIGNATURE, WritableHub, yaml_errors

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of the hub's own client
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    root = tmp_path / "hub"
    root.mkdir()
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with WritableHub(root) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")[2]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.endpoint}/{{repo_id}}{template}")
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("secret-place")
    sources = [tiny_models.make(place / name, seed=seed) for seed, name in enumerate("ab")]
    recipe = Recipe.of_models("linear", [(ModelReference(str(one)), {"weight": 1.0}) for one in sources])
    merge_recipe(recipe, {}, place / "merged")
    return place / "merged"


@pytest.fixture
def model(merged: Path, tmp_path: Path) -> Path:
    """A merged model of two local sources, whose recipe names their folders."""
    return Path(shutil.copytree(merged, tmp_path / "merged"))


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".gitattributes")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_licences_of_folders_of_one_name_all_count(tmp_path: Path) -> None:
    sources = [tiny_models.make(tmp_path / place / "final", seed=seed) for seed, place in enumerate("ab")]
    for source, licence in zip(sources, ("gpl-2.0", "apache-2.0"), strict=True):
        (source / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    recipe = Recipe.of_models("linear", [(ModelReference(str(one)), {"weight": 1.0}) for one in sources])
    merge_recipe(recipe, {}, tmp_path / "merged")
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert card.data.to_dict()["license_name"] == "conflicting-licences"
    assert "| final | gpl-2.0 |\n| final (2) | apache-2.0 |" in card.text
    notes = publication_of(tmp_path / "merged", lambda repository, revision: {}).notes
    assert any("conflict" in note and "final (2)" in note for note in notes)


def test_a_dry_run_lists_all_and_sends_nothing(hub: WritableHub, model: Path, capsys: Capture) -> None:
    before = hashes(model)
    assert main(["push", str(model), "me/merged", "--dry-run", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["pushes"]
    assert (told["repository"], told["exists"], told["visibility"]) == ("me/merged", False, "private")
    assert told["branch"] == "main"
    assert {one["name"] for one in told["files"]} == set(before)
    assert {one["state"] for one in told["files"]} == {"new"}
    assert main(["push", str(model), "me/merged", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "model.safetensors" in shown.out
    assert "licence: none is named" in shown.out
    assert "the licence of a, b is not told" in shown.err
    assert hub.written() == []
    assert hashes(model) == before
    assert not (hub.root / "me").exists()


def test_private_by_default_and_public_if_asked(hub: WritableHub, model: Path, capsys: Capture) -> None:
    assert main(["push", str(model), "me/quiet"]) == 0
    assert main(["push", str(model), "org/loud", "--public"]) == 0
    assert hub.private == {"me/quiet"}
    assert main(["push", str(model), "org/loud"]) == 2, "what is public already is not pushed to by accident"
    assert "org/loud is there and public: say --public" in capsys.readouterr().err


def test_pushed_and_fetched_again_it_is_the_same(hub: WritableHub, model: Path, tmp_path: Path) -> None:
    with (model / "extra.bin").open("wb") as file:  # beyond what goes in one part
        file.write(os.urandom(12_000_000))
    (model / "sub").mkdir()
    (model / "sub" / "notes.txt").write_text("kept\n")
    assert main(["push", str(model), "me/merged", "--message", "first"]) == 0
    there = hashes(hub.root / "me/merged")
    ours = hashes(model)
    changed = {name for name in ours if ours[name] != there[name]}
    assert there.keys() == ours.keys()
    assert changed == {"recipe.json", "mergekit_config.yml"}, "they named this machine's folders"
    assert len(hub.parts) == 1, "in parts"
    assert [(name, branch, text) for name, branch, text, _ in hub.commits] == [("me/merged", "main", "first")]
    store = WritableModelStore(tmp_path / "store")
    fetched = store.folder(Fetcher(store, Hub(hub.endpoint)).fetch("me/merged"))
    for path in fetched.iterdir():
        if path.name in ours:
            assert path.read_bytes() == (model / path.name).read_bytes()
    assert (fetched / "model.safetensors").is_file()
    assert (fetched / "tokenizer.json").is_file()


def test_a_large_model_comes_back_byte_for_byte(hub: WritableHub, tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "large")
    shape = (3000, 1000)
    write_safetensors(folder / "model.safetensors", {"a.weight": shape, "b.weight": (64,)})
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-12_000_000, os.SEEK_END)
        file.write(os.urandom(11_000_000))
    before = hashes(folder)
    assert main(["push", str(folder), "org/large", "--public"]) == 0
    assert hub.received == {before["model.safetensors"]: (folder / "model.safetensors").stat().st_size}
    store = WritableModelStore(tmp_path / "store")
    fetched = store.folder(Fetcher(store, Hub(hub.endpoint)).fetch("org/large"))
    assert hashes(fetched) == {name: before[name] for name in ("config.json", "model.safetensors", "tokenizer.json")}


def test_obligations_and_conflicts_of_licences_are_told(hub: WritableHub, model: Path, capsys: Capture) -> None:
    for name, licence in (("a", "gpl-3.0"), ("b", "cc-by-nc-4.0")):
        folder = write_model_folder(hub.root / "org" / name)
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    recipe = Recipe.of_models("linear", [(ModelReference(f"org/{name}"), {"weight": 1.0}) for name in "ab"])
    (model / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    assert main(["push", str(model), "me/merged", "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "note: licence conflict:" in told.err
    assert "note: licence: no commercial use" in told.err
    assert "licence: conflicting-licences" in told.out


def test_a_second_push_sends_nothing_and_makes_no_commit(hub: WritableHub, model: Path, capsys: Capture) -> None:
    assert main(["push", str(model), "me/merged"]) == 0
    received = dict(hub.received)
    capsys.readouterr()
    assert main(["push", str(model), "me/merged", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["pushes"]
    assert {one["state"] for one in told["files"]} == {"there"}
    assert told["sent_bytes"] == 0
    assert hub.received == received
    assert len(hub.commits) == 1


def test_another_contents_name_is_refused_until_overwritten(hub: WritableHub, model: Path, capsys: Capture) -> None:
    write_model_folder(hub.root / "me" / "taken", fill=3)
    (hub.root / "me" / "taken" / "old.txt").write_text("old")
    assert main(["push", str(model), "me/taken", "--public"]) == 2
    told = capsys.readouterr().err
    assert "me/taken holds other contents" in told
    assert "--overwrite" in told
    assert not hub.commits
    assert main(["push", str(model), "me/taken", "--public", "--overwrite"]) == 0
    assert hashes(hub.root / "me/taken").keys() == hashes(model).keys()


def test_a_branch_is_made_and_leaves_the_default_one(hub: WritableHub, model: Path) -> None:
    assert main(["push", str(model), "me/merged"]) == 0
    before = hashes(hub.root / "me/merged")
    (model / "added.txt").write_text("more")
    assert main(["push", str(model), "me/merged", "--branch", "v2"]) == 0
    assert hashes(hub.root / "me/merged") == before
    assert (hub.branch("me/merged", "v2") / "added.txt").read_text() == "more"
    assert hub.commits[-1][1] == "v2"
    assert [one["value"]["path"] for one in hub.commits[-1][3]] == ["added.txt"]


@pytest.mark.parametrize(
    ("token", "repository", "words"),
    [
        ("", "me/x", "no token.*HF_TOKEN.*hf auth login"),
        ("hf_wrong", "me/x", "does not take the token"),
        ("hf_read", "me/x", "may only read"),
        ("hf_test", "others/x", r"others is neither you nor one of your organisations \(me, org\)"),
        ("hf_test", "no-slash", "no name of a repository"),
        ("hf_test", "me/../x", "no name of a repository"),
    ],
)
def test_who_may_not_push_is_told_before_anything_is_sent(
    token: str,
    repository: str,
    words: str,
    hub: WritableHub,
    model: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert main(["--verbose", "push", str(model), repository]) == 2
    told = capsys.readouterr().err
    assert re.search(words, told), told
    assert not token or token not in told
    assert hub.written() == []


def test_an_interrupted_push_goes_on(hub: WritableHub, model: Path, capsys: Capture) -> None:
    for number in (1, 2):
        write_safetensors(model / f"more-{number}.safetensors", {"x": (250_000,)}, fill=number)
    hub.fail_after = 1
    assert main(["push", str(model), "me/merged"]) == 1
    told = capsys.readouterr().err
    assert "goes on from what was sent" in told
    assert SIGNATURE not in told
    assert not hub.commits, "nothing usable-looking and half there"
    first = {path.name for path in (hub.root / ".lfs").iterdir()}
    assert len(first) == 1
    hub.fail_after = None
    before = dict(hub.received)
    assert main(["push", str(model), "me/merged"]) == 0
    assert all(hub.received[sha256] == before[sha256] for sha256 in first), "found by its hash, and not sent again"
    assert hashes(hub.root / "me/merged").keys() == hashes(model).keys()


def test_a_killed_push_goes_on(hub: WritableHub, model: Path, tmp_path: Path) -> None:
    hub.stall = threading.Event()
    command = [sys.executable, "-m", "evomerge_cli", "push", str(model), "me/merged"]
    with (tmp_path / "log").open("w") as log:
        environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        until = time.monotonic() + 60
        while not any(line.startswith("PUT") for line in hub.requests):
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    hub.stall.set()
    assert not hub.commits
    assert main(["push", str(model), "me/merged"]) == 0
    assert hashes(hub.root / "me/merged").keys() == hashes(model).keys()
    assert "hf_test" not in (tmp_path / "log").read_text()


def test_a_stopped_push_ends_at_once(hub: WritableHub, tmp_path: Path) -> None:
    """The client's threads would send their files to the end."""
    path = tmp_path / "large.safetensors"
    path.write_bytes(bytes(40_000_000))
    hub.part_bytes = 1_000_000
    publisher = Publisher()
    plan = publisher.plan("me/large", [LocalFile(path.name, path)])

    def stop(done: int, _: int) -> None:
        if done > 3_000_000:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Unavailable)):
        publisher.push(plan, public=False, message="m", progress=stop)
    assert sum(hub.received.values()) < 10_000_000


def test_a_hub_that_is_down_or_offline(hub: WritableHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [LocalFile("a.txt", b"a")]
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.down = True
    with pytest.raises(Unavailable, match="HTTP 503"):
        Publisher().check_access("me/x")
    hub.down = False
    plan = Publisher().plan("me/x", files)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="does not answer for me/x"):
        Publisher().push(plan, public=False, message="m")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE"):
        Publisher().plan("me/x", files)


def test_somebody_elses_commit_meanwhile_is_not_run_over(hub: WritableHub) -> None:
    publisher = Publisher()
    publisher.push(publisher.plan("me/x", [LocalFile("a.txt", b"a")]), public=False, message="m")
    plan = publisher.plan("me/x", [LocalFile("b.txt", b"b"), LocalFile("a.txt", b"a")])
    (hub.root / "me" / "x" / "c.txt").write_text("c")
    with pytest.raises(Unavailable, match="changed by somebody else meanwhile"):
        publisher.push(plan, public=False, message="m")


def test_a_card_that_the_hub_refuses_is_told_before_any_weights(hub: WritableHub, model: Path, capsys: Capture) -> None:
    (model / "README.md").write_text("---\nlicense: my own\nbase_model: /home/me/model\n---\n# x\n")
    assert main(["push", str(model), "me/merged"]) == 2
    assert '"license" must be one of' in capsys.readouterr().err
    assert hub.received == {}


def test_nothing_of_this_machine_and_no_token_goes_out(
    hub: WritableHub, model: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/me/secret-place/a"}))
    caplog.set_level("DEBUG")
    assert main(["--verbose", "push", str(model), "me/merged"]) == 0
    for path in (hub.root / "me/merged").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert b"secret-place" not in data, path
        assert b"hf_test" not in data
    shown = capsys.readouterr()
    for text in (shown.out, shown.err, caplog.text):
        assert "hf_test" not in text
        assert SIGNATURE not in text
    recipe = json.loads((hub.root / "me/merged/recipe.json").read_text())
    assert Recipe.from_dict(recipe).method == "linear"


@pytest.mark.parametrize("typed", [".", "./", "../merged"])
def test_a_folder_named_by_dots_leaves_the_texts_whole(
    typed: str, hub: WritableHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)
    (model / "README.md").write_text(f"---\nlicense: mit\n---\n# v1.0 of org{model}-x, in {model}/model.safetensors\n")
    assert main(["push", typed, "me/merged"]) == 0
    there = hub.root / "me/merged"
    assert (there / "config.json").read_bytes() == (model / "config.json").read_bytes()
    assert (there / "README.md").read_text().endswith(f"# v1.0 of org{model}-x, in merged/model.safetensors\n")


def adapter(folder: Path, base: str) -> Path:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes = {"A": (4, 8), "B": (8, 4)}
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    write_safetensors(folder / "adapter_model.safetensors", {f"{prefix}{k}.weight": v for k, v in shapes.items()})
    return folder


def test_of_an_adapters_base_only_the_name_goes_out(hub: WritableHub, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", "/home/alice/café/llama")
    head = "base_model: /home/alice/llama-2\ntags:\n- base_model:adapter:/home/alice/llama-2"
    (folder / "README.md").write_text(f"---\n{head}\n---\nOf /home/alice/llama-2, /home/alice/café/llama.\n")
    for name in ("training_args.bin", "trainer_state.json", "checkpoint-1/optimizer.pt", "rng_state_0.pth"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("/home/alice")
    (folder / "Modelfile").write_text("FROM /home/alice/x.gguf\n")
    (folder / "x.gguf").write_bytes(b"GGUF")
    assert main(["push", str(folder), "me/adapter"]) == 0
    there = hub.root / "me/adapter"
    assert hashes(there).keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors", "x.gguf"}
    assert json.loads((there / "adapter_config.json").read_text())["base_model_name_or_path"] == "llama"
    assert (there / "README.md").read_text().endswith("- base_model:adapter:llama-2\n---\nOf llama-2, llama.\n")


def test_nested_configurations_name_no_folders(hub: WritableHub, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    parts = {"text_config": {"_name_or_path": "/home/alice/a"}, "more": [{"x": {"_name_or_path": "/home/alice/b"}}]}
    (model / "config.json").write_text(json.dumps({**config, **parts}))
    (model / "tokenizer_config.json").write_text("[]")
    (model / "recipe.json").write_bytes(b"\xff")
    assert main(["push", str(model), "me/merged"]) == 0
    assert "alice" not in (hub.root / "me/merged/config.json").read_text()


def test_of_a_folder_of_gguf_files_only_these_go_out(hub: WritableHub, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "ggufs"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "x.gguf").write_bytes(b"GGUF")
    assert main(["push", str(folder), "me/none"]) == 2, "GGUF files further down make no model of it"
    for name in ("x.gguf", "LICENSE", ".env", "secret.txt"):
        (folder / name).write_bytes(b"GGUF")
    (folder / "README.md").write_text(f"---\nlicense: mit\nbase_model: /home/alice/m\n---\n{folder} /home/alice/m\n")
    (folder / "Modelfile").write_text("# Made by EvoMerge: x\nFROM ./x.gguf\n")
    assert main(["push", str(folder), "me/gguf"]) == 0
    assert hashes(hub.root / "me/gguf").keys() == {"x.gguf", "LICENSE", "README.md", "Modelfile"}
    assert (hub.root / "me/gguf/README.md").read_text().endswith("base_model: m\n---\nggufs m\n")
    (folder / "Modelfile").write_text("FROM /home/alice/x.gguf\n")
    assert main(["push", str(folder / "x.gguf"), "me/one"]) == 0
    assert hashes(hub.root / "me/one").keys() == {"x.gguf", "README.md"}, "and a card made for it"


@pytest.mark.parametrize(("written", "licence"), [("[mit]", "mit"), ("[mit, gemma]", ""), ("mit", "mit")])
def test_a_list_of_licences_is_no_licences_name(written: str, licence: str) -> None:
    model = (LocalFile("README.md", f"---\nlicense: {written}\n---\n".encode()),)
    publication = Publication(model, (LocalFile("x.gguf", b"GGUF"),))
    card = next(one for one in publication.gguf_alone("me/x") if one.name == "README.md")
    assert publication.card["license"] == licence
    assert (f"license: {licence}\\n" in str(card.content)) == bool(licence)
    assert "['" not in str(card.content)


def test_a_run_pushed_at_its_end_tells_what_was_changed(hub: WritableHub, model: Path, capsys: Capture) -> None:
    push_champion(model, "me/merged", Console())
    assert "note: the card names no licence" in capsys.readouterr().err


def test_without_a_recipe_no_licence_is_made_up(hub: WritableHub, model: Path, capsys: Capture) -> None:
    base = write_model_folder(hub.root / "org" / "a")
    (base / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n")
    (model / "README.md").write_text("---\nbase_model: org/a\n---\n# x\n")
    (model / "recipe.json").unlink()
    assert main(["push", str(model), "me/merged"]) == 0
    card = ModelCard.load(str(hub.root / "me/merged/README.md"))
    assert (card.data.license, card.data.language) == (None, ["en"])
    assert "the card names no licence" in capsys.readouterr().err


def test_the_card_passes_the_hubs_validation_and_comes_back(hub: WritableHub, model: Path) -> None:
    assert main(["push", str(model), "me/merged"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card = ModelCard.load(str(hub.root / "me/merged/README.md"))
        card.validate()
    assert card.data.pipeline_tag == "text-generation"
    with pytest.raises(ValueError, match="Use a model id"):
        ModelCard("---\nbase_model: /home/me/model\n---\n").validate()


def test_licence_and_language_come_from_the_sources_cards_on_the_hub(hub: WritableHub, model: Path) -> None:
    for name, licence in (("a", "mit"), ("b", "apache-2.0")):
        folder = write_model_folder(hub.root / "org" / name)
        (folder / "README.md").write_text(f"---\nlicense: {licence}\nlanguage: en\n---\n")
    recipe = Recipe.of_models("linear", [(ModelReference(f"org/{name}"), {"weight": 1.0}) for name in "ab"])
    (model / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    assert main(["push", str(model), "me/merged"]) == 0
    card = ModelCard.load(str(hub.root / "me/merged/README.md"))
    assert (card.data.license, card.data.language) == ("apache-2.0", ["en"])
    assert "license" not in (model / "README.md").read_text(), "the folder stays as it was"


def test_gguf_files_go_along_or_get_a_repository_of_their_own(hub: WritableHub, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "gguf").mkdir(parents=True)
    model.rename(out / "model")
    (out / "gguf" / "champion-BF16.gguf").write_bytes(b"GGUF" + bytes(1000))
    (out / "gguf" / "Modelfile").write_text("# Made by EvoMerge: x\nFROM ./champion-BF16.gguf\n")
    assert main(["push", str(out), "me/all"]) == 0
    assert {"champion-BF16.gguf", "Modelfile", "model.safetensors"} <= hashes(hub.root / "me/all").keys()
    requests = list(hub.requests)
    assert main(["push", str(out), "me/all", "--gguf-repo", "Me/all"]) == 2, "its card would take the model's place"
    assert hub.requests == requests
    assert main(["push", str(out), "me/merged", "--gguf-repo"]) == 0
    assert "champion-BF16.gguf" not in hashes(hub.root / "me/merged")
    assert hashes(hub.root / "me/merged-GGUF").keys() == {"champion-BF16.gguf", "Modelfile", "README.md"}
    card = ModelCard.load(str(hub.root / "me/merged-GGUF/README.md"))
    assert (card.data.base_model, card.data.base_model_relation, card.data.library_name) == (
        ["me/merged"], "quantized", "gguf",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "folder", "words"),
    [
        ({"status": "started"}, True, "is not finished (started)"),
        ({"status": "failed"}, True, "is not finished (failed)"),
        ({"status": "finished"}, False, "has no champion"),
    ],
)
def test_a_run_without_a_champion_is_not_pushed(
    state: dict[str, Any], folder: bool, words: str, hub: WritableHub, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    (out / ".evomerge").mkdir(parents=True)
    (out / ".evomerge" / "run.json").write_text(json.dumps({"spec_digest": "x", **state}))
    if folder:
        write_model_folder(out / "model")
    assert main(["push", str(out), "me/x"]) == 2
    assert words in capsys.readouterr().err
    assert hub.requests == []


def test_a_run_at_a_server_is_pushed_from_its_store(
    hub: WritableHub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    log = synthetic_log.events()
    at = next(i for i, one in enumerate(log) if isinstance(one.event.payload, RunFinished))
    run = dataclasses.replace(log[at].event, payload=ArtifactExported(job_id="x", format="hf", uri=model.as_uri()))
    monkeypatch.setattr(
        "evomerge_cli.commands.report.events_of", lambda *_: [*log[:at], Recorded(at + 1, run), *log[at:]]
    )
    monkeypatch.setattr("evomerge_cli.commands.report.suite_of", lambda _: synthetic_log.suite())
    assert main(["push", "run-1", "me/remote"]) == 0
    card = (hub.root / "me/remote/README.md").read_text()
    assert "The champion improved on its best source" in card
    assert yaml_errors(card) == []
    monkeypatch.setattr("evomerge_cli.commands.report.events_of", lambda *_: log[:at])
    assert main(["push", "run-1", "me/remote"]) == 2
    assert "run run-1 is not finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    "head",
    [
        "base_model: /home/me/x", "base_model: [a/b/c]", "base_model: a/b\nbase_model_relation: blend", "license: mine",
        "language: english", "pipeline_tag: chat", "license: other\ntags: [1]", "base_model_relation: merge",
        "model-index:\n- name: x\n  results:\n  - task: {type: t}\n    dataset: {name: n}\n    metrics: [{type: a}]",
        "model-index:\n- name: x\n  results:\n  - task: {type: t}\n    dataset: {name: n, type: t}\n    metrics: []",
    ],
)  # fmt: skip
def test_the_test_hub_is_strict(head: str) -> None:
    assert yaml_errors(f"---\n{head}\n---\n")
