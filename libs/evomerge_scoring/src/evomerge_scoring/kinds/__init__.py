"""Tasks put to a model: most by what their kind asks (`requests.py`), some in a way of their own, one a file.

Which one, a kind says itself (`Kind.scored_by`). Importing this imports no torch: the command brings items with it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from evomerge_common.domain.kinds import kind_of
from evomerge_common.domain.messages import TaskScore
from evomerge_common.domain.task import CREDIT, Item, Task
from evomerge_common.errors import EvoMergeException, SuiteError

if TYPE_CHECKING:
    from evomerge_scoring.encode import Encoder
    from evomerge_scoring.model import ScoringModel

T = TypeVar("T")


class Prepared(Protocol):
    """Items encoded for a tokenizer: what `Kind.scored_by` names, made from (task, items, encoder).

    One serves every candidate of a run whose tokenizer is the same.
    """

    @property
    def truncated(self) -> int:
        """Items that were cut to fit the context window."""
        ...

    def score(self, model: ScoringModel, size: int, advance: Callable[[int], None]) -> TaskScore:
        """Asks a model, `size` rows a batch; called for each candidate. `advance` takes how many items are done."""
        ...


def prepare(task: Task, items: Sequence[Item], encoder: Encoder) -> Prepared:
    """Encodes some of a task's items.

    Raises:
        SuiteError: the kind of task does not go with the kind of model, or an item is too long.
        ModelError: the task asks for a chat template and the model has none.

    """
    scored_by = "evomerge_scoring.kinds.credit:Credit" if task.fitness == CREDIT else kind_of(task.kind).scored_by
    made: Prepared = pkgutil.resolve_name(scored_by)(task, items, encoder)
    return made


def expand_task(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """A task of a suite, as written, with the items that its kind brings; of other kinds as it is.

    Raises:
        SuiteError: what it needs is not installed here, or it cannot be loaded.

    """
    kind = kind_of(str(task["kind"]))
    if kind.expanded_by:
        expanded: Mapping[str, Any] = pkgutil.resolve_name(kind.expanded_by)(task)
        return expanded
    if not kind.own_items:
        return task
    name = str(task.get("name", kind.name))
    return {**task, "items": guarded(name, lambda: [dict(item) for item in kind.items(task)])}


def guarded(task: str, work: Callable[..., T], *arguments: Any) -> T:
    """Calls what may be a user's code; whatever it raises becomes an error that names the task.

    Raises:
        SuiteError: it raised something that is no error of EvoMerge's.

    """
    try:
        return work(*arguments)
    except EvoMergeException:
        raise
    except Exception as error:
        raise SuiteError(f"task {task!r} failed: {type(error).__name__}: {error}") from error
