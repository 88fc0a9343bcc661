"""Element types: the one table of their names and sizes. torch's objects for them are `evomerge_merging.io.dtypes`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ElementType:
    """What a tensor's elements are.

    Attributes:
        name: in a safetensors header: "BF16".
        word: in config.json and in recipes, and as torch calls it: "bfloat16".
        bits: of one element.

    """

    name: str
    word: str
    bits: int

    @property
    def itemsize(self) -> int:
        """Bytes of one element; 0 of a packed type, of which several share a byte."""
        return self.bits // 8

    @property
    def is_packed(self) -> bool:
        """Whether elements share bytes: such tensors hold codes that need scales, not weights."""
        return self.bits % 8 != 0

    @property
    def is_floating_point(self) -> bool:
        """Whether it is one of the float types."""
        return "float" in self.word

    def __str__(self) -> str:
        return self.word


F64, F32, F16, BF16 = (
    ElementType("F64", "float64", 64),
    ElementType("F32", "float32", 32),
    ElementType("F16", "float16", 16),
    ElementType("BF16", "bfloat16", 16),
)
TYPES: dict[str, ElementType] = {
    kind.name: kind
    for kind in (
        F64, F32, F16, BF16,
        ElementType("F8_E4M3", "float8_e4m3fn", 8), ElementType("F8_E5M2", "float8_e5m2", 8),
        ElementType("F8_E4M3FNUZ", "float8_e4m3fnuz", 8), ElementType("F8_E5M2FNUZ", "float8_e5m2fnuz", 8),
        ElementType("F8_E8M0", "float8_e8m0fnu", 8),
        ElementType("F6_E2M3", "float6_e2m3fn", 6), ElementType("F6_E3M2", "float6_e3m2fn", 6),
        ElementType("F4", "float4_e2m1fn", 4),
        ElementType("I64", "int64", 64), ElementType("I32", "int32", 32),
        ElementType("I16", "int16", 16), ElementType("I8", "int8", 8),
        ElementType("U64", "uint64", 64), ElementType("U32", "uint32", 32),
        ElementType("U16", "uint16", 16), ElementType("U8", "uint8", 8),
        ElementType("C64", "complex64", 64), ElementType("BOOL", "bool", 8),
    )
}  # fmt: skip
"""By safetensors name: all that a header may name."""
BY_WORD: dict[str, ElementType] = {kind.word: kind for kind in TYPES.values()}

RECIPE_NAMES = {kind.word: kind for kind in (F32, BF16, F16)}
"""A recipe's `dtype` and `out_dtype` → element type."""
