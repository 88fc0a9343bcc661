"""perplexity: how well the model foresees a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from evomerge_common.domain.kinds.kind import Document, Kind, Words
from evomerge_common.domain.task import Content, Item, Task
from evomerge_common.errors import Path, SuiteError


class Perplexity(Kind):
    """Basic: an item is a text, and what may stand before it."""

    name = "perplexity"
    summary = "bits per byte of documents (after a prompt, where there is one); item score 2 ** -bits"
    fields: ClassVar[Words] = ("text",)
    optional: ClassVar[Words] = ("prompt",)
    texts: ClassVar[Words] = ("prompt", "text")
    metrics: ClassVar[Words] = ("bits_per_byte",)
    document_field = "text"

    def check_item(self, content: Content, path: Path) -> None:
        """Refuses a text without a byte."""
        if not content["text"]:
            raise SuiteError("`text` is empty", (*path, "text"))

    def requests(self, task: Task, content: Content) -> Sequence[Document]:
        """Asks for the text."""
        return [Document(content["text"], content.get("prompt", ""))]

    def score(self, task: Task, content: Content, answers: Sequence[Any]) -> float:
        """Returns 2 to the power of minus the text's bits a byte."""
        bits = -answers[0] / math.log(2)
        return float(2.0 ** -(bits / len(content["text"].encode())))

    def metric_value(self, task: Task, items: Sequence[Item], scores: Sequence[float]) -> float:
        """Returns the bits a byte of all documents together."""
        sizes = [len(str(item.content["text"]).encode()) for item in items]
        bits = [-math.log2(max(score, 1e-45)) * size for score, size in zip(scores, sizes, strict=True)]
        return sum(bits) / sum(sizes)


KIND = Perplexity()
