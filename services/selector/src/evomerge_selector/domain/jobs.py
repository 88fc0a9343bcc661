"""What a run asks of the workers, as jobs: the same work of the same run has the same id, whoever asks for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

from evomerge_common.domain.messages import (
    CandidateProposed,
    Control,
    DownloadJob,
    EvaluateJob,
    ExportJob,
    Job,
    JobPayload,
    MergeJob,
    Model,
    RunStarted,
    TaskItems,
)
from evomerge_common.domain.methods import traits_of
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.spec import RunSpec


def is_linear(recipe: Recipe) -> bool:
    """Tells whether each tensor is a weighted sum of the sources'."""
    nested = (item for item in recipe.inputs() if isinstance(item, Recipe))
    return traits_of(recipe.method).linear and all(is_linear(item) for item in nested)


def _job(run_id: str, kind: str, key: str, payload: JobPayload, *, turn: int) -> Job:
    """`turn`: how often the run was continued: what was done before, and is asked for again, has another id."""
    digest = hashlib.sha256((f"{key}:turn {turn}" if turn else key).encode()).hexdigest()[:24]
    return Job(job_id=f"{kind}-{digest}-{run_id}", run_id=run_id, payload=payload)


def downloads(run_id: str, spec: RunSpec, *, turn: int = 0) -> Iterator[Job]:
    """Makes one download job for each model."""
    for reference in spec.sources:
        base = spec.base if reference != spec.base else ""
        payload = DownloadJob(
            reference=reference, base=base, together=spec.sources, accept_licence_conflict=spec.accept_licence_conflict
        )
        yield _job(run_id, "download", reference, payload, turn=turn)


def merge(run_id: str, proposed: CandidateProposed, models: Mapping[str, Model], *, turn: int = 0) -> Job:
    """Makes the merge job of a candidate."""
    digest, sources = proposed.recipe_digest, tuple(models.values())
    payload = MergeJob(recipe_json=proposed.recipe_json, recipe_digest=digest, sources=sources)
    return _job(run_id, "merge", digest, payload, turn=turn)


def evaluation(
    run_id: str,
    proposed: CandidateProposed | Control,
    models: Mapping[str, Model],
    started: RunStarted,
    *,
    split: str,
    uri: str,
    threads: int,
    dtype: str,
    items: tuple[TaskItems, ...] = (),
    rung: int = 0,
    turn: int = 0,
    graded: tuple[str, ...] = (),
) -> Job:
    """Makes the evaluation job of a candidate or control, on a whole split or, in a race, on some of its items.

    Args:
        uri: of its weights; empty: the evaluator makes them.
        graded: tasks whose partial credit is wanted, too.

    """
    payload = EvaluateJob(
        recipe_json=proposed.recipe_json,
        recipe_digest=proposed.recipe_digest,
        sources=tuple(models.values()),
        artifact_uri=uri,
        suite_uri=started.suite_uri,
        suite_digest=started.suite_digest,
        split=split,
        threads=threads,
        dtype=dtype,
        items=items,
        rung=rung,
        graded=graded,
    )
    kind = f"evaluate-{split}-{rung}" if items else f"evaluate-{split}"
    return _job(run_id, kind, proposed.recipe_digest, payload, turn=turn)


def in_dtype(job: Job, dtype: str) -> Job:
    """Makes an evaluation job anew, to be done in the run's dtype: its first answer was in another."""
    assert isinstance(job.payload, EvaluateJob)
    return replace(job, job_id=f"{dtype}-{job.job_id}", attempt=0, payload=replace(job.payload, dtype=dtype))


def exports(
    run_id: str, champion: CandidateProposed, models: Mapping[str, Model], spec: RunSpec, *, turn: int = 0
) -> Iterator[Job]:
    """Makes the export jobs of the champion: one for each format."""
    recipe, digest = Recipe.from_json(champion.recipe_json), champion.recipe_digest
    if spec.export_dtype:
        recipe = replace(recipe, out_dtype=spec.export_dtype)
    payload = ExportJob(
        recipe_json=recipe.to_json(),
        recipe_digest=digest,
        sources=tuple(models.values()),
        format="hf",
        destination="model",
    )
    yield _job(run_id, "export", digest, payload, turn=turn)
    if spec.gguf_type:
        gguf = replace(payload, format="gguf", destination="gguf", gguf_type=spec.gguf_type)
        yield _job(run_id, "export", f"{digest}:gguf", gguf, turn=turn)
