"""Random tiny llamas of one base, and a suite: enough for the whole chain, in seconds."""

from __future__ import annotations

import json
import random
import textwrap
from pathlib import Path
from typing import Any

SUITE = """\
  tasks:
    - {name: choice, kind: multiple_choice, data: choice.jsonl}
    - {name: text, kind: perplexity, data: text.jsonl}
  holdout: 0.4
"""
SPEC = f"""\
models: [a, b, c]
base: base
suite:
{SUITE}\
seed: 1
search: {{evaluations: 20, population: 10}}
evaluation: {{threads: 1}}
"""


def write_family(folder: Path) -> Path:
    """Model folders base, a, b, c, suite.yaml and run.yaml; returns the spec's path."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(["hello world 1 2 3 = + good bad"] * 5, trainer)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="<s>", pad_token="<s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    for name in ("base", "a", "b", "c"):
        model = LlamaForCausalLM(config)
        model.load_state_dict(base.state_dict())
        if name != "base":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = random.Random(0)
    choice = [
        {"prompt": f"q {rng.random()}", "choices": [" good", " bad", " 1"], "answer": rng.randrange(3)}
        for _ in range(50)
    ]
    text = [{"text": f"hello world {rng.random()} good"} for _ in range(30)]
    for name, items in (("choice", choice), ("text", text)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    spec = folder / "run.yaml"
    spec.write_text(SPEC)
    (folder / "suite.yaml").write_text(textwrap.dedent(SUITE))
    return spec


def write_adapters(folder: Path) -> Path:
    """Three LoRA adapters of the family's base, as PEFT saves them, and adapters.yaml that evolves nothing else."""
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    for seed, name in enumerate("xyz"):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(
                LlamaForCausalLM.from_pretrained(folder / "base"),
                LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"),
            )
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter) * 0.1)
            model.save_pretrained(folder / f"lora-{name}")
    spec = folder / "adapters.yaml"
    spec.write_text(SPEC.replace("models: [a, b, c]\nbase: base\n", "models: [lora-x, lora-y, lora-z]\n"))
    return spec
