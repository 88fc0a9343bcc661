"""mergekit 0.1.5 itself is the oracle: the same YAML through both, compared tensor by tensor.

`scripts/golden` makes mergekit's environment (.venv-golden) and runs these.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from evomerge_merging import merge_recipe, read_recipe_file
from helpers.golden_cases import CASES, RANDOM
from helpers.tiny_merging import HIDDEN, make_model, rewrite, weights

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-golden" / "bin" / "python"
pytestmark = [
    pytest.mark.golden,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="mergekit's environment is not there: run scripts/golden"),
]
KINDS = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "bert")
TABLE: list[tuple[str, str, float, float, float]] = []


def _fill(text: str, root: Path, kind: str) -> str:
    for name in ("BASE", "A", "B", "C"):
        text = text.replace(f"model: {name}", f"model: {root / f'{kind}-{name}'}")
    return text


def _make(folder: Path, kind: str, dtype: torch.dtype, seed: int = 0, near: Path | None = None) -> Path:
    make_model(folder, kind, seed=seed, dtype=dtype, near=near)
    if kind == "bert":
        # mergekit 0.1.5 insists on a pooler, which transformers leaves out of BertForMaskedLM.
        generator = torch.Generator().manual_seed(seed)
        shapes = {"bert.pooler.dense.weight": (HIDDEN, HIDDEN), "bert.pooler.dense.bias": (HIDDEN,)}
        noise = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        base = weights(near) if near else {}
        rewrite(folder, {n: (base[n].float() + 0.2 * value if near else value).to(dtype) for n, value in noise.items()})
    return folder


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases run through mergekit, in one process of its own."""
    root = tmp_path_factory.mktemp("golden")
    jobs = []
    for kind in KINDS:
        for prefix, dtype in ((kind, torch.float32), (f"{kind}-narrow", torch.bfloat16)):
            base = _make(root / f"{prefix}-BASE", kind, dtype)
            for seed, name in enumerate("ABC", 1):
                _make(root / f"{prefix}-{name}", kind, dtype, seed, base)
        for number, text in enumerate([*CASES.values(), *RANDOM.values()]):
            config = root / f"{kind}-{number}.yml"
            # Narrow sources where all is done in bfloat16; else wide ones, whose task vectors have no two elements of
            # equal magnitude: which of those TIES keeps is mergekit's accident (and the earlier element in ours).
            config.write_text(_fill(text, root, kind if "float32" in text else f"{kind}-narrow"))
            jobs.append([str(config), str(root / f"{kind}-{number}-mergekit")])
    (root / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    subprocess.run(
        [PYTHON, Path(__file__).parent / "run_mergekit.py", root / "jobs.json"],
        check=True,
        env=environment,
        timeout=800,
    )
    return root


def _ours(root: Path, kind: str, number: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    failed = json.loads((root / "jobs.failed.json").read_text())
    config = root / f"{kind}-{number}.yml"
    if str(config) in failed:
        pytest.xfail(f"mergekit itself fails: {failed[str(config)].strip().splitlines()[-1][:200]}")
    out = root / f"{kind}-{number}-evomerge"
    merge_recipe(read_recipe_file(config), {}, out)
    return weights(out), weights(root / f"{kind}-{number}-mergekit")


def _difference(
    ours: torch.Tensor, theirs: torch.Tensor, operands: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Absolute, and in bfloat16 steps of the largest value in sight (or of 1e-3, where all are smaller)."""
    ours, theirs = ours.float(), theirs.float()
    difference = (ours - theirs).abs()
    largest = torch.stack([ours, theirs, *[value.float() for value in operands]]).abs().amax(0).clamp_min(1e-3)
    return difference, difference / torch.exp2(largest.log2().floor() - 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_equals_mergekit_within_a_bfloat16_step(arena: Path, kind: str, name: str) -> None:
    ours, theirs = _ours(arena, kind, list(CASES).index(name))
    # mergekit loses what is between BERT's last layer and its decoder.
    lost = {tensor for tensor in ours if kind == "bert" and tensor.startswith("cls.predictions.transform.")}
    assert ours.keys() - lost == theirs.keys()
    # With dtype bfloat16 mergekit rounds after each operation, and we once at the end: within a step of the operands.
    narrow = "in bfloat16" in name
    sources = [weights(arena / f"{kind}-narrow-{letter}") for letter in ("BASE", "A", "B")] if narrow else []
    worst, beyond, total = (0.0, 0.0), 0, 0
    for tensor, value in theirs.items():
        assert ours[tensor].shape == value.shape, tensor
        assert ours[tensor].dtype == value.dtype, tensor
        difference, steps = _difference(ours[tensor], value, [source[tensor] for source in sources])
        worst = max(worst, (difference.max().item(), steps.max().item()), key=lambda pair: pair[1])
        beyond, total = beyond + int((steps > 1.01).sum()), total + value.numel()
    TABLE.append((kind, name, *worst, beyond / total))
    # TIES may elect another sign where rounding decides whether changes cancel.
    assert beyond / total <= (0.02 if narrow and "ties" in name else 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RANDOM)
def test_random_masks_have_the_same_distribution(arena: Path, kind: str, name: str) -> None:
    ours, theirs = _ours(arena, kind, len(CASES) + list(RANDOM).index(name))
    base, model = weights(arena / f"{kind}-BASE"), weights(arena / f"{kind}-A")
    for result in (ours, theirs):
        kept = total = 0
        halves: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for tensor, value in result.items():
            delta = model[tensor].float() - base[tensor].float()
            change = value.float() - base[tensor].float()
            present = change.abs() > 1e-7
            kept += int(present.sum())
            total += int((delta != 0).sum())
            rank = delta.abs().argsort(dim=-1).argsort(dim=-1) / max(1, delta.shape[-1] - 1)
            halves[0].append(present[rank < 0.5])
            halves[1].append(present[rank > 0.5])
            # What is left is scaled by one factor a tensor, such that the L1 norm is the whole task vector's.
            # (Of sixteen elements it happens, once in thousands of tensors, that nothing is left.)
            assert torch.allclose(change.abs().sum(), delta.abs().sum(), rtol=1e-3) or not present.any(), tensor
            factors = (change / delta)[present & (delta.abs() > 1e-3)]
            if len(factors):
                assert factors.max() - factors.min() < 2e-2 * factors.mean(), tensor
        assert kept / total == pytest.approx(0.4, abs=5 * (0.24 / total) ** 0.5)
        # DELLA's probability grows with the rank in the row: epsilon 0.2 makes it 0.3 and 0.5 (a little more in short
        # rows, whose halves have no middle) on average.
        shares = [float(torch.cat(half).double().mean()) for half in halves]
        spread = 0.105 if name.startswith("della") else 0.0
        assert shares == pytest.approx([0.4 - spread, 0.4 + spread], abs=0.015 + 5 * (0.5 / total) ** 0.5)


def test_prints_the_table() -> None:
    print()
    print(f"{'model':8} {'recipe':30} {'max difference':>14} {'bf16 steps':>10}  beyond one step")
    for kind, name, absolute, steps, beyond in TABLE:
        print(f"{kind:8} {name:30} {absolute:14.2e} {steps:10.2f}  {beyond:.2%}")
