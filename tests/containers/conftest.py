"""The compose stack, once for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from helpers.containers import Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    models = tmp_path_factory.mktemp("models")
    models.chmod(0o755)  # the services are another user
    stack = Stack(models, {**os.environ, "MODELS_DIR": str(models)})
    try:
        stack.compose("up", "-d", "--wait", "--build", timeout=900)
        yield stack
    except BaseException:
        print(stack.compose("logs", "--tail", "40", check=False))
        raise
    finally:
        stack.compose("down", "-v", "--timeout", "15", check=False)
