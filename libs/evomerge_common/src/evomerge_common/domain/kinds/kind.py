"""What a kind of task is, and what it may ask of a model. The standard library alone: no model is near."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from evomerge_common.domain.task import Content, Item, Task
from evomerge_common.errors import Path, SuiteError


@dataclass(frozen=True)
class Choices:
    """Asks how likely each of several texts is after a prompt. Answer: a natural log-likelihood for each choice.

    `image` is a data URL; "" for none.
    """

    prompt: str
    choices: Sequence[str]
    chat: bool = False
    image: str = ""


@dataclass(frozen=True)
class Document:
    """Asks how likely a whole text is, after a prompt that is not scored. Answer: a natural log-likelihood."""

    text: str
    prompt: str = ""


@dataclass(frozen=True)
class Loglikelihood:
    """Asks how likely a continuation is after a context; requests with the same context share its reading.

    Answer: the natural log-likelihood, a float; with `greedy` a pair of it and whether greedy decoding would say it.
    """

    context: str
    continuation: str
    greedy: bool = False


@dataclass(frozen=True)
class Continuation:
    """Asks to continue a prompt greedily, up to a stop string or `max_new_tokens`. Answer: the text.

    `image` is a data URL; "" for none.
    """

    prompt: str
    stop: Sequence[str] = ("\n",)
    max_new_tokens: int = 32
    chat: bool = False
    image: str = ""


IMAGE = "image"
"""The field of an item's image, of kinds that have it as an optional one: in a data file a path, here a data URL."""
Words = tuple[str, ...]
Request = Choices | Document | Loglikelihood | Continuation


class UserTask(Protocol):
    """The short form of a kind, for one task of your own: such an object, or a class of them without arguments.

    An entry point of the group `evomerge.tasks` names it; a suite asks for it with
    `{name: rhymes, kind: plugin, plugin: rhymes, options: {words: 200}}`.
    """

    def items(self, options: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        """Returns the task's items, JSON objects; called when a suite is read. The same options must give the same.

        An `id` among an item's keys is kept as its name.
        """
        ...

    def requests(self, item: Mapping[str, Any]) -> Iterable[Request]:
        """Returns what to ask about an item; called where models are scored, once for a run's candidates."""
        ...

    def score(self, item: Mapping[str, Any], answers: Sequence[Any]) -> float:
        """Returns the item's score, 0 to 1, from the answers in the requests' order; called for each candidate."""
        ...


class Kind:
    """One kind of task: what its items hold, what it asks of a model, and what the answers are worth.

    A kind of EvoMerge's own is a file in `evomerge_common/domain/kinds/` that ends in `KIND = MyKind()`. One of your
    own is an object or a class of an installed package, named by an entry point of the group `evomerge.tasks`:

        [project.entry-points."evomerge.tasks"]
        rhymes = "my_package:Rhymes"

    and a suite says `kind: rhymes`. The package must be installed where suites are read (the command) and where models
    are scored (the evaluator). Kinds hold no state. What a subclass leaves out has the defaults below.

    Attributes:
        name: the word of suites; an installed kind is known by its entry point's name.
        summary: one line for people.
        fields: what each item must have; `optional`: what it may have; other keys are dropped.
        texts: fields that must be text; `filled`: those of them that must not be blank.
        metrics: valid metrics, the default first; empty: any word.
        options: keys of the task beside the common ones, with their defaults; a None default means "must be given".
        paths: options that are paths, relative to the suite's file.
        stop, max_new_tokens: defaults of its generation.
        generates: it asks for a text, which a masked language model cannot continue.
        runs_code: it runs programs that models write, which must be allowed where models are scored.
        own_items: it brings its items itself (see `items`), so that neither `data` nor `items` is needed.
        fixed_items: the items of every task of this kind, whatever the suite says; empty: the suite's.
        splits: its items are split into search and holdout; False: each split has all of them.
        document_field: the field that a document of a plain text file fills; "": it cannot read such files.
        scored_by: "module:name" of what puts it to a model, see `evomerge_scoring.kinds.Prepared`; the default asks
            what `requests` says and hands the answers to `score`.
        expanded_by: "module:function" that brings items in place of `items`, where that needs what this package may
            not import: from a task's keys to the same with `items`.

    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    fields: ClassVar[Words] = ()
    optional: ClassVar[Words] = ()
    texts: ClassVar[Words] = ()
    filled: ClassVar[Words] = ()
    metrics: ClassVar[Words] = ()
    options: ClassVar[Mapping[str, Any]] = {}
    paths: ClassVar[Words] = ()
    stop: ClassVar[Words] = ("\n",)
    max_new_tokens: ClassVar[int] = 32
    generates: ClassVar[bool] = False
    runs_code: ClassVar[bool] = False
    own_items: ClassVar[bool] = False
    fixed_items: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    splits: ClassVar[bool] = True
    document_field: ClassVar[str] = ""
    scored_by: ClassVar[str] = "evomerge_scoring.kinds.requests:Requests"
    expanded_by: ClassVar[str] = ""

    # ---- called when a suite is read ----

    def read_options(self, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Reads the kind's own keys of a task, defaults filled in; called by `Suite.from_dict` with the task's keys.

        Raises:
            SuiteError: one is missing, or of another type than its default.

        """
        return {
            key: _option(self.name, data.get(key, default), default, (*path, key))
            for key, default in self.options.items()
        }

    def read_item(self, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Reads an item's content; called by `Suite.from_dict` with each item's keys.

        Raises:
            SuiteError: a field is missing, or `check_item` refuses it.

        """
        for key in self.fields:
            if key not in data:
                raise SuiteError(f"an item of {self.name} needs {key!r}", path)
        content = {key: data[key] for key in (*self.fields, *self.optional) if key in data}
        for key in self.texts:
            if key in content and not isinstance(content[key], str):
                raise SuiteError(f"{key!r} must be text", (*path, key))
        for key in self.filled:
            if key in content and not content[key].strip():
                raise SuiteError(f"`{key}` is empty", (*path, key))
        if IMAGE in self.optional and not str(content.get(IMAGE, "data:image/")).startswith("data:image/"):
            raise SuiteError("must be a data URL here; the command makes one of an image file", (*path, IMAGE))
        self.check_item(content, path)
        return content

    def check_item(self, content: Content, path: Path) -> None:
        """Checks that an item can be asked; called by `read_item` with all fields there and texts checked.

        Raises:
            SuiteError: names the field.

        """

    def check_task(self, task: Task, path: Path) -> None:
        """Checks that a task can be asked; called by `Suite.from_dict` when all of it is read.

        Raises:
            SuiteError: names the key.

        """

    def items(self, task: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        """Returns the task's items; called by the command, of a kind with `own_items`, with the task's keys as written.

        The same keys must give the same items. An `id` among an item's keys is its name.
        """
        return self.fixed_items

    # ---- called where models are scored ----

    def contents(self, task: Task, items: Sequence[Item]) -> list[Content]:
        """Returns what `requests` and `score` get of each item; called by the scorer, once for all candidates of a run.

        A composed kind returns its items as those of the basic kind that it derives from.
        """
        return [item.content for item in items]

    def requests(self, task: Task, content: Content) -> Sequence[Request]:
        """Returns what to ask of an item; called by the scorer, once for all candidates of a run."""
        raise NotImplementedError

    def score(self, task: Task, content: Content, answers: Sequence[Any]) -> float:
        """Returns the item's score, 0 to 1, from the answers in its requests' order; called for each candidate."""
        raise NotImplementedError

    # ---- partial credit ----

    def grades(self, task: Task) -> bool:
        """Tells whether a task's items have right answers in words; called when a suite is read and a run starts."""
        return False

    def right_answers(self, task: Task, content: Content) -> Sequence[str]:
        """Returns texts that would be right behind the prompt of the item's first request, a continuation.

        Called by the scorer where partial credit is asked for, once for all candidates of a run; the likeliest counts.
        None: the item's partial credit is 0.
        """
        return ()

    # ---- called with scores ----

    def metric_value(self, task: Task, items: Sequence[Item], scores: Sequence[float]) -> float:
        """Returns the metric in its own unit; called by `scores.task_score` with the score of each item."""
        del items
        return sum(scores) / len(scores)

    def depends_on(self, task: Task) -> Mapping[str, Any]:
        """Returns what of a task's items together each item's score depends on; called by the fitness cache."""
        return {}

    # ---- called by `benchmarks.selection_warnings` ----

    def measures_time(self, task: Task) -> bool:
        """Tells whether a second evaluation of the same model may score otherwise."""
        return False

    def test_split_of(self, task: Task) -> str | None:
        """Returns the public benchmark whose test split the items are, "" for none, None: the task's name tells."""
        return None


def _option(kind: str, value: Any, default: Any, path: Path) -> Any:
    """A key of a task in the type of its default."""
    if value is None:
        raise SuiteError(f"a task of kind {kind} needs `{path[-1]}`", path)
    if isinstance(default, tuple):
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise SuiteError("must be a list of words", path)
        return tuple(value)
    if isinstance(default, int | float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SuiteError(f"must be a number, not {value!r}", path)
        return type(default)(value)
    if isinstance(default, Mapping) != isinstance(value, Mapping) or (
        isinstance(default, str) and not isinstance(value, str)
    ):
        raise SuiteError(f"cannot be {value!r}", path)
    return value


def check_name(options: Mapping[str, Any], key: str, path: Path) -> None:
    """Checks that an option is a name.

    Raises:
        SuiteError: it is not.

    """
    if not isinstance(options[key], str) or not options[key]:
        raise SuiteError(f"must be a name, not {options[key]!r}", (*path, key))
