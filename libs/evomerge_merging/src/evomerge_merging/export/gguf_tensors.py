"""Which tensors of a folder make which of a GGUF file, and how: by the architecture's row in `gguf/table.py`."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evomerge_common.errors import ModelError
from evomerge_merging.engine.architecture import is_tied
from evomerge_merging.engine.stored import config_as_stored
from evomerge_merging.io.model_folder import TensorStore
from evomerge_models.files import read_json_object
from evomerge_models.gguf.configs_out import check
from evomerge_models.gguf.lookup import of_config, text_config
from evomerge_models.quantised import check_plain


class GgufTensors:
    """A folder's tensors by their GGUF names, in llama.cpp's order of layers."""

    def __init__(self, folder: Path, store: TensorStore) -> None:
        config, _ = config_as_stored(read_json_object(folder / "config.json"), store, str(folder))
        self.folder, self.store = folder, store
        self.architecture = of_config(config, str(folder))
        check_plain(config, {name: info.dtype.name for name, info in store.tensors.items()}, str(folder))
        self.config = text_config(_as_transformers_reads(config))
        check(self.config, self.architecture, str(folder))
        self.sources: dict[str, list[tuple[int, str]]] = {}
        self.half: dict[str, int] = {}
        self.left_out: list[str] = []
        self.beyond: list[str] = []
        self.depth = int(self.architecture.said("block_count", self.config) or 0)
        self.apart = self.config.get("model_type") != config.get("model_type")
        for theirs in store.tensors:
            self._place(theirs)
        self._check_head(is_tied(config, store.tensors))
        self.sources = {
            ours: sorted(found) for ours, found in sorted(self.sources.items(), key=lambda item: _order(item[0]))
        }
        self.heads = self.architecture.said("attention.head_count", self.config)
        self.kv_heads = self.architecture.said("attention.head_count_kv", self.config) or self.heads
        self.scaled, self.scale = self.architecture.query_scale(self.config)
        self._check_layers()

    def _place(self, theirs: str) -> None:
        """Finds where a tensor goes."""
        architecture = self.architecture
        if self.apart and not _is_text(theirs):
            self.left_out.append(theirs)
            return
        name = _TEXT_PREFIX.sub(architecture.prefix, theirs) if self.apart else theirs
        if name.startswith(f"{architecture.prefix}{architecture.head}.") and self.apart:
            name = name.removeprefix(architecture.prefix)
        places = architecture.places(name.removeprefix("bert.") if architecture.model_type == "bert" else name)
        if not places:
            if not architecture.is_ignored(theirs):
                raise ModelError(f"{self.folder}: llama.cpp's {architecture.name} models have no tensor {theirs!r}")
            self.left_out.append(theirs)
        layer = places[0].name.split(".")[1] if places and places[0].name.startswith("blk.") else "0"
        if int(layer) >= self.depth:  # transformers leaves them out as well
            self.beyond.append(theirs)
            return
        for one in places:
            self.sources.setdefault(one.name, []).append((one.expert, theirs))
            self.half[one.name] = one.half

    def _check_head(self, tied: bool) -> None:
        """Leaves the head out where it is the embedding, and writes the embedding twice where llama.cpp needs both."""
        architecture, folder = self.architecture, self.folder
        if "token_embd.weight" not in self.sources:
            raise ModelError(f"{folder} has no token embedding, so it cannot become GGUF")
        if tied:
            self.sources.pop("output.weight", None)
        elif architecture.head and "output.weight" not in self.sources:
            raise ModelError(f"{folder} has no head ({architecture.head}.weight), and its config says it needs one")
        if architecture.own_head is False and "output.weight" in self.sources:
            raise ModelError(
                f"{folder} has a head of its own, which llama.cpp's {architecture.name} does not: export a folder"
            )
        if architecture.own_head and tied:
            self.sources["output.weight"], self.half["output.weight"] = self.sources["token_embd.weight"], -1

    def _check_layers(self) -> None:
        """Refuses what cannot be written whole: heads that do not share rows, experts or layers that are not there."""
        depth = self.depth
        parts: dict[int, set[str]] = {number: set() for number in range(depth)}
        for ours, found in self.sources.items():
            if found[0][0] >= 0 and [number for number, _ in found] != list(range(len(found))):
                raise ModelError(f"{self.folder} lacks some experts of {ours}: fetch the model again")
            try:
                self.architecture.row_order(ours, self.shape(ours)[0], self.heads, self.kv_heads)
            except ValueError:
                raise ModelError(
                    f"{self.folder}: {found[0][1]} has {self.shape(ours)[0]} rows, which {self.heads} heads "
                    f"({self.kv_heads} of keys) do not share"
                ) from None
            if ours.startswith("blk."):
                _, number, part = ours.split(".", 2)
                parts[int(number)].add(part)
        dense = self.architecture.said("leading_dense_block_count", self.config) or 0
        first = {number: 0 if number < dense else min(dense, depth - 1) for number in parts}
        other = next((number for number in parts if parts[number] != parts[first[number]]), None)
        if other is not None:
            odd = sorted(parts[first[other]] ^ parts[other])
            raise ModelError(
                f"{self.folder}: layers {first[other]} and {other} do not hold the same tensors ({odd[0]}), which "
                f"llama.cpp's {self.architecture.name} needs: export a Hugging Face folder"
            )

    def shape(self, ours: str) -> tuple[int, ...]:
        """As GGUF has it, rows first."""
        found = self.sources[ours]
        shape = self.store.tensors[found[0][1]].shape
        if self.architecture.is_transposed(ours):
            return tuple(reversed(shape))
        if self.half[ours] >= 0:
            return (*shape[:-2], shape[-2] // 2, shape[-1])
        return (len(found), *shape) if found[0][0] >= 0 else shape

    def tensor(self, ours: str) -> torch.Tensor:
        """The tensor as GGUF orders it, in its own type (float32 where something is added)."""
        architecture, found = self.architecture, self.sources[ours]
        if found[0][0] >= 0:
            return torch.stack([self.store.tensor(theirs) for _, theirs in found])
        tensor = self.store.tensor(found[0][1])
        if self.half[ours] >= 0:
            return tensor.chunk(2, dim=-2)[self.half[ours]].contiguous()
        if architecture.is_transposed(ours):
            tensor = tensor.T
        order = architecture.row_order(ours, tensor.shape[0], self.heads, self.kv_heads)
        if order is not None:
            tensor = tensor[torch.from_numpy(order)]
        if shift := architecture.shift_of(ours):
            tensor = tensor.float() + shift
        if self.scale != 1.0 and ours.endswith(f".{self.scaled}"):
            tensor = (tensor.float() * self.scale).to(tensor.dtype)
        return tensor.contiguous()


_TEXT_PREFIX = re.compile(r"^(model\.language_model\.model\.|language_model\.model\.|model\.language_model\.|"
                          r"model\.text_model\.|language_model\.)")  # fmt: skip


_TEXT_NAMES = ("lm_head.", "model.embed_tokens.", "model.layers.", "model.norm.")


def _is_text(name: str) -> bool:
    """Whether a tensor of a model of images and text belongs to its text model."""
    return _TEXT_PREFIX.match(name) is not None or name.startswith(_TEXT_NAMES)


def _as_transformers_reads(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with every field of its class, its text part too: what a file does not say is its default.

    Raises:
        ModelError: its class does not take it.

    """
    from transformers import CONFIG_MAPPING  # it takes seconds

    fields = {key: value for key, value in copy.deepcopy(dict(config)).items() if key != "quantization_config"}
    try:
        made = CONFIG_MAPPING[str(fields["model_type"])].from_dict(fields).to_dict()
    except Exception as error:  # whatever a config of strangers makes the library raise
        raise ModelError(f"transformers does not take the config: {str(error).strip()[:200]}") from error
    return {**made, "model_type": fields["model_type"]}


def _order(name: str) -> tuple[int, int, str]:
    parts = name.split(".")
    return (1, int(parts[1]), name) if parts[0] == "blk" else (0 if parts[0].startswith("tok") else 2, 0, name)
