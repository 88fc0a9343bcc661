"""The source models of a job, as folders of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from evomerge_common.domain.messages import Model
from evomerge_common.errors import ModelNotFound
from evomerge_common.ports import ModelStore


def source_folders(models: Iterable[Model], store: ModelStore) -> dict[str, Path]:
    """Finds the folder of each model that is within reach, by ModelReference.key; the others are left out.

    Raises:
        UnservedScheme: a model's URI is of a scheme that no store serves.

    """
    found = {}
    for model in models:
        try:
            found[model.digest or model.reference] = store.open(model.uri)
        except ModelNotFound:
            continue
    return found
