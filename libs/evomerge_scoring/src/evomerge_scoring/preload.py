"""Importing this module imports all that scoring needs: torch, the scorer, and what transformers waits for with its
first model. A process imports it before its first job, or a fork server does, once for all processes.

Left out, where no GPU is, is what transformers would import besides and one process on one CPU never calls: torch's
compiler (and sympy with it), tensors and models spread over processes, accelerate, and scipy. It takes as long as
torch itself. transformers then works as on a machine without them: its own checks say that they are not there.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from evomerge_scoring.uncompiled import without_compiler

WAITED_FOR = ("modeling_utils", "generation.utils", "models.auto.modeling_auto", "models.auto.tokenization_auto")
"""Modules of transformers that its first model or tokenizer would import."""
LEFT_OUT = (
    "is_accelerate_available",
    "is_scipy_available",
    "is_torch_distributed_available",
    "is_torch_flex_attn_available",
)
"""Checks of transformers for what is left out."""
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")


@contextmanager
def _parts_left_out() -> Iterator[None]:
    from transformers import utils
    from transformers.utils import import_utils

    with ExitStack() as stack:
        for module in (utils, import_utils):
            for name in LEFT_OUT:
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, _unavailable))
        stack.enter_context(without_compiler())
        yield


def _unavailable(*_: object) -> bool:
    return False


def _scan_models_once() -> None:
    """Has the library read the source of all its models once: it does when it is imported, and again for the first
    of them. It remembers what it found by folder, and asks the second time by the folder's `__init__.py`.
    """
    from transformers.utils import import_utils

    scan = import_utils.create_import_structure_from_path

    def remembered(path: str | Path) -> Any:
        return scan(Path(path).parent if Path(path).name == "__init__.py" else Path(path))

    import_utils.create_import_structure_from_path = remembered


def _import_all() -> None:
    for name in WAITED_FOR:
        importlib.import_module(f"transformers.{name}")
    importlib.import_module("evomerge_scoring.scorer")


_scan_models_once()
if any(Path(driver).exists() for driver in GPU_DRIVERS):
    _import_all()
else:
    with _parts_left_out():
        _import_all()
