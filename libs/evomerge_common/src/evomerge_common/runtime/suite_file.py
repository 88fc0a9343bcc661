"""Suites from files: YAML whose tasks carry `items` or name a `data` file beside it. Every mistake names its line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge_common.domain.fields import check_keys
from evomerge_common.domain.kinds import Kind
from evomerge_common.domain.suite import SUITE_KEYS, Suite, check_task_keys
from evomerge_common.errors import InvalidInput, SuiteError
from evomerge_common.errors import Path as Place
from evomerge_common.runtime.documents import Document, read_bytes, read_file
from evomerge_common.runtime.suite_images import Embed, ImageReader

__all__ = ["inline_suite", "load_suite"]

MAX_DATA_BYTES = 64 * 1024 * 1024
MAX_DOCUMENT_CHARS = 1024 * 1024


Expand = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Gives a task that brings its own items (lm_eval, plugin) with these items; raises SuiteError."""


Fetch = Callable[[str], Path]
"""Finds the file on this machine that an `hf://` URL names; raises an EvoMergeException. Called once for each task."""
HUB = "hf://"


def load_suite(
    path: Path, *, expand: Expand | None = None, fetch: Fetch | None = None, embed: Embed | None = None
) -> Suite:
    """Reads a suite's YAML file and the data files that it names, relative to it.

    A task's `data` is JSONL (one item a line), `.json` (a list of items), or, for perplexity and coherence, any other
    text file, cut into documents at blank lines; or such a file of a dataset on a hub, hf://datasets/org/name/file.
    An item's `image` is the name of a file in the data file's folder.

    Raises:
        SuiteError: a file is missing, or says something that cannot work; with file and line.
        Unavailable: the hub does not answer.

    """
    document = read_file(path, error=SuiteError)
    return inline_suite(document.data, path.parent, document, expand=expand, fetch=fetch, embed=embed)


def inline_suite(
    data: Any,
    folder: Path,
    document: Document | None = None,
    *,
    path: Place = (),
    expand: Expand | None = None,
    fetch: Fetch | None = None,
    embed: Embed | None = None,
) -> Suite:
    """Reads a suite that is the `data` at the place `path` of a document (such as a run spec).

    Data files are relative to `folder`. Errors name the document's lines. `expand` fetches the items of tasks that
    bring their own; without it such tasks must have theirs already. `fetch` brings data from a hub; without it there is
    none. `embed` makes data URLs of images; without it items must have theirs already.

    Raises:
        SuiteError: see `load_suite`.

    """
    read: dict[Place, _DataFile] = {}
    try:
        if data is None:
            raise SuiteError("the suite is empty; it needs `tasks`", path)
        return Suite.from_dict(_with_items(data, folder, path, read, expand, fetch, ImageReader(embed)), path)
    except SuiteError as error:
        depth = len(path) + 3  # … "tasks", index, "items"
        source = read.get(error.path[:depth])
        if source is not None and len(error.path) > depth:
            raise source.locate(error, error.path[depth:]) from error
        raise (document or Document()).located(error) from error


@dataclass(frozen=True)
class _DataFile:
    name: str
    lines: tuple[int, ...]  # of each item; empty where the format has none (JSON)

    def locate(self, error: SuiteError, path: Place) -> SuiteError:
        """Adds file and line to an error about an item."""
        index = path[0]
        if self.lines and isinstance(index, int):
            return SuiteError(error.problem, path[1:], file=self.name, line=self.lines[index])
        return SuiteError(error.problem, path, file=self.name)


def _expanded(task: Mapping[str, Any], expand: Expand, place: Place) -> Mapping[str, Any]:
    try:
        return expand(task)
    except SuiteError as error:
        raise SuiteError(error.problem, (*place, *error.path)) from error


def _with_items(
    data: Any,
    folder: Path,
    path: Place,
    read: dict[Place, _DataFile],
    expand: Expand | None,
    fetch: Fetch | None,
    images: ImageReader,
) -> Any:
    """The same suite with each task's `data` replaced by the `items` that it names."""
    check_keys(data, SUITE_KEYS, path, SuiteError)
    tasks = data.get("tasks")
    if not isinstance(tasks, list):
        return data  # for Suite.from_dict to refuse
    whole = []
    for index, task in enumerate(tasks):
        here = (*path, "tasks", index)
        kind = check_task_keys(task, here)
        for key in filter(task.get, kind.paths):  # whoever scores stands elsewhere
            task = {**task, key: str((folder / Path(str(task[key])).expanduser()).resolve())}  # noqa: PLW2901
        if "data" not in task:
            if expand is not None and "items" not in task and kind.own_items:
                task = _expanded(task, expand, here)  # noqa: PLW2901
            elif "items" in task:
                shown = images.with_images(task["items"], kind, folder, (*here, "items"))
                task = {**task, "items": shown}  # noqa: PLW2901
            whole.append(task)
            continue
        if "items" in task:
            raise SuiteError("give either `data` or `items`, not both", (*here, "data"))
        name = task["data"]
        if not isinstance(name, str) or not name:
            raise SuiteError(f"`data` must be the name of a file, not {name!r}", (*here, "data"))
        place = (*here, "data")
        file = _of_hub(name, fetch, place) if name.startswith(HUB) else folder / Path(name).expanduser()
        items, read[*here, "items"] = _read(file, kind, place)
        items = images.with_images(items, kind, file.parent, (*here, "items"))
        whole.append({**{key: value for key, value in task.items() if key != "data"}, "items": items})
    return {**data, "tasks": whole}


def _of_hub(url: str, fetch: Fetch | None, place: Place) -> Path:
    if fetch is None:
        raise SuiteError(f"{url} is fetched by the command, not here; give the items, or a file", place)
    try:
        return fetch(url)
    except InvalidInput as error:
        raise SuiteError(str(error), place) from error


def _read(path: Path, kind: Kind, place: Place) -> tuple[list[Any], _DataFile]:
    name = str(path)
    try:
        raw = read_bytes(path, MAX_DATA_BYTES)
    except OSError as error:
        raise SuiteError(
            f"{name} cannot be read: {error.strerror or error}; `data` is relative to the suite", place
        ) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SuiteError(f"not UTF-8 text ({error.reason})", file=name, line=line) from error
    if path.suffix == ".json":
        return _json_items(text, name)
    if kind.document_field and path.suffix not in (".jsonl", ".ndjson"):
        return _documents(text, name, kind.document_field)
    return _json_lines(text, name)


def _json_items(text: str, name: str) -> tuple[list[Any], _DataFile]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SuiteError(f"not JSON: {error}", file=name, line=getattr(error, "lineno", 0)) from error
    if not isinstance(items, list):
        raise SuiteError("expected a list of items", file=name, line=1)
    return items, _DataFile(name, ())


def _json_lines(text: str, name: str) -> tuple[list[Any], _DataFile]:
    items, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a text in JSON may hold U+2028
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SuiteError(f"not JSON: {error}", file=name, line=number) from error
        items.append(item if not isinstance(item, Mapping) or "id" in item else {"id": str(number), **item})
        lines.append(number)
    return items, _DataFile(name, tuple(lines))


def _documents(text: str, name: str, field: str) -> tuple[list[Any], _DataFile]:
    """Documents between blank lines; each is named by the line where it starts."""
    items, lines = [], []
    block: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip():
            block.append(line)
            continue
        if block:
            start = number - len(block)
            document = "\n".join(block)
            if len(document) > MAX_DOCUMENT_CHARS:
                raise SuiteError(
                    f"a document of {len(document)} characters; at most {MAX_DOCUMENT_CHARS}: separate documents "
                    "with blank lines",
                    file=name,
                    line=start,
                )
            items.append({"id": str(start), field: document})
            lines.append(start)
        block = []
    return items, _DataFile(name, tuple(lines))
