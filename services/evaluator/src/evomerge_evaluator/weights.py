"""Where a candidate's weights are: in the artifact store, in the model store, or made here."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import structlog
from cachetools import LRUCache

from evomerge_common.domain.messages import EvaluateJob
from evomerge_common.domain.recipe import Recipe
from evomerge_common.errors import ModelNotFound, NotFound
from evomerge_common.ports import ArtifactStore, ModelStore
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.files import remove
from evomerge_common.runtime.sources import source_folders
from evomerge_scoring import child as scoring

CAPACITY = 4
"""Recipes whose weights this machine made itself and keeps for their next rungs."""


class Weights:
    """Finds a candidate's weights, or makes them beside the scoring of another candidate.

    Args:
        artifacts: where the merger puts the weights of candidates.
        models: where the sources are.
        executor: a process of its own, in which recipes are executed; None: nothing is made ahead.

    """

    def __init__(self, artifacts: ArtifactStore, models: ModelStore, executor: ChildProcess | None) -> None:
        self._artifacts = artifacts
        self._models = models
        self._executor = executor
        self._made = _Folders(CAPACITY)
        self._log = structlog.get_logger("evomerge.evaluator")

    def folder(self, payload: EvaluateJob) -> Path | None:
        """Returns the candidate's folder; None where there is none or this machine cannot reach it.

        Raises:
            UnservedScheme: the job names its weights by a URI of a scheme that no store serves.

        """
        uri = payload.artifact_uri
        if uri and any(model.uri == uri for model in payload.sources):  # a source as it is lies in the model store
            try:
                return self._models.open(uri)
            except ModelNotFound:
                return None
        if uri:
            try:
                return self._artifacts.open(uri)
            except NotFound:
                self._log.info("weights out of reach, the recipe is executed here", uri=uri)
        return self._made.get(payload.recipe_digest)

    async def prepare(self, payload: EvaluateJob) -> None:
        """Executes the recipe of weights out of reach, where its sources are here; they stay for the next rungs."""
        if not payload.artifact_uri or await asyncio.to_thread(self.folder, payload) is not None:
            return
        recipe = Recipe.from_json(payload.recipe_json)
        models = source_folders(payload.sources, self._models)
        if self._executor is None or any(source.key not in models for source in recipe.sources()):
            return
        if recipe.digest == Recipe.of_source(recipe.sources()[0]).digest:
            return
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="evomerge-"))
        try:
            threads = payload.threads or scoring.DEFAULT_THREADS
            await self._executor.call(scoring.execute, payload.recipe_json, models, folder, threads)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._made[payload.recipe_digest] = folder

    def close(self) -> None:
        """Removes the weights that were made here."""
        self._made.clear()


class _Folders(LRUCache[str, Path]):
    """Folders by recipe digest; one that is dropped is removed."""

    def popitem(self) -> tuple[str, Path]:
        """Drops the folder that was used longest ago, and removes it."""
        digest, folder = super().popitem()
        remove(folder)
        return digest, folder
