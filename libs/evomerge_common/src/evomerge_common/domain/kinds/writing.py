"""writing: how well the model foresees a good text after its prompt."""

from __future__ import annotations

from evomerge_common.domain.kinds.perplexity import Perplexity


class Writing(Perplexity):
    """As perplexity, but every item has a prompt, and the text must say something."""

    name = "writing"
    summary = "bits per byte of a good text after its prompt; the prompt is not scored"
    fields = ("prompt", "text")
    optional = ()
    filled = ("text",)
    document_field = ""


KIND = Writing()
