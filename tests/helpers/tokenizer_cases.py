"""Recipes about tokenizers. BASE and A share one vocabulary, B has another; A and B know tokens of their own."""

from __future__ import annotations

_LINEAR = """
merge_method: linear
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.5}}
  - {model: C, parameters: {weight: 0.2}}
dtype: float32
out_dtype: bfloat16
"""
_TASK = """
merge_method: task_arithmetic
base_model: BASE
models:
  - {model: A, parameters: {weight: 0.6}}
  - {model: B, parameters: {weight: 0.4}}
dtype: float32
out_dtype: bfloat16
"""
_SLERP = """
merge_method: slerp
base_model: A
models: [{model: A}, {model: B}]
parameters: {t: 0.4}
dtype: float32
out_dtype: bfloat16
"""

CASES: dict[str, str] = {
    "linear union": _LINEAR + "tokenizer_source: union\n",
    "linear of B's": _LINEAR + 'tokenizer_source: "B"\n',
    "task_arithmetic base": _TASK + "tokenizer_source: base\n",
    "task_arithmetic union": _TASK + "tokenizer: {source: union}\n",
    "slerp union": _SLERP + "tokenizer_source: union\n",
    "slerp base": _SLERP + "tokenizer_source: base\n",
    "linear union padded": _LINEAR + "tokenizer: {source: union, pad_to_multiple_of: 64}\n",
    "linear of a module": """
merge_method: linear
modules:
  default:
    models:
      - {model: A, parameters: {weight: 0.7}}
      - {model: B}
    parameters: {weight: 0.4}
parameters: {normalize: true}
tokenizer_source: union
dtype: float32
out_dtype: bfloat16
""",
    "task_arithmetic with tokens": _TASK
    + """
tokenizer:
  source: union
  pad_to_multiple_of: 16
  tokens:
    <only B>:
      source: {kind: model_token, model: "B", token: </s>}
    <new>:
      source: {kind: zero}
    <newer>:
      source: {kind: model_token, model: "A", token_id: 5}
    <s>:
      source: "B"
      force: true
""",
}
