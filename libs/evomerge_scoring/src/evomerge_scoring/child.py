"""What runs in the evaluator's child process: the only place where the service uses torch.

Importing this module imports no torch, so that the service can name its functions.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge_common.domain.recipe import Recipe
from evomerge_common.errors import OutOfMemory, Unavailable
from evomerge_scoring.report import DeviceInfo, GenerateResult, ScoreReport, ScoreRequest

if TYPE_CHECKING:
    from evomerge_scoring.scorer import Load, Scorer

DEFAULT_THREADS = 2
NO_MEMORY = ("not enough memory", "out of memory", "Cannot allocate memory")  # torch's, the device's, a map's words
_options: dict[str, Any] = {}
_scorer: Scorer | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The model to score.

    Attributes:
        folder: its weights; None: the recipe is executed in memory.
        models: ModelReference.key of each source → its folder.

    """

    folder: Path | None
    recipe_json: str
    models: Mapping[str, Path]


def initialise(
    device: str, backend: str = "auto", allow_code: bool = False, warm: bool = False, tensor_parallel: int = 1
) -> None:
    """Remembers how to score; torch is imported at the first call, or now if `warm`."""
    _options.update(device=device, backend=backend, allow_code=allow_code, tensor_parallel=tensor_parallel)
    if warm:
        with contextlib.suppress(Exception):  # the first job tells what is wrong
            _resident()


def score(candidate: Candidate, request: ScoreRequest) -> ScoreReport:
    """Scores one candidate; see `scorer.Scorer.score`."""
    with _torch_errors():
        scorer = _resident()
        with _loader(candidate, request.threads) as load:
            return scorer.score(load, request)


def execute(recipe_json: str, models: Mapping[str, Path], out: Path, threads: int) -> None:
    """Writes a recipe's weights into an empty folder, for a scoring that is to come."""
    with _torch_errors():
        from evomerge_merging import execute, plan_merge

        with plan_merge(Recipe.from_json(recipe_json), models) as plan:
            execute(plan, out, threads=threads, staged=True)


def generate(folder: Path, prompt: str, max_new_tokens: int, threads: int, chat: bool = False) -> GenerateResult:
    """Continues a prompt; see `scoring.generate_text`."""
    with _torch_errors():
        return _resident().generate(folder, prompt, max_new_tokens, threads=threads, chat=chat)


def devices() -> tuple[DeviceInfo, ...]:
    """See `scoring.devices.list_devices`."""
    from evomerge_scoring.devices import list_devices

    return list_devices()


def auto_dtype(parameters: int) -> str:
    """Says in which dtype "auto" scores a model of so many parameters here; see `scoring.devices.choose_dtype`."""
    with _torch_errors():
        device = _resident().resident.device
        from evomerge_scoring.devices import choose_dtype

        return str(choose_dtype(device, parameters=parameters)).removeprefix("torch.")


def _resident() -> Scorer:
    global _scorer  # noqa: PLW0603 - the resident model is the point of this process
    if _scorer is None:
        with _no_collections():
            import torch

            from evomerge_scoring.scorer import Scorer

            importlib.import_module("evomerge_scoring.preload")

        torch.set_num_interop_threads(1)
        _scorer = Scorer(**_options)
    return _scorer


@contextmanager
def _no_collections() -> Iterator[None]:
    """Importing 3,000 modules drops next to nothing, and looking for it again and again takes a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


@contextmanager
def _loader(candidate: Candidate, threads: int) -> Iterator[Load]:
    """What makes the candidate the model to score: its folder, or its recipe, executed here.

    Raises:
        Unavailable: no weights came with the job or this machine cannot reach them, and a source is not here either.

    """
    recipe = Recipe.from_json(candidate.recipe_json) if candidate.folder is None else None
    folder = candidate.folder if recipe is None else _plain_source(recipe, candidate.models)
    if recipe is None or folder is not None:
        assert folder is not None
        yield lambda backend: backend.load_folder(folder)
        return
    from evomerge_merging import plan_merge

    missing = [str(source) for source in recipe.sources() if source.key not in candidate.models]
    if missing:
        raise Unavailable(f"neither the candidate's weights nor its source {missing[0]} are on this machine")
    with plan_merge(recipe, candidate.models) as plan:
        yield lambda backend: backend.load_plan(plan, threads=threads)


def _plain_source(recipe: Recipe, models: Mapping[str, Path]) -> Path | None:
    """The folder of the recipe that is just a source model: nothing to execute."""
    sources = recipe.sources()
    if len(sources) == 1 and recipe.digest == Recipe.of_source(sources[0]).digest:
        return models.get(sources[0].key)
    return None


@contextmanager
def _torch_errors() -> Iterator[None]:
    """Nothing of torch's own crosses to the service, which could not read it without importing torch."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(f"this machine's memory is too small for this model: {error}") from error
    except Exception as error:
        import torch

        if isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
        ):
            raise OutOfMemory(f"the device's memory is too small for this model: {str(error)[:300]}") from error
        if isinstance(error, torch.AcceleratorError):
            os._exit(70)  # a CUDA context that failed once fails ever after: a new process must take over
        if type(error).__module__.startswith(("torch", "transformers")):
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise
