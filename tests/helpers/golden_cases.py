"""Recipes in mergekit's language. BASE, A, B, C stand for folders of models."""

from __future__ import annotations

CASES: dict[str, str] = {
    "linear": """
merge_method: linear
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.5}}
  - {model: C, parameters: {weight: 0.2}}
dtype: float32
out_dtype: bfloat16
""",
    "linear without normalize": """
merge_method: linear
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.5}}
parameters: {normalize: false}
dtype: float32
out_dtype: bfloat16
""",
    "linear in bfloat16": """
merge_method: linear
models:
  - {model: A, parameters: {weight: 1.0}}
  - {model: B, parameters: {weight: 1.0}}
dtype: bfloat16
""",
    "linear gradient and filters": """
merge_method: linear
models:
  - model: A
    parameters:
      weight: [0.0, 0.3, 1.0]
  - model: B
    parameters:
      weight:
        - {filter: mlp, value: [1.0, 0.5]}
        - {filter: self_attn, value: 0.3}
        - {value: 0.6}
dtype: float32
out_dtype: bfloat16
""",
    "slerp": """
merge_method: slerp
base_model: A
models: [{model: A}, {model: B}]
parameters: {t: 0.35}
dtype: float32
out_dtype: bfloat16
""",
    "slerp gradient and filters": """
merge_method: slerp
base_model: A
slices:
  - sources:
      - {model: A, layer_range: [0, 4]}
      - {model: B, layer_range: [0, 4]}
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - {value: 0.5}
dtype: float32
out_dtype: bfloat16
""",
    "slerp in bfloat16": """
merge_method: slerp
base_model: A
models: [{model: A}, {model: B}]
parameters: {t: 0.5}
dtype: bfloat16
""",
    "task_arithmetic": """
merge_method: task_arithmetic
base_model: BASE
models:
  - {model: A, parameters: {weight: 0.6}}
  - {model: B, parameters: {weight: 0.4}}
parameters: {lambda: 0.8}
dtype: float32
out_dtype: bfloat16
""",
    "task_arithmetic normalized": """
merge_method: task_arithmetic
base_model: BASE
models:
  - {model: BASE}
  - {model: A, parameters: {weight: 0.6}}
  - {model: B, parameters: {weight: 0.9}}
parameters: {normalize: true}
dtype: float32
out_dtype: bfloat16
""",
    "ties": """
merge_method: ties
base_model: BASE
models:
  - {model: A, parameters: {weight: 0.6, density: 0.5}}
  - {model: B, parameters: {weight: 0.4, density: 0.3}}
  - {model: C, parameters: {weight: 0.5, density: 0.7}}
dtype: float32
out_dtype: bfloat16
""",
    "ties without normalize": """
merge_method: ties
base_model: BASE
models:
  - {model: A, parameters: {weight: 0.6}}
  - {model: B, parameters: {weight: 0.4}}
parameters: {normalize: false, density: 0.4, lambda: 1.3, int8_mask: true}
dtype: float32
out_dtype: bfloat16
""",
    "ties with rescale": """
merge_method: ties
base_model: BASE
models:
  - {model: A, parameters: {weight: 0.6}}
  - {model: B, parameters: {weight: 0.4}}
parameters: {density: 0.25, rescale: true}
dtype: float32
out_dtype: bfloat16
""",
    "ties in bfloat16": """
merge_method: ties
base_model: BASE
models:
  - {model: A, parameters: {weight: 1.0, density: 1.0}}
  - {model: B, parameters: {weight: 1.0, density: 1.0}}
dtype: bfloat16
""",
    "ties gradient": """
merge_method: ties
base_model: BASE
models:
  - {model: A, parameters: {weight: [0.2, 0.8], density: [0.9, 0.4, 0.2]}}
  - {model: B, parameters: {weight: 0.4, density: 0.5}}
  - {model: C, parameters: {weight: -0.3, density: 0.5}}
dtype: float32
out_dtype: bfloat16
""",
    "dare_ties with density 1": """
merge_method: dare_ties
base_model: BASE
models:
  - {model: A, parameters: {weight: 0.6}}
  - {model: B, parameters: {weight: 0.4}}
dtype: float32
out_dtype: bfloat16
""",
    "dare_linear with density 1": """
merge_method: dare_linear
base_model: BASE
models:
  - {model: A, parameters: {weight: 0.6}}
  - {model: B, parameters: {weight: 0.4}}
dtype: float32
out_dtype: bfloat16
""",
    "passthrough slices": """
merge_method: passthrough
slices:
  - sources: [{model: A, layer_range: [0, 3]}]
  - sources: [{model: B, layer_range: [1, 4]}]
dtype: bfloat16
""",
    "passthrough with scale": """
merge_method: passthrough
slices:
  - sources: [{model: A, layer_range: [0, 4]}]
  - sources:
      - model: A
        layer_range: [2, 4]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: down_proj, value: 0.5}
            - {value: 1.0}
dtype: bfloat16
""",
    "ties slices": """
merge_method: ties
base_model: BASE
slices:
  - sources:
      - {model: BASE, layer_range: [0, 2]}
      - {model: A, layer_range: [0, 2], parameters: {weight: 0.6, density: 0.5}}
      - {model: B, layer_range: [0, 2], parameters: {weight: 0.4, density: 0.5}}
  - sources:
      - {model: BASE, layer_range: [1, 4]}
      - {model: A, layer_range: [1, 4]}
      - {model: C, layer_range: [1, 4]}
    parameters: {weight: [0.2, 0.9], density: 0.6}
dtype: float32
out_dtype: bfloat16
""",
}


def _recipe(
    method: str, models: str, *, base: str = "", parameters: str = "", dtype: str = "float32\nout_dtype: bfloat16"
) -> str:
    """`models`: "A weight: 0.5; B" and so on."""
    lines = [f"merge_method: {method}", *([f"base_model: {base}"] if base else []), "models:"]
    for part in models.split(";"):
        name, _, own = part.strip().partition(" ")
        lines.append(f"  - {{model: {name}, parameters: {{{own}}}}}")
    return "\n".join([*lines, *([f"parameters: {{{parameters}}}"] if parameters else []), f"dtype: {dtype}", ""])


_THREE = "A weight: 0.6; B weight: 0.4; C weight: 0.5"
CASES |= {
    "nuslerp": _recipe("nuslerp", "A weight: 0.3; B weight: 0.9"),
    "nuslerp of task vectors": _recipe("nuslerp", "A weight: 0.6; B weight: 0.4", base="BASE"),
    "nuslerp by rows": _recipe("nuslerp", "A weight: 0.6; B weight: 0.4", parameters="nuslerp_flatten: false"),
    "nuslerp along the first": _recipe(
        "nuslerp",
        "A weight: 0.6; B weight: 0.4",
        base="BASE",
        parameters="nuslerp_flatten: false, nuslerp_row_wise: true",
    ),
    "multislerp": _recipe("multislerp", _THREE),
    "multislerp of task vectors": _recipe("multislerp", _THREE, base="BASE"),
    "multislerp not normalized": _recipe(
        "multislerp", "A weight: 0.6; B weight: 0.9", base="BASE", parameters="normalize_weights: false"
    ),
    "karcher": _recipe("karcher", "A; B; C"),
    "karcher in few steps": _recipe("karcher", "A; B", parameters="max_iter: 2, tol: 1.0e-3"),
    "breadcrumbs": _recipe(
        "breadcrumbs",
        "A weight: 0.6, density: 0.5, gamma: 0.1; B weight: 0.4, density: 0.3, gamma: 0.2; C weight: 0.5, density: 0.9",
        base="BASE",
    ),
    "breadcrumbs with rescale": _recipe(
        "breadcrumbs",
        _THREE,
        base="BASE",
        parameters="density: 0.6, gamma: 0.3, rescale: true, normalize: true, lambda: 0.7",
    ),
    "breadcrumbs_ties": _recipe("breadcrumbs_ties", _THREE, base="BASE", parameters="density: 0.5, gamma: 0.08"),
    "breadcrumbs_ties normalized": _recipe(
        "breadcrumbs_ties", _THREE, base="BASE", parameters="density: 0.95, gamma: 0.2, normalize: true, rescale: true"
    ),
    "della with density 1": _recipe("della", _THREE, base="BASE"),
    "della_linear with density 1": _recipe("della_linear", _THREE, base="BASE", parameters="lambda: 1.2"),
    "della with density 0": _recipe("della", "A weight: 1, density: 0; B weight: 0.5, density: 1", base="BASE"),
    "sce": _recipe("sce", "A; B; C", base="BASE"),
    "sce of a part": _recipe("sce", "A; B; C", base="BASE", parameters="select_topk: 0.3"),
    "sce of two": _recipe("sce", "A; B", base="BASE", parameters="select_topk: 0.7, int8_mask: true"),
    "model_stock": _recipe("model_stock", "A; B; C", base="BASE"),
    "model_stock of two": _recipe("model_stock", "A; B", base="BASE"),
    "model_stock by filters": _recipe("model_stock", "A; B; C", base="BASE", parameters="filter_wise: true"),
    "nearswap": _recipe("nearswap", "B", base="A", parameters="t: 0.002"),
    "nearswap further": _recipe("nearswap", "B", base="A", parameters="t: 0.02"),
    "arcee_fusion": _recipe("arcee_fusion", "A", base="BASE"),
    "arcee_fusion of siblings": _recipe("arcee_fusion", "B", base="A"),
}

RANDOM: dict[str, str] = {
    name: f"""
merge_method: {name}
base_model: BASE
models:
  - {{model: A, parameters: {{weight: 1.0, density: 0.4}}}}
dtype: float32
"""
    for name in ("dare_linear", "dare_ties")
}
RANDOM |= {
    name: _recipe(name, "A weight: 1.0, density: 0.4, epsilon: 0.2", base="BASE", dtype="float32")
    for name in ("della", "della_linear")
}
