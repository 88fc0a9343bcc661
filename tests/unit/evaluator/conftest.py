from __future__ import annotations

import pytest

import evomerge_evaluator.scoring  # noqa: F401 - before torch: it tells OpenMP how to wait


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
