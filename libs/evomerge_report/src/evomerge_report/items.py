"""What is shown of an item of any kind of task: what was asked, and the right answer."""

from __future__ import annotations

import json
from collections.abc import Sequence

from evomerge_common.domain.task import Item

TEXT_LENGTH = 400
"""So many characters are shown of each."""
_TEXTS = ("prompt", "question", "text", "problem", "instruction", "context", "first", "document")
_ANSWERS = ("answer", "answers", "label", "solution", "target")


def shown(item: Item) -> tuple[str, str]:
    """Returns what was asked and the right answer ("" where the kind has none), cut short."""
    content = item.content
    text = next((content[key] for key in _TEXTS if isinstance(content.get(key), str)), None)
    right = next((content[key] for key in _ANSWERS if key in content), "")
    choices = content.get("choices")
    if isinstance(right, int) and isinstance(choices, Sequence) and 0 <= right < len(choices):
        right = choices[right]
    answer = right if isinstance(right, str) else json.dumps(right, ensure_ascii=False)
    return _short(item.text if text is None else text), _short(answer)


def _short(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"
