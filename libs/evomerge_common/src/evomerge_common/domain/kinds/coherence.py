"""coherence: a text's sentences in their own order against shuffled orders."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence

from evomerge_common.domain.kinds.multiple_choice import MultipleChoice
from evomerge_common.domain.task import Content, Item, Task
from evomerge_common.errors import Path, SuiteError

SHUFFLES = 3


class Coherence(MultipleChoice):
    """An item is a text; it is asked as a multiple choice between orders of its sentences."""

    name = "coherence"
    summary = "a text's sentences in their own order against shuffled orders"
    fields = ("text",)
    optional = ()
    texts = ("text",)
    filled = ("text",)
    metrics = ("acc_norm", "acc")
    document_field = "text"

    def check_item(self, content: Content, path: Path) -> None:
        """Refuses a text of fewer than three sentences."""
        count = len(sentences(content["text"]))
        if count < 3:
            place = (*path, "text")
            raise SuiteError(f"coherence needs texts of at least three sentences; this one has {count}", place)

    def contents(self, task: Task, items: Sequence[Item]) -> list[Content]:
        """Returns the orders of each text, see `orders`."""
        return [orders(item.content["text"]) for item in items]


def sentences(text: str) -> list[str]:
    """Cuts a text after each full stop, question or exclamation mark."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def orders(text: str) -> Content:
    """Returns the first sentence as the prompt; the rest in order, and shuffled, as the choices.

    Telling a text from its permutations is the discrimination test of Barzilay & Lapata (Modeling Local Coherence,
    2008). All choices have the same bytes. The text itself decides the shuffles and the place of the right one.
    """
    first, *rest = sentences(text)
    generator = random.Random(hashlib.sha256(text.encode()).digest())
    found: list[str] = []
    right = " ".join(rest)
    for _ in range(50):
        shuffled = " ".join(generator.sample(rest, len(rest)))
        if shuffled != right and shuffled not in found:
            found.append(shuffled)
        if len(found) == SHUFFLES:
            break
    place = generator.randrange(len(found) + 1)
    found.insert(place, right)
    return {"prompt": first, "choices": [" " + order for order in found], "answer": place}


KIND = Coherence()
