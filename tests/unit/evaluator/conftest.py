from __future__ import annotations

from collections.abc import Iterator

import pytest
import transformers


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
