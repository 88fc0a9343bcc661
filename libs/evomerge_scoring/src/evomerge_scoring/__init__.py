"""The scoring core. Importing this imports neither torch nor transformers: the first call does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from evomerge_common.domain.suite import Suite
from evomerge_scoring.report import GenerateResult, ScoreReport, ScoreRequest

__all__ = ["GenerateResult", "ScoreReport", "ScoreRequest", "generate_text", "score_folder"]

# Read when torch loads its OpenMP runtime. Threads that spin while they wait make a small model ten times slower as
# soon as another process (the merger, say) wants the same cores; sleeping ones cost microseconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def score_folder(
    folder: Path,
    suite: Suite,
    split: str = "search",
    *,
    threads: int = 2,
    device: str = "auto",
    backend: str = "auto",
    dtype: str = "auto",
    allow_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreReport:
    """Scores a model folder on one split of a suite, in this process.

    Args:
        folder: a Hugging Face model folder on this machine; nothing is fetched and no code in it runs.
        suite: what to ask.
        split: "search", "holdout" or "all".
        threads: intra-op threads of torch, at most; scores are bit-stable for one number of threads.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        backend: "auto" (vLLM where it is installed and the device is a GPU), "torch" or "vllm".
        dtype: "auto" (by device and model), "float32" or "bfloat16".
        allow_code: tasks of kind `code` may run what the model writes, in a sandbox.
        progress: called with items done and items in all.

    Raises:
        ModelError: the folder is missing, is no model, is unsafe, or its tensors do not fit its config.
        SuiteError: the suite asks what this kind of model cannot answer.
        NonFiniteScore: the model answered NaN or infinity.
        OutOfMemory: not even one row fits.
        Unavailable: the device is not here, or cannot compute in the dtype.

    """
    from evomerge_scoring.scorer import Scorer

    scorer = Scorer(device=device, backend=backend, allow_code=allow_code)
    request = ScoreRequest(suite=suite, split=split, threads=threads, dtype=dtype)
    return scorer.score(lambda backend: backend.load_folder(folder), request, progress)


def generate_text(
    folder: Path, prompt: str, max_new_tokens: int = 128, *, threads: int = 2, device: str = "auto", chat: bool = False
) -> GenerateResult:
    """Greedy continuation of a prompt by a model folder, in this process.

    Raises:
        ModelError: see `score_folder`; also for a masked language model, which cannot continue a text.
        NonFiniteScore: the model answered NaN or infinity.

    """
    from evomerge_scoring.scorer import Scorer

    return Scorer(device=device).generate(folder, prompt, max_new_tokens, threads=threads, chat=chat)
