"""One scorer, many models: short ways to call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evomerge_common.domain.suite import Suite
from evomerge_merging import Plan
from evomerge_scoring import ScoreReport, ScoreRequest
from evomerge_scoring.scorer import Scorer


def score(scorer: Scorer, folder: Path, suite: Suite, split: str = "all") -> ScoreReport:
    """Scores a model folder."""
    return scorer.score(lambda backend: backend.load_folder(folder), ScoreRequest(suite=suite, split=split))


def score_plan(scorer: Scorer, plan: Plan, suite: Suite) -> ScoreReport:
    """Scores what a merge plan makes."""
    return scorer.score(lambda backend: backend.load_plan(plan), ScoreRequest(suite=suite, split="all"))


def score_tensors(scorer: Scorer, tensors: dict[str, torch.Tensor], folder: Path, suite: Suite) -> ScoreReport:
    """Scores tensors in memory, with the config and tokenizer of a folder."""
    return scorer.score(lambda backend: backend.load_tensors(tensors, folder), ScoreRequest(suite=suite, split="all"))


def resident(scorer: Scorer) -> Any:
    """The backend with the attributes that tests look at."""
    return scorer.resident
