"""Files that lie are refused before a byte of them is believed; honest ones are read as their makers meant them."""

from __future__ import annotations

import errno
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evomerge_common.errors import DiskFull, EvoMergeException, ModelError, ModelNotFound, NotAModel, UnsafeFile
from evomerge_merging.io.dtypes import element_type
from evomerge_merging.io.model_folder import open_weights
from evomerge_merging.io.safetensors_file import SafetensorsFile
from evomerge_merging.io.writer import SafetensorsWriter, shard
from evomerge_models.dtypes import F32
from evomerge_models.files import check_whole
from helpers.headers import Case, entry
from helpers.tiny_merging import random_tensors, raw_model


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 140))
def test_whatever_the_bytes_the_answer_is_a_typed_error_or_a_sound_file(
    tmp_path_factory: Any, noise: bytes, at: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x"
    good = json.dumps({"a": entry(), "b": entry(data_offsets=[8, 16])}).encode()
    whole = bytearray(struct.pack("<Q", len(good)) + good + bytes(16))
    whole[at : at + len(noise)] = noise
    path.write_bytes(whole)
    try:
        with SafetensorsFile(path) as file:
            for name, info in file.tensors.items():
                assert tuple(file.tensor(name).shape) == info.shape
                assert file.block(name, 0, info.numel).numel() == info.numel
    except EvoMergeException:
        pass


def test_reads_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    dtypes = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.bool,
    ]
    tensors = {str(dtype): torch.arange(12).reshape(3, 4).to(dtype) for dtype in dtypes}
    tensors |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(3.0), "f8": torch.ones(5).to(torch.float8_e4m3fn)}
    save_file(tensors, tmp_path / "x", {"format": "pt"})
    with SafetensorsFile(tmp_path / "x") as file:
        assert file.metadata == {"format": "pt"}
        for name, tensor in tensors.items():
            got = file.tensor(name)
            assert got.shape == tensor.shape
            assert got.dtype == tensor.dtype
            assert torch.equal(got.view(torch.uint8) if got.numel() and got.dim() else got,
                               tensor.view(torch.uint8) if tensor.numel() and tensor.dim() else tensor)  # fmt: skip
            assert torch.equal(file.block(name, 0, tensor.numel()).float(), tensor.reshape(-1).float())


def test_a_tensor_that_lies_crooked_in_the_file_is_read(tmp_path: Path) -> None:
    header = {"a": entry(dtype="BOOL", shape=[1], data_offsets=[0, 1]), "b": entry(data_offsets=[1, 9])}
    Case(header, b"\1" + struct.pack("<2f", 1.5, -2.5)).write(tmp_path / "x")
    with SafetensorsFile(tmp_path / "x") as file:
        assert file.tensor("b").tolist() == [1.5, -2.5]
        assert file.block("b", 1, 2).tolist() == [-2.5]


def test_a_file_that_becomes_shorter_is_an_error_not_a_crash(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1000)}, tmp_path / "x")
    with SafetensorsFile(tmp_path / "x") as file:
        with (tmp_path / "x").open("r+b") as handle:
            handle.truncate(200)
        with pytest.raises(UnsafeFile, match="shorter"):
            file.block("a", 0, 1000)


def test_writes_in_any_order_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(10), "b": torch.tensor([True]), "c": torch.randn(3, 3).to(torch.bfloat16)}
    writer = SafetensorsWriter(
        tmp_path / "x", [(n, tuple(t.shape), element_type(t.dtype)) for n, t in tensors.items()], {"k": "v"}
    )
    writer.write("c", 4, tensors["c"].reshape(-1)[4:])
    writer.write("a", 0, tensors["a"])
    writer.write("c", 0, tensors["c"].reshape(-1)[:4])
    writer.write("b", 0, tensors["b"])
    writer.close()
    assert all(torch.equal(got, tensors[name]) for name, got in load_file(tmp_path / "x").items())
    assert (tmp_path / "x").stat().st_size == writer.bytes


def test_no_room_left_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", refuse)
    with pytest.raises(DiskFull, match="free some space"):
        SafetensorsWriter(tmp_path / "x", [("a", (1,), F32)])


def test_shards_hold_at_most_what_they_may() -> None:
    specs = [(str(i), (size,), torch.uint8) for i, size in enumerate([4, 4, 9, 1, 1])]
    assert [[name for name, *_ in part] for part in shard(specs, 8)] == [["0", "1"], ["2"], ["3", "4"]]


@pytest.mark.parametrize("name", ["../other/x.safetensors", "/etc/passwd", "..", "", "a\\b", 3])
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: Any) -> None:
    folder = raw_model(tmp_path / "m", random_tensors(0, 10))
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"norm.weight": name}}))
    with pytest.raises(UnsafeFile, match="not a file of this folder"):
        open_weights(folder)


def test_an_incomplete_download_is_told(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "m", random_tensors(0, 10))
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"norm.weight": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(NotAModel, match="lacks model-00001"):
        open_weights(folder)
    index.write_text(json.dumps({"weight_map": {"other.weight": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(NotAModel, match="says that"):
        open_weights(folder)


def test_bin_files_are_read_without_running_code(tmp_path: Path) -> None:
    tensors = random_tensors(0, 10)
    folder = raw_model(tmp_path / "m", tensors)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert torch.equal(open_weights(folder).block("norm.weight", 2, 4), tensors["norm.weight"][2:4])

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UnsafeFile, match="safetensors"):
        open_weights(folder)
    torch.save({"a": [1, 2]}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFile, match="other than tensors"):
        open_weights(folder)
    assert not (tmp_path / "ran").exists()


def test_folders_that_are_no_models_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        check_whole(tmp_path / "nowhere")
    with pytest.raises(NotAModel, match=r"config\.json"):
        check_whole(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="LoRA"):
        check_whole(tmp_path)
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ModelError, match="GGUF"):
        check_whole(tmp_path / "x.gguf")
    (tmp_path / "config.json").write_text("{}")
    check_whole(tmp_path)
    with pytest.raises(ModelError, match="GGUF"):
        open_weights(tmp_path)
    (tmp_path / "x.gguf").unlink()
    with pytest.raises(NotAModel, match="neither"):
        open_weights(tmp_path)
