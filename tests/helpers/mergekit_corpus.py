"""Recipes in the manner of those that people publish for mergekit, and what is said of each.

$BASE, $A, $B, $C stand for folders of one build with four layers. `notices`: a word of each notice, in any order; a
recipe with none is read without a word. `refusal`: what the error says; such a recipe is not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import torch

from helpers.tiny_merging import make_model, rewrite, weights


@dataclass(frozen=True)
class Published:
    """One recipe.

    Attributes:
        theirs: whether mergekit 0.1.5 accepts and runs it.
        random: whether random masks decide, which no two programs draw alike.

    """

    text: str
    notices: tuple[str, ...] = ()
    refusal: str = ""
    theirs: bool = True
    random: bool = False

    def filled(self, root: Path) -> str:
        """The text with the models' folders, which lie in `root`."""
        return Template(self.text).substitute({name: str(root / name) for name in ("BASE", "A", "B", "C")})


CORPUS: dict[str, Published] = {}
SUMS = Path(__file__).with_name("mergekit_corpus_sums.json")
"""By recipe: `checksum` of what mergekit 0.1.5 makes of it; written by the golden test where it is not there."""


def make_models(root: Path) -> None:
    """Writes the four models, the same ones everywhere."""
    for seed, name in enumerate(("BASE", "A", "B", "C")):
        folder = make_model(root / name, "llama")
        words = np.random.default_rng(7), np.random.default_rng(seed)
        change = {}
        for tensor, value in sorted(weights(folder).items()):
            common, own = (one.standard_normal(value.shape).astype(np.float32) for one in words)
            change[tensor] = torch.from_numpy(0.05 * common + (0.02 * own if seed else 0.0))
        rewrite(folder, change)


def checksum(tensors: Mapping[str, torch.Tensor]) -> list[float]:
    """Four sums over all elements, each element with a weight of its own."""
    total = np.zeros(4)
    for tensor in sorted(tensors):
        values = tensors[tensor].double().numpy().ravel()
        places = np.arange(1, values.size + 1)
        total += [float((values * np.cos(places * turn)).sum()) for turn in (0.1, 0.37, 1.3, 2.9)]
    return [round(float(value), 6) for value in total]


def _add(name: str, text: str, *notices: str, refusal: str = "", theirs: bool = True, random: bool = False) -> None:
    assert name not in CORPUS
    CORPUS[name] = Published(text.lstrip("\n"), notices, refusal, theirs, random)


# ---- as the documentation has them ----

_add(
    "slerp of slices",
    """
slices:
  - sources:
      - model: $A
        layer_range: [0, 4]
      - model: $B
        layer_range: [0, 4]
merge_method: slerp
base_model: $A
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float32
""",
)
_add(
    "ties with a gradient of densities",
    """
models:
  - model: $BASE
    # no parameters necessary for base model
  - model: $A
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: $B
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: $C
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: $BASE
parameters:
  normalize: true
  int8_mask: true
dtype: float32
""",
)
_add(
    "linear soup",
    """
models:
  - model: $A
    parameters:
      weight: 1.0
  - model: $B
    parameters:
      weight: 0.3
  - model: $C
    parameters:
      weight: 0.5
merge_method: linear
dtype: float16
""",
)
_add(
    "stack",
    """
slices:
  - sources:
    - model: $A
      layer_range: [0, 3]
  - sources:
    - model: $B
      layer_range: [1, 4]
merge_method: passthrough
dtype: float16
""",
)
_add(
    "stack without a type",
    """
slices:
- sources: [{model: $A, layer_range: [0, 2]}]
- sources: [{model: $A, layer_range: [1, 3]}]
- sources: [{model: $A, layer_range: [2, 4]}]
merge_method: passthrough
""",
)
_add(
    "a scaled layer",
    """
slices:
- sources:
  - model: $A
    layer_range: [0, 4]
- sources:
  - model: $A
    layer_range: [3, 4]
    parameters:
      scale:
      - {filter: o_proj, value: 0.0}
      - {filter: down_proj, value: 0.0}
      - {value: 1.0}
merge_method: passthrough
dtype: bfloat16
""",
)
_add(
    "task arithmetic",
    """
base_model: $BASE
models:
  - model: $A
    parameters:
      weight: 0.35
  - model: $B
    parameters:
      weight: 0.65
merge_method: task_arithmetic
parameters:
  lambda: 0.9
dtype: float32
out_dtype: bfloat16
""",
)
_add(
    "model stock",
    """
models:
  - model: $A
  - model: $B
  - model: $C
merge_method: model_stock
base_model: $BASE
parameters:
  filter_wise: false
dtype: float32
""",
)
_add(
    "sce",
    """
models: [{model: $A}, {model: $B}, {model: $C}]
merge_method: sce
base_model: $BASE
parameters: {select_topk: 0.5}
dtype: float32
""",
)
_add(
    "nuslerp",
    """
models:
  - model: $A
    parameters:
      weight: [0.6, 0.4]
  - model: $B
    parameters:
      weight: [0.4, 0.6]
merge_method: nuslerp
dtype: float32
""",
)
_add(
    "karcher",
    """
models:
  - model: $A
  - model: $B
merge_method: karcher
parameters:
  max_iter: 20
  tol: 1e-6
dtype: float32
""",
)
_add(
    "multislerp",
    """
models:
  - {model: $A, parameters: {weight: 0.5}}
  - {model: $B, parameters: {weight: 0.25}}
  - {model: $C, parameters: {weight: 0.25}}
merge_method: multislerp
base_model: $BASE
dtype: float32
""",
)
_add(
    "arcee fusion",
    """
models:
  - model: $A
  - model: $B
merge_method: arcee_fusion
base_model: $A
dtype: float32
""",
)
_add(
    "nearswap",
    """
models:
  - model: $A
  - model: $B
merge_method: nearswap
base_model: $A
parameters:
  t: 0.0001
dtype: float32
""",
)
_add(
    "ram",
    """
models:
  - model: $A
  - model: $B
  - model: $C
merge_method: ram
base_model: $BASE
dtype: float32
""",
)
_add(
    "ram with a threshold",
    """
models: [{model: $A}, {model: $B}, {model: $C}]
merge_method: ram
base_model: $BASE
parameters: {epsilon: 0.05}
dtype: float32
""",
)
_add(
    "ramplus_tl",
    """
models: [{model: $BASE}, {model: $A}, {model: $B}]
merge_method: ramplus_tl
base_model: $BASE
parameters: {r: 0.4, alpha: 3.0, epsilon: 0.03}
dtype: float32
""",
)
_add(
    "breadcrumbs with ties",
    """
models:
  - model: $A
    parameters: {weight: 0.6, density: 0.9, gamma: 0.01}
  - model: $B
    parameters: {weight: 0.4, density: 0.9, gamma: 0.01}
merge_method: breadcrumbs_ties
base_model: $BASE
dtype: float32
""",
)
_add(
    "dare ties",
    """
models:
  - model: $BASE
  - model: $A
    parameters:
      density: 0.53
      weight: 0.4
  - model: $B
    parameters:
      density: 0.53
      weight: 0.3
merge_method: dare_ties
base_model: $BASE
parameters:
  int8_mask: true
dtype: bfloat16
""",
    random=True,
)
_add(
    "della",
    """
models:
  - model: $A
    parameters:
      density: 0.5
      weight: 0.5
      epsilon: 0.1
merge_method: della
base_model: $BASE
parameters:
  lambda: 1.0
  normalize: true
dtype: float32
""",
    random=True,
)
_add(
    "modules of one",
    """
merge_method: slerp
base_model: $A
modules:
  default:
    slices:
    - sources:
      - {model: $A, layer_range: [0, 4]}
      - {model: $B, layer_range: [0, 4]}
parameters: {t: 0.4}
dtype: float32
""",
)
_add(
    "several recipes in one file",
    """
name: first
merge_method: linear
models:
  - {model: $A, parameters: {weight: 0.5}}
  - {model: $B, parameters: {weight: 0.5}}
dtype: float32
---
merge_method: slerp
base_model: first
models:
  - model: first
  - model: $C
parameters:
  t: 0.5
dtype: float32
""",
    theirs=False,
)
_add(
    "linear of slices",
    """
slices:
  - sources:
      - {model: $A, layer_range: [0, 2], parameters: {weight: 0.8}}
      - {model: $B, layer_range: [0, 2], parameters: {weight: 0.2}}
  - sources:
      - {model: $A, layer_range: [2, 4]}
      - {model: $B, layer_range: [2, 4]}
    parameters: {weight: 0.5}
merge_method: linear
dtype: float32
""",
)
_add(
    "slerp with the base not among the models",
    """
models:
  - model: $B
merge_method: slerp
base_model: $A
parameters:
  t: 0.3
dtype: float32
""",
)

# ---- words that this method does not use ----

_add(
    "density under linear",
    """
models:
  - model: $A
    parameters:
      weight: 0.5
      density: 0.5
  - model: $B
    parameters:
      weight: 0.5
      density: 0.5
merge_method: linear
dtype: float32
""",
    "density",
)
_add(
    "weights and a mask under slerp",
    """
models:
  - model: $A
    parameters: {weight: 0.5}
  - model: $B
    parameters: {weight: 0.5}
merge_method: slerp
base_model: $A
parameters:
  t: 0.5
  int8_mask: true
  normalize: true
dtype: float32
""",
    "weight",
    "int8_mask",
    "normalize",
)
_add(
    "weights under model stock",
    """
models:
  - {model: $A, parameters: {weight: 1.0, density: 1.0}}
  - {model: $B, parameters: {weight: 1.0, density: 1.0}}
merge_method: model_stock
base_model: $BASE
parameters: {int8_mask: true}
dtype: float32
""",
    "weight",
    "density",
    "int8_mask",
)
_add(
    "weights under karcher",
    """
models:
  - {model: $A, parameters: {weight: 0.7}}
  - {model: $B, parameters: {weight: 0.3}}
merge_method: karcher
dtype: float32
""",
    "weight",
)
_add(
    "lambda under sce",
    """
models:
  - model: $A
    parameters: {select_topk: 0.3}
  - model: $B
merge_method: sce
base_model: $BASE
parameters: {lambda: 1.1, select_topk: 0.6, normalize: false, rescale: true}
dtype: float32
""",
    "lambda",
    "select_topk",
    "normalize",
    "rescale",
)
_add(
    "weight under sce",
    """
models:
  - {model: $A, parameters: {weight: 0.4}}
  - {model: $B, parameters: {weight: 0.6}}
merge_method: sce
base_model: $BASE
dtype: float32
""",
    "weight",
)
_add(
    "seed inside parameters",
    """
models:
  - {model: $A, parameters: {weight: 0.4, density: 1.0}}
  - {model: $B, parameters: {weight: 0.6, density: 1.0}}
merge_method: dare_ties
base_model: $BASE
parameters: {random_seed: 42}
dtype: float32
""",
    "random_seed",
)
_add(
    "normalize and dtype inside parameters",
    """
models:
  - {model: $A}
  - {model: $B}
merge_method: slerp
base_model: $A
parameters: {t: 0.5, normalize: true, dtype: bfloat16}
dtype: float32
""",
    "normalize",
    "dtype",
)
_add(
    "lambda under one model",
    """
models:
  - {model: $A, parameters: {weight: 0.5, lambda: 0.5}}
  - {model: $B, parameters: {weight: 0.5}}
merge_method: task_arithmetic
base_model: $BASE
dtype: float32
""",
    "lambda",
)
_add(
    "normalize under one model",
    """
models:
  - {model: $A, parameters: {weight: 0.5, normalize: false}}
  - {model: $B, parameters: {weight: 0.9}}
merge_method: linear
dtype: float32
""",
    "normalize",
)
_add(
    "t under nuslerp",
    """
models:
  - {model: $A, parameters: {weight: 0.5}}
  - {model: $B, parameters: {weight: 0.9}}
merge_method: nuslerp
parameters: {t: 0.3}
dtype: float32
""",
    "'t'",
)
_add(
    "gamma and epsilon under ties",
    """
models:
  - {model: $A, parameters: {weight: 0.5, density: 0.5, gamma: 0.01, epsilon: 0.05}}
  - {model: $B, parameters: {weight: 0.9, density: 0.7, gamma: 0.01, epsilon: 0.05}}
merge_method: ties
base_model: $BASE
dtype: float32
""",
    "gamma",
    "epsilon",
)
_add(
    "parameters of the base",
    """
models:
  - model: $BASE
    parameters: {weight: 0.3, density: 0.4}
  - model: $A
    parameters: {weight: 0.5, density: 0.6}
merge_method: ties
base_model: $BASE
dtype: float32
""",
)
_add(
    "weight under passthrough",
    """
slices:
  - sources: [{model: $A, layer_range: [0, 2], parameters: {weight: 1.0}}]
  - sources: [{model: $B, layer_range: [2, 4]}]
merge_method: passthrough
parameters: {density: 0.5}
dtype: bfloat16
""",
    "weight",
    "density",
)
_add(
    "select_topk under ties",
    """
models:
  - {model: $A, parameters: {weight: 0.5, density: 0.5}}
merge_method: ties
base_model: $BASE
parameters: {select_topk: 0.1, filter_wise: true}
dtype: float32
""",
    "select_topk",
    "filter_wise",
)
_add(
    "weights under nearswap",
    """
models:
  - {model: $B, parameters: {weight: 0.5, density: 0.5}}
merge_method: nearswap
base_model: $A
parameters: {t: 0.05, normalize: true}
dtype: float32
""",
    "weight",
    "density",
    "normalize",
)
_add(
    "weights under arcee fusion",
    """
models:
  - {model: $A, parameters: {weight: 0.5}}
  - {model: $B, parameters: {weight: 0.5}}
merge_method: arcee_fusion
base_model: $A
parameters: {normalize: true, int8_mask: true}
dtype: float32
""",
    "weight",
    "normalize",
    "int8_mask",
)

# ---- words of the whole file ----

_add(
    "a seed at the top",
    """
models:
  - {model: $A, parameters: {weight: 0.5, density: 1.0}}
merge_method: dare_linear
base_model: $BASE
random_seed: 42
dtype: float32
""",
    "random_seed",
)
_add(
    "embed_slerp",
    """
models: [{model: $A}, {model: $B}]
merge_method: slerp
base_model: $A
embed_slerp: true
parameters: {t: 0.5}
dtype: float32
""",
    "embed_slerp",
)
_add(
    "metadata",
    """
metadata:
  author: someone
  description: a merge of two
models: [{model: $A}, {model: $B}]
merge_method: slerp
base_model: $A
parameters: {t: 0.5}
dtype: float32
""",
    "metadata",
)
_add(
    "anchors' holders",
    """
defaults: &half
  weight: 0.5
  density: 0.6
lists:
  - &first $A
  - &second $B
models:
  - model: *first
    parameters: *half
  - model: *second
    parameters:
      <<: *half
      weight: 0.8
merge_method: ties
base_model: $BASE
dtype: float32
""",
    "defaults",
    "lists",
)
_add(
    "one key twice with one value",
    """
models:
  - model: $A
    parameters:
      weight: 0.5
      weight: 0.5
  - model: $B
    parameters:
      weight: 0.7
merge_method: linear
dtype: float32
dtype: float32
""",
    "weight",
    "dtype",
)
_add(
    "one key twice with two values",
    """
models:
  - model: $A
    parameters:
      weight: 0.5
      weight: 0.7
  - model: $B
    parameters:
      weight: 0.7
merge_method: linear
dtype: float32
""",
    refusal="weight: key given twice",
)
_add(
    "residual weight",
    """
slices:
  - sources: [{model: $A, layer_range: [0, 4]}]
    residual_weight: 0.5
  - sources: [{model: $B, layer_range: [2, 4]}]
merge_method: passthrough
dtype: bfloat16
""",
    "residual_weight",
)
_add(
    "words for numbers",
    """
slices:
  - sources:
      - model: $A
        layer_range: ['0', '4']
      - model: $B
        layer_range: ["0", 4]
        parameters: {weight: '0.5'}
    parameters: {weight: "1.5"}
merge_method: linear
parameters: {normalize: 'true'}
dtype: float32
""",
    "layer_range",
    "weight",
    "normalize",
)
_add(
    "numbers for flags",
    """
models:
  - {model: $A, parameters: {weight: 0.5}}
  - {model: $B, parameters: {weight: 0.9}}
merge_method: linear
parameters: {normalize: 0.0}
dtype: float32
""",
)
_add(
    "parameters outside of parameters",
    """
models:
  - model: $A
    weight: 0.3
    parameters: {weight: 0.5, density: 0.5}
  - model: $B
    layer_range: [0, 4]
    parameters: {weight: 0.5, density: 0.5}
merge_method: ties
base_model: $BASE
normalize: false
int8_mask: true
dtype: float32
""",
    "weight",
    "layer_range",
    "normalize",
    "int8_mask",
)
_add(
    "merge method inside of parameters",
    """
models:
  - {model: $A, parameters: {weight: 0.5}}
  - {model: $B, parameters: {weight: 0.5}}
merge_method: linear
parameters: {merge_method: linear, base_model: $A}
dtype: float32
""",
    "merge_method",
    "base_model",
)
_add(
    "a name",
    """
name: my-merge
models: [{model: $A}, {model: $B}]
merge_method: slerp
base_model: $A
parameters: {t: 0.5}
dtype: float32
""",
)
_add(
    "nulls",
    """
models:
  - model: $A
    parameters:
  - model: $B
    parameters: null
merge_method: slerp
base_model: $A
tokenizer_source: null
chat_template: null
slices: null
parameters: {t: 0.5}
dtype: float32
out_dtype: null
""",
)
_add(
    "a condition without a list",
    """
models:
  - model: $A
    parameters:
      weight: {value: 0.4}
  - model: $B
    parameters:
      weight: {filter: mlp, value: 0.9}
merge_method: linear
parameters: {weight: 0.6}
dtype: float32
""",
)
_add(
    "a filter for all",
    """
models:
  - {model: $A, parameters: {weight: [{filter: '*', value: [0.2, 0.9]}]}}
  - {model: $B, parameters: {weight: [{filter: null, value: 0.4}]}}
merge_method: linear
dtype: float32
""",
)
_add(
    "a gradient of words",
    """
models:
  - {model: $A, parameters: {weight: ['0.1', 0.9]}}
  - {model: $B, parameters: {weight: 0.4}}
merge_method: linear
dtype: float32
""",
    "weight",
)
_add(
    "a gradient of flags",
    """
models:
  - {model: $A, parameters: {weight: 0.3}}
  - {model: $B, parameters: {weight: 0.4}}
merge_method: linear
parameters: {normalize: [true, false]}
dtype: float32
""",
)
_add(
    "a base in a slice",
    """
slices:
  - sources:
      - {model: $A, layer_range: [0, 2]}
      - {model: $B, layer_range: [0, 2]}
    base_model: $A
  - sources:
      - {model: $A, layer_range: [2, 4]}
      - {model: $B, layer_range: [2, 4]}
    base_model: $B
merge_method: slerp
parameters: {t: 0.2}
dtype: float32
""",
    refusal="slices of different bases",
)
_add(
    "one base, named by the slices",
    """
slices:
  - sources:
      - {model: $A, layer_range: [0, 2]}
      - {model: $B, layer_range: [0, 2]}
    base_model: $A
  - sources:
      - {model: $A, layer_range: [2, 4]}
      - {model: $B, layer_range: [2, 4]}
    base_model: $A
merge_method: slerp
parameters: {t: 0.2}
dtype: float32
""",
)
_add(
    "a base that gives nothing",
    """
models:
  - {model: $A, parameters: {weight: 0.5}}
  - {model: $B, parameters: {weight: 0.5}}
merge_method: linear
base_model: $BASE
dtype: float32
""",
    theirs=False,
)
_add(
    "a base that is merged since the weight is for all",
    """
models:
  - {model: $A, parameters: {weight: 0.9}}
  - {model: $B}
merge_method: linear
base_model: $BASE
parameters: {weight: 0.5}
dtype: float32
""",
    "base_model is merged",
)
_add(
    "a base that is merged by karcher",
    """
models: [{model: $A}, {model: $B}]
merge_method: karcher
base_model: $BASE
dtype: float32
""",
    "base_model is merged",
)
_add(
    "a base that no slice names",
    """
slices:
  - sources:
      - {model: $A, layer_range: [0, 4]}
      - {model: $B, layer_range: [0, 4]}
merge_method: linear
base_model: $BASE
parameters: {weight: 0.5}
dtype: float32
""",
)
_add(
    "a stack with a base",
    """
slices:
  - sources: [{model: $A, layer_range: [0, 4]}]
  - sources: [{model: $B, layer_range: [2, 4]}]
merge_method: passthrough
base_model: $BASE
dtype: float32
""",
)
_add(
    "a truth for a number",
    """
models: [{model: $A, parameters: {weight: true}}, {model: $B, parameters: {weight: 0.5}}]
merge_method: linear
dtype: float32
""",
    "truth",
)
_add(
    "a word for a truth",
    """
models: [{model: $A, parameters: {weight: 0.2}}, {model: $B, parameters: {weight: 0.5}}]
merge_method: linear
parameters: {normalize: 'false'}
dtype: float32
""",
    "normalize",
)
_add(
    "float64",
    """
models:
  - {model: $A, parameters: {weight: 0.5}}
  - {model: $B, parameters: {weight: 0.5}}
merge_method: linear
dtype: float64
out_dtype: float32
""",
    refusal="unknown dtype 'float64'",
)
_add(
    "long references",
    """
models:
  - model: {model: {path: $A, revision: null}, lora: null, override_architecture: null}
    parameters: {weight: 0.5}
  - model: {model: {path: $B}}
    parameters: {weight: 0.5}
merge_method: linear
dtype: float32
""",
)
_add(
    "parameters of a model in every slice",
    """
slices:
  - sources:
      - {model: $BASE, layer_range: [0, 2]}
      - {model: $A, layer_range: [0, 2]}
    parameters: {weight: 0.3, density: 0.5}
  - sources:
      - {model: $BASE, layer_range: [2, 4]}
      - {model: $A, layer_range: [2, 4]}
    parameters: {weight: [0.2, 0.6]}
merge_method: ties
base_model: $BASE
parameters: {density: 0.9, normalize: false, rescale: true}
dtype: float32
""",
)
_add(
    "an integer t",
    """
models: [{model: $A}, {model: $B}]
merge_method: slerp
base_model: $A
parameters: {t: 1}
dtype: float32
""",
)
_add(
    "weights that cancel out",
    """
models:
  - {model: $A, parameters: {weight: 0.7}}
  - {model: $B, parameters: {weight: -0.2}}
merge_method: task_arithmetic
base_model: $BASE
parameters: {normalize: true, lambda: 1.2}
dtype: float32
""",
)
_add(
    "density over one",
    """
models:
  - {model: $A, parameters: {weight: 0.7, density: 1.2}}
  - {model: $B, parameters: {weight: 0.2, density: 0.5}}
merge_method: ties
base_model: $BASE
dtype: float32
""",
    "density above 1",
)
_add(
    "two of one model",
    """
models:
  - {model: $A, parameters: {weight: 0.4, density: 0.5}}
  - {model: $A, parameters: {weight: 0.4, density: 0.2}}
  - {model: $B, parameters: {weight: 0.2, density: 0.5}}
merge_method: ties
base_model: $BASE
dtype: float32
""",
    theirs=False,
)
# ---- what nothing knows ----

_add(
    "an unknown word",
    """
models: [{model: $A}, {model: $B}]
merge_method: slerp
base_model: $A
parmeters: {t: 0.5}
parameters: {t: 0.5}
""",
    refusal="parmeters: unknown key; did you mean 'parameters'",
)
_add(
    "a misspelt parameter",
    """
models:
  - {model: $A, parameters: {weigth: 0.5, weight: 1.0}}
  - {model: $B, parameters: {weight: 0.5}}
merge_method: linear
""",
    refusal="weigth",
)
_add(
    "an unknown word inside of parameters",
    """
models:
  - {model: $A, parameters: {weight: 0.5}}
  - {model: $B, parameters: {weight: 0.5}}
merge_method: linear
parameters: {temperature: 0.7}
""",
    refusal="temperature",
)
_add(
    "no weight",
    """
models:
  - {model: $A, parameters: {weight: 0.5}}
  - {model: $B}
merge_method: linear
""",
    refusal="needs 'weight'",
    theirs=False,
)
_add(
    "no t",
    """
models: [{model: $A, parameters: {t: 0.5}}, {model: $B}]
merge_method: slerp
base_model: $A
""",
    refusal="needs 't'",
    theirs=False,
)
_add(
    "an unknown method",
    """
models: [{model: $A}, {model: $B}]
merge_method: dare
base_model: $A
""",
    refusal="unknown merge method 'dare'",
    theirs=False,
)
_add(
    "three models under slerp",
    """
models: [{model: $A}, {model: $B}, {model: $C}]
merge_method: slerp
base_model: $A
parameters: {t: 0.5}
""",
    refusal="takes 1 model",
    theirs=False,
)
_add(
    "models and slices",
    """
models: [{model: $A}]
slices:
  - sources: [{model: $B, layer_range: [0, 4]}]
merge_method: passthrough
""",
    refusal="either models or slices",
    theirs=False,
)
_add(
    "layers that are not there",
    """
slices:
  - sources: [{model: $A, layer_range: [0, 5]}]
merge_method: passthrough
""",
    refusal="layers 0 to 5",
    theirs=False,
)
_add(
    "a weight of words",
    """
models:
  - {model: $A, parameters: {weight: much}}
merge_method: linear
""",
    refusal="a number",
    theirs=False,
)
