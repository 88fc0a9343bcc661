"""Names and headers tell whether a folder can be used; what lies is refused."""

import json
import struct
from pathlib import Path

import pytest

from evomerge_common.errors import ModelError, ModelNotFound, NotAModel, UnsafeFile
from evomerge_models.describe import check_model_folder, describe_model
from evomerge_models.files import read_json_object, select_files
from evomerge_models.headers import read_header
from evomerge_models.pair import PAIR, read_pair
from helpers.hub_server import write_model_folder, write_safetensors

FULL = ["config.json", "tokenizer.json"]


def test_describes_from_headers(tmp_path: Path) -> None:
    described = describe_model(write_model_folder(tmp_path / "m"))
    assert (described.architecture, described.num_layers, described.parameters) == ("LlamaForCausalLM", 2, 320)
    assert described.files == ("config.json", "model.safetensors", "tokenizer.json")


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin"], ("model.safetensors",)),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
         ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")),
        (["model.safetensors", "consolidated.safetensors", "adapter_model.safetensors"], ("model.safetensors",)),
        (["pytorch_model.bin", "optimizer.bin", "training_args.bin", "x.pt", "y.pkl"], ("pytorch_model.bin",)),
        (["weights.safetensors"], ("weights.safetensors",)),
    ],
)  # fmt: skip
def test_weights_chosen(names: list[str], weights: tuple[str, ...]) -> None:
    assert select_files(FULL + names, "here").weights == weights


def test_takes_no_code_and_no_other_files() -> None:
    names = [*FULL, "model.safetensors", "modeling_x.py", "onnx/model.onnx", "tf_model.h5", "../config.json", "a b.txt"]
    assert select_files(names, "here").files == ("config.json", "model.safetensors", "tokenizer.json")


def test_takes_the_modules_of_sentence_transformers_and_nothing_else_from_folders(tmp_path: Path) -> None:
    model = [*FULL, "model.safetensors"]
    modules = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    others = [
        "onnx/model.onnx", "openvino/config.json", "2_Dense/pytorch_model.bin", "1_Pooling/run.py",
        "../3_X/config.json",
        "1_Pooling/../../config.json", "1_Pooling/deep/config.json", "/1_Pooling/config.json", "1_..\\x/config.json",
    ]  # fmt: skip
    chosen = select_files([*model, "modules.json", *modules, *others], "here")
    assert chosen.files == tuple(sorted([*model, "modules.json", *modules]))
    assert chosen.weights == ("model.safetensors",)
    assert select_files([*model, *modules], "here").files == tuple(sorted(model))
    folder = write_model_folder(tmp_path / "m")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    assert "1_Pooling/config.json" not in describe_model(folder).files
    (folder / "modules.json").write_text("[]")
    assert "1_Pooling/config.json" in describe_model(folder).files


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (["README.md"], NotAModel, "no config.json"),
        ([], NotAModel, "empty"),
        (FULL, NotAModel, "no weights"),
        ([*FULL, "training_args.bin"], NotAModel, "no weights"),
        (["config.json", "model.safetensors"], NotAModel, "no tokenizer"),
        (["adapter_config.json", "adapter_model.bin"], UnsafeFile, "a pickle, which is not read"),
        (["adapter_config.json"], NotAModel, "no adapter_model.safetensors"),
        (["x-q4_0.gguf"], ModelError, "GGUF"),
    ],
)
def test_unusable_folders(names: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        select_files(names, "here")


def test_missing_folder_and_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no folder"):
        check_model_folder(tmp_path / "none")
    (tmp_path / "m.gguf").write_bytes(b"x" * 32)
    with pytest.raises(UnsafeFile, match="GGUF"):
        check_model_folder(tmp_path / "m.gguf")


@pytest.mark.parametrize("target", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "x.pkl"])
def test_index_that_points_out(tmp_path: Path, target: str) -> None:
    folder = write_model_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": target}}))
    with pytest.raises(UnsafeFile, match="points to"):
        check_model_folder(folder)


def test_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NotAModel, match="lacks model-00002-of-00002"):
        check_model_folder(folder)


def test_header_of_a_good_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"a": (2, 3)})
    assert read_header(tmp_path / "x.safetensors").tensors["a"].shape == (2, 3)


def entry(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}


@pytest.mark.parametrize(
    "header",
    [
        entry(dtype="PICKLE"),
        entry(shape=[-4]),
        entry(shape=[2**62, 2**62]),
        entry(shape="4"),
        entry(data_offsets=[0, 32]),
        entry(data_offsets=[16, 0]),
        entry(data_offsets=[0]),
        entry(shape=[True]),
        {"a": entry()["a"], "b": entry()["a"]},
        {"a": 3},
        [],
    ],
)
def test_lying_headers(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(UnsafeFile):
        read_header(path)


@pytest.mark.parametrize(
    "start", [b"", b"\x01", struct.pack("<Q", 2**63), struct.pack("<Q", 50) + b"{", b"\x02" + b"\0" * 7 + b"[["]
)
def test_broken_starts(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(start)
    with pytest.raises(UnsafeFile):
        read_header(path)


def test_cut_short(tmp_path: Path) -> None:
    path = write_model_folder(tmp_path / "m") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnsafeFile, match="cut short"):
        check_model_folder(tmp_path / "m")


def test_config_that_is_no_json(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(NotAModel, match="no JSON"):
        check_model_folder(folder)


def test_what_fetching_again_cannot_mend_is_told_with_what_can(tmp_path: Path) -> None:
    base = write_model_folder(tmp_path / "base")
    pair = tmp_path / "pair"
    pair.mkdir()
    (pair / PAIR).write_text(json.dumps({"base": str(base), "adapter": str(tmp_path / "gone")}))
    with pytest.raises(NotAModel, match=r"gone is gone; put it back, or give both again as base\+adapter"):
        read_pair(pair)
    (base / "config.json").write_text("{")
    with pytest.raises(NotAModel, match=r"is no JSON .*save the model anew, or fetch it again where"):
        describe_model(base)
    (base / "config.json").unlink()
    (base / "config.json").mkdir()
    with pytest.raises(NotAModel, match="make it readable for this user"):
        read_json_object(base / "config.json")
