"""Importing this module imports all that scoring needs: torch, the scorer, and what transformers waits for with its
first model. A process imports it before its first job, or a fork server does, once for all processes.

Left out is scipy, which transformers would import for the losses of detectors. (torch's compiler and sympy, another
second, cannot be: the shapes of a module's first tensors are worked out with them.)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

WAITED_FOR = ("modeling_utils", "generation.utils", "models.auto.modeling_auto", "models.auto.tokenization_auto")
"""Modules of transformers that its first model or tokenizer would import."""


@contextmanager
def _without_scipy() -> Iterator[None]:
    from transformers import utils
    from transformers.utils import import_utils

    with ExitStack() as stack:
        for module in (utils, import_utils):
            stack.enter_context(patch.object(module, "is_scipy_available", lambda: False))
        yield


importlib.import_module("evomerge_scoring.scorer")
with _without_scipy():
    for _name in WAITED_FOR:
        importlib.import_module(f"transformers.{_name}")
