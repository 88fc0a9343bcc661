"""Whether a kind of model can be asked what a suite asks, from config and file names, before anything is scored."""

from __future__ import annotations

from pathlib import Path

from evomerge_common.domain.kinds import KINDS, Continuation, Document, Request, kind_of
from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import Task
from evomerge_common.errors import SuiteError
from evomerge_scoring.reading import CAUSAL, ENCODED, MASKED, reading_of


def shows_images(suite: Suite) -> bool:
    """Whether any item of a suite has an image."""
    return any(getattr(request, "image", "") for task in suite.tasks for request in _requests(task))


def check_folder(folder: Path, suite: Suite) -> None:
    """Refuses a model folder that cannot be scored on a suite; imports transformers, reads no weights.

    Raises:
        ModelError: transformers has no class for it that answers with a text, or its config is broken.
        SuiteError: the suite asks what such a model cannot answer; names a task, and what can be asked.

    """
    from transformers import AutoConfig

    from evomerge_scoring.loading_errors import model_errors
    from evomerge_scoring.module import LOCAL
    from evomerge_scoring.pictures import load_sight

    with model_errors(folder):
        how = reading_of(AutoConfig.from_pretrained(folder, **LOCAL)).how
    fault = load_sight(folder).fault if how == CAUSAL else f"it is {how}, and of models that see only causal ones are"
    for task in suite.tasks:
        for request in _requests(task):
            _check(task, request, how, fault)


def _check(task: Task, request: Request, how: str, fault: str) -> None:
    if getattr(request, "image", "") and fault:
        raise SuiteError(
            f"task {task.name!r} has items with images, which this model cannot be asked: {fault}; tasks of any kind "
            "without images can be scored"
        )
    if isinstance(request, Continuation) and how == MASKED:
        raise SuiteError(cannot_continue(task.name))
    if isinstance(request, Document) and how == ENCODED and not request.prompt:
        raise SuiteError(
            f"task {task.name!r} has items without a prompt, and an encoder-decoder model says nothing without one; "
            "give each item a `prompt`, or ask by multiple_choice, exact_match or qa"
        )


def cannot_continue(task: str) -> str:
    """What is said of a task that asks a masked language model for a text."""
    able = ", ".join(sorted(name for name, kind in KINDS.items() if not (kind.generates or kind.own_items)))
    return f"task {task!r}: a masked language model cannot continue a text; kinds that score it: {able}"


def _requests(task: Task) -> list[Request]:
    """What a task asks; nothing where its kind does not say it in requests."""
    kind = kind_of(task.kind)
    try:
        return [one for content in kind.contents(task, task.items) for one in kind.requests(task, content)]
    except Exception:  # a user's code, or a kind that is scored in a way of its own: whoever scores tells
        return []
