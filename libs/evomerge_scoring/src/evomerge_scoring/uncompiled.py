"""Importing and making a model without torch's compiler: nothing here is compiled, and importing it (and sympy with it)
takes as long as importing torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWING = (torch.nn.init.normal_, torch.nn.init.uniform_, torch.nn.init.kaiming_uniform_)
"""Functions that fill a tensor with random values."""
COMPUTING = (
    *(torch.arange, torch.Tensor.div, torch.Tensor.pow),
    *(torch.Tensor.__truediv__, torch.Tensor.__rdiv__, torch.Tensor.__pow__, torch.Tensor.__rpow__),
)
"""Functions that positions are computed with."""
SMALL = 2**16
"""Most elements of a tensor that is made for its shape."""
_COMPILER = "torch._dynamo"


@contextmanager
def without_compiler() -> Iterator[None]:
    """Has functions that are marked for the compiler, or hidden from it, meanwhile be left as they are.

    Where the compiler has been imported already, nothing changes; whoever needs it afterwards imports the real one.
    """
    if _COMPILER in sys.modules:
        yield
        return
    stub = _NoCompiler(_COMPILER)
    stub.__path__ = [str(Path(folder) / "_dynamo") for folder in torch.__path__]  # its submodules are the real ones
    sys.modules[_COMPILER] = torch._dynamo = stub
    try:
        yield
    finally:
        del sys.modules[_COMPILER], torch._dynamo


class _NoCompiler(ModuleType):
    """Stands for torch's compiler; whatever is taken from it decorates nothing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unmarked


def _unmarked(function: Any = None, *_: object, **__: object) -> Any:
    """Decorates nothing; `@mark` and `@mark(…)` both."""
    return function if callable(function) else _unmarked


class ShapesAlone(TorchFunctionMode):
    """While a module is made of tensors without memory, works out what its constructors compute most on tensors with
    memory: torch's own way imports sympy.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answers one call of a torch function; called by torch."""
        kwargs = kwargs or {}
        given = [*args, *kwargs.values()]
        if func in DRAWING and any(_is_meta(one) for one in given):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]  # it has no values to draw
        if func in COMPUTING and any(_is_meta(one) for one in given) and all(_is_small(one) for one in given):
            made = func(*map(_with_memory, args), **{name: _with_memory(one) for name, one in kwargs.items()})
            return torch.empty(made.shape, dtype=made.dtype, device="meta")
        if func is torch.empty_like and _is_meta(args[0]) and args[0].is_contiguous() and kwargs.keys() <= {"device"}:
            return torch.empty(args[0].shape, dtype=args[0].dtype, device=kwargs.get("device", "meta"))
        return func(*args, **kwargs)


def _is_meta(value: object) -> bool:
    device = value.device if isinstance(value, torch.Tensor) else value
    return isinstance(device, torch.device) and device.type == "meta"


def _is_small(value: object) -> bool:
    return not isinstance(value, torch.Tensor) or value.numel() <= SMALL


def _with_memory(value: Any) -> Any:
    if not _is_meta(value):
        return value
    return torch.ones(value.shape, dtype=value.dtype) if isinstance(value, torch.Tensor) else torch.device("cpu")
