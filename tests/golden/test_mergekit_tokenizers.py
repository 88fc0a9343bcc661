"""mergekit's alignment of vocabularies against ours: token by token, since it numbers a union's tokens by chance."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from evomerge_merging import merge_recipe, read_recipe_file
from helpers.tiny_merging import make_model, weights
from helpers.tiny_tokenizers import ENGLISH, GERMAN, make_tokenizer, tokens_of
from helpers.tokenizer_cases import CASES

PYTHON = Path(__file__).parents[2] / ".venv-golden" / "bin" / "python"
pytestmark = [
    pytest.mark.golden,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason="mergekit's environment is not there: run scripts/golden"),
]
KINDS = ("llama", "llama-tied")


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizers")
    texts = {"BASE": (ENGLISH, ()), "A": (ENGLISH, ("<only A>", "<A and B>")), "B": (GERMAN, ("<only B>", "<A and B>"))}
    jobs = []
    for kind in KINDS:
        near = None
        for seed, name in enumerate(("BASE", "A", "B", "C")):
            text, added = texts.get(name, (GERMAN, ()))
            folder = root / f"{kind}-{name}"
            rows = make_tokenizer(folder, text, added=added)
            make_model(
                folder, "llama", seed=seed, near=near if rows == 60 else None, vocab_size=rows,
                tie_word_embeddings=kind.endswith("tied"),
            )  # fmt: skip
            near = near or folder
        for number, text in enumerate(CASES.values()):
            config = root / f"{kind}-{number}.yml"
            filled = re.sub(r"(model: |source: |\")(BASE|A|B|C)\b(?!\s+and)", rf"\1{root / kind}-\2", text)
            config.write_text(filled.replace(f"{root / kind}-B</", "B</"))
            jobs.append([str(config), str(root / f"{kind}-{number}-mergekit")])
    (root / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    script = Path(__file__).parent / "run_mergekit.py"
    subprocess.run([PYTHON, script, root / "jobs.json"], check=True, env=environment, timeout=500)
    return root


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_each_token_has_mergekits_row(arena: Path, kind: str, name: str) -> None:
    number = list(CASES).index(name)
    failed = json.loads((arena / "jobs.failed.json").read_text())
    config = arena / f"{kind}-{number}.yml"
    assert str(config) not in failed, failed[str(config)]
    out, theirs_at = arena / f"{kind}-{number}-evomerge", arena / f"{kind}-{number}-mergekit"
    merge_recipe(read_recipe_file(config), {}, out)
    ours, theirs = weights(out), weights(theirs_at)
    assert ours.keys() == theirs.keys()
    tokens, reference = tokens_of(out), tokens_of(theirs_at)
    assert tokens.keys() == reference.keys()
    assert (
        json.loads((out / "config.json").read_text())["vocab_size"]
        == json.loads((theirs_at / "config.json").read_text())["vocab_size"]
    )
    order = [tokens[token] for token in reference]
    other = [reference[token] for token in reference]
    for tensor, value in theirs.items():
        got, wanted = ours[tensor], value
        assert got.shape == value.shape
        if "embed_tokens" in tensor or "lm_head" in tensor:
            pad = len(tokens)
            got, wanted = torch.cat([got[order], got[pad:]]), torch.cat([value[other], value[pad:]])
        steps = (got.float() - wanted.float()).abs() / torch.exp2(
            torch.maximum(got.abs(), wanted.abs()).float().clamp_min(1e-3).log2().floor() - 7
        )
        assert steps.max() <= 1.01, (tensor, steps.max())
