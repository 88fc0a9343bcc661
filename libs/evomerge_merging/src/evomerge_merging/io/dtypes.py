"""Element types by their safetensors names, without torch, which takes a second to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
else:
    from evomerge_merging.torch_later import torch


@dataclass(frozen=True)
class ElementType:
    """What a tensor's elements are.

    Attributes:
        name: in a safetensors header: "BF16".
        word: in config.json and in recipes, and as torch calls it: "bfloat16".
        itemsize: bytes of one element.

    """

    name: str
    word: str
    itemsize: int

    @property
    def is_floating_point(self) -> bool:
        """Whether it is one of the float types."""
        return "float" in self.word

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same for torch."""
        found: torch.dtype = getattr(torch, self.word)
        return found

    def __str__(self) -> str:
        return self.word


F64, F32, F16, BF16 = (
    ElementType("F64", "float64", 8),
    ElementType("F32", "float32", 4),
    ElementType("F16", "float16", 2),
    ElementType("BF16", "bfloat16", 2),
)
TYPES: dict[str, ElementType] = {
    kind.name: kind
    for kind in (
        F64, F32, F16, BF16,
        ElementType("F8_E4M3", "float8_e4m3fn", 1), ElementType("F8_E5M2", "float8_e5m2", 1),
        ElementType("I64", "int64", 8), ElementType("I32", "int32", 4),
        ElementType("I16", "int16", 2), ElementType("I8", "int8", 1),
        ElementType("U64", "uint64", 8), ElementType("U32", "uint32", 4),
        ElementType("U16", "uint16", 2), ElementType("U8", "uint8", 1),
        ElementType("BOOL", "bool", 1),
    )
}  # fmt: skip
"""By safetensors name."""
_WORDS = {kind.word: kind for kind in TYPES.values()}

RECIPE_NAMES = {kind.word: kind for kind in (F32, BF16, F16)}
"""A recipe's `dtype` and `out_dtype` → element type."""


def element_type(dtype: torch.dtype) -> ElementType:
    """What torch calls so.

    Raises:
        KeyError: a type that safetensors cannot hold.

    """
    return _WORDS[str(dtype).removeprefix("torch.")]
