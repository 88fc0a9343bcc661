"""torch, imported when it is first used: planning a merge and the native kernels need none of the second that it takes.

if TYPE_CHECKING:
import torch
else:
from evomerge_merging.torch_later import torch
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator
from typing import Any


class _Torch:
    def __getattr__(self, name: str) -> Any:
        with _no_garbage():
            module = importlib.import_module("torch")
        self.__dict__.update(vars(module))
        return getattr(module, name)


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Torch's half a million objects stay, and looking through them while they come costs a quarter of its import.

    Nor are they looked through when the process ends.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


torch = _Torch()
