"""Where a candidate's weights are: in the artifact store, in the model store, or made here."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

import structlog

from evomerge_common.domain.messages import EvaluateJob
from evomerge_common.domain.recipe import Recipe
from evomerge_common.errors import NotFound
from evomerge_common.ports import ArtifactStore
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.uris import model_folders, path_of_uri
from evomerge_scoring import child as scoring

KEPT = 4
"""Recipes whose weights this machine made itself and keeps for their next rungs."""


class Weights:
    """Finds them, or makes them beside the scoring of another candidate.

    Args:
        executor: a process of its own, in which recipes are executed; None: nothing is made ahead.

    """

    def __init__(self, artifacts: ArtifactStore, executor: ChildProcess | None) -> None:
        self._artifacts = artifacts
        self._executor = executor
        self._made: OrderedDict[str, Path] = OrderedDict()
        self._log = structlog.get_logger("evomerge.evaluator")

    def folder(self, payload: EvaluateJob) -> Path | None:
        """The candidate's folder; None where there is none or this machine cannot reach it."""
        uri = payload.artifact_uri
        if uri and any(model.uri == uri for model in payload.sources):  # a source as it is lies in the model store
            folder = path_of_uri(uri)
            return folder if folder is not None and folder.is_dir() else None
        if uri:
            try:
                return self._artifacts.open(uri)
            except NotFound:
                self._log.info("weights out of reach, the recipe is executed here", uri=uri)
        return self._made.get(payload.recipe_digest)

    async def prepare(self, payload: EvaluateJob) -> None:
        """Of weights out of reach, executes the recipe where its sources are here; they stay for the next rungs."""
        if not payload.artifact_uri or await asyncio.to_thread(self.folder, payload) is not None:
            return
        recipe = Recipe.from_json(payload.recipe_json)
        models = model_folders(payload.sources)
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
        while len(self._made) > KEPT:
            shutil.rmtree(self._made.popitem(last=False)[1], ignore_errors=True)

    def close(self) -> None:
        """Removes the weights that were made here."""
        while self._made:
            shutil.rmtree(self._made.popitem()[1], ignore_errors=True)
