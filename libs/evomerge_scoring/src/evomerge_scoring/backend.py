"""What every backend does with a candidate before it loads it: a folder with config and tokenizer, and weights."""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.spec import AUTO
from evomerge_merging.engine.stored import bare_names
from evomerge_models.files import PROCESSOR_FILES
from evomerge_models.pair import read_pair
from evomerge_scoring.loading_errors import model_errors
from evomerge_scoring.model import ScoringModel
from evomerge_scoring.tensors import Weights, folder_weights, held_weights, plan_weights

if TYPE_CHECKING:
    import torch

    from evomerge_merging import Plan

MERGE_THREADS = 2
Model = TypeVar("Model", bound=ScoringModel)


class LoadingBackend(ABC, Generic[Model]):
    """A `model.Backend` but for the loading itself.

    Attributes:
        loads, swaps: how often a model was made afresh, and how often tensors were swapped into the one that is there.

    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = AUTO
        self.loads = self.swaps = 0

    @abstractmethod
    def _load(self, folder: Path, weights: Weights) -> Model:
        """Makes a candidate the model to score; called by each of the `load_…`.

        Args:
            folder: has its config and tokenizer, as long as this takes.
            weights: by the names that transformers has for them.

        Raises:
            ModelError: config, tokenizer and weights are not of one model, or of none that can be scored.

        """

    def load_folder(self, folder: Path) -> Model:
        """Makes a model folder the one to score.

        Raises:
            ModelError: it is missing, no model, unsafe, or its tensors do not fit its config.

        """
        if read_pair(folder) is not None:
            return self._load_merged(folder)
        weights = folder_weights(folder)
        if any(own != name for own, name in bare_names(weights.sources or ()).items()):
            return self._load_merged(folder)
        return self._load(folder, weights)

    def _load_merged(self, folder: Path) -> Model:
        """Loads what a merge of this model alone makes: adapters applied, names as transformers has them."""
        from evomerge_merging import plan_merge

        with model_errors(folder), plan_merge(Recipe.of_source(ModelReference(str(folder)))) as plan:
            return self.load_plan(plan)

    def load_plan(self, plan: Plan, *, threads: int = 2) -> Model:
        """Makes the model of a merge plan the one to score, without a file of it anywhere where that can be.

        Of adapters over one base only what they change is made and put in place, where the base is there already.

        Raises:
            ModelError: the merge cannot be made, or its result is no model.

        """
        threads = max(MERGE_THREADS, threads)  # they change no bit of it
        with tempfile.TemporaryDirectory(prefix="evomerge-") as name:
            folder = Path(name)
            plan.tokenizer.write(folder)
            replace(plan.companions, names=tuple(PROCESSOR_FILES.intersection(plan.companions.names))).write(folder)
            (folder / "config.json").write_text(json.dumps(dict(plan.config)), "utf-8")
            return self._load(folder, plan_weights(plan, threads))

    def load_tensors(self, tensors: Mapping[str, torch.Tensor], config_folder: Path) -> Model:
        """Makes tensors in memory the model to score; config and tokenizer come from a folder.

        Raises:
            ModelError: the tensors do not fit the config.

        """
        return self._load(config_folder, held_weights(tensors))
