"""One reader of safetensors headers, one judgement: of preflight, downloader and merger, beside the library's own."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from evomerge_cli.commands import merge
from evomerge_cli.console import Console
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import EvoMergeException, NotAModel, QuantisedModel, UnsafeFile
from evomerge_downloader.fetch import Fetcher
from evomerge_merging import plan_merge
from evomerge_merging.io.safetensors_file import SafetensorsFile
from evomerge_models.describe import describe_model
from evomerge_models.dtypes import TYPES
from evomerge_models.headers import header_bytes, read_header
from evomerge_models.hub import Hub
from evomerge_models.store import WritableModelStore
from helpers.headers import CASES, Case, entry
from helpers.hub_server import write_model_folder


def library_takes(path: Path) -> bool:
    try:
        with safe_open(path, "numpy"):
            return True
    except SafetensorError:
        return False


@pytest.mark.parametrize("name", CASES)
def test_the_judgement_beside_that_of_the_library(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = case.write(tmp_path / "x.safetensors")
    assert library_takes(path) == bool(case.sound or case.stricter)
    if case.sound:
        read_header(path)
        return
    with pytest.raises(UnsafeFile, match=r"x\.safetensors"):
        read_header(path)


def verdict(ask: Callable[[], object]) -> type[EvoMergeException] | None:
    try:
        ask()
    except EvoMergeException as error:
        return type(error)
    return None


def test_weights_without_a_tensor_are_no_model(tmp_path: Path) -> None:
    folder = folder_of(CASES["no tensor"], tmp_path / "empty")
    assert verdict(lambda: describe_model(folder)) is NotAModel
    assert verdict(lambda: plan_merge(Recipe.of_source(ModelReference(str(folder)))).close()) is NotAModel


def folder_of(case: Case, folder: Path) -> Path:
    case.write(write_model_folder(folder) / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", [name for name in CASES if name != "no tensor"])
def test_preflight_downloader_and_merger_judge_alike(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    folder = folder_of(case, tmp_path / "liar")
    monkeypatch.setenv("EVOMERGE_MODEL_STORE", str(tmp_path / "store"))
    source = ModelReference(str(folder))
    judges = {
        "preflight": lambda: describe_model(folder),
        "merge --dry-run": lambda: merge.fetch([source], Console()),
        "downloader, linked": lambda: Fetcher(WritableModelStore(tmp_path / "s1"), Hub()).fetch(str(folder)),
        "downloader, copied": lambda: Fetcher(WritableModelStore(tmp_path / "s2"), Hub(), link=False).fetch(
            str(folder)
        ),
        "reader of tensors": lambda: SafetensorsFile(folder / "model.safetensors").close(),
        "merger": lambda: plan_merge(Recipe.of_source(source)).close(),
    }
    expected = QuantisedModel if case.packed else None if case.sound else UnsafeFile
    assert {judge: verdict(ask) for judge, ask in judges.items()} == dict.fromkeys(judges, expected)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 200))
@example(b"-0", 41)
def test_noise_that_the_library_refuses_is_refused(tmp_path_factory: Any, noise: bytes, at: int) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x"
    good = json.dumps({"a": entry(), "b": entry(data_offsets=[8, 16])}).encode()
    whole = bytearray(struct.pack("<Q", len(good)) + good + bytes(16))
    whole[at : at + len(noise)] = noise
    path.write_bytes(whole)
    try:
        read_header(path)
    except UnsafeFile:
        return
    assert library_takes(path)


@pytest.mark.parametrize("data", [b"", b"1234567", struct.pack("<Q", 2**63), struct.pack("<Q", 100) + b"{}"])
def test_a_file_cut_short_in_its_header_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UnsafeFile):
        read_header(tmp_path / "x")
    assert not library_takes(tmp_path / "x")


def test_a_header_written_is_the_header_read(tmp_path: Path) -> None:
    wide = [kind for kind in TYPES.values() if not kind.is_packed]
    specs = [(kind.word, (3, 5), kind) for kind in wide]
    start, places = header_bytes(specs, {"format": "pt"})
    (tmp_path / "x").write_bytes(start + bytes(sum(15 * kind.itemsize for kind in wide)))
    header = read_header(tmp_path / "x")
    assert {(info.name, info.shape, info.dtype) for info in header.tensors.values()} == {*specs}
    assert {name: info.start for name, info in header.tensors.items()} == places
    assert all(info.start % info.dtype.itemsize == 0 for info in header.tensors.values())
    assert header.metadata == {"format": "pt"}
    assert library_takes(tmp_path / "x")
