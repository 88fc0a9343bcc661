"""Ollama's Modelfile: a template that gives what the Jinja template gives, or none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from evomerge_merging.tokens.chat_templates import TEMPLATES
from evomerge_models.gguf.chat import chat_form
from evomerge_models.gguf.modelfile import modelfile, write_modelfile

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{% endif %}"
    + TEMPLATES["chatml"]
)
MISTRAL_V3 = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set talk = messages[1:] %}"
    "{%- else %}{%- set talk = messages %}{%- endif %}{{- bos_token }}{%- for message in talk %}"
    "{%- if message['role'] == 'user' %}{%- if loop.last and system is defined %}"
    "{{- '[INST] ' + system + '\\n\\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
KNOWN = {**TEMPLATES, "gemma": GEMMA, "phi3": PHI3, "qwen": QWEN, "mistral v3": MISTRAL_V3}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{{ $first := true }}{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if eq .Role "user" }}{{ if not $first }}<|im_end|>\n<|im_start|>user\n'
    "{{ else if $.System }}<|im_start|>system\n{{ $.System }}<|im_end|>\n<|im_start|>user\n"
    "{{ else }}<|im_start|>user\n{{ end }}{{ $first = false }}{{ .Content }}"
    "{{ if $last }}<|im_end|>\n<|im_start|>assistant\n{{ end }}"
    '{{ else if eq .Role "assistant" }}<|im_end|>\n<|im_start|>assistant\n{{ .Content }}{{ end }}{{ end }}'
)
"""Run by Go's own text/template, this gives what Jinja gives; the other forms differ from it in texts alone."""


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_chat_template_has_a_form(name: str) -> None:
    form = chat_form(KNOWN[name], TOKENS, adds_bos=True)
    assert form is not None
    assert "<s>" not in form.start, "llama.cpp puts the first token there itself"
    kept = chat_form(KNOWN[name], TOKENS, adds_bos=False)
    assert kept is not None
    assert kept.start.startswith("<s>") == KNOWN[name].startswith(("{{ bos", "{%- if messages[0]['role'] == 'sys"))


def test_the_form_is_that_of_the_template() -> None:
    form = chat_form(TEMPLATES["chatml"], TOKENS, adds_bos=True)
    assert form is not None
    assert form.go_template() == CHATML
    folded = chat_form(GEMMA, TOKENS, adds_bos=True)
    assert folded is not None
    assert folded.render([("system", "Be kind."), ("user", "Hi")]) == (
        "<start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    )
    late = chat_form(MISTRAL_V3, TOKENS, adds_bos=True)
    assert late is not None
    assert late.system_last
    assert "{{ if and $last $.System }}{{ $.System }}\n\n{{ end }}" in late.go_template()
    named = chat_form(QWEN, TOKENS, adds_bos=True)
    assert named is not None
    assert named.start.startswith("<|im_start|>system\nYou are Qwen."), "what the model reads without a system message"


@pytest.mark.parametrize(
    "template",
    [
        "", "{% for %}", "no words of anybody", "{{ messages[0]['content'] }}",
        "{{ strftime_now('%d') }}" + TEMPLATES["chatml"],  # the day is not a part of the form
        TEMPLATES["chatml"].replace("in messages", "in messages[-2:]"),
        TEMPLATES["chatml"].replace("message['content']", "message['content'].split('.')[0]"),
        TEMPLATES["chatml"].replace("<|im_start|>", "{{ '{{' }}"),
        "{% for a in range(10 ** 9) %}{{ a }}{% endfor %}",
        "{{ messages.__class__.__mro__ }}" + TEMPLATES["chatml"],
    ],
)  # fmt: skip
def test_a_template_that_does_more_has_none(template: str) -> None:
    assert chat_form(template, TOKENS, adds_bos=True) is None


METADATA: dict[str, Any] = {
    "general.architecture": "llama", "llama.context_length": 131072,
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "a"],
    "tokenizer.ggml.token_type": [2, 3, 3, 3, 3, 1],
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": TEMPLATES["chatml"],
}  # fmt: skip


def test_the_whole_file() -> None:
    assert modelfile("m.gguf", METADATA, "apache-2.0") == (
        "# Made by EvoMerge: ollama create NAME -f Modelfile\nFROM ./m.gguf\n"
        f'TEMPLATE """{CHATML}"""\nPARAMETER stop "</s>"\nPARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 8192\n'
        'LICENSE """apache-2.0"""\n'
    )
    bare = {key: value for key, value in METADATA.items() if key != "tokenizer.chat_template"}
    text = modelfile("m.gguf", {**bare, "llama.context_length": 64, "tokenizer.ggml.eot_token_id": 4})
    assert text.splitlines()[1:] == [
        "FROM ./m.gguf", 'PARAMETER stop "</s>"', 'PARAMETER stop "<|im_end|>"', "PARAMETER num_ctx 64",
    ]  # fmt: skip


def test_a_modelfile_of_somebody_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_tensor("a", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert write_modelfile(path) == tmp_path / "Modelfile"
    assert "FROM ./m.gguf\nPARAMETER num_ctx 64\n" in (tmp_path / "Modelfile").read_text()
    assert write_modelfile(path) is not None, "ours is written anew"
    (tmp_path / "Modelfile").write_text("FROM mine\n")
    assert write_modelfile(path) is None
    assert (tmp_path / "Modelfile").read_text() == "FROM mine\n"
