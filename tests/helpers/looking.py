"""Models looked at as `evomerge run` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge_cli.preflight import survey_models
from evomerge_common.domain.reference import ModelReference


def check_models(names: Sequence[str], **options: Any) -> bool:
    """Tells whether models must be fitted to each other; raises what is wrong with any of them."""
    with survey_models([ModelReference.parse(name) for name in names], **options) as survey:
        return survey.differ()
