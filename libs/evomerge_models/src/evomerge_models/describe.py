"""What a model is, from names and headers alone: no weights are read and nothing is unpickled. Takes milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge_common.domain.licence_names import joined, licence_of_metadata
from evomerge_common.errors import ModelNotFound, NotAModel
from evomerge_models.adapter import read_adapter
from evomerge_models.adapter_changes import changes
from evomerge_models.card import licence_of_folder
from evomerge_models.files import (
    ADAPTER_WEIGHTS,
    CONFIG,
    WeightFiles,
    check_index,
    names_with_modules,
    read_json_object,
    select_files,
    weight_files,
)
from evomerge_models.headers import TensorInfo, read_header
from evomerge_models.layers import MOVABLE, hops_scale, movement
from evomerge_models.pair import read_pair
from evomerge_models.quantised import check_plain


@dataclass(frozen=True)
class ModelDescription:
    """What config and headers tell.

    Attributes:
        architecture: such as LlamaForCausalLM; "" for an adapter without its base.
        num_layers: hidden layers; 0 where the config does not say.
        layers: what may be done with them: a word of `evomerge_models.layers`.
        hops_scale: whether the hidden state can be scaled between layers.
        parameters: elements of all stored tensors; 0 for .bin weights, which are not opened to count them.
        bytes: of the selected files.
        files: their names, sorted.
        licence: as card or text beside it say, in the words of `licence_names`, joined where there are several; "" for
            unknown.

    """

    architecture: str
    num_layers: int
    parameters: int
    bytes: int
    files: tuple[str, ...]
    layers: str = MOVABLE
    hops_scale: bool = True
    licence: str = ""


def check_model_folder(path: Path) -> None:
    """Refuses a folder that cannot be merged or scored; takes milliseconds whatever the model's size.

    Raises:
        ModelError: see `describe_model`.

    """
    describe_model(path)


def describe_model(path: Path) -> ModelDescription:
    """Checks a model folder, adapter folder, pair or GGUF file, and tells what it holds.

    Raises:
        ModelNotFound: there is no such folder.
        NotAModel: config, weights, a shard or the tokenizer is missing.
        UnsafeFile: a header or an index that lies or points out of the folder.
        QuantisedModel: codes and scales in place of weights.
        ModelError: an adapter that is not applied; a GGUF architecture that is not read.

    """
    if not path.exists():
        raise ModelNotFound(f"no folder {path}; give an existing model folder or a hub id such as org/name")
    if path.is_file():
        if path.suffix == ".gguf":
            return _describe_gguf(path)
        raise NotAModel(f"{path} is a file; give the folder that holds config.json, the weights and the tokenizer")
    if pair := read_pair(path):
        return describe_pair(*pair)
    chosen = select_files(names_with_modules(path), str(path))
    if chosen.is_adapter:
        parameters, size = read_adapter(path).parameters, _bytes(path, chosen.files)
        return ModelDescription("", 0, parameters, size, chosen.files, licence=licence_of_folder(path))
    config, weights = read_json_object(path / CONFIG), weight_files(path)
    tensors = _tensors(path, weights)
    check_plain(config, {name: info.dtype.name for name, info in tensors.items()}, str(path))
    shapes = {name: info.shape for name, info in tensors.items()}
    files = tuple(sorted({*chosen.files, *weights.files}))
    return ModelDescription(
        architecture=_architecture(config),
        num_layers=_num_layers(config),
        parameters=sum(info.numel for info in tensors.values()),
        bytes=_bytes(path, files),
        files=files,
        layers=movement(config, shapes),
        hops_scale=hops_scale(config, shapes),
        licence=licence_of_folder(path),
    )


def describe_pair(base: Path, adapter: Path) -> ModelDescription:
    """Tells what a base with an adapter applied is, after checking that they fit each other.

    Raises:
        ModelError: one of them is unsound, or they do not fit.

    """
    whole, read = describe_model(base), read_adapter(adapter)
    shapes = tensor_shapes(base)
    if shapes:
        changes(read, shapes, label=str(base), model_type=str(read_json_object(base / CONFIG).get("model_type")))
    licence = joined([whole.licence, licence_of_folder(adapter)])
    return replace(whole, bytes=whole.bytes + _bytes(adapter, (ADAPTER_WEIGHTS,)), licence=licence)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape of a model folder or GGUF file; empty for .bin weights, which are not opened.

    Raises:
        ModelError: see `describe_model`.

    """
    if path.suffix == ".gguf" and path.is_file():
        from evomerge_models.gguf.file import GgufFile  # numpy: not for services that meet no GGUF
        from evomerge_models.gguf.folder import read_model

        with GgufFile(path) as file:
            return {one.name: one.shape for one in read_model(file).weights}
    return {name: info.shape for name, info in _tensors(path, weight_files(path)).items()}


def _tensors(folder: Path, weights: WeightFiles) -> Mapping[str, TensorInfo]:
    if not weights.are_safetensors:
        return {}
    headers = {file: read_header(folder / file).tensors for file in weights.files}
    check_index(folder, weights, headers)
    return {name: info for tensors in headers.values() for name, info in tensors.items()}


def _describe_gguf(path: Path) -> ModelDescription:
    """The model that the file's folder will be."""
    from evomerge_models.gguf.file import GgufFile  # numpy: not for services that meet no GGUF
    from evomerge_models.gguf.folder import read_model

    with GgufFile(path) as file:
        model = read_model(file)
        return ModelDescription(
            architecture=model.architecture.hf_class,
            num_layers=int(file.metadata[f"{model.architecture.name}.block_count"]),
            parameters=sum(one.source.numel for one in model.weights),
            bytes=sum(one.bytes for one in model.weights),
            files=(path.name,),
            licence=licence_of_metadata({"license": file.metadata.get("general.license")}),
        )


def _bytes(folder: Path, names: tuple[str, ...]) -> int:
    return sum((folder / name).stat().st_size for name in names)


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else str(config.get("model_type", ""))


def _num_layers(config: Mapping[str, Any]) -> int:
    """Models of several modalities keep it in their text part."""
    for source in (config, config.get("text_config")):
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            if isinstance(source, dict) and isinstance(source.get(key), int):
                return int(source[key])
    return 0
