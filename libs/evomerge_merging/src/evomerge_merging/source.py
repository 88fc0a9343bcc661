"""A source model: its config and where its tensors are, opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge_common.domain.recipe import ModelReference
from evomerge_common.errors import ModelNotFound
from evomerge_merging.io.model_folder import TensorStore, check_folder, open_weights, read_json


@dataclass(frozen=True)
class Source:
    """An open model folder."""

    key: str
    label: str
    folder: Path
    config: Mapping[str, Any]
    store: TensorStore

    @property
    def model_type(self) -> str:
        """The config's model_type, such as "llama"; "" when it has none."""
        return str(self.config.get("model_type", ""))


def open_source(reference: ModelReference, models: Mapping[str, Path]) -> Source:
    """Opens a source where `models` says that it is, else at the local folder that it names.

    Raises:
        ModelNotFound, NotAModel, UnsafeFile: it is not there, or not sound.

    """
    folder = models.get(reference.key) or models.get(str(reference))
    if folder is None:
        local = Path(reference.name).expanduser()
        if reference.adapter:
            raise ModelNotFound(f"{reference}: adapters are applied by the downloader; give the merged model's folder")
        if not local.exists():
            raise ModelNotFound(f"no folder {reference.name!r}, and nobody told where else {reference} is")
        folder = local
    check_folder(folder)
    return Source(reference.key, reference.name, folder, read_json(folder / "config.json"), open_weights(folder))
