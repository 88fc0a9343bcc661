"""torch's objects for element types (`evomerge_models.dtypes`); torch itself takes a second to import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge_models.dtypes import BY_WORD, ElementType

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch


def torch_dtype(kind: ElementType) -> torch.dtype:
    """What torch calls an element type."""
    found: torch.dtype = getattr(torch, kind.word)
    return found


def element_type(dtype: torch.dtype) -> ElementType:
    """The element type that torch calls so.

    Raises:
        KeyError: a type that safetensors cannot hold.

    """
    return BY_WORD[str(dtype).removeprefix("torch.")]
