"""Chat templates by name, and those that models bring along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evomerge_common.errors import RecipeError, did_you_mean
from evomerge_models.files import read_json_or_nothing

_GENERATION = "{{% if add_generation_prompt %}}{{{{ {} }}}}{{% endif %}}"


def _each(body: str, generation: str) -> str:
    return "{% for message in messages %}" + body + "{% endfor %}" + _GENERATION.format(generation)


TEMPLATES = {
    "chatml": _each(
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}",
        "'<|im_start|>assistant\\n'",
    ),
    "alpaca": _each(
        "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
        "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}",
        "'### Response:\\n'",
    ),
    "llama3": "{{ bos_token }}"
    + _each(
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
        " + '<|eot_id|>' }}",
        "'<|start_header_id|>assistant<|end_header_id|>\\n\\n'",
    ),
    "mistral": "{{ bos_token }}"
    + _each(
        "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}",
        "''",
    ),
}


def chat_template(setting: str, folders: Iterable[Path]) -> str:
    """The text of a recipe's `chat_template`: "" (none set), "auto" (the most frequent of the sources'), name, Jinja.

    Raises:
        RecipeError: no such name.

    """
    if setting == "auto":
        found = Counter(text.strip() for folder in folders if (text := template_of(folder)))
        return found.most_common(1)[0][0] if found else ""
    if not setting or "{" in setting:
        return setting
    if setting in TEMPLATES:
        return TEMPLATES[setting]
    hint = did_you_mean(setting, [*TEMPLATES, "auto"])
    raise RecipeError(f"unknown chat template {setting!r}; {hint}, or give a Jinja text", ("chat_template",))


def template_of(folder: Path) -> str:
    """The chat template that a model's folder holds, in any of the places where libraries put it; "" if none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8", errors="replace")
    for name in ("tokenizer_config.json", "chat_template.json"):
        value: Any = read_json_or_nothing(folder / name).get("chat_template")
        if isinstance(value, list):
            named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
            value = named.get("default") or next(iter(named.values()), "")
        if isinstance(value, str) and value:
            return value
    return ""
